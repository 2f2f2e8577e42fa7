"""`otel-llm budget`, and what `doctor` and `tail` say of budgets."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.budgets.alerts.crossings import LOG, Crossing, CrossingLog
from otel_llm.budgets.periods import period
from otel_llm.budgets.rules import Budget, Per, Unit
from otel_llm.budgets.spending import Spending
from otel_llm.store.paths import StorePaths
from tests.budgets.conftest import Write, both_engines
from tests.budgets.webhook_server import WebhookServer, webhook_server
from tests.cli.conftest import Fill, Run

TWO = """
[[budget]]
name = "all"
limit_usd = 10
per = "month"
time_zone = "UTC"

[[budget]]
name = "users"
limit_calls = 3
per = "day"
each = "user_id"
action = "stop"
time_zone = "UTC"
"""


def call(user: str | None, cost: str | None = "1.5", **more: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    price = "genai-prices" if cost else "no price for x"
    return {"started_at": now, "user_id": user, "cost_usd": cost, "price_source": price, "input_tokens": 10, **more}


CALLS = [call("alice"), call("alice"), call("alice"), call("bob"), call("bob", None), call(None)]


@both_engines
def test_what_is_spent(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO)
    fill(*CALLS)
    result = run("budget")
    assert (result.code, result.err) == (0, "")
    head, _, *lines = result.out.splitlines()
    assert head.split() == ["budget", "value", "until", "spent", "limit", "unit", "share", "forecast", "state"]
    assert re.match(r"all +– +\d{4}-\d\d-01 00:00 +7\.50 +10 +usd +75\.0% ", lines[0]) and lines[0].endswith("warned")
    assert re.match(r"users +alice +\S+ 00:00 +3 +3 +calls +100\.0% ", lines[1]) and lines[1].endswith("stopped")
    assert re.match(r"users +bob +\S+ 00:00 +2 +3 +calls +66\.7% ", lines[2]) and lines[2].endswith("warned")
    assert re.match(r"users +– +\S+ 00:00 +1 +3 +calls +33\.3% ", lines[3]) and lines[3].endswith("ok")
    assert lines[4:] == ["all: 1 call of unknown cost not counted; unpriced says what a call without a price counts"]


@both_engines
def test_as_data(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO)
    fill(*CALLS)
    rows = json.loads(run("budget", "--json").out)
    assert [(row["budget"], row["value"], row["spent"], row["state"]) for row in rows] == [
        ("all", None, 7.5, "warned"),
        ("users", "alice", 3, "stopped"),
        ("users", "bob", 2, "warned"),
        ("users", None, 1, "ok"),
    ]
    row = rows[0]
    start, end = (datetime.fromisoformat(row[name]) for name in ("start", "end"))
    assert start <= datetime.now(UTC) < end and start.day == end.day == 1
    assert (row["each"], row["run"], row["per"], row["unit"], row["limit"], row["share"], row["action"]) == (
        None, None, "month", "usd", 10, 0.75, "warn",
    )  # fmt: skip
    assert (row["calls"], row["uncounted"]) == (6, 1)
    passed = (datetime.now(UTC) - start) / (end - start)
    assert row["forecast"] is None if passed < 0.02 else row["forecast"] == pytest.approx(7.5 / passed, rel=1e-3)
    assert run("budget", "--format", "csv").out.startswith(
        "budget,each,value,run,per,start,end,unit,spent,limit,share,"
    )


@both_engines
def test_who_is_next(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO)
    fill(*[call(f"user {number:02}", "0.1") for number in range(7) for _ in range(number + 1)])
    found = [row["value"] for row in json.loads(run("budget", "users", "--json").out)]
    assert found == ["user 06", "user 05", "user 04", "user 03", "user 02"]
    result = run("budget", "users", "--top", "2")
    assert result.out.splitlines()[-1] == "users: the largest 2 values; --top shows more"
    assert "user 05" in result.out and "user 04" not in result.out
    assert len(json.loads(run("budget", "users", "--top", "7", "--json").out)) == 7


@both_engines
def test_check(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO)
    fill(*CALLS)
    result = run("budget", "--check")
    assert (result.code, result.err) == (1, "")
    (line,) = result.out.splitlines()
    assert line.startswith("budget 'users', user_id = 'alice': spent, 3 of 3 calls today, until ")
    (row,) = json.loads((asked := run("budget", "--check", "--json")).out)
    assert (asked.code, row["value"], row["state"]) == (1, "alice", "stopped")
    quiet = run("budget", "--check", "all")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_check_finds_one_of_many_values(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO)
    fill(*[call(f"user {number}", "0.01") for number in range(50)], *[call("zoe", "0.01")] * 3)
    assert run("budget", "--check").code == 1


def test_check_prints_few_of_many(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO)
    fill(*[call(f"user {number}", "0.01") for number in range(8) for _ in range(3)])
    result = run("budget", "--check", "--top", "2")
    assert result.code == 1 and result.out.count("\n") == 3
    assert result.out.splitlines()[-1] == "budget 'users': 6 more"
    assert len(json.loads(run("budget", "--check", "--json").out)) == 8


def test_a_call_that_blocks_is_found(budgets: Write, fill: Fill, run: Run) -> None:
    budgets('[[budget]]\nname = "b"\nlimit_usd = 1\nper = "day"\neach = "user_id"\nunpriced = "block"\n')
    fill(call("alice", "0.9"), call("bob", None))
    result = run("budget", "--check")
    assert result.code == 1 and "user_id = 'bob': spent, 0 of 1 USD" in result.out and "alice" not in result.out


def test_what_waits_in_the_journals_counts(budgets: Write, store_path: Path, run: Run) -> None:
    from otel_llm.store import Store
    from tests.budgets.spender import call as record

    budgets(TWO)
    store = Store.open(store_path)
    store.write(record(12))
    assert run("budget", "--check").code == 1
    store.close()


def test_runs(budgets: Write, fill: Fill, run: Run) -> None:
    budgets('[[budget]]\nname = "run"\nlimit_usd = 1\nper = "trace"\n')
    fill(call("alice", "0.25"), call("alice", "0.75"))
    head, _, first, second = run("budget").out.splitlines()
    assert head.split() == ["budget", "run", "until", "spent", "limit", "unit", "share", "forecast", "state"]
    assert first.split() == ["run", f"{1:032x}", "–", "0.75", "1", "usd", "75.0%", "–", "warned"]
    assert second.split()[-1] == "ok"


@pytest.mark.parametrize("text", [TWO, '[[budget]]\nname = "run"\nlimit_usd = 1\nper = "trace"\n'])
def test_nothing_is_spent(budgets: Write, run: Run, text: str, store_path: Path) -> None:
    budgets(text)
    result = run("budget")
    assert (result.code, result.err) == (0, "")
    assert "0.0%" in result.out or result.out == f"Nothing is spent of 1 budget by the account in {store_path}.\n"
    assert not store_path.exists()


# --- what is wrong ----------------------------------------------------------------------------------------------------
def test_no_budgets(run: Run, tmp_path: Path) -> None:
    for arguments in (["budget"], ["budget", "--check"], ["budget", "--test-notify"]):
        result = run(*arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert "set OTEL_LLM_BUDGETS to a TOML file, or give --file" in result.err
    result = run("budget", "--file", str(tmp_path / "none.toml"))
    assert result.code == 2 and "there is no such file" in result.err


def test_a_mistake_is_told_and_the_rest_is_shown(budgets: Write, fill: Fill, run: Run) -> None:
    file = budgets(f'{TWO}\n[[budget]]\nname = "wrong"\nlimit_usd = 1\nper = "dya"\n')
    fill(*CALLS)
    result = run("budget")
    assert result.code == 2 and "users" in result.out
    assert result.err.startswith(f"otel-llm: {file}, budget 'wrong': per = 'dya' is not ")
    assert result.err.count("\n") == 1
    assert run("budget", "--check").code == 1  # what is spent counts more
    assert run("budget", "--check", "all").code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["budget", "zz"], "there is no budget 'zz'; there are 'all', 'users'"),
        (["budget", "usrs"], "there is no budget 'usrs'; did you mean 'users'?"),
        (["budget", "--top", "0"], "--top"),
        (["budget", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["budget", "--store", ""], "--store"),
    ],
)
def test_what_is_not_there(budgets: Write, run: Run, arguments: list[str], says: str) -> None:
    budgets(TWO)
    result = run(*arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert says in result.err


def test_what_is_shown_cannot_steer_a_terminal(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO)
    fill(*[call("\x1b[31mred\u202e")] * 3)
    for arguments in (["budget"], ["budget", "--check"], ["budget", "--json"]):
        out = run(*arguments).out
        assert "\x1b" not in out and "\u202e" not in out


# --- trying webhooks --------------------------------------------------------------------------------------------------
@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with webhook_server() as server:
        yield server


def test_webhooks_can_be_tried(budgets: Write, run: Run, server: WebhookServer, store_path: Path) -> None:
    budgets(
        f'{TWO}notify = ["hook", "broken", "program"]\n[[webhook]]\nname = "hook"\nurl = "{server.url}"\n'
        '[[webhook]]\nname = "broken"\nurl = "${HOOK_THAT_IS_NOT_SET}"\n[[webhook]]\nname = "of-nobody"\nurl = "http://x"\n'
        '[[command]]\nname = "program"\nrun = ["true"]\n'
    )
    result = run("budget", "--test-notify")
    assert (result.code, result.err) == (1, "")
    assert result.out.splitlines() == [
        "hook: told",
        "broken: could not be told (the environment variable HOOK_THAT_IS_NOT_SET is not set)",
        "program: told",
    ]
    (body,) = server.received
    assert (body["budget"], body["value"], body["threshold"]) == ("users (only a test)", "test", 1.0)
    assert not StorePaths.of(store_path).crossings.exists()
    assert run("budget", "all", "--test-notify").out == "No budget says whom to notify: the log alone is told.\n"


# --- elsewhere --------------------------------------------------------------------------------------------------------
def crossing(spent: str = "0.6", **more: Any) -> Crossing:
    budget = Budget("b", Unit.usd, Decimal(1), Per.day, time_zone="UTC", **more)
    now = datetime.now(UTC)
    spending = Spending(budget, "alice", None, period(Per.day, now, UTC), Decimal(spent), 3, 0, 0)
    return Crossing.of(spending, spending.crossed[-1], now)


def test_who_has_not_been_told_is_named(budgets: Write, store_path: Path, run: Run) -> None:
    budgets(TWO)
    CrossingLog(StorePaths.of(store_path)).add([(crossing(), [LOG, "hook"]), (crossing("0.9"), ["hook"])])
    assert "hook has not been told of 2 thresholds yet" in run("budget").out
    report = json.loads(run("doctor", "--json").out)
    assert "2 notifications did not get through yet" in [remark["what"] for remark in report["remarks"]]


def test_doctor_says_whether_the_file_is_right(budgets: Write, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "budgets" not in run("doctor").out
    file = budgets(TWO)
    report = json.loads(run("doctor", "--json").out)
    assert report["budgets"] == {"file": str(file), "budgets": 2, "that_stop_calls": 1, "webhooks_and_commands": "none"}
    budgets(f'{TWO}\n[[budget]]\nname = "wrong"\n[[webhook]]\nname = "w"\nurl = "${{HOOK_SECRET}}"\n')
    problems = {problem["what"]: problem["remedy"] for problem in json.loads(run("doctor", "--json").out)["problems"]}
    assert problems[f"{file}, budget 'wrong': no per"] == 'add per = "month"'
    assert "webhook 'w': the environment variable HOOK_SECRET is not set" in problems
    monkeypatch.setenv("HOOK_SECRET", "https://sesame")
    assert "sesame" not in run("doctor").out


def test_doctor_says_where_calls_are_removed_too_soon(
    budgets: Write, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets(TWO)

    def problems() -> list[str]:
        return [
            problem["what"]
            for problem in json.loads(run("doctor", "--json").out)["problems"]
            if "sooner" in problem["what"]
        ]

    monkeypatch.setenv("OTEL_LLM_RETENTION", "90d")
    assert problems() == []
    monkeypatch.setenv("OTEL_LLM_RETENTION", "30d")
    assert problems() == ["budget 'all' is for a month, and calls are removed sooner (OTEL_LLM_RETENTION)"]


def test_tail_shows_the_moment(store_path: Path, run: Run, budgets: Write) -> None:
    budgets(TWO)
    log = CrossingLog(StorePaths.of(store_path))
    log.add([(crossing(each="user_id"), [LOG]), (crossing("0.9", each="user_id"), []), (crossing("1.1"), [LOG])])
    rows = [json.loads(line) for line in run("tail", "--no-follow", "--json").out.splitlines()]
    assert [(row["event"], row["name"], row["threshold"], row["spent"], row["user_id"]) for row in rows] == [
        ("BudgetCrossed", "b", 0.5, 0.6, "alice"),
        ("BudgetCrossed", "b", 1.0, 1.1, None),
    ]
    first, second = run("tail", "--no-follow").out.splitlines()
    assert re.match(
        r"\d\d:\d\d:\d\d\.\d{3} .*BudgetCrossed +budget 'b', user_id = 'alice': 50 % is spent, 0.6 of 1 USD", first
    )
    assert "budget 'b': spent, 1.10 of 1 USD" in second
    assert run("tail", "--no-follow", "--events", "BudgetCrossed", "--user", "alice").out.count("\n") == 1
    assert run("tail", "--no-follow", "--events", "ChainError").out == ""


def test_tail_goes_on(store_path: Path) -> None:
    from otel_llm.cli.read.tail import _Crossings

    paths = StorePaths.of(store_path)
    crossed = _Crossings(paths)
    log = CrossingLog(paths)
    log.add([(crossing(), [LOG])])
    assert len(crossed.new()) == 1 and crossed.new() == []
    log.told(crossing(), LOG)
    assert crossed.new() == []
    log.add([(crossing("0.9"), [LOG])])
    assert [row["threshold"] for row in crossed.new()] == [0.8]


def test_the_examples_in_the_help_run(budgets: Write, fill: Fill, run: Run) -> None:
    budgets(TWO.replace('"all"', '"search"'))
    fill(*CALLS)
    examples = re.findall(r"^ +(otel-llm budget.*)$", run("budget", "--help").out, re.MULTILINE)
    assert len(examples) == 5
    for line in examples:
        words = shlex.split(line.partition("||")[0])[1:]
        if "--store" not in words:  # a server that is not there
            result = run(*words)
            assert result.err == "" and result.code == (1 if "--check" in words else 0), line
