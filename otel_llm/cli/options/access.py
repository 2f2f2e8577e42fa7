"""The store as a command reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.settings import settings

if TYPE_CHECKING:
    import duckdb

    from otel_llm.account.questions import Account
    from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
    from otel_llm.store.paths import StorePaths


Place: TypeAlias = "Path | ClickHouseURL"
"""What `--store` names."""


def clickhouse_url(text: str) -> ClickHouseURL:
    """The ClickHouse that a URL names. Raises `CommandError`."""
    from otel_llm.fleet.clickhouse.server_url import BadURL, ClickHouseURL

    try:
        return ClickHouseURL.parse(text)
    except BadURL as error:
        raise CommandError(str(error)) from error


def remote(store: Place | None) -> ClickHouseURL | None:
    """The ClickHouse that `--store` or the environment names; None where that is a file."""
    if store is None:
        return None if (url := settings().account_url) is None else clickhouse_url(url)
    return None if isinstance(store, Path) else store


def locate(store: Place | None, *, must_exist: bool = False) -> Path:
    """The store that `--store` or the environment names.

    `must_exist` is for who reads its journals alone: one that is named with `--store` must be there, as for `reading`.
    """
    from otel_llm.store import place
    from otel_llm.store.paths import StorePaths
    from otel_llm.support import files

    if (url := remote(store)) is not None:
        raise CommandError(f"{url} is a ClickHouse, and this is about a DuckDB store: name one with --store PATH")
    assert store is None or isinstance(store, Path)
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
def asking(store: Place | None) -> Iterator[Account]:
    """The account, ready to be asked; an empty one where nothing was ever recorded.

    A store that is named with `--store` must be there: a name with a slip in it is not an empty account. Whatever goes
    wrong with the store, or in the SQL that runs in here, becomes a `CommandError`.
    """
    import duckdb

    from otel_llm.account.engine import AccountError, BadCondition

    with ExitStack() as stack:
        account = _enter(stack, store)
        try:
            yield account
        except BadCondition as error:
            raise CommandError(f"--where {one_line(error)}") from error
        except (AccountError, duckdb.Error) as error:
            raise CommandError(one_line(error)) from error


def _enter(stack: ExitStack, store: Place | None) -> Account:
    import duckdb

    from otel_llm.account.opening import open_clickhouse, open_store

    if (url := remote(store)) is not None:
        return stack.enter_context(open_clickhouse(url))
    from otel_llm.store import StoreError, StoreNotFound

    path = locate(store)
    try:
        return stack.enter_context(open_store(path, must_exist=store is not None))
    except StoreNotFound as error:
        raise CommandError(_no_store(path)) from error
    except (StoreError, duckdb.Error, OSError) as error:
        raise CommandError(f"cannot read {path}: {one_line(error)}; `otel-llm doctor` looks closer") from error


@contextmanager
def reading(store: Place | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """The connection to a DuckDB store, read-only, for what only such a store is asked. Raises as `asking` does."""
    with asking(store) as account:
        yield connection_of(account)


def connection_of(account: Account) -> duckdb.DuckDBPyConnection:
    """The connection to the DuckDB store that the account is in."""
    from otel_llm.account.in_duckdb.duckdb_engine import DuckDBEngine

    assert isinstance(account.engine, DuckDBEngine)
    return account.engine.connection


@contextmanager
def maintaining(store: Place | None) -> Iterator[StorePaths]:
    """The store for a command that copies it, sends it or clears it. Whatever goes wrong becomes a `CommandError`."""
    from otel_llm.store import StoreError, StoreNotFound
    from otel_llm.store.paths import StorePaths

    try:
        yield StorePaths.of(locate(store))
    except StoreNotFound as error:
        raise CommandError(f"{error}; `otel-llm path` names the one in use") from error
    except (StoreError, OSError) as error:
        raise CommandError(one_line(error)) from error


def require_absent(file: Path, store: Place | None, *, force: bool) -> None:
    """Refuses to write over what is there, unless `--force` is given; over the store itself or a device in any case."""
    from otel_llm.store.paths import StorePaths
    from otel_llm.support import files

    target = file.resolve()
    if (reason := files.no_file_at(file)) is not None:
        raise CommandError(f"{reason}; name another, or print rows with `otel-llm sql`")
    if remote(store) is None:
        paths = StorePaths.of(locate(store))
        own = {each.resolve() for each in (paths.database, paths.wal, paths.next, paths.spare, paths.lock)}
        if target in own or paths.journal.resolve() in (target, *target.parents):
            raise CommandError(f"{file} belongs to the store itself; name another file")
    if file.exists() and not force:
        raise CommandError(f"{file} is there already; --force replaces it")
    if not file.parent.is_dir():
        raise CommandError(f"there is no directory {file.parent}")


def nothing_yet(place: str | Path) -> str:
    """What to say of an account with nothing in it."""
    return f"No model calls recorded yet in {place}. Run: opentelemetry-instrument python app.py"
