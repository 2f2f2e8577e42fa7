"""Imports of ours that the app does not see half done."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from otel_llm.support import importing

SLOW = """
import threading
import {name}_gate as gate
gate.begun.set()
assert gate.go_on.wait(30)
Timeout = 7
"""


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ModuleType]]:
    """A module that stops in the middle of its import, and what lets it go on."""
    name = "half_done_" + re.sub(r"\W", "", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(SLOW.format(name=name))
    gate = ModuleType(f"{name}_gate")
    vars(gate).update(begun=threading.Event(), go_on=threading.Event())
    monkeypatch.setitem(sys.modules, gate.__name__, gate)
    monkeypatch.syspath_prepend(tmp_path)
    yield name, gate
    gate.go_on.set()
    sys.modules.pop(name, None)


def test_who_looks_a_module_up_waits_for_our_import(gate: tuple[str, ModuleType]) -> None:
    name, doors = gate

    def ours() -> None:
        with importing.whole():
            __import__(name)

    thread = threading.Thread(target=ours, daemon=True)
    thread.start()
    assert doors.begun.wait(30)
    half = sys.modules[name]  # as openai does it, in every call

    class Door(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            doors.go_on.set()  # now that somebody waits
            return super().wait(timeout)

    importing._under_way[id(half)].done = Door()
    assert half.Timeout == 7
    thread.join(30)
    # And nothing of ours is left on it.
    assert type(half) is ModuleType and type(half.__loader__).__module__ != importing.__name__
    assert half.__spec__ is not None and half.__spec__.loader is half.__loader__
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        half.nothing  # noqa: B018


def test_an_import_that_fails_lets_everybody_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_failing.py").write_text("import sys\nmine = sys.modules[__name__]\nmine.missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with importing.whole(), pytest.raises(AttributeError, match="missing"):
        __import__("half_failing")
    assert "half_failing" not in sys.modules and not importing._under_way


def test_others_import_as_they_always_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_plain.py").write_text("import sys\nkind = type(sys.modules[__name__])\n")
    monkeypatch.syspath_prepend(tmp_path)
    with importing.whole():
        pass
    assert __import__("half_plain").kind is ModuleType
    del sys.modules["half_plain"]
    with importing.whole():
        assert __import__("half_plain").kind is not ModuleType
    del sys.modules["half_plain"]


def test_every_import_of_our_threads_is_whole(tmp_path: Path) -> None:
    """Whatever they import, today or with another release of a dependency, and whatever a client looks up."""
    script = """
import sys, threading, time
seen = {}
class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            from otel_llm.support import importing
            # Asked by our own finder, or else nobody waits for this one.
            seen[name] = any(frame_of(importing.__file__))
def frame_of(file):
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename == file and frame.f_code.co_name == "find_spec"
        frame = frame.f_back
sys.meta_path.insert(0, Watch())
import otel_llm
otel_llm.instrument()
from otel_llm.store.store import find
from otel_llm.store.paths import StorePaths
from otel_llm.settings import settings
with otel_llm.chain("c"):
    pass
store = find(StorePaths.of(settings().store))
while not store.stats.merges:
    time.sleep(0.01)
assert "duckdb" in seen, seen
half = sorted(name for name, whole in seen.items() if not whole and not name.startswith("otel_llm"))
assert not half, half
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"OTEL_LLM_STORE": str(tmp_path / "usage.duckdb"), "PATH": "", "OTEL_LLM_FLUSH_INTERVAL": "0.05"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
