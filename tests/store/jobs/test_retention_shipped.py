"""What is shipped stays until every destination has got it."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_llm.store.jobs import exclusive, retention
from otel_llm.store.jobs.retention import Policy, Removed
from otel_llm.store.paths import StorePaths
from tests.store.conftest import count, query
from tests.store.jobs.test_retention import DAY, NOON_SECONDS, fill, oldest, used

NOW = NOON_SECONDS + 10 * DAY


def ship(paths: StorePaths, table: str, *places: int | None) -> None:
    """Numbers rows as they come, and has destinations be so far; None: nothing is numbered for them yet."""
    with exclusive.alone(paths) as connection:
        connection.execute(f"UPDATE {table} SET commit_number = rowid + 1 WHERE ?", [any(places)])
        for number, place in enumerate(places):
            connection.execute(
                "INSERT INTO shipments VALUES (?, ?, ?, 0, 0, 0, now(), NULL)", [f"to {number}", table, place or 0]
            )


def test_by_age_only_what_has_arrived_everywhere(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 1000)
    ship(paths, "llm_usage", 400, 600)
    policy = Policy(max_age=3 * DAY)
    with exclusive.alone(paths) as connection:
        assert retention.would_remove(connection, policy, now=NOW) == Removed(700, 400)
    assert retention.prune(paths, policy, now=NOW) == Removed(700, 400)
    assert (count(store_path, "spans"), count(store_path)) == (300, 600)
    assert oldest(store_path, "llm_usage") == 4.0
    with exclusive.alone(paths) as connection:
        connection.execute("UPDATE shipments SET commit_number = 1000")
    assert retention.prune(paths, policy, now=NOW) == Removed(0, 300)


def test_a_row_that_has_changed_since_stays(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 10)
    ship(paths, "llm_usage", 10)
    with exclusive.alone(paths) as connection:
        connection.execute("UPDATE llm_usage SET commit_number = NULL WHERE rowid = 4")
    assert retention.prune(paths, Policy(max_age=0), now=NOW) == Removed(10, 9)
    assert count(store_path) == 1


def test_spans_that_are_shipped_stay_and_so_does_what_waits_for_otlp(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 10)
    ship(paths, "spans", 4)
    with exclusive.alone(paths) as connection:
        connection.execute(
            "INSERT INTO pending_exports SELECT trace_id, span_id, 'http://x', 'w', started_at FROM spans"
        )
    assert retention.prune(paths, Policy(max_age=0), now=NOW) == Removed(4, 10)
    assert (count(store_path, "spans"), count(store_path, "pending_exports")) == (6, 6)


def test_what_was_retracted_goes_with_the_calls(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 10)
    ship(paths, "llm_usage", 12)
    with exclusive.alone(paths) as connection:
        connection.execute(
            """INSERT INTO retracted_calls SELECT trace_id, span_id, started_at, 2, 11 FROM llm_usage WHERE rowid = 3;
            INSERT INTO retracted_calls SELECT trace_id, span_id, started_at, 2, NULL FROM llm_usage WHERE rowid = 4"""
        )
    assert retention.prune(paths, Policy(max_age=0), now=NOW) == Removed(10, 10)
    assert query(store_path, "SELECT commit_number FROM retracted_calls") == [(None,)]


def test_a_limit_of_size_takes_first_what_has_arrived(
    paths: StorePaths, store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(paths, 40_000, size=400)
    ship(paths, "spans", 30_000)
    limit = int(used(paths) * 0.75)
    removed = retention.prune(paths, Policy(max_size=limit), now=NOW)
    assert removed.spans <= 30_000 and removed.unshipped == 0
    assert not caplog.records
    assert used(paths) <= limit


def test_a_limit_of_size_that_forces_it_says_so(
    paths: StorePaths, store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(paths, 40_000, size=400)
    ship(paths, "spans", 10_000, 40_000)
    ship(paths, "llm_usage", None)
    limit = int(used(paths) * 0.4)
    removed = retention.prune(paths, Policy(max_size=limit), now=NOW)
    left = count(store_path, "spans")
    assert removed.unshipped == removed.spans - 10_000 == 30_000 - left > 0
    assert count(store_path) == 40_000  # spans first, here too
    assert query(store_path, "SELECT destination, source, removed FROM shipments ORDER BY ALL") == [
        ("to 0", "llm_usage", 0),
        ("to 0", "spans", removed.unshipped),
        ("to 1", "spans", 0),
    ]
    assert "rows of spans removed that to 0 has not got" in caplog.text
    assert "to 1" not in caplog.text
    assert used(paths) <= limit
