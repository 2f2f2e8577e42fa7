"""What the tests of the command line share: a store with known rows, and ways to run a command."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from otel_llm.cli import main
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.ship.clickhouse import ClickHouseDestination
from otel_llm.fleet.ship.destination import Block, Source
from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS, Kind, select_list
from otel_llm.settings import reload
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from otel_llm.store.reader import connect
from tests.fleet import clickhouse_server

both_engines = pytest.mark.parametrize("engine", ["duckdb", "clickhouse"], indirect=True)
"""For a test that fills a store: it runs once on that, and once on a ClickHouse which has been sent what is in it."""

Fill = Callable[..., Any]
"""Returns where the account is, as commands say it."""
Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, store_path: Path) -> Iterator[None]:
    """No variable of the machine reaches a command; the store is the test's own, and is not there yet."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_LLM_STORE", str(store_path))
    reload()
    yield
    monkeypatch.undo()
    reload()


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The URL of the ClickHouse that commands read in place of the store; None for the store, as everywhere without
    `both_engines`."""
    if getattr(request, "param", "duckdb") == "duckdb":
        return None
    url: str = request.getfixturevalue("clickhouse")
    clickhouse_server.empty(url)
    monkeypatch.setenv("OTEL_LLM_STORE", url)
    return url


def send(path: Path, url: str) -> str:
    """Sends all that is in a store to a ClickHouse; returns where it is."""
    destination = ClickHouseDestination(ClickHouseURL.parse(url))
    sources: dict[Source, Mapping[str, Kind]] = {"llm_usage": USAGE_COLUMNS, "spans": SPAN_COLUMNS}
    with connect(path) as connection:
        for source, columns in sources.items():
            found = connection.execute(f"SELECT {select_list(columns)} FROM {source}").fetchall()
            rows = [dict(zip(columns, row, strict=True)) for row in found]
            if source == "llm_usage":
                rows = [row | {RETRACTED: False} for row in rows]
            if rows:
                destination.send(Block(source, rows))
    destination.close()
    return url


@pytest.fixture
def fill(store_path: Path, engine: str | None) -> Fill:
    """Writes a store with the calls that are given as keyword dictionaries; columns that are left out are NULL."""

    def write(*calls: Mapping[str, Any], path: Path = store_path) -> Path:
        with exclusive.alone(StorePaths.of(path)) as connection:
            for index, call in enumerate(calls):
                row: dict[str, Any] = {
                    "started_at": "2026-11-20T12:00:00Z",
                    "trace_id": f"{index:032x}",
                    "span_id": f"{index:016x}",
                }
                row |= {"status": "ok", "operation": "chat", "provider": "openai", **call}
                if isinstance(row["started_at"], datetime):
                    row["started_at"] = row["started_at"].isoformat()
                connection.execute(
                    f"INSERT INTO llm_usage ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()]
                )
        return path if engine is None else send(path, engine)

    return write


@pytest.fixture
def fill_spans(store_path: Path, engine: str | None) -> Fill:
    """Adds spans to the store; each is a keyword dictionary, and what is left out is that of a good chat."""

    def write(*spans: Mapping[str, Any], path: Path = store_path) -> Path:
        with exclusive.alone(StorePaths.of(path)) as connection:
            for index, span in enumerate(spans):
                began = 1_795_176_000_000_000_000 + index * 1_000_000  # 2026-11-20 12:00 UTC
                row = {"trace_id": f"{0:032x}", "span_id": f"{index:016x}", "name": "chat", "status": "ok",
                       "start_ns": began, "end_ns": began + 5_000_000, "duration_ms": 5.0, "attributes": "{}"} | span  # fmt: skip
                connection.execute(
                    f"INSERT INTO spans (started_at, {', '.join(row)}) "
                    f"VALUES (make_timestamptz({row['start_ns']} // 1000), {', '.join('?' * len(row))})",
                    [*row.values()],
                )
        return path if engine is None else send(path, engine)

    return write


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, as `otel-llm` does."""

    def command(*arguments: str) -> Result:
        reload()
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return command


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in this process on a terminal of so many columns; returns all that it writes there."""

    def command(*arguments: str, columns: int = 200) -> str:
        ours, theirs = pty.openpty()
        written: list[bytes] = []

        def read() -> None:
            try:
                while block := os.read(ours, 65536):
                    written.append(block)
            except OSError:  # how Linux says that the other side of a terminal was closed
                pass

        reader = threading.Thread(target=read)
        reader.start()
        with monkeypatch.context() as patch, open(theirs, "w", encoding="utf-8") as terminal:  # noqa: PTH123
            patch.setenv("COLUMNS", str(columns))
            patch.setenv("TERM", "xterm-256color")
            patch.delenv("NO_COLOR", raising=False)
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            reload()
            main(arguments)
        reader.join(60)
        os.close(ours)
        return b"".join(written).decode().replace("\r\n", "\n")

    return command


@pytest.fixture
def execute() -> Run:
    """Runs the real command in a process of its own."""

    def command(*arguments: str, stdin: str = "", **variables: str) -> Result:
        done = subprocess.run(
            [*otel_llm_command(), *arguments],
            input=stdin,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return command


def otel_llm_command() -> list[str]:
    """How to start `otel-llm`: the installed script, or what it would do where the package is not installed."""
    script = Path(sys.executable).with_name("otel-llm")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "import sys; from otel_llm.cli import main; sys.exit(main())"]
