"""Sending what is missing at an OTLP endpoint: what processes that are gone were to send, and never noted to have arrived."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from otel_llm.store.errors import StoreBusy, StoreError
from otel_llm.store.jobs import exclusive, replaying
from otel_llm.store.jobs.replaying import Outcome, Selection
from otel_llm.store.journal import locks, segments
from otel_llm.store.paths import StorePaths
from otel_llm.support import files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def send(
    paths: StorePaths,
    target: replaying.ReplayTarget,
    selection: Selection,
    progress: Callable[[int, int], None] = lambda sent, of: None,
    timeout: float = exclusive.PATIENCE,
) -> Outcome:
    """Sends what of the selection is missing at the target. One process at a time: others wait for `timeout` seconds.

    Raises as `replaying.replay` does.
    """
    with ExitStack() as stack:
        try:
            files.make_own_dir(paths.journal)
            stack.enter_context(locks.exclusive(paths.sending, time.monotonic() + timeout))
        except TimeoutError as error:
            raise StoreBusy("what is missing is being sent by another process") from error
        except OSError as error:
            raise StoreError(f"cannot use the store {paths.database}: {error}") from error
        ended = _ended(paths, target)
        # `replay` merges once more: only now is all there that those who have ended had to say.
        return replaying.replay(paths, target, replace(selection, pending_of=ended), progress) if ended else Outcome()


def known(connection: DuckDBPyConnection, paths: StorePaths) -> dict[str, int]:
    """How many spans are missing at which endpoint, as far as is merged. Raises OSError."""
    import duckdb

    try:
        rows = connection.execute(
            """SELECT endpoint, writer, count(*) FROM pending_exports SEMI JOIN spans USING (trace_id, span_id)
            GROUP BY ALL ORDER BY ALL"""
        ).fetchall()
    except duckdb.CatalogException:  # a store of an earlier version, which noted nothing
        return {}
    living = _living(paths.journal)
    found: Counter[str] = Counter()
    for endpoint, writer, spans in rows:
        if writer not in living:
            found[endpoint] += spans
    return found


def _ended(paths: StorePaths, target: replaying.ReplayTarget) -> set[str]:
    """The writers of journals that have left something pending and are gone."""
    exclusive.brought_up_to_date(paths)
    query = "SELECT DISTINCT writer FROM pending_exports WHERE endpoint = ?"
    with exclusive.alone(paths) as connection:
        writers = {writer for (writer,) in connection.execute(query, [target.name]).fetchall()}
    return writers - _living(paths.journal) if writers else writers


def _living(journal: Path) -> set[str]:
    latest = {segment.writer: segment for segment in segments.list_segments(journal)}
    held = {writer for writer, segment in latest.items() if _is_live(segment)}
    # One that went on to its next segment between the two looks has let go of the one that we saw.
    return held | {
        segment.writer for segment in segments.list_segments(journal) if segment > latest.get(segment.writer, segment)
    }


def _is_live(segment: segments.Segment) -> bool:
    try:
        return segments.is_live(segment)
    except PermissionError:  # another user's: it is his to know
        return True
