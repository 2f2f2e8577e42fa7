"""Scores on their way through the journal: each counts once, the last one of its kind counts, and none is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otel_llm.store.jobs import retention
from otel_llm.store.journal import record, segments
from otel_llm.store.journal.record import Score
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import NOON, count, merging, query, write_call

TRACE, SPAN = "1" * 32, "2" * 16
AT = NOON // 1000
HOSTILE = "\"><script>window.hacked=1</script>' ; DROP TABLE llm_scores; -- \x00\r\n\u202e\U0001f600"


def score(name: str = "helpful", value: float | None = 1.0, at: int = 0, **more: Any) -> Score:
    told = {
        "trace_id": TRACE,
        "span_id": SPAN,
        "request_id": None,
        "label": None,
        "comment": None,
        "source": "app",
        **more,
    }
    return (
        told["trace_id"], told["span_id"], told["request_id"], name, value, told["label"], told["comment"], told["source"],
        AT + at,
    )  # fmt: skip


def given(journal: Journal, *scores: Score) -> None:
    for one in scores:
        journal.append(record.score_record(one))


def stored(path: Path, columns: str = "name, value") -> list[tuple[Any, ...]]:
    return query(path, f"SELECT {columns} FROM llm_scores ORDER BY ALL")


def test_a_score_is_stored_as_it_was_given(journal: Journal, store_path: Path) -> None:
    given(journal, score(), score("tone", None, label="bad", comment=HOSTILE, source="ui"), score(HOSTILE, -2.5))
    assert merge(store_path).complete
    assert stored(store_path, "trace_id, span_id, request_id, name, value, label, comment, source, epoch_us(scored_at)") == sorted(
        [score(), score("tone", None, label="bad", comment=HOSTILE, source="ui"), score(HOSTILE, -2.5)], key=lambda row: row[3]
    )  # fmt: skip


def test_a_later_score_of_the_same_takes_its_place(journal: Journal, store_path: Path) -> None:
    given(journal, score(value=1.0, at=1), score(value=2.0, at=3), score(value=3.0, at=2))
    merge(store_path)
    assert stored(store_path) == [("helpful", 2.0)]
    given(journal, score(value=4.0, at=2))
    merge(store_path)
    assert stored(store_path) == [("helpful", 2.0)], "it was given earlier than the one that is stored"
    given(journal, score(value=5.0, at=3))
    merge(store_path)
    assert stored(store_path) == [("helpful", 5.0)], "of two in one microsecond the one that came last"
    others = [
        score("other"), score(span_id="3" * 16), score(span_id=None), score(trace_id="4" * 32), score(source="ui"),
        score(trace_id=None, span_id=None, request_id="r1"), score(trace_id=None, span_id=None, request_id="r2"),
    ]  # fmt: skip
    given(journal, *others)
    merge(store_path)
    assert len(stored(store_path)) == 1 + len(others)


@pytest.mark.parametrize("seed", range(2))
def test_in_whatever_batches_the_last_one_counts(seed: int, journal: Journal, store_path: Path) -> None:
    """Merged, half merged, or read beside what is merged: it is the same account."""
    dice = random.Random(seed)
    last: dict[tuple[Any, ...], Score] = {}
    paths = StorePaths.of(store_path)
    write_call(journal)
    merge(store_path)
    for _ in range(9):
        for _ in range(dice.randrange(6)):
            one = score(
                dice.choice("ab"), float(dice.randrange(100)), dice.randrange(8),
                span_id=dice.choice([None, SPAN]), source=dice.choice(["app", "ui"]),
            )  # fmt: skip
            given(journal, one)
            key = one[:4] + one[7:8]
            if key not in last or last[key][8] <= one[8]:
                last[key] = one
        expected = sorted((one[3], one[1] or "", one[7], one[4]) for one in last.values())
        columns = "name, coalesce(span_id, ''), source, value"
        if dice.randrange(2):
            with merging(paths):
                assert stored(store_path, columns) == expected
        else:
            assert stored(store_path, columns) == expected


def test_beside_calls_in_one_batch(journal: Journal, store_path: Path) -> None:
    call = write_call(journal)
    given(journal, score(trace_id=call["t"], span_id=call["s"]))
    assert merge(store_path).rows == 1
    assert query(store_path, "SELECT value FROM llm_usage JOIN llm_scores USING (trace_id, span_id)") == [(1.0,)]


def test_one_that_is_no_score_is_put_aside(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    for bad in ({"n": 1}, {"v": "1"}, {"o": None}, {"at": "now"}, {"at": 10**18}, {"t": []}, {"l": {}}):
        journal.append(record.score_record(score()) | bad)
    given(journal, score("good"))
    result = merge(store_path)
    assert (result.complete, result.corrupt, stored(store_path)) == (True, 7, [("good", 1.0)])
    (file,) = paths.corrupt.iterdir()
    assert len(file.read_bytes().splitlines()) == 7


def test_twice_is_once(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    given(journal, score(), score("tone", 0.5))
    (segment,) = segments.list_segments(paths.journal)
    content = segment.path.read_bytes()
    merge(store_path)
    segment.path.with_name("20200101T000000-1-00000000-000001.jsonl").write_bytes(content)
    assert merge(store_path).complete
    assert stored(store_path) == [("helpful", 1.0), ("tone", 0.5)]


_KILLED = """
import os, sys, signal
from otel_llm.store import Store
from otel_llm.store.journal import record
store = Store.open(sys.argv[1])
for number in range(200):
    store.write(record.score_record((f"{number:032x}", None, None, "n", float(number), None, None, sys.argv[2], 1763640000000000)))
    print(number, flush=True)
    if number == 150:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_many_processes_that_are_killed(store_path: Path) -> None:
    """What was given before `kill -9` is there, whoever merges when."""
    environment = {**os.environ, "OTEL_LLM_STORE": str(store_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(store_path), source], stdout=subprocess.PIPE, env=environment
        )
        for source in ("one", "two", "three")
    ]
    for process in processes:
        assert process.communicate(timeout=60)[0].split()[-1] == b"150"
        assert process.returncode == -signal.SIGKILL
    found = query(store_path, "SELECT source, count(*), sum(value) FROM llm_scores GROUP BY 1 ORDER BY 1")
    assert found == [(source, 151, 150 * 151 / 2) for source in ("one", "three", "two")]


def test_a_score_goes_with_the_last_call_of_its_trace(journal: Journal, store_path: Path) -> None:
    calls = [write_call(journal, {"otel_llm.request.id": f"r{number}"}) for number in range(3)]
    old: list[Score] = []
    kept: list[Score] = []
    for call, request in zip(calls, ("r0", "r1", "r2"), strict=True):
        (old if call is calls[0] else kept).extend(
            (score(trace_id=call["t"]), score(trace_id=None, span_id=None, request_id=request))
        )
    given(journal, *old, *kept)
    merge(store_path)
    limit = calls[0]["st"] / 1e9 + 0.0005
    retention.prune(StorePaths.of(store_path), retention.Policy(max_age=60.0), now=limit + 60)
    assert count(store_path) == 2
    assert len(stored(store_path)) == len(kept)
    retention.prune(StorePaths.of(store_path), retention.Policy(max_age=60.0), now=calls[1]["st"] / 1e9 + 60.0005)
    assert len(stored(store_path)) == 2
