"""Generators, async generators and coroutines that run in a context of their own. Whoever drives them sees nothing of it.

Only the OpenTelemetry context is exchanged, before and after each step. A copy of all context variables would be simpler, but the
app's own variables would then stay as they were when the generator was made, and what its body sets would be lost on the caller.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

import wrapt
from opentelemetry import context as otel

from otel_llm.support import faults

Opening = AbstractContextManager[otel.Context]
"""Opens the context of one body with its first step, and closes it with its last one. It attaches nothing itself."""

_STEP_CONTEXT = otel.create_key("otel-llm-step_context")


class StepContext:
    """An OpenTelemetry context that is entered for each step, and left as the step leaves it."""

    __slots__ = ("_inside",)

    def __init__(self, inside: otel.Context) -> None:
        self._inside = otel.set_value(_STEP_CONTEXT, self, inside)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`, called inside."""
        outside = otel.get_current()
        otel.attach(self._inside)
        try:
            return function(*args)
        finally:
            self._inside = otel.get_current()
            otel.attach(outside)

    async def wait(self, step: Any) -> Any:
        """`await step`, inside. While it waits, its task is inside; others are not."""
        outside = otel.get_current()
        otel.attach(self._inside)
        try:
            return await step
        finally:
            current = otel.get_current()
            # What is dropped in the middle is closed wherever the garbage collector runs: nothing there is ours to change.
            if otel.get_value(_STEP_CONTEXT, current) is self:
                self._inside = current
                otel.attach(outside)


def drive(body: Generator[Any, Any, Any], opening: Opening) -> Generator[Any, Any, Any]:
    """`body`, each of its steps taken inside."""
    with opening as inside:
        step_context = StepContext(inside)
        step, value = body.send, None
        while True:
            try:
                item = step_context.run(step, value)
            except StopIteration as stop:
                return stop.value
            finally:
                value = None  # an exception that was thrown in must not be kept alive by this frame
            try:
                value = yield item
                step = body.send
            except BaseException as error:  # GeneratorExit too: the body gets what this got
                step, value = body.throw, error


async def drive_async(body: AsyncGenerator[Any, Any], opening: Opening) -> AsyncGenerator[Any, Any]:
    """The same for an async generator."""
    with opening as inside:
        step_context = StepContext(inside)
        step: Callable[[Any], Any] = body.asend
        value: Any = None
        while True:
            try:
                item = await step_context.wait(step(value))
            except StopAsyncIteration:
                return
            finally:
                value = None
            try:
                value = yield item
                step = body.asend
            except BaseException as error:
                step, value = body.athrow, error


async def _finish(coroutine: Coroutine[Any, Any, Any], opening: Opening) -> Any:
    with opening as inside:
        return await StepContext(inside).wait(coroutine)


def continued(result: Any, opening: Opening) -> Any:
    """What goes on as `result` does, but inside; `result` itself where it has begun, or is none of the three."""
    if type(result) is GeneratorType and inspect.getgeneratorstate(result) == inspect.GEN_CREATED:
        return drive(result, opening)
    if type(result) is CoroutineType and inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        return _finish(result, opening)
    if type(result) is AsyncGeneratorType:
        return drive_async(result, opening)
    return result


class _GeneratorFunction(wrapt.FunctionWrapper):  # type: ignore[type-arg]  # wrapt 1 takes none
    """A generator function to `inspect` and to whoever pickles or copies it, and yet it runs when it is called."""

    def __reduce_ex__(self, protocol: Any) -> str:
        return str(self.__wrapped__.__qualname__)

    def __copy__(self) -> _GeneratorFunction:
        return self

    def __deepcopy__(self, memo: Any) -> _GeneratorFunction:
        return self


def generator_function(function: Callable[..., Any], opening: Callable[[], Opening]) -> Any:
    """`function`, its generators running inside what `opening` opens for each."""

    def make(wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
        made = wrapped(*args, **kwargs)
        try:
            return continued(made, opening())
        except Exception as error:
            faults.report("open a context for a generator", error)
            return made

    return _GeneratorFunction(function, make)
