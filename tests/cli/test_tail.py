"""`otel-llm tail`: every event of every process, once, as it happens."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import semconv
from otel_llm.store import store
from otel_llm.store.journal.follow import JournalFollower
from otel_llm.store.journal.record import acknowledgement
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import ingest
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Run, otel_llm_command
from tests.store.conftest import end, identity, start, until, write_call

Tail = Callable[..., subprocess.Popen[str]]
NOW = time.time_ns()


def call(journal: Journal, user: str = "ada", **fields: Any) -> dict[str, Any]:
    """A whole call in the journal; returns its end."""
    begin = start({semconv.USER_ID: user, semconv.MODULE: "travel"}, st=time.time_ns(), **fields)
    finish = end(begin)
    journal.append(begin, start_of=identity(begin))
    journal.append(finish, end_of=identity(begin))
    return finish


@pytest.fixture
def journal(store_path: Path) -> Iterator[Journal]:
    journal = Journal(StorePaths.of(store_path).journal)
    yield journal
    journal.close()
    store._stores.clear()


@pytest.fixture
def tail(store_path: Path) -> Iterator[Tail]:
    """A `tail` that follows what is written from now on."""
    started: list[subprocess.Popen[str]] = []

    def follow(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*otel_llm_command(), "tail", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        until(lambda: is_followed(store_path), "the follower")
        return process

    yield follow
    for process in started:
        process.kill()
        process.communicate()


def is_followed(store_path: Path) -> bool:
    """Whether a follower has had its first look: what is written from now on is news to it."""
    signs = StorePaths.of(store_path).journal.glob("follower-*")
    return any(sign.stat().st_mtime_ns > 0 for sign in signs)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_events_of_calls_as_they_are_made(journal: Journal, tail: Tail) -> None:
    process = tail("--json", "-n", "0")
    time_ns = time.time_ns()
    begin = start({semconv.USER_ID: "ada", semconv.MODULE: "travel"}, st=time_ns)
    journal.append(begin, start_of=identity(begin))
    started = json.loads(line(process))  # while the call runs
    journal.append(end(begin, {semconv.INPUT_TOKENS: 3}), end_of=identity(begin))
    ended = json.loads(line(process))
    assert started == {
        "id": f"{begin['t']}-{begin['s']}-ProviderStarted", "time_ns": time_ns, "event": "ProviderStarted", "pid": os.getpid(),
        "operation": "chat", "name": "gpt-4o-mini", "user_id": "ada", "module": "travel", "conversation_id": None,
        "trace_id": begin["t"], "span_id": begin["s"], "parent_span_id": None, "time": started["time"],
    }  # fmt: skip
    assert (ended["event"], ended["status"], ended["input_tokens"]) == ("ProviderCompleted", "ok", 3)
    assert ended["duration_ms"] == 250


def test_lines_for_people(journal: Journal, tail: Tail) -> None:
    process = tail("-n", "0")
    tool = {
        semconv.OPERATION: "execute_tool",
        semconv.TOOL_NAME: "se\x1b[31march",
        semconv.STATUS: "error",
        semconv.ERROR_TYPE: "KeyError",
    }
    begin = start(n="execute_tool se\x1b[31march", st=time.time_ns())
    begin["a"] = tool
    journal.append(end(begin, {}))
    shown = line(process)
    assert "ToolCompleted" in shown
    assert "error  KeyError  250 ms" in shown
    assert "\x1b" not in shown


def test_the_last_events_of_the_store_come_first_and_none_comes_twice(journal: Journal, tail: Tail) -> None:
    calls = [call(journal) for _ in range(5)]
    process = tail("--json", "-n", "3")
    first = [json.loads(line(process)) for _ in range(3)]
    assert [one["span_id"] for one in first if one["event"] == "ProviderCompleted"] == [
        one["s"] for one in calls[-len([o for o in first if o["event"] == "ProviderCompleted"]) :]
    ]
    later = call(journal)
    assert [json.loads(line(process))["span_id"] for _ in range(2)] == [later["s"]] * 2


def test_filters(journal: Journal, tail: Tail, run: Run) -> None:
    process = tail("--json", "-n", "0", "--user", "bob", "--events", "providercompleted")
    call(journal)
    wanted = call(journal, "bob")
    call(journal)
    last = call(journal, "bob")
    found = [json.loads(line(process)) for _ in range(2)]
    assert [(one["event"], one["span_id"]) for one in found] == [
        ("ProviderCompleted", wanted["s"]),
        ("ProviderCompleted", last["s"]),
    ]
    result = run("tail", "--no-follow", "--user", "bob", "--json")
    assert {json.loads(text)["user_id"] for text in result.out.splitlines()} == {"bob"}
    assert len(result.out.splitlines()) == 4
    assert run("tail", "--no-follow", "--module", "nobody").out == ""


def test_bad_input_is_named(run: Run) -> None:
    result = run("tail", "--events", "ProviderCompleted,Finished")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("otel-llm: --events: there is no event 'Finished'; there are ChainStarted, ")


@pytest.mark.parametrize("how", [signal.SIGINT, "reader gone"])
def test_it_ends_quietly(journal: Journal, tail: Tail, store_path: Path, how: object) -> None:
    process = tail("-n", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    if how is signal.SIGINT:
        call(journal)
        line(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    else:
        process.stdout.close()
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            call(journal)
            time.sleep(0.05)
        assert process.wait(1) == 0
    assert process.stderr.read() == ""
    assert not list(StorePaths.of(store_path).journal.glob("follower-*"))


def test_the_process_has_its_column_where_there_is_room(
    store_path: Path, journal: Journal, on_terminal: Callable[..., str]
) -> None:
    call(journal)
    for columns in (60, 99, 100):
        lines = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("tail", "--no-follow", columns=columns)).splitlines()
        assert [line.index("Provider") for line in lines] == [23 if columns == 100 else 14] * 2
        assert max(map(len, lines)) <= columns
    assert lines[-1].endswith("gpt-4o-mini  250 ms  1,000 + 500 tokens  ada  travel")


def test_json_in_any_encoding(journal: Journal, execute: Run) -> None:
    call(journal, "Zoë 日本")
    result = execute("tail", "--no-follow", "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert {json.loads(text)["user_id"] for text in result.out.splitlines()} == {"Zoë 日本"}


# --- a process that dies ----------------------------------------------------------------------------------------------

AGENT = """
    import sys
    import openai, otel_llm
    from otel_llm import chain, llm_context

    otel_llm.instrument(store=sys.argv[1])
    client = openai.OpenAI(base_url=sys.argv[2], api_key="local")
    with llm_context("kitchen", user_id="ada"), chain("cook", agent=True):
        hello = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello."}]}
        client.chat.completions.create(**hello)
        stream = client.chat.completions.create(
            **hello, stream=True, extra_headers={"x-local-behaviour": "stream-slow"}
        )
        next(stream)
        print("at work", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def agent(store_path: Path, openai_server: Any) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process with an agent that has one model call behind it and is in the middle of another."""
    started: list[subprocess.Popen[str]] = []

    def start_it() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(AGENT), str(store_path), openai_server.base_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert line(process) == "at work\n"
        return process

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


def test_what_a_killed_process_was_doing_is_told(
    agent: Callable[[], subprocess.Popen[str]], tail: Tail, store_path: Path, run: Run
) -> None:
    before = agent()  # runs already when tail begins
    gone = agent()
    gone.kill()
    gone.wait()
    process = tail("--json", "-n", "0", "--events", "interrupted")
    after = agent()
    for victim in (before, after):
        victim.kill()
        call_, agent_ = (json.loads(line(process)) for _ in range(2))  # the innermost first
        assert (call_["operation"], call_["name"]) == ("chat", "gpt-4o-mini")
        assert (agent_["operation"], agent_["name"]) == ("invoke_agent", "cook")
        for row in (call_, agent_):
            assert (row["event"], row["status"], row["pid"]) == ("Interrupted", "interrupted", victim.pid)
            assert (row["user_id"], row["module"]) == ("ada", "kitchen")
            assert 0 < row["age_ms"] < 120_000
            assert row["id"] == f"{row['trace_id']}-{row['span_id']}-Interrupted"
        assert call_["parent_span_id"] == agent_["span_id"]
        assert agent_["age_ms"] > call_["age_ms"]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[0] == ""  # once, and what was dead before not at all
    # Afterwards the store has them, as parts that began.
    rows = [json.loads(text) for text in run("tail", "--no-follow", "--json", "-n", "100").out.splitlines()]
    assert [row["event"] for row in rows if row.get("status") == "interrupted"] == [
        "ChainStarted",
        "ProviderStarted",
    ] * 3


def test_an_interrupted_call_on_one_line(journal: Journal, tail: Tail, store_path: Path) -> None:
    begin = start({semconv.USER_ID: "ada"}, st=time.time_ns() - 90 * 10**9)
    dead = Journal(StorePaths.of(store_path).journal)
    process = tail("-n", "0")
    dead.append(begin, start_of=identity(begin))
    assert "ProviderStarted" in line(process)
    dead.close()  # as far as anybody can see, its process is gone
    words = line(process).split()
    assert words[1:5] == [str(os.getpid()), "Interrupted", "gpt-4o-mini", "after"]
    assert (float(words[5]) >= 90, words[6], words[7]) == (True, "s", "ada")


@pytest.mark.parametrize("merged", [False, True])
def test_a_writer_that_only_went_on_is_not_dead(store_path: Path, merged: bool) -> None:
    """To its next segment, or after it had closed its journal; a segment may be gone before it is seen to be free."""
    paths = StorePaths.of(store_path)
    journal, dead = Journal(paths.journal), Journal(paths.journal)
    begin, long_ago = start(st=time.time_ns()), start()
    dead.append(long_ago, start_of=identity(long_ago))
    dead.close()
    with JournalFollower(paths) as follower:
        journal.append(begin, start_of=identity(begin))
        assert spans_of(follower.poll()) == [("s", begin["s"])]
        journal.rotate()
        if merged:
            ingest.merge(store_path)
        assert follower.poll() == []
        journal.close()
        if merged:
            ingest.merge(store_path)
        assert spans_of(follower.poll()) == [("i", begin["s"])]
        assert follower.poll() == []
        journal.append(end(begin), end_of=identity(begin))  # it lives after all: the end is news, the start is not
        assert spans_of(follower.poll()) == [("e", begin["s"])]
        assert follower.poll() == []
    journal.close()


def test_what_arrives_over_otlp_is_no_event(store_path: Path) -> None:
    journal = Journal(StorePaths.of(store_path).journal)
    with JournalFollower(StorePaths.of(store_path)) as follower:
        journal.append(acknowledgement("http://backend:4317", [(1, 1)]))
        assert follower.poll() == []
        call = write_call(journal)
        assert [one["s"] for one in follower.poll()] == [call["s"]] * 2
    journal.close()


# --- exactly once -----------------------------------------------------------------------------------------------------


def spans_of(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(record["k"], record["s"]) for record in records]


def test_segments_that_rotate_merge_and_go_while_they_are_followed(store_path: Path) -> None:
    """Ten writers, segments of a few records, a merge after each: everything once, whenever the follower looks."""
    paths = StorePaths.of(store_path)
    written: list[tuple[str, str]] = []
    found: list[tuple[str, str]] = []
    with JournalFollower(paths) as follower:
        for round_ in range(10):
            journal = Journal(paths.journal, segment_size=1500)
            open_ = start(st=time.time_ns())  # its start is repeated in each segment
            journal.append(open_, start_of=identity(open_))
            written.append(("s", open_["s"]))
            for _ in range(6):
                one = call(journal)
                written += [("s", one["s"]), ("e", one["s"])]
                if round_ % 2:
                    ingest.merge(store_path)
            journal.append(end(open_), end_of=identity(open_))
            written.append(("e", open_["s"]))
            journal.close()
            ingest.merge(store_path)  # nothing else holds these segments back
            if round_ % 3 == 0:
                found += spans_of(follower.poll())
        found += spans_of(follower.poll())
    assert sorted(found) == sorted(written)
    ingest.merge(store_path)
    assert not list(paths.journal.glob("*.jsonl"))


def test_a_merge_deletes_what_has_been_read(store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    journal = Journal(paths.journal)
    with JournalFollower(paths) as follower:
        call(journal)
        journal.close()
        ingest.merge(store_path)
        (segment,) = paths.journal.glob("*.jsonl")
        old = time.time_ns() - 10**9
        os.utime(segment, ns=(old, old))
        assert len(follower.poll()) == 2
        ingest.merge(store_path)
        assert not list(paths.journal.glob("*.jsonl"))
        assert follower.poll() == []


def test_a_follower_that_is_dead_or_stuck_holds_nothing_back(store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    paths.journal.mkdir()
    dead = paths.journal / "follower-1-cafe"
    dead.touch()
    with JournalFollower(paths) as follower:
        assert follower._sign is not None
        os.utime(follower._sign, ns=(1, 1))
        journal = Journal(paths.journal)
        call(journal)
        journal.close()
        ingest.merge(store_path)
        assert not list(paths.journal.glob("*.jsonl"))
        assert not dead.exists()


def test_damaged_and_unfinished_lines(store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    journal = Journal(paths.journal)
    call(journal)
    assert journal.segment is not None
    with JournalFollower(paths) as follower:
        one = call(journal)
        whole = journal.segment.read_bytes()
        last = whole.splitlines(keepends=True)[-1]
        with journal.segment.open("ab") as file:
            file.write(b"garbage\n" + b'{"c":"00000000","k":"e"}\n' + last[:40])
        assert spans_of(follower.poll()) == [("s", one["s"]), ("e", one["s"])]
        with journal.segment.open("ab") as file:
            file.write(b"\n")
        two = call(journal)
        assert spans_of(follower.poll()) == [("s", two["s"]), ("e", two["s"])]
    journal.close()


def test_a_call_that_another_span_stands_for_is_not_shown(journal: Journal, tail: Tail) -> None:
    process = tail("--json", "-n", "0")
    call(journal, x=1)
    shown = call(journal)
    assert json.loads(line(process))["span_id"] == shown["s"]


# --- on a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    shutil.which("tmux") is None, reason="tmux is not installed: `otel-llm tail` was not seen on a terminal"
)
def test_on_a_real_terminal(journal: Journal, store_path: Path, tmp_path: Path) -> None:
    socket = str(tmp_path / "tmux")

    def tmux(*arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", socket, "-f", "/dev/null", *arguments], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def screen(*options: str) -> str:
        return tmux("capture-pane", "-p", *options, "-t", "tail")

    command = shlex.join([*otel_llm_command(), "tail", "-n", "0", "--store", str(store_path)])
    shell = f"env -u NO_COLOR -u COLUMNS TERM=screen-256color {command}; echo ended with $?; sleep 60"
    tmux("new-session", "-d", "-s", "tail", "-x", "120", "-y", "20", shell)
    try:
        until(lambda: is_followed(store_path), "the follower")
        written = time.monotonic()
        call(journal)
        until(lambda: "ProviderCompleted" in screen(), "the line on the screen")
        assert time.monotonic() - written < 30
        shown = screen()
        assert "gpt-4o-mini  250 ms  1,000 + 500 tokens  ada  travel" in shown
        assert "\x1b[36mProviderCompleted" in screen("-e")  # cyan
        tmux("send-keys", "-t", "tail", "C-c")
        until(lambda: "ended with 130" in screen(), "the end")
        assert "Traceback" not in screen()
    finally:
        tmux("kill-server")


def test_it_needs_no_database(store_path: Path, journal: Journal) -> None:
    script = (
        "import sys\n"
        "sys.modules['duckdb'] = None\n"
        "from otel_llm.cli import main\n"
        "sys.exit(main(['tail', '-n', '0', '--events', 'ProviderStarted']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: is_followed(store_path), "the follower")
        call(journal)
        assert "ProviderStarted" in line(process)
    finally:
        process.kill()
        process.communicate()


# --- what was in a chain ----------------------------------------------------------------------------------------------
TOKENS = {semconv.INPUT_TOKENS: 1_000, semconv.OUTPUT_TOKENS: 100}
PRICED = Decimal("0.00021")
"""Of a call of gpt-4o-mini with these."""
CHAIN = {semconv.OPERATION: "invoke_agent"}


def call_in(journal: Journal, above: dict[str, Any], model: str = "gpt-4o-mini", **attributes: Any) -> None:
    told = {semconv.REQUEST_MODEL: model, semconv.USER_ID: "ada"} | attributes
    begin = start(told, t=above["t"], p=above["s"], n=f"chat {model}", st=time.time_ns())
    journal.append(begin, start_of=identity(begin))
    journal.append(end(begin, TOKENS, et=time.time_ns()), end_of=identity(begin))


def finish(journal: Journal, begin: dict[str, Any], **attributes: Any) -> None:
    journal.append(end(begin, attributes, et=time.time_ns()), end_of=identity(begin))


def test_the_end_of_a_chain_has_the_sums_of_its_calls(journal: Journal, tail: Tail, run: Run) -> None:
    """Also of calls in steps and in chains inside it, of users that are left out, and of models without a price."""
    process = tail("--json", "-n", "0", "--events", "ChainCompleted,ChainError")
    outer, inner = (
        start(CHAIN, t="ab" * 16, s=f"{number:016x}", p=above, n="invoke_agent trip", st=time.time_ns())
        for number, above in ((1, None), (2, "0" * 15 + "3"))
    )
    step = start({semconv.OPERATION: "step"}, t="ab" * 16, s=f"{3:016x}", p=f"{1:016x}", n="step s", st=time.time_ns())
    for one in (outer, step, inner):
        journal.append(one, start_of=identity(one))
    call_in(journal, inner)
    call_in(journal, inner, "a model of tomorrow")
    finish(journal, inner, **{semconv.RUN_WAITING: True})
    call_in(journal, step)
    finish(journal, step)
    finish(journal, outer, **{semconv.STATUS: "error"})
    names = ("event", "model_calls", "input_tokens", "output_tokens", "cost_usd")
    shown = [json.loads(line(process)) for _ in range(2)]
    expected = [("ChainCompleted", 2, 2_000, 200, PRICED), ("ChainError", 3, 3_000, 300, 2 * PRICED)]
    assert [tuple(row[name] for name in names) for row in shown] == [(*e[:-1], float(e[-1])) for e in expected]
    assert [row.get("waiting") for row in shown] == [True, None]
    # Read back they are the same.
    back = [json.loads(row) for row in run("tail", "-n", "9", "--no-follow", "--json").out.splitlines()]
    ends = [row for row in back if row["event"].startswith("Chain") and row["event"] != "ChainStarted"]
    assert [{name: row[name] for name in names} for row in ends] == [
        {name: row[name] for name in names} for row in shown
    ]


def test_a_line_of_a_chain(journal: Journal, tail: Tail) -> None:
    process = tail("-n", "0", "--events", "ChainCompleted")
    for calls in (1, 2):
        begin = start(CHAIN, t=f"{calls:032x}", s=f"{1:016x}", n="invoke_agent trip", st=time.time_ns())
        journal.append(begin, start_of=identity(begin))
        for _ in range(calls):
            call_in(journal, begin)
        finish(journal, begin, **({semconv.RUN_WAITING: True} if calls == 2 else {}))
    assert "1,000 + 100 tokens  1 model call  $0.00021" in line(process)
    assert "2,000 + 200 tokens  2 model calls  $0.00042  waiting" in line(process)


def test_a_chain_that_had_begun_before_has_no_sums(journal: Journal, tail: Tail) -> None:
    """What was in it by then may be anything, and no part of a sum is passed off as the whole."""
    begin = start(CHAIN, t="ab" * 16, s=f"{1:016x}", n="invoke_agent trip", st=time.time_ns())
    journal.append(begin, start_of=identity(begin))
    call_in(journal, begin)
    process = tail("--json", "-n", "0", "--events", "ChainCompleted")
    call_in(journal, begin)
    finish(journal, begin)
    shown = json.loads(line(process))
    assert [shown[name] for name in ("model_calls", "input_tokens", "output_tokens", "cost_usd")] == [None] * 4
