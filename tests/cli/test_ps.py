"""`otel-llm ps`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Run

START = {
    "k": "s", "t": "a" * 32, "s": "b" * 16, "p": None, "n": "chat gpt-5-mini", "kd": "CLIENT",
    "a": {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-5-mini", "user.id": "alice", "otel_llm.module": "search"},
}  # fmt: skip


@pytest.fixture
def journal(store_path: Path) -> Iterator[Journal]:
    writer = Journal(StorePaths.of(store_path).journal)
    yield writer
    writer.close()


def test_a_running_call_is_listed_until_it_ends(journal: Journal, run: Run) -> None:
    began = time.time_ns() - 90 * 10**9
    journal.append({**START, "st": began}, start_of=1)
    (row,) = json.loads(run("ps", "--format", "json").out)
    assert row.pop("seconds") >= 90
    assert row.pop("started_at")
    assert row == {
        "pid": os.getpid(), "name": "chat gpt-5-mini", "operation": "chat", "model": "gpt-5-mini", "user": "alice",
        "module": "search", "trace_id": "a" * 32, "span_id": "b" * 16,
    }  # fmt: skip
    table = run("ps").out
    assert "gpt-5-mini" in table
    assert "alice" in table
    journal.append({**START, "k": "e", "st": began, "et": began + 1}, end_of=1)
    assert run("ps", "--format", "json").out == "[]\n"


def test_nothing_runs(run: Run, store_path: Path) -> None:
    result = run("ps")
    assert result.out == f"Nothing is running that writes to {store_path}.\n"
    assert (result.code, result.err) == (0, "")
    assert run("ps", "--format", "csv").out.startswith("pid,started_at,")


def test_what_a_dead_program_was_doing_is_not_running(journal: Journal, run: Run, store_path: Path) -> None:
    journal.append({**START, "st": time.time_ns()}, start_of=1)
    segment = journal.segment
    assert segment is not None
    copy = segment.with_name("20261120T120000-1-cafecafe-000001.jsonl")
    copy.write_bytes(segment.read_bytes())  # nobody holds a lock on this one
    assert len(json.loads(run("ps", "--format", "json").out)) == 1
