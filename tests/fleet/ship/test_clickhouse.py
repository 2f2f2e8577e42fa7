"""ClickHouse as a destination: what arrives there, how often, and what is said of what does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from otel_llm.account.clickhouse_engine import ClickHouseEngine
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.ship.clickhouse import ClickHouseDestination
from otel_llm.fleet.ship.destination import Block, Destination, Never, NotNow
from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS, Row
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.paths import StorePaths
from tests.fleet import clickhouse_server
from tests.fleet.rows import bare_call, full_call, full_span
from tests.fleet.ship.conftest import drain, shipper_to
from tests.fleet.ship.conftest import stored as stored_here


@pytest.fixture
def url(clickhouse: str) -> ClickHouseURL:
    clickhouse_server.empty(clickhouse)
    return ClickHouseURL.parse(clickhouse)


@pytest.fixture
def destination(url: ClickHouseURL) -> Iterator[Destination]:
    destination = ClickHouseDestination(url)
    yield destination
    destination.close()


def stored(url: ClickHouseURL, source: str = "llm_usage") -> list[Row]:
    """The rows that count there, as they travel."""
    columns = [*USAGE_COLUMNS, RETRACTED] if source == "llm_usage" else [*SPAN_COLUMNS]
    engine = ClickHouseEngine(ClickHouseClient(url))
    found = engine.stream(f"SELECT {', '.join(columns)} FROM {source} ORDER BY trace_id, span_id", {})
    return [dict(zip(columns, row, strict=True)) for row in found]


def as_there(row: Row) -> Row:
    """The row as ClickHouse has it: no NULL for lists and mappings."""
    empty = {"finish_reasons": [], "tags": {}, "units": {}}
    return {name: empty.get(name) if value is None else value for name, value in row.items()}


def test_each_column_arrives_as_it_is(destination: Destination, url: ClickHouseURL) -> None:
    calls = [
        full_call(1),
        bare_call(2),
        full_call(3, stream=False, cost_usd="-0.000000001", started_at="2026-01-01T00:00:00.999999Z"),
    ]
    spans = [full_span(1), full_span(2, attributes=None, status_message=None)]
    assert destination.send(Block("llm_usage", calls)).refused == 0
    destination.send(Block("spans", spans))
    assert stored(url) == [as_there(call) for call in calls]
    assert stored(url, "spans") == spans


def test_what_comes_again_counts_once_and_the_newest_counts(destination: Destination, url: ClickHouseURL) -> None:
    first = [bare_call(number, cost_usd="0.500000000") for number in range(3)]
    second = [bare_call(1, cost_usd="0.750000000", row_version=2)]
    for rows in (first, first, second, first):  # a batch may come again after what followed it
        destination.send(Block("llm_usage", rows))
    assert [row["cost_usd"] for row in stored(url)] == ["0.500000000", "0.750000000", "0.500000000"]
    destination.send(Block("llm_usage", [bare_call(2, row_version=2, retracted=True)]))
    destination.send(Block("llm_usage", first))
    assert [row["cost_usd"] for row in stored(url)] == ["0.500000000", "0.750000000"]
    # The same by a view, for whoever asks without our settings.
    plain = ClickHouseClient(url)
    assert [*plain.rows("SELECT count(), sum(cost_usd) FROM llm_usage_final")][2] == [2, 1.25]
    assert [*plain.rows("SELECT calls, cost_usd FROM llm_daily")][2] == [2, 1.25]
    assert [*plain.rows("SELECT count() FROM llm_usage SETTINGS final = 0")][2] > [2]


def test_the_right_to_insert_is_enough(url: ClickHouseURL, monkeypatch: pytest.MonkeyPatch) -> None:
    ship = replace(url, user="ship")
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "a secret")
    sender = ClickHouseDestination(ship)
    assert sender.name == str(ship) and "secret" not in sender.name
    sender.send(Block("llm_usage", [bare_call()]))
    sender.send(Block("spans", [full_span()]))
    with pytest.raises(Exception, match=r"Not enough privileges.*roles\.sql"):
        ClickHouseClient(ship).execute("SELECT 1 FROM llm_usage")
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "")
    assert len(stored(url)) == 1


@pytest.mark.parametrize("password", ["", "another"])
def test_who_is_not_let_in_tries_again_later(
    url: ClickHouseURL, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", password)
    with pytest.raises(
        NotNow, match="does not let us in: check the user in the URL, and CLICKHOUSE_PASSWORD"
    ) as raised:
        ClickHouseDestination(replace(url, user="ship")).send(Block("llm_usage", [bare_call()]))
    assert not password or password not in str(raised.value)


def test_tables_that_are_not_there_are_waited_for(url: ClickHouseURL) -> None:
    with pytest.raises(NotNow, match="collector-config/clickhouse"):
        ClickHouseDestination(replace(url, database="elsewhere")).send(Block("llm_usage", [bare_call()]))


@pytest.mark.parametrize(
    "columns",
    [{"started_at": "yesterday"}, {"cost_usd": "12345678901.5"}, {"input_tokens": "many"}, {"tags": "no mapping"}],
)
def test_what_it_cannot_read_is_refused_for_ever(
    columns: dict[str, Any], destination: Destination, url: ClickHouseURL
) -> None:
    with pytest.raises(Never) as raised:
        destination.send(Block("llm_usage", [bare_call(1), bare_call(2, **columns)]))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    destination.send(Block("llm_usage", [bare_call(1)]))
    assert [row["trace_id"][-1] for row in stored(url)] == ["1"]


def test_nobody_there_is_for_now() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            NotNow, match=f"clickhouse://default@127.0.0.1:{port}/default cannot be reached: Connection refused"
        ):
            ClickHouseDestination(ClickHouseURL("127.0.0.1", port)).send(Block("llm_usage", [bare_call()]))


@pytest.mark.parametrize(
    ("status", "text", "verdict"),
    [
        (503, "busy", NotNow),
        (500, "Code: 241. DB::Exception: Memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED)", NotNow),
        (500, "Code: 252. DB::Exception: Too many parts (600) in all. Merges are slow. (TOO_MANY_PARTS)", NotNow),
        (500, "Code: 252. DB::Exception: Too many partitions for single INSERT block. (TOO_MANY_PARTS)", Never),
        (
            500,
            "Code: 16. DB::Exception: No such column units in table otel.llm_usage. (NO_SUCH_COLUMN_IN_TABLE)",
            NotNow,
        ),
        (413, "too large", Never),
        (500, "Code: 27. DB::Exception: Cannot parse input: expected '\"'. (CANNOT_PARSE_INPUT)", Never),
    ],
)
def test_which_refusals_are_for_ever(status: int, text: str, verdict: type[NotNow | Never]) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(verdict) as raised:
                ClickHouseDestination(ClickHouseURL("127.0.0.1", server.server_address[1])).send(
                    Block("llm_usage", [bare_call()])
                )
        finally:
            server.shutdown()
    assert not isinstance(raised.value, NotNow) or raised.value.retry_after == 7.0


def test_a_connection_that_was_closed_meanwhile_is_opened_again(
    destination: ClickHouseDestination, url: ClickHouseURL
) -> None:
    destination.send(Block("llm_usage", [bare_call(1)]))
    connection = destination._client._connection
    assert connection is not None and connection.sock is not None  # it was kept
    connection.sock.shutdown(socket.SHUT_RDWR)
    destination.send(Block("llm_usage", [bare_call(2)]))
    assert len(stored(url)) == 2


def test_a_store_is_shipped_there(url: ClickHouseURL, calls: Any, paths: StorePaths) -> None:
    """In blocks, twice over, with a new price in between: as many rows and as much money as in the store."""
    calls(25)
    shipper = shipper_to(paths, str(url))
    shipper.destination.most_rows = 10  # type: ignore[misc]
    drain(shipper)
    with exclusive.alone(paths) as connection:
        connection.execute("UPDATE llm_usage SET cost_usd = NULL, price_source = 'no price'")
        assert repricing.reprice(connection, repricing.Choice()).changed == 25
        connection.execute("UPDATE shipments SET commit_number = 0")  # as if nothing had been written down
    drain(shipper)
    there, here = (
        [row | {"cost_usd": Decimal(row["cost_usd"])} for row in rows]
        for rows in (stored(url), [as_there(row) for _, row in sorted(stored_here(paths).items())])
    )
    assert there == here
    assert {row["row_version"] for row in stored(url)} == {2}
