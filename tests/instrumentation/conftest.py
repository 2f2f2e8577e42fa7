"""An SDK tracer provider whose finished spans a test can read, and the clients instrumented with it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm.calls import abandoned
from otel_llm.instrumentation.langchain import LangChainInstrumentor
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from otel_llm.settings import reload


class Spans:
    """The spans that have ended, oldest first."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    def all(self) -> list[ReadableSpan]:
        gc.collect()  # a stream refers to itself, so only the collector notices that it was dropped
        abandoned.finish_abandoned()
        return list(self._memory.get_finished_spans())

    def one(self) -> ReadableSpan:
        (span,) = self.all()
        return span

    def attributes(self) -> dict[str, Any]:
        return dict(self.one().attributes or {})

    def clear(self) -> None:
        self._memory.clear()


class Capture(Protocol):
    """What `capture` is."""

    def __call__(self, mode: str = "SPAN_ONLY", **settings: str) -> None: ...


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Capture]:
    """Turns content capture on for the rest of a test; further settings by their names."""

    def turn_on(mode: str = "SPAN_ONLY", **settings: str) -> None:
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", mode)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        reload()

    yield turn_on
    monkeypatch.undo()
    reload()


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


@contextmanager
def instrumented_clients(provider: TracerProvider) -> Iterator[None]:
    """OpenAI and LangChain instrumented, inside the `with`."""
    instrumentors: tuple[Any, ...] = (OpenAIInstrumentor(), LangChainInstrumentor())
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    try:
        yield
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()


@pytest.fixture
def traced(spans: Spans) -> Iterator[Spans]:
    """OpenAI and LangChain instrumented for the length of a test."""
    with instrumented_clients(spans.provider):
        yield spans
