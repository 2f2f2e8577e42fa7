"""How long data is kept: by age and by size. Whole spans go first, the account's own rows last.

DuckDB gives the room of deleted rows back by whole row groups, and to itself: the file stays as large as it was and its free
blocks are filled again (`compact` makes it smaller). So size is measured on used blocks, and a table that is no longer than
one row group is written anew when rows are taken out of it.

What is shipped (see `otel_llm/fleet/ship`) stays until every destination has got it. A limit of size is kept all the same: where
nothing else is left to remove, it takes rows that have not arrived yet, counts them in `shipments` and says so.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from otel_llm.store.file import database
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger("otel_llm")

INTERVAL: Final = 3600.0
"""Seconds between two rounds in one store, whatever the number of processes that write it."""
MAX_ROWS: Final = 100_000
"""Rows that one step removes at most; a round that is not done goes on with the next step."""
_LEAP: Final = 30 * 86_400.0
"""Seconds that a round goes on from the one before it at most: a clock that is years ahead must not empty the store at once."""
_ROW_GROUP: Final = 122_880
"""Rows of a row group at most, as DuckDB makes them; those of our merges are smaller."""
_SLACK: Final = 0.9
"""A store that has grown too big is brought down to this part of its limit, so that not every round has work to do."""
_TASK: Final = "retention"
_REACHED: Final = "retention reached"
_TABLES: Final = ("spans", "llm_usage")
"""In the order in which rows are given up."""
_BESIDE: Final = {"spans": ("replayed", "pending_exports"), "llm_usage": ("received_rows",)}
"""Tables that say something of those rows, and go with them."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is too old, and what is too much. At least one of the two is given."""

    max_age: float | None = None
    """Seconds since a call began."""
    max_size: int | None = None
    """Bytes in used blocks."""
    spans_only: bool = False
    """The rows of the account are kept whatever their age and number."""


@dataclass(slots=True)
class Removed:
    """What a step has removed, or would."""

    spans: int = 0
    calls: int = 0
    complete: bool = True
    """Nothing is left that the policy does not want."""
    unshipped: int = 0
    """Of both: rows that a destination had not got, removed because of the limit of size."""

    def add(self, other: Removed) -> None:
        """Counts what a further step has removed."""
        self.spans += other.spans
        self.calls += other.calls
        self.unshipped += other.unshipped
        self.complete = other.complete


def keep(paths: StorePaths, policy: Policy, *, now: float | None = None) -> Removed | None:
    """One step of a round, if a round is due; None if none is. For the background: it waits for nobody.

    Where the clock has leapt since the last round, it is believed 30 days at a time.

    `now` is in seconds since 1970. Raises StoreBusy where the store is in use, StoreError.
    """
    now = time.time() if now is None else now
    with exclusive.alone(paths, timeout=0.01) as connection:
        if not _is_due(connection, now):
            return None
        reached = _last(connection, _REACHED)
        believed = now if reached is None else min(now, reached + _LEAP)
        removed = remove(connection, policy, now=believed)
        if removed.complete:
            _remember(connection, {_TASK: now, _REACHED: believed})
    return removed


def prune(paths: StorePaths, policy: Policy, *, now: float | None = None) -> Removed:
    """Merges what is journalled, then removes all that the policy does not want. Writers go on meanwhile.

    `now` is in seconds since 1970. Raises StoreNotFound, StoreBusy, StoreError.
    """
    now = time.time() if now is None else now
    exclusive.brought_up_to_date(paths)
    removed = Removed(complete=False)
    while not removed.complete:  # others have their turn between two steps
        with exclusive.alone(paths) as connection:
            removed.add(remove(connection, policy, now=now))
    return removed


def _is_due(connection: DuckDBPyConnection, now: float) -> bool:
    last = _last(connection, _TASK)
    return last is None or not 0 <= now - last < INTERVAL  # a clock that was ahead must not put it off for years


def _last(connection: DuckDBPyConnection, task: str) -> float | None:
    """Seconds since 1970."""
    query = "SELECT epoch(max(done_at)) FROM maintenance WHERE task = ?"
    (last,) = connection.execute(query, [task]).fetchall()[0]
    return None if last is None else float(last)


def _remember(connection: DuckDBPyConnection, times: Mapping[str, float]) -> None:
    with database.transaction(connection):
        for task, done_at in times.items():
            connection.execute("DELETE FROM maintenance WHERE task = ?", [task])
            connection.execute("INSERT INTO maintenance (task, done_at) VALUES (?, to_timestamp(?))", [task, done_at])


def remove(connection: DuckDBPyConnection, policy: Policy, *, now: float) -> Removed:
    """One step: removes what is too old, then what is too much, the oldest first, `MAX_ROWS` at most of each.

    The caller has the store to itself (`upkeep.alone`).
    """
    removed = Removed()
    if policy.max_age is not None:
        removed.add(_remove_old(connection, policy, now - policy.max_age))
    if policy.max_size is not None and removed.complete:
        removed.add(_remove_excess(connection, policy, policy.max_size))
    return removed


def would_remove(connection: DuckDBPyConnection, policy: Policy, *, now: float) -> Removed:
    """What `remove`, repeated until it is done, would take away: exact as to age, an estimate as to size."""
    gone = dict.fromkeys(_TABLES, 0)
    excess = 0.0 if policy.max_size is None else _excess(connection, policy.max_size)
    for table in _tables(policy):
        rows = _count(connection, table)
        if policy.max_age is not None:
            gone[table] = _count(connection, table, _arrived(connection, table), before=now - policy.max_age)
        if rows and excess > 0:
            row_size = _table_size(connection, table) / rows
            gone[table] = max(gone[table], min(rows, math.ceil(excess / row_size)))
            excess -= gone[table] * row_size
    return Removed(gone["spans"], gone["llm_usage"])


def used(connection: DuckDBPyConnection) -> int:
    """The bytes of the store's file that hold something; the rest of it is free, for rows to come."""
    query = "SELECT used_blocks * block_size FROM pragma_database_size() WHERE database_name = current_database()"
    return int(connection.execute(query).fetchall()[0][0])


# --- by age -----------------------------------------------------------------------------------------------------------


def _remove_old(connection: DuckDBPyConnection, policy: Policy, before: float) -> Removed:
    removed = Removed()
    for table in _tables(policy):
        arrived = _arrived(connection, table)
        old = _count(connection, table, arrived, before=before)
        if old:
            removed.add(_delete(connection, table, arrived, min(old, MAX_ROWS)))
        if old > MAX_ROWS:
            removed.complete = False
            break  # the account has its turn when the spans of that age are gone
    return removed


# --- by size ----------------------------------------------------------------------------------------------------------


def _remove_excess(connection: DuckDBPyConnection, policy: Policy, limit: int) -> Removed:
    # Until then rows in the write-ahead log count for nothing, deleted ones for something.
    database.checkpoint(connection)
    excess = _excess(connection, limit)
    if excess <= 0:
        return Removed()
    tables = _tables(policy)
    # What has not arrived yet goes last of all.
    for table, condition in [
        *((table, _arrived(connection, table)) for table in tables),
        *((one, "true") for one in tables),
    ]:
        rows = _count(connection, table, condition)
        if rows:
            row_size = _table_size(connection, table) / _count(connection, table)
            wanted = min(max(math.ceil(excess / row_size), 1), rows, MAX_ROWS)
            removed = _delete(connection, table, condition, wanted)
            _settle(connection, table)
            database.checkpoint(connection)
            removed.complete = used(connection) <= limit or removed == Removed()
            return removed
    return Removed()


def _excess(connection: DuckDBPyConnection, limit: int) -> float:
    """Bytes to get rid of; 0 where the limit is kept."""
    size = used(connection)
    return size - limit * _SLACK if size > limit else 0.0


def _table_size(connection: DuckDBPyConnection, table: str) -> int:
    """Bytes of the blocks that hold the table's rows, at least one block."""
    query = f"""SELECT greatest(count(DISTINCT block), 1)
        FROM (SELECT unnest(list_append(additional_block_ids, block_id)) AS block FROM pragma_storage_info('{table}'))"""
    blocks = connection.execute(query).fetchall()[0][0]
    size = connection.execute(
        "SELECT block_size FROM pragma_database_size() WHERE database_name = current_database()"
    ).fetchall()[0][0]
    return int(blocks * size)


def _settle(connection: DuckDBPyConnection, table: str) -> None:
    """Writes what is left of a table anew if it is one row group at most, whose room would not be given back otherwise."""
    rows, last = connection.execute(f"SELECT count(*), max(rowid) FROM {table}").fetchall()[0]
    if not 0 < rows <= _ROW_GROUP:
        return
    with database.transaction(connection):
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM {table}")
        connection.execute(f"DELETE FROM {table} WHERE rowid <= ?", [last])


# --- rows -------------------------------------------------------------------------------------------------------------


def _tables(policy: Policy) -> tuple[str, ...]:
    return _TABLES[:1] if policy.spans_only else _TABLES


def _arrived(connection: DuckDBPyConnection, table: str) -> str:
    """The condition for rows that every destination has got; for all of them where none is shipped to."""
    ((last,),) = connection.execute("SELECT min(commit_number) FROM shipments WHERE source = ?", [table]).fetchall()
    return "true" if last is None else f"commit_number <= {last}"


def _count(connection: DuckDBPyConnection, table: str, condition: str = "true", *, before: float | None = None) -> int:
    values = [] if before is None else [before]
    condition += "" if before is None else " AND started_at < to_timestamp(?)"
    return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {condition}", values).fetchall()[0][0])


def _delete(connection: DuckDBPyConnection, table: str, condition: str, rows: int) -> Removed:
    """Deletes the `rows` oldest rows of those that meet the condition, and those that began in the same microsecond as the last."""
    with database.transaction(connection):
        (youngest,) = connection.execute(
            f"""SELECT epoch_us(max(started_at)) FROM (
                SELECT started_at FROM {table} WHERE {condition} ORDER BY started_at LIMIT {rows})"""
        ).fetchall()[0]
        unshipped = _count_unshipped(connection, table, youngest) if condition == "true" else 0
        deleted = _delete_until(connection, table, youngest, condition)
        for beside in _BESIDE[table]:
            same = f"{table}.trace_id = {beside}.trace_id AND {table}.span_id = {beside}.span_id"
            gone = "true" if condition == "true" else f"NOT EXISTS (FROM {table} WHERE {same})"
            _delete_until(connection, beside, youngest, gone)
        if table == "llm_usage":
            _delete_until(connection, "retracted_calls", youngest, condition)
            _delete_scores(connection, youngest)
    spans, calls = (deleted, 0) if table == "spans" else (0, deleted)
    return Removed(spans, calls, unshipped=unshipped)


def _count_unshipped(connection: DuckDBPyConnection, table: str, youngest: int) -> int:
    """How many of the rows up to `youngest` a destination has not got. Of each that is so, it is written down and said."""
    most = 0
    for destination, last in connection.execute(
        "SELECT destination, commit_number FROM shipments WHERE source = ?", [table]
    ).fetchall():
        lost = _count(
            connection,
            table,
            f"coalesce(commit_number > {last}, true) AND started_at <= make_timestamptz({youngest})",
        )
        most = max(most, lost)
        if lost:
            connection.execute(
                "UPDATE shipments SET removed = removed + ? WHERE destination = ? AND source = ?",
                [lost, destination, table],
            )
            _logger.warning(
                "the limit of size has %d rows of %s removed that %s has not got: it is behind, see `otel-llm doctor`",
                lost,
                table,
                destination,
            )
    return most


def _delete_until(connection: DuckDBPyConnection, table: str, youngest: int, condition: str) -> int:
    query = f"DELETE FROM {table} WHERE started_at <= make_timestamptz(?) AND {condition}"
    return int(connection.execute(query, [youngest]).fetchall()[0][0])


def _delete_scores(connection: DuckDBPyConnection, youngest: int) -> None:
    """Deletes scores that were given by then, and of whose trace or request no call is left."""
    left = " OR ".join(
        f"{column} IN (SELECT {column} FROM llm_usage WHERE {column} IS NOT NULL)"
        for column in ("trace_id", "request_id")
    )
    connection.execute(
        f"DELETE FROM llm_scores WHERE scored_at <= make_timestamptz(?) AND NOT coalesce({left}, false)", [youngest]
    )
