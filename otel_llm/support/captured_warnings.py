"""Catching what is logged, to make it part of another message."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """The warnings and errors that the logger `name` is told in here, as they come. They are kept off stderr."""
    logger = logging.getLogger(name)
    keep, propagate = _Keep(), logger.propagate
    logger.addHandler(keep)
    logger.propagate = False
    try:
        yield keep.messages
    finally:
        logger.removeHandler(keep)
        logger.propagate = propagate
