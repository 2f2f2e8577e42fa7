"""OTLP requests are no larger than what receivers take, however much was said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm.content import otlp_sizes
from otel_llm.conventions import semconv
from otel_llm.setup import otlp_batches

TAKEN = 4 * 2**20
"""Bytes that a gRPC server takes unless told otherwise."""


def spans(count: int, **attributes: Any) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for number in range(count):
        with provider.get_tracer("t").start_as_current_span(f"span {number}", attributes=attributes) as span:
            if "event" in attributes:
                span.add_event("said", {"text": attributes["event"]})
    return list(exporter.get_finished_spans())


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"text": "x" * 330_000},
        {"text": "語" * 330_000},
        {"texts": ["é" * 20_000] * 20},
        {"event": "💥" * 100_000},
        {f"attribute.{number}": number for number in range(128)},
        {"numbers": list(range(10_000))},
    ],
    ids=["small", "ascii", "wide", "lists", "events", "many", "numbers"],
)
def test_every_part_is_taken_and_nothing_is_lost(attributes: dict[str, Any]) -> None:
    batch = spans(40, **attributes)
    parts = list(otlp_sizes.parts_of(batch))
    assert [span for part in parts for span in part] == batch
    sizes = [encode_spans(part).ByteSize() for part in parts]
    assert max(sizes) < TAKEN
    # Nor are they much smaller than they may be, but for numbers, of which each counts as much as the longest.
    whole = encode_spans(batch).ByteSize()
    assert len(parts) <= 1 + 6 * whole // TAKEN


def test_a_span_that_is_too_large_goes_without_what_was_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_sizes, "_was_said", False)
    (large,) = spans(1, **{semconv.INPUT_MESSAGES: "x" * 5 * 2**20, semconv.REQUEST_MODEL: "m"})
    (other,) = spans(1)
    with caplog.at_level(logging.WARNING, "otel_llm"):
        ((sent, beside),) = otlp_sizes.parts_of([large, other])
    assert (sent.context, sent.name, dict(sent.attributes or {})) == (
        large.context,
        large.name,
        {semconv.REQUEST_MODEL: "m"},
    )
    assert beside is other
    assert encode_spans([sent]).ByteSize() < TAKEN
    (record,) = caplog.records
    assert large.context is not None
    assert record.getMessage().startswith(f"the span span 0 of trace {large.context.trace_id:032x}, and perhaps others")
    assert "OTEL_LLM_CONTENT_LIMIT" in record.getMessage()


def test_a_span_of_the_apps_that_is_too_large_goes_alone() -> None:
    (large,) = spans(1, text="x" * 5 * 2**20)
    one, two = spans(2)
    assert list(otlp_sizes.parts_of([one, large, two])) == [[one], [large], [two]]


class Otlp(SpanExporter):
    """Stands for one of OpenTelemetry's."""

    def __init__(self, *results: SpanExportResult) -> None:
        self.got: list[int] = []
        self._results = list(results)

    def export(self, spans: Any) -> SpanExportResult:
        self.got.append(len(spans))
        return self._results.pop(0) if self._results else SpanExportResult.SUCCESS


def test_an_exporter_is_bounded_once_and_tells_of_its_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Otlp, "__module__", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    batch = spans(8, text="x" * 2**20)
    exporter = Otlp(SpanExportResult.SUCCESS, SpanExportResult.FAILURE)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    otlp_batches.bound(provider)
    export = exporter.export
    otlp_batches.bound(provider)
    assert exporter.export is export
    assert exporter.export(batch) is SpanExportResult.FAILURE
    assert sum(exporter.got) == 8 and len(exporter.got) == 4
    assert exporter.export([]) is SpanExportResult.SUCCESS
    provider.shutdown()


def test_exporters_of_others_are_left_alone() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    otlp_batches.bound(provider)
    assert "export" not in vars(exporter)
    provider.shutdown()


def test_it_is_told_what_has_arrived_part_by_part(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Otlp, "__module__", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    batch = spans(8, text="x" * 2**20)
    batch[7:] = spans(1, **{semconv.INPUT_MESSAGES: "x" * 5 * 2**20})  # goes without what was said: not as it is
    exporter = Otlp(SpanExportResult.SUCCESS, SpanExportResult.FAILURE)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    otlp_batches.bound(provider)
    (export,) = [each.export for each in otlp_batches.exporters(provider)]
    arrived: list[Any] = []
    export.arrived = arrived.extend
    assert exporter.export(batch) is SpanExportResult.FAILURE
    assert exporter.got == [2, 2, 2, 2]
    assert [id(span) for span in arrived] == [id(span) for span in batch[:2] + batch[4:]]

    def fails(_: Any) -> None:
        raise RuntimeError("no room")

    export.arrived = fails
    with caplog.at_level(logging.WARNING, "otel_llm"):
        assert exporter.export(batch) is SpanExportResult.SUCCESS
    assert "note what has arrived" in caplog.text
    provider.shutdown()
