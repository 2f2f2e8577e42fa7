"""What is set side by side: the turns of a conversation, two traces, two periods."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from tests.cli.conftest import Fill, Run, both_engines

A, B = "a" * 32, "b" * 32


def said(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": words}]}


TALK = [
    said("user", "Which tyres?"),
    said("assistant", "Wide ones."),
    said("user", "And in winter?"),
    said("assistant", "Studs."),
]
TURNS = (
    {"conversation_id": "c-1", "request_model": "gpt-5", "user_id": "alice", "input_tokens": 9, "cost_usd": "0.25",
     "started_at": "2026-11-20T12:05:00Z", "input_messages": json.dumps(TALK[:3]), "output_messages": json.dumps(TALK[3:])},
    {"conversation_id": "c-1", "request_model": "gpt-5", "user_id": "alice", "input_tokens": 3, "cost_usd": "0.5",
     "started_at": "2026-11-20T12:00:00Z", "input_messages": json.dumps(TALK[:1]), "output_messages": json.dumps(TALK[1:2])},
    {"conversation_id": "c-2", "request_model": "gpt-4o"},
)  # fmt: skip


@both_engines
def test_a_conversation_in_its_order(fill: Fill, run: Run) -> None:
    fill(*TURNS)
    done = run("show", "--conversation", "c-1")
    assert (done.code, done.err) == (0, "")
    told = [line.strip() for line in done.out.splitlines()]
    # The second turn has what was new in it.
    assert [line for line in told if line.startswith(("user:", "assistant:"))] == [
        "user: Which tyres?",
        "assistant: Wide ones.",
        "user: And in winter?",
        "assistant: Studs.",
    ]
    assert told[-1] == "conversation c-1: 2 calls  $0.75"
    first, second = json.loads(run("show", "--conversation", "c-1", "--json").out)
    assert (first["trace_id"][-1], second["trace_id"][-1]) == ("1", "0")
    assert (first["spent_usd"], second["spent_usd"]) == (0.5, 0.75)
    assert second["input_messages"] == TALK[2:3]


def test_a_conversation_that_is_not_there(fill: Fill, run: Run) -> None:
    fill(*TURNS)
    done = run("show", "--conversation", "c-9")
    assert (done.code, done.err) == (
        2,
        "otel-llm: there is no conversation 'c-9' in the store; `otel-llm usage --by conversation` lists them\n",
    )
    assert "give one of them" in run("show", "abc", "--conversation", "c-1").err


SPANS = (
    {"trace_id": A, "span_id": "a1", "name": "invoke_agent guide", "duration_ms": 30.0, "end_ns": 1_795_176_000_030_000_000},
    {"trace_id": A, "span_id": "a2", "parent_span_id": "a1", "name": "chat gpt-5"},
    {"trace_id": B, "span_id": "b1", "name": "invoke_agent guide", "start_ns": 1_795_176_000_000_000_000,
     "end_ns": 1_795_176_002_000_000_000, "duration_ms": 2000.0},
    {"trace_id": B, "span_id": "b2", "parent_span_id": "b1", "name": "chat gpt-5"},
    {"trace_id": B, "span_id": "b3", "parent_span_id": "b1", "name": "chat gpt-5"},
    {"trace_id": B, "span_id": "b4", "parent_span_id": "b1", "name": "execute_tool look"},
)  # fmt: skip
CALLS = (
    {"trace_id": A, "span_id": "a2", "request_model": "gpt-5", "input_tokens": 10, "output_tokens": 2, "cost_usd": "0.25"},
    {"trace_id": B, "span_id": "b2", "request_model": "gpt-5", "input_tokens": 10, "output_tokens": 2, "cost_usd": "0.25"},
    {"trace_id": B, "span_id": "b3", "request_model": "gpt-5", "input_tokens": 30, "output_tokens": 9, "cost_usd": "0.75",
     "usage_source": "estimated"},
)  # fmt: skip


@both_engines
def test_two_traces_step_by_step(fill: Fill, fill_spans: Fill, run: Run) -> None:
    fill(*CALLS)
    fill_spans(*SPANS)
    rows = json.loads(run("diff", A[:8], B[:8], "--json").out)
    steps = {row["step"]: row for row in rows}
    assert list(steps) == ["invoke_agent guide", "chat gpt-5", "execute_tool look", None]
    chat, tool, whole = steps["chat gpt-5"], steps["execute_tool look"], steps[None]
    assert [chat[f"spans{side}"] for side in ("", "_other", "_difference")] == [1, 2, -1]
    # What is estimated stands in no sum.
    assert [chat[f"cost_usd{side}"] for side in ("", "_other", "_difference")] == [0.25, 0.25, 0]
    assert [tool[f"spans{side}"] for side in ("", "_other", "_difference")] == [0, 1, -1]
    assert (tool["calls_other"], tool["cost_usd_other"]) == (0, None)
    assert [whole[f"calls{side}"] for side in ("", "_other", "_difference")] == [1, 2, -1]
    assert [whole[f"duration_ms{side}"] for side in ("", "_other", "_difference")] == [30.0, 2000.0, -1970.0]
    out = run("diff", A, B).out
    assert f"A  trace {A}" in out and "1 call  30.0 ms" in out
    assert f"B  trace {B}" in out and "2 calls  2.00 s" in out
    assert "-1.97 s" in out
    (total,) = (line for line in out.splitlines() if line.startswith("total"))
    shown = "2 4 -2  30.0 ms 2.00 s -1.97 s  0.250000 0.250000 0.000000  10 10 0  2 2 0"
    assert total.split() == ["total", *shown.split()]


@both_engines
def test_two_traces_of_which_the_calls_are_left(fill: Fill, run: Run) -> None:
    fill(*CALLS)
    rows = {row["step"]: row for row in json.loads(run("diff", A, B, "--json").out)}
    assert rows["chat gpt-5"]["calls_other"] == rows[None]["calls_other"] == 2


def test_two_traces_are_two(fill: Fill, run: Run) -> None:
    assert "No model calls recorded yet" in run("diff", "aa", "bb").out
    fill(*CALLS)
    assert "are one trace" in run("diff", "aa", "aaa").err
    assert "there is no trace 'cc'" in run("diff", "aa", "cc").err


PERIODS = (
    {"request_model": "gpt-5", "started_at": "2026-10-10T12:00:00Z", "cost_usd": "0.5", "input_tokens": 100},
    {"request_model": "gpt-4o", "started_at": "2026-10-11T12:00:00Z", "cost_usd": "1"},
    {"request_model": "gpt-5", "started_at": "2026-11-10T12:00:00Z", "cost_usd": "2", "input_tokens": 50},
    {"request_model": "gpt-5", "started_at": "2026-11-11T12:00:00Z", "cost_usd": "2", "status": "error"},
    {"request_model": "o9", "started_at": "2026-11-11T12:00:00Z", "price_source": "no price for openai/o9"},
)


@both_engines
def test_two_periods(fill: Fill, run: Run) -> None:
    fill(*PERIODS)
    asked = ("usage", "--since", "2026-11", "--until", "2026-11", "--against", "2026-10")
    rows = {row["model"]: row for row in json.loads(run(*asked, "--json").out)}
    assert [rows["gpt-5"][f"calls{side}"] for side in ("", "_before", "_difference")] == [2, 1, 1]
    assert [rows["gpt-5"][f"cost_usd{side}"] for side in ("", "_before", "_difference")] == [4, 0.5, 3.5]
    assert [rows["gpt-4o"][f"calls{side}"] for side in ("", "_before", "_difference")] == [0, 1, -1]
    # What has no price has no difference.
    assert [rows["o9"][f"cost_usd{side}"] for side in ("", "_before", "_difference")] == [None, 0, None]
    out = run(*asked).out
    (total,) = (line for line in out.splitlines() if line.startswith("total"))
    assert total.split()[:7] == ["total", "3", "2", "+1", "4.0000", "1.5000", "+2.5000"]
    assert "before: since 2026-10-01 00:00 and before 2026-11-01 00:00" in out
    assert "Not in the cost" in out
    assert "the first 1 of 3 rows" in run(*asked, "--top", "1").out
    assert "No model calls" in run(*asked, "--model", "none").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "7d"], "name a period"),
        (["--against", "before"], "which is not given"),
        (["--against", "last-month", "--by", "day"], "has no day in common"),
        (["--against", "last-month", "--plot"], "leave one out"),
        (["--against", "once"], "--against 'once' is not a time"),
    ],
)
def test_a_period_to_compare_with_has_a_length(arguments: list[str], words: str, run: Run) -> None:
    done = run("usage", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err


def test_without_since_what_came_after() -> None:
    one, other = when.compared(None, None, "2026-10")
    assert one.since == other.until == datetime(2026, 11, 1).astimezone()
    assert other.since == datetime(2026, 10, 1).astimezone()


def test_before_is_as_long() -> None:
    one, other = when.compared("2026-11-10", "2026-11-11", "before")
    assert (other.since, other.until) == (datetime(2026, 11, 8).astimezone(), one.since)
    with pytest.raises(CommandError):
        when.compared(None, "2026-11-11", "before")
