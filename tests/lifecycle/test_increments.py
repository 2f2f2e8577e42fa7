"""What a model says while it says it: to whom it is told, and that it is redacted like what is recorded."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import openai
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from otel_llm import chain, events, subscribe
from otel_llm.calls.listeners import stream_listeners
from otel_llm.content import redaction
from otel_llm.content.increments import Increment, LangChainIncrements, ToldOutput
from otel_llm.lifecycle import Event, ProviderCompleted, ProviderDelta, ProviderStarted, ToolCall, ToolsRequested
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Capture, Spans

ASKED: Any = [{"role": "user", "content": "Tell me of Lisbon."}]
WORDS = {"x-local-behaviour": "words-40"}
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CHAT_TOOL: Any = {"type": "function", "function": FUNCTION}
RESPONSES_TOOL: Any = {"type": "function", **FUNCTION}


class Deltas:
    """Listens to the increments of everything, and to what it is asked to beside."""

    def __init__(self, *others: type[Event]) -> None:
        self._events: list[Any] = []
        self._subscription = subscribe(self._events.append, types=[ProviderDelta, *others])

    def all(self) -> list[Any]:
        assert self._subscription.close(30)
        return self._events

    def joined(self) -> str:
        return "".join(event.text for event in self.all())


def chat(client: openai.OpenAI) -> str:
    chunks = client.chat.completions.create(model="m", messages=ASKED, stream=True, extra_headers=WORDS)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def responses(client: openai.OpenAI) -> str:
    chunks = client.responses.create(model="m", input="Tell me of Lisbon.", stream=True, extra_headers=WORDS)
    return "".join(event.delta for event in chunks if event.type == "response.output_text.delta")


def raw(client: openai.OpenAI) -> str:
    create = client.chat.completions.with_streaming_response.create
    said = ""
    with create(model="m", messages=ASKED, stream=True, extra_headers=WORDS) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                said += choices[0]["delta"].get("content") or ""
    return said


def langchain(client: openai.OpenAI) -> str:
    model = ChatOpenAI(model="m", base_url=str(client.base_url), api_key="x", default_headers=WORDS)  # type: ignore[arg-type]
    return "".join(str(chunk.content) for chunk in model.stream("Tell me of Lisbon."))


def langchain_alone(client: openai.OpenAI) -> str:
    model = GenericFakeChatModel(
        messages=iter([AIMessage("A model that no client of ours carries out, word by word.")])
    )
    return "".join(str(chunk.content) for chunk in model.stream("Tell me of Lisbon."))


STREAMS = [chat, responses, raw, langchain, langchain_alone]


@pytest.mark.parametrize("stream", STREAMS)
def test_every_kind_of_stream(
    traced: Spans, capture: Capture, client: openai.OpenAI, stream: Callable[[openai.OpenAI], str]
) -> None:
    capture()
    deltas = Deltas(ProviderStarted, ProviderCompleted)
    said = stream(client)
    assert len(said) > 40
    started, *told, completed = deltas.all()
    assert [type(event) for event in (started, completed)] == [ProviderStarted, ProviderCompleted]
    assert "".join(event.text for event in told) == said
    assert len(told) > len(said.split()) // 2
    assert {type(event) for event in told} == {ProviderDelta}
    assert [event.number for event in told] == list(range(1, len(told) + 1))
    assert len({event.id for event in told}) == len(told)
    for event in told:
        assert (event.kind, event.call, event.choice) == ("text", None, 0)
        for name in ("trace_id", "span_id", "parent_span_id", "run", "sequence", "name", "operation", "context"):
            assert getattr(event, name) == getattr(started, name)
    assert completed.sequence == started.sequence + 1


async def test_async_streams_inside_a_run_forwarded_as_one(
    traced: Spans, capture: Capture, openai_server: LocalOpenAI
) -> None:
    capture()
    client = openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="local", max_retries=0)
    # With a time limit of its own it has an HTTP client of its own: langchain-openai's is that of an earlier test's event loop.
    settings = {"base_url": openai_server.base_url, "api_key": "x", "default_headers": WORDS, "timeout": 57.0}
    model = ChatOpenAI(model="m", **settings)  # type: ignore[arg-type]
    run = chain("one")
    stream = events(run, types=[Event, ProviderDelta])
    other = events(run)
    async with client:
        async with run:
            chunks = await client.chat.completions.create(model="m", messages=ASKED, stream=True, extra_headers=WORDS)
            said = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])
            said += "".join([str(chunk.content) async for chunk in model.astream("Tell me of Lisbon.")])
        async with chain("another"):
            async for _ in await client.chat.completions.create(model="m", messages=ASKED, stream=True):
                pass
    found: list[Any] = [event async for event in stream]
    assert "".join(event.text for event in found if isinstance(event, ProviderDelta)) == said
    kinds = [kind for kind, _ in itertools.groupby(event.type for event in found)]
    called = ["ProviderStarted", "ProviderDelta", "ProviderCompleted"]
    assert kinds == ["ChainStarted", *called, *called, "ChainCompleted"]
    # Who does not ask sees the same events, counted alike.
    assert [e.sequence async for e in other] == [e.sequence for e in found if not isinstance(e, ProviderDelta)]


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_tool_calls(traced: Spans, capture: Capture, client: openai.OpenAI, api: str) -> None:
    capture()
    deltas = Deltas(ToolsRequested)
    if api == "chat":
        list(client.chat.completions.create(model="m", messages=ASKED, tools=[CHAT_TOOL], stream=True))
    else:
        list(client.responses.create(model="m", input="Tell me of Lisbon.", tools=[RESPONSES_TOOL], stream=True))
    *told, requested = deltas.all()
    (call,) = requested.calls
    assert {event.kind for event in told} == {"tool_call"}
    assert {event.call for event in told} == {ToolCall("weather", call.id)}
    assert told[0].text == ""
    assert json.loads("".join(event.text for event in told)) == json.loads(call.arguments)


def test_unasked_nothing_is_told(traced: Spans, capture: Capture, client: openai.OpenAI) -> None:
    found: list[Event] = []
    with subscribe(found.append, types=ProviderDelta):
        chat(client)  # content is not captured
    capture()
    with subscribe(found.append, types=[Event, ProviderDelta], run="1"):
        chat(client)
    assert found == []
    for types in (None, Event):
        with subscribe(found.append, types=types):
            assert not stream_listeners
            chat(client)
    assert [event.type for event in found] == ["ProviderStarted", "ProviderCompleted"] * 2
    assert not stream_listeners


def test_who_leaves_asks_no_more(capture: Capture) -> None:
    capture()
    with subscribe(print, types=ProviderDelta):
        stream = events(types=[ProviderDelta])
        assert stream_listeners
    assert stream_listeners
    del stream
    gc.collect()
    assert not stream_listeners


def test_a_stream_that_is_left_tells_what_had_come(traced: Spans, capture: Capture, client: openai.OpenAI) -> None:
    capture()
    deltas = Deltas(ProviderCompleted)
    said = ""
    with client.chat.completions.create(model="m", messages=ASKED, stream=True, extra_headers=WORDS) as chunks:
        for chunk in chunks:
            said += chunk.choices[0].delta.content or ""
            if len(said) > 20:
                break
    traced.all()
    *told, completed = deltas.all()
    assert isinstance(completed, ProviderCompleted)
    assert "".join(event.text for event in told) == said


# --- what is told of a text -------------------------------------------------------------------------------------------
def grown(text: str, size: int, kind: str = "content") -> list[Increment]:
    """What is told of a text that comes in pieces of so many characters."""
    found: list[Increment] = []
    output = ToldOutput(found.append)
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        delta = {kind: piece}
        if kind == "tool_calls":
            told = {"name": "f", "arguments": piece} if start == 0 else {"arguments": piece}
            delta = {kind: [{"index": 0, "function": told} | ({"id": "call_1"} if start == 0 else {})]}  # type: ignore[dict-item]
        output.see_choice(0, {"delta": delta})
    output.messages({})
    return found


def joined(increments: Iterable[Increment]) -> str:
    return "".join(increment.text for increment in increments)


SIZES = (1, 2, 3, 5, 8, 13, 1_000)
PROSE = (
    "Lisbon, the capital, has 545,796 people in 2021 and 7 hills. Öffnungszeiten: 9 - 17 Uhr. 里斯本是葡萄牙的首都。"
)
KEY = "sk-proj-" + "Ab1" * 12
SECRETS = {
    "a key": (f"Your key is {KEY} and that is all.", KEY[4:14]),
    "a key in brackets": (f"(see [{KEY}]), and go on.", KEY[4:14]),
    "an address": ("Write to andré.müller@example.com, not to me.", "müller"),
    "a card": ("Pay with 4111 1111 1111 1111, by today.", "1111 1111"),
    "a password": ('The password: "correct horse battery" is good.', "horse"),
    "a private key": ("-----BEGIN PRIVATE KEY-----\n" + "MIIEvQ\n" * 9 + "-----END PRIVATE KEY-----\nDone.", "MIIEvQ"),
    "in a URL": ("postgres://ann:hunter2secret@db.example/app is where.", "hunter2"),
    "a password in JSON": ('{"user": "ann", "password": "correct horse battery", "on": true}', "horse"),
    "a password in a list": ('[{"a b": [1, 2]}, {"password": "correct horse", "c": null}, 7]', "horse"),
    "a password in no JSON": ("[1] According to Ann, password: correct-horse, as of [2]. The end.", "horse"),
    "at the very end": (f"It is {KEY}", KEY[4:14]),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["content", "reasoning_content", "refusal", "tool_calls"])
def test_what_is_no_secret_comes_whole(capture: Capture, size: int, kind: str) -> None:
    capture()
    text = json.dumps({"about": PROSE, "again": PROSE * 20}) if kind == "tool_calls" else PROSE * 20
    told = grown(text, size, kind)
    assert joined(told) == text
    assert len({(one.kind, one.choice, one.tool_name, one.tool_call_id) for one in told}) == 1
    if size < 10:
        assert len(told) > 60
        assert max(len(one.text) for one in told) < 200


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SECRETS)
def test_secrets_in_pieces(capture: Capture, size: int, name: str) -> None:
    text, secret = SECRETS[name]
    capture()
    assert secret in text
    for said, kind in ((text, "content"), (text, "reasoning_content"), (json.dumps({"text": text}), "tool_calls")):
        told = joined(grown(said, size, kind))
        assert secret not in told
        assert "[redacted" in told
    capture(OTEL_LLM_REDACT_BUILTIN="off")
    assert joined(grown(text, size)) == text


@pytest.mark.parametrize("size", SIZES)
def test_the_app_s_redactor(capture: Capture, size: int) -> None:
    capture()

    def without_names(message: dict[str, Any]) -> dict[str, Any] | None:
        for part in message["parts"]:
            if part["type"] == "tool_call":
                part["arguments"] = part["arguments"] and {**part["arguments"], "who": "somebody"}
            else:
                part["content"] = part["content"].replace("Ann Miller", "somebody")
        return message

    redaction.use(without_names)
    try:
        told = joined(grown("It was Ann Miller, who else? Ann Miller!", size))
        assert "Miller" not in told
        assert told.endswith("!")
        arguments = grown('{"who": "Ann Miller", "where": "Lisbon"}', size, "tool_calls")
        assert json.loads(joined(arguments)) == {"who": "somebody", "where": "Lisbon"}
    finally:
        redaction.use(None)


def test_long_texts_are_told_up_to_the_limit(capture: Capture) -> None:
    capture(OTEL_LLM_CONTENT_LIMIT="100")
    told = joined(grown("word " * 2_000, 5))
    assert told.startswith("word " * 20)
    assert "truncated" in told
    assert len(told) < 200


def test_several_choices_and_parts(capture: Capture) -> None:
    capture()
    found: list[Increment] = []
    output = ToldOutput(found.append)
    for number in (0, 1, 0, 1):
        output.see_choice(number, {"delta": {"reasoning": "Hm, "}})
    for number in (0, 1, 0, 1):
        output.see_choice(number, {"delta": {"content": f"answer {number} "}})
    output.messages({})
    for number in (0, 1):
        mine = [one for one in found if one.choice == number]
        assert joined(one for one in mine if one.kind == "reasoning") == "Hm, Hm, "
        assert joined(one for one in mine if one.kind == "text") == f"answer {number} " * 2
        kinds = [one.kind for one in mine]
        assert kinds == sorted(kinds)  # reasoning comes first, its last word too


def test_langchain_s_dialects(capture: Capture) -> None:
    """Tokens with chunks, and the events of its protocol: told once where LangChain tells both."""
    from langchain_core.messages import AIMessageChunk
    from langchain_core.outputs import ChatGenerationChunk

    capture()
    found: list[Increment] = []
    said = LangChainIncrements(found.append)
    pieces: list[Any] = [
        AIMessageChunk([{"type": "thinking", "thinking": "Well. ", "index": 0}]),
        AIMessageChunk("Lisbon "),
        AIMessageChunk("", tool_call_chunks=[{"name": "f", "args": '{"a"', "id": "call_1", "index": 1}]),
        AIMessageChunk("", tool_call_chunks=[{"name": None, "args": ": 1}", "id": None, "index": 1}]),
    ]
    for piece in pieces:
        said.see("", ChatGenerationChunk(message=piece))
        said.see({"event": "content-block-delta", "index": 0, "delta": {"type": "text-delta", "text": "no"}}, None)
    said.finish()
    as_told = [(one.kind, one.text, one.tool_name, one.tool_call_id) for one in found]
    assert as_told == [
        ("reasoning", "Well. ", None, None),
        ("text", "Lisbon ", None, None),
        ("tool_call", "", "f", "call_1"),
        ("tool_call", '{"a": 1}', "f", "call_1"),
    ]
    found.clear()
    said = LangChainIncrements(found.append)
    begun = {"type": "tool_call_chunk", "id": "call_1", "name": "f", "args": ""}
    deltas = [
        (0, {"type": "reasoning-delta", "reasoning": "Well. "}),
        (1, {"type": "text-delta", "text": "Lisbon "}),
        (2, {"type": "block-delta", "fields": {"type": "tool_call_chunk", "args": '{"a": '}}),
        (2, {"type": "tool-call-delta", "args": "1}"}),
    ]
    for index, delta in deltas:
        if index == 2:
            said.see({"event": "content-block-start", "index": 2, "content": begun}, None)
        said.see({"event": "content-block-delta", "index": index, "delta": delta}, None)
    said.finish()
    assert [(one.kind, one.text, one.tool_name, one.tool_call_id) for one in found] == as_told


async def test_a_reader_that_leaves_does_not_disturb(
    traced: Spans, capture: Capture, openai_server: LocalOpenAI
) -> None:
    capture()
    client = openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="local", max_retries=0)
    run = chain("one")
    stream = events(run, types=[ProviderDelta])

    async def work() -> int:
        async with run:
            chunks = await client.chat.completions.create(model="m", messages=ASKED, stream=True, extra_headers=WORDS)
            return len([chunk async for chunk in chunks])

    task = asyncio.create_task(work())
    assert (await anext(stream)).type == "ProviderDelta"
    stream.close()
    assert await task > 40
    assert not stream_listeners
    await client.close()
