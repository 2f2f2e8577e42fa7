"""The account that a place names, ready to be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from otel_llm.account.in_duckdb.duckdb_engine import DuckDBEngine, nothing_recorded
from otel_llm.account.questions import Account

if TYPE_CHECKING:
    import duckdb

    from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
    from otel_llm.store.paths import StorePaths


@contextmanager
def open_store(path: Path, *, must_exist: bool = False) -> Iterator[Account]:
    """The account in the DuckDB store at `path`, with every call that has ended by now; all questions see this moment.

    Where nothing is there it is an empty one, or with `must_exist` raises StoreNotFound. Raises StoreError, OSError and DuckDB's
    own errors where it cannot be read.
    """
    from otel_llm.store import StoreNotFound, reader

    connection: duckdb.DuckDBPyConnection
    try:
        connection = reader.connect_to_moment(path)
    except StoreNotFound:
        if must_exist:
            raise
        connection = nothing_recorded()
    try:
        # Tables only: a Python variable of this program is not one, however it is called.
        connection.execute("SET python_enable_replacements = false")
        yield Account(DuckDBEngine(connection, path))
    finally:
        connection.close()


@contextmanager
def open_merged(paths: StorePaths) -> Iterator[Account]:
    """The account in a DuckDB store as the last merge left it; what waits in the journals is not in it. Raises as `open_store`."""
    from otel_llm.store import reader

    connection = reader.connect_to_merged(paths)
    try:
        yield Account(DuckDBEngine(connection, paths.database))
    finally:
        connection.close()


@contextmanager
def open_clickhouse(url: ClickHouseURL) -> Iterator[Account]:
    """The account in a ClickHouse. Nothing is asked of it yet."""
    from otel_llm.account.clickhouse_engine import ClickHouseEngine
    from otel_llm.fleet.clickhouse.http_client import ClickHouseClient

    client = ClickHouseClient(url)
    try:
        yield Account(ClickHouseEngine(client))
    finally:
        client.close()
