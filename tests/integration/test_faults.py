"""What may befall a store while an app runs: every call that has ended is there in the end, and the app notices nothing.

tests/store shows the same piece by piece. Here an app makes real calls with the background thread at work.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from local_openai import LocalOpenAI

from otel_llm.store import reader
from otel_llm.store.errors import StoreBusy
from otel_llm.store.paths import StorePaths
from otel_llm.store.reader import connect
from tests.conftest import Rows, Run
from tests.store.conftest import HOLDER, Script, until

APP = """
import json, os, resource, sys, time
from openai import OpenAI
from otel_llm.store import Store, flush
from otel_llm.store.journal import unwritten

client = OpenAI()
store = Store.open(os.environ["OTEL_LLM_STORE"])


def ask():
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])


def stats():
    stats = store.stats
    return {name: getattr(stats, name) for name in stats.__slots__}


for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""
_TWENTY_CALLS = f"{APP.partition('for line')[0]}\n[ask() for _ in range(20)]\nprint(stats()['waiting'])\n"


class App:
    """An app under `opentelemetry-instrument` that does as it is told."""

    def __init__(self, process: subprocess.Popen[str], server: LocalOpenAI) -> None:
        self._process = process
        self._server = server

    def do(self, expression: str) -> Any:
        """Evaluates `expression` in the app and returns what it gave."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{expression}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return json.loads(line)

    def ask(self, times: int = 1) -> None:
        """Makes model calls."""
        for _ in range(times):
            self.do("ask()")

    def flush(self) -> bool:
        return bool(self.do("flush(60)"))

    def stats(self) -> dict[str, Any]:
        """The store's counters in that process."""
        return dict(self.do("stats()"))

    def end(self) -> list[str]:
        """Lets it come to a good end; returns what it wrote to stderr, by line."""
        _, stderr = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, stderr
        return stderr.splitlines()


@pytest.fixture
def start_app(start_instrumented: Callable[..., Any], openai_server: LocalOpenAI) -> Callable[..., App]:
    """Starts an app whose background thread merges all the time."""

    def start(**variables: str) -> App:
        env = {"OTEL_LLM_FLUSH_INTERVAL": "20ms", **variables}
        return App(start_instrumented(APP, env=env), openai_server)

    return start


@pytest.fixture
def all_are_there(openai_server: LocalOpenAI, rows: Rows) -> Callable[[], None]:
    """Fails unless the account is the ledger."""

    def check() -> None:
        billed = sorted(str(call.response_id) for call in openai_server.ledger)
        assert billed
        assert sorted(row["response_id"] for row in rows()) == billed

    return check


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a small file system: `tmpfs("size=4m")`. Skips the test where that is not allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        directory = tmp_path / "mounted"
        directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(directory)]
        if shutil.which("mount") is None:
            pytest.skip("there is no mount(8)")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not allowed: {done.stderr.strip()}")
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        # Lazily: a process of a failed test may still have its journal open there.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


# --- held by others ---------------------------------------------------------------------------------------------------


def test_a_store_that_a_foreign_process_writes(
    start_app: Callable[..., App],
    store_path: Path,
    all_are_there: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = start_app()
    app.ask()
    assert app.flush()
    holder = Script(HOLDER, str(store_path), "write")
    holder.line()
    app.ask(3)
    assert app.do("flush(0.1)") is False
    until(lambda: app.stats()["postponed"] > 2, "the background thread to be refused")
    monkeypatch.setattr(reader, "_OPEN_SECONDS", 0.05)
    with pytest.raises(StoreBusy, match=str(holder.process.pid)):
        connect(store_path)
    app.ask()
    holder.say()
    holder.finish()
    assert app.flush()
    all_are_there()
    assert app.stats()["dropped"] == 0
    assert app.end() == []


def test_a_store_that_a_foreign_process_reads(
    start_app: Callable[..., App], store_path: Path, all_are_there: Callable[[], None]
) -> None:
    """It keeps nobody waiting, however long it stays."""
    app = start_app()
    app.ask()
    assert app.flush()
    holder = Script(HOLDER, str(store_path), "read")
    holder.line()
    for _ in range(3):
        app.ask()
        assert app.flush()
        all_are_there()
    assert app.stats()["merge_failures"] == 0
    holder.say()
    holder.finish()
    assert app.end() == []


# --- no room, no right ------------------------------------------------------------------------------------------------


def fill(directory: Path, leave: int = 0) -> Path:
    """Fills the file system of `directory` but for `leave` bytes."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
        if leave:
            file.truncate(file.tell() - leave)
    return filler


def test_a_full_disk(
    start_app: Callable[..., App], tmpfs: Callable[[str], Path], openai_server: LocalOpenAI, rows: Rows
) -> None:
    disk = tmpfs("size=8m")
    store = disk / "usage.duckdb"
    app = start_app(OTEL_LLM_STORE=str(store))
    app.ask(2)
    assert app.flush()
    # First there is no room for a merge, but for the journal: nothing need be kept in memory.
    filler = fill(disk, leave=96 * 1024)
    app.ask(2)
    assert app.stats()["waiting"] == 0
    # Then there is none at all.
    filler.unlink()
    filler = fill(disk)
    app.do("[ask() for _ in range(20)] and None")
    until(lambda: app.stats()["waiting"] > 0, "the journal to be refused")
    stats = app.stats()
    assert stats["dropped"] == 0
    filler.unlink()
    assert app.flush()
    assert app.stats()["waiting"] == 0
    billed = sorted(str(call.response_id) for call in openai_server.ledger)
    assert sorted(row["response_id"] for row in rows(store=store)) == billed
    said = [line for line in app.end() if "can be written again" not in line]
    # One warning for the journal, and one for each reason that a merge failed for.
    assert len([line for line in said if "are kept in memory" in line]) == 1
    assert "Traceback" not in "\n".join(said)


def test_a_file_may_not_grow(start_app: Callable[..., App], all_are_there: Callable[[], None]) -> None:
    """As on a full disk or beyond a quota, by a limit that needs no rights: both the journal and DuckDB's file meet it."""
    app = start_app()
    app.ask(2)
    assert app.flush()
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
    app.do(limit.format("store.journal.position[1] + 100"))
    app.ask(10)
    assert app.stats()["waiting"] > 0
    assert app.do("flush(0.1)") is False
    app.do(limit.format("resource.RLIM_INFINITY"))
    assert app.flush()
    stats = app.stats()
    assert stats["waiting"] == stats["dropped"] == 0
    all_are_there()
    assert len([line for line in app.end() if "are kept in memory" in line]) == 1


def test_a_directory_that_cannot_be_made_from_the_start(
    run_instrumented: Run, tmp_path: Path, openai_server: LocalOpenAI
) -> None:
    directory = tmp_path / "file"
    directory.touch()
    env = {"OTEL_LLM_STORE": str(directory / "usage.duckdb"), "OTEL_LLM_FLUSH_INTERVAL": "20ms"}
    done = run_instrumented(_TWENTY_CALLS, env=env, stderr="")
    assert done.stdout == "20\n"
    assert len(openai_server.ledger) == 20
    running, lost = done.stderr.splitlines()
    assert "are kept in memory" in running and "OTEL_LLM_STORE" in running
    # What could not be kept is counted and said, once that is certain.
    assert re.search(r"\b20 calls\b", lost) and "lost" in lost


def test_a_file_system_that_is_read_only_from_the_start(
    run_instrumented: Run, tmpfs: Callable[[str], Path], tmp_path: Path, openai_server: LocalOpenAI
) -> None:
    """That does not pass: the calls go where this user keeps his own, and one line says where that is."""
    store = tmpfs("ro") / "usage.duckdb"
    own = tmp_path / "data" / "otel-llm" / "usage.duckdb"
    done = run_instrumented(_TWENTY_CALLS, env={"OTEL_LLM_STORE": str(store)}, stderr="")
    assert done.stdout == "0\n"
    (line,) = done.stderr.splitlines()
    assert f"{store.parent} cannot be written" in line and str(own) in line
    with connect(own) as connection:
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(20,)]


def test_memory_is_bounded_while_nothing_can_be_written(start_app: Callable[..., App], tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    app = start_app(OTEL_LLM_STORE=str(blocker / "usage.duckdb"))
    app.do("setattr(unwritten, 'MAX_BYTES', 10_000)")
    app.do("[ask() for _ in range(50)] and None")
    stats = app.stats()
    assert stats["waiting"] + stats["dropped"] == 50 and stats["dropped"] > 0
    assert app.do("store.journal._unwritten._size") <= 10_000
    # What is left can be kept as soon as there is a place for it.
    blocker.unlink()
    assert app.flush()
    with connect(blocker / "usage.duckdb") as connection:
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(stats["waiting"],)]
    assert re.search(rf"\b{stats['dropped']} calls\b.*lost", "\n".join(app.end()))


# --- the file is not what it was --------------------------------------------------------------------------------------


def test_a_store_that_is_deleted_while_the_app_runs(
    start_app: Callable[..., App], store_path: Path, all_are_there: Callable[[], None]
) -> None:
    """The journal still holds the calls of the segment that is open: the store is made again from it."""
    app = start_app()
    app.ask(3)
    assert app.flush()
    store_path.unlink()
    app.ask(2)
    assert app.flush()
    all_are_there()
    assert app.end() == []


def test_everything_is_deleted_while_the_app_runs(
    start_app: Callable[..., App], store_path: Path, all_are_there: Callable[[], None]
) -> None:
    app = start_app()
    app.ask(3)
    assert app.flush()
    for path in store_path.parent.glob(f"{store_path.name}*"):
        if path.is_dir():  # a merge may be under way, and put something into it
            until(lambda path=path: shutil.rmtree(path, ignore_errors=True) or not path.exists(), "it to be gone")
        path.unlink(missing_ok=True)
    app.ask(2)
    until(StorePaths.of(store_path).journal.exists, "the journal to be made again")
    assert app.flush()
    all_are_there()
    # Nobody deletes a journal without being told what became of it.
    (line,) = app.end()
    assert "deleted while in use; written again" in line


def test_a_store_that_is_replaced_by_an_older_copy(
    start_app: Callable[..., App], store_path: Path, all_are_there: Callable[[], None]
) -> None:
    """As a restored backup is: what came since is in the journal, what it has is not taken twice."""
    app = start_app()
    app.ask(2)
    assert app.flush()
    copy = store_path.with_suffix(".copy")
    shutil.copy(store_path, copy)
    app.ask(3)
    assert app.flush()
    copy.replace(store_path)
    app.ask()
    assert app.flush()
    all_are_there()
    assert app.end() == []


def test_a_store_that_is_damaged_while_the_app_runs(
    start_app: Callable[..., App], store_path: Path, all_are_there: Callable[[], None]
) -> None:
    app = start_app()
    app.ask(3)
    assert app.flush()
    content = bytearray(store_path.read_bytes())
    for position in range(100, len(content), 512):
        content[position] ^= 0xFF
    damaged = store_path.with_suffix(".damaged")
    damaged.write_bytes(content)
    damaged.replace(store_path)
    app.ask(2)
    assert app.flush()
    all_are_there()
    (line,) = app.end()
    assert "is damaged" in line
    # Its bytes are kept, and the line says where.
    aside = re.search(r"moved to (\S+)", line)
    assert aside is not None and Path(aside[1]).read_bytes() == bytes(content)


# --- time, and other versions -----------------------------------------------------------------------------------------


def test_a_clock_that_jumps_back(start_app: Callable[..., App], rows: Rows, all_are_there: Callable[[], None]) -> None:
    app = start_app()
    app.ask(2)
    assert app.flush()
    # `time.time` and `time.time_ns` of the whole process, in the middle of its life and of a merge interval.
    app.do("[setattr(time, name, lambda now=getattr(time, name), by=by: now() - by)"
           " for name, by in (('time', 86_400), ('time_ns', 86_400 * 10**9))] and None")  # fmt: skip
    app.ask(3)
    assert app.flush()
    all_are_there()
    assert all(0 <= row["duration_ms"] < 60_000 for row in rows())
    assert app.end() == []


def test_a_newer_version_beside_this_one(
    start_app: Callable[..., App], store_path: Path, rows: Rows, all_are_there: Callable[[], None]
) -> None:
    """It has migrated the store while the app of this version runs, and its journal says things that we do not know."""
    app = start_app()
    app.ask(2)
    assert app.flush()

    def migrate() -> bool:
        try:
            with duckdb.connect(str(store_path)) as connection:
                connection.execute("ALTER TABLE llm_usage ADD COLUMN mood VARCHAR")
                connection.execute("ALTER TABLE spans ADD COLUMN mood VARCHAR")
                connection.execute("INSERT INTO schema_version VALUES (99, now())")
        except duckdb.IOException:
            return False  # the app's thread was merging
        return True

    until(migrate, "the migration")
    write_newer = """
import sys
from pathlib import Path
from otel_llm.store.journal.writer import Journal
journal = Journal(Path(sys.argv[1]))
journal._header = lambda: {"k": "h", "v": 99, "w": "newer", "mood": "fine", "r": {}}
journal.append({"k": "?", "t": "1" * 32, "s": "1" * 16, "mood": {"new": [1]}})
journal.close()
"""
    subprocess.run([sys.executable, "-c", write_newer, str(StorePaths.of(store_path).journal)], check=True)
    app.ask(3)
    assert app.flush()
    all_are_there()
    assert {row["mood"] for row in rows()} == {None}
    assert rows("select max(version) as version from schema_version") == [{"version": 99}]
    assert app.end() == []
