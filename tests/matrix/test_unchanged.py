"""The app gets, and the provider receives, what they would without us: every field of every value, every header, every byte."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("langchain.agents", reason="the matrix has cells of langchain 1.x")

from langchain.agents import create_agent
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.output_parsers import StrOutputParser

from otel_llm.settings import reload
from tests.instrumentation.conftest import instrumented_clients
from tests.matrix import cell as cells
from tests.matrix import langchain_cells as lc
from tests.matrix.cell import Env, each, settle, within
from tests.matrix.openai_cells import CHAT, ENDPOINTS, HELLO, USAGE, City, behaving, method_of

Values = AsyncIterator[Any]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
QUESTION = {"messages": [("user", "How is the weather in Bergen?")]}


class Told(AsyncCallbackHandler):
    """A handler of the app's own."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    async def on_llm_start(self, serialized: Any, prompts: list[str], **more: Any) -> None:
        self.events.append(["llm_start", prompts, more["parent_run_id"], more["tags"], more["metadata"]])

    async def on_llm_end(self, response: Any, **more: Any) -> None:
        self.events.append(["llm_end", response])


# --- examples: what they yield is compared ---------------------------------------------------------------------------
def whole(endpoint: str, **more: Any) -> Callable[[Env], Values]:
    async def values(env: Env) -> Values:
        path, given, _ = ENDPOINTS[endpoint]
        yield await settle(method_of(env.client(), path)(**given, **more))

    return values


def stream(endpoint: str, **more: Any) -> Callable[[Env], Values]:
    async def values(env: Env) -> Values:
        path, given, _ = ENDPOINTS[endpoint]
        chunks = await settle(method_of(env.client(), path)(**given, **more, stream=True))
        yield [type(chunks), sorted(name for name in vars(chunks) if not name.startswith("_otel_llm"))]
        async for chunk in each(chunks):
            yield chunk

    return values


def raw(endpoint: str, **more: Any) -> Callable[[Env], Values]:
    async def values(env: Env) -> Values:
        path, given, _ = ENDPOINTS[endpoint]
        response = await settle(method_of(env.client(), path, "with_raw_response")(**given, **more))
        yield type(response), response.status_code, dict(response.headers)
        if "stream" not in more:
            yield response.text
        parsed = await settle(response.parse())
        if "stream" not in more:
            yield parsed
            return
        async for chunk in each(parsed):
            yield chunk

    return values


def streaming_response(read: str) -> Callable[[Env], Values]:
    async def values(env: Env) -> Values:
        create = env.client().chat.completions.with_streaming_response.create
        async with within(create(**CHAT, **USAGE, stream=True)) as response:
            yield type(response), dict(response.headers)
            text = [piece async for piece in each(getattr(response, read)())]
        yield b"".join(text) if read == "iter_bytes" else "\n".join(text)  # where it is cut is the network's

    return values


async def stream_helper(env: Env) -> Values:
    async with within(env.client().chat.completions.stream(**CHAT, response_format=City)) as events:
        async for event in each(events):
            yield event
        yield await settle(events.get_final_completion())


async def parsed(env: Env) -> Values:
    yield await settle(env.client().responses.parse(model="gpt-4o-mini", input=HELLO, text_format=City))


def error(behaviour: str, *, as_stream: bool = False) -> Callable[[Env], Values]:
    async def values(env: Env) -> Values:
        path, given = behaving(behaviour, "chat", as_stream=as_stream)
        try:
            answer = await settle(method_of(env.client(max_retries=1), path)(**given, stream=as_stream))
            async for chunk in each(answer):
                yield chunk
        except Exception as raised:
            yield type(raised), str(raised), vars(raised).get("body"), type(raised.__cause__), raised.args

    return values


def model(make: Any, way: str) -> Callable[[Env], Values]:
    async def values(env: Env) -> Values:
        made = make(env)
        if way == "events":
            async for event in made.astream_events(HELLO, version="v2"):
                yield event
        elif way == "stream":
            async for chunk in each(lc.run(made, way, env, HELLO)):
                yield chunk
        else:
            given = [HELLO, "And another"] if way == "batch" else [HELLO] if way == "generate_prompt" else HELLO
            yield await settle(lc.run(made, way, env, given))

    return values


async def chain(env: Env) -> Values:
    made = lc.PROMPT | lc.chat(env) | StrOutputParser()
    async for piece in each(lc.run(made, "stream", env, {"topic": "rain"})):
        yield piece


async def structured(env: Env) -> Values:
    made = lc.chat(env).with_structured_output(City, include_raw=True)
    yield await settle(lc.run(made, "invoke", env, HELLO))


async def agent(env: Env) -> Values:
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    made = create_agent(lc.chat(env), [weather])
    async for update in each(lc.run(made, "stream", env, QUESTION)):
        yield update


async def own_handler(env: Env) -> Values:
    told = Told()
    yield await lc.completions(env).ainvoke(HELLO, {"callbacks": [told]})
    yield told.events


EXAMPLES: dict[str, Callable[[Env], Values]] = {
    **{
        endpoint: whole(endpoint) for endpoint in ("chat", "responses", "completions", "embeddings", "image", "compact")
    },
    "chat with tools": whole("chat", tools=[WEATHER], n=2),
    "chat stream": stream("chat"),
    "chat stream with usage": stream("chat", **USAGE),
    "chat stream with tools": stream("chat", tools=[WEATHER]),
    "responses stream": stream("responses"),
    "completions stream": stream("completions"),
    "image stream": stream("image"),
    "raw": raw("chat"),
    "raw stream": raw("chat", stream=True),
    "raw embeddings": raw("embeddings"),
    "iter_lines": streaming_response("iter_lines"),
    "iter_bytes": streaming_response("iter_bytes"),
    "stream helper": stream_helper,
    "parse": parsed,
    "error 400": error("error-400-echo"),
    "error 500": error("error-500"),
    "error html": error("error-html"),
    "broken stream": error("stream-broken", as_stream=True),
    "error event": error("stream-error-event", as_stream=True),
    **{
        f"langchain {kind} {way}": model(make, way)
        for kind, make in (("chat", lc.chat), ("responses", lc.responses), ("completions", lc.completions))
        for way in ("invoke", "stream", "batch", "events")
    },
    "langchain chain": chain,
    "langchain structured": structured,
    "langchain agent": agent,
    "langchain own handler": own_handler,
}

ASYNC_ONLY = ("events", "own handler")
"""There is no synchronous stream of events, and an asynchronous handler hears of asynchronous runs."""
CASES = [(name, False) for name in EXAMPLES if not name.endswith(ASYNC_ONLY)] + [(name, True) for name in EXAMPLES]

# --- comparing -------------------------------------------------------------------------------------------------------
_IDS = re.compile(
    r"(?<=[-_\"])[0-9a-f]{20,}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}| at 0x[0-9a-f]+"
)
_TIMES = re.compile(
    r"(\"(?:created|created_at|completed_at|date)\": )(\"[^\"]+\"|[0-9.]+)|(created(?:_at)?\\*\":)[0-9.]+"
)


def plain(value: Any) -> Any:
    """A value as JSON has it: with the fields that were set, for whether `usage` was there is part of a chunk."""
    if hasattr(value, "model_dump"):
        return [
            type(value).__qualname__,
            value.model_dump(mode="python", warnings=False),
            sorted(value.model_fields_set),
        ]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def as_text(values: Any) -> str:
    """Everything, except for ids and times, which differ from call to call."""
    text = json.dumps(values, default=plain, indent=1, sort_keys=True)
    return _TIMES.sub(r"\1\3<time>", _IDS.sub("<id>", text))


@pytest.fixture(scope="module")
def matrix() -> Iterator[tuple[cells.Matrix, Any]]:
    with cells.matrix() as both:
        yield both


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("example", "is_async"), CASES, ids=lambda value: {False: "sync", True: "async"}.get(value, value)
)
def test_nothing_changes(
    example: str, is_async: bool, matrix: tuple[cells.Matrix, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> tuple[str, str]:
        found: list[Any] = []

        async def run(env: Env) -> None:
            found.extend([value async for value in EXAMPLES[example](env)])

        seen = matrix[0].run(cells.Cell(example, "sync", run, is_async))
        assert seen.error is None
        requests = [[one.path, one.headers, one.body] for one in seen.ledger]
        return as_text(found), as_text(sorted(requests, key=repr))  # those of a batch are made at once

    before = look()
    assert look() == before  # or the comparison would show nothing
    with instrumented_clients(matrix[1]):
        try:
            monkeypatch.setenv("OTEL_LLM_STREAM_USAGE", "never")
            reload()
            assert look() == before
            # With usage asked for by us the request is another; what the app gets is not.
            monkeypatch.setenv("OTEL_LLM_STREAM_USAGE", "auto")
            reload()
            assert look()[0] == before[0]
        finally:
            monkeypatch.undo()
            reload()
