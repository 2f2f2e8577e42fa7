"""What was recorded may come from anybody: on a terminal it is text, whatever it holds, and it breaks no table."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from otel_llm.support import files
from tests.cli.conftest import Fill, Run, both_engines

# A title, a cleared screen, a C1 sequence, text that runs backwards, a line overwritten.
EVIL = "\x1b]0;title\x07\x1b[2J\x9b2J\u202ednal\u2028\r\nover\x1b[1A"
SAID = json.dumps([{"role": EVIL, "parts": [{"type": "text", "content": EVIL}, EVIL, 3]}, EVIL])
CALL = {
    "request_model": EVIL, "response_model": EVIL, "provider": EVIL, "user_id": EVIL, "module": EVIL, "error_type": EVIL,
    "instrumentation": EVIL, "price_source": EVIL, "input_messages": SAID, "output_messages": json.dumps(EVIL),
    "status": "error", "input_tokens": 1, "output_tokens": 1,
}  # fmt: skip
HUGE = {
    "request_model": "huge", "input_tokens": 2**62, "output_tokens": 2**62, "cost_usd": "999999999.999999999",
    "duration_ms": 1e300,
}  # fmt: skip
SPAN = {
    "name": EVIL, "span_id": EVIL, "operation": "chat", "status": "error", "scope_name": EVIL,
    "attributes": json.dumps({"gen_ai.operation.name": "chat", "error.type": EVIL, "user.id": EVIL, "otel_llm.module": EVIL}),
}  # fmt: skip
NOON = "2026-11-01T12:00:00Z"
OUR_STYLES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def filled(fill: Fill, fill_spans: Fill, store_path: Path) -> Iterator[None]:
    fill(CALL, HUGE, {**CALL, "trace_id": "f" * 32})
    fill_spans(SPAN, {**SPAN, "span_id": "b", "parent_span_id": EVIL, "duration_ms": float("inf")})
    journal = Journal(StorePaths.of(store_path).journal)
    running = {"gen_ai.operation.name": "chat", "gen_ai.request.model": EVIL, "user.id": EVIL, "otel_llm.module": EVIL}
    journal.append({"k": "s", "t": "a" * 32, "s": "b" * 16, "n": EVIL, "st": time.time_ns(), "a": running}, start_of=1)
    yield
    journal.close()


@pytest.mark.parametrize("columns", [40, 200])
@pytest.mark.parametrize(
    "arguments",
    [
        ["usage", "--by", "model,user,module"],
        ["usage", "--by", "model,user", "--plot"],
        ["usage", "--json"],
        ["usage", "--format", "csv"],
        ["logs"],
        ["logs", "--short"],
        ["logs", "--json"],
        ["logs", "--format", "csv"],
        ["show", f"{0:032x}"],
        ["show", f"{0:032x}", "--json"],
        ["tail", "--no-follow"],
        ["tail", "--no-follow", "--json"],
        ["ps"],
        ["ps", "--json"],
        ["prices"],
        ["doctor"],
        ["reprice", "--dry-run"],
        ["sql", "select request_model, tags, input_messages from llm_usage"],
        ["sql", f'select 1 as "{EVIL}"'],
        ["sql", f'select 1 as "{EVIL}"', "--format", "csv"],
        ["sql", "select request_model::INTEGER from llm_usage"],
        ["usage", "--by", EVIL],
        ["show", EVIL],
        ["logs", "--where", EVIL],
    ],
    ids=lambda arguments: " ".join(arguments).encode("unicode_escape").decode()[:40],
)
def test_no_terminal_acts_upon_what_was_recorded(
    arguments: list[str], columns: int, filled: None, on_terminal: Callable[..., str]
) -> None:
    written = on_terminal(*arguments, columns=columns)
    assert columns < 200 or "2J" in written  # it is there, as text
    left = OUR_STYLES.sub("", written)
    acted_upon = {character for character in left if re.match(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", character)}
    assert not acted_upon
    assert "\nover" not in left  # nothing begins a line of its own


def test_numbers_and_times_that_are_none(fill: Fill, run: Run) -> None:
    odd = ({"duration_ms": float("nan")}, {"started_at": "infinity"}, {"started_at": "0001-01-01T00:00:00Z"})
    fill(*({**HUGE, **one} for one in odd))
    assert run("logs", "--short").out.count("huge") == 3
    rows = json.loads(run("logs", "--json").out)
    assert [row["started_at"] for row in rows][-1] == "infinity"
    assert {row["duration_ms"] for row in rows} == {None, 1e300}
    assert run("usage", "--by", "day", "--plot").code == 0


FORMULAS = ["=1+1", "+1+1", "-2+3|cmd", "@SUM(A1)", "\t=1+1", "\r=1+1", "＝1+1", "=HYPERLINK(\"http://x\",\"y\")"]  # fmt: skip


@both_engines
@pytest.mark.parametrize(
    "command",
    [
        ["usage", "--by", "user"],
        ["logs"],
        ["sql", 'select user_id as "user", request_model as "=alias" from llm_usage'],
        ["export"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("raw", [False, True], ids=["by default", "raw"])
def test_no_spreadsheet_takes_what_was_recorded_for_a_formula(
    command: list[str], raw: bool, fill: Fill, run: Run, tmp_path: Path
) -> None:
    fill(*({"user_id": text, "request_model": text, "started_at": NOON, "input_tokens": 1} for text in FORMULAS))
    file = tmp_path / "calls.csv"
    to_file = command == ["export"]
    arguments = [*command, str(file)] if to_file else [*command, "--format", "csv"]
    done = run(*arguments, *(["--raw"] if raw else []))
    assert done.code == 0
    cells = [
        cell
        for row in csv.reader(io.StringIO(file.read_bytes().decode() if to_file else done.out, newline=""))
        for cell in row
    ]
    begins = [cell for cell in cells if cell[:1] in "=+-@\t\r＝" and cell]
    if raw:
        assert set(FORMULAS) <= set(begins)
    else:
        assert not begins
        assert {f"'{text}" for text in FORMULAS} <= set(cells)


def test_raw_is_about_csv(run: Run) -> None:
    assert run("usage", "--raw", "--json").code == 2


@pytest.mark.parametrize("command", ["export", "backup"])
@pytest.mark.parametrize("what", ["fifo", "directory", "link", "device", "what is printed to"])
def test_a_target_that_is_no_file(
    command: str, what: str, fill: Fill, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with --force: nothing waits for a FIFO, and no device or link to one makes room for a file."""
    fill({})
    target = tmp_path / "target.csv"
    if what == "fifo":
        os.mkfifo(target)
    elif what == "directory":
        target.mkdir()
    elif what == "link":
        os.mkfifo(tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    elif what == "device":
        if os.geteuid() != 0:
            pytest.skip("only root may make a device")
        os.mknod(target, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    else:  # as /dev/stdout is, where the output goes to a file
        system = tmp_path / "dev"
        system.mkdir()
        monkeypatch.setattr(files, "_NO_PLACES", (f"{system}/",))
        (tmp_path / "out.txt").touch()
        target = system / "stdout"
        target.symlink_to(tmp_path / "out.txt")
    before = target.lstat()
    result = run(command, str(target), "--force", *(["--format", "csv"] if command == "export" else []))
    assert (result.code, result.out) == (2, "")
    assert "not a file" in result.err and str(target) in result.err and result.err.count("\n") == 1
    assert os.path.samestat(target.lstat(), before)


def test_an_export_is_private(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill({})
    before = os.umask(0)
    try:
        for suffix in ("csv", "parquet", "json", "jsonl"):
            assert run("export", str(tmp_path / f"calls.{suffix}")).code == 0
            assert (tmp_path / f"calls.{suffix}").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_the_store_is_a_fifo(run: Run, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with --store it is refused; where the environment names it, this user's own is what there is to see."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    own = tmp_path / "data" / "otel-llm" / "usage.duckdb"
    os.mkfifo(store_path)
    assert run("path").out == f"{own}\n"
    assert run("usage").code == 0
    result = run("doctor", "--json")
    assert str(own) in result.out and "is a FIFO, not a file" in result.out
    for command in (["usage"], ["sql", "select 1"], ["backup", str(tmp_path / "b.duckdb")], ["compact"], ["ps"]):
        result = run(*command, "--store", str(store_path))
        assert (result.code, result.out) == (2, "")
        assert result.err.count("\n") == 1 and str(store_path) in result.err
    assert store_path.is_fifo()


def test_a_slip_in_a_name_is_not_another_account(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_STORE", "/dev/null")
    assert "OTEL_LLM_STORE=/dev/null turns the account off" in run("usage").err
    result = run("usage", "--store", "/dev/null")
    assert result.code == 2 and "not a file" in result.err
