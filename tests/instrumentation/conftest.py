"""An SDK tracer provider whose finished spans a test can read."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm import call as calls


class Spans:
    """The spans that have ended, oldest first."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    def all(self) -> list[ReadableSpan]:
        gc.collect()  # a stream refers to itself, so only the collector notices that it was dropped
        calls.finish_abandoned()
        return list(self._memory.get_finished_spans())

    def one(self) -> ReadableSpan:
        (span,) = self.all()
        return span

    def attributes(self) -> dict[str, Any]:
        return dict(self.one().attributes or {})

    def clear(self) -> None:
        self._memory.clear()


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()
