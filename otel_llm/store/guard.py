"""Forks and DuckDB: none may be open in this process at the moment of a fork.

The child would get the parent's instance, silently, and its commits would vanish. So whoever opens the store does it under
`mutex`, and a fork waits for that. Reads by connections that the app holds open are the app's own business.
"""

from __future__ import annotations

import os
import threading
from typing import Final

FORK_SECONDS: Final = 5.0
"""How long a fork waits for a merge of this process to end."""

mutex = threading.RLock()

_holds = threading.local()


def _before_fork() -> None:
    _holds.taken = mutex.acquire(timeout=FORK_SECONDS)


def _after_fork_in_parent() -> None:
    if getattr(_holds, "taken", False):
        _holds.taken = False
        mutex.release()


def _after_fork_in_child() -> None:
    global mutex
    mutex = threading.RLock()
    _holds.taken = False


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
