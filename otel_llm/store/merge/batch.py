"""Journal lines in DuckDB: the temporary tables that a merge and a reader's overlay both send them through."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.prices.book import PriceBook
from otel_llm.settings import settings
from otel_llm.store.errors import StoreError
from otel_llm.store.journal import record
from otel_llm.store.merge import conversations, duplicates, estimates, rows
from otel_llm.store.paths import StorePaths
from otel_llm.support import files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger("otel_llm")

Lines = Mapping[str, tuple[bytes, list[bytes]]]
"""By segment name: its header line, and start and end lines."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the table `batch` holds: each span once."""

    rows: int
    interrupted: int
    first_us: int
    """When its first span began, in microseconds since 1970; its last one at `last_us`."""
    last_us: int
    shared: bool = False
    """There are calls in it that other instrumentations or processes may have reported too."""
    exported: bool = False
    """There are spans in it that go out over OTLP."""
    chained: bool = False
    """There are calls in it that go on from a response of another."""
    unreported: bool = False
    """There are calls in it that were billed and told no usage."""
    received: bool = False
    """There are rows in it that have come whole, as account records."""


TABLES: Final = rows.TABLES | duplicates.TABLES | conversations.TABLES
_MAX_TRIALS: Final = 200
_EMPTY: Final = Batch(0, 0, 0, 0)


def prepare(connection: DuckDBPyConnection) -> None:
    """Makes the tables and statements that the other functions need; once for each connection.

    No other temporary table may be made where merges are many: DuckDB would plan the prepared statements anew for each use.
    """
    for name, types in TABLES.items():
        connection.execute(rows.create_table(name, types))
    # There is nothing in these queries to optimise, and the attempt takes longer than running them on a small batch.
    connection.execute("PRAGMA disable_optimizer")
    try:
        for name, statement in rows.STATEMENTS.items():
            connection.execute(f"PREPARE {name} AS {statement}")
    finally:
        connection.execute("PRAGMA enable_optimizer")


def clear_away(connection: DuckDBPyConnection) -> None:
    """Drops the tables that `prepare` made: they would hide stored ones of the same names from whoever goes on to read."""
    for name in TABLES:
        connection.execute(f"DROP TABLE temp.{name}")


def load(connection: DuckDBPyConnection, paths: StorePaths, lines: Lines) -> tuple[Batch, dict[str, list[bytes]]]:
    """Fills the tables `batch` and `usage_batch`. Lines that the database refuses are left out, and returned by segment.

    Raises duckdb.Error for anything but such lines, StoreError where there are less rows than lines: nothing is taken then.
    """
    import duckdb

    refused: dict[str, list[bytes]] = {}
    try:
        loaded = _load(connection, paths, lines)
    except (duckdb.InvalidInputException, duckdb.DataError, _Incomplete) as error:
        # Only these can be the fault of a line. Anything else (no memory, no room, a fault in our SQL) is not, and a line
        # must not be put aside for it.
        _logger.warning("the database refused a batch of the journal (%s); looking for the lines to blame", error)
        loaded, refused = _load_good(connection, paths, lines)
    if loaded.rows:
        price(connection, paths)
    return loaded, refused


def _load_good(connection: DuckDBPyConnection, paths: StorePaths, lines: Lines) -> tuple[Batch, dict[str, list[bytes]]]:
    refused: dict[str, list[bytes]] = {}
    good: dict[str, tuple[bytes, list[bytes]]] = {}
    for segment, (header, each) in lines.items():
        named = [line for line in each if _is_named(line)]
        kept, bad = _sift(connection, paths, header, named)
        good[segment] = header, kept
        bad += [line for line in each if not _is_named(line)]
        if bad:
            refused[segment] = bad
    return _load(connection, paths, good), refused


class _Incomplete(StoreError):
    """There are less rows than lines. Whoever took them for merged would delete a segment with calls that are nowhere else."""


def _is_named(line: bytes) -> bool:
    """Whether it says of which span it is."""
    try:
        one = record.decode(line)
    except ValueError:
        return False
    return one.get("t") is not None and one.get("s") is not None


def _load(connection: DuckDBPyConnection, paths: StorePaths, lines: Lines) -> Batch:
    """The lines go through temporary files: DuckDB's own reader takes them without any Python per row."""
    blocks = [[header, *each] if header else each for header, each in lines.values() if each]
    if not blocks:
        return _EMPTY
    for table in rows.TABLES:
        connection.execute(f"TRUNCATE {table}")
    with _files(paths, blocks) as files:
        longest = max(len(line) for block in blocks for line in block)
        _require(connection.execute(rows.load_lines(files, longest)), sum(map(len, blocks)), "lines", paths)
    whole = sum(record.kind(line) == b"u" for _, each in lines.values() for line in each)
    spans = sum(len(each) for _, each in lines.values()) - whole
    _require(connection.execute("EXECUTE fill_batch"), spans, "records", paths)
    if whole:
        _require(connection.execute("EXECUTE fill_received"), whole, "account records", paths)
    return _measure(connection)


def _require(inserted: DuckDBPyConnection, expected: int, what: str, paths: StorePaths) -> None:
    (rows,) = inserted.fetchall()[0]
    if rows != expected:
        raise _Incomplete(f"DuckDB has read {rows} of {expected} {what} of the journal {paths.journal}")


def _measure(connection: DuckDBPyConnection) -> Batch:
    count, interrupted, different, *rest = connection.execute("EXECUTE measure_batch").fetchall()[0]
    if different < count:
        connection.execute(rows.DROP_REPEATED)
        count, interrupted, _, *rest = connection.execute("EXECUTE measure_batch").fetchall()[0]
    first_us, last_us, units, *flags = rest
    if units:
        connection.execute("EXECUTE fill_units")
    return Batch(count, interrupted, first_us or 0, last_us or 0, *flags)


@contextmanager
def _files(paths: StorePaths, blocks: list[list[bytes]]) -> Iterator[list[str]]:
    # Beside the journal, where there is room for it by all odds; where that may only be read, in the system's own place.
    folder = paths.journal if os.access(paths.journal, os.W_OK) else None
    names: list[str] = []
    try:
        for block in blocks:
            fd, name = tempfile.mkstemp(prefix=".batch-", suffix=".tmp", dir=folder)
            names.append(name)
            with os.fdopen(fd, "wb") as file:
                files.make_private(
                    fd, Path(name).parent
                )  # DuckDB opens it by its name, and a umask may forbid even that
                file.write(b"\n".join(block))
                file.write(b"\n")
        yield names
    finally:
        for name in names:
            Path(name).unlink(missing_ok=True)


def _sift(
    connection: DuckDBPyConnection, paths: StorePaths, header: bytes, lines: list[bytes]
) -> tuple[list[bytes], list[bytes]]:
    """Lines that load and lines that do not, by halving; after `_MAX_TRIALS` what is still doubtful counts as bad."""
    import duckdb

    good: list[bytes] = []
    bad: list[bytes] = []
    doubtful = [lines]
    trials = 0
    while doubtful:
        each = doubtful.pop()
        trials += 1
        if trials > _MAX_TRIALS:
            bad += each
            continue
        try:
            _load(connection, paths, {"": (header, each)})
            good += each
        except (duckdb.InvalidInputException, duckdb.DataError):
            if len(each) == 1:
                bad += each
            else:
                half = len(each) // 2
                doubtful += [each[half:], each[:half]]
    return good, bad


def store(connection: DuckDBPyConnection, batch: Batch) -> int:
    """Puts the batch into the tables and returns the number of spans written.

    What is stored already is left out, but for calls that were given up too early: their end replaces them.
    """
    span = batch.first_us, batch.last_us
    known, beside_records = connection.execute(rows.any_known(*span)).fetchall()[0]
    if batch.received or beside_records:
        connection.execute(rows.drop_received("FROM received_rows", *span))
        connection.execute(
            rows.leave_to_records(f"{rows.RECEIVED} UNION ALL {rows.received_in('received_rows', *span)}")
        )
        connection.execute(f"INSERT INTO received_rows BY NAME {rows.RECEIVED}")
        known = True
    if known:
        connection.execute(rows.count_on("llm_usage", *span))
        connection.execute(rows.drop_replaced("llm_usage", *span))
        connection.execute(rows.next_version("llm_usage", *span))
        for table in ("llm_usage", "spans"):
            connection.execute(rows.drop_interrupted(table, *span))
            connection.execute(rows.drop_known(table, *span))
    written = connection.execute(rows.insert_spans("spans")).fetchall()[0][0]
    if batch.exported:
        connection.execute(rows.INSERT_PENDING)
    settled = duplicates.settle(connection, batch.first_us, batch.shared)
    estimated = batch.unreported and estimates.fill(connection, estimates.lately(connection, "llm_usage"))
    if settled:
        _price_again(connection)
    elif known or estimated:
        _fill_usage_again(connection)
    if known:
        connection.execute(rows.RETRACT_UNCOUNTED)
    conversations.settle(connection, batch.chained)
    connection.execute(rows.insert_usage("llm_usage"))
    return int(written)


def acknowledge(connection: DuckDBPyConnection, lines: Iterable[bytes]) -> None:
    """Notes what has arrived over OTLP, as the lines of the journal tell that (see `record.acknowledged`)."""
    arrived: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        with suppress(ValueError):  # whole, but not ours: nothing waits for it
            endpoint, ids = record.acknowledged(line)
            arrived.setdefault(endpoint, []).extend(ids)
    for endpoint, ids in arrived.items():
        traces, spans = [trace for trace, _ in ids], [span for _, span in ids]
        connection.execute(rows.DROP_ARRIVED, {"endpoint": endpoint, "traces": traces, "spans": spans})


def overlay(connection: DuckDBPyConnection, batch: Batch, stored: str) -> None:
    """Puts what the tables of the schema `stored` do not have into the temporary tables `new_spans` and `new_llm_usage`."""
    span = batch.first_us, batch.last_us
    # Stored rows of an earlier version count none.
    both = f"(FROM new_llm_usage UNION ALL BY NAME FROM {stored}.llm_usage)"
    received = _overlay_received(connection, stored, both, span)
    connection.execute(rows.next_version(both, *span))
    connection.execute(rows.drop_interrupted("new_llm_usage", *span))
    connection.execute(rows.drop_interrupted("new_spans", *span))
    connection.execute(rows.drop_known("new_spans", *span))
    for table in ("llm_usage", "spans"):
        connection.execute(rows.drop_known(f"{stored}.{table}", *span, but_interrupted=True))
    connection.execute(rows.insert_spans("new_spans"))
    settled = duplicates.settle(connection, batch.first_us, batch.shared, stored, received)
    if batch.unreported:
        # Stored rows of an earlier version have no lengths.
        lately = estimates.lately(connection, f"{stored}.llm_usage")
        estimates.fill(connection, f"FROM new_llm_usage UNION ALL BY NAME ({lately})")
    if settled:
        _price_again(connection)
    else:
        _fill_usage_again(connection)
    conversations.settle(connection, batch.chained, stored)
    connection.execute(rows.insert_usage("new_llm_usage"))


def _overlay_received(connection: DuckDBPyConnection, stored: str, both: str, span: tuple[int, int]) -> str:
    """Has the rows that have come whole take the place of others, `both` stored and new. Returns which they are, as a query."""
    # A file of an earlier version has no such table.
    there = connection.execute(
        "SELECT exists(FROM duckdb_tables() WHERE database_name || '.main' = $1 AND table_name = 'received_rows')",
        [stored.replace('"', "")],
    ).fetchall()[0][0]
    earlier = rows.received_in(f"{stored}.received_rows" if there else "new_received_rows", *span)
    connection.execute(rows.drop_received(f"{earlier} UNION ALL FROM new_received_rows", *span))
    connection.execute(rows.leave_to_records(f"{rows.RECEIVED} UNION ALL FROM new_received_rows"))
    # A span hides the stored row that was made of its beginning; here it would hide one that is whole.
    connection.execute(rows.leave_to_records(earlier))
    connection.execute(f"DELETE FROM batch USING ({earlier}) AS stored WHERE has_record AND {rows.same_as('stored')}")
    connection.execute(f"INSERT INTO new_received_rows BY NAME {rows.RECEIVED}")
    connection.execute(rows.count_on(both, *span))
    connection.execute(rows.drop_replaced("new_llm_usage", *span))
    connection.execute(f"INSERT INTO hidden SELECT trace_id, span_id FROM ({rows.RECEIVED})")
    return f"(FROM {stored}.received_rows UNION ALL FROM new_received_rows)" if there else "new_received_rows"


_prices = PriceBook()


def price(connection: DuckDBPyConnection, paths: StorePaths | None = None) -> None:
    """Fills `usage_batch`, which is empty, with the calls in `batch` and what they cost; `paths` where that is of another store."""
    _prices.overrides = settings().prices
    if paths is not None:
        _prices.lists.folder = paths.prices
        _prices.library.path = paths.quotes
    prices = _prices.rows(connection.execute("EXECUTE price_keys").fetchall())
    if prices:
        connection.execute(rows.insert_prices(len(prices)), [value for price in prices for value in price])
    _fill_usage(connection)


def _fill_usage(connection: DuckDBPyConnection) -> None:
    ((units, given),) = connection.execute("EXECUTE any_units").fetchall()
    connection.execute("EXECUTE fill_usage_with_units" if units else "EXECUTE fill_usage")
    if given:
        connection.execute("EXECUTE fill_given")


def _price_again(connection: DuckDBPyConnection) -> None:
    """After rows of the batch have become others."""
    connection.execute("TRUNCATE price")
    connection.execute("TRUNCATE usage_batch")
    price(connection)


def _fill_usage_again(connection: DuckDBPyConnection) -> None:
    """After the batch has lost some of its rows."""
    connection.execute("TRUNCATE usage_batch")
    _fill_usage(connection)
