"""Reading the store: a plain read-only DuckDB connection that sees everything that has ended, in every process."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.settings import settings
from otel_llm.store import place
from otel_llm.store.errors import StoreBusy, StoreError, StoreNotFound
from otel_llm.store.file import database, handles, publish
from otel_llm.store.file.interrupts import off_main_thread
from otel_llm.store.file.waiting import when_free
from otel_llm.store.jobs import exclusive
from otel_llm.store.journal import locks, segments
from otel_llm.store.merge import batch, ingest
from otel_llm.store.paths import StorePaths
from otel_llm.support import files, fork_guard, importing

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger("otel_llm")

_LOCK_SECONDS: Final = 5.0
_HELD_SECONDS: Final = 0.3
"""How long to wait for a foreign reader to let go before its hold is worked around."""
_OPEN_SECONDS: Final = 5.0


@importing.whole()
def connect(path: str | os.PathLike[str] | None = None) -> DuckDBPyConnection:
    """A read-only connection to the store at `path` (default: `OTEL_LLM_STORE`) that sees every call that has ended by now.

    It goes on seeing this moment: connect again to see what has ended since.

    What the journals of all processes hold is merged first. Where that cannot be now, because somebody else is merging, the
    connection shows it all the same, by temporary views over the stored rows and those still in the journal.
    (A `cursor()` of such a connection sees the stored rows only.)

    Raises StoreNotFound where there is no store (if this process writes it, one without rows is made), StoreError where it
    cannot be read.
    """
    chosen = path if path is not None else settings().store
    if chosen is None:
        raise StoreNotFound(settings().store_note or "the account is turned off (OTEL_LLM_STORE=none)")
    own = _flush_own(chosen)
    paths = own or place.to_read(chosen, named=path is not None)
    if (reason := files.no_file_at(paths.database)) is not None:
        raise StoreError(f"{reason} that a store can be in")
    return off_main_thread(partial(_connect_now, paths, is_own=own is not None))()


def _connect_now(paths: StorePaths, *, is_own: bool = False) -> DuckDBPyConnection:
    if not paths.database.exists() and not (_is_ours(paths.journal) and segments.list_segments(paths.journal)):
        if not is_own:
            raise StoreNotFound(f"there is no store at {paths.database} yet")
        with exclusive.alone(paths):
            pass  # has made it
    while True:
        merged = _merge(paths)
        version = _version(paths)
        connection = _open(paths)
        if merged or not _is_ours(paths.journal):
            return connection
        try:
            _overlay(connection, paths)
            # Somebody who merges meanwhile takes from the journal what this connection does not have in its file.
            if version == _version(paths):
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()


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


def _open(paths: StorePaths) -> DuckDBPyConnection:
    """Opens to read, also where a merge has to write the database in its place and holds it for some milliseconds."""
    with fork_guard.mutex:  # a fork in the middle of an import would leave the child with half a module
        import duckdb

    deadline = time.monotonic() + _OPEN_SECONDS

    def open_now() -> DuckDBPyConnection:
        try:
            with fork_guard.mutex:  # a merge of this process does not open files at the same time
                connection = _connect(paths)
            # A misspelt table must not be looked for among the caller's variables. (Not in the configuration: all readers
            # of one process share one, that of a plain `duckdb.connect(path, read_only=True)`.)
            connection.execute("SET python_enable_replacements = false")
            if _is_ours(paths.journal):
                with suppress(duckdb.Error):  # another connection to it has put something elsewhere already
                    database.keep_spills_private(connection, paths)
        except duckdb.Error as error:
            raise database.classify(paths, error) from error
        except OSError as error:
            raise StoreError(f"cannot read the store {paths.database}: {error}") from error
        return connection

    try:
        return open_now()
    except StoreBusy:
        with _between_merges(paths, deadline):
            return when_free(open_now, deadline)


def _connect(paths: StorePaths) -> DuckDBPyConnection:
    """A connection to the file that is the database now.

    While this process has a connection open, DuckDB gives it the same instance for the same path, and so what the database
    was when that one was opened. Then a copy must do, of which only the open file remains.
    """
    import duckdb

    database.require_openable(paths)
    connection = duckdb.connect(str(paths.database), read_only=True)
    try:
        if handles.others(paths.database.stat()):
            return connection
    except OSError:  # it cannot be told
        return connection
    connection.close()
    publish.remove_leftovers(paths.database)
    folder, name = paths.database.parent, paths.database.name
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.", suffix=".tmp") as hidden:
        copy = Path(hidden) / name  # the name of the file is that of the database in SQL
        publish.snapshot(paths, copy)
        return duckdb.connect(str(copy), read_only=True)


@contextmanager
def _between_merges(paths: StorePaths, deadline: float) -> Iterator[None]:
    """Waits its turn among the mergers, so that many of them do not keep a reader out; does without where it cannot."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(paths.lock, deadline))
        except OSError:  # it takes too long (TimeoutError), or the lock cannot be made where everything is read-only
            pass
        yield


def _overlay(connection: DuckDBPyConnection, paths: StorePaths) -> None:
    """Lays what is still in the journals over the stored tables, by temporary views of their names."""
    offsets = ingest.read_offsets(connection)
    row = connection.execute("SELECT current_database()").fetchone()
    assert row is not None
    stored = '"' + str(row[0]).replace('"', '""') + '".main'
    for table in ("spans", "llm_usage"):
        connection.execute(f"CREATE TEMP TABLE new_{table} AS FROM {stored}.{table} LIMIT 0")
    # The file may be of an earlier version, and cannot be migrated now.
    for column in ("service_tier", "error_message"):
        connection.execute(f"ALTER TABLE new_llm_usage ADD COLUMN IF NOT EXISTS {column} VARCHAR")
    connection.execute("CREATE TEMP TABLE hidden (trace_id VARCHAR, span_id VARCHAR)")
    batch.prepare(connection)
    snapshot = segments.Snapshot(paths.journal)
    while chunks := ingest.plan(snapshot, offsets):
        loaded, _ = batch.load(connection, paths, ingest.lines_of(chunks))
        for chunk in chunks:
            offsets[chunk.segment.name] = (chunk.next, chunk.finished)
        if loaded.rows:
            batch.overlay(connection, loaded, stored)
    batch.clear_away(connection)
    for table, replaced in (
        ("spans", "new_spans"),
        ("llm_usage", "(FROM hidden UNION ALL SELECT trace_id, span_id FROM new_spans)"),
    ):
        connection.execute(
            f"""CREATE TEMP VIEW {table} AS
            SELECT * FROM {stored}.{table} AS stored WHERE NOT EXISTS (
                FROM {replaced} AS new WHERE new.trace_id = stored.trace_id AND new.span_id = stored.span_id)
            UNION ALL BY NAME FROM new_{table}"""
        )
    connection.execute(database.views_sql().replace("CREATE OR REPLACE VIEW", "CREATE OR REPLACE TEMP VIEW"))
