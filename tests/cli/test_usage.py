"""`otel-llm usage`."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Fill, Run

MEASURES = ["calls", "errors", "input_tokens", "output_tokens", "cached", "cost_usd", "unpriced"]

MINI = {"request_model": "gpt-5-mini", "response_model": "gpt-5-mini-2025-08-07", "price_source": "genai-prices"}
ALICE = {**MINI, "user_id": "alice", "input_tokens": 1000, "output_tokens": 100, "cost_usd": "0.000450"}
BOB = {
    **MINI,
    "user_id": "bob",
    "input_tokens": 2000,
    "output_tokens": 50,
    "cache_read_tokens": 1500,
    "cost_usd": "0.000225",
}
AZURE = {
    "request_model": "my-deployment", "user_id": "bob", "provider": "azure.ai.openai", "input_tokens": 10,
    "output_tokens": 1, "price_source": "no price for azure.ai.openai/my-deployment",
}  # fmt: skip
FAILED = {"request_model": "gpt-5-mini", "user_id": "alice", "status": "error", "price_source": "no usage reported"}


def rows(run: Run, *arguments: str) -> list[dict[str, Any]]:
    result = run("usage", *arguments, "--format", "json")
    assert (result.code, result.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def test_by_model_without_being_asked(fill: Fill, run: Run) -> None:
    fill(ALICE, BOB, AZURE, FAILED)
    assert rows(run) == [
        {"model": "gpt-5-mini", "calls": 3, "errors": 1, "input_tokens": 3000, "output_tokens": 150, "cached": 1500,
         "cost_usd": 0.000675, "unpriced": 1},
        {"model": "my-deployment", "calls": 1, "errors": 0, "input_tokens": 10, "output_tokens": 1, "cached": None,
         "cost_usd": None, "unpriced": 1},
    ]  # fmt: skip


def test_by_several_dimensions_the_dearest_first(fill: Fill, run: Run) -> None:
    fill(BOB, ALICE, AZURE, FAILED)
    found = rows(run, "--by", " user , model,user")
    assert list(found[0]) == ["user", "model", *MEASURES]
    assert [(row["user"], row["model"], row["calls"]) for row in found] == [
        ("alice", "gpt-5-mini", 2),
        ("bob", "gpt-5-mini", 1),
        ("bob", "my-deployment", 1),
    ]


def test_every_dimension_finds_its_column(fill: Fill, run: Run) -> None:
    columns = {
        "model": "request_model", "response_model": "response_model", "user": "user_id", "module": "module",
        "provider": "provider", "operation": "operation", "status": "status", "session": "session_id",
        "conversation": "conversation_id", "agent": "agent_name", "workflow": "workflow_name", "profile": "profile",
        "service": "service_name", "server": "server_address",
    }  # fmt: skip
    fill({column: f"the {column}" for column in columns.values()} | {"tags": {"team": "core", "it's": "quoted"}})
    for dimension, column in columns.items():
        assert [row[dimension] for row in rows(run, "--by", dimension)] == [f"the {column}"]
    assert [row["tag:team"] for row in rows(run, "--by", "tag:team")] == ["core"]
    assert [row["tag:it's"] for row in rows(run, "--by", "tag:it's")] == ["quoted"]
    assert [row["tag:none"] for row in rows(run, "--by", "tag:none")] == [None]


def test_a_call_without_a_request_model_goes_by_what_answered(fill: Fill, run: Run) -> None:
    fill({"response_model": "gpt-5-2025-08-07"})
    assert [row["model"] for row in rows(run)] == ["gpt-5-2025-08-07"]


def test_days_and_hours_are_local_and_in_order(fill: Fill, execute: Run) -> None:
    fill(
        {**ALICE, "started_at": "2026-11-21T04:30:00Z", "cost_usd": "9"},  # the evening before, in New York
        {**ALICE, "started_at": "2026-11-20T14:59:59Z"},
        {**ALICE, "started_at": "2026-07-01T03:59:59Z"},  # summer time: four hours
    )
    expected = {
        "day": ["2026-06-30", "2026-11-20"],
        "hour": ["2026-06-30 23:00", "2026-11-20 09:00", "2026-11-20 23:00"],
    }
    for dimension, values in expected.items():
        result = execute("usage", "--by", f"model,{dimension}", "--format", "json", TZ="America/New_York")
        assert [row[dimension] for row in json.loads(result.out)] == values
    result = execute("usage", "--since", "2026-11-20T23:30", "--format", "json", TZ="America/New_York")
    assert [row["calls"] for row in json.loads(result.out)] == [1]


def test_since_and_until(fill: Fill, run: Run) -> None:
    now = datetime.now().astimezone()
    fill(*({**ALICE, "started_at": now - timedelta(hours=hours)} for hours in (1, 3, 100)))
    assert rows(run, "--since", "2h")[0]["calls"] == 1
    assert rows(run, "--until", "2h")[0]["calls"] == 2
    assert rows(run, "--since", "4h", "--until", "2h")[0]["calls"] == 1
    assert rows(run, "--since", "10s") == []
    named = run("usage", "--since", "2026-11-01", "--until", "10d")
    assert named.code == 0


def test_table(fill: Fill, run: Run) -> None:
    fill(ALICE, BOB, AZURE, FAILED)
    result = run("usage", "--by", "model,user")
    assert (result.code, result.err) == (0, "")
    assert [line.rstrip() for line in result.out.splitlines()] == [
        "model          user   calls  errors  input_tokens  output_tokens  cached  cost_usd  unpriced",
        "─" * 92,
        "gpt-5-mini     alice      2       1         1,000            100       –  0.000450         1",
        "gpt-5-mini     bob        1       0         2,000             50   1,500  0.000225         0",
        "my-deployment  bob        1       0            10              1       –         –         1",
        "─" * 92,
        "total                     4       1         3,010            151   1,500  0.000675         2",
        "Not in the cost: no price for azure.ai.openai/my-deployment (1), no usage reported (1)",
    ]


def test_a_table_of_priced_calls_does_not_speak_of_prices(fill: Fill, run: Run) -> None:
    fill({**ALICE, "cost_usd": "12.5"}, {**BOB, "cost_usd": "0.00001"}, {**BOB, "user_id": None, "cost_usd": "0"})
    out = run("usage", "--by", "user").out
    assert "unpriced" not in out
    assert "Not in the cost" not in out
    costs = [line.split()[-1] for line in out.splitlines() if "─" not in line]
    assert costs == ["cost_usd", "12.5000", "<0.0001", "0.0000", "12.5000"]


def test_csv(fill: Fill, run: Run) -> None:
    fill(ALICE, AZURE)
    header, first, second = csv.reader(io.StringIO(run("usage", "--format", "csv").out))
    assert header == ["model", *MEASURES]
    assert first == ["gpt-5-mini", "1", "0", "1000", "100", "", "0.00045", "0"]
    assert second == ["my-deployment", "1", "0", "10", "1", "", "", "1"]


@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_recorded_yet(is_there: bool, fill: Fill, run: Run, store_path: Path) -> None:
    if is_there:
        fill()
    table, as_json, as_csv = (run("usage", "--format", format) for format in ("table", "json", "csv"))
    assert table.out == (f"No model calls recorded yet in {store_path}. Run: opentelemetry-instrument python app.py\n")
    assert as_json.out == "[]\n"
    assert as_csv.out == f"model,{','.join(MEASURES)}\n"
    assert {(result.code, result.err) for result in (table, as_json, as_csv)} == {(0, "")}
    assert store_path.exists() is is_there


def test_nothing_in_the_time_asked_for_is_said_so(fill: Fill, run: Run) -> None:
    path = fill(ALICE)
    result = run("usage", "--since", "2026-11-21", "--until", "2026-11-22T08:00")
    assert result.out == f"No model calls since 2026-11-21 00:00 and before 2026-11-22 08:00 in {path}.\n"
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("by", ["modl", "", "model,,user", "tag:", "user_id; DROP TABLE llm_usage", "1"])
def test_an_unknown_dimension_is_refused_by_name(by: str, fill: Fill, run: Run) -> None:
    fill(ALICE)
    result = run("usage", "--by", by)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("otel-llm: --by does not know ")
    assert "it takes model, response_model, user," in result.err


def test_what_users_type_into_their_calls_stays_text(fill: Fill, run: Run) -> None:
    fill({**ALICE, "user_id": "[red]'; DROP TABLE llm_usage; --\x1b[2J\n"})
    out = run("usage", "--by", "user").out
    assert r"[red]'; DROP TABLE llm_usage; --\x1b[2J\n" in out
    assert "\x1b" not in out
