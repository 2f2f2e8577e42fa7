"""Server-sent events: that calls have begun or ended, so that open pages ask for what is new.

One thread looks at the journals while somebody watches, however many tabs that are. What is sent is a hint and has no content: a
browser that is slow, or misses some, has missed nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

_logger = logging.getLogger("otel_llm")

_INTERVAL: Final = 0.2
"""Seconds between two looks at the journals."""
_BEAT: Final = 15.0
"""Seconds after which something is sent where nothing happens, so that a connection that is gone is noticed."""
_MOST: Final = 200


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
