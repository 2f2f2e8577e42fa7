"""Answers that no server should send: the app sees what it would have seen without us, and the span is truthful and ended."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_llm.calls import abandoned
from otel_llm.conventions import semconv as s
from otel_llm.conventions.usage_reading import read_usage
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from otel_llm.settings import reload
from otel_llm.support import faults

HELLO: Any = [{"role": "user", "content": "Say hello."}]
MODEL = "gpt-4o-mini"
Body = tuple[int, str, bytes]


@pytest.fixture(autouse=True, scope="module")
def _is_not_asked() -> Iterator[None]:
    """Nothing is asked with a request, unless a test says so: these servers tell what they like."""
    with asking("never"):
        yield


@contextmanager
def asking(mode: str) -> Iterator[None]:
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_LLM_STREAM_USAGE", mode)
            reload()
            yield
    finally:
        reload()


# --- what a server may send ------------------------------------------------------------------------------------------
nonsense = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
counts = st.integers(0, 10_000) | nonsense
details = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("cached_tokens", "reasoning_tokens", "audio_tokens"), counts)
)
usage = nonsense | st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": counts,
        "completion_tokens": counts,
        "input_tokens": counts,
        "output_tokens": counts,
        "prompt_tokens_details": details | nonsense,
        "output_tokens_details": details | nonsense,
    },
)
choice = nonsense | st.fixed_dictionaries(
    {"index": st.integers(0, 3) | nonsense, "finish_reason": st.sampled_from(["stop", "whatever"]) | nonsense},
    optional={
        "message": nonsense | st.just({"role": "assistant", "content": "hi"}),
        "delta": nonsense | st.just({"content": "hi"}),
    },
)
FIELDS: dict[str, Any] = {
    "id": st.just("chatcmpl-1") | nonsense,
    "object": st.sampled_from(["chat.completion", "chat.completion.chunk", "response", "list"]) | nonsense,
    "type": st.sampled_from(["response.created", "response.completed", "response.failed", "error"]) | nonsense,
    "model": st.just(MODEL) | nonsense,
    "choices": st.lists(choice, max_size=3) | nonsense,
    "usage": usage,
    "status": st.sampled_from(["completed", "failed", "incomplete", "queued", "cancelled"]) | nonsense,
    "output": nonsense | st.lists(st.just({"type": "function_call", "call_id": "c"}) | nonsense, max_size=2),
    "incomplete_details": nonsense,
    "error": nonsense,
    "service_tier": nonsense,
}
payload = st.fixed_dictionaries({}, optional={**FIELDS, "response": st.fixed_dictionaries({}, optional=FIELDS)})


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


json_body = (payload | nonsense).map(lambda value: (200, "application/json", dumped(value)))
broken_body = st.tuples(
    st.sampled_from([200, 400, 404, 502]),
    st.sampled_from(["application/json", "text/html", "text/plain", ""]),
    st.binary(max_size=40) | payload.map(lambda value: dumped(value)[:-3]),
)
event = (
    payload.map(lambda value: b"data: " + dumped(value) + b"\n\n")
    | nonsense.map(lambda value: b"data: " + dumped(value) + b"\r\n\r\n")
    | st.sampled_from(
        [b"data: [DONE]\n\n", b": comment\n\n", b"event: error\ndata: {}\n\n", b"data: {broken\n\n", b"\n"]
    )
)
sse_body = st.tuples(st.lists(event, max_size=5).map(b"".join), st.integers(0, 30), st.booleans()).map(
    lambda drawn: (200, "text/event-stream", drawn[0][: -drawn[1]] if drawn[2] and drawn[1] else drawn[0])
)

# --- with and without us ---------------------------------------------------------------------------------------------
WAYS: dict[str, Any] = {
    "chat": lambda c: c.chat.completions.create(model=MODEL, messages=HELLO),
    "chat raw": lambda c: c.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO).parse(),
    "responses": lambda c: c.responses.create(model=MODEL, input="hello"),
    "embeddings": lambda c: c.embeddings.create(model=MODEL, input="hello", encoding_format="float"),
    "images": lambda c: c.images.generate(model="gpt-image-1", prompt="a dot"),
    "unknown": lambda c: c.post("/dreams", cast_to=object, body={"model": MODEL}),
    "batch": lambda c: c.batches.retrieve("batch_1"),
}
STREAMS: dict[str, Any] = {
    "chat": lambda c: c.chat.completions.create(model=MODEL, messages=HELLO, stream=True),
    "chat raw": lambda c: c.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, stream=True).parse(),
    "responses": lambda c: c.responses.create(model=MODEL, input="hello", stream=True),
    "transcription": lambda c: c.audio.transcriptions.create(model=MODEL, file=("a.wav", b"-"), stream=True),
}


def client_for(body: Body) -> openai.OpenAI:
    status, kind, content = body

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers={"content-type": kind}, content=content)

    transport = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="x", base_url="http://local/v1", http_client=transport, max_retries=0)


def seen(do: Any, *, without_usage: bool = False) -> Any:
    """What the app gets to see: values as text, or the exception's type and arguments."""
    got: list[Any] = []
    try:
        result = do()
        if isinstance(result, openai.Stream):
            for chunk in result:
                if not (without_usage and getattr(chunk, "usage", None) is not None and not chunk.choices):
                    got.append((type(chunk), repr(chunk)))
        else:
            got.append((type(result), repr(result)))
    except Exception as error:
        got.append((type(error), repr(error.args)))
    return got


class Watch:
    """An instrumented client whose spans, begun and ended, are counted."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    def spans(self, do: Any) -> tuple[Any, list[Any]]:
        self._memory.clear()
        instrumentor = OpenAIInstrumentor()
        instrumentor.instrument(tracer_provider=self.provider)
        try:
            result = seen(do)
        finally:
            instrumentor.uninstrument()
            abandoned.finish_abandoned()
        return result, list(self._memory.get_finished_spans())


WATCH = Watch()
hostile = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def check(do: Any, *, always: bool, is_asked: bool = False) -> Any:
    before = faults.counts.copy()
    plain = seen(do, without_usage=is_asked)
    result, spans = WATCH.spans(do)
    assert result == plain
    assert faults.counts == before
    assert len(spans) == 1 if always else len(spans) <= 1
    for span in spans:
        assert span.end_time is not None
        assert span.attributes[s.STATUS] in ("ok", "error", "cancelled", "partial")
        for name in (s.INPUT_TOKENS, s.OUTPUT_TOKENS, s.CACHE_READ_TOKENS, s.REASONING_TOKENS):
            count = span.attributes.get(name, 0)
            assert type(count) is int and 0 <= count < 2**63
        span.to_json().encode()  # no lone surrogates
    return spans[0] if spans else None


@pytest.mark.parametrize("way", WAYS)
@given(body=json_body | broken_body)
@hostile
def test_any_answer(way: str, body: Body) -> None:
    check(lambda: WAYS[way](client_for(body)), always=way not in ("unknown", "batch"))


@pytest.mark.parametrize("way", STREAMS)
@given(body=sse_body)
@hostile
def test_any_stream(way: str, body: Body) -> None:
    check(lambda: STREAMS[way](client_for(body)), always=True)


@pytest.mark.parametrize("way", ["chat", "chat raw"])
@given(body=sse_body)
@hostile
def test_any_stream_that_is_asked_for_its_usage(way: str, body: Body) -> None:
    with asking("auto"):
        check(lambda: STREAMS[way](client_for(body)), always=True, is_asked=True)


@given(told=usage)
@hostile
def test_usage_is_what_was_reported_whatever_surrounds_it(told: Any) -> None:
    body = {"id": "1", "object": "chat.completion", "model": MODEL, "choices": None, "usage": told}
    answer = (200, "application/json", dumped(body))
    span = check(lambda: WAYS["chat"](client_for(answer)), always=True)
    # As the client hands it to the app: on its way there, it turns some values into numbers (a false into 0).
    handed = WAYS["chat"](client_for(answer)).to_dict(mode="python", warnings=False)["usage"]
    expected = read_usage(handed).usage
    reported = {name: count for name, count in span.attributes.items() if name.startswith("gen_ai.usage.")}
    assert reported == (expected.attributes() if expected else {})


@given(
    arguments=st.dictionaries(st.sampled_from(["stop", "seed", "n", "text", "reasoning", "response_format"]), nonsense)
)
@hostile
def test_any_request(arguments: dict[str, Any]) -> None:
    ok = (200, "application/json", b"{}")
    # What cannot be sent as JSON fails before a request is made, in the same way.
    body = {"model": MODEL, "messages": HELLO, **arguments}
    check(lambda: client_for(ok).post("/chat/completions", cast_to=object, body=body), always=True)


@pytest.mark.parametrize("megabytes", [1, 10])
@pytest.mark.parametrize("raw", [False, True])
def test_a_huge_chunk(megabytes: int, raw: bool) -> None:
    head = {"id": "1", "object": "chat.completion.chunk", "model": MODEL}
    events = [
        head | {"choices": [{"index": 0, "delta": {"content": "x" * megabytes * 2**20}, "finish_reason": "stop"}]},
        head | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    ]
    content = b"".join(b"data: " + dumped(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"

    def do() -> Any:
        client = client_for((200, "text/event-stream", content))
        if not raw:
            return STREAMS["chat"](client)
        create = client.chat.completions.with_streaming_response.create
        with create(model=MODEL, messages=HELLO, stream=True) as response:
            return b"".join(response.iter_bytes(65_536))

    span = check(do, always=True)
    assert span.attributes[s.INPUT_TOKENS] == 3
    assert span.attributes[s.FINISH_REASONS] == ("stop",)


async def test_a_task_cancelled_at_any_await_leaves_no_span_open(instrumented) -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        content = b"".join(b"data: " + dumped({"id": str(n), "choices": []}) + b"\n\n" for n in range(5))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=content)

    async def read(client: openai.AsyncOpenAI) -> None:
        async for _ in await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            await asyncio.sleep(0)

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    async with openai.AsyncOpenAI(api_key="x", base_url="http://local/v1", http_client=http) as client:
        begun = 0
        for steps in range(12):
            task = asyncio.create_task(read(client))
            for _ in range(steps):
                await asyncio.sleep(0)
            begun += steps > 0
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            del task
            gc.collect()
    assert len(instrumented.all()) == begun
