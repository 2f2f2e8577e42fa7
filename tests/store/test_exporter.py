from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm.settings import reload
from otel_llm.store.exporter import DuckDBSpanExporter
from tests.store.conftest import CHAT, USAGE, count, query


def spans_of_a_request() -> list[ReadableSpan]:
    """A request with a model call and a database query inside, and another request."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("foreign")
    with tracer.start_as_current_span("request"):
        with tracer.start_as_current_span("query"):
            pass
        with tracer.start_as_current_span("chat", attributes=CHAT | USAGE):
            pass
    with tracer.start_as_current_span("other"):
        pass
    return list(memory.get_finished_spans())


def test_genai_spans_and_what_is_above_them(store_path: Path) -> None:
    exporter = DuckDBSpanExporter(store_path)
    assert exporter.export(spans_of_a_request()) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    assert query(store_path, "SELECT name FROM spans ORDER BY start_ns") == [("request",), ("chat",)]
    assert query(store_path, "SELECT input_tokens, instrumentation FROM llm_usage") == [(1000, "foreign")]


def test_a_batch_exported_twice_is_stored_once(store_path: Path) -> None:
    exporter = DuckDBSpanExporter(store_path)
    spans = spans_of_a_request()
    exporter.export(spans)
    exporter.force_flush()
    exporter.export(spans)
    exporter.shutdown()
    assert count(store_path) == 1 and count(store_path, "spans") == 2


def test_without_arguments_the_settings_decide(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_STORE", str(store_path))
    reload()
    exporter = DuckDBSpanExporter()
    exporter.export(spans_of_a_request())
    exporter.shutdown()
    assert count(store_path) == 1


def test_an_account_that_is_turned_off(tmp_path: Path) -> None:
    exporter = DuckDBSpanExporter()
    assert exporter.export(spans_of_a_request()) is SpanExportResult.SUCCESS
    assert exporter.force_flush()
    exporter.shutdown()
    assert list(tmp_path.iterdir()) == []


def test_unknown_keywords_are_named(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "otel_llm"):
        DuckDBSpanExporter(store=store_path, endpoint="x", headers={})
    assert len(caplog.records) == 1 and "endpoint, headers" in caplog.text


def test_behind_the_sdk_s_batch_processor(store_path: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(DuckDBSpanExporter(store_path)))
    for _ in range(10):
        provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
    provider.shutdown()
    assert count(store_path) == 10


def test_it_is_what_the_entry_point_names() -> None:
    assert issubclass(DuckDBSpanExporter, SpanExporter)
    for entry in importlib.metadata.entry_points(group="opentelemetry_traces_exporter", name="duckdb"):
        assert entry.load() is DuckDBSpanExporter
