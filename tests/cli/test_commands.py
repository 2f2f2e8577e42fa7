"""What every command has in common, seen from outside: exit codes, one-line errors, help, start-up, pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from otel_llm.cli.app import COMMANDS
from otel_llm.version import __version__
from tests.cli.conftest import Fill, Run, otel_llm_command

ELSEWHERE = {
    "budget": "it needs a file of budgets: tests/budgets/test_command.py",
    "demo": "it runs for a while: tests/integration/test_demo.py",
    "mcp": "it goes on: test_mcp.py",
    "replay": "it needs a backend: tests/integration/test_replay.py",
    "serve": "it goes on: tests/fleet/serve",
    "ship": "it needs a receiver, and goes on: tests/fleet/ship/test_processes.py",
    "tail": "it goes on: test_tail.py",
    "ui": "it goes on: tests/ui",
}
RUNNABLE = [name for name in COMMANDS if name not in ELSEWHERE]
CALL = {"request_model": "gpt-5-mini", "user_id": "alice", "input_tokens": 1000, "cost_usd": "0.000450"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["usage", "--by", "modle"], "'modle'"),
        (["usage", "--since", "soon"], "'soon'"),
        (["usage", "--format", "xml"], "xml"),
        (["usage", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["sql", "select * from nosuch"], "nosuch"),
        (["sql", "from llm_usage", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["sql"], "SQL"),
        (["sql", "--file", "nowhere.sql"], "nowhere.sql"),
        (["sql", "select 1", "--file", "query.sql"], "--file"),
        (["sql", "select 1", "--formt=json"], "--formt"),
        (["sql", "select 1", "--json", "--format", "csv"], "--json"),
        (["usage", "--json", "--plot"], "--plot"),
        (["usage", "--sort", "costs"], "'costs' (did you mean cost?)"),
        (["usage", "--top", "0"], "otel-llm usage --help"),
        (["usage", "--where", "modle = 'x'"], "modle"),
        (["logs", "--where", "true; drop table llm_usage"], "--where"),
        (["logs", "-n", "many"], "many"),
        (["logs", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["show", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["show"], "logs"),
        (["show", "abc"], "'abc'"),
        (["prices", "nosuch"], "nosuch"),
        (["prices", "gpt-5-mini", "--at", "soon"], "'soon'"),
        (["frobnicate"], "frobnicate"),
        (["useage"], "Did you mean usage?"),
        (["logs", "-n", "9" * 30], "9" * 30),
        (["tail", "--no-follow", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["tail", "-n", "0", "--store", "nowhere/usage.duckdb"], "nowhere"),
        (["ps", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["--nope"], "--nope"),
        (["prune"], "--older-than"),
        (["prune", "--older-than", "90"], "'90'"),
        (["prune", "--max-size", "lots"], "'lots'"),
        (["prune", "--older-than", "1d", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["compact", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["backup"], "FILE"),
        (["backup", "copy.duckdb", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["backup", "nowhere/copy.duckdb"], "nowhere"),
        (["export", "usage.xls"], "usage.xls"),
        (["export", "usage.csv", "--table", "nosuch"], "nosuch"),
        (["export", "usage.csv", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
        (["export", "nowhere/usage.csv"], "nowhere"),
        (["replay"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (["replay", "--endpoint", "ftp://h"], "ftp://h"),
        (["replay", "--endpoint", "h:4317", "--protocol", "carrier-pigeon"], "carrier-pigeon"),
        (["replay", "--endpoint", "h:4317", "--trace", "abc"], "abc"),
        (["replay", "--endpoint", "h:4317", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments: list[str], names: str, fill: Fill, execute: Run) -> None:
    fill(CALL)
    result = execute(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("otel-llm: ")
    assert names in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "content", [b"", b"not a database " * 1000, None], ids=["empty file", "not a database", "directory"]
)
def test_what_is_no_store_is_refused_in_one_line(content: bytes | None, tmp_path: Path, execute: Run) -> None:
    path = tmp_path / "odd.duckdb"
    path.mkdir() if content is None else path.write_bytes(content)
    result = execute("usage", "--store", str(path))
    assert (result.code, result.out) == (2, "")
    assert str(path) in result.err
    assert result.err.count("\n") == 1


def test_a_database_of_somebody_else_is_refused_in_one_line(store_path: Path, execute: Run) -> None:
    with duckdb.connect(str(store_path)) as connection:
        connection.execute("CREATE TABLE mine (a INTEGER)")
    result = execute("usage")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1


def test_the_account_turned_off(execute: Run) -> None:
    for command in (["usage"], ["path"], ["sql", "select 1"], ["ps"]):
        result = execute(*command, OTEL_LLM_STORE="none")
        assert (result.code, result.out) == (2, "")
        assert result.err == (
            "otel-llm: OTEL_LLM_STORE=none turns the account off; unset it, or name a store with --store PATH\n"
        )


def test_path_prints_the_path_and_nothing_else(store_path: Path, execute: Run, tmp_path: Path) -> None:
    assert execute("path").out == f"{store_path}\n"
    assert execute("path", "--store", f"{tmp_path}/other.duckdb").out == f"{tmp_path}/other.duckdb\n"
    default = execute("path", OTEL_LLM_STORE="", XDG_DATA_HOME=str(tmp_path))
    assert default.out.endswith("usage.duckdb\n")
    assert not any(tmp_path.iterdir())


def test_version(execute: Run) -> None:
    assert execute("version").out == execute("--version").out == f"otel-llm {__version__}\n"


def test_help_without_being_asked(run: Run) -> None:
    bare, asked = run(), run("--help")
    assert bare == asked
    assert (bare.code, bare.err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", bare.out, re.MULTILINE)


def test_the_list_of_commands_says_what_each_says_of_itself(run: Run) -> None:
    for command, (_, line) in COMMANDS.items():
        said = re.sub(r"\s+", " ", run(command, "--help").out)
        assert f"Usage: otel-llm {command} " in said
        assert f" {line.rstrip('.')}" in said


def test_the_exit_codes_are_in_the_help(run: Run) -> None:
    for code in ("0", "1", "2", "130"):
        assert re.search(rf"^    {code} +\w", run("--help").out, re.MULTILINE)


@pytest.mark.parametrize("command", ["usage", "logs", "sql", "ps", "prices"])
def test_json_has_a_short_form(command: str, fill: Fill, run: Run) -> None:
    fill(CALL)
    words = [command, "from llm_usage"] if command == "sql" else [command]
    short, long = run(*words, "--json"), run(*words, "--format", "json")
    assert short == long
    assert isinstance(json.loads(short.out), list)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, execute: Run) -> None:
    assert "_OTEL_LLM_COMPLETE" in execute(_OTEL_LLM_COMPLETE=f"{shell}_source").out
    completed = execute(_OTEL_LLM_COMPLETE="bash_complete", COMP_WORDS="otel-llm us", COMP_CWORD="1")
    assert (completed.code, completed.out, completed.err) == (0, "plain,usage\n", "")
    options = execute(_OTEL_LLM_COMPLETE="bash_complete", COMP_WORDS="otel-llm usage --pl", COMP_CWORD="2")
    assert options.out == "plain,--plot\n"


@pytest.mark.parametrize("arguments", [["path"], ["--help"], ["usage", "--help"], ["version"]])
def test_start_up_is_light(arguments: list[str]) -> None:
    script = f"""
import contextlib, io, sys
from otel_llm.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main({arguments!r})
heavy = ("duckdb", "openai", "langchain", "langchain_core", "opentelemetry.sdk", "genai_prices", "pydantic", "rich",
         "otel_llm.store.store", "otel_llm.store.reader", "otel_llm.cli.read.sql")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_example_in_the_help_runs(
    fill: Fill, fill_spans: Fill, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scored = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"}
    fill(
        {**CALL, "started_at": "2026-11-20T12:00:00Z", "conversation_id": "c-1", "tags": {"team": "core"}},
        {**CALL, **scored},
        {**CALL, "trace_id": "77aa0c1277aa0c1277aa0c1277aa0c12"},
    )
    fill_spans({})
    (tmp_path / "query.sql").write_text("select count(*) from llm_usage")
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in RUNNABLE:
        examples = re.findall(r"^    (\S.*otel-llm .*|otel-llm .*)$", run(command, "--help").out, re.MULTILINE)
        assert any(f"otel-llm {command}" in line for line in examples)
        for line in examples:
            words = shlex.split(line)
            if words[0] == "duckdb":
                continue  # its own command line, which need not be installed
            if words[0] == "otel-llm" and "<" not in words and "copy" not in line:
                code, out = (result := run(*words[1:])).code, result.out
            else:
                done = subprocess.run(
                    ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PATH": scripts},
                    stdout=subprocess.PIPE, text=True, timeout=120,
                )  # fmt: skip
                code, out = done.returncode, done.stdout
            assert code in ((0, 1) if command == "doctor" else (0,)), line
            assert out, line


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["sql", "from range(200000)", "--format", "csv"], "range\n"),
        # All of it would take minutes and the memory of the machine: it is handed out as it is read.
        (["sql", "select range as n from range(500000000)", "--json"], "[\n"),
        (["--help"], "Usage: otel-llm "),
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str], first: str, fill: Fill) -> None:
    fill(CALL)
    command = shlex.join([*otel_llm_command(), *arguments])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(first)
    assert done.stdout.count("\n") == 1


def test_a_reader_that_was_never_there_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (["--help"], ["version"], ["usage", "--help"]):
        done = subprocess.run([*otel_llm_command(), *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=120)
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(writing)


def test_no_output_at_all_is_no_error(fill: Fill) -> None:
    fill(CALL)
    command = shlex.join([*otel_llm_command(), "usage"])
    done = subprocess.run(["bash", "-c", f"{command} >&-"], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_dimensions_add_up(fill: Fill, run: Run) -> None:
    fill(CALL)
    assert (
        run("usage", "--by", "model", "--by", "user,module", "--json").out
        == run("usage", "--by", "model,user,module", "--json").out
    )


@pytest.mark.parametrize("suffix", ["", ".wal", ".journal/0-1.jsonl"])
@pytest.mark.parametrize("command", [["export", "--format", "csv"], ["backup"]])
def test_nothing_is_written_over_the_store(
    command: list[str], suffix: str, fill: Fill, run: Run, store_path: Path, tmp_path: Path
) -> None:
    fill(CALL)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    before = store_path.read_bytes()
    result = run(*command, str(link / f"{store_path.name}{suffix}"), "--force")
    assert (result.code, result.out) == (2, "")
    assert "belongs to the store itself; name another file" in result.err
    assert store_path.read_bytes() == before


def test_a_store_that_is_not_there_is_not_begun(run: Run, tmp_path: Path) -> None:
    for arguments in (["tail", "--no-follow"], ["tail", "-n", "0"], ["ps"]):
        assert run(*arguments, "--store", str(tmp_path / "no" / "store.duckdb")).code == 2
    assert not (tmp_path / "no").exists()


def test_colours_only_on_a_terminal(fill: Fill, execute: Run) -> None:
    fill(CALL)
    assert "\x1b" not in execute("usage").out
    assert "\x1b[1m" in on_a_terminal("usage")
    assert "alice" in on_a_terminal("usage", "--by", "user", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("doctor", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("usage", TERM="dumb")
    assert "\x1b" not in on_a_terminal("usage", "--format", "json")


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """What a command writes on a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **variables}
    process = subprocess.Popen(
        [*otel_llm_command(), *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    try:
        while block := os.read(ours, 65536):
            written += block
    except OSError:  # how Linux says that the other side of a terminal was closed
        pass
    process.wait(120)
    os.close(ours)
    return written.decode()


def test_an_encoding_without_these_characters(fill: Fill, execute: Run) -> None:
    fill({**CALL, "user_id": "Zoë 日本", "module": "a–b"})
    for format in ("table", "csv"):
        result = execute("usage", "--by", "user,module", "--format", format, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert (result.code, result.err) == (0, "")
        assert r"Zo\xeb" in result.out
    assert r",a\u2013b," in result.out  # what is recorded stays what it is
    result = execute("usage", "--by", "user", "--format", "json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert json.loads(result.out)[0]["user"] == "Zoë 日本"
    # Lines and bars are drawn with what there is.
    table, bars = (
        execute("usage", "--by", "user,hour", *option, PYTHONIOENCODING="ascii", PYTHONUTF8="0").out.splitlines()
        for option in ([], ["--plot"])
    )
    assert set(table[1]) == {"-"}
    assert bars[1].endswith("  0.000450  " + "#" * bars[1].count("#"))
    assert bars[1].count("#") > 50


def test_a_fault_of_ours_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("otel_llm.cli.read.sql.asking", fault)
    result = run("sql", "select 1")
    assert (result.code, result.out) == (2, "")
    assert result.err == "otel-llm: RuntimeError: two lines; OTEL_LOG_LEVEL=debug shows where\n"
    monkeypatch.setenv("OTEL_LOG_LEVEL", "debug")
    assert "Traceback" in run("sql", "select 1").err
