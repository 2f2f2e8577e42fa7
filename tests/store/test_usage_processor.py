from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, StatusCode, Tracer, set_span_in_context

from otel_llm.conventions import semconv
from otel_llm.store import Store
from otel_llm.store import usage_processor as processor_module
from otel_llm.store.exporter import DuckDBSpanExporter
from otel_llm.store.usage_processor import UsageSpanProcessor
from otel_llm.support import faults
from tests.store.conftest import CHAT, USAGE, count, query

Provider = Callable[..., TracerProvider]


def provider_of(*processors: Any, **options: Any) -> TracerProvider:
    options.setdefault("resource", Resource({"service.name": "tests"}))
    provider = TracerProvider(shutdown_on_exit=False, **options)
    for each in processors:
        provider.add_span_processor(each)
    return provider


@pytest.fixture
def tracer(quiet_store: Store) -> Tracer:
    return provider_of(UsageSpanProcessor(quiet_store)).get_tracer("tests.scope", "1.0")


def names(path: Path) -> list[str]:
    return [name for (name,) in query(path, "SELECT name FROM spans ORDER BY start_ns, name")]


def test_a_span_becomes_a_row(tracer: Tracer, store_path: Path) -> None:
    with tracer.start_as_current_span("chat m", attributes=CHAT) as span:
        span.set_attributes(USAGE)
    assert query(
        store_path,
        "SELECT operation, provider, request_model, input_tokens, status, service_name, instrumentation FROM llm_usage",
    ) == [("chat", "openai", "gpt-4o-mini", 1000, "ok", "tests", "tests.scope")]


def test_ancestors_are_kept_and_others_are_not(tracer: Tracer, store_path: Path) -> None:
    with tracer.start_as_current_span("request"), tracer.start_as_current_span("handler"):
        with tracer.start_as_current_span("query"):
            pass
        with tracer.start_as_current_span("chat", attributes=CHAT), tracer.start_as_current_span("POST"):
            pass
    with tracer.start_as_current_span("other request"):
        pass
    assert names(store_path) == ["request", "handler", "chat"]


def test_the_parent_is_the_given_context_s(tracer: Tracer, store_path: Path) -> None:
    parent = tracer.start_span("parent")
    with tracer.start_as_current_span("bystander"):
        tracer.start_span("chat", context=set_span_in_context(parent), attributes=CHAT).end()
        tracer.start_span("root chat", context=Context(), attributes=CHAT).end()
    parent.end()
    assert sorted(names(store_path)) == ["chat", "parent", "root chat"]


def test_a_span_that_becomes_genai_later(tracer: Tracer, store_path: Path) -> None:
    with tracer.start_as_current_span("late") as span:
        span.set_attributes(CHAT)
        span.update_name("chat")
    assert names(store_path) == ["chat"] and count(store_path) == 1


def test_the_enclosing_agent_and_workflow(tracer: Tracer, store_path: Path) -> None:
    def inside(operation: str, **names: str) -> Any:
        attributes = {semconv.OPERATION: operation, **{f"gen_ai.{key}.name": name for key, name in names.items()}}
        return tracer.start_as_current_span(operation, attributes=attributes)

    with inside("invoke_workflow", workflow="w"), inside("invoke_agent", agent="outer"):
        with tracer.start_as_current_span("between"), inside("chat"):
            pass
        with inside("invoke_agent", agent="inner"), inside("chat"):
            pass
    with inside("chat", agent="own"):
        pass
    assert query(store_path, "SELECT agent_name, workflow_name FROM llm_usage ORDER BY started_at") == [
        ("outer", "w"),
        ("inner", "w"),
        ("own", None),
    ]


def test_a_running_call_has_its_start_in_the_journal(tracer: Tracer, quiet_store: Store, store_path: Path) -> None:
    span = tracer.start_span("chat", attributes=CHAT)
    quiet_store.journal.close()  # as if the process had died
    assert query(store_path, "SELECT status, request_model FROM llm_usage") == [("interrupted", "gpt-4o-mini")]
    span.end()
    assert query(store_path, "SELECT status FROM llm_usage") == [("ok",)]


def test_events_links_and_status(tracer: Tracer, store_path: Path) -> None:
    link = Link(SpanContext(1, 2, is_remote=True), {"why": "x"})
    with (
        pytest.raises(ZeroDivisionError),
        tracer.start_as_current_span("chat", attributes=CHAT, links=[link]) as span,
    ):
        span.add_event("first token", {"n": 1})
        raise ZeroDivisionError("no")
    assert query(store_path, "SELECT status, error_type FROM llm_usage") == [("error", "ZeroDivisionError")]
    events, links, code = query(store_path, "SELECT events, links, status_code FROM spans")[0]
    assert [event["name"] for event in json.loads(events)] == ["first token", "exception"]
    assert json.loads(links) == [{"trace_id": f"{1:032x}", "span_id": f"{2:016x}", "attributes": {"why": "x"}}]
    assert code == StatusCode.ERROR.name


def test_what_others_say_in_links_is_left_out_like_all_else(tracer: Tracer, store_path: Path) -> None:
    link = Link(SpanContext(1, 2, is_remote=True), {"gen_ai.prompt": "secret", "why": "x"})
    tracer.start_span("chat", attributes=CHAT, links=[link]).end()
    assert "secret" not in query(store_path, "SELECT links FROM spans")[0][0]
    assert '"why"' in query(store_path, "SELECT links FROM spans")[0][0]


def test_unsampled_calls_that_are_recorded_are_in_the_account(quiet_store: Store, store_path: Path) -> None:
    class RecordOnly(Sampler):
        def should_sample(self, *_: Any, attributes: Any = None, **__: Any) -> SamplingResult:
            return SamplingResult(Decision.RECORD_ONLY, CHAT)

        def get_description(self) -> str:
            return "record only"

    exporter = Exporter()
    provider = provider_of(UsageSpanProcessor(quiet_store), SimpleSpanProcessor(exporter), sampler=RecordOnly())
    provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
    assert count(store_path) == 1 and exporter.names == []


class Exporter(SpanExporter):
    def __init__(self) -> None:
        self.names: list[str] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def test_spans_of_no_recording_cost_nothing(quiet_store: Store) -> None:
    provider = provider_of(UsageSpanProcessor(quiet_store), sampler=ALWAYS_OFF)
    provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
    assert quiet_store.stats.records == 0


def test_two_resources_in_one_process(quiet_store: Store, store_path: Path) -> None:
    processor = UsageSpanProcessor(quiet_store)
    for service in ("one", "two"):
        provider = provider_of(processor, resource=Resource({"service.name": service}))
        provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
    assert query(store_path, "SELECT service_name FROM llm_usage ORDER BY 1") == [("one",), ("two",)]


def test_processor_and_exporter_together_store_a_span_once(
    quiet_store: Store, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = DuckDBSpanExporter(store_path)
    provider = provider_of(UsageSpanProcessor(quiet_store), SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
    assert quiet_store.stats.records == 2 and count(store_path) == 1


def test_spans_that_never_end_do_not_fill_the_memory(
    tracer: Tracer, quiet_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_module, "MAX_NODES", 10)
    processor = UsageSpanProcessor(quiet_store)
    tracer = provider_of(processor).get_tracer("t")
    spans = [tracer.start_span("plain") for _ in range(50)]
    assert len(processor._nodes) == 10
    for span in spans:
        span.end()
    assert processor._nodes == {}


def test_no_exception_reaches_the_app(
    quiet_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(quiet_store, "write", fail)
    processor = UsageSpanProcessor(quiet_store)
    tracer = provider_of(processor).get_tracer("t")
    with caplog.at_level(logging.WARNING, "otel_llm"):
        for _ in range(3):
            tracer.start_span("chat", attributes=CHAT).end()
    assert faults.counts["journal a span: RuntimeError"] == 6 and len(caplog.records) == 1


def test_without_the_sdk_s_inner_fields(quiet_store: Store, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way to the attributes is the SDK's own business and may go."""
    from opentelemetry.sdk.trace import ReadableSpan

    class Opaque(dict[str, Any]):
        pass

    provider = provider_of(UsageSpanProcessor(quiet_store))
    span = provider.get_tracer("t").start_span("chat", attributes=CHAT)
    readable = span._readable_span()  # type: ignore[attr-defined]
    assert isinstance(readable, ReadableSpan)
    readable._attributes = Opaque(CHAT)
    readable._end_time = readable.start_time
    UsageSpanProcessor(quiet_store).on_end(readable)
    assert query(store_path, "SELECT request_model FROM llm_usage") == [("gpt-4o-mini",)]


def test_force_flush_and_shutdown(quiet_store: Store, store_path: Path) -> None:
    import duckdb

    provider = provider_of(UsageSpanProcessor(quiet_store))
    provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
    assert provider.force_flush()
    with duckdb.connect(str(store_path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(1,)]
    provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
    provider.shutdown()
    with duckdb.connect(str(store_path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(2,)]
