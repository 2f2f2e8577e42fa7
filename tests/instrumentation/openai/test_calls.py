"""One span for every call, with the numbers that the server billed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import openai
import pytest
from openai.lib.azure import AzureOpenAI
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import BaseModel

from otel_llm.calls import ending, model_call
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import semconv as s
from tests.instrumentation.openai.clients import http, needs

HELLO: Any = [{"role": "user", "content": "Say hello."}]
MODEL = "gpt-4o-mini"


def billed(server) -> dict[str, Any]:
    """What the server billed for its only call, in the names of the span."""
    (call,) = server.ledger
    usage = call.usage
    get = usage.get
    found = {
        s.INPUT_TOKENS: get("prompt_tokens", get("input_tokens")),
        s.OUTPUT_TOKENS: get("completion_tokens", get("output_tokens")),
    }
    return {name: count for name, count in found.items() if count is not None}


def told(span) -> dict[str, Any]:
    return {name: span.attributes[name] for name in (s.INPUT_TOKENS, s.OUTPUT_TOKENS) if name in span.attributes}


class Colour(BaseModel):
    name: str
    red: int


def drain(stream: Any) -> None:
    with stream as events:
        for _ in events:
            pass


async def adrain(stream: Any) -> None:
    async with stream as events:
        async for _ in events:
            pass


INCLUDE: Any = {"include_usage": True}
WAYS = {
    "chat": lambda c: c.chat.completions.create(model=MODEL, messages=HELLO),
    "chat parse": lambda c: c.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Colour),
    "chat raw": lambda c: c.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO).parse(),
    "chat with_options": lambda c: c.with_options(timeout=20).chat.completions.create(model=MODEL, messages=HELLO),
    "chat stream": lambda c: drain(
        c.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=INCLUDE)
    ),
    "chat raw stream": lambda c: drain(
        c.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, stream=True, stream_options=INCLUDE
        ).parse()
    ),
    "chat .stream()": lambda c: drain(c.chat.completions.stream(model=MODEL, messages=HELLO, stream_options=INCLUDE)),
    "responses": lambda c: c.responses.create(model=MODEL, input="Say hello."),
    "responses parse": lambda c: c.responses.parse(model=MODEL, input="Say hello.", text_format=Colour),
    "responses raw": lambda c: c.responses.with_raw_response.create(model=MODEL, input="Say hello.").parse(),
    "responses stream": lambda c: drain(c.responses.create(model=MODEL, input="Say hello.", stream=True)),
    "responses .stream()": lambda c: drain(c.responses.stream(model=MODEL, input="Say hello.")),
    "embeddings": lambda c: c.embeddings.create(model="text-embedding-3-small", input="Say hello."),
    "completions": lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="Say hello."),
    "completions stream": lambda c: drain(
        c.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello.", stream=True, stream_options=INCLUDE)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_one_span_with_the_billed_tokens(way, instrumented, client, openai_server):
    WAYS[way](client)
    span = instrumented.one()
    assert told(span) == billed(openai_server)
    assert span.attributes[s.STATUS] == "ok"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    operation = {"embeddings": s.EMBEDDINGS, "completions": s.TEXT_COMPLETION}.get(way.split()[0], s.CHAT)
    assert span.name == f"{operation} {span.attributes[s.REQUEST_MODEL]}"
    if operation != s.EMBEDDINGS:
        assert span.attributes[s.RESPONSE_ID] == openai_server.ledger[0].response_id
        assert span.attributes[s.FINISH_REASONS] == ("stop",)
    assert (s.TIME_TO_FIRST_CHUNK in span.attributes) == ("stream" in way)


ASYNC_WAYS = {
    "chat": lambda c: c.chat.completions.create(model=MODEL, messages=HELLO),
    "chat parse": lambda c: c.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Colour),
    "chat raw": lambda c: c.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO),
    "chat .stream()": lambda c: adrain(c.chat.completions.stream(model=MODEL, messages=HELLO, stream_options=INCLUDE)),
    "responses": lambda c: c.responses.create(model=MODEL, input="Say hello."),
    "responses .stream()": lambda c: adrain(c.responses.stream(model=MODEL, input="Say hello.")),
    "embeddings": lambda c: c.embeddings.create(model="text-embedding-3-small", input="Say hello."),
    "completions": lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="Say hello."),
}


@pytest.mark.parametrize("way", ASYNC_WAYS)
async def test_each_async_way_is_one_span_with_the_billed_tokens(way, instrumented, async_client, openai_server):
    await ASYNC_WAYS[way](async_client)
    assert told(instrumented.one()) == billed(openai_server)


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
async def test_an_async_stream_is_recorded_like_a_sync_one(endpoint, instrumented, async_client, client, openai_server):
    arguments: dict[str, Any] = {"model": MODEL, "stream": True}
    if endpoint == "chat":
        arguments |= {"messages": HELLO, "stream_options": INCLUDE}
        create, acreate = client.chat.completions.create, async_client.chat.completions.create
    else:
        arguments |= {"input": "Say hello."}
        create, acreate = client.responses.create, async_client.responses.create
    list(create(**arguments))
    async for _ in await acreate(**arguments):
        pass
    first, second = (dict(span.attributes) for span in instrumented.all())
    for changing in (s.RESPONSE_ID, s.TIME_TO_FIRST_CHUNK):
        assert first.pop(changing) != second.pop(changing)
    assert first == second


READERS = {
    "parse": lambda r: r.parse(),
    "read": lambda r: r.read(),
    "text": lambda r: r.text(),
    "json": lambda r: r.json(),
    "iter_lines": lambda r: list(r.iter_lines()),
    "iter_bytes": lambda r: list(r.iter_bytes()),
    "iter_text": lambda r: list(r.iter_text()),
}


@pytest.mark.parametrize("reader", READERS)
def test_streaming_response(reader, instrumented, client, openai_server):
    create = client.chat.completions.with_streaming_response.create
    with create(model=MODEL, messages=HELLO) as response:
        READERS[reader](response)
    span = instrumented.one()
    assert told(span) == billed(openai_server)
    assert span.attributes[s.STATUS] == "ok"


@pytest.mark.parametrize("reader", ["parse", "iter_lines", "iter_bytes", "iter_text"])
def test_streaming_response_of_a_stream(reader, instrumented, client, openai_server):
    create = client.chat.completions.with_streaming_response.create
    with create(model=MODEL, messages=HELLO, stream=True, stream_options=INCLUDE) as response:
        list(READERS[reader](response))
    span = instrumented.one()
    assert told(span) == billed(openai_server)
    assert span.attributes[s.STATUS] == "ok"


async def test_async_streaming_response(instrumented, async_client, openai_server):
    create = async_client.chat.completions.with_streaming_response.create
    async with create(model=MODEL, messages=HELLO, stream=True, stream_options=INCLUDE) as response:
        async for _ in response.iter_lines():
            pass
    span = instrumented.one()
    assert told(span) == billed(openai_server)
    assert span.attributes[s.STATUS] == "ok"


def test_a_streaming_response_left_early_is_partial(instrumented, client):
    create = client.chat.completions.with_streaming_response.create
    with create(model=MODEL, messages=HELLO, stream=True) as response:
        next(iter(response.iter_lines()))
    assert instrumented.attributes()[s.STATUS] == "partial"


def test_module_level_client(instrumented, openai_server, monkeypatch):
    monkeypatch.setattr(openai, "base_url", openai_server.base_url.rstrip("/") + "/")
    monkeypatch.setattr(openai, "api_key", "local")
    openai._reset_client()
    try:
        openai.chat.completions.create(model=MODEL, messages=HELLO)
    finally:
        openai._reset_client()
    assert told(instrumented.one()) == billed(openai_server)


def test_azure(instrumented, openai_server):
    root = openai_server.base_url.removesuffix("/").removesuffix("/v1")
    azure = AzureOpenAI(azure_endpoint=root, api_key="local", api_version="2024-10-21")
    azure.chat.completions.create(model="my-deployment", messages=HELLO)
    span = instrumented.one()
    assert told(span) == billed(openai_server)
    assert span.attributes[s.PROVIDER] == "azure.ai.openai"
    assert span.attributes[s.REQUEST_MODEL] == "my-deployment"


def test_endpoints_that_run_no_model_give_no_span(instrumented, client):
    client.models.list()
    assert instrumented.all() == []


# --- how calls go wrong ----------------------------------------------------------------------------------------------
def test_an_http_error_keeps_its_exception_and_tells_only_the_status(instrumented, client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="error-400-echo", messages=[{"role": "user", "content": "SECRET-7"}])
    assert "SECRET-7" in str(raised.value)
    span = instrumented.one()
    assert span.attributes[s.ERROR_TYPE] == "400"
    assert span.attributes[s.STATUS] == "error"
    assert span.status.status_code is StatusCode.ERROR
    assert "SECRET-7" not in span.to_json()


def test_retries_are_one_call_with_its_number_of_tries(instrumented, client):
    client.chat.completions.create(model="flaky-2", messages=HELLO)
    assert instrumented.attributes()[s.ATTEMPTS] == 3


def test_a_connection_that_fails(instrumented):
    client = openai.OpenAI(base_url="http://127.0.0.1:9", api_key="local", max_retries=1)
    with pytest.raises(openai.APIConnectionError):
        client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=HELLO)
    found = instrumented.attributes()
    assert found[s.ERROR_TYPE] == "openai.APIConnectionError"
    assert s.INPUT_TOKENS not in found


async def test_dropped_while_it_waits_is_cancelled(instrumented, async_client):
    request = async_client.chat.completions.create(model=MODEL, messages=HELLO)
    request.send(None)  # it waits for the connection
    request.close()
    assert instrumented.attributes()[s.STATUS] == "cancelled"


async def test_cancelled(instrumented, async_client, openai_server):
    task = asyncio.create_task(async_client.chat.completions.create(model="slow", messages=HELLO))
    await asyncio.to_thread(openai_server.wait_for, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert instrumented.attributes()[s.STATUS] == "cancelled"


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
def test_a_base_exception_passes_through_and_ends_the_span(exit_, instrumented, openai_server):
    def interrupt(request):
        raise exit_

    client = openai.OpenAI(api_key="local", http_client=http.Client(transport=http.MockTransport(interrupt)))
    with pytest.raises(exit_):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert instrumented.attributes()[s.STATUS] == "cancelled"


def test_a_broken_stream_is_an_error_with_what_had_arrived(instrumented, client):
    stream = client.chat.completions.create(model="stream-broken", messages=HELLO, stream=True)
    with pytest.raises(Exception) as raised:
        list(stream)
    found = instrumented.attributes()
    assert found[s.STATUS] == "error"
    assert found[s.ERROR_TYPE] == ending.error_type_of(raised.value)
    assert s.RESPONSE_ID in found


@needs("responses")
def test_a_failed_response_is_an_error(instrumented, client):
    list(client.responses.create(model="stream-failed", input="Hello.", stream=True))
    assert instrumented.attributes()[s.STATUS] == "error"


# --- how streams are left --------------------------------------------------------------------------------------------
def start(client) -> Any:
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=INCLUDE)
    next(stream)
    return stream


def test_closed_early(instrumented, client):
    stream = start(client)
    stream.close()
    stream.close()
    span = instrumented.one()
    assert span.attributes[s.STATUS] == "partial"
    assert s.INPUT_TOKENS not in span.attributes


def test_dropped(instrumented, client):
    stream = start(client)
    del stream
    assert instrumented.attributes()[s.STATUS] == "partial"


def test_never_iterated(instrumented, client):
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    del stream
    found = instrumented.attributes()
    assert found[s.STATUS] == "partial"
    assert s.TIME_TO_FIRST_CHUNK not in found


def test_left_by_an_exception_in_the_app(instrumented, client):
    with pytest.raises(ZeroDivisionError), start(client) as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert instrumented.attributes()[s.STATUS] == "partial"


def test_read_by_another_thread(instrumented, client, openai_server):
    stream = start(client)
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    thread.join()
    assert told(instrumented.one()) == billed(openai_server)


def test_read_to_the_end_then_closed_is_ok(instrumented, client):
    with start(client) as stream:
        list(stream)
    assert instrumented.attributes()[s.STATUS] == "ok"


async def test_async_stream_closed_early(instrumented, async_client):
    stream = await async_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    async for _ in stream:
        break
    await stream.close()
    assert instrumented.attributes()[s.STATUS] == "partial"


async def test_async_stream_cancelled_while_waiting(instrumented, async_client, openai_server):
    async def read() -> None:
        stream = await async_client.chat.completions.create(model="stream-slow", messages=HELLO, stream=True)
        async for _ in stream:
            pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(openai_server.wait_for, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert instrumented.attributes()[s.STATUS] in ("cancelled", "partial")


def test_a_stream_lasts_until_its_last_chunk(instrumented, client):
    stream = start(client)
    list(stream)
    span = instrumented.one()
    seconds = (span.end_time - span.start_time) / 1e9
    assert span.attributes[s.TIME_TO_FIRST_CHUNK] <= seconds


def test_a_call_finishes_once():
    from opentelemetry.sdk.trace import TracerProvider

    tracer = Tracer("t", TracerProvider(shutdown_on_exit=False))
    call = model_call.ModelCall(tracer, s.CHAT, MODEL, {})
    call.finish("ok")
    call.finish("error")
    assert call.span.attributes[s.STATUS] == "ok"
