"""What came back is recorded, whatever comes up after it; and the end of a call is where it ended."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from otel_llm.calls import ending
from otel_llm.conventions import semconv as s
from otel_llm.instrumentation.openai._answer import Answer
from tests.instrumentation.conftest import Spans
from tests.instrumentation.openai.clients import http, needs

HELLO: Any = [{"role": "user", "content": "Say hello."}]
USAGE = {"prompt_tokens": 92, "completion_tokens": 5, "total_tokens": 97}
MODEL = "gpt-4o-mini"
SSE = {"content-type": "text/event-stream"}


class Event(BaseModel):
    name: str


def chat(content: str | None, reason: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "finish_reason": reason, "message": message}]
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini-2024", "choices": choices} | {
        "usage": USAGE,
        **more,
    }


def piece(content: str | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": {"content": content}, "finish_reason": reason}] if content or reason else []
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices, **more}


def response(text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}
    usage = {"input_tokens": 92, "output_tokens": 5, "total_tokens": 97}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    told = {"id": "r1", "object": "response", "created_at": 1, "model": "gpt-4o-mini-2024", "status": "completed"}
    told |= {"output": [message], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage}
    return told | more


def events(*told: object) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in told)


@pytest.mark.parametrize(
    "chunk",
    [
        piece("Hello"),
        piece("Hello", usage=None, service_tier="default"),
        piece("Hello", service_tier="flex"),
        piece("Hello", usage=USAGE),
        piece("Hello", "stop"),
        piece("Hello", error={"code": "overloaded"}),
        piece("", "length"),
        piece(),
        piece(choices=[{"index": number, "delta": {"content": "Hello"}} for number in (0, 1)]),
        piece(choices=[{"index": 0, "delta": {"content": "Hello"}, "error": {"code": 502}}]),
        piece(choices=[{"index": 0, "delta": {"content": "Hello"}, "text": "Hello"}]),
        piece(choices=[{"index": 0, "delta": {"reasoning_content": "Hm"}}]),
        piece(choices=[{"index": 0, "delta": {"content": "Hello", "reasoning_content": "Hm"}}]),
        piece(
            choices=[{"index": 0, "delta": {"content": "a", "tool_calls": [{"index": 0, "id": "t", "function": {}}]}}]
        ),
        piece(choices=[{"index": 0, "delta": {"content": ["Hello"]}}]),
        piece(choices=[None]),
        piece("Hello", object="chat.completion"),
        piece("Hello", type="error"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("after", [piece("a"), piece("a", service_tier="default"), piece("a", "stop")], ids=repr)
def test_a_chunk_of_mere_text_is_seen_as_any_other(chunk: dict[str, Any], after: dict[str, Any]) -> None:
    """The client's object, which is looked at in haste, and the plain JSON, which is not."""
    as_objects, as_json = Answer({}), Answer({})
    for one in (after, chunk):
        as_objects.see(ChatCompletionChunk.construct(**one))
        as_json.see(one)
    told = [{name: getattr(answer, name) for name in Answer.__slots__} for answer in (as_objects, as_json)]
    for one in told:
        requested = one.pop("_requested")
        one["tools"] = None if requested is None else requested.attributes()
    assert told[0] == told[1]


Answers = Callable[..., openai.OpenAI]


class Pieces(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc,name-defined]
    """A body that is still to come."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self._body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


def answering(body: object, *, cls: Any = openai.OpenAI, **client: Any) -> Any:
    """A client whose server answers 200 with `body`: JSON, or bytes of an event stream."""

    def answer(request: Any) -> Any:
        if isinstance(body, bytes):
            return http.Response(200, headers=SSE, stream=Pieces(body))
        return http.Response(200, json=body)

    kind = http.AsyncClient if cls is openai.AsyncOpenAI else http.Client
    return cls(api_key="x", http_client=kind(transport=http.MockTransport(answer), **client), max_retries=0)


def is_billed(instrumented: Spans) -> dict[str, Any]:
    found = instrumented.attributes()
    assert (found[s.INPUT_TOKENS], found[s.OUTPUT_TOKENS]) == (92, 5)
    assert found[s.RESPONSE_MODEL] == "gpt-4o-mini-2024"
    return found


# --- what is raised after the answer ---------------------------------------------------------------------------------
UNPARSED = pytest.mark.parametrize(
    ("content", "reason", "error_type"),
    [
        ('{"na', "length", "openai.LengthFinishReasonError"),
        (None, "content_filter", "openai.ContentFilterFinishReasonError"),
        ('{"wrong": 1}', "stop", "pydantic_core._pydantic_core.ValidationError"),
    ],
)


@needs("chat parse")
@UNPARSED
def test_an_answer_that_cannot_be_parsed(instrumented, content, reason, error_type):
    with pytest.raises(Exception):  # noqa: B017
        answering(chat(content, reason)).chat.completions.parse(model=MODEL, messages=HELLO, response_format=Event)
    found = is_billed(instrumented)
    assert (found[s.STATUS], found[s.ERROR_TYPE]) == ("error", error_type)
    assert (found[s.RESPONSE_ID], found[s.FINISH_REASONS]) == ("c1", (reason,))


@needs("chat parse")
@UNPARSED
async def test_an_answer_that_cannot_be_parsed_async(instrumented, content, reason, error_type):
    client = answering(chat(content, reason), cls=openai.AsyncOpenAI)
    with pytest.raises(Exception):  # noqa: B017
        await client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Event)
    assert is_billed(instrumented)[s.ERROR_TYPE] == error_type


@needs("responses")
def test_a_response_that_cannot_be_parsed(instrumented):
    with pytest.raises(ValueError, match="Event"):
        answering(response('{"wrong": 1}')).responses.parse(model=MODEL, input="hi", text_format=Event)
    found = is_billed(instrumented)
    assert (found[s.STATUS], found[s.RESPONSE_ID]) == ("error", "r1")


@needs("chat parse")
def test_a_raw_answer_that_cannot_be_parsed(instrumented):
    raw = answering(chat('{"wrong": 1}')).chat.completions.with_raw_response.parse(
        model=MODEL, messages=HELLO, response_format=Event
    )
    with pytest.raises(ValueError, match="Event"):
        raw.parse()
    assert is_billed(instrumented)[s.STATUS] == "ok"  # the app has its answer; what it makes of it is another matter


def test_a_hook_of_the_http_client_that_raises_when_it_has_read_the_answer(instrumented):
    def refuse(answer: Any) -> None:
        answer.read()
        raise LookupError

    client = answering(chat("hi"), event_hooks={"response": [refuse]})
    with pytest.raises(
        (LookupError, openai.APIConnectionError)
    ) as raised:  # openai 2 takes any exception for the connection's
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert is_billed(instrumented)[s.ERROR_TYPE] == ending.error_type_of(raised.value)


def test_an_answer_without_what_the_client_looks_for(instrumented):
    body = {"object": "list", "model": "gpt-4o-mini-2024", "data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    raised = None
    try:
        answering(body).embeddings.create(model="e", input="x")
    except ValueError as error:  # some clients do not look
        raised = error
    found = instrumented.attributes()
    assert (found[s.STATUS], found[s.INPUT_TOKENS]) == (ending.status_of(raised), 7)


def test_interrupted_while_the_answer_is_parsed(instrumented):
    class Stops(openai.BaseModel):
        def __init__(self, **_: Any) -> None:
            raise KeyboardInterrupt

        @classmethod
        def construct(cls, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answering(chat("hi")).post("/chat/completions", cast_to=Stops, body={"model": MODEL, "messages": HELLO})
    assert is_billed(instrumented)[s.STATUS] == "cancelled"


def test_a_refusal_is_no_answer(instrumented):
    def refuse(request: Any) -> Any:
        return http.Response(429, json={"error": {"code": "x"}, "usage": USAGE})

    client = openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(refuse)), max_retries=0)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    found = instrumented.attributes()
    assert found[s.ERROR_TYPE] == "429"
    assert s.INPUT_TOKENS not in found


# --- an error inside a 200 --------------------------------------------------------------------------------------------
ERRORS = pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": 502, "message": "SECRET-7"}, "502"),
        ({"code": "rate_limit_exceeded", "message": "SECRET-7"}, "rate_limit_exceeded"),
        ({"code": None, "type": "server_error", "message": "SECRET-7"}, "server_error"),
        ({"status": "INVALID_ARGUMENT", "message": "SECRET-7"}, "INVALID_ARGUMENT"),
        ({"code": "the prompt SECRET-7 is bad", "message": "x"}, "error"),
        ("SECRET-7", "error"),
    ],
)
ASK: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda c: c.chat.completions.create(model=MODEL, messages=HELLO),
    "raw": lambda c: c.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO),
    "streaming response": lambda c: _read(
        c.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO)
    ),
    "embeddings": lambda c: c.embeddings.create(model="e", input="x"),
    "images": lambda c: c.images.generate(prompt="x", model="i"),
    "transcription": lambda c: c.audio.transcriptions.create(model="w", file=b"x"),
    "speech": lambda c: c.audio.speech.create(model="t", voice="alloy", input="x"),
    "responses": lambda c: c.responses.create(model=MODEL, input="x"),
    "stream": lambda c: list(c.chat.completions.create(model=MODEL, messages=HELLO, stream=True)),
    "raw stream": lambda c: list(
        c.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, stream=True).parse()
    ),
}


def _read(manager: Any) -> None:
    with manager as answer:
        answer.read()


def _ask(way: str, client: openai.OpenAI) -> None:
    try:
        ASK[way](client)
    except (openai.APIError, ValueError, TypeError, AttributeError):
        pass  # what the client makes of it is the client's


def is_error(instrumented: Spans, code: str) -> None:
    span = instrumented.one()
    found = dict(span.attributes or {})
    assert (found[s.STATUS], found[s.ERROR_TYPE]) == ("error", code)
    assert "SECRET-7" not in span.to_json()


@ERRORS
@pytest.mark.parametrize("way", ["chat", "stream", "raw"])
def test_an_error_in_a_200(instrumented, way, error, code):
    _ask(way, answering({"error": error, "user_id": "u"}))
    is_error(instrumented, code)


@pytest.mark.parametrize(
    "body", [{"error": {"code": 502}}, [{"error": {"code": 502}}], {"object": "error", "code": 502}]
)
@pytest.mark.parametrize("way", ASK)
def test_an_error_in_a_200_on_every_path(instrumented, way, body):
    _ask(way, answering(body))
    is_error(instrumented, "502")


OTHER_FAILURES = pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"detail": "SECRET-7"}, "error"),
        ({"code": "InvalidParameter", "message": "SECRET-7", "request_id": "1"}, "InvalidParameter"),
        ({"code": 500, "msg": "SECRET-7", "success": False}, "500"),
        ({"base_resp": {"status_code": 1004, "status_msg": "SECRET-7"}, "choices": None}, "1004"),
        ({"success": False, "errors": [{"code": 7003, "message": "SECRET-7"}], "result": None}, "7003"),
        ({"success": False}, "error"),
    ],
)


@OTHER_FAILURES
@pytest.mark.parametrize("way", ["chat", "raw", "embeddings", "images", "stream"])
def test_a_failure_in_a_200_in_a_shape_of_its_own(instrumented, way, body, code):
    _ask(way, answering(body))
    is_error(instrumented, code)


@OTHER_FAILURES
def test_a_failure_in_a_stream_in_a_shape_of_its_own(instrumented, body, code):
    _ask("stream", answering(events(piece("hel"), body)))
    is_error(instrumented, code)


@pytest.mark.parametrize(
    "more", [{"success": True, "msg": "ok"}, {"base_resp": {"status_code": 0}}, {"message": "done"}, {"errors": []}]
)
def test_an_answer_with_a_message_beside_it_is_none(instrumented, more):
    answering({**chat("hi", **more), "object": ""}).chat.completions.create(model=MODEL, messages=HELLO)
    assert is_billed(instrumented)[s.STATUS] == "ok"


@ERRORS
@pytest.mark.parametrize("way", ["stream", "raw stream"])
def test_an_error_in_a_stream(instrumented, way, error, code):
    _ask(way, answering(events(piece("hel"), {"error": error, **piece(reason="error")}) + b"data: [DONE]\n\n"))
    is_error(instrumented, "openai.APIError" if way == "stream" and code == "error" else code)


def test_a_choice_that_failed(instrumented):
    body = chat("hel", "error")
    body["choices"][0]["error"] = {"code": 524, "message": "SECRET-7"}
    _ask("chat", answering(body))
    is_error(instrumented, "524")


@needs("responses")
@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "server_error", "message": "SECRET-7", "sequence_number": 1},
        {"type": "error", "error": {"code": "server_error", "message": "SECRET-7"}, "sequence_number": 1},
        {"type": "response.failed", "response": response("", status="failed", error={"code": "server_error"})},
        {"type": "response.failed", "response": {"id": "r", "status": "failed", "error": {"type": "server_error"}}},
    ],
)
def test_an_error_in_a_stream_of_responses(instrumented, event):
    try:
        list(answering(events(event)).responses.create(model=MODEL, input="x", stream=True))
    except openai.APIError:
        pass
    is_error(instrumented, "server_error")


def test_an_answer_with_an_empty_error_is_none(instrumented):
    answering(chat("hi", error=None)).chat.completions.create(model=MODEL, messages=HELLO)
    assert is_billed(instrumented)[s.STATUS] == "ok"


# --- helpers that are left -------------------------------------------------------------------------------------------
CHUNKS = events(*[piece("word ") for _ in range(4)])
RUNNING = response("", status="in_progress", usage=None, output=[])
BEGUN = events(*[{"type": "response.in_progress", "sequence_number": n, "response": RUNNING} for n in range(4)])
CREATED = events({"type": "response.created", "sequence_number": 0, "response": RUNNING}) + BEGUN
LEFT: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    "chat .stream()": (CHUNKS, lambda c: c.chat.completions.stream(model=MODEL, messages=HELLO)),
    "chat stream": (CHUNKS, lambda c: c.chat.completions.create(model=MODEL, messages=HELLO, stream=True)),
    "responses .stream()": (CREATED, lambda c: c.responses.stream(model=MODEL, input="x")),
    "responses stream": (CREATED, lambda c: c.responses.create(model=MODEL, input="x", stream=True)),
    "chat raw": (
        CHUNKS,
        lambda c: c.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO, stream=True),
    ),
}


@pytest.mark.parametrize("way", LEFT)
def test_the_end_of_the_block_is_the_end_of_the_call(instrumented, way):
    body, begin = LEFT[way]
    with pytest.raises(LookupError) as kept, begin(answering(body)) as stream:
        for _ in stream.iter_lines() if hasattr(stream, "iter_lines") else stream:
            raise LookupError
    found = instrumented.attributes()
    assert (found[s.STATUS], found.get(s.ERROR_TYPE)) == ("partial", None)
    assert stream is not None and kept.value is not None  # both still there


@pytest.mark.parametrize("way", LEFT)
async def test_the_end_of_the_block_is_the_end_of_the_call_async(instrumented, way):
    body, begin = LEFT[way]
    begun = begin(answering(body, cls=openai.AsyncOpenAI))
    with pytest.raises(LookupError) as kept:
        async with await begun if asyncio.iscoroutine(begun) else begun as stream:
            async for _ in stream.iter_lines() if hasattr(stream, "iter_lines") else stream:
                raise LookupError
    assert instrumented.attributes()[s.STATUS] == "partial"
    assert stream is not None and kept.value is not None


@pytest.mark.parametrize("way", LEFT)
def test_a_block_that_reads_to_the_end_is_no_early_leave(instrumented, way):
    body, begin = LEFT[way]
    with begin(answering(body + b"data: [DONE]\n\n")) as stream:
        for _ in stream.iter_lines() if hasattr(stream, "iter_lines") else stream:
            pass
    assert instrumented.attributes()[s.STATUS] == "ok"


# --- when it ended ----------------------------------------------------------------------------------------------------
HUNG = 0.3
"""Seconds; nothing here depends on being quicker than that."""


class Hangs(http.SyncByteStream):  # type: ignore[misc,name-defined]
    """One chunk, then nothing for a while, then what is given."""

    def __init__(self, then: Callable[[], bytes]) -> None:
        self._then = then

    def __iter__(self) -> Iterator[bytes]:
        yield events(piece("hel"))
        time.sleep(HUNG)
        yield self._then()


def hanging(then: Callable[[], bytes]) -> openai.OpenAI:
    def answer(request: Any) -> Any:
        return http.Response(200, headers=SSE, stream=Hangs(then))

    return openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(answer)), max_retries=0)


def seconds(instrumented: Spans) -> float:
    span = instrumented.one()
    assert span.end_time is not None and span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


def _raises(error: BaseException) -> Callable[[], bytes]:
    def raises() -> bytes:
        raise error

    return raises


@pytest.mark.parametrize("error", [http.ReadTimeout("no more"), KeyboardInterrupt(), LookupError()])
def test_a_stream_that_hung_until_it_failed_took_until_then(instrumented, error):
    stream = hanging(_raises(error)).chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises((openai.OpenAIError, http.ReadTimeout, KeyboardInterrupt, LookupError)):
        list(stream)
    assert instrumented.attributes()[s.STATUS] in ("error", "cancelled")
    assert seconds(instrumented) >= HUNG


async def test_a_stream_that_is_cancelled_took_until_then(instrumented, async_client):
    stream = await async_client.chat.completions.create(model="stream-slow", messages=HELLO, stream=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(HUNG):
            async for _ in stream:
                pass
    assert instrumented.attributes()[s.STATUS] == "cancelled"
    assert seconds(instrumented) >= HUNG * 0.9  # the loop's clock is coarser


@pytest.mark.parametrize("leave", ["close", "drop", "end"])
def test_when_a_stream_ended_that_the_app_is_slow_with(instrumented, leave):
    """Left early it was wanted until then; complete, or nobody's, it ended with its last chunk."""
    client = answering(CHUNKS + b"data: [DONE]\n\n")
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    next(stream)
    if leave == "end":
        for _ in range(3):
            next(stream)
    time.sleep(HUNG)
    if leave == "close":
        stream.close()
    elif leave == "end":
        assert list(stream) == []
    del stream
    assert instrumented.attributes()[s.STATUS] == ("ok" if leave == "end" else "partial")
    took = seconds(instrumented)
    assert took >= HUNG if leave == "close" else took < HUNG


# --- what never went out ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "not_sent"),
    [
        (http.ConnectError("refused"), True),
        (http.ConnectTimeout("nobody"), True),
        (http.ReadError("broken"), None),
        (http.ReadTimeout("slow"), None),
        (http.RemoteProtocolError("hung up"), None),
    ],
)
def test_a_request_that_reached_nobody_is_told_from_one_that_broke(instrumented, error, not_sent):
    def fail(request: Any) -> Any:
        raise error

    client = openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(fail)), max_retries=0)
    try:
        raise http.ConnectError("of another provider")
    except http.ConnectError:
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(model=MODEL, messages=HELLO)
    assert instrumented.attributes().get(s.NOT_SENT) is not_sent


def test_the_fallback_of_a_call_is_not_taken_for_it(instrumented):
    """The failure of the first is the context of the second's; its answer is not."""

    def refuse(answer: Any) -> None:
        answer.read()
        raise LookupError

    def fail(request: Any) -> Any:
        raise http.ReadError("broken")

    broken = openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(fail)), max_retries=0)
    try:
        answering(chat("hi"), event_hooks={"response": [refuse]}).chat.completions.create(model=MODEL, messages=HELLO)
    except (LookupError, openai.APIConnectionError):
        with pytest.raises(openai.APIConnectionError):
            broken.embeddings.create(model="e", input="x")
    counted = {span.name: s.INPUT_TOKENS in (span.attributes or {}) for span in instrumented.all()}
    assert counted == {f"chat {MODEL}": True, "embeddings e": False}


# --- other event loops ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [False, True])
def test_what_trio_cancels_is_cancelled(instrumented, openai_server, stream):
    trio = pytest.importorskip("trio")
    outcome: list[bool] = []

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="x", max_retries=0) as client:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def stop() -> None:
                        await trio.to_thread.run_sync(openai_server.wait_for, 1)
                        scope.cancel()

                    nursery.start_soon(stop)
                    model = "stream-slow" if stream else "slow"
                    answer = await client.chat.completions.create(model=model, messages=HELLO, stream=stream)
                    async for _ in answer:
                        pass
            outcome.append(scope.cancelled_caught)

    trio.run(main)
    assert outcome == [True]
    found = instrumented.attributes()
    assert (found[s.STATUS], found[s.ERROR_TYPE]) == ("cancelled", "trio.Cancelled")


def test_what_a_group_of_threads_gives_up_is_cancelled(instrumented):
    class Given(BaseException):
        pass

    def give_up(request: Any) -> Any:
        raise BaseExceptionGroup("workers", [Given(), Given()])

    client = openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(give_up)), max_retries=0)
    with pytest.raises(BaseExceptionGroup):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert instrumented.attributes()[s.STATUS] == "cancelled"
    assert threading.active_count() >= 1
