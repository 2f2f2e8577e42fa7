"""A fork waits for two things that must not be under way in it.

One is an open DuckDB instance: the child would get the parent's, silently, and its commits would vanish. So whoever opens the
store does it under `mutex`. (Connections that the app itself holds open are its own business.)

The other is a file that is half open: the child must know every descriptor that it inherits, for each keeps its lock alive. So
whoever opens one does it under `mutex`, or under a lock of its own that a fork takes as well, after the mutex: nobody who has one
of those waits for the mutex.
"""

from __future__ import annotations

import threading

from otel_llm.support import forks

FORK_SECONDS = 5.0
"""How long a fork waits for a merge of this process to end."""

mutex = threading.RLock()


def _replace_mutex() -> None:
    global mutex
    mutex = threading.RLock()


forks.hold(forks.Turn.STORE_MUTEX, lambda: [(mutex, FORK_SECONDS)], after_in_child=_replace_mutex)
