"""`otel-llm serve` as a real process, and what senders send to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_llm.conventions import semconv
from otel_llm.fleet import usage_log_record
from otel_llm.fleet.wire_row import RETRACTED, USAGE_COLUMNS
from tests.store.conftest import query

NOON = 1_795_953_600 * 10**9
COMMAND = str(Path(sys.executable).with_name("otel-llm"))


class Server:
    """A receiver that listens; its store is `store`."""

    def __init__(self, store: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.store = store
        listen = {"--grpc": "127.0.0.1:0", "--http": "127.0.0.1:0"}
        for name in [option for option in options if option in listen]:
            del listen[name]
        defaults = [part for pair in listen.items() for part in pair]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        self.process = subprocess.Popen(
            [COMMAND, "serve", *defaults, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, "OTEL_LLM_STORE": str(store), **(env or {})},
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.said = self.process.stdout.readline()
        if not self.said:
            self.process.wait(30)
            self.error = self.process.stderr.read()
            return
        ports = re.findall(r"(gRPC|HTTP) at \S*?:(\d+)", self.said)
        self.grpc, self.http = (next((port for name, port in ports if name == which), "") for which in ("gRPC", "HTTP"))

    def url(self, path: str = "", scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.http}{path}"

    def stop(self) -> str:
        """Tells it to end; returns what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, error = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, error
        return error

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def rows(self, columns: str) -> list[tuple[Any, ...]]:
        return query(self.store, f"SELECT {columns} FROM llm_usage ORDER BY trace_id, span_id")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, all of one store, and kills those that are left at the end."""
    started: list[Server] = []

    def start(*options: str, env: Mapping[str, str] | None = None) -> Server:
        started.append(Server(tmp_path / "usage.duckdb", *options, env=env))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def span(number: int, attributes: Mapping[str, Any] | None = None, **fields: Any) -> Span:
    """A span of a chat call. `number` makes its ids."""
    found = Span(
        trace_id=number.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        name="chat gpt-4o-mini",
        start_time_unix_nano=NOON + number * 10**6,
        end_time_unix_nano=NOON + number * 10**6 + 250 * 10**6,
        **fields,
    )
    chat = {semconv.OPERATION: "chat", semconv.PROVIDER: "openai", semconv.REQUEST_MODEL: "gpt-4o-mini"}
    usage = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 500}
    for name, value in (chat | usage if attributes is None else attributes).items():
        told = found.attributes.add(key=name).value
        if isinstance(value, int):
            told.int_value = value
        else:
            told.string_value = value
    return found


def traces(*spans: Span, scope: str = "tests.scope") -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = scope
    of_scope.spans.extend(spans)
    return request


def row(number: int, **columns: Any) -> dict[str, Any]:
    """A row of `llm_usage` on its way, of the call that `span(number)` is."""
    began = 12 * 3600 * 10**6 + number * 1000
    hours, rest = divmod(began, 3600 * 10**6)
    minutes, rest = divmod(rest, 60 * 10**6)
    told = {
        "started_at": f"2026-11-29T{hours:02d}:{minutes:02d}:{rest / 10**6:09.6f}Z",
        "trace_id": f"{number:032x}",
        "span_id": f"{number:016x}",
        "service_name": "shop",
        "operation": "chat",
        "provider": "openai",
        "request_model": "gpt-4o-mini",
        "status": "ok",
        "input_tokens": 1000,
        "output_tokens": 500,
        "usage_source": "reported",
        "cost_usd": "0.000450000",
        "price_source": "a list of another machine",
        "module": "billing",
        "row_version": 1,
    }
    return dict.fromkeys(USAGE_COLUMNS) | {RETRACTED: False} | told | columns


def logs(*rows: Mapping[str, Any]) -> ExportLogsServiceRequest:
    return usage_log_record.request(dict(one) for one in rows)
