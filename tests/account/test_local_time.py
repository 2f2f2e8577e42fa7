"""Local time by arithmetic is what DuckDB's calendar says, in every zone, on both sides of every change of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otel_llm.account.in_duckdb.local_time import local

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
)
"""Among them one with three quarters of an hour, one whose summer is half an hour, one with four changes a year, and one that
has skipped a day."""

MOMENTS = st.datetimes(datetime(1972, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


def days_of(year: int) -> list[datetime]:
    return [datetime(year, 1, 1, tzinfo=UTC) + timedelta(hours=hours) for hours in range(365 * 24)]


@settings(deadline=None, max_examples=20)
@given(zone=st.sampled_from(ZONES), moments=st.lists(MOMENTS, min_size=1, max_size=20))
@example(zone="Europe/Berlin", moments=days_of(2026))
@example(zone="Australia/Lord_Howe", moments=days_of(2026))
@example(zone="Africa/Casablanca", moments=days_of(2026))
@example(zone="Pacific/Apia", moments=days_of(2011))
def test_it_is_what_the_calendar_says(zone: str, moments: list[datetime]) -> None:
    assert differences(zone, [moment.isoformat() for moment in moments]) == []


@pytest.mark.parametrize(
    "moments", [[], ["1890-01-01 00:00:00Z", "2026-07-01 00:00:00Z"], ["infinity", "2026-07-01 00:00:00Z"]]
)
def test_where_arithmetic_does_not_reach_the_calendar_is_asked(moments: list[str]) -> None:
    assert differences("America/New_York", moments) == []


def test_a_moment_that_is_not_known_has_no_local_time() -> None:
    with store("Europe/Berlin", ["2026-07-01 00:00:00Z"]) as connection:
        connection.execute("INSERT INTO calls VALUES (NULL)")
        found = connection.execute(f"SELECT count({local_in(connection)}) FROM calls").fetchall()
    assert found == [(1,)]


def store(zone: str, moments: list[str]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(f"SET TimeZone = '{zone}'")
    connection.execute("CREATE TABLE calls AS SELECT unnest($1::TIMESTAMPTZ[]) AS started_at", [moments])
    return connection


def local_in(connection: duckdb.DuckDBPyConnection) -> str:
    return local(lambda sql: connection.execute(sql).fetchall(), "started_at", "calls")


def differences(zone: str, moments: list[str]) -> list[object]:
    with store(zone, moments) as connection:
        sql = local_in(connection)
        return connection.execute(
            f"SELECT started_at::VARCHAR, {sql} FROM calls WHERE {sql} IS DISTINCT FROM started_at::TIMESTAMP"
        ).fetchall()
