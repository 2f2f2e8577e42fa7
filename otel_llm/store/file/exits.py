"""What is done at the end of the process, before DuckDB interrupts whatever query still runs.

DuckDB does that in an `atexit` hook of its own, and those run in the reverse order of their registration. So ours is registered
when there is something to do, for what the app does at its own end, and once more when DuckDB is there.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable

_hooks: list[Callable[[], None]] = []
_after_duckdb = False


def register(hook: Callable[[], None]) -> None:
    """Has `hook` called at the end, before DuckDB's own is and again when nearly all of the app's are; the first comes first."""
    if not _hooks:
        atexit.register(_run)
    if hook not in _hooks:
        _hooks.append(hook)


def duckdb_is_imported() -> None:
    """Tells that DuckDB has registered its hook. Whoever opens an instance calls it before the first query."""
    global _after_duckdb
    if not _after_duckdb:
        _after_duckdb = True
        atexit.register(_run)


def _run() -> None:
    for hook in _hooks:
        hook()
