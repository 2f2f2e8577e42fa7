"""`otel-llm sql`."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Fill, Run, both_engines

CALL: dict[str, Any] = {
    "started_at": "2026-11-20T12:00:00.250Z", "request_model": "gpt-5-mini", "input_tokens": 1000,
    "cost_usd": "0.000450", "finish_reasons": ["stop"], "tags": {"team": "core"}, "stream": True,
    "input_messages": '[{"role": "user"}]', "duration_ms": 12.5,
}  # fmt: skip


@both_engines
def test_json_is_an_array_of_objects_with_their_types(fill: Fill, run: Run) -> None:
    fill(CALL)
    result = run("sql", "select * from llm_usage", "--format", "json")
    assert (result.code, result.err) == (0, "")
    (row,) = json.loads(result.out)
    assert datetime.fromisoformat(row["started_at"]) == datetime.fromisoformat(CALL["started_at"])
    assert row["cost_usd"] == 0.00045
    assert row["finish_reasons"] == ["stop"]
    assert row["tags"] == {"team": "core"}
    assert row["input_messages"] == [{"role": "user"}]
    assert row["stream"] is True
    assert row["output_tokens"] is None


@both_engines
def test_csv(fill: Fill, run: Run) -> None:
    fill(CALL, {**CALL, "request_model": "a, b"})
    out = run("sql", "select request_model, input_tokens, tags from llm_usage order by 1 desc", "-f", "csv").out
    assert list(csv.reader(io.StringIO(out))) == [
        ["request_model", "input_tokens", "tags"],
        ["gpt-5-mini", "1000", '{"team": "core"}'],
        ["a, b", "1000", '{"team": "core"}'],
    ]


@both_engines
def test_table(fill: Fill, run: Run) -> None:
    fill(CALL, {})
    result = run("sql", "select request_model as model, input_tokens, stream from llm_usage order by 1;")
    assert [line.rstrip() for line in result.out.splitlines()] == [
        "model       input_tokens  stream",
        "─" * 32,
        "gpt-5-mini          1000  true",
        "–                      –  –",
    ]


def test_names_that_are_twice_there_are_told_apart(run: Run) -> None:
    assert json.loads(run("sql", "select 1 as a, 2 as a, 3 as a", "-f", "json").out) == [{"a": 1, "a_1": 2, "a_2": 3}]


@both_engines
def test_times_need_no_further_package(fill: Fill, run: Run) -> None:
    fill(CALL)
    query = "select started_at, [started_at] as many, started_at::date as day from llm_usage"
    table, as_csv = run("sql", query), run("sql", query, "-f", "csv")
    assert (table.code, as_csv.code) == (0, 0)
    assert "2026-11-20" in table.out
    assert "2026-11-20" in as_csv.out


@pytest.mark.parametrize(
    "query",
    [
        "select 1; select count(*) from llm_usage",
        "describe llm_usage",
        "show tables",
        "summarize llm_usage",
        "explain from llm_usage",
        "with one as (select 1) from one -- with a remark",
        "from llm_daily",
        "from llm_events",
        "from llm_tool_calls",
        "from llm_conversations",
        "from spans",
        "set threads = 1",
        "pragma database_size",
    ],
)
@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_whatever_duckdb_answers_can_be_printed(query: str, format: str, fill: Fill, run: Run) -> None:
    fill(CALL)
    result = run("sql", query, "--format", format)
    assert (result.code, result.err) == (0, "")
    if format == "json":
        assert isinstance(json.loads(result.out), list)


@both_engines
def test_a_query_can_come_from_standard_input(fill: Fill, execute: Run) -> None:
    fill(CALL)
    result = execute("sql", "-", "--format", "json", stdin="select count(*) as n\nfrom llm_usage;\n")
    assert json.loads(result.out) == [{"n": 1}]


def test_a_long_table_ends_and_says_so(run: Run) -> None:
    lines = run("sql", "from range(5000)").out.splitlines()
    assert len(lines) == 1003
    assert lines[-1] == "the first 1,000 rows; --format json or csv has them all"
    assert len(json.loads(run("sql", "from range(5000)", "-f", "json").out)) == 5000
    assert len(run("sql", "from range(1000)").out.splitlines()) == 1002


def test_nothing_recorded_yet(run: Run, store_path: Path) -> None:
    assert run("sql", "from llm_usage").out.startswith(f"No model calls recorded yet in {store_path}. Run: ")
    assert run("sql", "from llm_usage", "-f", "json").out == "[]\n"
    assert run("sql", "from llm_usage", "-f", "csv").out.startswith("started_at,duration_ms,")
    assert json.loads(run("sql", "select count(*) as n from llm_usage", "-f", "json").out) == [{"n": 0}]
    assert not store_path.exists()


@both_engines
def test_no_rows_of_some(fill: Fill, run: Run) -> None:
    fill(CALL)
    assert run("sql", "select user_id from llm_usage where false").out.splitlines()[-1] == "no rows"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("select * from llm_usag", 'Did you mean "llm_usage"'),
        ("selec 1", 'syntax error at or near "selec"'),
        ("select modle from llm_usage", "modle"),
        ("select $1", "parameter"),
        ("  ", "the SQL is empty"),
        ("/* nothing but a remark */", "the SQL is empty"),
        ("from run", "run"),  # a Python variable is not a table
        ("select error('two\nlines')", "two lines"),
    ],
)
def test_bad_sql_is_one_line(query: str, says: str, fill: Fill, run: Run) -> None:
    fill(CALL)
    result = run("sql", query)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("query", ["delete from llm_usage", "drop table llm_usage", "create table t (a int)"])
def test_the_store_is_only_read(query: str, fill: Fill, run: Run) -> None:
    fill(CALL)
    result = run("sql", query)
    assert result.code == 2
    assert "read-only" in result.err
    assert json.loads(run("sql", "select count(*) as n from llm_usage", "-f", "json").out) == [{"n": 1}]


@pytest.mark.parametrize(
    "query",
    [
        "-- a remark\nselect 1 as n",
        "--no blank\nselect 1 as n",
        "-- format: json=1\nselect 1 as n",
        "--\nselect 1 as n",
    ],
)
def test_sql_that_begins_with_a_remark_is_no_option(query: str, run: Run) -> None:
    assert json.loads(run("sql", query, "--json").out) == [{"n": 1}]
    assert json.loads(run("sql", "--json", "--", query).out) == [{"n": 1}]


@both_engines
def test_a_path_with_a_blank_is_still_an_option(tmp_path: Path, fill: Fill, run: Run) -> None:
    store = fill(CALL, path=tmp_path / "my usage.duckdb")
    assert json.loads(run("sql", "select count(*) as n from llm_usage", f"--store={store}", "--json").out) == [{"n": 1}]


def test_a_query_can_come_from_a_file_or_a_pipe(tmp_path: Path, fill: Fill, execute: Run) -> None:
    fill(CALL)
    file = tmp_path / "query.sql"
    file.write_text("-- how many\nselect count(*) as n, 'é' as e\nfrom llm_usage;\n", encoding="utf-8")
    expected = [{"n": 1, "e": "é"}]
    assert json.loads(execute("sql", "--file", str(file), "--json").out) == expected
    assert json.loads(execute("sql", "--json", stdin=file.read_text(encoding="utf-8")).out) == expected
    file.write_bytes(b"\xff\xfe")
    result = execute("sql", "--file", str(file))
    assert (result.code, result.out) == (2, "")
    assert "not text in UTF-8" in result.err


def test_rows_are_handed_out_in_their_order(fill: Fill, run: Run) -> None:
    """Many of them come in several portions."""
    fill(CALL)
    query = "select range as n, now() as at from range(5000) order by n desc"
    assert [row["n"] for row in json.loads(run("sql", query, "--json").out)] == [*range(4999, -1, -1)]
    lines = run("sql", query, "-f", "csv").out.splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(n) for n in range(4999, -1, -1)]
