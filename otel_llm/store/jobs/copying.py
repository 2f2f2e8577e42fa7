"""Whole copies of the store: `backup` beside it, `compact` in its place.

A copy has everything that is in the database, the offsets of the journal included: put back in its place with the journal
still there, it takes in exactly what has been journalled since.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.store.errors import StoreBusy, StoreError
from otel_llm.store.file import database, publish
from otel_llm.store.file.waiting import when_free
from otel_llm.store.jobs import exclusive, retention
from otel_llm.store.paths import StorePaths
from otel_llm.support import files, fork_guard
from otel_llm.support.system import file_locks

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_COPY: Final = "otel_llm_copy"
_SOURCE: Final = "otel_llm_source"


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, and the sizes of the two files in bytes."""

    calls: int
    spans: int
    before: int
    after: int
    complete: bool = True
    """Everything in the journals is in it as well."""


def compact(paths: StorePaths, *, timeout: float = exclusive.PATIENCE) -> Copied:
    """Writes the store anew without the room of what was deleted, and puts the new file in the place of the old one.

    Writers go on journalling meanwhile, readers go on reading. Whatever fails, the old file stays as it is. Raises
    StoreNotFound, StoreBusy where somebody has the store open to write for longer than `timeout` seconds, StoreError.
    """
    merged = exclusive.brought_up_to_date(paths)
    target = paths.database
    if paths.wal.exists():
        with exclusive.alone(paths, timeout):
            pass  # what another client has left in its write-ahead log goes into the file when that is closed
    with exclusive.unmerged(paths, timeout), _opened_to_read(paths, timeout) as connection:
        before = target.stat()
        connection.execute(f"USE {_SOURCE}")
        _require_room(target.parent, retention.used(connection))
        with _temporary(target) as new:
            calls, spans = _copy(connection, _SOURCE, new)
            publish.belong_alike(new, target)
            if paths.wal.exists():
                raise StoreError(f"{paths.wal} is not empty after a checkpoint; the store is left as it is")
            if not file_locks.IS_POSIX:  # what is open cannot be replaced
                connection.execute("USE memory")
                connection.execute(f"DETACH {_SOURCE}")
            if not publish.unchanged(target, before):
                raise StoreBusy(f"{target} was changed or replaced while it was copied; try again")
            # The old file is still open here, so that nobody else can begin to write to it.
            new.replace(target)
        publish.remove_spare(paths)
    return Copied(calls, spans, before.st_size, target.stat().st_size, merged.complete)


def backup(paths: StorePaths, target: Path) -> Copied:
    """Copies the store to `target`, as it is at one moment. Writers and readers go on meanwhile.

    A file that is there is replaced, once the copy is whole. Raises StoreNotFound, StoreBusy, StoreError.
    """
    import duckdb

    target = target.expanduser().absolute()
    if target.resolve() == paths.database.resolve():
        raise StoreError(f"{target} is the store itself")
    if (reason := files.no_file_at(target)) is not None:
        raise StoreError(f"{reason}; name another")
    if target.with_name(f"{target.name}.wal").exists():
        raise StoreError(f"{target} is in use: there is a {target.name}.wal beside it")
    merged = exclusive.brought_up_to_date(paths)
    try:
        with _opened_to_read(paths) as connection, _temporary(target) as new:
            _require_room(target.parent, paths.database.stat().st_size)
            calls, spans = _copy(connection, _SOURCE, new)
            new.replace(target)
    except duckdb.Error as error:
        raise database.classify(paths, error) from error
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    return Copied(calls, spans, paths.database.stat().st_size, target.stat().st_size, merged.complete)


@contextmanager
def _opened_to_read(paths: StorePaths, timeout: float = exclusive.PATIENCE) -> Iterator[DuckDBPyConnection]:
    """An instance with the store attached to read, in which others can be attached to write."""
    if (reason := files.no_file_at(paths.database)) is not None:
        raise StoreError(f"{reason} that a store can be in")
    connection = database.open_in_memory()
    try:
        file = database.literal(paths.database)
        _attach_patiently(connection, paths, f"ATTACH {file} AS {_SOURCE} (TYPE duckdb, READ_ONLY)", timeout)
        yield connection
    finally:
        connection.close()


def _attach_patiently(connection: DuckDBPyConnection, paths: StorePaths, statement: str, timeout: float) -> None:
    """Attaches as soon as nobody has the store open to write. Raises StoreError."""
    import duckdb

    def attach() -> None:
        try:
            with fork_guard.mutex:
                connection.execute(statement)
        except duckdb.Error as error:
            raise database.classify(paths, error) from error

    when_free(attach, time.monotonic() + timeout)


def _copy(connection: DuckDBPyConnection, source: str, target: Path) -> tuple[int, int]:
    """Copies the attached database `source` to a new file and verifies it. Returns its calls and its spans."""
    connection.execute(f"ATTACH {database.literal(target)} AS {_COPY}{_storage(connection, source)}")
    try:
        connection.execute(f"COPY FROM DATABASE {source} TO {_COPY}")
        connection.execute(f"CHECKPOINT {_COPY}")
        contents = _contents(connection, _COPY)
        if contents != _contents(connection, source):
            raise StoreError(f"the copy {target} is not equal to the store; it is given up")
    finally:
        connection.execute(f"DETACH DATABASE IF EXISTS {_COPY}")
    files.make_private(target, target.parent.parent)
    with target.open("rb") as written:  # DuckDB has let go of it: its lock cannot be lost by closing the file
        os.fsync(written.fileno())
    calls, spans = (contents[f"main.{table}"][0] for table in ("llm_usage", "spans"))
    return calls, spans


def _storage(connection: DuckDBPyConnection, name: str) -> str:
    """The option of ATTACH that makes a file in the same format as the attached database `name`, for the same clients."""
    (tags,) = connection.execute("SELECT tags FROM duckdb_databases() WHERE database_name = ?", [name]).fetchall()[0]
    version = str((tags or {}).get("storage_version", "")).rstrip("+")
    storage = f", STORAGE_VERSION '{version}'" if version else ""
    return f" (TYPE duckdb, ROW_GROUP_SIZE {database.ROW_GROUP}{storage})"


def _contents(connection: DuckDBPyConnection, name: str) -> dict[str, tuple[int, int | str]]:
    """What is in the attached database `name`: rows and a checksum of each table, the SQL of each view."""
    found: dict[str, tuple[int, int | str]] = {}
    tables = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = ? AND NOT internal"
    for schema, table in connection.execute(tables, [name]).fetchall():
        quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (name, schema, table))
        query = f"SELECT count(*), coalesce(sum(hash(each)::HUGEINT), 0) FROM {quoted} AS each"
        rows, checksum = connection.execute(query).fetchall()[0]
        found[f"{schema}.{table}"] = int(rows), int(checksum)
    views = "SELECT schema_name, view_name, sql FROM duckdb_views() WHERE database_name = ? AND NOT internal"
    for schema, view, text in connection.execute(views, [name]).fetchall():
        found[f"{schema}.{view}"] = 0, text
    return found


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name on the same disk as `target`, where nobody else can look and nothing is left after the block."""
    publish.remove_leftovers(target)
    with files.hidden_dir(target) as hidden:
        yield hidden / target.name


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StoreError(f"there is no room for a copy in {folder}: it takes {size:,} bytes, {free:,} are free")
