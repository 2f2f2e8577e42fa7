"""With OpenTelemetry's own instrumentations of HTTP clients on, nothing of ours reaches a model provider."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
import requests
from langchain_openai import OpenAIEmbeddings
from opentelemetry import propagate
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor

from otel_llm import llm_context
from otel_llm.calls import withholding
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from otel_llm.settings import reload
from tests.instrumentation.conftest import Spans
from tests.instrumentation.openai.websocket_server import WebsocketServer

try:
    from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor  # what openai 3.x is built on
except ImportError:
    HTTPX2ClientInstrumentor = None

OURS = {"traceparent", "tracestate", "baggage"}
HELLO: Any = [{"role": "user", "content": "Hello"}]
EMBEDDING = {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.0]}]}


class Provider(ThreadingHTTPServer):
    """Answers anything, and keeps the headers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, set[str]]] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                provider.seen.append((self.path, {name.lower() for name in self.headers}))
                self.rfile.read(int(self.headers.get("content-length") or 0))
                body = (
                    b"data: [DONE]\n\n" if self.path == "/stream/chat/completions" else json.dumps(EMBEDDING).encode()
                )
                self.send_response(200)
                self.send_header("content-type", "text/event-stream" if b"DONE" in body else "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_DELETE = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def provider(spans: Spans) -> Iterator[Provider]:
    """A provider, with every client instrumented, and the app in a span and a context."""
    before = propagate.get_global_textmap()
    instrumentors = [HTTPXClientInstrumentor(), RequestsInstrumentor(), OpenAIInstrumentor()]
    if HTTPX2ClientInstrumentor is not None:
        instrumentors.append(HTTPX2ClientInstrumentor())
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        withholding.withhold()
        for instrumentor in instrumentors:
            instrumentor.instrument(tracer_provider=spans.provider)
        try:
            with spans.provider.get_tracer("app").start_as_current_span("app"), llm_context("m", user_id="u"):
                yield server
        finally:
            for instrumentor in instrumentors:
                instrumentor.uninstrument()
            propagate.set_global_textmap(before)
            server.shutdown()
            thread.join()


def test_between_own_services_the_context_is_sent(provider):
    """That it is sent at all, so that the other tests can fail."""
    httpx.get(provider.url)
    requests.get(provider.url, timeout=10)
    assert [OURS & names for _, names in provider.seen] == [{"traceparent", "baggage"}] * 2


def streams_of(client: openai.OpenAI) -> Any:
    return client.with_options(base_url=f"{str(client.base_url).rstrip('/')}/stream").chat.completions


REQUESTS: dict[str, Any] = {
    "chat": lambda c: c.chat.completions.create(model="m", messages=HELLO),
    "stream": lambda c: list(streams_of(c).create(model="m", messages=HELLO, stream=True)),
    "raw": lambda c: c.chat.completions.with_raw_response.create(model="m", messages=HELLO),
    "responses": lambda c: c.responses.create(model="m", input="Hello"),
    "embeddings": lambda c: c.embeddings.create(model="m", input="Hello", encoding_format="float"),
    "moderations": lambda c: c.moderations.create(input="Hello"),
    "unknown": lambda c: c.post("/unknown", cast_to=object, body={}),
    "models": lambda c: c.models.retrieve("m"),
    "delete": lambda c: c.files.delete("f"),
    "batches": lambda c: c.batches.list(),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_nothing_is_sent_to_the_provider(request_, provider):
    client = openai.OpenAI(base_url=provider.url, api_key="x", max_retries=0)
    request_(client)
    assert provider.seen
    assert not any(OURS & names for _, names in provider.seen)
    provider.seen.clear()
    httpx.get(provider.url)  # and the app's own requests go on as before
    assert provider.seen[0][1] >= {"traceparent", "baggage"}


async def test_nor_by_the_async_client(provider):
    async with openai.AsyncOpenAI(base_url=provider.url, api_key="x", max_retries=0) as client:
        await client.chat.completions.create(model="m", messages=HELLO)
        await client.models.retrieve("m")
    assert [OURS & names for _, names in provider.seen] == [set()] * 2


def test_nor_by_langchain_s_embeddings(provider):
    OpenAIEmbeddings(base_url=provider.url, api_key="x", model="m", check_embedding_ctx_length=False).embed_query(
        "Hello"
    )
    assert [OURS & names for _, names in provider.seen] == [set()]


@pytest.mark.skipif(HTTPX2ClientInstrumentor is None, reason="this client's transport is not instrumented")
def test_but_to_hosts_that_may_have_it(provider, monkeypatch):
    monkeypatch.setenv("OTEL_LLM_PROPAGATE_TO", "gateway.example,127.0.0.1")
    reload()
    try:
        client = openai.OpenAI(base_url=provider.url, api_key="x", max_retries=0)
        client.chat.completions.create(model="m", messages=HELLO)
        client.models.retrieve("m")
    finally:
        monkeypatch.undo()
        reload()
    assert [OURS & names for _, names in provider.seen] == [{"traceparent", "baggage"}] * 2


def test_a_websocket_says_nothing_when_it_is_opened(provider):
    with WebsocketServer(lambda _: []) as server:
        client = openai.OpenAI(api_key="x", base_url=server.base_url)
        with client.realtime.connect(model="gpt-realtime") as connection:
            sent = connection._connection.request.headers
    assert "authorization" in {name.lower() for name in sent}
    assert not OURS & {name.lower() for name in sent}
