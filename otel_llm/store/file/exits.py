"""What is done at the end of the process, before DuckDB interrupts whatever query still runs.

DuckDB does that in an `atexit` hook of its own, and those run in the reverse order of their registration. So ours is registered
when there is something to do, for what the app does at its own end, and once more when DuckDB is there.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable

_hook: Callable[[], None] | None = None
_after_duckdb = False


def register(hook: Callable[[], None]) -> None:
    """Has `hook` called at the end, before DuckDB's own is and again when nearly all of the app's are; once for each process."""
    global _hook
    if _hook is None:
        _hook = hook
        atexit.register(_run)


def duckdb_is_imported() -> None:
    """Tells that DuckDB has registered its hook. Whoever opens an instance calls it before the first query."""
    global _after_duckdb
    if not _after_duckdb:
        _after_duckdb = True
        atexit.register(_run)


def _run() -> None:
    if _hook is not None:
        _hook()
