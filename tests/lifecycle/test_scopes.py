"""`chain`, `step` and `tool`: the spans they make, and what the app sees of them, which is nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import inspect
import itertools
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace import StatusCode, get_current_span

from otel_llm import chain, context, llm_context, step, tool
from otel_llm.calls import abandoned, ending
from otel_llm.conventions import semconv
from otel_llm.lifecycle import Scope, scopes
from tests.instrumentation.conftest import Spans


def current() -> int:
    return get_current_span().get_span_context().span_id


def tree(spans: Spans) -> list[tuple[str, str | None]]:
    """Name and parent's name of each span, in order of start."""
    found = sorted(spans.all(), key=lambda span: span.start_time or 0)
    names = {span.context.span_id: span.name for span in found if span.context}
    return [(span.name, names.get(span.parent.span_id) if span.parent else None) for span in found]


def test_spans_of_the_conventions(spans: Spans) -> None:
    with (
        llm_context("travel", user_id="ada"),
        chain("book"),
        chain("planner", agent=True),
        step("search"),
        tool("flights", call_id="call_1"),
    ):
        pass
    assert tree(spans) == [
        ("invoke_workflow book", None),
        ("invoke_agent planner", "invoke_workflow book"),
        ("step search", "invoke_agent planner"),
        ("execute_tool flights", "step search"),
    ]
    innermost, _, agent, workflow = (dict(span.attributes or {}) for span in spans.all())
    common = {semconv.MODULE: "travel", semconv.USER_ID: "ada", semconv.STATUS: "ok"}
    assert {name: innermost.pop(name) for name in common} == common
    del innermost[semconv.REQUEST_ID]
    assert innermost == {
        semconv.OPERATION: "execute_tool",
        semconv.TOOL_NAME: "flights",
        semconv.TOOL_CALL_ID: "call_1",
        semconv.TOOL_TYPE: "function",
    }
    assert agent[semconv.AGENT_NAME] == "planner"
    assert workflow[semconv.WORKFLOW_NAME] == "book"


class Cancelled(BaseException):
    """As trio, gevent and curio have one of their own."""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ValueError("secret"), "error", StatusCode.ERROR),
        (KeyboardInterrupt(), "cancelled", StatusCode.ERROR),
        (asyncio.CancelledError(), "cancelled", StatusCode.ERROR),
        (concurrent.futures.CancelledError(), "cancelled", StatusCode.ERROR),
        (Cancelled(), "cancelled", StatusCode.ERROR),
        (
            BaseExceptionGroup("nursery", [Cancelled(), BaseExceptionGroup("inner", [Cancelled()])]),
            "cancelled",
            StatusCode.ERROR,
        ),
        (BaseExceptionGroup("nursery", [Cancelled(), ValueError("secret")]), "error", StatusCode.ERROR),
        (ExceptionGroup("tasks", [ValueError("secret")]), "error", StatusCode.ERROR),
        (BaseExceptionGroup("closed", [GeneratorExit()]), "partial", StatusCode.UNSET),
        (GeneratorExit(), "partial", StatusCode.UNSET),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_is_raised_passes_through(spans: Spans, error: BaseException, status: str, code: StatusCode) -> None:
    with pytest.raises(type(error)) as raised, step("s"):
        raise error
    assert raised.value is error
    span = spans.one()
    assert (span.attributes or {})[semconv.STATUS] == status
    assert span.status.status_code is code
    if status != "partial":
        assert (span.attributes or {})[semconv.ERROR_TYPE] == ending.error_type_of(error)
    assert "secret" not in span.to_json()
    assert current() == 0


@tool
def plain_tool(city: str, *, unit: str = "C") -> str:
    """What it does."""
    return f"{city} {unit} {current() != 0}"


def test_a_decorated_function_stays_what_it_was(spans: Spans) -> None:
    assert plain_tool("Lisbon", unit="F") == "Lisbon F True"
    assert plain_tool.__name__ == "plain_tool"
    assert plain_tool.__doc__ == "What it does."
    assert list(inspect.signature(plain_tool).parameters) == ["city", "unit"]
    assert spans.one().name == "execute_tool plain_tool"
    assert spans.attributes()[semconv.TOOL_NAME] == "plain_tool"


def test_methods_and_names(spans: Spans) -> None:
    class Agent:
        @chain("named", agent=True)
        def answer(self) -> Agent:
            return self

        @staticmethod
        @step
        def search() -> int:
            return 1

    agent = Agent()
    assert agent.answer() is agent
    assert agent.search() == 1
    assert [span.name for span in spans.all()] == ["invoke_agent named", "step search"]


async def test_coroutines_overlap(spans: Spans) -> None:
    seen: list[int] = []

    @step("s")
    async def work() -> None:
        own = current()
        await asyncio.sleep(0)
        assert current() == own
        seen.append(own)

    assert inspect.iscoroutinefunction(work)
    with chain("c"):
        await asyncio.gather(*(work() for _ in range(10)))
    assert len(set(seen)) == 10
    assert tree(spans).count(("step s", "invoke_workflow c")) == 10


async def test_async_with(spans: Spans) -> None:
    async with chain("c"), step("s"):
        await asyncio.sleep(0)
    assert tree(spans) == [("invoke_workflow c", None), ("step s", "invoke_workflow c")]


# --- generators -------------------------------------------------------------------------------------------------------


def test_a_generator_runs_under_its_span_and_the_caller_does_not(spans: Spans) -> None:
    seen: list[Any] = []

    @step("outer")
    def values() -> Iterator[Any]:
        outer = current()
        got = yield outer
        seen.append(got)
        with step("inner"):
            inner = current()
            try:
                yield inner
            except LookupError as error:
                seen.append(error)
            assert current() == inner
            yield inner
        assert current() == outer
        return "returned"

    assert inspect.isgeneratorfunction(values)
    body = values()
    assert not spans.all()
    assert current() == 0
    with step("caller") as caller:
        outer = next(body)
        assert f"{current():016x}" == caller.span_id
        inner = body.send("sent")
        assert f"{current():016x}" == caller.span_id
    assert current() == 0
    error = LookupError()
    assert body.throw(error) == inner
    assert current() == 0
    with pytest.raises(StopIteration) as stop:
        next(body)
    assert stop.value.value == "returned"
    assert seen == ["sent", error]
    assert 0 not in (outer, inner)
    assert outer != inner
    assert tree(spans) == [("step caller", None), ("step outer", "step caller"), ("step inner", "step outer")]
    assert all((span.attributes or {})[semconv.STATUS] == "ok" for span in spans.all())


async def test_an_async_generator_runs_under_its_span_and_the_caller_does_not(spans: Spans) -> None:
    @step("outer")
    async def values() -> AsyncIterator[int]:
        yield current()
        with step("inner"):
            await asyncio.sleep(0)
            yield current()

    assert inspect.isasyncgenfunction(values)
    found = []
    async for value in values():
        assert current() == 0
        found.append(value)
    assert len(set(found)) == 2
    assert 0 not in found
    assert tree(spans) == [("step outer", None), ("step inner", "step outer")]


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_generator_that_is_left(spans: Spans, leave: str) -> None:
    cleaned: list[bool] = []

    @chain("c")
    def values() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            cleaned.append(current() != 0)

    body = values()
    assert next(body) == 1
    if leave == "close":
        body.close()  # type: ignore[attr-defined]
    del body
    gc.collect()
    assert cleaned == [True]
    assert current() == 0
    assert spans.attributes()[semconv.STATUS] == "partial"


async def test_an_async_generator_that_is_left_or_fails(spans: Spans) -> None:
    @chain("c")
    async def values(fail: bool) -> AsyncIterator[int]:
        yield 1
        if fail:
            raise ValueError("mine")
        yield 2

    left = values(False)
    await anext(left)
    await left.aclose()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="mine"):
        _ = [value async for value in values(True)]
    assert sorted((span.attributes or {})[semconv.STATUS] for span in spans.all()) == ["error", "partial"]
    assert current() == 0


def test_a_generator_that_goes_on_in_another_context(spans: Spans) -> None:
    """A web framework may iterate a streaming response in a thread of its own for each piece."""

    @step("s")
    def values() -> Iterator[int]:
        with step("inner"):
            yield current()
            yield current()

    body = values()
    found = {contextvars.Context().run(next, body, None) for _ in range(2)}
    assert len(found) == 1
    assert next(body, "end") == "end"
    assert len(spans.all()) == 2


# --- leaving elsewhere ------------------------------------------------------------------------------------------------


async def test_left_in_another_task(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """As a fixture or a dependency does whose set-up and clean-up are run by different tasks."""

    async def dependency() -> AsyncIterator[Scope]:
        with chain("c") as run:
            yield run

    resource = dependency()
    entered = await asyncio.create_task(anext(resource))  # type: ignore[arg-type]
    with step("here") as here:

        async def leave() -> int:
            await resource.aclose()  # type: ignore[attr-defined]
            return current()

        assert await asyncio.create_task(leave()) == current()
        assert here.span_id == f"{current():016x}"
    assert current() == 0
    found = {span.name: (span.attributes or {})[semconv.STATUS] for span in spans.all()}
    assert found == {"invoke_workflow c": "partial", "step here": "ok"}
    assert entered.span is not None and not entered.span.is_recording()
    assert not caplog.records


async def test_left_in_a_task_that_was_begun_inside(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    before = otel.get_current()
    run = chain("c")
    run.__enter__()

    async def leave() -> int:
        run.__exit__(None, None, None)
        return current()

    assert await asyncio.create_task(leave()) == 0  # which was inside, too
    ended = current()
    assert f"{ended:016x}" == run.span_id  # nobody can change the context of another task
    with step("after"):
        pass
    assert otel.get_current() == before  # but it is gone with the next that is left
    assert [span.name for span in spans.all()] == ["invoke_workflow c", "step after"]
    assert not caplog.records


async def test_what_was_begun_inside_stays_inside(spans: Spans) -> None:
    """A task that outlives the part of the run which it was begun in: all that it does belongs there."""
    is_left = asyncio.Event()

    async def goes_on() -> None:
        await is_left.wait()
        with step("one"), step("below"):
            pass
        with step("two"):
            pass

    with chain("c"):
        task = asyncio.create_task(goes_on())
        await asyncio.sleep(0)
    is_left.set()
    await task
    assert tree(spans) == [
        ("invoke_workflow c", None),
        ("step one", "invoke_workflow c"),
        ("step below", "step one"),
        ("step two", "invoke_workflow c"),
    ]


def test_entered_here_and_left_elsewhere_again_and_again(spans: Spans) -> None:
    """A thread that hands each request over to others does not go deeper and deeper."""

    def depth() -> int:
        entry, found = otel.get_current().get(scopes._ENTRY), 0
        while isinstance(entry, scopes._Entry):
            entry, found = entry.above, found + 1
        return found

    with ThreadPoolExecutor(1) as elsewhere, step("around"):
        for _ in range(20):
            request = chain("request")
            request.__enter__()
            elsewhere.submit(request.__exit__, None, None, None).result()
        assert depth() == 2
    assert set(tree(spans)) == {("step around", None), ("invoke_workflow request", "step around")}
    assert current() == 0


async def test_an_async_generator_that_the_event_loop_closes(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    async def values() -> AsyncIterator[int]:
        with chain("c"):
            yield 1
            yield 2

    async def read_one() -> None:
        async for _ in values():
            return

    await asyncio.create_task(read_one())
    async with asyncio.timeout(30):
        while not spans.all():  # collects garbage; the event loop then closes the generator in a task of its own
            await asyncio.sleep(0)
    assert spans.one().name == "invoke_workflow c"
    assert current() == 0
    assert not caplog.records


def test_a_coroutine_dropped_half_way_changes_nothing_where_it_is_closed(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    @chain("dropped")
    async def ask() -> None:
        await asyncio.Future(loop=loop)

    loop = asyncio.new_event_loop()
    coroutine = ask()
    contextvars.copy_context().run(coroutine.send, None)
    with step("here"):
        inside = otel.get_current()
        coroutine.close()
        assert otel.get_current() is inside
    loop.close()
    assert {span.name for span in spans.all()} == {"invoke_workflow dropped", "step here"}
    assert not caplog.records


def test_left_in_any_order_nothing_stays(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """Scopes and contexts: what is left is gone, what is open stays, whichever was entered first."""
    before = otel.get_current()
    for order in itertools.permutations("abcd"):
        entered: dict[str, Any] = {
            "a": chain("a"),
            "b": llm_context(user_id="b"),
            "c": step("c"),
            "d": llm_context("d"),
        }
        for scope in entered.values():
            scope.__enter__()
        still_open = dict(entered)
        for name in order:
            still_open.pop(name).__exit__(None, None, None)
            told = context.attributes()
            assert told.get(semconv.USER_ID) == ("b" if "b" in still_open else None)
            assert told.get(semconv.MODULE) == ("d" if "d" in still_open else None)
            # The inner span stays current while it is open; the outer one comes back if it is.
            inner = [scope.span for scope in still_open.values() if isinstance(scope, Scope)]
            assert get_current_span() is (inner[-1] if inner else trace.INVALID_SPAN), (order, name)
        assert otel.get_current() == before
    assert len(spans.all()) == 2 * 24
    assert not caplog.records


def test_a_span_inside_stays_while_it_is_open(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("app")

    def cross(ended: bool) -> None:
        run = chain("c")
        run.__enter__()
        span = tracer.start_span("inside")
        otel.attach(trace.set_span_in_context(span))
        if ended:
            span.end()
        run.__exit__(None, None, None)
        assert get_current_span() is (trace.INVALID_SPAN if ended else span)

    contextvars.copy_context().run(cross, False)
    contextvars.copy_context().run(cross, True)  # attached and never detached: it ends with the chain


def test_a_scope_that_is_left_needs_no_garbage_collector(spans: Spans) -> None:
    gc.collect()
    gc.disable()
    try:
        left = [weakref.ref(inside()) for _ in range(10)]
        assert [one() for one in left] == [None] * 10
    finally:
        gc.enable()


def inside() -> Marked:
    """Something that only a context inside a scope refers to, and that scope's own."""
    marked = Marked()
    token = otel.attach(otel.set_value("marked", marked))
    with step("s"):
        pass
    otel.detach(token)
    return marked


class Marked:
    pass


# --- what must not break the app --------------------------------------------------------------------------------------


def test_nobody_set_up_tracing() -> None:
    from otel_llm.lifecycle.scopes import tracer

    tracer.use(trace.NoOpTracerProvider())
    with chain("c") as run, step("s"), tool("t"):
        assert run.span_id == "0" * 16
    assert plain_tool("x") == "x C False"


def test_a_fault_of_ours_is_not_the_apps(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    from otel_llm.lifecycle.scopes import tracer
    from otel_llm.support import faults

    monkeypatch.setattr(faults, "report", lambda *_: None)
    monkeypatch.setattr(tracer, "start_span", broken)
    with chain("c"):
        pass
    assert plain_tool("x") == "x C False"

    @step
    def values() -> Iterator[int]:
        yield 1

    assert list(values()) == [1]
    assert otel.get_current() == {}


def test_left_more_often_than_entered(spans: Spans) -> None:
    run = chain("c")
    with run:
        pass
    run.__exit__(None, None, None)
    assert len(spans.all()) == 1


@pytest.mark.parametrize("make", [chain, step, tool])
def test_bad_input_is_named(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="name of a chain, step or tool is text, not 42"):
        make(42)
    with pytest.raises(TypeError, match="decorates a function, not 7"):
        make("x")(7)


def test_a_scope_can_be_entered_again(spans: Spans) -> None:
    again = step("s")
    with again, again:
        pass
    with again:
        pass
    assert isinstance(again, Scope)
    assert tree(spans) == [("step s", None), ("step s", "step s"), ("step s", None)]


async def test_tasks_may_share_a_scope(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    shared = step("s")
    ended: list[int] = []

    async def work(turns: int) -> None:
        with shared:
            own = current()
            for _ in range(turns):
                await asyncio.sleep(0)
            assert current() == own
        assert current() == 0
        assert spans.all()[-1].context.span_id == own  # type: ignore[union-attr]
        ended.append(turns)

    await asyncio.gather(*(work(turns) for turns in (1, 3, 2)))
    assert ended == [1, 2, 3]
    assert len(spans.all()) == 3
    assert not caplog.records


def test_a_forked_child_leaves_the_span_to_its_parent(spans: Spans) -> None:
    with chain("c") as run:
        child = os.fork()
        if not child:
            code = 3
            try:
                assert run.span is not None
                run.__exit__(None, None, None)
                code = 0 if run.span.is_recording() else 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(spans.all()) == 1
    abandoned.finish_abandoned()
