"""Calls that have ended and are in memory only, because the file system refuses them, and what the log is told of that."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Final

_logger = logging.getLogger("otel_llm")

MAX_BYTES: Final = 16 * 2**20
"""Of lines that are kept in memory; the oldest are dropped beyond that."""


class UnwrittenLines:
    """Lines of ended calls, oldest first."""

    def __init__(self) -> None:
        self.dropped = 0
        self.last_error: str | None = None
        self.lines: deque[bytes] = deque()
        self._size = 0
        self._has_warned = False
        self._lost_logged = 0  # of those lost, how many the log has told of

    def add(self, line: bytes) -> None:
        self.lines.append(line)
        self._size += len(line)
        while self._size > MAX_BYTES:
            self._size -= len(self.lines.popleft())
            self.dropped += 1

    def remove_first(self) -> None:
        """It is written."""
        self._size -= len(self.lines.popleft())

    def failed(self, error: OSError, directory: Path) -> None:
        """Says so, once until it works again."""
        self.last_error = str(error)
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "the journal %s cannot be written (%s); calls are kept in memory, up to %d MB. "
                "Free space there or make it writable, or set OTEL_LLM_STORE to another path",
                directory,
                error,
                MAX_BYTES >> 20,
            )

    def recovered(self, directory: Path) -> None:
        """Everything is written. Says so where it was said that it cannot be."""
        if self._has_warned:
            self._has_warned = False
            lost = self._newly_lost(self.dropped)
            _logger.warning(
                "the journal %s can be written again; %s",
                directory,
                f"{lost} calls did not fit in memory and are lost" if lost else "nothing is lost",
            )

    def log_lost(self, directory: Path) -> None:
        """At the end of the process: says how many calls go with it."""
        lost = self._newly_lost(self.dropped + len(self.lines))
        if lost:
            _logger.error(
                "%d calls that had ended are lost: the journal %s could not be written (%s)",
                lost,
                directory,
                self.last_error,
            )

    def _newly_lost(self, lost: int) -> int:
        """How many of `lost` calls the log has not told of yet; it is about to."""
        logged, self._lost_logged = self._lost_logged, max(lost, self._lost_logged)
        return self._lost_logged - logged
