"""Putting what one process has journalled into the database, and what is said where that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from otel_llm.settings import Settings
from otel_llm.store.errors import StoreBusy, StoreError
from otel_llm.store.file.interrupts import off_main_thread, was_interrupted
from otel_llm.store.jobs.merge_role import MergeRole
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import ingest
from otel_llm.store.paths import StorePaths
from otel_llm.support import fork_guard
from otel_llm.support.system import memory

_logger = logging.getLogger("otel_llm")

_ORPHAN_CHECK_SECONDS: Final = 10.0
"""How often whoever merges looks for what the dead have left behind: each journal's lock is tried for that."""
_NEGLECTED_SECONDS: Final = 30.0
"""After so long a process does not wait any more for the one that has the role: that may be stopped, or have its reasons."""
_RETENTION_SECONDS: Final = 60.0
"""How often a process asks the store whether a round of retention is due."""


@dataclass(slots=True)
class StoreStats:
    """Counters of this process."""

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


class Merger:
    """Merges the store that is at `paths()`, for whom `journal` is this process's own."""

    def __init__(self, journal: Journal, paths: Callable[[], StorePaths], configured: Settings) -> None:
        self._journal = journal
        self._paths = paths
        self._max_age, self._max_size = configured.retention, configured.max_size
        self.role = MergeRole(paths)
        self.start_afresh()

    def start_afresh(self) -> None:
        """At construction, and in the child of a fork."""
        self.stats = StoreStats()
        self._position: tuple[Path | None, int] = (None, 0)
        self._looked_at = 0.0
        self.cost = 0.0
        """Seconds of a processor that the last merge took."""
        self._rested_after = 0
        self._is_failing = False
        """The last merge failed, which has been said."""
        self._retain_at = 0.0
        self._untaken: tuple[tuple[Path | None, int], float] | None = None
        """A position of the journal that is not known to be merged, and since when it is waited for that."""
        self.role.start_afresh()

    @property
    def is_behind(self) -> bool:
        """Whether something was journalled since the last merge of this process began."""
        return self._journal.position != self._position

    def has_role(self) -> bool:
        """Whether this process merges for all that share the store: it does if nobody else does."""
        try:
            return self.role.take()
        except OSError:
            return True  # the merge says what is wrong with the place

    def waiting(self) -> int:
        """Bytes in the journals of all processes that no merge has taken; now and then 1 for what the dead have left."""
        now = time.monotonic()
        try:
            size = ingest.waiting(self._paths())
            if not size and now - self._looked_at >= _ORPHAN_CHECK_SECONDS:
                self._looked_at = now
                return int(ingest.has_orphans(self._paths()))
            return size
        except OSError:
            return 1  # the merge says what is wrong

    def is_neglected(self) -> bool:
        """Whether whoever has the role has left out for long what this process has journalled. Raises OSError."""
        if self._untaken is None:
            self._untaken = self._journal.position, time.monotonic()
            return False
        position, since = self._untaken
        if ingest.has_taken(self._paths(), *position):
            self._position, self._untaken = position, None
            return False
        return time.monotonic() - since >= _NEGLECTED_SECONDS

    def age(self, unknown: float) -> float:
        """Seconds since the last merge, by whatever process; `unknown` where that cannot be told.

        However many processes share a store, it is merged once in an interval: most of what a merge costs does not depend on how
        much it takes in.
        """
        try:
            age = time.time() - self._paths().merged.stat().st_mtime
        except OSError:
            return unknown
        return age if age >= 0 else unknown

    def merge(self, timeout: float) -> bool:
        """Whether everything that has ended by now is in the database. Raises nothing for what fails."""
        position = self._journal.position
        merged = off_main_thread(partial(self._merge, timeout))
        try:
            result = merged()
        except StoreError as error:
            self.failed(str(error))
            return False
        except (Exception, SystemExit) as error:  # a library may exit as it is imported
            if was_interrupted(error):  # at the exit, where there is no other thread to do it
                self.stats.postponed += 1
                return False
            self.failed(f"{type(error).__name__}: {error}")
            _logger.debug("merging %s failed", self._paths().database, exc_info=True)
            return False
        self.stats.corrupt += result.corrupt
        if not result.complete:
            self.stats.postponed += 1
            self.stats.last_error = result.reason
            return False
        self.stats.merges += 1
        if self.stats.merges == 1:
            memory.give_back()  # the first one imports DuckDB, a list of prices and what both need for that
        self._position = position
        self._is_failing = False
        self.stats.last_error = None
        if self._max_age or self._max_size:
            self._retain()
        return True

    def _merge(self, timeout: float) -> ingest.MergeResult:
        began = time.thread_time()
        try:
            return ingest.merge(self._paths().database, timeout=timeout)
        finally:
            self.cost = time.thread_time() - began

    def rest(self) -> None:
        """Gives back what merges keep in memory from one to the next: there is nothing to merge for a while."""
        from otel_llm.store.merge import duckdb_instance

        if self.stats.merges != self._rested_after:
            self._rested_after = self.stats.merges
            with fork_guard.mutex:
                ingest.forget_loaded()
                duckdb_instance.discard()
            memory.give_back()

    def leave(self, timeout: float) -> bool:
        """At the end of the process: what it has journalled, and has closed, is merged here or by whoever has the role.

        Whoever leaves while another has the role needs no DuckDB for it.
        """
        if not self.role.is_held and not self.is_behind and not self._left_behind():
            return True
        if not self.has_role():
            return True
        merged = self.merge(timeout)
        self.role.give_up()
        # Somebody may have left while we had it, after our merge.
        return merged and (not self._left_behind() or self.merge(timeout))

    def _left_behind(self) -> bool:
        try:
            return ingest.has_orphans(self._paths())
        except OSError:
            return True  # the merge says what is wrong

    def _retain(self) -> None:
        """Removes what is too old or too much, now and then and a little at a time."""
        from otel_llm.store.jobs import retention

        if time.monotonic() < self._retain_at:
            return
        self._retain_at = time.monotonic() + _RETENTION_SECONDS
        kept = off_main_thread(partial(retention.keep, self._paths(), retention.Policy(self._max_age, self._max_size)))
        try:
            removed = kept()
            if removed is not None and not removed.complete:
                self._retain_at = 0.0
        except StoreBusy:
            self._retain_at = 0.0
        except Exception as error:
            self.stats.last_error = f"cannot remove old data: {error}"
            _logger.warning("cannot remove old data from %s: %s", self._paths().database, error)

    def failed(self, reason: str) -> None:
        """Says so, once until it works again: the next attempt may fail for the same reason, and say so in other words."""
        if not self._is_failing:
            _logger.warning("%s; calls stay in the journal %s until it works again", reason, self._paths().journal)
        self._is_failing = True
        self.role.give_up()  # another process may be able to
        self.stats.merge_failures += 1
        self.stats.last_error = reason
