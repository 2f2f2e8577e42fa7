"""The account where POSIX is not: in processes that have what Python shows of Windows (`windows.py`), several at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from otel_llm.support.system import offsets
from tests.conftest import ROOT, LocalOpenAI

BEFORE = "from tests.support.system import windows\n"
PROGRAM = """
import sys
import otel_llm
otel_llm.instrument()
import openai
client = openai.OpenAI()
for _ in range(int(sys.argv[1])):
    client.embeddings.create(model="text-embedding-3-small", input="tyres")
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
"""
HANGS = """
import otel_llm
otel_llm.instrument()
import openai
openai.OpenAI(default_headers={"x-local-behaviour": "slow"}).embeddings.create(model="text-embedding-3-small", input="tyres")
"""
SPENDS = """
import otel_llm
otel_llm.instrument()
import openai
client = openai.OpenAI(max_retries=0)
try:
    while True:
        client.embeddings.create(model="text-embedding-3-small", input="tyres")
except otel_llm.BudgetExceeded:
    print("stopped")
"""
COMMAND = "import sys\nfrom otel_llm.cli import main\nsys.exit(main(sys.argv[1:]))"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", BEFORE + program, *arguments],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def done(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), err
    return out


def test_nothing_is_lost_between_processes(start: Start, openai_server: LocalOpenAI, store_path: Path) -> None:
    """Four write one store at once, and merge it; then whoever reads has all of it, once."""
    for process in [start(PROGRAM, "3") for _ in range(4)]:
        done(process)
    (row,) = json.loads(done(start(COMMAND, "usage", "--by", "operation", "--model", "gpt-4o-mini", "--json")))
    assert (row["calls"], row["errors"]) == (12, 0)
    billed = sum(call.input_tokens or 0 for call in openai_server.ledger)
    total = done(start(COMMAND, "sql", "--json", "select sum(input_tokens) as n, count(*) as calls from llm_usage"))
    assert json.loads(total) == [{"n": billed, "calls": 24}]
    assert list(Path(f"{store_path}.journal").glob("*.jsonl")) == []
    # It was written as it is: a copy could not take its place.
    assert {file.name for file in store_path.parent.glob("usage.duckdb*")} == {
        f"usage.duckdb{suffix}" for suffix in ("", ".journal", ".lock", ".lock.next")
    }


def test_who_lives_is_told_from_who_has_died(start: Start, openai_server: LocalOpenAI) -> None:
    process = start(HANGS)
    openai_server.wait_for(1)
    assert " embeddings text-embedding-3-small" in done(start(COMMAND, "ps"))
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert "embeddings" not in done(start(COMMAND, "ps"))
    rows = json.loads(done(start(COMMAND, "logs", "--json")))
    assert [row["status"] for row in rows] == ["interrupted"]


def test_a_budget_holds_over_processes(
    start: Start, environment: dict[str, str], openai_server: LocalOpenAI, tmp_path: Path
) -> None:
    budgets = tmp_path / "budgets.toml"
    budgets.write_text('[[budget]]\nname = "all"\naction = "stop"\nlimit_calls = 5\nper = "day"\n')
    environment["OTEL_LLM_BUDGETS"] = str(budgets)
    processes = [start(SPENDS) for _ in range(2)]
    assert [process.communicate(timeout=240)[0] for process in processes] == ["stopped\n"] * 2
    assert len(openai_server.ledger) == 5


def test_an_empty_file_is_a_store_to_be(start: Start, store_path: Path) -> None:
    """As `tempfile` makes it; and what is none is not deleted."""
    store_path.touch()
    done(start(PROGRAM, "1"))
    (row,) = json.loads(done(start(COMMAND, "sql", "--json", "select count(*) as calls from llm_usage")))
    assert row == {"calls": 2}


def test_every_file_is_opened_as_bytes(start: Start, store_path: Path) -> None:
    """Windows changes the ends of lines in any other."""
    told = "\nimport otel_llm\notel_llm.flush()\nprint([name for name in windows.text_files if 'usage.duckdb' in name])"
    assert done(start(PROGRAM + told, "2")).splitlines() == ["[]"]


COMMANDS = (
    "doctor --json",
    "tail -n 2 --no-follow",
    "show",
    "backup {folder}/copy.duckdb",
    "export {folder}/calls.csv",
    "score --request order-17 helpful 1",
    "prune --older-than 3650d",
    "compact",
    "usage",
)


def test_commands(start: Start, tmp_path: Path) -> None:
    done(start(PROGRAM, "1"))
    for command in COMMANDS:
        process = start(COMMAND, *command.format(folder=tmp_path).split())
        out, err = process.communicate(timeout=240)
        assert process.returncode in ((0, 1) if command.startswith("doctor") else (0,)), (command, err)
        assert "Traceback" not in err
        assert out, command


def test_where_there_are_no_locks_at_all(environment: dict[str, str]) -> None:
    """Neither POSIX nor Windows: the command says it in a line."""
    program = f"import sys\nsys.modules['fcntl'] = None\n{COMMAND}"
    process = subprocess.run(
        [sys.executable, "-c", program, "usage"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        "otel-llm: the account needs locks of files, which this platform has not; spans go over OTLP from here too\n"
    )


def test_an_offset_without_the_call_for_it(tmp_path: Path) -> None:
    """The same as the system's own, and the descriptor is where it was."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    fd = os.open(file, os.O_RDWR)
    try:
        os.lseek(fd, 3, os.SEEK_SET)
        for length, offset in ((4, 2), (100, 8), (5, 50), (0, 0)):
            assert offsets.pread_by_moving(fd, length, offset) == os.pread(fd, length, offset)
        assert offsets.pwrite_by_moving(fd, b"ab", 6) == 2
        assert (os.read(fd, 3), file.read_bytes()) == (b"345", b"012345ab89")
    finally:
        os.close(fd)
