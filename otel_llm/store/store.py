"""One store in one process: its journal, and the background thread that merges it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from otel_llm.settings import settings
from otel_llm.store import place
from otel_llm.store.errors import StoreBusy, StoreError
from otel_llm.store.file import exits
from otel_llm.store.file.interrupts import aside, was_interrupted
from otel_llm.store.journal.record import Record
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from otel_llm.support import forks, importing

_logger = logging.getLogger("otel_llm")

_EXIT_SECONDS: Final = 5.0
_ORPHAN_CHECK_SECONDS: Final = 10.0
"""How often a process with nothing of its own to merge looks for what others left behind."""
_RETENTION_SECONDS: Final = 60.0
"""How often a process asks the store whether a round of retention is due."""


@dataclass(slots=True)
class StoreStats:
    """Counters of this process, for `doctor` and for tests."""

    records: int = 0
    """Journal records taken."""
    dropped: int = 0
    """Ended calls that could not be kept."""
    waiting: int = 0
    """Ended calls that are in memory because the journal cannot be written."""
    merges: int = 0
    postponed: int = 0
    """Merges that were put off because another process had the database."""
    merge_failures: int = 0
    corrupt: int = 0
    """Damaged journal lines that this process put aside."""
    last_error: str | None = None


class Store:
    """The store at one path, in this process. Get it with `Store.open`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        configured = settings()
        self._asked = path
        self.requested = StorePaths.of(path)
        """Where the account was asked for; `paths` is where this user can keep it (see `place`)."""
        self.paths = self._find_place()
        self.journal = Journal(
            self.paths.journal,
            segment_size=configured.segment_size,
            segment_age=configured.segment_age,
            fsync=configured.fsync,
        )
        self.journal.elsewhere = self._move
        self.before_flush: list[Callable[[], None]] = []
        """Called before every merge, on the background thread and in `flush`: to end what has been abandoned."""
        self._flush_interval = configured.flush_interval
        self._max_age, self._max_size = configured.retention, configured.max_size
        self._resource: object = None
        self._stats = StoreStats()
        self._start_afresh()

    def _start_afresh(self) -> None:
        """At construction, and in the child of a fork, where no thread of the parent runs."""
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()
        self._stopping = threading.Event()
        self._merged_position: tuple[Path | None, int] = (None, 0)
        self._merged_at = 0.0
        self._is_failing = False
        """The last merge failed, which has been said."""
        self._retain_at = 0.0
        self.closed_after: int | None = None
        """The number of records at which the end of the process closed it."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """The store at `path`: one object per process and absolute path. Creates nothing on disk yet."""
        paths = StorePaths.of(path)
        with _stores_lock:
            store = _stores.get(paths.database)
            if store is None:
                store = _stores[paths.database] = cls(path)
            return store

    def _find_place(self) -> StorePaths:
        found = place.of(self._asked)
        if found.because is not None and found.paths != self.requested:
            _logger.warning(
                "%s: the account of this process is kept in %s instead", found.because, found.paths.database
            )
        return found.paths

    def _move(self) -> Path | None:
        """What this user could do where the account was asked for is no longer so. Returns another journal, if there is one."""
        before, self.paths = self.paths, self._find_place()
        return None if self.paths == before else self.paths.journal

    @property
    def path(self) -> Path:
        return self.paths.database

    @property
    def stats(self) -> StoreStats:
        stats = self._stats
        stats.records = self.journal.records
        stats.dropped = self.journal.dropped
        stats.waiting = self.journal.waiting
        stats.last_error = stats.last_error or self.journal.last_error
        return stats

    # --- in the app's thread ------------------------------------------------------------------------------------------

    def write(self, record: Record, *, start_of: int | None = None, end_of: int | None = None) -> None:
        """Journals one record and makes sure that the background thread runs."""
        self.journal.append(record, start_of=start_of, end_of=end_of)
        if self._thread is None:
            self._start_thread()

    def set_resource(self, attributes: Mapping[str, Any]) -> None:
        """The resource that segments begun from now on name in their header."""
        self.journal.resource = attributes

    def resource_for(self, resource: Any) -> dict[str, Any] | None:
        """What a record must say about its `Resource`: None where the segment's header says it already."""
        if resource is self._resource:
            return None
        attributes = resource.attributes
        if self.journal.segment is None:
            self._resource = resource
            self.set_resource(attributes)
            return None
        return dict(attributes)

    # --- merging ------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float = 10.0) -> bool:
        """Puts everything that has ended on disk and merges it. `timeout` is in seconds; true where it is all done."""
        deadline = time.monotonic() + timeout
        written = self.write_out()
        if _exiting:
            # Whoever flushes after us, as a tracer provider's own exit does, is the last to: leave nothing behind.
            self.journal.close()
            self.journal.log_lost()
        return self._merge(max(deadline - time.monotonic(), 0.0)) and written

    def write_out(self) -> bool:
        """Ends what has been abandoned and writes what waits in memory to the journal; true where nothing is left."""
        self._prepare()
        return self.journal.sync()

    def close(self, timeout: float = _EXIT_SECONDS) -> None:
        """Stops the thread, lets go of the journal segment and merges. The store can be used again after that."""
        self._stopping.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(timeout)
        self._prepare()
        self.journal.close()
        self._merge(timeout)
        with self._thread_lock:
            self._thread = None
            self._stopping = threading.Event()

    def _prepare(self) -> None:
        for hook in tuple(self.before_flush):
            try:
                hook()
            except Exception:
                _logger.warning("a hook before the flush failed", exc_info=True)

    def _merge(self, timeout: float) -> bool:
        position = self.journal.position
        merged = aside(partial(merge, self.paths.database, timeout=timeout))
        try:
            result = merged()
        except StoreError as error:
            self._failed(str(error))
            return False
        except (Exception, SystemExit) as error:  # a library may exit as it is imported
            if was_interrupted(error):  # at the exit, where there is no other thread to do it
                self._stats.postponed += 1
                return False
            self._failed(f"{type(error).__name__}: {error}")
            _logger.debug("merging %s failed", self.paths.database, exc_info=True)
            return False
        self._stats.corrupt += result.corrupt
        if not result.complete:
            self._stats.postponed += 1
            self._stats.last_error = result.reason
            return False
        self._stats.merges += 1
        self._merged_position = position
        self._merged_at = time.monotonic()
        self._is_failing = False
        self._stats.last_error = None
        if self._max_age or self._max_size:
            self._retain()
        return True

    def _retain(self) -> None:
        """Removes what is too old or too much, now and then and a little at a time."""
        from otel_llm.store.jobs import retention

        if time.monotonic() < self._retain_at:
            return
        self._retain_at = time.monotonic() + _RETENTION_SECONDS
        kept = aside(partial(retention.keep, self.paths, retention.Policy(self._max_age, self._max_size)))
        try:
            removed = kept()
            if removed is not None and not removed.complete:
                self._retain_at = 0.0
        except StoreBusy:
            self._retain_at = 0.0
        except Exception as error:
            self._stats.last_error = f"cannot remove old data: {error}"
            _logger.warning("cannot remove old data from %s: %s", self.paths.database, error)

    def _failed(self, reason: str) -> None:
        if not self._is_failing:  # the next attempt may fail elsewhere for the same reason, and say so in other words
            _logger.warning("%s; calls stay in the journal %s until it works again", reason, self.paths.journal)
        self._is_failing = True
        self._stats.merge_failures += 1
        self._stats.last_error = reason

    # --- the background thread ----------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        lock = self._thread_lock  # a fork replaces it, and under gevent this may go on in the child
        if not lock.acquire(blocking=False):
            return  # another thread is at it, or this is a signal handler inside it
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, args=(self._stopping,), name="otel-llm-store", daemon=True)
                self._thread = thread
                thread.start()
                exits.register(_close_all)
        except RuntimeError:
            pass  # the interpreter is shutting down: the journal has the record, and a reader takes it in
        finally:
            lock.release()

    @importing.whole()
    def _run(self, stopping: threading.Event) -> None:
        wait = self._flush_interval
        while not stopping.wait(wait):
            try:
                wait = self._tick()
            except (Exception, SystemExit) as error:
                wait = self._flush_interval
                self._failed(f"{type(error).__name__}: {error}")
                _logger.debug("the background thread failed", exc_info=True)

    def _tick(self) -> float:
        """Merges if it is time; returns the seconds until it is again."""
        self._prepare()
        self.journal.tend()
        idle = self.journal.position == self._merged_position
        if idle and time.monotonic() - self._merged_at < _ORPHAN_CHECK_SECONDS:
            return self._flush_interval
        wait = self._flush_interval - self._merge_age()
        if wait > self._flush_interval / 10:
            return wait
        # Whoever holds the lock merges our records too; the next tick sees whether anything is left.
        self._merge(0.05)
        return self._flush_interval

    def _merge_age(self) -> float:
        """Seconds since the last merge, by whatever process; at least an interval where that is not known.

        However many processes share a store, it is merged once in an interval: most of what a merge costs does not depend on how
        much it takes in.
        """
        try:
            age = time.time() - self.paths.merged.stat().st_mtime
        except OSError:
            return self._flush_interval
        return age if age >= 0 else self._flush_interval

    def _after_fork(self) -> None:
        self._start_afresh()
        self._resource = None
        self._stats = StoreStats()


_stores: dict[Path, Store] = {}
_stores_lock = threading.Lock()
_exiting = False


def flush(timeout: float = 10.0) -> bool:
    """Everything that has ended in this process is on disk and merged, in every store that it has open.

    `timeout` is in seconds, per store; false where one of them could not be merged in that time (nothing is lost then).
    """
    flushed = [store.flush(timeout) for store in list(_stores.values())]
    return all(flushed)


def find(paths: StorePaths) -> Store | None:
    """The store of this process at `paths`, if it has one open."""
    return next((store for store in list(_stores.values()) if paths in (store.requested, store.paths)), None)


def _close_all() -> None:
    global _exiting
    _exiting = True
    for store in list(_stores.values()):
        if store.closed_after == store.journal.records:
            continue  # nothing has come since it was closed by an earlier hook
        try:
            store.close()
            store.closed_after = store.journal.records
            store.journal.log_lost()
        except Exception:
            _logger.debug("closing %s failed", store.path, exc_info=True)


def _after_fork_in_child() -> None:
    global _stores_lock
    _stores_lock = threading.Lock()
    for store in _stores.values():
        store._after_fork()


forks.register(forks.Turn.STORES, after_in_child=_after_fork_in_child)
