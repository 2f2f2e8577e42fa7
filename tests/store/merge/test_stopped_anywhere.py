"""Ctrl-C, a stop button, a time limit, no memory: an exception may come up at any line of a merge."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import duckdb
import pytest

from otel_llm.store import StoreError, reader
from otel_llm.store.file import handles
from otel_llm.store.jobs import exclusive, repricing, retention
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import duckdb_instance, ingest
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from otel_llm.support import fork_guard
from tests.stopping import OURS, Stop, throw
from tests.store.conftest import NOON, write_call

STORE = str(Path(OURS) / "store")
STRIDE = 113
"""Not every line: each stop is a merge, and one more."""
LETTING_GO = ("release", "close", "abandon", "discard", "let_go", "sweep", "detach", "_remove", "if taken")


def lets_go(frame: FrameType, line: str) -> bool:
    """Lines that do nothing else."""
    return frame.f_code.co_name in LETTING_GO or any(part in line for part in LETTING_GO)


def descriptors(paths: StorePaths) -> list[str]:
    """What this process has open of the store, but for the writer's segment."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            name = os.readlink(fd)
        except OSError:
            continue
        if name.startswith(str(paths.database)) and not name.endswith(".jsonl") and int(fd.name) not in handles._parked:
            found.append(name)
    return found


def require_nothing_held(paths: StorePaths, where: str) -> None:
    assert not descriptors(paths), where
    assert not fork_guard.mutex._is_owned(), where  # type: ignore[attr-defined]
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def price_again(path: Path) -> None:
    with exclusive.alone(StorePaths.of(path)) as connection:
        repricing.reprice(connection, repricing.Choice(priced_too=True))


def keep(path: Path) -> None:
    with exclusive.alone(StorePaths.of(path)) as connection:
        retention.remove(connection, retention.Policy(max_age=10.0**9), now=NOON / 1e9)


WAYS: dict[str, Callable[[Path], object]] = {
    "merge": lambda path: merge(path, timeout=1),
    "merge for the first time": lambda path: (duckdb_instance.discard(), merge(path, timeout=1)),
    "connect": lambda path: reader._connect_now(StorePaths.of(path)).close(),
    "reprice": price_again,
    "retention": keep,
}


@pytest.fixture(autouse=True)
def _no_instance() -> Iterator[None]:
    yield
    duckdb_instance.discard()


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="line events also come where the interpreter looks for no signal since Python 3.12 (PEP 669)",
)
@pytest.mark.parametrize(("way", "error"), [*((way, KeyboardInterrupt) for way in WAYS), ("merge", MemoryError)])
def test_the_next_merge_is_right(
    way: str,
    error: type[BaseException],
    journal: Journal,
    store_path: Path,
    paths: StorePaths,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_call(journal)
    for each in WAYS.values():  # what is done once is done
        each(store_path)
    merge(store_path)
    written = 1
    for at in range(1, 100_000, STRIDE):
        write_call(journal)
        written += 1
        if not at % 3:
            journal.rotate()  # there is a segment to delete, too
        stop = Stop(at, partial(throw, error), under=STORE, spared=lets_go)
        try:
            with stop:
                WAYS[way](store_path)
        except (KeyboardInterrupt, MemoryError, StoreError):
            assert stop.where
        require_nothing_held(paths, stop.where)
        caplog.clear()
        assert merge(store_path).complete, stop.where
        assert not caplog.text, stop.where
        assert not handles._parked, stop.where
        require_nothing_held(paths, stop.where)
        with duckdb.connect(str(store_path), read_only=True) as connection:
            found = connection.execute("SELECT count(*), count(DISTINCT span_id) FROM llm_usage").fetchall()
            found += connection.execute("SELECT count(*), count(DISTINCT span_id) FROM spans").fetchall()
        assert found == [(written, written)] * 2, stop.where
        if not stop.where:
            break
    assert at > 100
    assert ingest.merge(store_path).complete
