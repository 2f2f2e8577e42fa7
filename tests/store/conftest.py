"""Fixtures for the store's tests: journals written by hand or by real processes, and rows read back."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import semconv
from otel_llm.settings import reload
from otel_llm.store import Store, store
from otel_llm.store.file import publish
from otel_llm.store.journal import locks
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from otel_llm.store.reader import connect

NOON = 1_763_640_000 * 10**9
_ids = itertools.count(1)

CHAT: dict[str, Any] = {
    semconv.OPERATION: "chat",
    semconv.PROVIDER: "openai",
    semconv.REQUEST_MODEL: "gpt-4o-mini",
}
USAGE: dict[str, Any] = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 500}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the developer's reaches a test, and no store of one test the next."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_LLM_STORE", "none")
    monkeypatch.setattr(publish, "_REST", 0)  # merges follow one another here, and the spare file is what is to be used
    reload()
    yield
    for each in list(store._stores.values()):
        each.close()
    store._stores.clear()
    publish._fixed.clear()
    publish._failed.clear()
    monkeypatch.undo()
    reload()


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Below directories whose names mean something to DuckDB's readers, to SQL, to a shell or to a URL."""
    folder = tmp_path / "k=1" / "t=x" / "env=prod" / '-it\'s "here" [x] {a,b} ** 100%41 #1 $HOME; ünï.csv.gz'
    folder.mkdir(parents=True)
    return folder / "usage.duckdb"


@pytest.fixture
def paths(store_path: Path) -> StorePaths:
    return StorePaths.of(store_path)


@pytest.fixture
def journal(paths: StorePaths) -> Iterator[Journal]:
    journal = Journal(paths.journal)
    journal.resource = {"service.name": "tests"}
    yield journal
    journal.close()


@pytest.fixture
def stored(journal: Journal, store_path: Path) -> Callable[[], None]:
    """Journals a call and merges it."""

    def store() -> None:
        write_call(journal)
        assert merge(store_path).complete

    return store


@pytest.fixture
def quiet_store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose background thread does not interfere."""
    monkeypatch.setenv("OTEL_LLM_FLUSH_INTERVAL", "1h")
    reload()
    return Store.open(store_path)


def start(attributes: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A start record of a chat call. `number` makes its ids; where it is not given it is another one each time."""
    number = fields.pop("number", None) or next(_ids)
    span = number + (os.getpid() << 32)  # a fork counts on where its parent was
    return {
        "k": "s",
        "t": f"{span:032x}",
        "s": f"{span:016x}",
        "n": "chat gpt-4o-mini",
        "kd": "CLIENT",
        "st": NOON + number * 10**6,
        "a": CHAT | (attributes or {}),
        "f": 1,
        "sc": "tests.scope",
        "scv": "1.0",
        **fields,
    }


def end(
    begin: Mapping[str, Any] | None = None, attributes: Mapping[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """The end record of `begin`, or of a new chat call, 250 ms later."""
    begin = begin or start()
    attributes = USAGE if attributes is None else attributes
    record = {**begin, "k": "e", "et": begin["st"] + 250 * 10**6, "sts": "UNSET"}
    record["a"] = begin["a"] | attributes
    return record | fields


def identity(record: Mapping[str, Any]) -> int:
    return int(record["s"], 16)


def write_call(journal: Journal, attributes: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """One whole call in the journal; returns its end record."""
    begin = start(**fields)
    finish = end(begin, attributes)
    journal.append(begin, start_of=identity(begin))
    journal.append(finish, end_of=identity(begin))
    return finish


@contextmanager
def merging(paths: StorePaths) -> Iterator[None]:
    """As if somebody else were merging all the while: what is journalled in the block stays in the journal."""
    with locks.exclusive(paths.lock, time.monotonic() + 30):
        yield


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with connect(path) as connection:
        return list(connection.execute(sql).fetchall())


def count(path: Path, table: str = "llm_usage") -> int:
    return int(query(path, f"SELECT count(*) FROM {table}")[0][0])


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    """Waits for `condition`; fails naming `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


class Script:
    """A Python process that runs given lines and can be told to go on."""

    def __init__(self, text: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def line(self) -> str:
        """The next line that the process prints; fails with its stderr where there is none."""
        assert self.process.stdout is not None and self.process.stderr is not None
        text = self.process.stdout.readline().strip()
        if not text:
            self.process.kill()
            raise AssertionError(self.process.stderr.read())
        return text

    def say(self, text: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self) -> str:
        """Waits for a good end; returns what was printed."""
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        return out


HOLDER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("held", flush=True)
sys.stdin.readline()
"""
"""Holds the database that the first argument names, to `read` or to `write` as the second says, until it is told to go on."""


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Starts scripts and kills those that are left at the end."""
    started: list[Script] = []

    def run(text: str, *arguments: str, env: Mapping[str, str] | None = None) -> Script:
        started.append(Script(text, *arguments, env=env))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.kill()
        for pipe in (each.process.stdin, each.process.stdout, each.process.stderr):
            if pipe is not None:
                pipe.close()
