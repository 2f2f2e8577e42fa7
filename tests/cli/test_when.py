"""Times as people type them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time with two clock changes a year."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


NOW = datetime.fromisoformat("2026-11-21T15:30:00+01:00")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-11-21T13:30:00+01:00"),
        ("90m", "2026-11-21T14:00:00+01:00"),
        ("90min", "2026-11-21T14:00:00+01:00"),
        ("1.5h", "2026-11-21T14:00:00+01:00"),
        ("30s", "2026-11-21T15:29:30+01:00"),
        ("7d", "2026-11-14T15:30:00+01:00"),
        ("2W", "2026-11-07T15:30:00+01:00"),
        ("today", "2026-11-21T00:00:00+01:00"),
        ("Yesterday", "2026-11-20T00:00:00+01:00"),
        ("2026-11", "2026-11-01T00:00:00+01:00"),
        ("last-month", "2026-10-01T00:00:00+02:00"),
        ("2026-11-01", "2026-11-01T00:00:00+01:00"),
        (" 2026-11-01 ", "2026-11-01T00:00:00+01:00"),
        ("2026-11-01T14:30", "2026-11-01T14:30:00+01:00"),
        ("2026-11-01 14:30:15", "2026-11-01T14:30:15+01:00"),
        ("2026-11-01T14:30Z", "2026-11-01T14:30:00+00:00"),
        ("2026-07-01", "2026-07-01T00:00:00+02:00"),  # summer time, though it is winter now
    ],
)
def test_since(text: str, expected: str) -> None:
    assert when.since(text, NOW) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-11-21T13:30:00+01:00"),
        ("2026-11-01T14:30", "2026-11-01T14:30:00+01:00"),
        ("today", "2026-11-22T00:00:00+01:00"),
        ("yesterday", "2026-11-21T00:00:00+01:00"),
        ("2026-11-30", "2026-12-01T00:00:00+01:00"),
        ("2026-10-25", "2026-10-26T00:00:00+01:00"),  # a day of 25 hours
        ("2026-12", "2027-01-01T00:00:00+01:00"),
        ("last-month", "2026-11-01T00:00:00+01:00"),
    ],
)
def test_until_takes_the_whole_of_a_day_or_month(text: str, expected: str) -> None:
    assert when.until(text, NOW) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    "text", ["", "soon", "2x", "-2h", "2026-13", "2026-02-30", "99999999999d", "9999-12-31", "0001-01-01"]
)
def test_what_is_no_time_is_named_with_what_would_be(text: str) -> None:
    with pytest.raises(CommandError, match=r"--until '.*' is not a time; use 2h, 7d, today") as refusal:
        when.until(text, NOW)
    assert repr(text) in str(refusal.value)
