"""What must not be under way in this process at the moment of a fork.

A DuckDB instance that is open: the child would get the parent's, silently, and its commits would vanish. So whoever opens the
store does it under `mutex`, and a fork waits for that. (Connections that the app itself holds open are its own business.)

And a file that is half open: the child must know every descriptor that it inherits, for each keeps its lock alive. So whoever
opens one does it under `mutex` or under a lock named by `short_locks`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

FORK_SECONDS = 5.0
"""How long a fork waits for a merge of this process to end."""
_SHORT_SECONDS: Final = 1.0


mutex = threading.RLock()

short_locks: list[Callable[[], Iterable[threading.RLock]]] = []
"""Further locks that a fork takes, after the mutex: nobody who has one of them waits for the mutex."""

_taken: Any = threading.local()


def _before_fork() -> None:
    taken = _taken.locks = []
    if mutex.acquire(timeout=FORK_SECONDS):
        taken.append(mutex)
    for locks in short_locks:
        for lock in locks():
            if lock.acquire(timeout=_SHORT_SECONDS):
                taken.append(lock)


def _after_fork_in_parent() -> None:
    taken = getattr(_taken, "locks", [])
    while taken:
        taken.pop().release()


def _after_fork_in_child() -> None:
    global mutex
    mutex = threading.RLock()
    _taken.locks = []


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
