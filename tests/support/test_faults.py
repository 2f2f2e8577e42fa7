"""Which exceptions of an app's own function end with us: those it raises itself, not those that pass through it."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_llm import subscribe
from otel_llm.content import redaction
from otel_llm.lifecycle.event import Event
from otel_llm.lifecycle.hub import hub
from otel_llm.middleware import LLMContextWSGIMiddleware
from otel_llm.support import faults

MESSAGE = {"role": "user", "parts": []}


class Stop(BaseException):
    """An app's own, such as pytest's or gevent's."""


def leave(*_: Any) -> Any:
    sys.exit(3)


def leave_by_raising(*_: Any) -> Any:
    raise SystemExit


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def stop(*_: Any) -> Any:
    raise Stop


def recurse(*_: Any) -> Any:
    return deeper(0)


def deeper(level: int) -> Any:
    """By exact arguments: CPython 3.13.0 does not count how deep a call of a function with `*_` goes, and never ends."""
    return deeper(level + 1)


OWN = [leave, leave_by_raising, interrupt, stop, recurse]


def wait_for_signal(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGUSR1)
    while True:  # until the handler raises
        pass


class Handler:
    def __call__(self, number: int, frame: Any) -> None:
        sys.exit(4)

    def method(self, number: int, frame: Any) -> None:
        raise TimeoutError("too long")


HANDLERS: list[tuple[Any, type[BaseException]]] = [
    (signal.default_int_handler, KeyboardInterrupt),
    (lambda number, frame: sys.exit(4), SystemExit),
    (Handler(), SystemExit),
    (Handler().method, TimeoutError),
    (functools.partial(lambda one, number, frame: stop(), 1), Stop),
]


@pytest.fixture(params=HANDLERS, ids=["default", "function", "object", "method", "partial"])
def handler(request: pytest.FixtureRequest) -> Iterator[type[BaseException]]:
    """A signal handler is set; its exception is the app's."""
    function, raised = request.param
    before = signal.signal(signal.SIGUSR1, function)
    yield raised
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("function", OWN)
def test_a_redactor_that_ends_the_program_ends_nothing(function: Callable[..., Any]) -> None:
    with pytest.raises(redaction.RedactionFailed):
        redaction.redact(function, MESSAGE)


def test_what_a_signal_handler_raises_in_a_redactor_reaches_the_app(handler: type[BaseException]) -> None:
    with pytest.raises(handler):
        redaction.redact(wait_for_signal, MESSAGE)


def test_an_exception_that_is_set_from_outside_reaches_the_app() -> None:
    import ctypes

    def redactor(message: Any) -> Any:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Stop))
        while True:
            pass

    with pytest.raises(Stop):
        redaction.redact(redactor, MESSAGE)


def serve(function: Callable[..., Any]) -> list[bytes]:
    app = LLMContextWSGIMiddleware(lambda environ, start: [b"served"], user_id=function)
    return list(app({}, lambda *_: None))


@pytest.mark.parametrize("function", OWN)
def test_a_function_of_a_middleware_ends_no_request(function: Callable[..., Any]) -> None:
    assert serve(function) == [b"served"]


def test_what_a_signal_handler_raises_in_a_middleware_reaches_the_app(handler: type[BaseException]) -> None:
    with pytest.raises(handler):
        serve(wait_for_signal)


@pytest.mark.parametrize("function", OWN)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
def test_a_subscriber_ends_nothing_and_gets_the_next_event(function: Callable[..., Any], is_async: bool) -> None:
    got: list[Event] = []

    def handle(event: Event) -> None:
        got.append(event)
        if len(got) == 1:
            function()

    async def handle_async(event: Event) -> None:
        handle(event)

    async def app() -> None:
        event = Event.__new__(Event)
        async with subscribe(handle_async if is_async else handle):
            for subscriber in hub.subscribers:
                subscriber.put(event)
                subscriber.put(event)

    asyncio.run(app())
    assert len(got) == 2


def test_a_cancelled_subscriber_is_cancelled() -> None:
    async def app() -> None:
        started = asyncio.Event()

        async def handle(event: Event) -> None:
            started.set()
            await asyncio.Event().wait()

        subscription = subscribe(handle)
        hub.subscribers[0].put(Event.__new__(Event))
        await started.wait()
        task = subscription._task
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(app())


def test_an_error_that_cannot_be_told_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Untold(Exception):
        def __str__(self) -> str:
            raise ValueError

    faults.report("do a thing of this test", Untold())
    assert "(Untold)" in caplog.text
