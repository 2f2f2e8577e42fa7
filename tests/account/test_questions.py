"""Questions that every engine answers, in SQL that each of them has."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from otel_llm.account.call_filter import CallFilter
from otel_llm.account.clickhouse_engine import ClickHouseEngine, _local_text
from otel_llm.account.engine import Row, iso
from otel_llm.account.opening import open_store
from otel_llm.account.questions import Account
from otel_llm.account.sums import DIMENSIONS, MEASURES, Dimension
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL

EVERYTHING = CallFilter(
    since=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2027, 1, 1, tzinfo=UTC), user="u", conversation="c", module="m",
    current=True, model="gpt*", search="two words", errors=True,
)  # fmt: skip


class Unasked(ClickHouseEngine):
    """Notes what it would ask."""

    def __init__(self) -> None:
        super().__init__(ClickHouseClient(ClickHouseURL("nowhere", 1)))
        self.asked: list[str] = []

    def ask(self, sql: str, values: Any = None) -> list[Row]:
        self.asked.append(sql)
        return [(0,) * 12] if "GROUP BY" not in sql and "DISTINCT" not in sql else []


def test_clickhouse_is_asked_in_sql_of_its_long_supported_version() -> None:
    """25.8, which has IS DISTINCT FROM in joins alone and wants WHERE inside of FILTER."""
    engine = Unasked()
    account = Account(engine)
    account.sums([Dimension(name) for name in (*DIMENSIONS, "tag:team")], EVERYTHING, sort="tokens")
    for question in (
        account.unpriced,
        account.costs,
        account.unbilled,
        account.estimated,
        account.streams_without_usage,
    ):
        try:
            question(EVERYTHING)
        except (TypeError, ValueError):  # of the row that stands for an answer
            pass
    account.latest(["started_at", "tags"], EVERYTHING, 5)
    account.is_empty()
    assert len(engine.asked) >= 8
    for sql in engine.asked:
        assert "DISTINCT FROM" not in sql and "::" not in sql
        assert sql.count("FILTER (") == sql.count("FILTER (WHERE ")


def test_what_a_user_types_is_no_sql() -> None:
    """But for a condition, which is his own."""
    engine = Unasked()
    account = Account(engine)
    mark = "x' OR 1 = 1 --"
    asked = CallFilter(user=mark, conversation=mark, module=mark, model=mark, search=mark)
    account.sums([Dimension(f"tag:{mark}")], asked)
    account.latest(["user_id"], asked)
    account.traces_like(mark)
    assert len(engine.asked) == 3 and not any("1 = 1" in sql for sql in engine.asked)


@pytest.mark.parametrize("name", ["", "modl", "tag:", "1", "user; drop table llm_usage"])
def test_what_is_no_dimension(name: str) -> None:
    assert Dimension.named(name) is None
    assert Dimension.named("tag:x") == Dimension("tag:x")


def test_an_account_of_which_nothing_is_there(tmp_path: Path) -> None:
    with open_store(tmp_path / "usage.duckdb") as account:
        assert account.is_empty() and account.sums([Dimension("model")]) == []
        assert account.contents().calls == 0 and account.contents().first is None
        assert account.latest_trace() is None and account.run("0" * 32) == []
    assert [*tmp_path.iterdir()] == []


def test_the_measures_of_a_row_stand_after_its_dimensions(tmp_path: Path) -> None:
    from otel_llm.store.jobs import exclusive
    from otel_llm.store.paths import StorePaths

    store = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(
            "INSERT INTO llm_usage (started_at, trace_id, span_id, request_model) VALUES (now(), 'a', 'b', 'm')"
        )
    with open_store(store, must_exist=True) as account:
        (row,) = account.sums([Dimension("model"), Dimension("tag:team")])
        assert (row[:2], len(row)) == (("m", None), 2 + len(MEASURES))
        answer = account.query("SELECT started_at, 1 AS n FROM llm_usage")
        assert answer is not None and [*answer.names] == ["started_at", "n"]
        ((moment, number),) = answer.rows
        assert number == 1 and datetime.fromisoformat(iso(moment)).tzinfo is not None


@pytest.mark.parametrize(
    ("zone", "moment", "expected"),
    [
        ("UTC", "2026-11-20T12:00:00.250000Z", "2026-11-20 12:00:00.25+00"),
        ("UTC", "2026-11-20T12:00:00.000000Z", "2026-11-20 12:00:00+00"),
        ("America/New_York", "2026-07-01T03:00:00.000001Z", "2026-06-30 23:00:00.000001-04"),
        ("Asia/Kolkata", "2026-11-20T12:00:00Z", "2026-11-20 17:30:00+05:30"),
    ],
)
def test_a_moment_of_clickhouse_is_written_as_duckdb_does(
    zone: str, moment: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    import duckdb

    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        try:
            assert _local_text(moment) == expected
        finally:
            patch.undo()
            time.tzset()
    with duckdb.connect() as connection:
        connection.execute(f"SET TimeZone = '{zone}'")
        assert connection.execute("SELECT ?::TIMESTAMPTZ::VARCHAR", [moment]).fetchall() == [(expected,)]
