"""The background thread of a store: it tends the journal and merges it, once in an interval."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from otel_llm.store.jobs.merger import Merger
from otel_llm.support import importing

_logger = logging.getLogger("otel_llm")

_ORPHAN_CHECK_SECONDS: Final = 10.0
"""How often a process with nothing of its own to merge looks for what others left behind."""
_PATIENCE: Final = 0.05


class MergeThread:
    """Starts with the first record. `tend` is called before each look, `started` when the thread runs."""

    def __init__(
        self, merger: Merger, interval: float, tend: Callable[[], None], started: Callable[[], object]
    ) -> None:
        self._merger = merger
        self._interval = interval
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
        """Merges if it is time; returns the seconds until it is again."""
        self._tend()
        if not self._merger.is_behind and self._merger.idle_seconds < _ORPHAN_CHECK_SECONDS:
            return self._interval
        wait = self._interval - self._merger.age(self._interval)
        if wait > self._interval / 10:
            return wait
        # Whoever holds the lock merges our records too; the next tick sees whether anything is left.
        self._merger.merge(_PATIENCE)
        return self._interval
