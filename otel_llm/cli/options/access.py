"""The store as a command reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.settings import settings

if TYPE_CHECKING:
    import duckdb

    from otel_llm.store.paths import StorePaths


def locate(store: Path | None, *, must_exist: bool = False) -> Path:
    """The store that `--store` or the environment names.

    `must_exist` is for who reads its journals alone: one that is named with `--store` must be there, as for `reading`.
    """
    from otel_llm.store import place
    from otel_llm.store.paths import StorePaths
    from otel_llm.support import files

    path = settings().store if store is None else store.expanduser().absolute()
    if path is None:
        why = (
            settings().store_note
            or f"OTEL_LLM_STORE={os.environ.get('OTEL_LLM_STORE', '').strip()} turns the account off; unset it"
        )
        raise CommandError(f"{why}, or name a store with --store PATH")
    path = place.to_read(path, named=store is not None).database
    if (reason := files.no_file_at(path)) is not None:
        raise CommandError(f"{reason} that a store can be in")
    if must_exist and store is not None and not path.exists() and not StorePaths.of(path).journal.is_dir():
        raise CommandError(_no_store(path))
    return path


def _no_store(path: Path) -> str:
    return f"there is no store at {path}; `otel-llm path` names the one in use"


@contextmanager
def reading(store: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection that sees every call that has ended; an empty one where nothing was ever recorded.

    A store that is named with `--store` must be there: a name with a slip in it is not an empty account. Whatever goes
    wrong with the store, or in the SQL that runs in here, becomes a `CommandError`.
    """
    import duckdb

    path = locate(store)
    connection = _connect(path, must_exist=store is not None)
    try:
        # Tables only: a Python variable of this program is not one, however it is called.
        connection.execute("SET python_enable_replacements = false")
        yield connection
    except duckdb.Error as error:
        raise CommandError(one_line(error)) from error
    finally:
        connection.close()


def _connect(path: Path, *, must_exist: bool) -> duckdb.DuckDBPyConnection:
    import duckdb

    from otel_llm.store import StoreError, StoreNotFound, reader

    try:
        return reader.connect_to_moment(path)
    except StoreNotFound as error:
        if must_exist:
            raise CommandError(_no_store(path)) from error
        return _nothing_recorded()
    except (StoreError, duckdb.Error, OSError) as error:
        raise CommandError(f"cannot read {path}: {one_line(error)}; `otel-llm doctor` looks closer") from error


def _nothing_recorded() -> duckdb.DuckDBPyConnection:
    """The tables of a store, all empty, in memory: a query can be tried before there is anything to ask about."""
    import duckdb

    from otel_llm.store.file import database

    connection = duckdb.connect(config={"python_enable_replacements": False})
    database.migrate(connection)
    return connection


@contextmanager
def maintaining(store: Path | None) -> Iterator[StorePaths]:
    """The store for a command that copies it, sends it or clears it. Whatever goes wrong becomes a `CommandError`."""
    from otel_llm.store import StoreError, StoreNotFound
    from otel_llm.store.paths import StorePaths

    try:
        yield StorePaths.of(locate(store))
    except StoreNotFound as error:
        raise CommandError(f"{error}; `otel-llm path` names the one in use") from error
    except (StoreError, OSError) as error:
        raise CommandError(one_line(error)) from error


def require_absent(file: Path, store: Path | None, *, force: bool) -> None:
    """Refuses to write over what is there, unless `--force` is given; over the store itself or a device in any case."""
    from otel_llm.store.paths import StorePaths
    from otel_llm.support import files

    paths = StorePaths.of(locate(store))
    target = file.resolve()
    if (reason := files.no_file_at(file)) is not None:
        raise CommandError(f"{reason}; name another, or print rows with `otel-llm sql`")
    own = {each.resolve() for each in (paths.database, paths.wal, paths.next, paths.spare, paths.lock)}
    if target in own or paths.journal.resolve() in (target, *target.parents):
        raise CommandError(f"{file} belongs to the store itself; name another file")
    if file.exists() and not force:
        raise CommandError(f"{file} is there already; --force replaces it")
    if not file.parent.is_dir():
        raise CommandError(f"there is no directory {file.parent}")


def is_empty(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether no model call has been recorded at all."""
    return not connection.execute("SELECT exists(FROM llm_usage)").fetchall()[0][0]


def nothing_yet(path: Path) -> str:
    """What to say of an account with nothing in it."""
    return f"No model calls recorded yet in {path}. Run: opentelemetry-instrument python app.py"
