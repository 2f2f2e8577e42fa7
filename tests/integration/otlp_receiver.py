"""A real OTLP receiver for tests: gRPC and HTTP/protobuf on loopback, each on a free port, keeping what it received.

    with OtlpReceiver() as receiver:
        ...  # a process that exports to receiver.endpoint("grpc") or receiver.endpoint("http/protobuf")
        receiver.spans

It decodes the protobuf that came over the wire and nothing else: no class of the OpenTelemetry SDK stands between an exporter's
bytes and what a test sees. Like Jaeger it takes traces alone; with `all_signals` it takes logs too, and metrics over HTTP. A test
may say what is answered, by `reply`.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

import grpc
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Protocol = Literal["grpc", "http/protobuf"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http/protobuf")
"""The values of `OTEL_EXPORTER_OTLP_PROTOCOL` that the receiver speaks."""

_HOST = "127.0.0.1"
_TRACES_PATH = "/v1/traces"
_METRICS_PATH = "/v1/metrics"
_LOGS_PATH = "/v1/logs"
_PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """A span event."""

    name: str
    time_ns: int
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it came over the wire; ids in hex, times in nanoseconds since 1970."""

    protocol: Protocol
    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    """`INTERNAL`, `CLIENT` and so on."""
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    status_code: str
    """`UNSET`, `OK` or `ERROR`."""
    status_message: str
    events: list[ReceivedEvent]
    resource: dict[str, Any]
    scope_name: str
    scope_version: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered in place of "all of it"; it is not kept then, unless it is a success."""

    status: int = 200
    """Of HTTP."""
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    """Of HTTP; of gRPC the trailing metadata."""
    rejected: int = 0
    """Records that are not taken: a partial success."""


class OtlpReceiver:
    """Receives spans over both protocols until it is stopped.

    `ports`: those to listen at, for gRPC and for HTTP, of a receiver that comes back; 0 for any.
    """

    def __init__(self, *, all_signals: bool = False, ports: tuple[int, int] = (0, 0)) -> None:
        self.all_signals = all_signals
        self.reply: Callable[[str, bytes], Reply | None] = lambda path, body: None
        """What is answered to a request for `path` (over gRPC, the path that it would have over HTTP); None for "all of it"."""
        self.headers: list[dict[str, str]] = []
        """Those of each request, over gRPC its metadata; names in small letters."""
        self.refuses = False
        """Whether what comes over HTTP is not taken."""
        self.asked, self.answers = threading.Event(), threading.Event()
        """Somebody has come over HTTP; he gets an answer."""
        self.answers.set()
        self._lock = threading.Lock()
        self._bodies: list[tuple[str, bytes]] = []
        self._spans: list[ReceivedSpan] = []
        self._content_encodings: list[str] = []
        self._grpc = grpc.server(ThreadPoolExecutor(max_workers=4, thread_name_prefix="otlp-grpc"))
        add_TraceServiceServicer_to_server(_TraceService(self), self._grpc)
        if all_signals:
            add_LogsServiceServicer_to_server(_LogsService(self), self._grpc)
        self._grpc_port: int = self._grpc.add_insecure_port(f"{_HOST}:{ports[0]}")
        self._http = _HttpServer(self, ports[1])
        self._http_thread = threading.Thread(target=self._http.serve_forever, name="otlp-http", daemon=True)

    @property
    def spans(self) -> list[ReceivedSpan]:
        """The spans so far, in the order they came."""
        with self._lock:
            return list(self._spans)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics so far, by name; of each the last that came."""
        return {
            metric.name: metric
            for request in self._requests(_METRICS_PATH, ExportMetricsServiceRequest)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    @property
    def logs(self) -> list[LogRecord]:
        """The log records so far."""
        return [
            record
            for request in self._requests(_LOGS_PATH, ExportLogsServiceRequest)
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def bodies(self, path: str | None = None) -> list[bytes]:
        """Every byte that came over HTTP (to `path`), uncompressed, a request each."""
        with self._lock:
            return [body for to, body in self._bodies if path in (None, to)]

    def _requests(self, path: str, kind: Any) -> list[Any]:
        return [kind.FromString(body) for body in self.bodies(path)]

    @property
    def content_encodings(self) -> list[str]:
        """The `Content-Encoding` of each HTTP request so far; `identity` where it had none."""
        with self._lock:
            return list(self._content_encodings)

    @property
    def ports(self) -> tuple[int, int]:
        """Where it listens, for gRPC and for HTTP."""
        return self._grpc_port, self._http.server_port

    def endpoint(self, protocol: Protocol) -> str:
        """What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to."""
        return f"http://{_HOST}:{self._grpc_port if protocol == 'grpc' else self._http.server_port}"

    def environment(self, protocol: Protocol) -> dict[str, str]:
        """What an exporting process needs to be told."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint(protocol), "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}

    def receive(self, request: ExportTraceServiceRequest, protocol: Protocol, encoding: str | None = None) -> None:
        """Keeps the spans of a request. `encoding` is the content encoding it had over HTTP."""
        spans = list(_decode(request, protocol))
        with self._lock:
            self._spans += spans
            if encoding is not None:
                self._content_encodings.append(encoding)

    def keep(self, path: str, body: bytes) -> None:
        """Keeps the bytes of a request over HTTP."""
        with self._lock:
            self._bodies.append((path, body))

    def __enter__(self) -> Self:
        self._grpc.start()
        self._http_thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join()
        self._grpc.stop(grace=None).wait()


class _TraceService(TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        answer = ExportTraceServiceResponse()
        if (rejected := _judged(self._receiver, _TRACES_PATH, request, context)) is not None:
            answer.partial_success.rejected_spans, answer.partial_success.error_message = rejected
        self._receiver.receive(request, "grpc")
        return answer


class _LogsService(LogsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: ExportLogsServiceRequest, context: grpc.ServicerContext) -> ExportLogsServiceResponse:
        answer = ExportLogsServiceResponse()
        if (rejected := _judged(self._receiver, _LOGS_PATH, request, context)) is not None:
            answer.partial_success.rejected_log_records, answer.partial_success.error_message = rejected
        self._receiver.keep(_LOGS_PATH, request.SerializeToString())
        return answer


def _judged(receiver: OtlpReceiver, path: str, request: Any, context: grpc.ServicerContext) -> tuple[int, str] | None:
    """Ends the call where the test says so; else how many of it are not taken, and why."""
    receiver.headers.append({name: str(value) for name, value in context.invocation_metadata()})
    reply = receiver.reply(path, request.SerializeToString())
    if reply is None:
        return None
    if reply.code is not grpc.StatusCode.OK:
        context.set_trailing_metadata(reply.headers)
        context.abort(reply.code, reply.reason)
    return reply.rejected, reply.reason


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, receiver: OtlpReceiver, port: int) -> None:
        super().__init__((_HOST, port), _HttpHandler)
        self.receiver = receiver


class _HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HttpServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        encoding = self.headers.get("Content-Encoding", "identity")
        receiver = self.server.receiver
        receiver.asked.set()
        receiver.answers.wait()
        if self.path != _TRACES_PATH and not (receiver.all_signals and self.path in (_METRICS_PATH, _LOGS_PATH)):
            self._answer(404, b"")
        elif receiver.refuses:
            self._answer(400, b"")
        elif self.headers.get("Content-Type") != _PROTOBUF or encoding not in ("identity", "gzip"):
            self._answer(415, b"")
        else:
            body = gzip.decompress(body) if encoding == "gzip" else body
            receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
            reply = receiver.reply(self.path, body) or Reply()
            if reply.status != 200:
                self._answer(reply.status, RpcStatus(message=reply.reason).SerializeToString(), reply.headers)
                return
            receiver.keep(self.path, body)
            if self.path == _TRACES_PATH:
                receiver.receive(ExportTraceServiceRequest.FromString(body), "http/protobuf", encoding)
            answer = b""  # an empty message is every service's answer for "all of it"
            if reply.rejected:
                partial = ExportLogsServiceResponse()
                partial.partial_success.rejected_log_records = reply.rejected
                partial.partial_success.error_message = reply.reason
                answer = partial.SerializeToString()
            self._answer(200, answer, reply.headers)

    def _answer(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.send_response(status)
        if "Content-Type" not in dict(headers):
            self.send_header("Content-Type", _PROTOBUF)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the tests' output is for failures."""


def _decode(request: ExportTraceServiceRequest, protocol: Protocol) -> Iterable[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = attributes_of(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ReceivedSpan(
                    protocol=protocol,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_span_id=span.parent_span_id.hex() or None,
                    name=span.name,
                    kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=attributes_of(span.attributes),
                    status_code=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                    status_message=span.status.message,
                    events=[
                        ReceivedEvent(event.name, event.time_unix_nano, attributes_of(event.attributes))
                        for event in span.events
                    ],
                    resource=resource,
                    scope_name=scope_spans.scope.name,
                    scope_version=scope_spans.scope.version,
                )


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as Python has such values."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return attributes_of(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)
