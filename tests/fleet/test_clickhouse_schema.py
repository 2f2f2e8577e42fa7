"""collector-config/clickhouse: the tables have the columns of the account, and what comes by a Collector is what comes directly."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from otel_llm.account.clickhouse_engine import ClickHouseEngine
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.usage_log_record import SCOPE, log_record
from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS, Kind, Row
from tests.fleet import clickhouse_server
from tests.fleet.rows import bare_call, full_call
from tests.fleet.ship.test_clickhouse import as_there, stored

TYPES: dict[Kind, tuple[str, ...]] = {
    Kind.TEXT: ("Nullable(String)", "LowCardinality(Nullable(String))"),
    Kind.JSON: ("Nullable(String)",),
    Kind.BIG_INTEGER: ("Nullable(Int64)",),
    Kind.INTEGER: ("Nullable(Int32)",),
    Kind.SMALL_INTEGER: ("Nullable(UInt8)",),
    Kind.NUMBER: ("Nullable(Float64)",),
    Kind.DECIMAL: ("Nullable(Decimal(18, 9))",),
    Kind.BOOLEAN: ("Nullable(Bool)",),
    Kind.TEXTS: ("Array(Nullable(String))",),
    Kind.TEXT_MAP: ("Map(String, Nullable(String))",),
    Kind.NUMBER_MAP: ("Map(String, Nullable(Float64))",),
}
"""The type of a column there, by what it holds."""
OF_EVERY_ROW = {
    "started_at": "DateTime64(6, 'UTC')",
    "trace_id": "String",
    "span_id": "String",
    "row_version": "UInt32",
    RETRACTED: "UInt8",
}


@pytest.fixture
def client(clickhouse: str) -> ClickHouseClient:
    clickhouse_server.empty(clickhouse)
    return ClickHouseClient(ClickHouseURL.parse(clickhouse))


@pytest.mark.parametrize(
    ("table", "columns"), [("llm_usage", {**USAGE_COLUMNS, RETRACTED: Kind.BOOLEAN}), ("spans", SPAN_COLUMNS)]
)
def test_the_columns_are_those_of_the_store(table: str, columns: Mapping[str, Kind], client: ClickHouseClient) -> None:
    names, types, *_ = client.rows(f"SELECT * FROM {table} LIMIT 0")
    assert names == [*columns]
    for name, type_ in zip(names, types, strict=True):
        assert type_ in ((OF_EVERY_ROW[name],) if name in OF_EVERY_ROW else TYPES[columns[name]]), name


def test_the_views_have_the_columns_of_those_in_the_store(client: ClickHouseClient) -> None:
    from otel_llm.account.opening import nothing_recorded

    store = nothing_recorded()
    for view in ("llm_daily", "llm_conversations"):
        names, *_ = client.rows(f"SELECT * FROM {view} LIMIT 0")
        assert names == [column[0] for column in store.execute(f"FROM {view}").description or ()]


def test_every_file_is_one_that_the_server_reads(client: ClickHouseClient) -> None:
    for file in ("admin/roles.sql", "admin/cluster.sql"):
        found = clickhouse_server.statements(file)
        assert len(found) > 6
        for statement in found:
            ((_), _, (formatted,)) = client.rows("SELECT formatQuery({sql:String})", values={"sql": statement})
            assert formatted


def test_the_variant_for_a_cluster_is_made_of_the_same_files() -> None:
    directory = clickhouse_server.SCHEMA / "admin"
    made = runpy.run_path(str(directory / "cluster.py"))["cluster_sql"]()
    assert (directory / "cluster.sql").read_text(encoding="utf-8") == f"{made}\n", "run admin/cluster.py again"
    tables = [one for one in clickhouse_server.statements() if one.startswith("CREATE TABLE")]
    assert made.count("ENGINE = Replicated") == made.count("ENGINE = Distributed") == len(tables) == 6


def test_a_row_of_the_account_has_no_end_and_a_span_has() -> None:
    account, _, spans = (one for one in clickhouse_server.statements("1_account.sql") if one.startswith("CREATE TABLE"))
    assert "TTL" not in account and "TTL toDateTime(started_at" in spans


# --- by a Collector ---------------------------------------------------------------------------------------------------


def exported(row: Row) -> dict[str, Any]:
    """The log record of a row as the Collector's exporter writes it: attributes are text, by pdata's `AsString`."""
    record = log_record(row)
    return {
        "Timestamp": f"{record.time_unix_nano // 10**9}.{record.time_unix_nano % 10**9:09}",
        "TraceId": record.trace_id.hex(),
        "SpanId": record.span_id.hex(),
        "EventName": record.event_name,
        "LogAttributes": {attribute.key: as_string(attribute.value) for attribute in record.attributes},
    }


def as_string(value: AnyValue) -> str:
    given = plain(value)
    if isinstance(given, str):
        return given
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"))


def plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [plain(item) for item in value.array_value.values]
        case "kvlist_value":
            return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
        case which:
            return getattr(value, which)


def by_collector(client: ClickHouseClient, *rows: Mapping[str, Any]) -> None:
    data = "\n".join(map(json.dumps, rows)).encode()
    client.execute("INSERT INTO otel_logs FORMAT JSONEachRow", data)


def test_a_log_record_becomes_the_row_that_it_was(client: ClickHouseClient) -> None:
    rows = [full_call(1), bare_call(2), full_call(3, stream=False, cost_usd="-0.000000001")]
    by_collector(client, *map(exported, rows))
    assert stored(client.url) == [as_there(row) for row in rows]


def test_a_batch_that_the_collector_sends_again_counts_once(client: ClickHouseClient) -> None:
    first = [bare_call(1, cost_usd="0.500000000"), bare_call(2, cost_usd="0.500000000")]
    by_collector(client, *map(exported, first))
    by_collector(
        client,
        exported(bare_call(1, cost_usd="0.750000000", row_version=2)),
        exported(bare_call(2, row_version=2, retracted=True)),
    )
    by_collector(client, *map(exported, first))
    assert [(row["trace_id"][-1], row["cost_usd"]) for row in stored(client.url)] == [("1", "0.750000000")]


def test_a_record_whose_name_the_collector_left_out_counts_too(client: ClickHouseClient) -> None:
    """One that started without ClickHouse does not know that there is a column for it."""
    unnamed = [exported(row) | {"EventName": "", "ScopeName": SCOPE} for row in (full_call(1), bare_call(2))]
    of_another = exported(bare_call(3)) | {"EventName": "", "ScopeName": "app"}
    not_a_row = exported(bare_call(4)) | {"EventName": "", "ScopeName": SCOPE}
    del not_a_row["LogAttributes"]["row_version"]
    by_collector(client, *unnamed, of_another, not_a_row)
    assert stored(client.url) == [as_there(row) for row in (full_call(1), bare_call(2))]


def test_other_log_records_and_bad_ones_hold_nothing_up(client: ClickHouseClient) -> None:
    good = exported(bare_call(1))
    other = exported(bare_call(2)) | {"EventName": "gen_ai.client.inference.operation.details"}
    untimed = exported(bare_call(3))
    untimed["LogAttributes"]["started_at"] = "soon"
    odd = exported(full_call(4))
    odd["LogAttributes"] |= {"input_tokens": "many", "cost_usd": "dear", "tags": "none", "row_version": "?"}
    by_collector(client, good, other, untimed, odd)
    found = {row["trace_id"][-1]: row for row in stored(client.url)}
    assert [*found] == ["1", "4"]
    assert (found["4"]["input_tokens"], found["4"]["cost_usd"], found["4"]["tags"]) == (None, None, {})
    assert [*ClickHouseEngine(client).ask("SELECT count() FROM otel_logs")] == [(4,)]
