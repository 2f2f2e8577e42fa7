"""The two signals that a receiver takes: their messages, and how each answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otel_llm.fleet.serve.intake import Intake, PartialSuccess


@dataclass(frozen=True, slots=True)
class SignalKind:
    """One of OTLP's signals."""

    name: str
    path: str
    """Of HTTP."""
    method: str
    """Of gRPC."""
    request: Callable[[], Any]
    take: Callable[[Intake, Any], PartialSuccess]
    _response: Callable[[], Any]
    _rejected: str

    def response(self, taken: PartialSuccess) -> Any:
        """The message that answers."""
        response = self._response()
        if taken.rejected:
            setattr(response.partial_success, self._rejected, taken.rejected)
            response.partial_success.error_message = taken.message
        return response


SIGNALS: Final = (
    SignalKind(
        "traces",
        "/v1/traces",
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        ExportTraceServiceRequest,
        Intake.traces,
        ExportTraceServiceResponse,
        "rejected_spans",
    ),
    SignalKind(
        "logs",
        "/v1/logs",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        ExportLogsServiceRequest,
        Intake.logs,
        ExportLogsServiceResponse,
        "rejected_log_records",
    ),
)
