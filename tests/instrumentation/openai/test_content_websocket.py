"""What is sent over a websocket, on the span of the response that it was for; nothing of it where content is not captured."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from otel_llm.content.websocket import Sent
from otel_llm.conventions import semconv as s
from otel_llm.conventions.semconv import CONTENT
from otel_llm.support import faults
from tests.instrumentation.conftest import Capture, Spans

pytest.importorskip("websockets")
from tests.instrumentation.openai.websocket_server import WebsocketServer

_numbers = itertools.count()
AUDIO = "UklGRiQAAABXQVZFZm10IBAAAAABAAEA"
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
WEATHER = {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {}}]}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def script(sent: dict[str, Any]) -> list[Any]:
    """Answers what asks for a response; hears what is said."""
    if sent["type"] == "input_audio_buffer.commit":
        told = {"item_id": f"item_said_{next(_numbers)}", "content_index": 0, "transcript": "hello there"}
        usage = {"type": "tokens", "input_tokens": 5, "output_tokens": 2}
        return [{"type": "conversation.item.input_audio_transcription.completed", **told, "usage": usage}]
    if sent["type"] != "response.create":
        return []
    one: dict[str, Any] = {"id": f"resp_said_{next(_numbers)}", "object": "realtime.response", "output": []}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "transcript": "Sunny."}]}
    usage = {"input_tokens": 20, "output_tokens": 10}
    ended = {**one, "status": "completed", "usage": usage, "output": [said]}
    kind = "response.completed" if "model" in sent else "response.done"
    return [
        {"type": "response.created", "response": {**one, "status": "in_progress"}},
        {"type": kind, "response": ended},
    ]


@pytest.fixture
def connect(instrumented: Spans) -> Iterator[Any]:
    """Gives clients of a server that answers by `script`."""
    before = faults.counts.copy()
    with WebsocketServer(script) as server:
        websocket = server.base_url.replace("http:", "ws:")
        yield lambda cls=openai.OpenAI: cls(base_url=server.base_url, websocket_base_url=websocket, api_key="local")
    assert faults.counts == before


def until_done(connection: Any) -> None:
    while connection.recv().type not in ("response.done", "response.completed"):
        pass


def talk(connection: Any) -> None:
    """Two responses: the first is asked in words and sound, the second gets what a tool answered."""
    connection.session.update(session={"type": "realtime", "instructions": "Be brief.", "tools": [TOOL]})
    content: Any = [{"type": "input_text", "text": "Weather?"}, {"type": "input_audio", "audio": AUDIO}]
    connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    connection.input_audio_buffer.append(audio=AUDIO)
    connection.response.create()
    until_done(connection)
    item: Any = {"type": "function_call_output", "call_id": "c1", "output": "sunny, says ann@example.com"}
    connection.conversation.item.create(item=item)
    connection.response.create(response={"instructions": "Be kind."})
    until_done(connection)


def test_a_conversation(instrumented: Spans, connect: Any, capture: Capture) -> None:
    capture()
    with connect().realtime.connect(model="gpt-realtime") as connection:
        talk(connection)
    first, second = ({**(span.attributes or {})} for span in instrumented.all())
    assert json.loads(first[s.INPUT_MESSAGES]) == [
        {"role": "user", "parts": [text("Weather?"), {"type": "blob", "modality": "audio", "size": 24}]}
    ]
    assert json.loads(first[s.SYSTEM_INSTRUCTIONS]) == [text("Be brief.")]
    assert json.loads(second[s.SYSTEM_INSTRUCTIONS]) == [text("Be kind.")]
    for told in (first, second):
        assert json.loads(told[s.TOOL_DEFINITIONS])[0]["name"] == "weather"
        (message,) = json.loads(told[s.OUTPUT_MESSAGES])
        assert message["parts"][0]["transcript"] == "Sunny."
    assert json.loads(second[s.INPUT_MESSAGES]) == [
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny, says [redacted: email]"}]}
    ]  # fmt: skip
    assert AUDIO not in repr((first, second))


@pytest.mark.parametrize("mode", ["NO_CONTENT", "EVENT_ONLY"])
def test_nothing_unless_it_is_asked_for(mode: str, instrumented: Spans, connect: Any, capture: Capture) -> None:
    capture(mode)
    with connect().realtime.connect(model="gpt-realtime") as connection:
        talk(connection)
        assert connection.__dict__["_otel_llm_session"]._sent is None or mode == "EVENT_ONLY"
    assert len(instrumented.all()) == 2
    assert not [name for span in instrumented.all() for name in span.attributes or {} if name in CONTENT]


async def test_async(instrumented: Spans, connect: Any, capture: Capture) -> None:
    capture()
    async with connect(openai.AsyncOpenAI).realtime.connect(model="gpt-realtime") as connection:
        item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}
        await connection.conversation.item.create(item=item)
        await connection.response.create()
        while (await connection.recv()).type != "response.done":
            pass
    assert json.loads(instrumented.attributes()[s.INPUT_MESSAGES]) == [{"role": "user", "parts": [text("Weather?")]}]


def test_responses_over_a_websocket(instrumented: Spans, connect: Any, capture: Capture) -> None:
    capture()
    client = connect()
    if not hasattr(client.responses, "connect"):
        pytest.skip("a newer client")
    items: Any = [
        {"role": "user", "content": "Weather?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    with client.responses.connect() as connection:
        connection.response.create(model="gpt-5", input=items, instructions="Be brief.", tools=[TOOL])
        until_done(connection)
    told = instrumented.attributes()
    assert json.loads(told[s.INPUT_MESSAGES]) == [
        {"role": "user", "parts": [text("Weather?")]},
        WEATHER,
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
    ]
    assert json.loads(told[s.SYSTEM_INSTRUCTIONS]) == [text("Be brief.")]
    assert json.loads(told[s.TOOL_DEFINITIONS])[0]["name"] == "weather"


def test_what_was_heard(instrumented: Spans, connect: Any, capture: Capture) -> None:
    capture()
    with connect().realtime.connect(model="gpt-realtime") as connection:
        connection.input_audio_buffer.commit()
        connection.recv()
    told = instrumented.attributes()
    assert told[s.OPERATION] == s.TRANSCRIPTION
    assert json.loads(told[s.OUTPUT_MESSAGES]) == [{"role": "assistant", "parts": [text("hello there")]}]


# --- live: what leads the session, what it delegates, and what it decides ---------------------------------------------
def test_a_live_session(capture: Capture) -> None:
    capture()
    sent = Sent(is_live=True)
    history = {"role": "user", "content": [{"type": "input_text", "text": "Before."}]}
    delegated = {"type": "responses", "responses": {"model": "gpt-5", "instructions": "Look.", "tools": [TOOL]}}
    sent.see(
        {
            "type": "session.start",
            "session": {"instructions": "Lead.", "input": [history], "delegation": delegated},
        }
    )
    sent.see({"type": "session.thinking.append", "content": "It rains."})
    sent.see(
        {"type": "response.item.create", "item": {"type": "function_call_output", "call_id": "c1", "output": "21"}}
    )
    question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Which?"}]}
    sent.see({"type": "decision.item.create", "item": question})
    of_the_response = sent.take(s.CHAT)
    assert of_the_response.pop(s.TOOL_DEFINITIONS)[0]["name"] == "weather"
    assert of_the_response == {
        s.SYSTEM_INSTRUCTIONS: [text("Look.")],
        s.INPUT_MESSAGES: [
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "21"}]},
        ],
    }
    assert sent.take(s.DECISION) == {s.INPUT_MESSAGES: [{"role": "user", "parts": [text("Which?")]}]}
    assert sent.take(s.LIVE_SESSION) == {
        s.SYSTEM_INSTRUCTIONS: [text("Lead.")],
        s.INPUT_MESSAGES: [
            {"role": "user", "parts": [text("Before.")]},
            {"role": "developer", "parts": [text("It rains.")]},
        ],
    }
    assert sent.take(s.LIVE_SESSION) == {s.SYSTEM_INSTRUCTIONS: [text("Lead.")]}


def test_settings_that_are_taken_back(capture: Capture) -> None:
    capture()
    sent = Sent(is_live=False)
    sent.see({"type": "session.update", "session": {"instructions": "Be brief.", "tools": [TOOL]}})
    sent.see({"type": "session.update", "session": {"voice": "alloy"}})
    assert set(sent.take(s.CHAT)) == {s.SYSTEM_INSTRUCTIONS, s.TOOL_DEFINITIONS}
    sent.see({"type": "session.update", "session": {"tools": []}})
    assert set(sent.take(s.CHAT)) == {s.SYSTEM_INSTRUCTIONS}
    sent.see({"type": "session.update", "session": {"instructions": ""}})
    assert sent.take(s.CHAT) == {}


def test_memory_is_bounded(capture: Capture) -> None:
    capture(OTEL_LLM_CONTENT_LIMIT="10")
    sent = Sent(is_live=False)
    for number in range(Sent.MOST + 5):
        content = [{"type": "input_text", "text": f"{number} " + "x" * 100_000}]
        sent.see({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
    messages = sent.take(s.CHAT)[s.INPUT_MESSAGES]
    assert len(messages) == Sent.MOST
    assert messages[-1]["parts"][0]["content"].startswith(f"{Sent.MOST + 4} ")
    assert max(len(message["parts"][0]["content"]) for message in messages) < 6_000


@pytest.mark.parametrize(
    "event",
    [
        None,
        3,
        {"type": 3},
        {"type": ["response.create"]},
        {"type": "response.create", "response": 3},
        {"type": "response.create", "input": [None, 3, {"type": 3}]},
        {"type": "conversation.item.create", "item": None},
        {"type": "session.update", "session": {"instructions": 3, "tools": 3, "delegation": []}},
        {"type": "session.thinking.append", "content": 3},
    ],
)
def test_events_that_no_api_documents(event: Any, capture: Capture) -> None:
    capture()
    before = faults.counts.copy()
    sent = Sent(is_live=False)
    sent.see(event)
    assert s.INPUT_MESSAGES not in sent.take(s.CHAT)
    assert faults.counts == before
