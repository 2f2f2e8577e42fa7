"""The body of a generator inside a context of its own, of which the caller sees nothing between two values.

A `with` around a `yield` leaks: what it attaches stays attached in whoever iterates. Here the context is attached for each step of
the body alone, and what the body itself has attached by its next `yield` is put back with the next step. Only the OpenTelemetry
context is handled so: all other context variables go on as they would in a plain generator.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from contextvars import Token
from functools import partial, wraps
from types import TracebackType
from typing import Any

from opentelemetry import context as otel


class Inside:
    """A context that is attached within the block, and remembers what it has become by the end of it."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: otel.Context) -> None:
        self._context = context
        self._token: Token[otel.Context] | None = None

    def __enter__(self) -> None:
        self._token = otel.attach(self._context)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context = otel.get_current()
        if self._token is not None:
            otel.detach(self._token)


Opening = Callable[[], AbstractContextManager[Inside]]
"""Opens the context of one body, with its first step, and closes it with its last one. It attaches nothing itself."""


def wrap_generator(
    function: Callable[..., Generator[Any, Any, Any]], opening: Opening
) -> Callable[..., Generator[Any, Any, Any]]:
    """A generator function whose bodies run inside. What is sent, thrown, returned and raised passes through."""

    @wraps(function)
    def inside_generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with opening() as inside:
            body = function(*args, **kwargs)
            step: Callable[[], Any] = body.__next__
            while True:
                try:
                    with inside:
                        value = step()
                except StopIteration as stop:
                    return stop.value
                try:
                    sent = yield value
                except GeneratorExit:
                    with inside:
                        body.close()
                    raise
                except BaseException as error:
                    step = partial(body.throw, error)
                else:
                    step = partial(body.send, sent)

    return inside_generator


def wrap_async_generator(
    function: Callable[..., AsyncGenerator[Any, Any]], opening: Opening
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """The same for an async generator function."""

    @wraps(function)
    async def inside_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with opening() as inside:
            body = function(*args, **kwargs)
            step: Callable[[], Any] = body.__anext__
            while True:
                try:
                    with inside:
                        value = await step()
                except StopAsyncIteration:
                    return
                try:
                    sent = yield value
                except GeneratorExit:
                    with inside:
                        await body.aclose()
                    raise
                except BaseException as error:
                    step = partial(body.athrow, error)
                else:
                    step = partial(body.asend, sent)

    return inside_generator
