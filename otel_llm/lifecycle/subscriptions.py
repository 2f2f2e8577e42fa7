"""Listening to events: a handler that is called for each, or an async iterator over them.

Nothing that a listener does is felt by the app: events wait in a bounded queue of the listener's own, and are handled on a thread
of its own or on its event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import queue
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import context as otel

from otel_llm.lifecycle import run_ids
from otel_llm.lifecycle.event import Event
from otel_llm.lifecycle.hub import Subscriber, hub
from otel_llm.lifecycle.scopes import Scope
from otel_llm.support import faults

_logger = logging.getLogger("otel_llm")

MAX_QUEUE_SIZE: Final = 10_000
_CLOSE_SECONDS: Final = 5.0
_EXIT_SECONDS: Final = 1.0
BEGINS_WITHIN: Final = 60.0

Handler = Callable[[Event], object] | Callable[[Event], Awaitable[object]]
Types = type[Event] | Iterable[type[Event]] | None


def subscribe(
    handler: Handler, *, types: Types = None, run: Scope | str | None = None, max_queue_size: int = MAX_QUEUE_SIZE
) -> Subscription:
    """Calls `handler` with every event from now on, until the subscription is closed.

    A handler that is a coroutine function runs on the event loop it was subscribed from; any other on a thread of its own. It gets
    one event at a time, in the order they were made. A slow one delays nobody: events wait for it, and are dropped (and counted
    in `dropped`) once too many do. One that raises is reported once in the log and gets the next event.

    Args:
        handler: takes the event; what it returns is ignored.
        types: an event class, or several; their subclasses count. Default all but `ProviderDelta`, which is told of to those alone
            who name it: `types=[Event, ProviderDelta]` is everything.
        run: only what happens in there: a `chain`, `step` or `tool`, entered or not yet; or the hex id of a span, such as
            `event.run`, or `Scope.run_id`. The subscription then closes by itself when that ends, or a chain that continues it.
        max_queue_size: events that may wait for the handler.

    Raises TypeError and ValueError for arguments that are none of these, RuntimeError for an async handler where no event loop
    runs.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a function of one event, not {handler!r}")
    wanted, target = _types(types), _target(run)
    if _is_async(handler):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "an async handler runs on the event loop it is subscribed from, and none is running here; "
                "call subscribe() inside a coroutine"
            ) from None
        subscriber: _ThreadSubscriber | _LoopSubscriber = _LoopSubscriber(wanted, target, max_queue_size, loop)
    else:
        subscriber = _ThreadSubscriber(wanted, target, max_queue_size, handler)
    hub.add(subscriber)
    return Subscription(subscriber, handler)


def events(
    run: Scope | str | None = None,
    *,
    types: Types = None,
    max_queue_size: int = MAX_QUEUE_SIZE,
    begins_within: float | None = BEGINS_WITHIN,
) -> EventStream:
    """The events from now on, as an async iterator: `async for event in events(run)`. It ends when the run does.

    Args:
        run, types, max_queue_size: as for `subscribe`. Without a `run` it ends when it is closed.
        begins_within: seconds after which it ends where the run has not begun: the chain was not entered, or nothing was heard of
            the id. None waits for ever. A chain that has ended already ends it at once.

    Raises TypeError and ValueError likewise.
    """
    if begins_within is not None and not (isinstance(begins_within, int | float) and begins_within >= 0):
        raise ValueError(f"begins_within takes a number of seconds, or None, not {begins_within!r}")
    subscriber = _LoopSubscriber(_types(types), _target(run), max_queue_size)
    if isinstance(run, Scope) and run.span_id is not None:
        subscriber.has_begun = True
    if not subscriber.has_begun and begins_within is not None:
        subscriber.begins_until = monotonic() + begins_within
    hub.add(subscriber)
    if isinstance(run, Scope) and run.is_over:
        subscriber.close()
    return EventStream(subscriber)


def _types(types: Types) -> tuple[type[Event], ...]:
    given: tuple[Any, ...] = () if types is None else (types,) if isinstance(types, type) else tuple(types)
    for one in given:
        if not (isinstance(one, type) and issubclass(one, Event)):
            raise TypeError(f"types takes event classes such as ProviderCompleted, not {one!r}")
    return given


def _target(run: Scope | str | None) -> Any:
    if isinstance(run, Scope):
        return run if run.span_id is None else int(run.span_id, 16)
    if run is None:
        return None
    if (root := run_ids.root_of(run)) is not None:
        return root
    try:
        return int(run, 16)
    except (TypeError, ValueError):
        raise ValueError(
            f"run takes a chain, a step, a tool, its run_id, or the hex id of a span such as event.run, not {run!r}"
        ) from None


def _is_async(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


class Subscription:
    """What `subscribe` returns. Closes as a context manager too, sync or async."""

    def __init__(self, subscriber: _ThreadSubscriber | _LoopSubscriber, handler: Any) -> None:
        self._subscriber = subscriber
        self._task: asyncio.Task[None] | None = None
        if isinstance(subscriber, _LoopSubscriber) and subscriber.loop is not None:
            self._task = subscriber.loop.create_task(_handle_all(subscriber, handler))
            subscriber.keep = self  # a loop holds its tasks weakly

    @property
    def dropped(self) -> int:
        """Events that the handler was too slow for."""
        return self._subscriber.dropped

    @property
    def closed(self) -> bool:
        """Whether no more events are taken."""
        return self._subscriber.closed

    def close(self, timeout: float = _CLOSE_SECONDS) -> bool:
        """Takes no more events, and waits until the handler has had those that wait, at most `timeout` seconds.

        True where it has. It does not wait for an async handler, which gets them later (`await aclose()` does), nor inside the
        handler.
        """
        self._subscriber.close()
        if self._task is not None:
            return self._task.done()
        assert isinstance(self._subscriber, _ThreadSubscriber)
        return self._subscriber.join(timeout)

    async def aclose(self) -> None:
        """Like `close`, and waits without holding up the event loop."""
        self._subscriber.close()
        if self._task is None:
            await asyncio.to_thread(self.close)
        elif self._task is not asyncio.current_task():
            await asyncio.wait([self._task])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class EventStream:
    """What `events` returns: for one reader. Dropping it closes it."""

    def __init__(self, subscriber: _LoopSubscriber) -> None:
        self._subscriber = subscriber

    @property
    def dropped(self) -> int:
        """Events that the reader was too slow for."""
        return self._subscriber.dropped

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._subscriber.next()
        if event is None:
            raise StopAsyncIteration
        return event

    def close(self) -> None:
        """Takes no more events; those that wait can still be read."""
        self._subscriber.close()

    async def aclose(self) -> None:
        """The same, for `contextlib.aclosing`."""
        self.close()

    def __del__(self) -> None:
        self._subscriber.closed = True
        hub.remove(self._subscriber)


class _ClosingSubscriber(Subscriber):
    closed = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            hub.remove(self)
            self.wake()

    def wake(self) -> None:
        """Tells whoever waits that there is nothing more to come."""
        raise NotImplementedError


class _ThreadSubscriber(_ClosingSubscriber):
    """Hands events to a handler on a thread of its own."""

    def __init__(self, types: Collection[type[Event]], run: Any, max_queue_size: int, handler: Any) -> None:
        super().__init__(types, run, max_queue_size)
        self._handler = handler
        self._start_afresh()
        self._start()
        _threads.add(self)

    def _start_afresh(self) -> None:
        # SimpleQueue: a signal handler or a finalizer may put an event while its own thread is putting one.
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def _start(self) -> None:
        lock = self._starting
        if lock.acquire(blocking=False):  # or another thread is at it
            try:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run_all, args=(self._queue,), name="otel-llm-events", daemon=True
                    )
                    self._thread.start()
            finally:
                lock.release()

    def waiting(self) -> int:
        return self._queue.qsize()

    def put(self, event: Event) -> None:
        self._queue.put(event)
        if self._thread is None:  # the child of a fork
            self._start()

    def wake(self) -> None:
        self._queue.put(None)

    def join(self, timeout: float) -> bool:
        thread = self._thread
        if thread is None:
            return True
        if thread is threading.current_thread():
            return False
        thread.join(timeout)
        return not thread.is_alive()

    def _run_all(self, events: queue.SimpleQueue[Event | None]) -> None:
        # What a handler does is no part of what was going on where it was subscribed.
        otel.attach(otel.Context())
        while (event := events.get()) is not None:
            try:
                self._handler(event)
            except BaseException as error:
                faults.note(f"tell {_name(self._handler)} of an event", error)

    def after_fork(self) -> None:
        # No thread is started in the midst of a fork: the first event does that.
        self._start_afresh()


class _LoopSubscriber(_ClosingSubscriber):
    """Keeps events for a reader on an event loop."""

    def __init__(
        self,
        types: Collection[type[Event]],
        run: Any,
        max_queue_size: int,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(types, run, max_queue_size)
        self.loop = loop
        self.keep: object = None
        self.begins_until: float | None = None
        """When it ends if nothing has begun, by the monotonic clock."""
        self._pending: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None

    def waiting(self) -> int:
        return len(self._pending)

    def put(self, event: Event) -> None:
        self._pending.append(event)
        self.wake()

    def wake(self) -> None:
        reader, self._reader = self._reader, None  # once: waking a loop costs more than an event
        if reader is not None:
            try:
                reader.get_loop().call_soon_threadsafe(_resolve, reader)
            except RuntimeError:  # the loop is closed, and nobody reads any more
                self.closed = True
                hub.remove(self)

    async def next(self) -> Event | None:
        """The next event; None where there will be none."""
        while True:
            try:
                return self._pending.popleft()
            except IndexError:
                pass
            if self.closed:
                return self._pending.popleft() if self._pending else None
            reader = self._reader = asyncio.get_running_loop().create_future()
            if not self._pending and not self.closed:  # else it came before there was a reader to wake
                await self._wait(reader)

    async def _wait(self, reader: asyncio.Future[None]) -> None:
        """Waits to be woken; no longer than for the beginning, where that is awaited."""
        if self.begins_until is None or self.has_begun:
            await reader
            return
        left = self.begins_until - monotonic()
        alarm = reader.get_loop().call_later(max(0.0, left), _resolve, reader)
        try:
            await reader
        finally:
            alarm.cancel()
        if not self.has_begun and monotonic() >= self.begins_until:
            self.close()

    def after_fork(self) -> None:
        self.closed = True
        hub.remove(self)


def _resolve(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)


async def _handle_all(subscriber: _LoopSubscriber, handler: Any) -> None:
    otel.attach(otel.Context())
    try:
        while (event := await subscriber.next()) is not None:
            try:
                await handler(event)
            except asyncio.CancelledError:  # it is this task that is to end
                raise
            except BaseException as error:
                if faults.is_passing_by(error):
                    raise
                faults.report(f"tell {_name(handler)} of an event", error)
    finally:
        subscriber.close()
        subscriber.keep = None


def _name(handler: Any) -> str:
    return str(getattr(handler, "__qualname__", type(handler).__name__))


_threads: weakref.WeakSet[_ThreadSubscriber] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Lets handlers finish what waits for them, a moment long."""
    subscribers = list(_threads)
    for subscriber in subscribers:
        subscriber.close()
    for subscriber in subscribers:
        subscriber.join(_EXIT_SECONDS)
