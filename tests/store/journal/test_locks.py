"""The lock between processes, and whose turn it is."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from otel_llm.store.journal import locks
from tests.store.conftest import until


def test_who_waits_is_next(tmp_path: Path) -> None:
    """However quickly the holder comes back: a merger in a loop must not keep a `compact` out."""
    path = tmp_path / "lock"
    order = []

    def wait_for_it() -> None:
        with locks.exclusive(path, time.monotonic() + 60):
            order.append("who waited")

    with locks.exclusive(path, time.monotonic() + 60):
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        until(lambda: locks.is_held(tmp_path / "lock.next"), "the other to wait")
    with locks.exclusive(path, time.monotonic() + 60):
        order.append("who came back")
    thread.join()
    assert order == ["who waited", "who came back"]


def test_the_deadline_holds_for_both_locks(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.exclusive(path, time.monotonic() + 60):
        with pytest.raises(TimeoutError, match="held by another process"), locks.exclusive(path, time.monotonic()):
            pass
        assert not locks.is_held(tmp_path / "lock.next")
    with locks.exclusive(path, time.monotonic() + 60):
        pass
