"""LangChain with both instrumentors on, and the tree that a test left behind as text."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_llm.calls import abandoned
from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import LangChainInstrumentor
from otel_llm.support import faults
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans, instrumented_clients

if TYPE_CHECKING:
    from local_openai import Call

try:
    from langchain.agents import create_agent
except ImportError:  # langchain 0.3
    create_agent = None  # type: ignore[assignment]

MODEL = "gpt-4o-mini"
needs_agents = pytest.mark.skipif(create_agent is None, reason="create_agent came with langchain 1.0")


class Open(SpanProcessor):
    """The spans that have started and not ended."""

    def __init__(self) -> None:
        self.spans: dict[int, str] = {}

    def on_start(self, span: Span, parent_context: object = None) -> None:
        self.spans[span.get_span_context().span_id] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.pop(span.get_span_context().span_id, None)


class Traced:
    """What was recorded so far."""

    def __init__(self, spans: Spans, server: LocalOpenAI) -> None:
        self._spans = spans
        self._server = server
        self.provider = spans.provider
        self.open = Open()
        spans.provider.add_span_processor(self.open)

    def all(self) -> list[ReadableSpan]:
        return self._spans.all()

    @property
    def ledger(self) -> list[Call]:
        return self._server.ledger

    def clear(self) -> None:
        self._spans.clear()

    def named(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.all() if span.name == name)
        return span

    def models(self) -> list[ReadableSpan]:
        return [span for span in self.all() if span.attributes[semconv.OPERATION] not in semconv.TREE_OPERATIONS]

    def tree(self) -> str:
        """One span a line, two spaces deeper than its parent, in order of start."""
        spans = sorted(self.all(), key=lambda span: span.start_time or 0)
        ids = {span.context.span_id for span in spans}
        lines: list[str] = []

        def write(parent: int | None, depth: int) -> None:
            for span in spans:
                above = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else None
                if above == parent:
                    lines.append("  " * depth + span.name)
                    write(span.context.span_id, depth + 1)

        write(None, 0)
        return "\n".join(lines)

    def check_account(self) -> None:
        """Every billed request is one model span with the tokens that were billed; nothing is left open."""
        counted = sorted(
            (
                span.attributes.get(semconv.RESPONSE_ID) or "",
                span.attributes.get(semconv.INPUT_TOKENS),
                span.attributes.get(semconv.OUTPUT_TOKENS),
            )
            for span in self.models()
            if not span.attributes.get(semconv.CACHE_HIT)
        )
        billed = sorted((call.response_id or "", call.input_tokens, call.output_tokens) for call in self.ledger)
        assert counted == billed
        self.check_closed()

    def check_closed(self) -> None:
        self.all()
        assert not self.open.spans
        assert open_runs() == 0


def open_runs() -> int:
    gc.collect()
    abandoned.finish_abandoned()
    return len(LangChainInstrumentor()._installed[0])


@pytest.fixture
def traced(spans: Spans, openai_server: LocalOpenAI) -> Iterator[Traced]:
    """LangChain and OpenAI instrumented for the length of a test, which must leave nothing open and cause no fault."""
    traced = Traced(spans, openai_server)
    before = faults.counts.copy()
    with instrumented_clients(spans.provider):
        yield traced
        traced.check_closed()
        assert faults.counts == before


@pytest.fixture
def chat_model(openai_server: LocalOpenAI) -> Callable[..., ChatOpenAI]:
    def make(model: str = MODEL, **options: Any) -> ChatOpenAI:
        # An HTTP client of its own: langchain-openai shares one between event loops, and each test has its own loop.
        own = {"max_retries": 0, "http_async_client": openai.DefaultAsyncHttpxClient(verify=False)}
        return ChatOpenAI(base_url=openai_server.base_url, api_key="x", model=model, **{**own, **options})

    return make


@pytest.fixture
def model(chat_model: Callable[..., ChatOpenAI]) -> ChatOpenAI:
    return chat_model(stream_usage=True)


@pytest.fixture
def client(openai_server: LocalOpenAI) -> openai.OpenAI:
    return openai.OpenAI(base_url=openai_server.base_url, api_key="x")


@pytest.fixture
async def async_client(openai_server: LocalOpenAI) -> Any:
    async with openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="x") as client:
        yield client
