"""Spans that the app dropped before they had ended: they are ended later, on another stack, by the process that began them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from otel_llm.support import forks

_abandoned: deque[Callable[[], None]] = deque()


def later(finish: Callable[[], None]) -> None:
    """Has `finish_abandoned` call this, so that a finalizer need not end a span itself."""
    _abandoned.append(finish)


def finish_abandoned() -> None:
    """Ends what was dropped unfinished. The store's background thread, the next call and `flush()` do this."""
    while _abandoned:
        try:
            finish = _abandoned.popleft()
        except IndexError:  # another thread was quicker
            return
        finish()


_process = object()
"""Stands for this process; another after a fork."""


def process() -> object:
    """Stands for this process. A forked child, which gets another, leaves its parent's spans for the parent to end."""
    return _process


def _after_fork_in_child() -> None:
    global _process
    _process = object()
    _abandoned.clear()


forks.register(forks.Turn.CALLS, after_in_child=_after_fork_in_child)
