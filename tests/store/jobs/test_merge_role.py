"""One of the processes that share a store merges it; the others have no part in that, and nothing waits for one that is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_llm.settings import reload
from otel_llm.store import Store
from otel_llm.store.jobs import merger
from otel_llm.store.jobs.merge_role import MergeRole
from otel_llm.store.paths import StorePaths
from tests.store.conftest import Script, until
from tests.store.test_store import in_child, stored, write

WRITER = """
import atexit, sys
atexit.register(lambda: print("duckdb" if "duckdb" in sys.modules else "no duckdb"))  # after all that is registered later
from otel_llm.store import Store
store = Store.open(sys.argv[1])
for number, line in enumerate(sys.stdin):
    record = {"k": "s", "t": f"{number:16x}".replace(" ", "0") + sys.argv[2] * 16, "s": sys.argv[2] * 16, "st": 1,
              "a": {"gen_ai.operation.name": "chat"}}
    store.write(record, start_of=number)
    store.write({**record, "k": "e", "et": 2}, end_of=number)
    print(number, flush=True)
if sys.argv[3] == "flush":
    store.flush()
"""
EAGER = {"OTEL_LLM_FLUSH_INTERVAL": "10ms"}


@pytest.fixture
def writer(script: Callable[..., Script], store_path: Path) -> Callable[..., Script]:
    """Starts a process that makes a call for each line that it is told."""
    digits = iter("123456789")

    def start(at_the_end: str = "") -> Script:
        return script(WRITER, str(store_path), next(digits), at_the_end, env=EAGER)

    return start


def call(process: Script) -> None:
    process.say()
    process.line()


def role_of(store_path: Path) -> MergeRole:
    """That of this process, of a store that it has not open."""
    return MergeRole(lambda: StorePaths.of(store_path))


def test_one_process_merges_for_the_others(writer: Callable[..., Script], store_path: Path) -> None:
    first = writer()
    call(first)
    until(lambda: stored(store_path) == 1, "the first one's merge")
    others = [writer(), writer()]
    for number, other in enumerate(others):
        call(other)
        until(lambda number=number: stored(store_path) == number + 2, "a merge by the first one")
    for other in others:
        assert other.finish() == "no duckdb\n"
    assert first.finish() == "duckdb\n"


def test_who_leaves_while_another_has_the_role_leaves_its_calls_to_that_one(
    writer: Callable[..., Script], store_path: Path
) -> None:
    role = role_of(store_path)
    assert role.take()
    leaver = writer()
    call(leaver)
    assert leaver.finish() == "no duckdb\n"
    assert stored(store_path) == 0
    role.give_up()
    last = writer()
    call(last)
    last.finish()
    assert stored(store_path) == 2


def test_one_that_is_killed_is_replaced(writer: Callable[..., Script], store_path: Path) -> None:
    first = writer()
    call(first)
    until(lambda: stored(store_path) == 1, "the first one's merge")
    second = writer()
    call(second)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    call(second)
    until(lambda: stored(store_path) == 3, "a merge by the second one")


def test_a_flush_needs_no_role(writer: Callable[..., Script], store_path: Path) -> None:
    role = role_of(store_path)
    assert role.take()
    other = writer("flush")
    call(other)
    assert other.finish() == "duckdb\n"
    assert stored(store_path) == 1


def test_one_that_does_not_merge_is_not_waited_for_for_ever(
    store_path: Path, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be stopped, or hang."""
    monkeypatch.setattr(merger, "_NEGLECTED_SECONDS", 0.0)
    monkeypatch.setenv("OTEL_LLM_FLUSH_INTERVAL", "10ms")
    reload()
    holder = script(
        "import sys; from otel_llm.store.jobs.merge_role import MergeRole; from otel_llm.store.paths import StorePaths;"
        "role = MergeRole(lambda: StorePaths.of(sys.argv[1])); print(role.take(), flush=True); sys.stdin.readline()",
        str(store_path),
    )
    assert holder.line() == "True"
    write(Store.open(store_path))
    until(lambda: stored(store_path) == 1, "a merge without the role")


def test_the_role_is_the_process_s_own(store_path: Path) -> None:
    role, other = role_of(store_path), role_of(store_path)
    assert role.take() and role.take() and role.is_held
    assert not other.take() and not other.is_held
    role.give_up()
    assert other.take()


def test_a_child_has_no_part_in_its_parent_s_role(store_path: Path) -> None:
    role = role_of(store_path)
    assert role.take()

    def child() -> None:
        role.start_afresh()  # as `Store` does
        assert not role.take()

    in_child(child)
    role.give_up()
    assert role_of(store_path).take()


def test_a_child_does_not_keep_its_parent_s_role(store_path: Path) -> None:
    role = role_of(store_path)
    assert role.take()
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        role.give_up()
        assert role_of(store_path).take()
    finally:
        os.write(done[1], b"x")
        os.waitpid(pid, 0)
        for end in (*ready, *done):
            os.close(end)


def test_a_store_that_is_deleted_is_another_s_role(store_path: Path) -> None:
    role = role_of(store_path)
    assert role.take()
    path = StorePaths.of(store_path).merger
    path.unlink()
    assert role.take() and path.exists()
    assert not role_of(store_path).take()
