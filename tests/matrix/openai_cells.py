"""The cells of the OpenAI client: which client, which endpoint, read in which way, ending how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import openai
from pydantic import BaseModel

from tests.matrix.cell import MODEL, Cell, Env, cancel, drain, each, first, settle, timed_out_when, within

Way = Callable[..., Coroutine[Any, Any, None]]
"""Calls a resource's method with these arguments and reads the answer."""


class City(BaseModel):
    """What structured answers are parsed into."""

    name: str
    inhabitants: int


HELLO = "Name a city, please."
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": HELLO}]}
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
TAPE: Any = ("tape.wav", b"RIFF", "audio/wav")
DOT: Any = ("dot.png", b"PNG", "image/png")

# endpoint -> resource, arguments, and what a stream takes besides (None: there is none)
ENDPOINTS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "chat": ("chat.completions.create", CHAT, USAGE),
    "responses": ("responses.create", {"model": MODEL, "input": HELLO}, {}),
    "completions": ("completions.create", {"model": "gpt-3.5-turbo-instruct", "prompt": HELLO}, USAGE),
    "embeddings": ("embeddings.create", {"model": "text-embedding-3-small", "input": [HELLO, "again"]}, None),
    "image": ("images.generate", {"model": "gpt-image-1", "prompt": "a dot"}, {}),
    "image-edit": ("images.edit", {"model": "gpt-image-1", "prompt": "a dot", "image": DOT}, {}),
    "transcription": ("audio.transcriptions.create", {"model": "gpt-4o-transcribe", "file": TAPE}, {}),
    "translation": ("audio.translations.create", {"model": "whisper-1", "file": TAPE}, None),
    "speech": ("audio.speech.create", {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": HELLO}, None),
    "compact": ("responses.compact", {"model": "gpt-5-mini", "input": HELLO}, None),
}
TEXT = ("chat", "responses", "completions", "embeddings")
SYNC = (("openai", "OpenAI", False), ("azure", "AzureOpenAI", False), ("module", "module", False))
ASYNC = (("async", "OpenAI", True), ("async-azure", "AzureOpenAI", True))


def method_of(client: Any, path: str, prefix: str = "") -> Any:
    """`chat.completions.create` of a client, or of its `with_raw_response` and the like."""
    *resources, name = path.split(".")
    for resource in resources:
        client = getattr(client, resource)
    return getattr(getattr(client, prefix) if prefix else client, name)


# --- ways to read an answer ------------------------------------------------------------------------------------------
async def plain(client: Any, path: str, given: dict[str, Any]) -> None:
    await settle(method_of(client, path)(**given))


async def stream(client: Any, path: str, given: dict[str, Any]) -> None:
    await drain(await settle(method_of(client, path)(**given, stream=True)))


async def stream_within(client: Any, path: str, given: dict[str, Any]) -> None:
    async with within(await settle(method_of(client, path)(**given, stream=True))) as chunks:
        await drain(chunks)


async def raw(client: Any, path: str, given: dict[str, Any]) -> None:
    response = await settle(method_of(client, path, "with_raw_response")(**given))
    assert response.headers["x-request-id"]
    await settle(response.parse())


async def raw_unparsed(client: Any, path: str, given: dict[str, Any]) -> None:
    response = await settle(method_of(client, path, "with_raw_response")(**given))
    assert response.content


async def raw_of_client(client: Any, path: str, given: dict[str, Any]) -> None:
    response = await settle(method_of(client.with_raw_response, path)(**given))
    await settle(response.parse())


async def raw_stream(client: Any, path: str, given: dict[str, Any]) -> None:
    response = await settle(method_of(client, path, "with_raw_response")(**given, stream=True))
    await drain(await settle(response.parse()))


async def streaming_response(
    client: Any, path: str, given: dict[str, Any], *, read: str, as_stream: bool = False
) -> None:
    given = {**given, "stream": True} if as_stream else given
    async with within(method_of(client, path, "with_streaming_response")(**given)) as response:
        answer = getattr(response, read)()
        if read.startswith("iter_"):
            await drain(answer)
            return
        answer = await settle(answer)
        if as_stream and read == "parse":
            await drain(answer)


async def parse(client: Any, path: str, given: dict[str, Any]) -> None:
    wanted = {"text_format" if path.startswith("responses") else "response_format": City}
    answer = await settle(method_of(client, path.replace("create", "parse"))(**given, **wanted))
    assert answer.output_parsed if path.startswith("responses") else answer.choices[0].message.parsed


async def helper(client: Any, path: str, given: dict[str, Any], *, parsed: bool = False) -> None:
    wanted = {"text_format" if path.startswith("responses") else "response_format": City} if parsed else {}
    async with within(method_of(client, path.replace("create", "stream"))(**given, **wanted)) as events:
        await drain(events)
        final = events.get_final_response if path.startswith("responses") else events.get_final_completion
        assert await settle(final())


PLAIN_READS = ("parse", "iter_lines", "iter_bytes", "iter_text", "read", "text", "json")
STREAM_READS = ("parse", "iter_lines", "iter_bytes", "iter_text", "read")


def ways(endpoint: str) -> Iterator[tuple[str, str, Way, dict[str, Any]]]:
    """(name, group, way, further arguments) of each way to read an endpoint's answer."""
    _, _, of_stream = ENDPOINTS[endpoint]
    yield "plain", "", plain, {}
    yield "raw", "raw", raw, {}
    for read in PLAIN_READS:
        if endpoint == "speech" and read == "json":
            continue  # its answer is a sound
        yield f"streaming_response-{read}", "raw", partial(streaming_response, read=read), {}
    if of_stream is None:
        return
    yield "stream", "streams", stream, of_stream
    yield "stream-within", "streams", stream_within, of_stream
    yield "raw-stream", "raw", raw_stream, of_stream
    for read in STREAM_READS:
        way = partial(streaming_response, read=read, as_stream=True)
        yield f"streaming_response-stream-{read}", "raw", way, of_stream


def read_cells() -> Iterator[Cell]:
    """Every endpoint in every way with both clients; other clients where they could differ."""

    def cell(client: str, kind: str, is_async: bool, endpoint: str, way: tuple[str, str, Way, dict[str, Any]]) -> Cell:
        name, group, do, more = way
        path, given, _ = ENDPOINTS[endpoint]

        async def run(env: Env) -> None:
            await do(env.client(kind), path, {**given, **more})

        group = group or ("async" if is_async else "sync")
        group = group if endpoint in TEXT else "endpoints"
        return Cell(f"{client}-{endpoint}-{name}", group, run, is_async)

    for client in (SYNC[0], ASYNC[0]):
        for endpoint in ENDPOINTS:
            for way in ways(endpoint):
                if endpoint in TEXT or not way[0].startswith("streaming_response") or way[0].endswith("-iter_bytes"):
                    # What is below the endpoints is the same code for all of them: one such way is enough for the others.
                    yield cell(*client, endpoint, way)
        for endpoint in ("chat", "responses"):
            usage = ENDPOINTS[endpoint][2] or {}
            yield cell(*client, endpoint, ("parse", "", parse, {}))
            yield cell(*client, endpoint, ("stream-helper", "streams", helper, usage))
            yield cell(*client, endpoint, ("stream-helper-parsed", "streams", partial(helper, parsed=True), usage))
        for endpoint in TEXT:
            yield cell(*client, endpoint, ("raw-of-client", "raw", raw_of_client, {}))
            yield cell(*client, endpoint, ("raw-unparsed", "raw", raw_unparsed, {}))
    for client in (*SYNC[1:], *ASYNC[1:]):
        for endpoint in TEXT:
            for way in ways(endpoint):
                if way[0] in ("plain", "stream", "raw", "raw-stream", "streaming_response-iter_lines"):
                    if client[1] == "module" and "raw" in way[0]:
                        continue  # the module has no `with_raw_response` of its own, its resources are the client's
                    yield cell(*client, endpoint, way)

    async def copied(env: Env) -> None:
        client = env.client(timeout=20, default_headers={"x-own": "1"}).with_options(max_retries=1)
        await plain(client, "chat.completions.create", CHAT)

    async def twice(env: Env) -> None:
        for _ in range(2):
            await plain(env.client(), "chat.completions.create", CHAT)

    async def by_post(env: Env) -> None:
        body = {"model": MODEL, "messages": CHAT["messages"]}
        await settle(env.client().post("/chat/completions", cast_to=object, body=body))

    async def without_usage_asked(env: Env) -> None:
        await stream(env.client(), "chat.completions.create", CHAT)

    async def unreported(env: Env) -> None:
        given = {**CHAT, "extra_headers": {"x-local-behaviour": "no-usage"}}
        await plain(env.client(), "chat.completions.create", given)

    async def with_tools(env: Env) -> None:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
        await stream(env.client(), "chat.completions.create", {**CHAT, **USAGE, "tools": [tool], "n": 2})

    async def text_of_tape(env: Env) -> None:
        given = {**ENDPOINTS["transcription"][1], "response_format": "text"}
        await plain(env.client(), "audio.transcriptions.create", given)

    async def length_of_tape(env: Env) -> None:
        given = {"model": "whisper-1", "file": TAPE, "response_format": "verbose_json"}
        await plain(env.client(), "audio.transcriptions.create", given)

    async def speech_as_events(env: Env) -> None:
        sound = await settle(env.client().audio.speech.create(**{**ENDPOINTS["speech"][1], "stream_format": "sse"}))
        assert sound.content

    for is_async in (False, True):
        client = "async" if is_async else "openai"
        yield Cell(f"{client}-chat-with_options", client.replace("openai", "sync"), copied, is_async)
        yield Cell(f"{client}-chat-twice", client.replace("openai", "sync"), twice, is_async, calls=2)
        yield Cell(f"{client}-chat-client.post", client.replace("openai", "sync"), by_post, is_async)
        yield Cell(f"{client}-chat-unreported", client.replace("openai", "sync"), unreported, is_async)
        yield Cell(f"{client}-chat-stream-without-usage", "streams", without_usage_asked, is_async)
        yield Cell(f"{client}-chat-stream-tools-n2", "streams", with_tools, is_async)
        yield Cell(f"{client}-transcription-text", "endpoints", text_of_tape, is_async)
        yield Cell(f"{client}-transcription-seconds", "endpoints", length_of_tape, is_async)
        yield Cell(f"{client}-speech-sse", "endpoints", speech_as_events, is_async)


# --- jobs, and what runs no model ------------------------------------------------------------------------------------
def job_cells() -> Iterator[Cell]:
    """Background responses, batches, decisions; files, models and moderations."""

    async def background(env: Env) -> None:
        # One that nobody asks for again stays open as long as the process lives; see tests/instrumentation/openai.
        client = env.client()
        created = await settle(client.responses.create(model="gpt-5-mini", input=HELLO, background=True))
        for _ in range(2):
            assert (await settle(client.responses.retrieve(created.id))).usage

    async def batch(env: Env) -> None:
        client = env.client()
        uploaded = await settle(client.files.create(file=("calls.jsonl", b"{}"), purpose="batch"))
        created = await settle(
            client.batches.create(input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h")
        )
        for _ in range(2):
            assert (await settle(client.batches.retrieve(created.id))).usage

    async def decision(env: Env) -> None:
        await settle(env.client().post("/decisions", cast_to=object, body={"model": "gpt-decide"}))

    async def no_model(env: Env) -> None:
        client = env.client()
        await drain(await settle(client.models.list()))
        await settle(client.files.create(file=("calls.jsonl", b"{}"), purpose="batch"))
        await settle(client.moderations.create(input=HELLO))

    for is_async in (False, True):
        client = "async" if is_async else "openai"
        yield Cell(f"{client}-responses-background", "endpoints", background, is_async)
        yield Cell(f"{client}-batches", "endpoints", batch, is_async)
        yield Cell(f"{client}-decisions", "endpoints", decision, is_async)
        yield Cell(f"{client}-no-model", "endpoints", no_model, is_async, calls=0)


# --- websockets ------------------------------------------------------------------------------------------------------
def websocket_cells() -> Iterator[Cell]:
    """The three websockets, read in each way, lost and left."""

    async def until(connection: Any, kind: str) -> None:
        while (await settle(connection.recv())).type != kind:
            pass

    async def until_bytes(connection: Any, kind: str) -> None:
        while kind.encode() not in await settle(connection.recv_bytes()):
            pass

    async def until_iterated(connection: Any, kind: str) -> None:
        async for event in each(connection):
            if event.type == kind:
                break

    async def realtime(env: Env, *, read: Any, responses: int = 1) -> None:
        async with within(env.client().realtime.connect(model="gpt-realtime")) as connection:
            for _ in range(responses):
                await settle(connection.response.create())
                await read(connection, "response.done")

    async def responses(env: Env, *, read: Any) -> None:
        async with within(env.client().responses.connect()) as connection:
            for _ in range(2):
                await settle(connection.response.create(model="gpt-5", input=HELLO))
                await read(connection, "response.completed")

    async def live(env: Env) -> None:
        async with within(env.client().live.connect()) as connection:
            await settle(connection.send({"type": "session.start", "session": {"model": "gpt-live-1"}}))
            await drain(connection)

    async def lost(env: Env) -> None:
        client = env.client()
        async with within(client.realtime.connect(model="gpt-realtime", extra_query={"cut": "1"})) as connection:
            await settle(connection.response.create())
            try:
                await drain(connection)
            except Exception as error:
                assert "1011" in str(error)

    async def left(env: Env) -> None:
        async with within(env.client().realtime.connect(model="gpt-realtime")) as connection:
            await settle(connection.response.create())
            await settle(connection.recv())

    for is_async in (False, True):
        client = "async" if is_async else "openai"
        for name, read in (("recv", until), ("recv_bytes", until_bytes), ("iterated", until_iterated)):
            run = partial(realtime, read=read)
            yield Cell(f"{client}-realtime-{name}", "websockets", run, is_async)
            yield Cell(f"{client}-responses.connect-{name}", "websockets", partial(responses, read=read), is_async, 2)
        run = partial(realtime, read=until, responses=3)
        yield Cell(f"{client}-realtime-3-responses", "websockets", run, is_async, calls=3)
        if hasattr(openai.OpenAI, "live"):  # since 3.40
            yield Cell(f"{client}-live", "websockets", live, is_async, calls=2)
        yield Cell(f"{client}-realtime-lost", "websockets", lost, is_async)
        yield Cell(f"{client}-realtime-left", "websockets", left, is_async, unread=True)


# --- outcomes --------------------------------------------------------------------------------------------------------
def behaving(behaviour: str, endpoint: str, *, as_stream: bool = False, **more: Any) -> tuple[str, dict[str, Any]]:
    """Resource and arguments of a call that the server answers in this way."""
    path, given, of_stream = ENDPOINTS[endpoint]
    return path, {
        **given,
        **((of_stream or {}) if as_stream else {}),
        "extra_headers": {"x-local-behaviour": behaviour},
        **more,
    }


def error_cells() -> Iterator[Cell]:
    """Refused, retried, lost: the app sees an error, or would have."""

    def failing(
        way: Way, behaviour: str, endpoint: str, as_stream: bool, error: type[Exception], **options: Any
    ) -> Callable[[Env], Coroutine[Any, Any, None]]:
        async def run(env: Env) -> None:
            path, given = behaving(behaviour, endpoint, as_stream=as_stream)
            try:
                await way(env.client(**options), path, given)
            except error:
                return
            raise AssertionError(f"no {error.__name__}")

        return run

    def retried(way: Way, endpoint: str, as_stream: bool) -> Callable[[Env], Coroutine[Any, Any, None]]:
        async def run(env: Env) -> None:
            path, given = behaving("flaky-2", endpoint, as_stream=as_stream)
            await way(env.client(max_retries=2), path, given)

        return run

    async def refused(env: Env) -> None:
        try:
            # Nobody listens there.
            await plain(env.client(base_url="http://127.0.0.1:9/v1"), "chat.completions.create", CHAT)
        except openai.APIConnectionError:
            return
        raise AssertionError("somebody listens")

    lines = partial(streaming_response, read="iter_lines")
    lines_of_stream = partial(streaming_response, read="iter_lines", as_stream=True)
    request_ways: tuple[tuple[str, Way, bool], ...] = (
        ("plain", plain, False),
        ("stream", stream, True),
        ("raw", raw, False),
        ("streaming_response", lines, False),
    )
    stream_ways: tuple[tuple[str, Way], ...] = (
        ("stream", stream),
        ("raw-stream", raw_stream),
        ("streaming_response-parse", partial(streaming_response, read="parse", as_stream=True)),
    )
    for is_async in (False, True):
        client = "async" if is_async else "openai"
        for endpoint in ("chat", "responses", "embeddings"):
            of_endpoint = [way for way in request_ways if ENDPOINTS[endpoint][2] is not None or not way[2]]
            for name, way, as_stream in of_endpoint:
                for behaviour, error in (
                    ("error-400", openai.BadRequestError),
                    ("error-500", openai.InternalServerError),
                ):
                    run = failing(way, behaviour, endpoint, as_stream, error)
                    yield Cell(f"{client}-{endpoint}-{name}-{behaviour}", "errors", run, is_async)
                yield Cell(f"{client}-{endpoint}-{name}-retried", "errors", retried(way, endpoint, as_stream), is_async)
            run = failing(plain, "error-429", endpoint, False, openai.RateLimitError, max_retries=2)
            yield Cell(f"{client}-{endpoint}-plain-retried-in-vain", "errors", run, is_async)
            run = failing(plain, "error-html", endpoint, False, openai.InternalServerError)
            yield Cell(f"{client}-{endpoint}-plain-html", "errors", run, is_async)
            impatient = openai.Timeout(20, read=0.05)  # it asks in any case, however slow the machine is
            run = failing(plain, "slow", endpoint, False, openai.APITimeoutError, timeout=impatient)
            if endpoint != "embeddings":  # which has no behaviours but refusals
                yield Cell(f"{client}-{endpoint}-plain-timeout", "errors", run, is_async, left_as="error")
        for endpoint in ("chat", "responses", "completions"):
            for name, way in stream_ways:
                run = failing(way, "stream-broken", endpoint, True, Exception)
                yield Cell(f"{client}-{endpoint}-{name}-broken", "errors", run, is_async)
            run = failing(stream, "stream-error-event", endpoint, True, openai.APIError)
            if endpoint != "responses":  # there it is an event, which the client hands to the app
                yield Cell(f"{client}-{endpoint}-stream-error-event", "errors", run, is_async)
            run = failing(lines_of_stream, "stream-broken", endpoint, True, Exception)
            yield Cell(f"{client}-{endpoint}-streaming_response-iter_lines-broken", "errors", run, is_async)

        for behaviour in ("stream-failed", "stream-error-event"):
            for name, way in (("stream", stream), ("streaming_response-iter_lines", lines_of_stream)):

                async def told(env: Env, way: Way = way, behaviour: str = behaviour) -> None:
                    path, given = behaving(behaviour, "responses", as_stream=True)
                    try:
                        await way(env.client(), path, given)
                    except openai.APIError:
                        pass

                yield Cell(f"{client}-responses-{name}-{behaviour}", "errors", told, is_async)
        yield Cell(f"{client}-chat-plain-refused", "errors", refused, is_async, calls=0, unseen=1)


def left_cells() -> Iterator[Cell]:
    """The app leaves before the end, or is made to."""

    async def opened(env: Env, endpoint: str) -> Any:
        path, given = behaving("stream-slow", endpoint, as_stream=True)
        return await settle(method_of(env.client(), path)(**given, stream=True))

    async def closed(env: Env, endpoint: str) -> None:
        chunks = await opened(env, endpoint)
        await first(chunks)
        await settle(chunks.close())

    async def exited(env: Env, endpoint: str) -> None:
        async with within(await opened(env, endpoint)) as chunks:
            async for _ in each(chunks):
                break

    async def dropped(env: Env, endpoint: str) -> None:
        await first(await opened(env, endpoint))

    async def never_iterated(env: Env, endpoint: str) -> None:
        await opened(env, endpoint)

    async def never_iterated_but_closed(env: Env, endpoint: str) -> None:
        await settle((await opened(env, endpoint)).close())

    async def app_raises(env: Env, endpoint: str) -> None:
        try:
            async with within(await opened(env, endpoint)) as chunks:
                await first(chunks)
                raise ValueError("the app's own")
        except ValueError:
            pass

    async def raw_dropped(env: Env, endpoint: str) -> None:
        path, given = behaving("stream-slow", endpoint, as_stream=True)
        await settle(method_of(env.client(), path, "with_raw_response")(**given, stream=True))

    async def raw_left(env: Env, endpoint: str) -> None:
        path, given = behaving("stream-slow", endpoint, as_stream=True)
        response = await settle(method_of(env.client(), path, "with_raw_response")(**given, stream=True))
        chunks = await settle(response.parse())
        await first(chunks)
        await settle(chunks.close())

    async def lines_left(env: Env, endpoint: str) -> None:
        path, given = behaving("stream-slow", endpoint, as_stream=True)
        create = method_of(env.client(), path, "with_streaming_response")
        async with within(create(**given, stream=True)) as response:
            await first(response.iter_lines())

    async def helper_left(env: Env, endpoint: str) -> None:
        path, given = behaving("stream-slow", endpoint, as_stream=True)
        async with within(method_of(env.client(), path.replace("create", "stream"))(**given)) as events:
            async for _ in each(events):
                break

    async def unread(env: Env, endpoint: str) -> None:
        path, given, _ = ENDPOINTS[endpoint]
        async with within(method_of(env.client(), path, "with_streaming_response")(**given)):
            pass

    async def cancelled(env: Env, endpoint: str, *, in_stream: bool, way: Way) -> None:
        behaviour = "stream-slow" if in_stream else "slow"
        path, given = behaving(behaviour, endpoint, as_stream=in_stream)
        task = asyncio.ensure_future(way(env.client(), path, given))
        await env.until_waiting()
        await cancel(task)

    async def out_of_time(env: Env, endpoint: str) -> None:
        path, given = behaving("slow", endpoint)
        try:
            async with timed_out_when(env.until_waiting()):
                await plain(env.client(), path, given)
        except TimeoutError:
            return
        raise AssertionError("in time")

    ends = {
        "closed": closed,
        "with-left": exited,
        "dropped": dropped,
        "never-iterated": never_iterated,
        "never-iterated-closed": never_iterated_but_closed,
        "app-raises": app_raises,
        "raw-dropped": raw_dropped,
        "raw-left": raw_left,
        "iter_lines-left": lines_left,
        "helper-left": helper_left,
    }
    for is_async in (False, True):
        client = "async" if is_async else "openai"
        for endpoint in ("chat", "responses"):
            for name, end in ends.items():
                run = partial(end, endpoint=endpoint)
                yield Cell(f"{client}-{endpoint}-{name}", "left early", run, is_async)
            run = partial(unread, endpoint=endpoint)
            yield Cell(f"{client}-{endpoint}-streaming_response-unread", "left early", run, is_async, unread=True)
    # Only a coroutine can be cancelled.
    for endpoint in ("chat", "responses"):
        for name, in_stream, way in (
            ("plain", False, plain),
            ("raw", False, raw),
            ("streaming_response", False, partial(streaming_response, read="read")),
            ("stream", True, stream),
            ("raw-stream", True, raw_stream),
            ("streaming_response-iter_lines", True, partial(streaming_response, read="iter_lines", as_stream=True)),
        ):
            run = partial(cancelled, endpoint=endpoint, in_stream=in_stream, way=way)
            yield Cell(f"async-{endpoint}-{name}-cancelled", "left early", run, True, left_as="cancelled")
        run = partial(out_of_time, endpoint=endpoint)
        yield Cell(f"async-{endpoint}-plain-timed-out", "left early", run, True, left_as="cancelled")


def cells() -> Iterator[Cell]:
    """All of them."""
    yield from read_cells()
    yield from job_cells()
    yield from websocket_cells()
    yield from error_cells()
    yield from left_cells()
