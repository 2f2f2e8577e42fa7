"""Reading the store: a read-only DuckDB connection that sees everything that has ended, in every process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from otel_llm.settings import settings
from otel_llm.store import place
from otel_llm.store.errors import StoreBusy, StoreError, StoreNotFound
from otel_llm.store.file import database, instances
from otel_llm.store.file.connection import StoreConnection
from otel_llm.store.file.interrupts import off_main_thread
from otel_llm.store.file.waiting import when_free
from otel_llm.store.jobs import exclusive
from otel_llm.store.journal import locks, segments
from otel_llm.store.merge import batch, ingest, rows, scores
from otel_llm.store.paths import StorePaths
from otel_llm.support import files, fork_guard, importing

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger("otel_llm")

_Result = TypeVar("_Result")

_LOCK_SECONDS: Final = 5.0
_HELD_SECONDS: Final = 0.3
"""How long to wait for a foreign reader to let go before its hold is worked around."""
_OPEN_SECONDS: Final = 5.0


@importing.whole()
def connect(path: str | os.PathLike[str] | None = None) -> StoreConnection:
    """A read-only connection to the store at `path` (default: `OTEL_LLM_STORE`).

    Each statement sees every call that has ended by then; those between `begin()` and `commit()` see one moment.

    What the journals of all processes hold is merged first. Where that cannot be now, because somebody else is merging, the
    connection shows it all the same, by temporary views over the stored rows and those still in the journal.

    Raises StoreNotFound where there is no store (if this process writes it, one without rows is made), StoreError where it
    cannot be read.
    """
    return _connect_to(path, follow=True)


@importing.whole()
def connect_to_moment(path: str | os.PathLike[str]) -> StoreConnection:
    """The same, but all its statements see this moment. Raises as `connect` does."""
    return _connect_to(path, follow=False)


@importing.whole()
def connect_to_merged(paths: StorePaths) -> StoreConnection:
    """What the last merge left, at this moment. It merges nothing and reads no journal: for who looks after each merge.

    Raises as `connect` does.
    """
    if not paths.database.exists():
        raise StoreNotFound(f"there is no store at {paths.database} yet")
    return off_main_thread(partial(_brought_up, paths, merged=True, follow=False))()


def _connect_to(path: str | os.PathLike[str] | None, *, follow: bool) -> StoreConnection:
    chosen = path if path is not None else settings().store
    if chosen is None:
        raise StoreNotFound(settings().store_note or "the account is turned off (OTEL_LLM_STORE=none)")
    own = _flush_own(chosen)
    paths = own or place.to_read(chosen, named=path is not None)
    if (reason := files.no_file_at(paths.database)) is not None:
        raise StoreError(f"{reason} that a store can be in")
    return off_main_thread(partial(_connect_now, paths, is_own=own is not None, follow=follow))()


def _connect_now(paths: StorePaths, *, is_own: bool = False, follow: bool = True) -> StoreConnection:
    if not paths.database.exists() and not (_is_ours(paths.journal) and segments.list_segments(paths.journal)):
        if not is_own:
            raise StoreNotFound(f"there is no store at {paths.database} yet")
        with exclusive.alone(paths):
            pass  # has made it
    return _brought_up(paths, merged=_merge(paths), follow=follow)


def _brought_up(paths: StorePaths, *, merged: bool, follow: bool) -> StoreConnection:
    plain, instance = _open(paths)
    view = _View(paths, instance)
    try:
        view.bring_up(plain, merged=merged)
    except BaseException:
        plain.close()
        raise
    return StoreConnection(plain, view, follows=follow)


class _View:
    """What one connection shows of the store: a moment of its database, and what the journals had more by then."""

    def __init__(self, paths: StorePaths, instance: instances.Instance) -> None:
        self._paths = paths
        self._instance = instance
        self._moment = instance.opened
        self._laid_over = False
        self._seen: tuple[int, int] | None = None
        """The version of the database; None where it is not all that had ended."""

    def for_another(self) -> _View:
        return _View(self._paths, self._instance)

    def refresh(self, plain: DuckDBPyConnection) -> None:
        _flush_own(self._paths.database)
        if self._seen is None or self._seen != _version(self._paths) or self._has_news():
            off_main_thread(partial(self._refresh_now, plain))()

    def _has_news(self) -> bool:
        return _is_ours(self._paths.journal) and ingest.has_news(self._paths)

    def _refresh_now(self, plain: DuckDBPyConnection) -> None:
        if not _in_transaction(plain):
            self.bring_up(plain, merged=_merge(self._paths))

    def bring_up(self, plain: DuckDBPyConnection, *, merged: bool) -> None:
        """Shows the database as it is, with what the journals have more where that could not be `merged`."""
        complete = merged or not _is_ours(self._paths.journal)
        while True:
            version = _version(self._paths)
            moment = _patiently(self._paths, lambda: self._instance.now(plain))
            if not complete:
                self._laid_over = True
                _overlay(plain, self._paths, moment.name)
            elif self._laid_over or moment is not self._moment:
                _show(plain, moment.name)
                self._laid_over = False
            self._moment = moment
            self._instance.let_go(plain)
            self._seen = version if complete else None
            # Somebody who merges meanwhile takes from the journal what this connection does not have in its file.
            if complete or version == _version(self._paths):
                return


def _in_transaction(plain: DuckDBPyConnection) -> bool:
    """Whether one has been begun. (To begin another would break it off.)"""
    import duckdb

    try:
        first, second = (plain.execute("SELECT txid_current()").fetchall() for _ in range(2))
    except duckdb.TransactionException:  # it has failed and waits for its end
        return True
    return bool(first == second)


def _flush_own(chosen: str | os.PathLike[str]) -> StorePaths | None:
    """What this process has in memory goes to its journal first. Returns where that is, if it writes the store."""
    from otel_llm.store.store import find

    store = find(StorePaths.of(chosen))
    if store is None:
        return None
    store.write_out()
    return store.paths


def _is_ours(journal: Path) -> bool:
    """Another user's journal is not read: what anybody may put there is no account."""
    try:
        return files.directory_objection(journal) is None
    except OSError:
        return False


def _merge(paths: StorePaths) -> bool:
    try:
        deadline = time.monotonic() + (_LOCK_SECONDS if not paths.database.exists() else _HELD_SECONDS)
        result = ingest.merge(paths.database, timeout=deadline - time.monotonic())
    except StoreError as error:
        _logger.debug("merging %s failed", paths.database, exc_info=True)
        if not paths.database.exists():
            raise StoreError(str(error)) from error
        return False
    return result.complete


def _version(paths: StorePaths) -> tuple[int, int] | None:
    """Another after each merge; None where there is no database."""
    try:
        stat = paths.database.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _open(paths: StorePaths) -> tuple[DuckDBPyConnection, instances.Instance]:
    with fork_guard.mutex:  # a fork in the middle of an import would leave the child with half a module
        import duckdb

    def open_now() -> tuple[DuckDBPyConnection, instances.Instance]:
        connection, instance = instances.connect(paths)
        # A misspelt table must not be looked for among the caller's variables. (Not in the configuration: all readers
        # of one process share one, that of a plain `duckdb.connect(path, read_only=True)`.)
        connection.execute("SET python_enable_replacements = false")
        if _is_ours(paths.journal):
            with suppress(duckdb.Error):  # another connection to it has put something elsewhere already
                database.keep_spills_private(connection, paths)
        return connection, instance

    return _patiently(paths, open_now)


def _patiently(paths: StorePaths, opening: Callable[[], _Result]) -> _Result:
    """Opens to read, also where a merge has to write the database in its place and holds it for some milliseconds."""
    import duckdb

    deadline = time.monotonic() + _OPEN_SECONDS

    def attempt() -> _Result:
        try:
            return opening()
        except duckdb.Error as error:
            raise database.classify(paths, error) from error
        except FileNotFoundError as error:
            raise StoreNotFound(f"there is no store at {paths.database} any more") from error
        except OSError as error:
            raise StoreError(f"cannot read the store {paths.database}: {error}") from error

    try:
        return attempt()
    except StoreBusy:
        with _between_merges(paths, deadline):
            return when_free(attempt, deadline)


@contextmanager
def _between_merges(paths: StorePaths, deadline: float) -> Iterator[None]:
    """Waits its turn among the mergers, so that many of them do not keep a reader out; does without where it cannot."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(paths.lock, deadline))
        except OSError:  # it takes too long (TimeoutError), or the lock cannot be made where everything is read-only
            pass
        yield


def _show(connection: DuckDBPyConnection, stored: str) -> set[str]:
    """Has names of tables and views mean those of the database `stored`, but for what the user has made. Returns them."""
    found = connection.execute(
        """SELECT table_name FROM duckdb_tables() WHERE database_name = $1 AND schema_name = 'main'
        UNION ALL SELECT view_name FROM duckdb_views() WHERE database_name = $1 AND schema_name = 'main' AND NOT internal
        EXCEPT ALL SELECT table_name FROM duckdb_tables() WHERE temporary""",
        [stored],
    ).fetchall()
    names = {name for (name,) in found}
    for name in map(database.quoted, names):
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS FROM {database.quoted(stored)}.main.{name}")
    for name in (*_NEW, *_BESIDE):
        connection.execute(f"DROP TABLE IF EXISTS temp.{name}")
    return names


_NEW: Final = {"new_spans": rows.SPAN_TYPES, "new_llm_usage": rows.USAGE_TYPES}
"""Of this version's columns: the file may be of an earlier one, and cannot be migrated now."""


_BESIDE: Final = {
    "hidden": {"trace_id": "VARCHAR", "span_id": "VARCHAR"},
    "new_received_rows": {
        "trace_id": "VARCHAR",
        "span_id": "VARCHAR",
        "row_version": "INTEGER",
        "started_at": "TIMESTAMPTZ",
    },
    "new_llm_scores": scores.TYPES,
}


def _overlay(connection: DuckDBPyConnection, paths: StorePaths, stored: str) -> None:
    """Lays what is still in the journals over the tables of the database `stored`, by temporary views of their names."""
    shown = _show(connection, stored)
    stored = f"{database.quoted(stored)}.main"
    offsets = ingest.read_offsets(connection, stored)
    # The store may have tables of the user's own that are called as ours are, for as long as there are ours.
    hidden = shown & batch.TABLES.keys()
    for name in hidden:
        connection.execute(f"DROP VIEW temp.{name}")
    for table, types in (_NEW | _BESIDE).items():
        connection.execute(rows.create_table(table, types))
    batch.prepare(connection)
    snapshot = segments.Snapshot(paths.journal)
    while chunks := ingest.plan(snapshot, offsets):
        loaded, _ = batch.load(connection, paths, ingest.lines_of(chunks))
        for chunk in chunks:
            offsets[chunk.segment.name] = (chunk.next, chunk.finished)
        if loaded.rows:
            batch.overlay(connection, loaded, stored)
        if given := ingest.scores_of(chunks):
            scores.store(connection, given, "new_llm_scores")
    batch.clear_away(connection)
    for name in hidden:
        connection.execute(f"CREATE TEMP VIEW {name} AS FROM {stored}.{name}")
    for table, replaced in (
        ("spans", "new_spans"),
        ("llm_usage", "(FROM hidden UNION ALL SELECT trace_id, span_id FROM new_spans)"),
    ):
        connection.execute(
            f"""CREATE OR REPLACE TEMP VIEW {table} AS
            SELECT * FROM {stored}.{table} AS stored WHERE NOT EXISTS (
                FROM {replaced} AS new WHERE new.trace_id = stored.trace_id AND new.span_id = stored.span_id)
            UNION ALL BY NAME FROM new_{table}"""
        )
    of_stored = f"{stored}.llm_scores" if "llm_scores" in shown else None
    connection.execute(f"CREATE OR REPLACE TEMP VIEW llm_scores AS {scores.latest_of(of_stored, 'new_llm_scores')}")
    connection.execute(database.views_sql().replace("CREATE OR REPLACE VIEW", "CREATE OR REPLACE TEMP VIEW"))
