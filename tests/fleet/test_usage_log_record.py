"""A row of the store as a log record and back: every column, whatever is in it, through DuckDB and the bytes of the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_llm.fleet import usage_log_record
from otel_llm.fleet.usage_log_record import NotARecord, is_usage, row_of
from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS, Kind, Row, select_list
from otel_llm.store.file import database

LOCAL = {"commit_number"}
"""Columns that mean something in one store alone."""


@pytest.fixture(scope="module")
def store() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        database.migrate(connection)
        yield connection


@pytest.mark.parametrize(("table", "columns"), [("llm_usage", USAGE_COLUMNS), ("spans", SPAN_COLUMNS)])
def test_every_column_of_the_schema_travels(
    store: duckdb.DuckDBPyConnection, table: str, columns: dict[str, Kind]
) -> None:
    named = {"TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ", "DECIMAL(18,9)": "DECIMAL(18, 9)"}
    schema = {name: named.get(kind, kind) for name, kind, *_ in store.execute(f"DESCRIBE {table}").fetchall()}
    assert {name: kind.value for name, kind in columns.items()} == {
        name: kind for name, kind in schema.items() if name not in LOCAL
    }


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: TEXT,
    Kind.JSON: st.sampled_from(['[{"role": "user", "parts": []}]', '"é"', "1", "null"]),
    Kind.BIG_INTEGER: st.integers(-(2**63), 2**63 - 1),
    Kind.INTEGER: st.integers(-(2**31), 2**31 - 1),
    Kind.NUMBER: st.floats(allow_nan=False, allow_infinity=False),
    Kind.DECIMAL: st.decimals(-999_999_999, 999_999_999, places=9),
    Kind.BOOLEAN: st.booleans(),
    Kind.TIME: st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    Kind.TEXTS: st.lists(st.none() | TEXT, max_size=3),
    Kind.TEXT_MAP: st.dictionaries(TEXT, st.none() | TEXT, max_size=3),
    Kind.NUMBER_MAP: st.dictionaries(TEXT, st.none() | st.floats(0, 1e12), max_size=3),
}
IDENTITY = {
    "trace_id": st.binary(min_size=16, max_size=16).filter(any).map(bytes.hex),
    "span_id": st.binary(min_size=8, max_size=8).filter(any).map(bytes.hex),
    "started_at": VALUES[Kind.TIME],
    "row_version": st.integers(1, 2**31 - 1),
    "duration_ms": st.none() | st.floats(0, 1e9),
}
STORED = st.fixed_dictionaries({name: st.none() | VALUES[kind] for name, kind in USAGE_COLUMNS.items()} | IDENTITY)


def put(store: duckdb.DuckDBPyConnection, values: dict[str, Any]) -> None:
    """Writes a row with SQL, as nothing of ours does."""
    store.execute("TRUNCATE llm_usage")
    holes, parameters = [], []
    for name, value in values.items():
        kind = USAGE_COLUMNS[name]
        if isinstance(value, dict):
            holes.append(f"CAST(map(?, ?) AS {kind.value})" if value else f"CAST(map() AS {kind.value})")
            parameters += [list(value), list(value.values())] if value else []
        else:
            holes.append(f"CAST(? AS {kind.value})")
            parameters.append(str(value) if isinstance(value, Decimal | datetime) else value)
    store.execute(f"INSERT INTO llm_usage ({', '.join(values)}) VALUES ({', '.join(holes)})", parameters)


def read(store: duckdb.DuckDBPyConnection) -> Row:
    (values,) = store.execute(f"SELECT {select_list(USAGE_COLUMNS)} FROM llm_usage").fetchall()
    return dict(zip(USAGE_COLUMNS, values, strict=True)) | {RETRACTED: False}


def over_the_wire(row: Row) -> tuple[dict[str, str], LogRecord]:
    """The attributes of the resource, and the record."""
    received = ExportLogsServiceRequest.FromString(usage_log_record.request([row]).SerializeToString())
    (resource,) = received.resource_logs
    (scope,) = resource.scope_logs
    (record,) = scope.log_records
    return {each.key: each.value.string_value for each in resource.resource.attributes}, record


@given(stored=STORED)
def test_a_row_comes_back_as_it_was(store: duckdb.DuckDBPyConnection, stored: dict[str, Any]) -> None:
    put(store, stored)
    row = read(store)
    assert {name for name, value in row.items() if value is None} == {
        name for name, value in stored.items() if value is None
    }
    for name, value in stored.items():
        match value:
            case datetime():
                assert datetime.fromisoformat(row[name]) == value
            case Decimal():
                assert Decimal(row[name]) == value
            case _:
                assert row[name] == value
    resource, record = over_the_wire(row)
    assert is_usage(record)
    assert row_of(record) == row
    assert record.trace_id.hex() == stored["trace_id"]
    assert record.span_id.hex() == stored["span_id"]
    assert {attribute.key for attribute in record.attributes} == {
        name for name, value in stored.items() if value is not None and name not in ("trace_id", "span_id")
    }
    assert resource == ({} if stored["service_name"] is None else {"service.name": stored["service_name"]})
    # As a table again
    put(store, {name: row_of(record)[name] for name in USAGE_COLUMNS})
    assert read(store) == row


def a_row(**values: Any) -> Row:
    row: Row = dict.fromkeys(USAGE_COLUMNS)
    return (
        row
        | {
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "span_id": "b7ad6b7169203331",
            "started_at": "2026-11-29T14:00:00.000001Z",
            "row_version": 1,
            RETRACTED: False,
        }
        | values
    )


@pytest.mark.parametrize(("duration", "at"), [(1500.25, 1_795_960_801_500_251_000), (None, 1_795_960_800_000_001_000)])
def test_the_time_of_a_record_is_the_end_of_the_call(duration: float | None, at: int) -> None:
    _, record = over_the_wire(a_row(duration_ms=duration))
    assert record.time_unix_nano == at


def test_rows_go_below_the_service_that_asked() -> None:
    request = usage_log_record.request([a_row(service_name=name) for name in ("shop", None, "shop")])
    found = [
        ([each.value.string_value for each in resource.resource.attributes], len(resource.scope_logs[0].log_records))
        for resource in request.resource_logs
    ]
    assert found == [(["shop"], 2), ([], 1)]


def test_a_row_that_was_taken_out_says_so() -> None:
    row = a_row(row_version=2, retracted=True)
    _, record = over_the_wire(row)
    assert row_of(record) == row


def changed(change: Callable[[LogRecord], object]) -> LogRecord:
    _, record = over_the_wire(a_row(input_tokens=7, cost_usd="0.100000000", attempts=1))
    change(record)
    return record


def attribute(record: LogRecord, name: str) -> Any:
    return next((each for each in record.attributes if each.key == name), None) or record.attributes.add(key=name)


def lose(record: LogRecord, name: str) -> None:
    record.attributes.remove(attribute(record, name))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda it: it.ClearField("trace_id"), "it has no trace id"),
        (lambda it: setattr(it, "span_id", bytes(8)), "it has no span id"),
        (lambda it: setattr(it, "trace_id", b"short"), "it has no trace id"),
        (lambda it: lose(it, "started_at"), "it has no started_at"),
        (lambda it: setattr(attribute(it, "started_at").value, "string_value", "yesterday"), "its started_at is not"),
        (
            lambda it: setattr(attribute(it, "started_at").value, "string_value", "2026-13-29T14:00:00.000001Z"),
            "its started_at is not",
        ),
        (lambda it: setattr(attribute(it, "input_tokens").value, "string_value", "****"), "its input_tokens is not"),
        (lambda it: setattr(attribute(it, "input_tokens").value, "double_value", 1.5), "its input_tokens is not"),
        (lambda it: setattr(attribute(it, "attempts").value, "int_value", 2**31), "its attempts is not INTEGER"),
        (lambda it: setattr(attribute(it, "cost_usd").value, "string_value", "1e3"), "its cost_usd is not DECIMAL"),
        (lambda it: setattr(attribute(it, "tags").value, "string_value", "{}"), "its tags is not MAP"),
        (lambda it: setattr(attribute(it, "stream").value, "int_value", 1), "its stream is not BOOLEAN"),
    ],
)
def test_what_is_no_record_of_a_row_says_why(change: Callable[[LogRecord], object], why: str) -> None:
    record = changed(change)
    with pytest.raises(NotARecord, match=why):
        row_of(record)


def test_what_a_later_version_tells_beside_is_left_out() -> None:
    record = changed(lambda it: setattr(attribute(it, "a_later_column").value, "string_value", "x"))
    assert row_of(record) == a_row(input_tokens=7, cost_usd="0.100000000", attempts=1)


def test_an_older_version_that_tells_no_version_of_the_row() -> None:
    assert row_of(changed(lambda it: lose(it, "row_version")))["row_version"] == 1
