"""What somebody types who has not read the manual: it is understood, or answered with what to type."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from otel_llm.cli.options.when import since, until
from tests.cli.conftest import Fill, Run, both_engines

CALLS = (
    {"user_id": "alice", "request_model": "gpt-5", "module": "chat", "tags": {"team": "core"}},
    {"user_id": "bob", "request_model": "gpt-4o", "module": "chat", "status": "error"},
    {"user_id": "bob", "request_model": "gpt-5-mini", "module": "search"},
)


@both_engines
@pytest.mark.parametrize(
    ("arguments", "calls"),
    [
        (["--user", "bob"], 2),
        (["--model", "gpt-5*"], 2),
        (["--module", "chat", "--errors"], 1),
        (["--where", "user = 'alice'"], 1),
        (["--where", "model = 'gpt-4o' or user = 'alice' and module = 'chat'"], 2),
        (["--where", "day = '2026-11-20'"], 3),
    ],
)
def test_usage_is_filtered_as_logs_is(arguments: list[str], calls: int, run: Run, fill: Fill) -> None:
    fill(*CALLS)
    done = run("usage", "--by", "operation", "--json", *arguments)
    assert done.code == 0, done.err
    assert f'"calls":{calls}' in done.out.replace(" ", "")


def test_usage_names_its_period(run: Run, fill: Fill) -> None:
    fill(*CALLS)
    assert "Calls since 2026-11-01 00:00" in run("usage", "--since", "2026-11-01").out
    assert "Calls" not in run("usage").out


def test_a_tag_that_no_call_has(run: Run, fill: Fill) -> None:
    fill(*CALLS)
    assert "No call has a tag typo; there are team" in run("usage", "--by", "tag:typo").out
    assert "No call has" not in run("usage", "--by", "tag:team").out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["usage", "--by", "user", "model"], "--by takes several with commas between: --by user,model"),
        (["usage", "--by", "user model"], "--by takes several with commas between: --by user,model"),
        (["usage", "--store", ""], "--store names nothing"),
        (["usage", "--since", "today", "--until", "yesterday"], "there is no time between --since today"),
        (["prices", "gpt4o-mini"], "did you mean gpt-4o-mini"),
    ],
)
def test_a_slip_is_answered_with_what_to_type(command: list[str], words: str, run: Run, fill: Fill) -> None:
    fill(*CALLS)
    done = run(*command)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err


def test_help_and_version_are_found_under_every_name(run: Run) -> None:
    assert run("help", "usage").out == run("usage", "--help").out
    assert run("help").out == run("--help").out
    assert run("-V").out == run("--version").out == run("version").out


def test_sql_shows_what_each_statement_answers(run: Run, fill: Fill) -> None:
    fill(*CALLS)
    done = run(
        "sql", "SET threads = 1; SELECT 1 AS one; SELECT user_id FROM llm_usage WHERE user_id = 'alice'; -- no more"
    )
    assert [line.strip() for line in done.out.splitlines() if line.strip("─ ")] == ["one", "1", "user_id", "alice"]
    assert run("sql", "-x", "SELECT 1 AS one, 'two' AS other").out.split() == ["row", "1", "one", "1", "other", "two"]


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("this-month", "2026-03-01", "2026-04-01"),
        ("last-month", "2026-02-01", "2026-03-01"),
        ("this-week", "2026-03-16", "2026-03-23"),
        ("last-week", "2026-03-09", "2026-03-16"),
        ("monday", "2026-03-16", "2026-03-17"),
        ("wednesday", "2026-03-18", "2026-03-19"),
        ("Friday", "2026-03-13", "2026-03-14"),
    ],
)
def test_times_as_people_say_them(text: str, begins: str, ends: str) -> None:
    now = datetime(2026, 3, 18, 15, 30).astimezone()  # a Wednesday
    assert (f"{since(text, now):%Y-%m-%d}", f"{until(text, now):%Y-%m-%d}") == (begins, ends)


@pytest.mark.parametrize(
    ("text", "hours"), [("7days", 168), ("7d", 168), ("2 hours", 2), ("90min", 1.5), ("1week", 168)]
)
def test_lengths_of_time(text: str, hours: float) -> None:
    now = datetime(2026, 1, 18, 15, 30).astimezone()
    assert (now - since(text, now)).total_seconds() == hours * 3600


ASKS = """
import logging, sys
import openai, otel_llm
logging.getLogger("otel_llm").setLevel(sys.argv[1])
otel_llm.instrument()
for _ in range(2):
    openai.OpenAI().embeddings.create(model="text-embedding-3-small", input="tyres")
"""


def _stderr_of_a_program(environment: dict[str, str], *, terminal: bool, level: str = "WARNING") -> str:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen([sys.executable, "-c", ASKS, level], env=environment, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while block := os.read(ours, 65536):
                written += block
        except OSError:  # how Linux says that the other side of a terminal was closed
            pass
        os.close(ours)
    assert process.returncode == 0, written
    return written.decode()


def test_the_first_program_says_where_the_account_is(environment: dict[str, str], store_path: Path) -> None:
    """Once, and to a person: not in a pipe or a service, nor where our warnings are not wanted."""
    for quiet in ({"terminal": False}, {"terminal": True, "level": "ERROR"}):
        elsewhere = {**environment, "OTEL_LLM_STORE": str(store_path.with_name(f"{len(quiet)}.duckdb"))}
        assert _stderr_of_a_program(elsewhere, **quiet) == ""  # type: ignore[arg-type]
    said = f"otel-llm: model calls are recorded in {store_path}; `otel-llm usage` adds them up\r\n"
    assert [_stderr_of_a_program(environment, terminal=True) for _ in range(2)] == [said, ""]
