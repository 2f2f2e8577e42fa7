"""What comes over OTLP is in the account, however it comes: by real exporters, in each protocol, once or twice."""

from __future__ import annotations

import gzip
import json
import subprocess
import urllib.request
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from otel_llm.conventions import semconv
from tests.fleet.serve.conftest import COMMAND, Server, logs, row, span, traces
from tests.store.conftest import query

Serve = Callable[..., Server]
PROTOBUF = {"Content-Type": "application/x-protobuf"}
CHAT: dict[str, Any] = {
    semconv.OPERATION: "chat",
    semconv.PROVIDER: "openai",
    semconv.REQUEST_MODEL: "gpt-4o-mini",
    semconv.INPUT_TOKENS: 1000,
    semconv.OUTPUT_TOKENS: 500,
    semconv.FINISH_REASONS: ("stop",),
}

EXPORTERS: dict[str, Callable[[Server], SpanExporter]] = {
    "grpc": lambda server: GrpcExporter(endpoint=f"http://127.0.0.1:{server.grpc}"),
    "grpc, gzip": lambda server: GrpcExporter(
        endpoint=f"http://127.0.0.1:{server.grpc}", compression=grpc.Compression.Gzip
    ),
    "http": lambda server: HttpExporter(server.url("/v1/traces")),
    "http, gzip": lambda server: HttpExporter(server.url("/v1/traces"), compression=Compression.Gzip),
}


@pytest.mark.parametrize("way", EXPORTERS)
def test_spans_of_a_real_exporter(way: str, serve: Serve) -> None:
    server = serve()
    provider = TracerProvider(resource=Resource({"service.name": "shop", "pod": "a"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(EXPORTERS[way](server)))
    tracer = provider.get_tracer("some.instrumentation", "1.2")
    with tracer.start_as_current_span("GET /", kind=SpanKind.SERVER) as root:
        with tracer.start_as_current_span("chat gpt-4o-mini", kind=SpanKind.CLIENT, attributes=CHAT) as call:
            call.add_event("noted", {"n": 1.5, "texts": ["a", "b"]})
            call.set_attribute("gen_ai.input.messages", "a secret prompt")
        root.set_status(StatusCode.ERROR, "a secret error")
    provider.shutdown()
    ids = format(call.get_span_context().span_id, "016x"), format(root.get_span_context().span_id, "016x")
    columns = "span_id, parent_span_id, service_name, provider, input_tokens, cost_usd, finish_reasons, instrumentation"
    expected = (*ids, "shop", "openai", 1000, Decimal("0.000450000"), ["stop"], "some.instrumentation")
    assert server.rows(columns) == [expected]
    stored = query(
        server.store,
        """SELECT name, kind, status_code, status_message, scope_version, resource ->> 'pod', events ->> '$[0].attributes.n',
        contains(attributes::VARCHAR, 'secret') FROM spans ORDER BY start_ns""",
    )
    assert stored == [
        ("GET /", "SERVER", "ERROR", None, "1.2", "a", None, False),
        ("chat gpt-4o-mini", "CLIENT", "UNSET", None, "1.2", "a", "1.5", False),
    ]
    assert server.stop() == ""


def test_content_is_kept_where_the_receiver_is_asked_to(serve: Serve) -> None:
    server = serve(env={"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY"})
    said = '[{"role":"user","parts":[{"type":"text","content":"mail a@example.com"}]}]'
    sent = traces(span(1, CHAT | {semconv.FINISH_REASONS: "stop", "gen_ai.input.messages": said}))
    assert httpx.post(server.url("/v1/traces"), content=sent.SerializeToString(), headers=PROTOBUF).status_code == 200
    ((kept,),) = server.rows("input_messages::VARCHAR")
    assert "mail" in kept and "a@example.com" not in kept


@pytest.mark.parametrize("which", [GrpcLogExporter, HttpLogExporter])
def test_account_records_by_a_real_exporter(which: Any, serve: Serve) -> None:
    """As the exporters send them. (The SDK cannot say a decimal or a map otherwise than as a value of an attribute.)"""
    from opentelemetry._logs import LogRecord
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    server = serve()
    endpoint = f"http://127.0.0.1:{server.grpc}" if which is GrpcLogExporter else server.url("/v1/logs")
    provider = LoggerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(which(endpoint=endpoint)))
    told = {name: value for name, value in row(1, tags={"team": "blue"}).items() if value is not None}
    where = NonRecordingSpan(
        SpanContext(int(told.pop("trace_id"), 16), int(told.pop("span_id"), 16), False, TraceFlags(1))
    )
    record = LogRecord(event_name="otel_llm.usage", attributes=told, context=set_span_in_context(where))
    provider.get_logger("otel_llm").emit(record)
    provider.shutdown()
    assert server.rows("trace_id, module, cost_usd, tags, price_source") == [
        (f"{1:032x}", "billing", Decimal("0.000450000"), {"team": "blue"}, "a list of another machine")
    ]


JSON_SPAN = """{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
"scopeSpans":[{"scope":{"name":"js","version":"2"},"spans":[{"traceId":"5B8EFFF798038103D269B633813FC60C",
"spanId":"eee19b7ec3c1b174","parentSpanId":"eee19b7ec3c1b173","name":"chat gpt-4o-mini","kind":3,"unknownField":[1],
"startTimeUnixNano":"1795953600000000000","endTimeUnixNano":"1795953600250000000","attributes":[
{"key":"gen_ai.operation.name","value":{"stringValue":"chat"}},{"key":"gen_ai.system","value":{"stringValue":"openai"}},
{"key":"gen_ai.request.model","value":{"stringValue":"gpt-4o-mini"}},{"key":"gen_ai.usage.input_tokens","value":{"intValue":"1000"}},
{"key":"gen_ai.usage.output_tokens","value":{"intValue":500}}],"status":{"code":"STATUS_CODE_OK"},
"links":[{"traceId":"5b8efff798038103d269b633813fc60d","spanId":"eee19b7ec3c1b175"}]}]}]}]}"""


@pytest.mark.parametrize("packed", [False, True])
def test_json_of_a_browser_or_a_script(packed: bool, serve: Serve) -> None:
    server = serve()
    body = JSON_SPAN.encode()
    headers = {"Content-Type": "application/json; charset=utf-8"} | ({"Content-Encoding": "gzip"} if packed else {})
    answer = httpx.post(server.url("/v1/traces"), content=gzip.compress(body) if packed else body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"], answer.json()) == (200, "application/json", {})
    assert server.rows("trace_id, span_id, parent_span_id, input_tokens, output_tokens, cost_usd") == [
        ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "eee19b7ec3c1b173", 1000, 500, Decimal("0.000450000"))
    ]
    assert query(server.store, "SELECT status_code, links ->> '$[0].span_id' FROM spans") == [
        ("OK", "eee19b7ec3c1b175")
    ]


def test_what_is_sent_again_counts_once(serve: Serve) -> None:
    """By each protocol, before a merge and after it."""
    server = serve()
    # (Far from one another: two reports of equal calls at one time may be of one.)
    spans, rows = traces(span(1), span(2000)), logs(row(3000), row(2000))
    for _ in range(3):
        for path, message in (("/v1/traces", spans), ("/v1/logs", rows)):
            content = message.SerializeToString()
            assert httpx.post(server.url(path), content=content, headers=PROTOBUF).status_code == 200
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
                name = "trace.v1.TraceService" if path == "/v1/traces" else "logs.v1.LogsService"
                channel.unary_unary(f"/opentelemetry.proto.collector.{name}/Export")(content)
        assert server.rows("span_id, module") == [
            (f"{1:016x}", None), (f"{2000:016x}", "billing"), (f"{3000:016x}", "billing"),
        ]  # fmt: skip
    assert query(server.store, "SELECT count(*) FROM spans") == [(2,)]


def test_other_spans_are_kept_or_not(serve: Serve) -> None:
    server = serve(env={"OTEL_LLM_SERVE_SPANS": "genai"})
    above, call, beside = span(1, {}), span(2), span(3, {})
    call.trace_id = above.trace_id
    call.parent_span_id = above.span_id
    content = traces(call, above, beside).SerializeToString()
    answer = httpx.post(server.url("/v1/traces"), content=content, headers=PROTOBUF)
    assert not ExportTraceServiceResponse.FromString(answer.content).HasField("partial_success")
    assert query(server.store, "SELECT span_id FROM spans ORDER BY 1") == [(f"{1:016x}",), (f"{2:016x}",)]
    assert 'item="spans",outcome="dropped"} 1' in httpx.get(server.url("/metrics")).text


def test_a_killed_server_has_what_it_answered_for(serve: Serve) -> None:
    server = serve(env={"OTEL_LLM_FLUSH_INTERVAL": "1h", "OTEL_LLM_FSYNC": "always"})
    content = logs(*(row(number) for number in range(1, 101))).SerializeToString()
    assert httpx.post(server.url("/v1/logs"), content=content, headers=PROTOBUF).status_code == 200
    server.kill()
    assert server.rows("count(*) OVER ()")[0] == (100,)


def test_the_other_commands_read_the_store_meanwhile(serve: Serve) -> None:
    server = serve()
    content = logs(row(1)).SerializeToString()
    assert httpx.post(server.url("/v1/logs"), content=content, headers=PROTOBUF).status_code == 200
    command = [COMMAND, "usage", "--store", str(server.store), "--json"]
    (found,) = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout)
    assert found["calls"] == 1


def test_it_tells_of_itself(serve: Serve) -> None:
    server = serve()
    httpx.post(server.url("/v1/traces"), content=traces(span(1)).SerializeToString(), headers=PROTOBUF)
    httpx.post(server.url("/v1/traces"), content=b"nonsense", headers=PROTOBUF)
    page = httpx.get(server.url("/metrics")).text
    assert 'otel_llm_serve_requests_total{protocol="http",signal="traces",code="200"} 1\n' in page
    assert 'otel_llm_serve_requests_total{protocol="http",signal="traces",code="400"} 1\n' in page
    assert 'otel_llm_serve_items_total{item="spans",outcome="stored"} 1\n' in page
    for line in page.splitlines():
        if not line.startswith("#"):
            float(line.rpartition(" ")[2])
    with urllib.request.urlopen(server.url("/health"), timeout=30) as answer:
        assert answer.status == 200
