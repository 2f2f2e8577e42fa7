"""Catching what is logged, to make it part of another message."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Keep(logging.Handler):
    def __init__(self, beyond: logging.Logger | None) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._beyond = beyond
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            if record.levelno >= logging.WARNING:
                self.messages.append(record.getMessage())
        elif self._beyond is not None:
            self._beyond.callHandlers(record)


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """The warnings and errors that the logger `name` is told in here, as they come. They are kept off stderr.

    What other threads tell it goes where it would.
    """
    logger = logging.getLogger(name)
    propagate = logger.propagate
    keep = _Keep(logger.parent if propagate else None)
    logger.addHandler(keep)
    logger.propagate = False
    try:
        yield keep.messages
    finally:
        logger.removeHandler(keep)
        logger.propagate = propagate
