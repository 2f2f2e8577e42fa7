"""`otel-llm logs`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import semconv
from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Fill, Run, both_engines
from tests.store.conftest import merging, write_call

CALL: dict[str, Any] = {
    "started_at": "2026-11-20T12:00:00Z", "request_model": "gpt-5-mini", "response_model": "gpt-5-mini-2025-08-07",
    "user_id": "alice", "module": "support", "conversation_id": "c-1", "input_tokens": 1000, "output_tokens": 20,
    "cost_usd": "0.000290", "duration_ms": 1234.5, "tags": {"team": "core"},
}  # fmt: skip
OTHER: dict[str, Any] = {
    "started_at": "2026-11-20T13:00:00Z", "request_model": "o4-mini", "user_id": "bob", "module": "search",
    "conversation_id": "c-2", "status": "error", "error_type": "429",
}  # fmt: skip
SAID: dict[str, Any] = {
    "input_messages": json.dumps(
        [
            {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
            {"role": "user", "parts": [{"type": "text", "content": "One line,\n\x1b[2Jand another"}]},
        ]
    ),
    "output_messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "tool_call", "name": "weather"}], "finish_reason": "stop"}]
    ),
}


def users(run: Run, *arguments: str) -> list[str | None]:
    result = run("logs", "--json", *arguments)
    assert (result.code, result.err) == (0, "")
    return [row["user_id"] for row in json.loads(result.out)]


@both_engines
def test_the_newest_comes_last(fill: Fill, run: Run) -> None:
    fill(*({**CALL, "user_id": f"u{hour}", "started_at": f"2026-11-20T{hour}:00:00Z"} for hour in (12, 10, 13, 11)))
    assert users(run) == ["u10", "u11", "u12", "u13"]
    assert users(run, "-n", "2") == ["u12", "u13"]


@both_engines
def test_the_current_conversation_is_that_of_the_last_call_in_one(fill: Fill, run: Run) -> None:
    fill(
        CALL, CALL | {"started_at": "2026-11-20T14:00:00Z", "conversation_id": None}, OTHER, OTHER | {"user_id": "carl"}
    )
    assert users(run, "-c") == ["bob", "carl"]
    assert (
        users(run, "-c", "-n", "1", "--user", "alice")
        == users(run, "--current", "--until", "2026-11-20T12:30:00Z")
        == ["alice"]
    )
    assert users(run, "-c", "--user", "nobody") == []


@both_engines
def test_ten_unless_asked_otherwise(fill: Fill, run: Run) -> None:
    fill(*[CALL] * 12)
    assert [len(users(run, *most)) for most in ([], ["-n", "11"], ["-n", "0"])] == [10, 11, 12]


@both_engines
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--model", "gpt-5-mini"], ["alice"]),
        (["--model", "gpt-5-mini-2025-08-07"], ["alice"]),
        (["--model", "gpt*"], ["alice"]),
        (["--model", "gpt"], []),
        (["--model", "*-mini"], ["alice", "bob"]),
        (["--user", "bob"], ["bob"]),
        (["--user", "b' or 'x' = 'x"], []),
        (["--conversation", "c-1"], ["alice"]),
        (["--module", "search"], ["bob"]),
        (["--errors"], ["bob"]),
        (["--errors", "--user", "alice"], []),
        (["--since", "2026-11-20T12:30Z"], ["bob"]),
        (["--until", "2026-11-20T12:30Z"], ["alice"]),
        (["--where", "tags['team'] = 'core'"], ["alice"]),
        (["-q", "BRIEF line,"], ["alice"]),
        (["-q", "brief bob"], []),
        (["-q", 'weather "%'], []),
        (["-q", 'Grüße,\n"C:\\dir"'], ["bob"]),
        (["-q", " "], ["alice", "bob"]),
    ],
)
def test_which_calls(arguments: list[str], found: list[str], fill: Fill, run: Run) -> None:
    said = json.dumps(
        [{"role": "user", "parts": [{"type": "text", "content": 'GRÜSSE, Grüße,\n"C:\\dir"'}]}], ensure_ascii=False
    )
    fill(CALL | SAID, OTHER | {"input_messages": said})
    assert users(run, *arguments) == found


TEXT = 'Straße, ÉCOLE 日本 50% O\'Neil_x a.b*c (d) [e] {f} ^g$ h|i \\j "k" l/m <n> n-o\tp;q Winter'


@both_engines
@pytest.mark.parametrize("kept", [{"ensure_ascii": False}, {"ensure_ascii": True}], ids=["UTF-8", "ASCII"])
def test_what_was_said_is_found_as_it_is_and_in_any_case(kept: dict[str, bool], fill: Fill, run: Run) -> None:
    fill(
        {"user_id": "asked", "input_messages": json.dumps([{"role": "user", "content": TEXT}], **kept)},
        {"user_id": "answered", "output_messages": json.dumps([{"role": "assistant", "content": TEXT}], **kept)},
        {"user_id": "failed", "error_message": TEXT},
        {
            "user_id": "other",
            "input_messages": json.dumps([{"role": "user", "content": "50 ONeil x axb 日 ecole"}], **kept),
        },
    )
    for word in TEXT.split():
        for form in (word, word.lower(), word.upper().replace("STRASSE", "STRAßE")):
            assert users(run, "-q", form) == ["asked", "answered", "failed"], form
    assert users(run, "--search", f"WINTER {TEXT}") == ["asked", "answered", "failed"]
    for pattern in ("a.*c", "5.%", "_NEIL", "^", "h|", ".", "(?i)", "\\d", "%", "50% summer"):
        expected = [
            user
            for user, found in (("asked", _has(pattern)), ("answered", _has(pattern)), ("failed", _has(pattern)))
            if found
        ]
        assert users(run, "-q", pattern) == expected, pattern
    assert users(run, "-q", "\udcff") == []


def _has(words: str) -> bool:
    return all(word.lower() in TEXT.lower() for word in words.split())


def test_what_is_still_in_a_journal_is_found(run: Run, store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    journal = Journal(paths.journal)
    said = json.dumps([{"role": "user", "content": "Which TYRES?"}])
    write_call(journal, {semconv.USER_ID: "early", semconv.INPUT_MESSAGES: said})
    assert users(run, "-q", "tyres") == ["early"]
    with merging(paths):
        write_call(journal, {semconv.USER_ID: "late", semconv.INPUT_MESSAGES: said})
        assert users(run, "-q", "tyres") == ["early", "late"]
        assert users(run, "-q", "hubcaps") == []
    journal.close()


@both_engines
def test_the_text_of_an_error(fill: Fill, run: Run) -> None:
    fill(CALL | SAID, OTHER | {"error_message": "Too many\x1b[2J requests.\nTry later."})
    shown = run("logs").out
    assert "bob  search  error 429" in shown and "\n  error: Too many" in shown and "\n    Try later.\n" in shown
    assert "\x1b[2J" not in shown
    (row,) = json.loads(run("logs", "--errors", "--json", "-q", "many try").out)
    assert row["error_message"].startswith("Too many")
    assert "Too many" not in run("logs", "--short").out


@both_engines
def test_an_estimate_is_told_apart(fill: Fill, run: Run) -> None:
    estimated = CALL | {"usage_source": "estimated"}
    fill(CALL, estimated)
    reported, marked = run("logs", "--short").out.splitlines()[-2:]
    assert "~" not in reported and "~1,000" in marked.replace("~1000", "~1,000") and "~0.00029" in marked
    assert [row["usage_source"] for row in json.loads(run("logs", "--json").out)] == [None, "estimated"]
    fill(estimated | SAID)
    assert " in, ~" in run("logs").out and "~$0.00029" in run("logs").out


@both_engines
def test_json(fill: Fill, run: Run) -> None:
    fill(CALL | SAID)
    (row,) = json.loads(run("logs", "--json").out)
    assert datetime.fromisoformat(row["started_at"]) == datetime.fromisoformat(CALL["started_at"])
    assert row["input_messages"] == json.loads(SAID["input_messages"])
    assert row["output_messages"] == json.loads(SAID["output_messages"])
    assert (row["cost_usd"], row["tags"], row["error_type"]) == (0.00029, {"team": "core"}, None)


@both_engines
def test_csv(fill: Fill, run: Run) -> None:
    fill(CALL, OTHER)
    header, first, second = csv.reader(io.StringIO(run("logs", "-f", "csv").out))
    assert (dict(zip(header, first, strict=True))["user_id"], dict(zip(header, second, strict=True))["status"]) == (
        "alice",
        "error",
    )


@both_engines
def test_a_line_for_each_call_where_nothing_was_said(fill: Fill, execute: Run) -> None:
    fill(CALL, OTHER)
    result = execute("logs", TZ="UTC")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["time", "model", "user", "module", "status", "input", "output", "cost", "ms", "trace"]
    assert lines[2] == ["2026-11-20", "12:00:00", "gpt-5-mini", "alice", "support", "ok", "1,000", "20", "0.000290", "1,234",
                        f"{0:032x}"]  # fmt: skip
    assert lines[3][5:8] == ["error", "429", "–"]


@both_engines
def test_what_was_said_is_shown_where_it_was_recorded(fill: Fill, execute: Run) -> None:
    fill(OTHER, {**CALL, **SAID, "started_at": "2026-11-20T14:00:00Z"})
    result = execute("logs", TZ="UTC")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"2026-11-20 13:00:00  o4-mini  bob  search  error 429  trace {0:032x}",
        "",
        f"2026-11-20 14:00:00  gpt-5-mini  alice  support  ok  1000 in, 20 out  $0.00029  trace {1:032x}",
        "  system: Be brief.",
        "  user: One line,",
        r"    \x1b[2Jand another",
        '  assistant: {"type": "tool_call", "name": "weather"}',
    ]
    short = execute("logs", "--short", TZ="UTC").out
    assert "Be brief" not in short
    assert len(short.splitlines()) == 4


@both_engines
@pytest.mark.parametrize(
    "messages",
    ["null", "[]", "{}", '"just text"', '[1, null, "x"]', '[{"role": "user", "content": "hello"}]', '[{"parts": "x"}]',
     '[{"role": null, "parts": [null, {"type": "blob"}]}]'],
)  # fmt: skip
def test_messages_of_any_shape_are_no_fault(messages: str, fill: Fill, run: Run) -> None:
    fill(CALL | {"input_messages": messages})
    for arguments in ([], ["--json"], ["-f", "csv"]):
        assert (run("logs", *arguments).code, run("logs", *arguments).err) == (0, "")


@both_engines
def test_nothing(fill: Fill, run: Run) -> None:
    assert run("logs").out.startswith("No model calls recorded yet in ")
    path = fill(CALL)
    assert run("logs", "--user", "nobody").out == f"No such model calls in {path}.\n"
    assert run("logs", "--user", "nobody", "--json").out == "[]\n"


@both_engines
def test_a_terminal_of_80_columns(fill: Fill, on_terminal: Callable[..., str]) -> None:
    fill({**CALL, "trace_id": "754d01fd" * 4}, {**OTHER, "trace_id": "b8089d0f" * 4})
    written = on_terminal("logs", columns=80)
    assert "\x1b[1;31merror 4…\x1b[0m" in written
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", written).splitlines()]
    assert lines[0] == ["time", "model", "user", "module", "status", "input", "output", "cost", "trace"]
    assert "1 more column in a wider terminal, or in --format json or csv: ms" in written
    assert [lines[2][0], lines[3][0]] == ["12:00:00", "13:00:00"]  # of one day
    assert [lines[2][-1], lines[3][-1]] == ["754d01fd", "b8089d0f"]  # enough for `show`
    fill({**CALL, "trace_id": "0" * 32, "started_at": "2026-11-19T12:00:00Z"})
    assert "\n11-19  gpt-5-mini  alice" in re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("logs", columns=80))
