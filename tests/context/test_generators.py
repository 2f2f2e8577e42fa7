"""`llm_context` as a decorator: what runs is inside, whoever drives it stays outside, and nothing else is different."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import logging
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_llm import llm_context
from otel_llm.context import attributes
from otel_llm.conventions import semconv


def user() -> str | None:
    return attributes().get(semconv.USER_ID)


def request() -> str | None:
    return attributes().get(semconv.REQUEST_ID)


seen: list[str | None] = []


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    seen.clear()
    before = otel.get_current()
    yield
    assert otel.get_current() == before


@llm_context("m", user_id="u")
def counts(to: int = 3) -> Iterator[Any]:
    """Yields the user."""
    try:
        for _ in range(to):
            yield user()
    finally:
        seen.append(user())
    return "done"


@llm_context("m", user_id="u")
async def counts_async(to: int = 3) -> AsyncIterator[Any]:
    try:
        for _ in range(to):
            await asyncio.sleep(0)
            yield user()
    finally:
        await asyncio.sleep(0)
        seen.append(user())


def test_the_body_is_inside_and_the_caller_is_not():
    generator = counts()
    assert user() is None
    for inside in generator:
        assert (inside, user()) == ("u", None)
    assert seen == ["u"]


async def test_the_body_of_an_async_generator_is_inside_and_the_caller_is_not():
    async for inside in counts_async():
        assert (inside, user()) == ("u", None)
    assert seen == ["u"]


def test_inspect_sees_what_it_is():
    assert inspect.isgeneratorfunction(counts) and not inspect.isasyncgenfunction(counts)
    assert inspect.isasyncgenfunction(counts_async) and not inspect.isgeneratorfunction(counts_async)
    assert inspect.isgenerator(counts()) and inspect.isasyncgen(counts_async())
    assert (counts.__name__, counts.__doc__, counts.__module__) == ("counts", "Yields the user.", __name__)
    assert str(inspect.signature(counts)) == "(to: 'int' = 3) -> 'Iterator[Any]'"


def test_it_can_be_pickled_and_copied():
    assert pickle.loads(pickle.dumps(counts)) is counts
    assert copy.copy(counts) is counts and copy.deepcopy(counts) is counts


def test_wrong_arguments_fail_where_they_are_given():
    with pytest.raises(TypeError, match="unexpected keyword"):
        counts(wrong=1)


def test_it_is_in_the_context_it_was_made_in():
    """As a task is: the handler that made the stream may have returned when the server sends it."""
    with llm_context("outer", session_id="s"):
        made = counts()
        given = inside_of_session()
    with llm_context("elsewhere", user_id="other", session_id="other"):
        assert list(made) == ["u"] * 3
        assert next(given) == "s"


@llm_context("m")
def inside_of_session() -> Iterator[str]:
    yield attributes()[semconv.SESSION_ID]


def test_each_call_is_a_request_of_its_own_and_keeps_it():
    @llm_context("m")
    def requests() -> Iterator[str | None]:
        yield request()
        yield request()

    first, second = list(requests()), list(requests())
    assert first[0] == first[1] and second[0] == second[1]
    assert first[0] != second[0]


def test_interleaved_ones_keep_apart():
    def make(name: str) -> Iterator[str | None]:
        @llm_context("m", user_id=name)
        def body() -> Iterator[str | None]:
            with llm_context(session_id=f"s-{name}"):
                yield user()
                yield attributes()[semconv.SESSION_ID]
            assert semconv.SESSION_ID not in attributes()
            yield user()

        return body()

    assert list(zip(make("a"), make("b"), strict=True)) == [("a", "b"), ("s-a", "s-b"), ("a", "b")]


class Stop(Exception):
    pass


def plain_conversation() -> Iterator[Any]:
    heard: list[Any] = []
    while True:
        try:
            heard.append((yield list(heard)))
        except Stop:
            heard.append("stop")
        except ValueError as error:
            raise KeyError("from the body") from error
        if heard[-1] == "return":
            return heard


conversation = llm_context("m", user_id="u")(plain_conversation)


@pytest.mark.parametrize("function", [plain_conversation, conversation], ids=["plain", "decorated"])
def test_send_throw_and_the_return_value(function):
    generator = function()
    assert next(generator) == []
    assert generator.send("a") == ["a"]
    assert generator.throw(Stop()) == ["a", "stop"]
    with pytest.raises(StopIteration) as stopped:
        generator.send("return")
    assert stopped.value.value == ["a", "stop", "return"]
    with pytest.raises(StopIteration):
        next(generator)

    other = function()
    next(other)
    with pytest.raises(KeyError, match="from the body") as raised:
        other.throw(ValueError("thrown"))
    assert isinstance(raised.value.__cause__, ValueError)

    def delegates() -> Iterator[Any]:
        inner = function()
        assert (yield from inner) == ["return"]
        yield "delegated"

    outer = delegates()
    next(outer)
    assert outer.send("return") == "delegated"


def plain_stubborn() -> Iterator[int]:
    try:
        yield 1
    except GeneratorExit:
        yield 2


def plain_stops() -> Iterator[int]:
    yield 1
    raise StopIteration


@pytest.mark.parametrize("decorate", [lambda function: function, llm_context("m")], ids=["plain", "decorated"])
def test_close_and_stop_iteration_are_as_they_are(decorate):
    generator = decorate(plain_stubborn)()
    assert next(generator) == 1
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()
    generator = decorate(plain_stops)()
    next(generator)
    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        next(generator)
    generator = decorate(plain_conversation)()
    with pytest.raises(Stop):
        generator.throw(Stop())  # before it has begun
    assert list(generator) == []
    generator = decorate(plain_conversation)()
    next(generator)
    with pytest.raises(GeneratorExit):
        generator.throw(GeneratorExit())


def test_closed_early_and_dropped_half_way_the_body_ends_inside():
    generator = counts()
    next(generator)
    generator.close()
    assert seen.pop() == "u"
    for _ in counts():
        break
    gc.collect()
    assert seen.pop() == "u"
    with llm_context("other", user_id="other"):
        generator = counts()
        next(generator)
        del generator
        gc.collect()
        assert user() == "other"
    assert seen == ["u"]
    counts().close()  # never begun: nothing to end
    assert seen == ["u"]


async def test_an_async_one_closed_early_and_dropped_half_way_ends_inside():
    generator = counts_async()
    await anext(generator)
    await generator.aclose()
    assert seen.pop() == "u"

    async def drop() -> None:
        async for _ in counts_async():
            break

    await drop()
    gc.collect()
    while not seen:  # the loop closes it in a task of its own
        await asyncio.sleep(0)
    assert seen == ["u"]
    assert user() is None


async def test_asend_and_athrow():
    @llm_context("m", user_id="u")
    async def body() -> AsyncIterator[Any]:
        heard = yield "first"
        try:
            yield heard, user()
        except Stop:
            await asyncio.sleep(0)
            yield "stopped", user()
        raise ValueError("from the body")

    generator: Any = body()
    assert await generator.asend(None) == "first"
    assert await generator.asend("x") == ("x", "u")
    assert await generator.athrow(Stop()) == ("stopped", "u")
    with pytest.raises(ValueError, match="from the body"):
        await anext(generator)
    with pytest.raises(StopAsyncIteration):
        await anext(generator)


async def test_a_task_that_is_cancelled_in_the_body():
    """The body is told, inside, and the task goes on outside."""
    entered = asyncio.Event()

    @llm_context("m", user_id="u")
    async def body() -> AsyncIterator[Any]:
        try:
            entered.set()
            yield await asyncio.Event().wait()
        finally:
            seen.append(user())

    async def consume() -> None:
        try:
            async for _ in body():
                pass
        finally:
            seen.append(user())

    task = asyncio.create_task(consume())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["u", None]


async def test_iterated_in_other_tasks_and_threads(caplog):
    """Each step in another contextvars context, with an open `llm_context` and a span across the steps."""

    @llm_context("m", user_id="u")
    def body() -> Iterator[Any]:
        with llm_context(session_id="s"):
            for _ in range(3):
                yield user(), attributes()[semconv.SESSION_ID]
        yield user(), attributes().get(semconv.SESSION_ID)

    @llm_context("m", user_id="u")
    async def body_async() -> AsyncIterator[Any]:
        with llm_context(session_id="s"):
            for _ in range(3):
                yield user(), attributes()[semconv.SESSION_ID]
        yield user(), attributes().get(semconv.SESSION_ID)

    expected = [("u", "s")] * 3 + [("u", None)]
    generator = body()
    assert [await asyncio.to_thread(lambda: (next(generator), user())[0]) for _ in range(4)] == expected
    generator, items = body(), []
    thread = threading.Thread(target=lambda: items.extend(generator))
    thread.start()
    thread.join()
    assert items == expected

    async def step(generator: AsyncIterator[Any]) -> Any:
        item = await anext(generator)
        assert user() is None
        return item

    generator_async = body_async()
    assert [await asyncio.create_task(step(generator_async)) for _ in range(4)] == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_context_of_the_app_s_own_variables_stays_the_caller_s():
    """Only OpenTelemetry's context is exchanged: what a generator sets in another variable, its caller still sees."""
    import contextvars

    mine = contextvars.ContextVar("mine", default="before")

    @llm_context("m")
    def body() -> Iterator[str]:
        yield mine.get()
        mine.set("by the body")
        yield mine.get()

    generator = body()
    mine.set("by the caller")
    assert next(generator) == "by the caller"
    next(generator)
    assert mine.get() == "by the body"


def test_a_span_of_the_body_is_current_in_the_body_only():
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("app")

    @llm_context("m")
    def body() -> Iterator[Any]:
        with tracer.start_as_current_span("body") as span:
            yield span
            yield trace.get_current_span()

    generator = body()
    with tracer.start_as_current_span("caller") as caller:
        span = next(generator)
        assert trace.get_current_span() is caller
        assert next(generator) is span
        assert list(generator) == []
        assert trace.get_current_span() is caller


class Service:
    @llm_context("m", user_id="u")
    def generate(self, suffix: str) -> Iterator[str]:
        yield f"{self.name}{suffix}{user()}"

    @llm_context("m", user_id="u")
    async def generate_async(self, suffix: str) -> AsyncIterator[str]:
        yield f"{self.name}{suffix}{user()}"

    @llm_context("m", user_id="u")
    @staticmethod
    def below(suffix: str) -> str:
        return f"static{suffix}{user()}"

    @staticmethod
    @llm_context("m", user_id="u")
    def above(suffix: str) -> Iterator[str]:
        yield f"static{suffix}{user()}"

    @llm_context("m", user_id="u")
    @classmethod
    def of_class(cls, suffix: str) -> Iterator[str]:
        yield f"{cls.name}{suffix}{user()}"

    @llm_context("m", user_id="u")
    async def coroutine(self) -> str | None:
        await asyncio.sleep(0)
        return user()

    name = "service"


async def test_methods():
    service = Service()
    assert list(service.generate("-")) == ["service-u"]
    assert [item async for item in service.generate_async("-")] == ["service-u"]
    assert service.below("-") == Service.below("-") == "static-u"
    assert list(service.above("-")) == list(Service.above("-")) == ["static-u"]
    assert list(service.of_class("-")) == list(Service.of_class("-")) == ["service-u"]
    assert await service.coroutine() == "u"
    assert inspect.isgeneratorfunction(service.generate) and inspect.isgeneratorfunction(Service.of_class)
    assert inspect.isasyncgenfunction(service.generate_async) and inspect.iscoroutinefunction(service.coroutine)


async def test_a_function_that_returns_something_to_run():
    """What another decorator, a partial or a lambda hides goes on in the context all the same."""

    async def coroutine(value: str) -> tuple[str, str | None]:
        await asyncio.sleep(0)
        return value, user()

    def generator() -> Iterator[str | None]:
        yield user()

    async def async_generator() -> AsyncIterator[str | None]:
        yield user()

    hide = llm_context("m", user_id="u")
    assert await hide(lambda: coroutine("x"))() == ("x", "u")
    assert await hide(functools.partial(coroutine, "x"))() == ("x", "u")
    assert list(hide(lambda: generator())()) == list(hide(functools.partial(generator))()) == ["u"]
    assert [item async for item in hide(lambda: async_generator())()] == ["u"]
    assert user() is None

    begun = generator()
    next(begun)
    assert hide(lambda: begun)() is begun  # somebody else's: the end of ours must not be its end
    task = asyncio.ensure_future(coroutine("x"))
    assert hide(lambda: task)() is task
    assert await task == ("x", None)
    thing = object()
    assert hide(lambda: thing)() is thing


def test_dropped_in_the_middle_of_an_await_it_changes_nothing_where_it_is_closed():
    """The garbage collector closes it wherever it runs: in a thread or a task with a context of its own."""
    import contextvars

    loop = asyncio.new_event_loop()

    async def waits() -> None:
        await asyncio.Future(loop=loop)

    @llm_context("m", user_id="dropped")
    async def generates() -> AsyncIterator[None]:
        yield await asyncio.Future(loop=loop)

    async def consumes() -> None:
        async for _ in generates():
            pass

    for coroutine in (llm_context("m", user_id="dropped")(lambda: waits())(), consumes()):
        contextvars.Context().run(coroutine.send, None)
        with llm_context(user_id="here"):
            inside = otel.get_current()
            coroutine.close()
            assert otel.get_current() is inside
    loop.close()


def test_a_class_is_refused():
    with pytest.raises(TypeError, match="functions and methods, not the class"):
        llm_context("m")(Service)


def test_a_thrown_exception_is_not_kept_alive():
    import weakref

    generator = conversation()
    next(generator)
    error = Stop()
    gone = weakref.ref(error)
    generator.throw(error)
    del error
    gc.collect()
    assert gone() is None
