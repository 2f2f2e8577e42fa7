"""The account in a DuckDB store for a program that asks for a long time, from many threads: the browser page, an agent's tools."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.account.engine import Row
from otel_llm.account.in_duckdb.duckdb_engine import DuckDBEngine, nothing_recorded

if TYPE_CHECKING:
    import duckdb

    from otel_llm.store.file.connection import StoreConnection

_FRESH_SECONDS: Final = 0.5
"""How old an answer may be: who asks ten things for one page looks at the journals once."""


class SharedDuckDBEngine(DuckDBEngine):
    """Asks the store at `store`, whichever thread asks; an answer has every call that had ended half a second before.

    Where no store is there yet, it is one without rows. Raises StoreError where it cannot be read.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.place = str(store)
        self._news = 0.0
        self._free: queue.LifoQueue[tuple[StoreConnection, float]] = queue.LifoQueue()

    def ask(self, sql: str, values: Mapping[str, str] | None = None) -> list[Row]:
        with self._borrowed() as connection:
            found: list[Row] = connection.execute(sql, dict(values) if values else None).fetchall()
            return found

    @contextmanager
    def _borrowed(self) -> Iterator[duckdb.DuckDBPyConnection]:
        from otel_llm.store import StoreNotFound, reader

        connection: StoreConnection | None = None
        with suppress(queue.Empty):
            connection, seen = self._free.get_nowait()
        try:
            if connection is None:
                seen = time.monotonic()
                connection = reader.connect_to_moment(self.store)
            elif seen <= self._news or time.monotonic() - seen > _FRESH_SECONDS:
                now = time.monotonic()
                connection.refresh()
                seen = now
        except StoreNotFound:
            if connection is not None:
                connection.close()
            yield nothing_recorded()
            return
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        try:
            yield connection.plain
        finally:
            self._free.put((connection, seen))

    def has_news(self) -> None:
        """What is answered from here on has everything that had ended by now."""
        self._news = time.monotonic()

    def close(self) -> None:
        """Closes what nobody is using."""
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait()[0].close()
