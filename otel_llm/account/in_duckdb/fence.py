"""SQL of somebody else's, behind a fence: for the browser page and for agents, who may run whatever a model has written.

A process of its own runs each text, read-only, without access to files, with limits of time, memory and rows, and is gone
afterwards: whatever the SQL does to it, nobody else notices. The next process is started beforehand, so that nobody waits for
its imports.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import orjson

_START_SECONDS: Final = 30.0


class FenceError(Exception):
    """The SQL was refused, or stopped; its text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one text of SQL may take."""

    seconds: float = 20.0
    memory_mb: int = 1024
    rows: int = 10_000
    bytes: int = 16 * 2**20
    """Of the answer, as JSON."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """An answer."""

    names: Sequence[str]
    rows: Sequence[Sequence[Any]]
    cut: bool
    """Whether there were more rows than the limit."""


class Fence:
    """Runs SQL on one store, a process for each text. May be used by several threads."""

    def __init__(self, store: Path, limits: Limits | None = None) -> None:
        self._store = store
        self.limits = limits or Limits()
        self._mutex = threading.Lock()
        self._waiting: subprocess.Popen[bytes] | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def warm_up(self) -> None:
        """Starts the process that the next text will run in, where there is none."""
        with self._mutex:
            if self._waiting is None and not self._closed:
                self._waiting = self._start()

    def run(self, sql: str) -> Fenced:
        """What the last statement answers. Raises `FenceError`."""
        with self._mutex:
            if self._closed:
                raise FenceError("it was stopped")
            process, self._waiting = self._waiting or self._start(), None
            self._running.add(process)
        limits = self.limits
        try:
            asked = orjson.dumps(
                {
                    "sql": sql,
                    "rows": limits.rows,
                    "bytes": limits.bytes,
                    "mb": limits.memory_mb,
                    "seconds": limits.seconds,
                }
            )
            try:
                told, _ = process.communicate(asked, timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                raise FenceError(f"it took longer than {limits.seconds:g} s and was stopped") from None
        finally:
            with self._mutex:
                self._running.discard(process)
            self._end(process)
            with suppress(OSError):
                self.warm_up()
        try:
            answer = orjson.loads(told)
        except orjson.JSONDecodeError:
            raise FenceError("it ended the process that ran it (too much memory, maybe)") from None
        if "error" in answer:
            raise FenceError(answer["error"])
        decimals = answer["decimals"]
        rows = [
            [Decimal(value) if at in decimals and value is not None else value for at, value in enumerate(row)]
            for row in answer["rows"]
        ] if decimals else answer["rows"]  # fmt: skip
        return Fenced(answer["names"], rows, answer["cut"])

    def close(self) -> None:
        """Ends the process that waits, and stops what runs; whoever waits for its answer gets a `FenceError`."""
        with self._mutex:
            self._closed = True
            process, self._waiting = self._waiting, None
            for one in self._running:
                one.kill()
        if process is not None:
            self._end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # -P: a module that lies where somebody works is none of ours.
            [sys.executable, "-P", "-m", "otel_llm.account.in_duckdb.fenced", str(self._store)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
