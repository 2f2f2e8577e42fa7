"""Ctrl-C, a notebook's stop button, `sys.exit` in a signal handler: an exception may come up at any line, in ours too."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
import openai
import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from otel_llm.calls import abandoned
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from tests.stopping import Stop, throw

HELLO: Any = [{"role": "user", "content": "Say hello."}]


class Watch(SpanProcessor):
    def __init__(self) -> None:
        self.started = 0
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: object = None) -> None:
        self.started += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


def client() -> openai.OpenAI:
    whole = b'{"id": "1", "model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}'
    chunks = b"".join(b'data: {"id": "1", "choices": []}\n\n' for _ in range(2)) + b"data: [DONE]\n\n"

    def answer(request: httpx2.Request) -> httpx2.Response:
        if b'"stream":true' in request.content:
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=chunks)
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=whole)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="x", base_url="http://local/v1", http_client=http)


WAYS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "plain": lambda c: c.chat.completions.create(model="m", messages=HELLO),
    "stream": lambda c: list(c.chat.completions.create(model="m", messages=HELLO, stream=True)),
}
STRIDE = 17
"""Not every line, for a traced call is slow."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a stop within a finalizer
@pytest.mark.parametrize("way", WAYS)
def test_no_span_stays_open(way: str) -> None:
    watch = Watch()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(watch)
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        api = client()
        WAYS[way](api)  # what is done once is done
        for at in range(1, 100_000, STRIDE):
            watch.started, watch.ended = 0, []
            stop = Stop(at, partial(throw, KeyboardInterrupt))
            token = context.attach(context.Context())
            try:
                with stop:
                    WAYS[way](api)
            except KeyboardInterrupt:
                pass
            gc.collect()
            abandoned.finish_abandoned()
            assert watch.started == len(watch.ended), stop.where
            # Only where the detaching itself is stopped does the request's context stay.
            if "detach" not in stop.line and stop.function not in ("detach", "leave"):
                assert not trace.get_current_span().get_span_context().is_valid, stop.where
            context.detach(token)
            if not stop.where:
                break
        assert at > 100
    finally:
        instrumentor.uninstrument()
