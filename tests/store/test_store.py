from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from otel_llm.settings import reload
from otel_llm.store import Store, connect, flush
from otel_llm.store.errors import StoreError
from otel_llm.store.jobs import merger
from otel_llm.store.merge import batch, ingest
from otel_llm.store.paths import StorePaths
from otel_llm.support import fork_guard
from tests.store.conftest import Script, count, end, identity, merging, query, start, until


def write(store: Store) -> None:
    begin = start()
    store.write(begin, start_of=identity(begin))
    store.write(end(begin), end_of=identity(begin))


def stored(path: Path) -> int:
    """What plain DuckDB sees, without any merge of ours."""
    if not path.exists():
        return 0
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            return int(connection.execute("SELECT count(*) FROM llm_usage").fetchall()[0][0])
    except duckdb.Error:
        return 0


def test_one_store_per_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.open("a.duckdb") is Store.open(tmp_path / "a.duckdb")
    assert Store.open("a.duckdb") is not Store.open("b.duckdb")
    assert list(tmp_path.iterdir()) == []


def test_the_background_thread_merges(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_FLUSH_INTERVAL", "10ms")
    reload()
    store = Store.open(store_path)
    for expected in (1, 2):
        write(store)
        until(lambda expected=expected: stored(store_path) == expected, "the background merge")


def test_flush(quiet_store: Store, store_path: Path) -> None:
    write(quiet_store)
    assert flush()
    assert stored(store_path) == 1
    assert quiet_store.stats.records == 2 and quiet_store.stats.merges == 1
    assert quiet_store.flush()


def test_hooks_run_before_a_flush_and_may_fail(
    quiet_store: Store, store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> None:
        raise RuntimeError("broken")

    begin = start()
    quiet_store.write(begin, start_of=identity(begin))
    quiet_store.before_flush += [
        failing,
        lambda: quiet_store.write(end(begin), end_of=identity(begin)),
    ]
    with caplog.at_level(logging.WARNING, "otel_llm"):
        assert quiet_store.flush()
    assert stored(store_path) == 1 and "hook" in caplog.text


def test_a_merge_elsewhere_makes_flush_false_and_loses_nothing(
    quiet_store: Store, store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(quiet_store)
    quiet_store.flush()
    with merging(quiet_store.paths):
        write(quiet_store)
        assert not quiet_store.flush(0.05)
        assert quiet_store.stats.postponed == 1 and quiet_store.stats.last_error
    assert quiet_store.flush() and quiet_store.stats.last_error is None
    assert count(store_path) == 2


def test_what_fails_is_said_once_in_whatever_words(
    quiet_store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of temporary files differ from one attempt to the next."""
    words = iter(range(100))

    def fail(*_: object, **__: object) -> None:
        raise StoreError(f"cannot write {next(words)}.tmp")

    def said() -> list[str]:
        return [entry.getMessage() for entry in caplog.records if "until it works again" in entry.getMessage()]

    with caplog.at_level(logging.WARNING, "otel_llm"):
        for times in (1, 2):
            write(quiet_store)
            with monkeypatch.context() as patch:
                patch.setattr("otel_llm.store.jobs.merger.ingest.merge", fail)
                assert not any(quiet_store.flush() for _ in range(3))
            assert len(said()) == times
            assert quiet_store.flush()


def test_a_store_that_cannot_be_made_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    store = Store.open(blocker / "usage.duckdb")
    with caplog.at_level(logging.WARNING, "otel_llm"):
        for _ in range(3):
            write(store)
            store.flush(0.01)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert store.stats.waiting == 3


def test_close_and_use_again(quiet_store: Store, store_path: Path) -> None:
    write(quiet_store)
    quiet_store.close()
    assert stored(store_path) == 1
    assert list(StorePaths.of(store_path).journal.glob("*.jsonl")) == []
    write(quiet_store)
    assert quiet_store.flush() and count(store_path) == 2


# --- fork -------------------------------------------------------------------------------------------------------------


def in_child(action: Callable[[], object]) -> None:
    """Runs `action` in a fork that ends as those of multiprocessing do; fails where it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_s_calls_are_not_lost_by_os_exit(quiet_store: Store, store_path: Path) -> None:
    write(quiet_store)
    in_child(lambda: write(quiet_store))
    write(quiet_store)
    assert count(store_path) == 3


def test_a_child_flushes_its_own(quiet_store: Store, store_path: Path) -> None:
    write(quiet_store)
    quiet_store.flush()

    def child() -> None:
        assert quiet_store.stats.records == 0
        write(quiet_store)
        assert quiet_store.flush()

    in_child(child)
    assert stored(store_path) == 2


def test_children_forked_in_the_middle_of_merges(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No DuckDB instance is open at a fork: a child that inherited one would lose its commits."""
    monkeypatch.setenv("OTEL_LLM_FLUSH_INTERVAL", "1ms")
    reload()
    store = Store.open(store_path)
    stop = threading.Event()
    calls = [0]

    def work() -> None:
        while not stop.wait(0.005):
            write(store)
            calls[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: store.stats.merges > 1, "merges to be under way")
    children = 3

    def child() -> None:
        write(store)
        assert store.flush(), store.stats

    try:
        for _ in range(children):
            in_child(child)
    finally:
        stop.set()
        thread.join()
    assert store.flush()
    assert count(store_path) == count(store_path, "spans") == calls[0] + children


def test_a_fork_waits_for_a_merge_no_longer_than_it_must(
    quiet_store: Store, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_guard, "FORK_SECONDS", 0.01)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with fork_guard.mutex:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        in_child(lambda: write(quiet_store))
    finally:
        release.set()
        thread.join()
    assert fork_guard.mutex.acquire(timeout=1)
    fork_guard.mutex.release()
    assert count(store_path) == 1


# --- the end of a process ---------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from otel_llm.store import Store
store = Store.open(sys.argv[1])
record = {"k": "s", "t": "1" * 32, "s": "1" * 16, "st": 1, "a": {"gen_ai.operation.name": "chat"}}
store.write(record, start_of=1)
store.write({**record, "k": "e", "et": 2}, end_of=1)
if len(sys.argv) > 2:
    eval(sys.argv[2])
"""


def test_a_good_end_leaves_everything_merged(store_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(store_path)], check=True)
    assert stored(store_path) == 1
    assert list(StorePaths.of(store_path).journal.glob("*.jsonl")) == []


@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGTERM)", "os.kill(os.getpid(), signal.SIGKILL)", "1 / 0"]
)
def test_a_bad_end_loses_nothing(store_path: Path, ending: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(store_path), ending], stderr=subprocess.DEVNULL, check=False)
    assert query(store_path, "SELECT status FROM llm_usage") == [("ok",)]


MERGING_AT_THE_END = """
import atexit, os, signal, sys, threading
how = sys.argv[2]
if how == "with DuckDB of its own":
    import duckdb
from otel_llm.store import Store
from otel_llm.store.merge import ingest
begun, ended = threading.Event(), threading.Event()
store_rows = ingest._store

def slowly(connection, loaded):
    if not begun.is_set():
        begun.set()
        ended.wait(30)
        connection.execute("SELECT count(*) FROM range(60_000_000) AS r(i) WHERE i % 7 = 3").fetchall()
    return store_rows(connection, loaded)

ingest._store = slowly
store = Store.open(sys.argv[1])

def write(number):
    record = {"k": "s", "t": f"{number:032x}", "s": f"{number:016x}", "st": number, "a": {"gen_ai.operation.name": "chat"}}
    store.write(record, start_of=number)
    store.write({**record, "k": "e", "et": number + 1}, end_of=number)

if how == "in a child":
    pid = os.fork()
    if pid:
        sys.exit(os.waitpid(pid, 0)[1])
if how == "and calls at the end":
    write(1)
    atexit.register(write, 2)
write(3)
begun.wait(30)
write(4)
atexit.register(ended.set)
if how == "by sys.exit":
    sys.exit()
if how == "by an exception":
    sys.excepthook = lambda *_: None
    raise ValueError
if how == "by a signal":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    os.kill(os.getpid(), signal.SIGTERM)
"""
"""Ends while a merge is under way, in the middle of a query."""


@pytest.mark.parametrize(
    "how",
    [
        "of itself", "by sys.exit", "by an exception", "by a signal", "with DuckDB of its own", "in a child",
        "and calls at the end",
    ],
)  # fmt: skip
def test_an_end_in_the_middle_of_a_merge_is_no_failure(store_path: Path, how: str) -> None:
    """DuckDB interrupts what runs at the end of the process; then all is merged, and nothing said."""
    done = subprocess.run(
        [sys.executable, "-c", MERGING_AT_THE_END, str(store_path), how],
        env={**os.environ, "OTEL_LLM_FLUSH_INTERVAL": "1ms"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", int(how == "by an exception"))
    assert stored(store_path) == (4 if how == "and calls at the end" else 2)
    assert list(StorePaths.of(store_path).journal.glob("*.jsonl")) == []


def test_an_interrupted_query_is_tried_again(
    quiet_store: Store, store_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the end comes before our hook could be registered behind DuckDB's."""
    write(quiet_store)
    store_rows, attempts = ingest._store, [0]

    def interrupted(connection: duckdb.DuckDBPyConnection, loaded: ingest._Loaded) -> int:
        attempts[0] += 1
        if attempts[0] == 1:
            raise duckdb.InterruptException("INTERRUPT Error: Interrupted!")
        return store_rows(connection, loaded)

    monkeypatch.setattr(ingest, "_store", interrupted)
    assert quiet_store.flush()
    assert stored(store_path) == 1 and attempts == [2] and not caplog.text


class Limit(Exception):
    """What the app's own handler raises."""


@pytest.mark.parametrize("what", ["flush", "connect"])
def test_what_a_signal_handler_raises_arrives(
    what: str,
    quiet_store: Store,
    store_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """DuckDB would throw it away and let the query fail. The merge goes on meanwhile, and its rows are there."""
    write(quiet_store)
    load, main = batch.load, threading.get_ident()

    def slowly(*given: Any) -> Any:
        if not raised:
            raised.append(True)
            signal.pthread_kill(main, signal.SIGALRM)
            given[0].execute("SELECT count(*) FROM range(20_000_000) AS r(i) WHERE i % 7 = 3").fetchall()
        return load(*given)

    def handler(*_: object) -> None:
        raise Limit

    raised: list[bool] = []
    monkeypatch.setattr(batch, "load", slowly)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(Limit):
            quiet_store.flush() if what == "flush" else connect(store_path)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert quiet_store.flush()
    assert stored(store_path) == 1 and not caplog.text


def test_importing_the_store_imports_neither_duckdb_nor_the_sdk() -> None:
    heavy = "duckdb", "genai_prices", "opentelemetry.sdk", "pydantic"
    code = (
        f"import sys, otel_llm.store, otel_llm.store.reader; print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_another_program_s_dead_calls_are_found(
    store_path: Path, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merger, "_ORPHAN_CHECK_SECONDS", 0.0)
    monkeypatch.setenv("OTEL_LLM_FLUSH_INTERVAL", "10ms")
    reload()
    other = script(PROGRAM, str(store_path), "(print('on', flush=True), sys.stdin.readline())")
    other.line()
    other.kill()
    write(Store.open(store_path))
    until(lambda: stored(store_path) == 2, "the other program's call")
