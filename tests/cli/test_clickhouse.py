"""The commands on a ClickHouse: what they say of it, and what is so there alone. What both engines answer is asked elsewhere."""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.ship.clickhouse import ClickHouseDestination
from otel_llm.fleet.ship.destination import Block
from otel_llm.fleet.ship.running_calls import RunningTeller
from otel_llm.settings import reload, settings
from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Fill, Run
from tests.cli.test_ps import START
from tests.cli.test_sql import CALL
from tests.cli.test_usage import UNTOLD
from tests.fleet.rows import bare_call

pytestmark = pytest.mark.parametrize("engine", ["clickhouse"], indirect=True)


@pytest.fixture(autouse=True)
def _there(engine: str) -> None:
    """Every command here reads it."""


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) from llm_usage", "describe table llm_usage", "show tables", "explain select 1", "select * from llm_daily",
        "select * from llm_conversations", "select * from spans", "with 1 as one select one -- with a remark", "select 1;",
        "select now(), today(), [now()], map('a', 1), tuple(1, 'x'), 1 / 0, toDecimal64('1.50', 2), null, toUInt128(5), 'a\\'b'",
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_whatever_it_answers_can_be_printed(query: str, format: str, fill: Fill, run: Run) -> None:
    fill(CALL)
    result = run("sql", query, "--format", format)
    assert (result.code, result.err) == (0, "")
    if format == "json":
        assert isinstance(json.loads(result.out), list)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("select * from llm_usag", "llm_usag"),
        ("selec 1", ""),
        ("select modle from llm_usage", "Maybe you meant: ['module']"),
        ("select 1; drop table llm_usage", "Multi-statements are not allowed"),
        ("  ", "the SQL is empty"),
        ("/* nothing but a remark */ -- so", "the SQL is empty"),
        ("select throwIf(number = 60000, 'in the middle') from numbers(100000)", "in the middle"),
        ("select 1 format CSV", "leave FORMAT out of the SQL"),
    ],
)
def test_bad_sql_is_one_line(query: str, says: str, fill: Fill, run: Run) -> None:
    fill(CALL)
    result = run("sql", query)
    assert result.code == 2
    assert says in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    "query", ["truncate table llm_usage", "drop table llm_usage", "insert into llm_usage (span_id) values ('x')"]
)
def test_it_is_only_read(query: str, fill: Fill, run: Run) -> None:
    fill(CALL)
    assert run("sql", query).code == 2
    assert json.loads(run("sql", "select count(*) as n from llm_usage", "-f", "json").out) == [{"n": 1}]


def test_many_rows_come_in_their_order(run: Run) -> None:
    query = "select number as n from numbers(150000) order by n desc"
    assert [row["n"] for row in json.loads(run("sql", query, "--json").out)] == [*range(149_999, -1, -1)]
    assert run("sql", query).out.splitlines()[-1] == "the first 1,000 rows; --format json or csv has them all"


def test_an_export_is_as_that_of_a_store(fill: Fill, run: Run, store_path: Path, tmp_path: Path) -> None:
    fill({**CALL, "conversation_id": "c"}, {"user_id": "=1+1", "tags": {"a": "-1"}})
    for kind in ("csv", "jsonl"):
        one, other = tmp_path / f"one.{kind}", tmp_path / f"other.{kind}"
        assert run("export", str(one)).out.startswith("Wrote 2 rows of llm_usage to ")
        assert run("export", str(other), "--store", str(store_path)).code == 0
        if kind == "csv":
            here, there = (sorted(csv.DictReader(file.open()), key=lambda row: row["span_id"]) for file in (one, other))
        else:
            here, there = (
                sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["span_id"])
                for file in (one, other)
            )
        for row, expected in zip(here, there, strict=True):
            del expected["commit_number"]  # which means something in its own store alone
            # Times are written otherwise, JSON is text there, and what is NULL in a store may be empty.
            for name in ("started_at", "input_messages"):
                assert (row.pop(name) is None) == (expected.pop(name) is None)
            for name in ("finish_reasons", "tags", "units"):
                assert (row.pop(name) or None) == (expected.pop(name) or None)
            assert {n: _number(v) for n, v in row.items()} == {n: _number(v) for n, v in expected.items()}


def _number(value: object) -> object:
    return Decimal(str(value)) if re.fullmatch(r"-?\d+(\.\d+)?", str(value)) and len(str(value)) < 16 else value


def test_what_it_has_not_cannot_be_exported(run: Run, tmp_path: Path) -> None:
    result = run("export", str(tmp_path / "events.csv"), "--table", "llm_events")
    assert (result.code, [*tmp_path.glob("*.csv")]) == (2, [])
    assert "llm_events is in a DuckDB store alone" in result.err
    assert run("export", str(tmp_path / "none.jsonl")).out.startswith("Wrote 0 rows of llm_usage")


def test_prices_come_later(fill: Fill, run: Run, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prices.toml").write_text('[[price]]\nmodel = "my-*"\ninput = 2\noutput = 8\n')
    monkeypatch.setenv("OTEL_LLM_PRICES", str(tmp_path / "prices.toml"))
    call = {
        "request_model": "my-model",
        "input_tokens": 1_000_000,
        "output_tokens": 1_000_000,
        "price_source": "no price",
    }
    fill(call, call | {"cost_usd": Decimal(1), "tags": {"team": "core"}}, {"request_model": "my-model"})
    said = "1 of 2 calls {} another price.\nThey cost 0.000000 USD before, 10.000000 USD now.\n"
    said += "Without a price: 1 call (no usage reported).\n"
    costs = "select cost_usd, row_version, tags from llm_usage order by span_id"
    before = run("sql", costs, "--json").out
    assert run("reprice", "--dry-run").out == said.format("would get")
    assert run("sql", costs, "--json").out == before
    assert run("reprice").out == said.format("got")
    assert run("reprice", "--model", "mine").out == "0 of 0 calls got another price.\n"
    assert run("reprice", "--all", "--since", "2026-11-20", "--model", "my-?odel").out.startswith("1 of 3 calls got")
    assert json.loads(run("sql", costs, "--json").out) == [
        {"cost_usd": 10.0, "row_version": 2, "tags": {}},
        {"cost_usd": 10.0, "row_version": 2, "tags": {"team": "core"}},
        {"cost_usd": None, "row_version": 2, "tags": {}},  # which says by now why it has none
    ]


def test_doctor_says_what_is_there(fill: Fill, run: Run, engine: str) -> None:
    report = json.loads(run("doctor", "--json").out)
    assert report["store"]["path"] == engine and report["store"]["chosen_by"] == "OTEL_LLM_STORE"
    assert any("otel-llm ship --to" in remark["remedy"] for remark in report["remarks"])
    fill(CALL, UNTOLD)
    report = json.loads(run("doctor", "--json").out)
    assert (report["store"]["calls"], report["store"]["by_status"], report["store"]["spans"]) == (2, {"ok": 2}, 0)
    assert report["store"]["server"] and not report["problems"]
    assert any("came without usage" in remark["what"] for remark in report["remarks"])


def test_doctor_says_what_is_wrong(run: Run, engine: str) -> None:
    there = ClickHouseURL.parse(engine)
    client = ClickHouseClient(there)
    client.execute("CREATE DATABASE IF NOT EXISTS older")
    client.execute("CREATE OR REPLACE TABLE older.llm_usage AS llm_usage")
    client.execute("CREATE OR REPLACE TABLE older.spans AS spans")
    client.execute("ALTER TABLE older.llm_usage DROP COLUMN reasoning_chars")
    older = engine.replace(f"/{there.database}", "/older")
    (problem,) = json.loads(run("doctor", "--json", "--store", older).out)["problems"]
    assert problem["what"] == "llm_usage.reasoning_chars is not there" and "collector-config" in problem["remedy"]
    report = json.loads(run("doctor", "--json", "--store", engine.replace("/otel", "/nowhere")).out)
    assert any("nowhere" in problem["what"] for problem in report["problems"])


@pytest.mark.parametrize(
    "command",
    [
        ("prune", "--older-than", "1d"),
        ("backup", "x"),
        ("tail", "-n", "1"),
        ("compact",),
        ("replay", "--endpoint", "http://127.0.0.1:1"),
    ],
)
def test_what_is_about_a_store_says_so(command: tuple[str, ...], run: Run) -> None:
    result = run(*command)
    assert result.code == 2
    assert "is a ClickHouse, and this is about a DuckDB store: name one with --store PATH" in result.err


def test_what_runs_on_all_machines(run: Run, engine: str, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("ps").out == f"Nothing is running on the machines that ship to {engine}.\n"
    assert run("ps", "--json").out == "[]\n"
    paths, began = StorePaths.of(store_path), time.time_ns() - 90 * 10**9
    destination = ClickHouseDestination(ClickHouseURL.parse(engine))
    journal = Journal(paths.journal)
    journal.append({**START, "st": began}, start_of=1)
    journal.append({**START, "s": "c" * 16, "st": began + 10**9}, start_of=2)
    monkeypatch.setattr("socket.gethostname", lambda: "pod-7")
    RunningTeller(destination).tell(paths)
    RunningTeller(destination).tell(paths)  # again, some seconds later
    destination.send(Block("llm_usage", [bare_call(trace_id=START["t"], span_id="c" * 16)]))  # one has ended meanwhile
    journal.close()
    (row,) = json.loads(run("ps", "--json").out)
    assert (
        row.pop("seconds") >= 90
        and abs(datetime.fromisoformat(row.pop("started_at")).timestamp() - began / 1e9) < 0.001
    )
    assert row == {
        "host": "pod-7", "pid": os.getpid(), "name": "chat gpt-5-mini", "operation": "chat", "model": "gpt-5-mini",
        "user": "alice", "module": "search", "trace_id": "a" * 32, "span_id": "b" * 16,
    }  # fmt: skip
    assert run("ps").out.splitlines()[-1].split()[:2] == ["pod-7", str(os.getpid())]
    client = ClickHouseClient(ClickHouseURL.parse(engine))
    client.execute(
        "INSERT INTO llm_running SELECT * REPLACE (now64(3) + 1 AS seen_at) FROM llm_running"
    )  # which is no harm
    client.execute("TRUNCATE TABLE llm_running")
    client.execute(
        "INSERT INTO llm_running (trace_id, span_id, seen_at) VALUES ('d', 'd', now64(3) - INTERVAL 1 MINUTE)"
    )
    assert run("ps", "--json").out == "[]\n"  # its machine is gone
    destination.close()


def test_what_cannot_be_told_now_is_told_later(engine: str, store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    journal = Journal(paths.journal)
    journal.append({**START, "st": time.time_ns()}, start_of=1)
    for nobody in (object(), ClickHouseDestination(ClickHouseURL("127.0.0.1", 1))):
        RunningTeller(nobody).tell(paths)
    asked: list[int] = []

    class Shows:
        def show_running(self, calls: Sequence[object]) -> None:
            asked.append(len(calls))

    teller = RunningTeller(Shows())
    for _ in range(3):
        teller.tell(paths)
    assert asked == [1]  # to look takes something
    journal.close()


def test_its_place_is_its_url(run: Run, engine: str) -> None:
    assert run("path").out == f"{engine}\n"


def test_who_writes_keeps_the_account_here(engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    reload()
    assert settings().store == tmp_path / "otel-llm" / "usage.duckdb"
    assert "OTEL_LLM_STORE names a ClickHouse" in str(settings().store_note)


def test_nobody_there_is_one_line(run: Run) -> None:
    for command in (("usage",), ("logs",), ("show",), ("sql", "select 1"), ("reprice",), ("export", "x.csv")):
        result = run(*command, "--store", "clickhouse://127.0.0.1:1/otel")
        assert (result.code, result.out) == (2, "")
        assert result.err == "otel-llm: clickhouse://127.0.0.1:1/otel cannot be reached: Connection refused\n"


@pytest.mark.parametrize("url", ["clickhouse://a:secret@b/otel", "clickhouse:///otel"])
def test_a_url_that_is_none_is_one_line(url: str, run: Run) -> None:
    result = run("usage", "--store", url)
    assert (result.code, result.out) == (2, "") and "secret" not in result.err
    assert len(result.err.splitlines()) == 1
