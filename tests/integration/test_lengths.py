"""How long requests and answers are is counted whichever way they go, noted while a stream runs, and on no span."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm
from otel_llm.calls import model_call
from otel_llm.conventions import semconv
from otel_llm.settings import reload
from otel_llm.store import connect
from otel_llm.store.journal import segments
from otel_llm.store.paths import StorePaths

SAID = "Say hello."
HELLO: Any = [{"role": "user", "content": SAID}]
MODEL = "gpt-4o-mini"
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def account(store_path: Path, exported: InMemorySpanExporter) -> Iterator[Callable[[], list[tuple[Any, ...]]]]:
    """What the account has of the lengths so far: asked, answered, reasoning; status."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    otel_llm.instrument(store=store_path, tracer_provider=provider)

    def read() -> list[tuple[Any, ...]]:
        with connect(store_path) as connection:
            return connection.execute(
                "SELECT input_chars, output_chars, reasoning_chars, status FROM llm_usage ORDER BY started_at"
            ).fetchall()

    yield read
    otel_llm.uninstrument()


def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="local")


def text_of(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def raw(c: openai.OpenAI) -> str:
    with c.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO) as response:
        return str(response.parse().choices[0].message.content)


async def drain(server: Any) -> str:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="local") as c:
        stream = await c.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        return text_of([chunk async for chunk in stream])


WAYS: dict[str, Callable[[openai.OpenAI, Any], str | None]] = {
    "chat": lambda c, _: c.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content,
    "chat stream": lambda c, _: text_of(c.chat.completions.create(model=MODEL, messages=HELLO, stream=True)),
    "async stream": lambda _, server: asyncio.run(drain(server)),
    "body": lambda c, _: raw(c),
    "responses": lambda c, _: c.responses.create(model=MODEL, input=SAID).output_text,
    "responses stream": lambda c, _: (
        [*c.responses.create(model=MODEL, input=SAID, stream=True)][-1].response.output_text
    ),  # type: ignore[union-attr]
    "completion": lambda c, _: c.completions.create(model=MODEL, prompt=SAID).choices[0].text,
    "langchain": lambda _, server: str(
        ChatOpenAI(model=MODEL, base_url=server.base_url, api_key="x").invoke(SAID).content
    ),  # type: ignore[arg-type]
    "langchain stream": lambda _, server: "".join(
        str(chunk.content)
        for chunk in ChatOpenAI(model=MODEL, base_url=server.base_url, api_key="x").stream(SAID)  # type: ignore[arg-type]
    ),
    "another model of langchain's": lambda *_: str(
        GenericFakeChatModel(messages=iter([AIMessage("hello you")])).invoke(SAID).content
    ),
    "its stream": lambda *_: "".join(
        str(chunk.content) for chunk in GenericFakeChatModel(messages=iter([AIMessage("hello you")])).stream(SAID)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way(way: str, openai_server, account, exported) -> None:
    answer = WAYS[way](client(openai_server), openai_server)
    assert answer and account() == [(len(SAID), len(answer), None, "ok")]
    for span in exported.get_finished_spans():
        assert not [name for name in span.attributes or {} if name in semconv.LENGTHS or "char" in name]


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(stream: bool, openai_server, account) -> None:
    answer: Any = client(openai_server).chat.completions.create(
        model=MODEL, messages=HELLO, tools=[TOOL], stream=stream
    )
    if stream:
        calls = [
            call.function for chunk in answer for choice in chunk.choices for call in choice.delta.tool_calls or ()
        ]
    else:
        calls = [call.function for call in answer.choices[0].message.tool_calls]
    written = sum(len(call.name or "") + len(call.arguments or "") for call in calls)
    ((asked, answered, _, _),) = account()
    assert answered == written > 0 and asked > len(SAID)


def test_embeddings_have_an_input_alone(openai_server, account) -> None:
    client(openai_server).embeddings.create(model="text-embedding-3-small", input=["ab", "cde"])
    assert account() == [(5, None, None, "ok")]


def test_a_stream_that_is_left_has_what_had_come(openai_server, account) -> None:
    stream = client(openai_server).chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    come = text_of([next(stream) for _ in range(5)])
    stream.close()
    assert come and account() == [(len(SAID), len(come), None, "partial")]


def test_a_stream_of_responses_that_is_left(openai_server, account) -> None:
    stream: Any = client(openai_server).responses.create(model=MODEL, input=SAID, stream=True)
    come = ""
    for event in stream:
        come += event.delta if event.type == "response.output_text.delta" else ""
        if len(come) > 10:
            break
    stream.close()
    assert account() == [(len(SAID), len(come), None, "partial")]


def test_a_stream_notes_on_its_way_how_much_has_come(openai_server, account, store_path, monkeypatch) -> None:
    monkeypatch.setattr(model_call, "_PROGRESS_NS", 0)
    monkeypatch.setattr(model_call, "_PROGRESS_PART", 10**9)
    stream = client(openai_server).chat.completions.create(model="words-20", messages=HELLO, stream=True)
    lengths = []
    come = ""
    for chunk in stream:
        (running,) = segments.running_calls(StorePaths.of(store_path).journal)
        lengths.append((running.get("ci"), running.get("co"), len(come)))  # as it was before this chunk
        come += text_of([chunk])
    assert len(lengths) > 20
    assert {asked for asked, _, _ in lengths} == {len(SAID)}
    assert all(noted == before for _, noted, before in lengths[1:])


def test_it_is_not_noted_at_every_chunk(openai_server, account, store_path) -> None:
    for _ in client(openai_server).chat.completions.create(model="words-2000", messages=HELLO, stream=True):
        pass
    (segment,) = segments.list_segments(StorePaths.of(store_path).journal)
    assert segment.path.read_bytes().count(b'"k":"s"') < 60  # each a tenth of a second and more after the one before


def test_a_process_that_is_killed(openai_server, start_instrumented, rows) -> None:
    process = start_instrumented(
        """
import openai
stream = openai.OpenAI().chat.completions.create(
    model="gpt-4o-mini", messages=[{"role": "user", "content": "Say hello."}], stream=True,
    extra_headers={"x-local-behaviour": "words-2000, stream-pause"},
)
for number, chunk in enumerate(stream):
    if number == 150:
        print("far enough", flush=True)
"""
    )
    assert process.stdout.readline() == "far enough\n"
    process.kill()
    process.wait()
    (row,) = rows()
    assert (row["status"], row["input_chars"], row["usage_source"]) == ("interrupted", len(SAID), None)
    assert row["output_chars"] > 50


@pytest.mark.parametrize("way", ["chat stream", "responses", "its stream"])
def test_off(way: str, openai_server, store_path, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_LLM_ESTIMATE", "off")
    reload()
    otel_llm.instrument(store=store_path)
    try:
        assert WAYS[way](client(openai_server), openai_server)
        with connect(store_path) as connection:
            told = connection.execute("SELECT input_chars, output_chars, reasoning_chars FROM llm_usage").fetchall()
        assert told == [(None, None, None)]
    finally:
        otel_llm.uninstrument()
        monkeypatch.undo()
        reload()
