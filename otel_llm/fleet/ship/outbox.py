"""What a store has for a destination: which rows come next, and how far it has got, both in the store itself.

A writer leaves `commit_number` NULL in rows that are new or that it changes, which costs it nothing. Whoever ships gives those the
next numbers, under the merge lock, and reads on from where the destination is. That position is written down with the next look
for rows, when they have arrived; a process that dies before that sends them again.

The store is held while rows are read and never while they are on their way.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from otel_llm.fleet.ship.destination import Block, Source
from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS, Kind, select_list
from otel_llm.store.errors import StoreBusy
from otel_llm.store.file import database
from otel_llm.store.jobs import exclusive
from otel_llm.store.journal import locks
from otel_llm.store.paths import StorePaths

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CONTENT: Final = ("input_messages", "output_messages", "error_message")
"""Columns of `llm_usage` with what was said."""
_WIDE: Final[Mapping[Source, tuple[str, ...]]] = {
    "llm_usage": CONTENT,
    "spans": ("attributes", "events", "links", "resource"),
}
_NARROW_BYTES: Final = 1000
"""About what the other columns of a row take."""
_COLUMNS: Final[Mapping[Source, Mapping[str, Kind]]] = {"llm_usage": USAGE_COLUMNS, "spans": SPAN_COLUMNS}
_IDENTITY: Final = ("trace_id", "span_id", "started_at", "row_version")
_TABLES: Final[Mapping[Source, tuple[str, ...]]] = {"llm_usage": ("llm_usage", "retracted_calls"), "spans": ("spans",)}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a destination is."""

    commit_number: int
    begun_at: str
    """When its first row was to be sent: that tells one store from another that takes its place."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A block of rows, where its destination is before it, and where when it has arrived."""

    block: Block
    before: Position
    commit_number: int
    is_full: bool
    """There are more rows than go into one block."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What is to be written down of a parcel."""

    before: Position
    commit_number: int
    sent: int
    refused: int


@dataclass(frozen=True, slots=True)
class Lag:
    """What a destination has not got yet of one table."""

    destination: str
    source: Source
    rows: int
    oldest: datetime | None
    """When the first of those calls began."""
    sent: int
    refused: int
    removed: int
    """Rows that the limit of size has removed from the store before they had arrived."""
    begun_at: datetime
    sent_at: datetime | None


Version = tuple[int, int]


def version_of(paths: StorePaths) -> Version | None:
    """Another after whatever was written to the database; None where there is none."""
    try:
        stat = paths.database.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


class Outbox:
    """The rows of one table for one destination."""

    def __init__(self, paths: StorePaths, destination: str, source: Source) -> None:
        self._paths = paths
        self._of = [destination, source]
        self.source = source
        self.version: Version | None = None
        """What the database was when the last `take` had ended: all that it had then was seen."""

    def take(self, most_rows: int, most_bytes: int, arrived: Arrived | None, *, timeout: float) -> Parcel | None:
        """What comes next, if there is anything; writes down what has `arrived`.

        `timeout` is in seconds. Raises StoreBusy, StoreError; `arrived` is not written down then.
        """
        with exclusive.alone(self._paths, timeout, after=self._note_version) as connection:
            with database.transaction(connection):
                position = self._position(connection)
                if arrived is not None and arrived.before == position:  # else somebody has put another store here
                    self._write_down(connection, arrived)
                    position = replace(position, commit_number=arrived.commit_number)
                _number(connection, self.source)
            return _read(connection, self.source, position, most_rows, most_bytes)

    def _note_version(self) -> None:
        self.version = version_of(self._paths)

    def _position(self, connection: DuckDBPyConnection) -> Position:
        query = "SELECT commit_number, begun_at::VARCHAR FROM shipments WHERE destination = ? AND source = ?"
        row = connection.execute(query, self._of).fetchone()
        if row is None:
            connection.execute("INSERT INTO shipments VALUES (?, ?, 0, 0, 0, 0, now(), NULL)", self._of)
            row = connection.execute(query, self._of).fetchall()[0]
        return Position(*row)

    def _write_down(self, connection: DuckDBPyConnection, arrived: Arrived) -> None:
        connection.execute(
            """UPDATE shipments SET commit_number = ?, sent = sent + ?, refused = refused + ?, sent_at = now()
            WHERE destination = ? AND source = ?""",
            [arrived.commit_number, arrived.sent, arrived.refused, *self._of],
        )


def _number(connection: DuckDBPyConnection, source: Source) -> None:
    """Gives numbers to rows that have none. They grow with the place in the table; that leaves gaps, and needs no sorting."""
    ((last,),) = connection.execute("SELECT last FROM commit_numbers").fetchall()
    before = last
    for table in _TABLES[source]:
        unnumbered = f"SELECT min(rowid), max(rowid) FROM {table} WHERE commit_number IS NULL"
        ((lowest, highest),) = connection.execute(unnumbered).fetchall()
        if lowest is not None:
            connection.execute(
                f"UPDATE {table} SET commit_number = {last + 1 - lowest} + rowid WHERE commit_number IS NULL"
            )
            last += highest - lowest + 1
    if last != before:
        connection.execute("UPDATE commit_numbers SET last = ?", [last])


def _read(
    connection: DuckDBPyConnection, source: Source, position: Position, most_rows: int, most_bytes: int
) -> Parcel | None:
    """The rows behind `position`, as many as may be in one block; the first whatever its size."""
    within = "commit_number > $after AND commit_number <= $last"
    bounds: dict[str, Any] = {"after": position.commit_number, "last": 2**63 - 1}
    numbers = _union(source, "commit_number", within)
    bounds["last"] = _only(
        connection, f"SELECT max(c) FROM (FROM ({numbers}) AS n(c) ORDER BY c LIMIT {most_rows})", bounds
    )
    if bounds["last"] is None:
        return None
    last = bounds["last"]
    size = f"{_NARROW_BYTES} + " + " + ".join(f"coalesce(strlen({column}), 0)" for column in _WIDE[source])
    sizes = _union(source, f"commit_number, {size} AS size", within, f"commit_number, {_NARROW_BYTES} AS size")
    bounds["last"] = _only(
        connection,
        f"""SELECT max(c) FROM (
            SELECT c, row_number() OVER upwards AS place, sum(size) OVER upwards AS total FROM ({sizes}) AS n(c, size)
            WINDOW upwards AS (ORDER BY c ROWS UNBOUNDED PRECEDING))
        WHERE total <= {most_bytes} OR place = 1""",
        bounds,
    )
    columns = _COLUMNS[source]
    retracted = {name: columns[name] for name in _IDENTITY} if source == "llm_usage" else {}
    rows = _union(
        source,
        f"{select_list(columns)}, false AS {RETRACTED}, commit_number",
        within,
        f"{select_list(retracted)}, true AS {RETRACTED}, commit_number",
    )
    names = [*columns, RETRACTED] if source == "llm_usage" else [*columns]
    found = connection.execute(f"SELECT {', '.join(names)} FROM ({rows}) ORDER BY commit_number", bounds).fetchall()
    block = Block(source, [dict(zip(names, row, strict=True)) for row in found])
    return Parcel(block, position, bounds["last"], is_full=bounds["last"] < last or len(found) >= most_rows)


def _union(source: Source, columns: str, condition: str, of_retracted: str | None = None) -> str:
    """What the tables of a source have together."""
    selected = [columns, of_retracted or columns]
    return " UNION ALL BY NAME ".join(
        f"SELECT {wanted} FROM {table} WHERE {condition}"
        for table, wanted in zip(_TABLES[source], selected, strict=False)
    )


def _only(connection: DuckDBPyConnection, query: str, values: Mapping[str, Any]) -> Any:
    ((value,),) = connection.execute(query, values).fetchall()
    return value


def forget(paths: StorePaths, destination: str) -> bool:
    """Has the store know of a destination no more; whether it did. Raises StoreBusy where it is shipped to now, StoreError."""
    lock = paths.shipping(destination)
    with suppress(FileNotFoundError):
        if locks.is_held(lock):
            raise StoreBusy(f"a process ships to {destination}: end it first")
    with exclusive.alone(paths) as connection:
        ((known,),) = connection.execute(
            "SELECT count(*) FROM shipments WHERE destination = ?", [destination]
        ).fetchall()
        if known:
            connection.execute("DELETE FROM shipments WHERE destination = ?", [destination])
    lock.unlink(missing_ok=True)
    return bool(known)


def lags(connection: DuckDBPyConnection) -> list[Lag]:
    """What each destination has not got yet. Raises duckdb.Error; of a store of an earlier version nothing."""
    import duckdb

    try:
        rows = connection.execute(
            """SELECT destination, source, commit_number, sent, refused, removed, begun_at, sent_at
            FROM shipments ORDER BY destination, source"""
        ).fetchall()
    except duckdb.CatalogException:
        return []
    found = []
    for destination, source, number, *rest in rows:
        waiting, oldest = connection.execute(
            f"SELECT count(*), min(started_at) FROM {source} WHERE coalesce(commit_number > ?, true)", [number]
        ).fetchall()[0]
        found.append(Lag(destination, source, waiting, oldest, *rest))
    return found
