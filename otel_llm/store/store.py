"""One store in one process: its journal, and the thread that merges it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from otel_llm.settings import settings
from otel_llm.store import place
from otel_llm.store.file import exits
from otel_llm.store.jobs.merge_thread import MergeThread
from otel_llm.store.jobs.merger import Merger, StoreStats
from otel_llm.store.journal.record import Record
from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from otel_llm.support import faults, forks, masking

_logger = logging.getLogger("otel_llm")

_greeted: Final = threading.Lock()
"""Held from when this process has told of a new account."""
_EXIT_SECONDS: Final = 5.0
_LOOKS_EVERY: Final = 0.8
"""Seconds between two looks at what there is to merge: what is merged at once is in the database within one."""


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
        self.awaits_exports = False
        """What arrives over OTLP is noted in the journal: until the exporter is shut down, this process counts as alive."""
        self.resource: object = None
        """The `Resource` whose attributes the header of a segment has."""
        self._merger = Merger(self.journal, lambda: self.paths, configured)
        self._thread = MergeThread(
            self._merger,
            _LOOKS_EVERY if configured.flush_interval is None else configured.flush_interval,
            self._tend,
            lambda: exits.register(_close_all),
            fixed=configured.flush_interval is not None,
        )
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
    def merges_for_all(self) -> bool:
        """Whether this process has the part of merging for all who share the store."""
        return self._merger.role.is_held

    @property
    def stats(self) -> StoreStats:
        stats = self._merger.stats
        stats.records = self.journal.records
        stats.dropped = self.journal.dropped
        stats.waiting = self.journal.waiting
        stats.last_error = stats.last_error or self.journal.last_error
        return stats

    # --- in the app's thread ------------------------------------------------------------------------------------------

    def write(self, record: Record, *, start_of: int | None = None, end_of: int | None = None) -> None:
        """Journals one record and makes sure that the background thread runs."""
        self.journal.append(record, start_of=start_of, end_of=end_of)
        if self._thread.thread is None:
            self._thread.start()
            self._greet()

    def _greet(self) -> None:
        """Tells who sits at the terminal where a new account is: one line, by the first program that writes it, and never again."""
        try:
            terminal = sys.stderr
            # Whoever wants to hear no warnings of ours has said so of the logger.
            if terminal is None or not terminal.isatty() or not _logger.isEnabledFor(logging.WARNING):
                return
            is_first = [*self.journal.directory.glob("*.jsonl")] == [self.journal.segment]
            if is_first and not self.path.exists() and _greeted.acquire(blocking=False):
                terminal.write(
                    f"otel-llm: model calls are recorded in {masking.text(self.path)}; `otel-llm usage` adds them up\n"
                )
        except Exception as error:
            faults.report("say where the account is", error)

    def write_whole(self, lines: bytes, records: int) -> None:
        """Journals that many records, as lines, for who answers for them. Raises OSError where that cannot be."""
        self.journal.append_whole(lines, records)
        if self._thread.thread is None:
            self._thread.start()

    def resource_for(self, resource: Any) -> dict[str, Any] | None:
        """What a record must say about its `Resource`: None where the segment's header says it already."""
        if resource is self.resource:
            return None
        attributes = resource.attributes
        if self.journal.segment is None:
            self.resource = resource
            self.journal.resource = attributes
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
            return self._merger.leave(max(deadline - time.monotonic(), 0.0)) and written
        return self._merger.merge(max(deadline - time.monotonic(), 0.0)) and written

    def write_out(self) -> bool:
        """Ends what has been abandoned and writes what waits in memory to the journal; true where nothing is left."""
        self._prepare()
        return self.journal.sync()

    def close(self, timeout: float = _EXIT_SECONDS) -> None:
        """Stops the thread, lets go of the journal segment and merges. The store can be used again after that."""
        self._thread.stop(timeout)
        self._prepare()
        if not (_exiting and self.awaits_exports):  # else the flush after the last export closes it
            self.journal.close()
        self._merger.leave(timeout)
        self._thread.reset()

    def _tend(self) -> None:
        self._prepare()
        self.journal.tend()

    def _prepare(self) -> None:
        for hook in tuple(self.before_flush):
            try:
                hook()
            except Exception:
                _logger.warning("a hook before the flush failed", exc_info=True)

    def _after_fork(self) -> None:
        self.resource = None
        self.closed_after = None
        self._merger.start_afresh()
        self._thread.start_afresh()


_stores: dict[Path, Store] = {}
_stores_lock = threading.Lock()
_exiting = False


def flush(timeout: float = 10.0) -> bool:
    """Everything that has ended in this process is on disk and merged, in every store that it has open.

    `timeout` is in seconds, per store; false where one of them could not be merged in that time (nothing is lost then).
    """
    flushed = [store.flush(timeout) for store in list(_stores.values())]
    return all(flushed)


def opened() -> list[Store]:
    """The stores that this process has open: those that it keeps its account in."""
    return list(_stores.values())


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
