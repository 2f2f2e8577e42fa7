"""The DuckDB instance that a process keeps for its merges: in memory, with the store attached while one is under way.

Opening an instance takes ten times as long as attaching a file to one that is there, and a statement that was prepared in it
stays planned. Whoever uses it holds `fork_guard.mutex`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.store.errors import StoreBusy
from otel_llm.store.file import database, publish
from otel_llm.store.merge import batch
from otel_llm.store.paths import StorePaths
from otel_llm.support import forks
from otel_llm.support.system import memory

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MAX_USES: Final = 10
_MAX_BYTES: Final = 64 * 2**20
"""Emptied temporary tables keep some of their memory, up to a megabyte a merge, and slow the next ones down. So begin anew after so
many merges, or bytes of journal: it costs no more than it saves."""

_connection: DuckDBPyConnection | None = None
_uses = 0
_bytes = 0
_spill: Path | None = None
"""The journal beside which the instance puts what does not fit in memory."""


@contextmanager
def attached(paths: StorePaths) -> Iterator[DuckDBPyConnection]:
    """A connection with the store attached, migrated and in use; nothing is held after the block.

    What is written in the block is in the store when the block has ended without an error, and not before: see `publish`.
    Raises StoreBusy where another process has the database open, or has changed it meanwhile; StoreError where it cannot be
    opened.
    """
    import duckdb

    global _uses
    connection = get(paths)
    _uses += 1
    attached = False
    try:
        database.prepare(paths)
        with publish.working_copy(paths) as working_copy:
            try:
                database.attach_for_merge(connection, paths, working_copy)
                attached = True
                try:
                    yield connection
                finally:
                    database.detach(connection, working_copy.file)
            except duckdb.InterruptException as error:
                raise database.classify(paths, error) from error
            except duckdb.Error as error:
                if working_copy.reused and database.is_corruption(error):
                    raise database.unusable(working_copy) from error
                raise
    except StoreBusy:
        if attached:
            discard()  # what was made of the temporary tables is part of what was given up
        else:
            database.detach(connection)
        raise
    except BaseException:
        discard()  # whatever state it is in, the next merge begins with another
        raise
    if _uses >= _MAX_USES or _bytes >= _MAX_BYTES:
        discard()
        memory.give_back()


def count(size: int) -> None:
    """Notes that so many bytes of journal went through the instance."""
    global _bytes
    _bytes += size


def discard() -> None:
    """Closes the instance; the next merge opens another."""
    global _connection, _uses, _bytes
    connection, _connection, _uses, _bytes = _connection, None, 0, 0
    if connection is not None:
        connection.close()


def get(paths: StorePaths | None = None) -> DuckDBPyConnection:
    """The instance, with nothing attached; the next call of `attached` attaches to the same one.

    `paths` says which store it is about to be used for.
    """
    global _connection, _spill
    if _connection is not None and paths is not None and _spill != paths.journal:
        discard()  # it may have spilled there, and cannot do so elsewhere then
    if _connection is None:
        made = database.open_in_memory()
        try:
            if paths is not None:
                database.keep_spills_private(made, paths)
            batch.prepare(made)
        except BaseException:
            made.close()
            raise
        _spill = None if paths is None else paths.journal
        _connection = made  # it is there when it is whole: an exception may come up at any line
    return _connection


def _after_fork_in_child() -> None:
    # The instance is the parent's: the child must neither use nor close it.
    global _connection
    if _connection is not None:
        _inherited.append(_connection)
        _connection = None


_inherited: list[DuckDBPyConnection] = []

forks.register(forks.Turn.DUCKDB_INSTANCE, after_in_child=_after_fork_in_child)
