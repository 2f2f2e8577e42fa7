from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from duckdb import DuckDBPyConnection

from otel_llm.settings import reload
from otel_llm.store import Store, StoreBusy
from otel_llm.store.jobs import exclusive, merger, retention
from otel_llm.store.jobs.retention import Policy, Removed
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import NOON, count, end, identity, merging, query, start, write_call

DAY = 86400.0
NOON_SECONDS = NOON / 1e9
"""When the calls of these tests began, in seconds since 1970; `fill` spreads them over a day each."""


def fill(paths: StorePaths, rows: int, *, days: int = 10, size: int = 200, first: int = 0) -> None:
    """A store with that many calls and their spans, evenly over the days from noon on, `size` characters of text each."""
    with exclusive.alone(paths) as connection:
        made = f"""SELECT printf('%032x', number) AS trace_id, printf('%016x', number) AS span_id,
                to_timestamp({NOON_SECONDS} + number * {days * DAY / rows}) AS started_at, number
            FROM range({first}, {first + rows}) AS numbers (number)"""
        connection.execute(
            f"""INSERT INTO spans (trace_id, span_id, started_at, start_ns, attributes)
            SELECT trace_id, span_id, started_at, epoch_ns(started_at), json_object('text', left(repeat(md5(number::VARCHAR)
                || md5((number * 7)::VARCHAR) || md5((number * 11)::VARCHAR), {size // 96 + 1}), {size}))
            FROM ({made})"""
        )
        connection.execute(
            f"""INSERT INTO llm_usage (trace_id, span_id, started_at, status)
            SELECT trace_id, span_id, started_at, 'ok' FROM ({made})"""
        )


def used(paths: StorePaths) -> int:
    with exclusive.alone(paths) as connection:
        connection.execute("CHECKPOINT")
        return retention.used(connection)


def oldest(path: Path, table: str) -> float:
    """Days since noon."""
    return float((query(path, f"SELECT epoch(min(started_at)) FROM {table}")[0][0] - NOON_SECONDS) / DAY)


# --- by age -----------------------------------------------------------------------------------------------------------


def test_by_age(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 1000)
    removed = retention.prune(paths, Policy(max_age=3 * DAY), now=NOON_SECONDS + 10 * DAY)
    assert (removed.spans, removed.calls) == (700, 700)
    assert (count(store_path, "spans"), count(store_path)) == (300, 300)
    assert oldest(store_path, "spans") == oldest(store_path, "llm_usage") == 7.0


def test_spans_only(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 1000)
    policy = Policy(max_age=3 * DAY, spans_only=True)
    assert retention.prune(paths, policy, now=NOON_SECONDS + 10 * DAY) == Removed(700, 0)
    assert (count(store_path, "spans"), count(store_path)) == (300, 1000)


def test_what_is_still_in_the_journal_is_pruned_too(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    write_call(journal)
    assert retention.prune(paths, Policy(max_age=DAY), now=NOON_SECONDS + 10 * DAY) == Removed(1, 1)
    assert count(store_path) == 0


def test_a_step_is_bounded_and_spans_go_first(
    paths: StorePaths, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_ROWS", 300)
    fill(paths, 1000)
    policy, now = Policy(max_age=3 * DAY), NOON_SECONDS + 10 * DAY
    steps = []
    for _ in range(4):
        with exclusive.alone(paths) as connection:
            steps.append(retention.remove(connection, policy, now=now))
    assert steps[:2] == [Removed(300, 0, False), Removed(300, 0, False)]
    assert steps[2] == Removed(100, 300, False)
    assert retention.prune(paths, policy, now=now).complete
    assert (count(store_path, "spans"), count(store_path)) == (300, 300)
    assert steps[3].calls == 300


# --- by size ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "size", "limit"), [(6000, 2000, 6), (150_000, 40, 6)], ids=["few large", "many small"]
)
def test_by_size_spans_go_first(rows: int, size: int, limit: int, paths: StorePaths, store_path: Path) -> None:
    fill(paths, rows, size=size)
    assert used(paths) > limit * 2**20
    removed = retention.prune(paths, Policy(max_size=limit * 2**20))
    assert removed.calls == 0
    assert used(paths) <= limit * 2**20
    assert 0 < count(store_path, "spans") == rows - removed.spans
    assert count(store_path) == rows
    assert oldest(store_path, "spans") > 0
    # The newest are there, and no more was taken than had to be.
    assert query(store_path, f"SELECT count(*) FROM spans WHERE span_id = printf('%016x', {rows - 1})") == [(1,)]
    assert used(paths) > limit * 2**20 / 2


def test_by_size_calls_go_when_no_spans_are_left(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 100_000, size=10)
    limit = used(paths)
    assert retention.prune(paths, Policy(max_size=limit)) == Removed()
    removed = retention.prune(paths, Policy(max_size=2**20))
    assert removed.spans == 100_000
    assert 0 < removed.calls < 100_000
    assert used(paths) <= 2**20
    assert oldest(store_path, "llm_usage") > 0


def test_by_size_spans_only_keeps_the_account(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 50_000, size=10)
    assert retention.prune(paths, Policy(max_size=2**20, spans_only=True)) == Removed(50_000, 0)
    assert count(store_path) == 50_000


def test_the_file_does_not_grow_where_room_was_made(paths: StorePaths, store_path: Path) -> None:
    """Rows go and come: the room of the one is that of the other."""
    fill(paths, 3000, size=2000)
    sizes = []
    for turn in range(1, 7):
        retention.prune(paths, Policy(max_size=3 * 2**20))
        fill(paths, 1500, size=2000, first=3000 * turn)
        sizes.append(store_path.stat().st_size)
    assert max(sizes) < 10 * 2**20
    assert sizes[-1] <= sizes[2]


def test_what_would_be_removed(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 6000, size=2000)
    by_age, by_size, now = Policy(max_age=3 * DAY), Policy(max_size=6 * 2**20), NOON_SECONDS + 10 * DAY
    with exclusive.alone(paths) as connection:
        assert retention.would_remove(connection, by_age, now=now) == Removed(4200, 4200)
        assert retention.would_remove(connection, Policy(DAY, 2**40, spans_only=True), now=now) == Removed(5400, 0)
        assert retention.would_remove(connection, Policy(max_size=2**40), now=now) == Removed()
        estimate = retention.would_remove(connection, by_size, now=now)
    assert (count(store_path, "spans"), count(store_path)) == (6000, 6000)
    removed = retention.prune(paths, by_size, now=now)
    assert (removed.calls, estimate.calls) == (0, 0)
    assert removed.spans == pytest.approx(estimate.spans, rel=0.2)


# --- exactly once, all the same ---------------------------------------------------------------------------------------


def test_a_call_whose_span_is_gone_is_not_counted_twice(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    call = write_call(journal)
    retention.prune(paths, Policy(max_age=DAY, spans_only=True), now=NOON_SECONDS + 10 * DAY)
    journal.append(call)
    merge(store_path)
    assert (count(store_path), count(store_path, "spans")) == (1, 0)
    with merging(paths):
        journal.append(call)
        assert count(store_path) == 1


def test_an_end_replaces_an_interrupted_call_whose_span_is_gone(
    journal: Journal, paths: StorePaths, store_path: Path
) -> None:
    begin = start()
    writer = Journal(journal.directory)
    writer.append(begin, start_of=identity(begin))
    writer.close()
    assert query(store_path, "SELECT status FROM llm_usage") == [("interrupted",)]
    retention.prune(paths, Policy(max_age=DAY, spans_only=True), now=NOON_SECONDS + 10 * DAY)
    journal.append(end(begin))
    assert query(store_path, "SELECT status FROM llm_usage") == [("ok",)]


# --- in the background ------------------------------------------------------------------------------------------------


def test_a_round_is_due_once_an_hour(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 100)
    policy, now = Policy(max_age=3 * DAY), NOON_SECONDS + 5 * DAY
    assert retention.keep(paths, policy, now=now) == Removed(20, 20)
    assert retention.keep(paths, policy, now=now + 3599) is None
    assert retention.keep(paths, policy, now=now + DAY) == Removed(10, 10)
    # A clock that was years ahead does not put the next round off for years.
    assert retention.keep(paths, policy, now=now + DAY - 5) == Removed(0, 0)
    assert query(store_path, "SELECT count(*) FROM maintenance") == [(2,)]


def test_a_clock_far_ahead_is_believed_a_month_at_a_time(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 100)
    policy, now = Policy(max_age=35 * DAY), NOON_SECONDS + 10 * DAY
    assert retention.keep(paths, policy, now=now) == Removed()
    assert retention.keep(paths, policy, now=now + 3650 * DAY) == Removed(50, 50)  # 30 days: back to 5 days after noon
    assert retention.keep(paths, policy, now=now + 3650 * DAY + 60) is None
    # The clock is right again: nothing more goes, and the next month counts from there.
    assert retention.keep(paths, policy, now=now + DAY) == Removed()
    assert retention.keep(paths, policy, now=now + 31 * DAY) == Removed(10, 10)
    # `prune` is somebody's own word: it does not doubt the clock.
    assert retention.prune(paths, policy, now=now + 3650 * DAY) == Removed(40, 40)


def test_a_round_that_is_not_done_goes_on(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_ROWS", 50)
    fill(paths, 100)
    policy, now = Policy(max_age=DAY, spans_only=True), NOON_SECONDS + 8 * DAY
    assert retention.keep(paths, policy, now=now) == Removed(50, 0, False)
    assert retention.keep(paths, policy, now=now) == Removed(20, 0, True)
    assert retention.keep(paths, policy, now=now) is None


def test_it_waits_for_nobody(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(paths, 10)
    allowed: list[float] = []

    @contextmanager
    def alone(paths: StorePaths, timeout: float = exclusive.PATIENCE) -> Iterator[DuckDBPyConnection]:
        allowed.append(timeout)
        with upkeep_alone(paths, timeout) as connection:
            yield connection

    upkeep_alone = exclusive.alone
    monkeypatch.setattr(exclusive, "alone", alone)
    with merging(paths), pytest.raises(StoreBusy):
        retention.keep(paths, Policy(max_age=DAY))
    assert allowed == [0.01]
    assert retention.keep(paths, Policy(max_age=DAY)) == Removed(10, 10)


def test_the_background_thread_applies_the_settings(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_RETENTION", "90d")
    monkeypatch.setenv("OTEL_LLM_MAX_SIZE", "2GB")
    monkeypatch.setenv("OTEL_LLM_FLUSH_INTERVAL", "1h")
    reload()
    asked: list[Policy] = []

    def keep(paths: StorePaths, policy: Policy) -> Removed:
        asked.append(policy)
        return Removed(complete=len(asked) > 1)

    monkeypatch.setattr(retention, "keep", keep)
    clock = [1000.0]
    monkeypatch.setattr(merger.time, "monotonic", lambda: clock[0])
    opened = Store.open(store_path)
    opened._thread._tick()
    opened._merger.merge(0)  # the first step was not the last
    opened._merger.merge(0)
    assert asked == [Policy(90 * DAY, 2 * 2**30)] * 2
    clock[0] += 61
    opened._merger.merge(0)
    assert len(asked) == 3


def test_old_calls_go_by_themselves(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_RETENTION", "90d")
    reload()
    opened = Store.open(store_path)
    old, new = start(), start()
    new["st"] = time.time_ns()
    for begin in (old, new):
        opened.write(end(begin))
    assert opened.flush()
    assert query(store_path, "SELECT span_id FROM llm_usage") == [(new["s"],)]


def test_without_the_settings_nothing_is_removed(quiet_store: Store, store_path: Path) -> None:
    quiet_store.write(end(start(st=1)))
    assert quiet_store.flush()
    assert count(store_path) == 1


def test_a_failure_is_said_and_harms_no_merge(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_LLM_RETENTION", "90d")
    reload()

    def keep(*_: object) -> None:
        raise OSError(f"no luck in {os.getpid()}")

    monkeypatch.setattr(retention, "keep", keep)
    opened = Store.open(store_path)
    opened.write(end())
    assert opened.flush()
    assert "no luck" in caplog.text
    assert count(store_path) == 1
