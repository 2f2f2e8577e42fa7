"""The parts of otel-llm in a fork: their order, and that one which fails takes no other with it."""

from __future__ import annotations

import ast
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_llm.support import forks
from otel_llm.support.forks import Turn

PACKAGE = Path(forks.__file__).parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_registered", {})


def forked(child: Callable[[], object]) -> str:
    """Forks; what the child says, which ends with that."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, str(child()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    assert os.waitpid(pid, 0)[1] == 0
    return said


def registrations() -> list[str]:
    """The turns that the package registers parts for, as its files name them."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "forks.Turn":
                found.append(node.attr)
    return found


def test_each_stage_is_registered_in_one_place() -> None:
    assert sorted(registrations()) == sorted(turn.name for turn in Turn)


def test_python_is_told_in_one_place() -> None:
    telling = [file for file in PACKAGE.rglob("*.py") if "os.register_at_fork(" in file.read_text(encoding="utf-8")]
    assert telling == [Path(forks.__file__)]


def test_the_order_is_that_of_the_stages_whatever_comes_first() -> None:
    told: list[tuple[str, str]] = []
    names = [turn.name for turn in Turn]
    for turn in sorted(Turn, key=lambda one: one.name[::-1]):
        forks.register(
            turn,
            before=lambda name=turn.name: told.append(("before", name)),
            after_in_parent=lambda name=turn.name: told.append(("parent", name)),
            after_in_child=lambda name=turn.name: told.append(("child", name)),
        )
    child = forked(lambda: [*told])
    assert told == [("before", name) for name in names] + [("parent", name) for name in names]
    assert child == str([("before", name) for name in names] + [("child", name) for name in names])


ORDER = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
from otel_llm.support import forks
print([turn.name for turn in forks.Turn if turn in forks._registered])
"""


def test_the_modules_register_whatever_is_imported_first() -> None:
    homes = [
        f"otel_llm.{'.'.join(file.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__')}"
        for file in PACKAGE.rglob("*.py")
        if "forks.Turn" in file.read_text(encoding="utf-8")
    ]
    # What gevent needs is registered when somebody instruments.
    expected = [turn.name for turn in Turn if turn is not Turn.GREENLETS]
    for order in (sorted(homes), sorted(homes, reverse=True)):
        done = subprocess.run([sys.executable, "-c", ORDER, *order], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize("moment", ["before", "after_in_parent", "after_in_child"])
def test_a_part_that_fails_is_said_once_and_the_others_are_done(
    moment: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_llm.support import faults

    monkeypatch.setattr(faults, "counts", faults.Counter())
    done: list[str] = []

    def fail() -> None:
        raise ValueError("broken")

    forks.register(Turn.JOURNALS, **{moment: fail})
    forks.register(Turn.STORES, **{moment: lambda: done.append("done")})
    with caplog.at_level(logging.WARNING):

        def child() -> object:
            forked(lambda: None)  # a fork in the fork, for what is said only once
            return done, caplog.text.count("do its part of a fork (JOURNALS)")

        told = forked(child)
    if moment == "after_in_child":
        assert told == "(['done'], 1)"
        assert (done, caplog.text) == ([], "")
    else:
        assert told == "(['done', 'done'], 1)" if moment == "before" else "(['done'], 1)"
        assert done == ["done"]
        assert caplog.text.count("do its part of a fork (JOURNALS)") == 1


def test_an_exception_that_is_no_error_stops_no_other_part_and_python_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))

    def interrupt() -> None:
        raise KeyboardInterrupt

    forks.register(Turn.JOURNALS, before=interrupt)
    forks.register(Turn.STORES, before=lambda: done.append("done"))
    forked(lambda: None)
    assert (done, told) == (["done"], [KeyboardInterrupt])


class Thing:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.RLock()

    def reset(self) -> None:
        if self.name == "bad":
            raise ValueError("broken")
        self.name = "reset"


def test_members_are_reset_in_the_child_one_by_one_and_not_kept_alive() -> None:
    things = forks.members(Turn.SLOTS, Thing.reset)
    kept = [Thing("bad"), Thing("good"), Thing("good")]
    things.update(kept)
    assert forked(lambda: sorted(thing.name for thing in things)) == "['bad', 'reset', 'reset']"
    assert sorted(thing.name for thing in things) == ["bad", "good", "good"]
    kept.clear()
    assert len(things) == 0


def test_a_fork_takes_the_locks_of_members_and_gives_them_back() -> None:
    things = forks.members(Turn.JOURNALS, Thing.reset, lambda thing: thing.lock)
    thing = Thing("good")
    things.add(thing)
    seen: list[bool] = []

    def is_free() -> bool:
        """Whether another thread gets it."""
        got: list[bool] = []

        def ask() -> None:
            got.append(thing.lock.acquire(blocking=False))
            if got[0]:
                thing.lock.release()

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return got[0]

    forks.register(Turn.STORES, before=lambda: seen.append(is_free()))
    forked(lambda: None)
    assert seen == [False]
    assert is_free()
