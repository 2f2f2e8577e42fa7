"""The account in a DuckDB store for a program that asks for a long time, from many threads: the browser page, an agent's tools."""

from __future__ import annotations

import queue
import threading
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
_MOST_CONNECTIONS: Final = 4
"""Who waits for one of them gets what another has brought up to now meanwhile: twenty pages that ask at once look at the journals
a few times, and not twenty."""


class SharedDuckDBEngine(DuckDBEngine):
    """Asks the store at `store`, whichever thread asks; an answer has every call that had ended half a second before.

    Where no store is there yet, it is one without rows. Raises StoreError where it cannot be read.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.place = str(store)
        self._news = 0.0
        self._free: queue.LifoQueue[tuple[StoreConnection, float]] = queue.LifoQueue()
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._of_thread = threading.local()

    def ask(self, sql: str, values: Mapping[str, str] | None = None) -> list[Row]:
        with self._places, self._borrowed() as connection:
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
            elif seen < self._asked_since() and (seen <= self._news or time.monotonic() - seen > _FRESH_SECONDS):
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

    def _asked_since(self) -> float:
        """When this thread has begun to ask for one moment; it is now where it has not."""
        begun: float | None = getattr(self._of_thread, "begun", None)
        return time.monotonic() if begun is None else begun

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """What this thread asks here is asked of the store as it was after the beginning: the journals are looked at once."""
        self._of_thread.begun = time.monotonic()
        try:
            yield
        finally:
            self._of_thread.begun = None

    def has_news(self) -> None:
        """What is answered from here on has everything that had ended by now; in `one_moment`, if this thread says it there."""
        self._news = time.monotonic()
        if getattr(self._of_thread, "begun", None) is not None:
            self._of_thread.begun = self._news

    def close(self) -> None:
        """Closes what nobody is using."""
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait()[0].close()
