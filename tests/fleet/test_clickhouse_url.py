"""The URL of a ClickHouse, and what is said of those that are none."""

from __future__ import annotations

import pytest

from otel_llm.fleet.clickhouse.server_url import BadURL, ClickHouseURL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clickhouse://ship@ch.example:8124/otel", ClickHouseURL("ch.example", 8124, "otel", "ship")),
        ("clickhouses://ship@ch.example/otel/", ClickHouseURL("ch.example", 8443, "otel", "ship", tls=True)),
        (" clickhouse://ch.example\n", ClickHouseURL("ch.example", 8123)),
        ("ClickHouse://a%40b@[::1]/my%20account", ClickHouseURL("::1", 8123, "my account", "a@b")),
    ],
)
def test_what_it_says(text: str, expected: ClickHouseURL) -> None:
    assert ClickHouseURL.parse(text) == expected


def test_it_is_written_as_it_is_read() -> None:
    for text in ("clickhouse://ship@ch.example:8124/otel", "clickhouses://default@[::1]:8443/default"):
        assert str(ClickHouseURL.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "clickhouse://", "clickhouse:///otel", "http://ch.example/otel", "clickhouse://ch.example/a/b", "clickhouse://ch.example:port/a",
        "clickhouse://ch.example/otel?secure=true", "clickhouse://ch.example/otel#x", "clickhouse://[::1/otel", "usage.duckdb",
    ],
)  # fmt: skip
def test_what_is_none_is_said_with_the_form(text: str) -> None:
    with pytest.raises(BadURL, match=r"is not a ClickHouse URL.*use clickhouse://user@host:8123/database"):
        ClickHouseURL.parse(text)


def test_a_password_in_it_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadURL, match="set CLICKHOUSE_PASSWORD") as raised:
        ClickHouseURL.parse("clickhouse://ship:hunter2@ch.example/otel")
    assert "hunter2" not in str(raised.value)
