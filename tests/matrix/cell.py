"""What a cell of the matrix is, what it is given, and how one is run: without pytest, so that a script can do it too.

A cell is one way to call a model. It is written once for synchronous and asynchronous clients: `settle`, `each` and `within`
wait for what is to be awaited and take everything else as it is, so with a synchronous client no event loop runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import openai
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext

from otel_llm.conventions.dialects import is_genai
from tests.matrix.provider import Provider

MODEL = "gpt-4o-mini"
KEY = "sk-matrix"
Run = Callable[["Env"], Coroutine[Any, Any, None]]

GROUPS = ("sync", "async", "streams", "raw", "endpoints", "websockets", "errors", "left early", "LangChain", "agents")
"""How the cells are told apart in a table."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to call a model."""

    name: str
    group: str
    run: Run
    is_async: bool = False
    calls: int = 1
    """Model calls that it makes, retries of one counted once."""
    left_as: str = "partial"
    """Status of a call that the app left before its end."""
    unread: bool = False
    """The answer came whole, but the app did not read it."""
    unseen: int = 0
    """Calls that never got to the provider; they are errors."""


class Env:
    """What the cells share: the server, clients of it (an SSL context each, which takes long), one event loop."""

    def __init__(self, server: Provider) -> None:
        self.server = server
        self._clients: dict[str, Any] = {}
        self._http: dict[bool, Any] = {}
        self.is_async = False
        """Whether the cell that runs is an asynchronous one."""
        self._runner = asyncio.Runner()
        self._runner.get_loop()
        self.run_async(self._begin())

    async def _begin(self) -> None:
        self._http = {False: openai.DefaultHttpxClient(), True: openai.DefaultAsyncHttpxClient()}

    def client(self, kind: str = "OpenAI", **options: Any) -> Any:
        """A client of a class of openai's (the asynchronous one in an asynchronous cell), or the module."""
        if kind == "module":
            openai.api_key, openai.base_url, openai.max_retries = KEY, self.server.base_url + "/", 0
            openai.http_client = self._http[False]
            return openai
        name = f"Async{kind}" if self.is_async else kind
        if name not in self._clients:
            given: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "http_client": self._http[self.is_async]}
            if kind == "AzureOpenAI":
                given |= {"azure_endpoint": self.server.origin, "api_version": "2025-03-01-preview"}
            else:
                given |= {"base_url": self.server.base_url}
                given |= {"websocket_base_url": self.server.base_url.replace("http:", "ws:")}
            self._clients[name] = getattr(openai, name)(**given)
        client = self._clients[name]
        return client.with_options(**options) if options else client

    @property
    def http_clients(self) -> dict[str, Any]:
        """Those of langchain-openai: it would make its own for every model."""
        return {"http_client": self._http[False], "http_async_client": self._http[True]}

    async def until_waiting(self, n: int = 1) -> None:
        """Returns when so many requests wait at the server."""
        await asyncio.to_thread(self.server.wait_for, n)

    def run(self, cell: Cell) -> None:
        """Runs a cell in a context of its own. Raises what the cell raises."""
        self.is_async = cell.is_async
        context = contextvars.copy_context()
        context.run(_is_async.set, cell.is_async)
        if cell.is_async:
            self._runner.run(cell.run(self), context=context)
        else:
            context.run(_drive, cell.run(self))

    def run_async(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs something in the event loop of the asynchronous cells."""
        self._runner.run(coroutine, context=contextvars.copy_context())

    def collect(self) -> None:
        """Lets go of what was dropped: streams refer to themselves, and asynchronous generators end in the event loop."""
        gc.collect()
        self.run_async(asyncio.sleep(0))
        self.run_async(asyncio.sleep(0))

    def close(self) -> None:
        openai.http_client = openai.api_key = openai.base_url = None
        openai.max_retries = openai.DEFAULT_MAX_RETRIES
        openai._reset_client()  # type: ignore[no-untyped-call]
        self._http[False].close()
        self.run_async(self._http[True].aclose())
        self._runner.close()


def _drive(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a synchronous cell has waited for something")


# --- one text for synchronous and asynchronous clients ---------------------------------------------------------------
# The cell says which, never the methods of an object: what a candidate wraps round a stream may have both kinds.
_is_async: contextvars.ContextVar[bool] = contextvars.ContextVar("is_async")


async def settle(value: Any) -> Any:
    """The value, awaited if it can be in an asynchronous cell."""
    return await value if _is_async.get() and inspect.isawaitable(value) else value


async def each(values: Any) -> AsyncIterator[Any]:
    """Iterates over either kind of iterable."""
    if _is_async.get():
        async for value in values:
            yield value
    else:
        for value in values:
            yield value


async def drain(values: Any) -> None:
    """Reads to the end."""
    async for _ in each(values):
        pass


async def first(values: Any) -> Any:
    """The next one of an iterator."""
    return await anext(values) if _is_async.get() else next(values)


@asynccontextmanager
async def within(manager: Any) -> AsyncIterator[Any]:
    """Either kind of context manager."""
    if _is_async.get():
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancels a task until it is.

    langchain-openai now and then loses a cancellation in mid-stream of a response (without any instrumentation too), and reads on.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.05)
    assert task.cancelled(), "the task has ended otherwise"


@asynccontextmanager
async def timed_out_when(reached: Awaitable[object]) -> AsyncIterator[None]:
    """The time limit of the app's runs out in this block, in the task that runs it, once that has been reached."""
    async with asyncio.timeout(None) as limit:

        async def run_out() -> None:
            await reached
            limit.reschedule(asyncio.get_running_loop().time())

        running_out = asyncio.ensure_future(run_out())
        try:
            yield
        finally:
            running_out.cancel()


# --- running ---------------------------------------------------------------------------------------------------------
class Recorder(SpanProcessor):
    """Every span of a tracer provider, and which of them have not ended."""

    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []
        self.open: dict[int, str] = {}

    def on_start(self, span: Span, parent_context: object = None) -> None:
        self.open[span.get_span_context().span_id] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        self.open.pop(span.get_span_context().span_id, None)
        self.ended.append(span)

    def clear(self) -> None:
        self.ended.clear()
        self.open.clear()


@dataclass(slots=True)
class Seen:
    """What the server and the tracer provider saw of a cell."""

    ledger: list[Any]
    spans: list[ReadableSpan]
    open: list[str]
    """Names of the spans that have not ended."""
    error: str | None = None
    """What the cell raised: an instrumentation that changes what the app sees fails the cell."""


@dataclass(slots=True)
class Matrix:
    """The cells' surroundings: one server, one provider of spans, one candidate that was installed before."""

    env: Env
    recorder: Recorder
    settle: Callable[[], None] = field(default=lambda: None)
    """Has the candidate finish what it finishes later."""
    grace: float = 0.3
    """Seconds that spans are given to end."""

    def run(self, cell: Cell) -> Seen:
        self.env.server.reset()
        self.recorder.clear()
        # What is here has survived: so the collection at the end goes through this cell's objects only.
        gc.collect()
        gc.freeze()
        error = None
        try:
            self.env.run(cell)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        self.env.collect()
        self.settle()
        until = time.monotonic() + self.grace
        while self.recorder.open and time.monotonic() < until:
            time.sleep(0.01)
            self.env.collect()
            self.settle()
        return Seen(self.env.server.requests, list(self.recorder.ended), list(self.recorder.open.values()), error)


@dataclass(frozen=True, slots=True)
class Told:
    """What the account was told of a span, in the shape of one."""

    attributes: Any
    context: SpanContext

    def get_span_context(self) -> SpanContext:
        return self.context


def hear_the_account(store: Any, recorder: Recorder) -> None:
    """Has a matrix judge what the account is told, not the spans: limits cut those, and others make some of their own."""
    write = store.write

    def written(record: Any, **more: Any) -> None:
        context = SpanContext(int(record["t"], 16), int(record["s"], 16), is_remote=False)
        attributes = dict(record["a"])
        if is_genai(attributes):
            if record["k"] == "s":
                recorder.open[context.span_id] = record["n"]
            else:
                recorder.open.pop(context.span_id, None)
                if "x" not in record:  # another span stands for the same call
                    recorder.ended.append(cast(ReadableSpan, Told(attributes, context)))
        write(record, **more)

    store.write = written


@contextmanager
def matrix(limit: int | None = None, **options: Any) -> Iterator[tuple[Matrix, TracerProvider]]:
    """A matrix, and the tracer provider for its candidate, whose spans hold `limit` attributes."""
    recorder = Recorder()
    limits = None if limit is None else SpanLimits(max_attributes=limit, max_attribute_length=limit)
    provider = TracerProvider(shutdown_on_exit=False, span_limits=limits)
    provider.add_span_processor(recorder)
    with Provider() as server:
        env = Env(server)
        try:
            yield Matrix(env, recorder, **options), provider
        finally:
            env.close()
            provider.shutdown()
            gc.unfreeze()


@contextmanager
def logfire(*, is_global: bool) -> Iterator[Any]:
    """Logfire, which sends nothing anywhere and instruments OpenAI inside the `with`; its tracer provider."""
    import logfire

    configured = logfire.configure(send_to_logfire=False, console=False, local=not is_global)
    if is_global:
        configured = logfire.DEFAULT_LOGFIRE_INSTANCE
    with configured.instrument_openai():
        yield configured.config.get_tracer_provider()
