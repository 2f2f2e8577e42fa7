"""`otel-llm export`, `backup`, `prune` and `compact`."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from otel_llm.account.in_duckdb.duckdb_engine import DuckDBEngine
from otel_llm.store.jobs import exclusive, retention
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Fill, Run, both_engines
from tests.cli.test_sql import CALL
from tests.store.jobs.test_retention import fill as fill_many

NOW = datetime.now(UTC)
OLD = {**CALL, "started_at": NOW - timedelta(days=100), "request_model": "old"}
NEW = {**CALL, "started_at": NOW - timedelta(hours=1), "request_model": "new"}


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(sql).fetchall()


# --- export -----------------------------------------------------------------------------------------------------------


def test_parquet_keeps_rows_and_types(fill: Fill, run: Run, tmp_path: Path) -> None:
    store = fill(CALL, {})
    file = tmp_path / "usage.parquet"
    result = run("export", str(file))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Wrote 2 rows of llm_usage to {file} (")
    described = "SELECT column_name, column_type FROM (DESCRIBE {})"
    assert duckdb.sql(described.format(f"'{file}'")).fetchall() == rows(store, described.format("llm_usage"))
    text = "SELECT COLUMNS(*)::VARCHAR FROM {} ORDER BY ALL"
    assert duckdb.sql(text.format(f"'{file}'")).fetchall() == rows(store, text.format("llm_usage"))


@both_engines
def test_csv_is_for_any_reader(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(CALL)
    assert run("export", str(tmp_path / "usage.csv")).code == 0
    (row,) = csv.DictReader((tmp_path / "usage.csv").open())
    assert datetime.fromisoformat(row["started_at"]) == datetime.fromisoformat(CALL["started_at"])
    assert (row["request_model"], row["cost_usd"], row["output_tokens"]) == ("gpt-5-mini", "0.000450000", "")
    assert json.loads(row["tags"]) == {"team": "core"}
    assert json.loads(row["finish_reasons"]) == ["stop"]
    assert json.loads(row["input_messages"]) == [{"role": "user"}]


@both_engines
def test_json_and_json_lines(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(CALL, CALL)
    for name in ("usage.json", "usage.jsonl"):
        assert run("export", str(tmp_path / name)).code == 0
    listed = json.loads((tmp_path / "usage.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "usage.jsonl").read_text().splitlines()]
    assert listed == lines
    assert (len(lines), lines[0]["tags"], lines[0]["cost_usd"]) == (2, {"team": "core"}, 0.00045)


@pytest.mark.parametrize(
    "table", ["llm_usage", "spans", "llm_events", "llm_runs", "llm_tool_calls", "llm_conversations", "llm_daily"]
)
@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "jsonl"])
def test_every_table_in_every_format(table: str, kind: str, fill: Fill, run: Run, tmp_path: Path) -> None:
    fill({**CALL, "conversation_id": "c"})
    file = tmp_path / "export"
    for period in ([], ["--since", "2026-11-20", "--until", "2026-11-20"], ["--until", "2020-01"]):
        result = run("export", str(file), "--table", table, "--format", kind, "--force", *period)
        assert (result.code, result.err) == (0, "")
        some = table in ("llm_usage", "llm_conversations", "llm_daily") and "2020-01" not in period
        assert result.out.startswith(f"Wrote {'1 row' if some else '0 rows'} of {table} to ")


@both_engines
def test_the_period(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(OLD, NEW)
    run("export", str(tmp_path / "new.csv"), "--since", "7d")
    assert [row["request_model"] for row in csv.DictReader((tmp_path / "new.csv").open())] == ["new"]


def test_nothing_is_overwritten_unless_asked_for(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(CALL)
    for command, name in (("export", "usage.csv"), ("backup", "copy.duckdb")):
        file = tmp_path / name
        file.write_text("precious")
        result = run(command, str(file))
        assert (result.code, result.out) == (2, "")
        assert result.err == f"otel-llm: {file} is there already; --force replaces it\n"
        assert file.read_text() == "precious"
        assert run(command, str(file), "--force").code == 0
        assert file.read_bytes() != b"precious"


def test_a_failed_export_leaves_nothing(fill: Fill, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(CALL)
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "usage.csv"
    file.write_text("precious")
    monkeypatch.setattr(DuckDBEngine, "_columns", lambda *_, **__: "error('no luck')")
    result = run("export", str(file), "--force")
    assert (result.code, result.err) == (2, "otel-llm: Invalid Input Error: no luck\n")
    assert [path.name for path in file.parent.iterdir()] == ["usage.csv"]
    assert file.read_text() == "precious"


def test_an_account_with_nothing_in_it(run: Run, tmp_path: Path) -> None:
    assert run("export", str(tmp_path / "usage.csv")).out.startswith("Wrote 0 rows of llm_usage")


# --- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_is_a_store(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(OLD, NEW)
    copy = tmp_path / "copy.duckdb"
    result = run("backup", str(copy))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Copied 2 calls and 0 spans to {copy} (")
    assert rows(copy, "SELECT request_model FROM llm_usage ORDER BY started_at") == [("old",), ("new",)]
    usage = run("usage", "--store", str(copy), "--format", "json")
    assert [row["model"] for row in json.loads(usage.out)] == ["new", "old"]


def test_a_backup_while_the_store_is_open_elsewhere_says_what_it_lacks(
    fill: Fill, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_llm.store.journal.writer import Journal
    from tests.store.conftest import merging, write_call

    store = fill(CALL)
    monkeypatch.setattr(exclusive, "PATIENCE", 0.05)
    journal = Journal(StorePaths.of(store).journal)
    write_call(journal)
    with merging(StorePaths.of(store)):
        result = run("backup", str(tmp_path / "copy.duckdb"))
    journal.close()
    assert result.code == 0
    assert "still in the journal" in result.err


# --- prune and compact ------------------------------------------------------------------------------------------------


def test_prune_by_age(fill: Fill, run: Run) -> None:
    store = fill(OLD, NEW)
    dry = run("prune", "--older-than", "90d", "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert dry.out.startswith("Would remove 0 spans and 1 call that began before ")
    assert rows(store, "SELECT count(*) FROM llm_usage") == [(2,)]
    result = run("prune", "--older-than", "90d")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Removed 0 spans and 1 call that began before ")
    assert rows(store, "SELECT request_model FROM llm_usage") == [("new",)]
    assert run("prune", "--older-than", "90d").out.startswith("Removed 0 spans and 0 calls")


def test_prune_spans_only(run: Run, store_path: Path) -> None:
    fill_many(StorePaths.of(store_path), 100)
    assert run("prune", "--older-than", "1h", "--spans-only").out.startswith("Removed 100 spans and 0 calls")
    assert rows(store_path, "SELECT count(*) FROM llm_usage") == [(100,)]


def test_prune_by_size_then_compact(run: Run, store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    fill_many(paths, 4000, size=2000)
    before = store_path.stat().st_size
    assert "Would remove about " in run("prune", "--max-size", "3MB", "--dry-run").out
    result = run("prune", "--max-size", "3MB")
    assert (result.code, result.err) == (0, "")
    with exclusive.alone(paths) as connection:
        assert retention.used(connection) <= 3 * 2**20
    assert rows(store_path, "SELECT count(*) FROM llm_usage") == [(4000,)]
    assert store_path.stat().st_size >= before
    result = run("compact")
    assert (result.code, result.err) == (0, "")
    assert "before" in result.out
    assert f"after: 4,000 calls and {rows(store_path, 'SELECT count(*) FROM spans')[0][0]:,} spans in" in result.out
    assert store_path.stat().st_size <= 3 * 2**20 + 2**18


def test_a_store_that_is_open_elsewhere(fill: Fill, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(CALL)
    monkeypatch.setattr("otel_llm.store.jobs.exclusive.when_free", lambda attempt, _: attempt())
    monkeypatch.setattr("otel_llm.store.jobs.copying.when_free", lambda attempt, _: attempt())
    with duckdb.connect(str(store)):
        for command in (["compact"], ["prune", "--older-than", "1d"], ["replay", "--endpoint", "localhost:1"]):
            result = run(*command)
            assert (result.code, result.out) == (2, "")
            assert re.search(f"the store {store} is (held by|open in this process)", result.err)
            assert result.err.count("\n") == 1
