"""The background thread of a store: it tends the journal and, where this process has that role, merges it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from otel_llm.store.jobs.merge_rhythm import MergeRhythm
from otel_llm.store.jobs.merger import Merger
from otel_llm.support import importing

_logger = logging.getLogger("otel_llm")

_PATIENCE: Final = 0.05
_IDLE_SECONDS: Final = 30.0
"""After so long without a merge DuckDB's instance is closed: it takes 25 MB, and the next merge 30 ms more."""


class MergeThread:
    """Starts with the first record. `tend` is called before each look, `started` when the thread runs."""

    def __init__(
        self,
        merger: Merger,
        interval: float,
        tend: Callable[[], None],
        started: Callable[[], object],
        *,
        fixed: bool = False,
    ) -> None:
        self._merger = merger
        self._interval = interval
        self._rhythm = MergeRhythm(interval, fixed=fixed)
        self._tend = tend
        self._started = started
        self.start_afresh()

    def start_afresh(self) -> None:
        """At construction, and in the child of a fork, where no thread of the parent runs."""
        self.thread: threading.Thread | None = None
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        lock = self._lock  # a fork replaces it, and under gevent this may go on in the child
        if not lock.acquire(blocking=False):
            return  # another thread is at it, or this is a signal handler inside it
        try:
            if self.thread is None:
                thread = threading.Thread(target=self._run, args=(self.stopping,), name="otel-llm-store", daemon=True)
                self.thread = thread
                thread.start()
                self._started()
        except RuntimeError:
            pass  # the interpreter is shutting down: the journal has the record, and a reader takes it in
        finally:
            lock.release()

    def stop(self, timeout: float) -> None:
        """Waits for its end; no other is started before `reset`."""
        self.stopping.set()
        thread = self.thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(timeout)

    def reset(self) -> None:
        """The next record starts another thread."""
        with self._lock:
            self.thread = None
            self.stopping = threading.Event()

    @importing.whole()
    def _run(self, stopping: threading.Event) -> None:
        wait = self._interval
        while not stopping.wait(wait):
            try:
                wait = self._tick()
            except (Exception, SystemExit) as error:
                wait = self._interval
                self._merger.failed(f"{type(error).__name__}: {error}")
                _logger.debug("the background thread failed", exc_info=True)

    def _tick(self) -> float:
        """Merges if it is time and this process's turn; returns the seconds until the next look."""
        self._tend()
        merger = self._merger
        if merger.has_role():
            waiting = merger.waiting()
            if not waiting:
                if merger.age(0.0) >= _IDLE_SECONDS:
                    merger.rest()
                return self._interval
            wait = self._rhythm.wait(time.monotonic(), waiting, merger.age(math.inf))
            if wait > self._interval / 10:
                return min(wait, self._interval)
        elif not merger.is_behind or not merger.is_neglected():
            return self._interval
        # Whoever holds the lock merges our records too; the next look sees whether anything is left.
        merger.merge(_PATIENCE)
        self._rhythm.merged(time.monotonic(), merger.cost)
        return self._interval
