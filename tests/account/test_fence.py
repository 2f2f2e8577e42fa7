"""What SQL of somebody else's can do: read the account, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import orjson
import pytest

from otel_llm.account.in_duckdb.fence import Fence, FenceError, Limits
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(path)) as connection:
        connection.execute(
            """INSERT INTO llm_usage (trace_id, span_id, started_at, request_model, cost_usd, tags)
            VALUES ('t', 's', '2026-11-20T12:00:00Z', 'gpt-5', 0.000037875, MAP {'team': 'core'})"""
        )
    return path


@pytest.fixture
def fence(store: Path) -> Iterator[Fence]:
    fence = Fence(store, Limits(seconds=60, memory_mb=200, rows=100, bytes=100_000))
    yield fence
    fence.close()


def test_it_answers(fence: Fence) -> None:
    answer = fence.run("SELECT 1; SELECT request_model, cost_usd, tags FROM llm_usage")
    assert (answer.names, answer.rows, answer.cut) == (
        ["request_model", "cost_usd", "tags"], [["gpt-5", Decimal("0.000037875"), {"team": "core"}]], False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "FROM '/etc/passwd'",
        "FROM glob('/etc/*')",
        "ATTACH '{folder}/other.duckdb'",
        "COPY llm_usage TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "SET memory_limit = '9GB'",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "INSTALL httpfs",
        "CREATE TABLE other AS SELECT 1",
        "DELETE FROM llm_usage",
        "UPDATE llm_usage SET cost_usd = 0",
        "DROP TABLE llm_usage",
        "SELECT list(range) FROM range(300000000)",
        "SELECT nonsense",
        "",
        "-- nothing",
    ],
)
def test_it_reads_the_account_and_nothing_else(sql: str, fence: Fence, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.rglob("out*"))
    with pytest.raises(FenceError):
        fence.run(sql.format(folder=tmp_path))
    assert sorted(path.name for path in tmp_path.rglob("out*")) == before
    assert fence.run("SELECT count(*) FROM llm_usage").rows == [[1]]


def test_rows_and_bytes_have_a_limit(fence: Fence) -> None:
    answer = fence.run("SELECT * FROM range(1000)")
    assert (len(answer.rows), answer.cut) == (100, True)
    answer = fence.run("SELECT repeat('x', 60000) FROM range(3)")
    assert (len(answer.rows), answer.cut) == (1, True)


def test_what_takes_too_long_is_stopped(store: Path) -> None:
    fence = Fence(store, Limits(seconds=3))
    try:
        with pytest.raises(FenceError, match="longer than 3 s"):
            fence.run("SELECT count(*) FROM range(1000000000) AS a, range(1000000) AS b")
    finally:
        fence.close()


def test_it_is_stopped_where_nobody_is_left_to_stop_it(store: Path) -> None:
    """Whoever asked was killed: the process behind the fence ends by itself."""
    asked = {
        "sql": "SELECT count(*) FROM range(1000000000) AS a, range(1000000) AS b",
        "rows": 1,
        "bytes": 1,
        "mb": 100,
    }
    done = subprocess.run(
        [sys.executable, "-m", "otel_llm.account.in_duckdb.fenced", str(store)],
        input=orjson.dumps(asked | {"seconds": 0.1}), capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, b"")


def test_a_module_that_lies_about_is_not_taken(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.chdir(tmp_path)
    fence = Fence(store, Limits(seconds=60))
    try:
        assert fence.run("SELECT 1").rows == [[1]]
    finally:
        fence.close()
    with pytest.raises(FenceError, match="stopped"):
        fence.run("SELECT 1")
