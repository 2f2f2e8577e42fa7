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
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths

_logger = logging.getLogger("otel_llm")

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
        self.start_afresh()

    def start_afresh(self) -> None:
        """At construction, and in the child of a fork."""
        self.stats = StoreStats()
        self._position: tuple[Path | None, int] = (None, 0)
        self._merged_at = 0.0
        self._is_failing = False
        """The last merge failed, which has been said."""
        self._retain_at = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether something was journalled since the last merge began."""
        return self._journal.position != self._position

    @property
    def idle_seconds(self) -> float:
        """Since this process merged."""
        return time.monotonic() - self._merged_at

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
        merged = off_main_thread(partial(merge, self._paths().database, timeout=timeout))
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
        self._position = position
        self._merged_at = time.monotonic()
        self._is_failing = False
        self.stats.last_error = None
        if self._max_age or self._max_size:
            self._retain()
        return True

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
        self.stats.merge_failures += 1
        self.stats.last_error = reason
