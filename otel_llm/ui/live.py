"""Server-sent events: that calls have begun or ended, so that open pages ask for what is new.

One thread looks at the journals while somebody watches, however many tabs that are. What is sent is a hint and has no content: a
browser that is slow, or misses some, has missed nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

_logger = logging.getLogger("otel_llm")

_INTERVAL: Final = 0.1
"""Seconds between two looks at the journals."""
_BEAT: Final = 15.0
"""Seconds after which something is sent where nothing happens, so that a connection that is gone is noticed."""
_MOST: Final = 200
_MOST_REMEMBERED: Final = 20_000
_Row = TypeVar("_Row")


class Arrivals:
    """Calls by the order in which they were seen here first. Who has a number has seen what is numbered up to it.

    Not by their times: a call that took long ended after those that began after it, and another machine has another clock.
    """

    def __init__(self) -> None:
        self._newest = time.time_ns()  # so that what a page has from before a restart is below
        self._numbers: OrderedDict[Hashable, int] = OrderedDict()
        self._mutex = threading.Lock()

    def after(self, number: int | None, look: Callable[[], Mapping[Hashable, _Row]]) -> tuple[list[_Row], int]:
        """Of the calls that a look at the store finds, by what tells them apart, those that came after that number; and the number
        to ask with next time."""
        before = self._newest
        seen = look()
        with self._mutex:
            # What others have seen while this look was made, it may have missed: it is asked for again, and may come twice.
            alone = self._newest == before
            for call in seen:
                if call not in self._numbers:
                    self._newest += 1
                    self._numbers[call] = self._newest
            came = [row for call, row in seen.items() if number is not None and self._numbers[call] > number]
            while len(self._numbers) > _MOST_REMEMBERED:
                self._numbers.popitem(last=False)
            return came, self._newest if alone else before


class Follower(Protocol):
    """Who knows what has begun and ended since he was asked last."""

    def poll(self) -> list[dict[str, Any]]: ...


class Live:
    """The stream of hints, for any number of browsers."""

    def __init__(self, follow: Callable[[], AbstractContextManager[Follower]], on_news: Callable[[], None]) -> None:
        """`on_news` is called before anybody is told."""
        self._follow = follow
        self._on_news = on_news
        self._watching: set[_Watcher] = set()
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    async def stream(self, request: Request) -> Response:
        """The endpoint."""
        if len(self._watching) >= _MOST:
            return Response("Too many pages are open.\n", 503)
        return StreamingResponse(self._events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    def close(self) -> None:
        """Ends all streams."""
        self._stopped.set()
        with self._mutex:
            watching = list(self._watching)
        for watcher in watching:
            watcher.tell()

    async def _events(self) -> AsyncIterator[str]:
        watcher = _Watcher(asyncio.get_running_loop())
        self._begin(watcher)
        try:
            yield "retry: 2000\n\nevent: hello\ndata: \n\n"
            while not self._stopped.is_set():
                try:
                    await asyncio.wait_for(watcher.news.wait(), _BEAT)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                watcher.news.clear()
                if not self._stopped.is_set():
                    yield "event: calls\ndata: \n\n"
        finally:
            with self._mutex:
                self._watching.discard(watcher)

    def _begin(self, watcher: _Watcher) -> None:
        with self._mutex:
            self._watching.add(watcher)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="otel-llm-ui-live", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        try:
            with self._follow() as follower:
                while True:
                    with self._mutex:
                        watching = list(self._watching)
                        if self._stopped.is_set() or not watching:
                            self._thread = None
                            return
                    if follower.poll():
                        self._on_news()
                        for watcher in watching:
                            watcher.tell()
                    self._stopped.wait(_INTERVAL)
        except OSError as error:
            _logger.warning("otel-llm: the page does not follow what happens: %s", error)
            with self._mutex:
                self._thread = None


class _Watcher:
    """One browser: something is new, or nothing; how much does not pile up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.news = asyncio.Event()

    def tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self.news.set)
        except RuntimeError:  # the loop has ended
            pass
