"""One span for each response over a websocket, whichever way the app reads; one for each live session."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import otel_llm
from otel_llm.calls import ending
from otel_llm.conventions import semconv as s
from otel_llm.support import faults

pytest.importorskip("websockets")
from tests.instrumentation.openai.websocket_server import WebsocketServer

_numbers = itertools.count()
USAGE = {
    "total_tokens": 30,
    "input_tokens": 20,
    "output_tokens": 10,
    "input_token_details": {
        "text_tokens": 5,
        "audio_tokens": 12,
        "image_tokens": 3,
        "cached_tokens": 4,
        "cached_tokens_details": {"text_tokens": 4, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 3, "audio_tokens": 7},
}
REPORTED = {
    s.INPUT_TOKENS: 20,
    s.OUTPUT_TOKENS: 10,
    s.CACHE_READ_TOKENS: 4,
    s.AUDIO_INPUT_TOKENS: 12,
    s.AUDIO_OUTPUT_TOKENS: 7,
    s.IMAGE_INPUT_TOKENS: 3,
}


def response(response_id: str, status: str, **more: Any) -> dict[str, Any]:
    return {"id": response_id, "object": "realtime.response", "status": status, **more}


def realtime(_: dict[str, Any]) -> list[Any]:
    """What a realtime model says to anything."""
    name = f"resp_{next(_numbers)}"
    return [
        {"type": "response.created", "event_id": "e1", "response": response(name, "in_progress", usage=None)},
        {"event_id": "e2", "type": "response.output_audio.delta", "response_id": name, "delta": "AAAA"},
        {
            "event_id": "e3",
            "type": "response.output_text.delta",
            "response_id": name,
            "delta": '{"type":"response.done"}',
        },
        {"type": "response.done", "event_id": "e4", "response": response(name, "completed", usage=USAGE)},
        1000,
    ]


@pytest.fixture
def connect(instrumented) -> Iterator[Any]:
    """Starts a server for a script and gives clients of it."""
    servers: list[WebsocketServer] = []

    def start(script: Any, cls: Any = openai.OpenAI) -> Any:
        server = WebsocketServer(script)
        servers.append(server.__enter__())
        # Named apart: openai 2.0 makes `wss` of every other base URL.
        websocket = server.base_url.replace("http:", "ws:")
        return cls(base_url=server.base_url, websocket_base_url=websocket, api_key="local")

    before = faults.counts.copy()
    yield start
    for server in servers:
        server.__exit__(None, None, None)
    assert faults.counts == before


def by_recv(connection: Any) -> None:
    while connection.recv().type != "response.done":
        pass


def by_bytes(connection: Any) -> None:
    while b'"response.done"' not in connection.recv_bytes():
        pass


def by_iteration(connection: Any) -> None:
    for _ in connection:
        pass


def by_handlers(connection: Any) -> None:
    connection.on("response.done", lambda _: None)
    connection.dispatch_events()


@pytest.mark.parametrize("read", [by_recv, by_bytes, by_iteration, by_handlers])
def test_a_realtime_response_is_one_span_however_it_is_read(read, instrumented, connect):
    client = connect(realtime)
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.response.create()
        read(connection)
    found = instrumented.attributes()
    assert {name: found[name] for name in REPORTED} == REPORTED
    assert found[s.STATUS] == "ok"
    assert found[s.REQUEST_MODEL] == "gpt-realtime"
    assert found[s.SERVER_ADDRESS] == "127.0.0.1"
    assert found[s.OPERATION] == "chat"
    assert found[s.FINISH_REASONS] == ("stop",)
    assert s.TIME_TO_FIRST_CHUNK in found


async def test_async(instrumented, connect):
    client = connect(realtime, openai.AsyncOpenAI)
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.response.create()
        async for _ in connection:
            pass
    found = instrumented.attributes()
    assert {name: found[name] for name in REPORTED} == REPORTED
    assert found[s.STATUS] == "ok"


def test_a_budget_lets_no_more_be_sent_than_there_is_room_for(instrumented, connect):
    received: list[str] = []

    def script(message: dict[str, Any]) -> list[Any]:
        received.append(message["type"])
        return realtime(message)[:-1] if message["type"] == "response.create" else []

    client = connect(script)
    with client.realtime.connect(model="gpt-realtime") as connection, otel_llm.budget("run", limit_calls=2) as run:
        for _ in range(2):
            connection.response.create()
            by_recv(connection)
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": []})
        with pytest.raises(otel_llm.BudgetExceeded):
            connection.response.create()
        for _ in range(3):  # what a model may answer without being asked
            with pytest.raises(otel_llm.BudgetExceeded):
                connection.input_audio_buffer.append(audio="AAAA")
        assert run.spent_calls == 2
    statuses = [span.attributes[s.STATUS] for span in instrumented.all()]
    assert sorted(statuses) == ["ok", "ok", "refused"]  # of the audio there is no second row
    assert received.count("response.create") == 2
    assert "input_audio_buffer.append" not in received


async def test_a_budget_that_is_spent_and_an_asynchronous_websocket(instrumented, connect):
    client = connect(realtime, openai.AsyncOpenAI)
    async with client.realtime.connect(model="gpt-realtime") as connection:
        with otel_llm.budget("run", limit_usd=1e-9), pytest.raises(otel_llm.BudgetExceeded):
            await connection.response.create(response={"max_output_tokens": 100})
    assert instrumented.attributes()[s.STATUS] == "refused"
    assert instrumented.attributes()[s.REQUEST_MODEL] == "gpt-realtime"


def test_responses_over_a_websocket(instrumented, connect):
    def script(_: dict[str, Any]) -> list[Any]:
        name = f"resp_{next(_numbers)}"
        usage = {"input_tokens": 7, "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 2}}
        one = {"id": name, "object": "response", "model": "gpt-5", "service_tier": "flex", "output": []}
        return [
            {"type": "response.created", "response": one | {"status": "in_progress"}},
            {"type": "response.completed", "response": one | {"status": "completed", "usage": usage}},
        ]

    with connect(script).responses.connect() as connection:
        for _ in range(2):
            connection.response.create(model="gpt-5", input="hello")
            while connection.recv().type != "response.completed":
                pass
    for span in instrumented.all():
        assert span.attributes[s.INPUT_TOKENS] == 7
        assert span.attributes[s.REASONING_TOKENS] == 2
        assert span.attributes[s.RESPONSE_MODEL] == "gpt-5"
        assert span.attributes[s.OPENAI_RESPONSE_SERVICE_TIER] == "flex"
    assert len(instrumented.all()) == 2


@pytest.mark.parametrize("status", ["cancelled", "failed", "incomplete"])
def test_a_response_that_does_not_complete(status, instrumented, connect):
    def script(_: dict[str, Any]) -> list[Any]:
        created, *_deltas, done, close = realtime({})
        done["response"] |= {"status": status, "status_details": {"type": status, "reason": "turn_detected"}}
        return [created, done, close]

    with connect(script).realtime.connect(model="gpt-realtime") as connection:
        connection.response.create()
        list(connection)
    found = instrumented.attributes()
    assert found[s.STATUS] == {"cancelled": "cancelled", "failed": "error", "incomplete": "ok"}[status]
    assert found[s.INPUT_TOKENS] == 20


@pytest.mark.parametrize("end", [ConnectionError, 1011])
def test_a_connection_that_is_lost_in_the_middle(end, instrumented, connect):
    with connect(lambda _: [*realtime({})[:2], end]).realtime.connect(model="gpt-realtime") as connection:
        connection.response.create()
        with pytest.raises(Exception) as raised:
            list(connection)
    found = instrumented.attributes()
    assert found[s.STATUS] == "error"
    assert found[s.ERROR_TYPE] == ending.error_type_of(raised.value)
    assert s.INPUT_TOKENS not in found


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_connection_that_is_left_in_the_middle(way, instrumented, connect):
    client = connect(lambda _: realtime({})[:2])
    manager = client.realtime.connect(model="gpt-realtime")
    connection = manager.enter()
    connection.response.create()
    connection.recv()
    if way == "close":
        connection.close()
    else:
        raw = connection._connection
        del connection, manager
        gc.collect()
        raw.close()
    assert instrumented.attributes()[s.STATUS] == "partial"


async def test_a_cancelled_read_ends_nothing(instrumented, connect):
    client = connect(
        lambda message: realtime({})[:1] if message["type"] == "response.create" else [], openai.AsyncOpenAI
    )
    async with client.realtime.connect(model="gpt-realtime") as connection:
        await connection.response.create()
        await connection.recv()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.01)
        assert instrumented.all() == []
    assert instrumented.attributes()[s.STATUS] == "partial"


def test_two_responses_at_once_and_a_transcription(instrumented, connect):
    def script(_: dict[str, Any]) -> list[Any]:
        first, second = realtime({}), realtime({})
        transcription = {
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": f"item_{next(_numbers)}",
            "content_index": 0,
            "transcript": "hello",
            "usage": {
                "type": "tokens",
                "input_tokens": 9,
                "output_tokens": 2,
                "input_token_details": {"audio_tokens": 9},
            },
        }
        session = {
            "type": "session.updated",
            "session": {"audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}},
        }
        return [session, first[0], second[0], transcription, second[1], second[3], first[1], *first[3:]]

    with connect(script).realtime.connect(model="gpt-realtime") as connection:
        connection.response.create()
        list(connection)
    told = [(span.attributes[s.OPERATION], span.attributes[s.REQUEST_MODEL]) for span in instrumented.all()]
    assert told == [("transcription", "gpt-4o-transcribe"), ("chat", "gpt-realtime"), ("chat", "gpt-realtime")]
    assert all(s.TIME_TO_FIRST_CHUNK in span.attributes for span in instrumented.all()[1:])


def live_script(closed: bool) -> Any:
    name = f"live_{next(_numbers)}"
    session = {"id": name, "model": "gpt-live-1"}

    def script(_: dict[str, Any]) -> list[Any]:
        delegated = [{"type": "response.event", "event_id": "e", "event": event} for event in realtime({})[:4]]
        decision = {"model": "gpt-decide", "answers": [], "usage": {"input_tokens": 6, "output_tokens": 1}}
        events: list[Any] = [
            {"type": "session.started", "event_id": "s", "session": session},
            {"type": "session.usage.updated", "event_id": "u", "usage": {"seconds": 1.5}},
            *delegated,
            {"type": "decision.event", "event_id": name, "event": {"type": "decision.completed", "decision": decision}},
            {"type": "session.usage.updated", "event_id": "u", "usage": {"seconds": 2.5}},
        ]
        if closed:
            usage = {"seconds": 3.0}
            events.append({"type": "session.closed", "session": session, "usage": usage, "reason": "close_requested"})
        return [*events, 1000]

    return script


@pytest.mark.parametrize("closed", [True, False])
def test_a_live_session_is_one_span_beside_the_responses_it_delegates(closed, instrumented, connect):
    with connect(live_script(closed)).live.connect() as connection:
        connection.send({"type": "session.start", "session": {"model": "gpt-live-1"}})
        list(connection)
    spans = {span.attributes[s.OPERATION]: span.attributes for span in instrumented.all()}
    assert set(spans) == {"live_session", "chat", "decision"}
    assert spans["live_session"][s.REQUEST_MODEL] == "gpt-live-1"
    assert spans["live_session"][s.AUDIO_SECONDS] == (3.0 if closed else 2.5)
    assert spans["live_session"][s.STATUS] == ("ok" if closed else "error")
    assert spans["chat"][s.INPUT_TOKENS] == 20
    assert spans["decision"][s.INPUT_TOKENS] == 6


def test_a_session_that_is_seen_twice_is_counted_once(instrumented, connect):
    client = connect(live_script(True))
    for manager in (client.live.connect(), client.live.sideband.connect(session_id="live_x")):
        with manager as connection:
            connection.send({"type": "session.start", "session": {"model": "gpt-live-1"}})
            list(connection)
    assert [span.attributes[s.OPERATION] for span in instrumented.all()].count("live_session") == 1


NONSENSE = [
    b"not json",
    b"[]",
    b"null",
    b'{"type":"response.created"}',
    b'{"type":"response.created","response":{"id":7}}',
    b'{"type":"response.done","response":null}',
    b'{"type":"session.updated","session":[1]}',
    b'{"type":{"response.done":1}}',
    b'{"x":"response.done"}',
]


def test_nonsense_passes_through(instrumented, connect):
    with connect(lambda _: [*NONSENSE, *realtime({})]).realtime.connect(model="gpt-realtime") as connection:
        connection.response.create()
        messages = [connection.recv_bytes() for _ in range(len(NONSENSE) + 4)]
    assert messages[: len(NONSENSE)] == NONSENSE
    assert instrumented.attributes()[s.INPUT_TOKENS] == 20
