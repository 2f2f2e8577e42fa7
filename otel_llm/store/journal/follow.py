"""Following the journals of all processes as they are written, without the database.

Segments come and go: a process begins a new one now and then, and a merge deletes those that it has taken in whole. So that none is
deleted unread, a follower leaves a sign beside the journals, a file that it holds a lock on and whose time says up to when it has
read; a merge lets what was written since stand until the next merge. A follower that has stopped reading is waited for a minute.

A process that dies writes no last word. That the lock on its last segment is free says so: what it was doing then is told of as
interrupted.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from otel_llm.store.journal import locks, record, segments
from otel_llm.store.journal.segments import Segment
from otel_llm.store.paths import StorePaths
from otel_llm.support import files
from otel_llm.support.system import offsets

_T = TypeVar("_T")

_BY_DESCRIPTOR: Final = os.utime in os.supports_fd
_SIGN: Final = "follower-"
_PATIENCE_NS: Final = 60 * 10**9
_CLOCK_NS: Final = 20 * 10**6
"""The kernel dates files by a clock that lags behind by up to one tick."""
_BLOCK: Final = 2**20
_MAX_REMEMBERED: Final = 100_000

INTERRUPTED: Final = "i"
"""The kind of a record that no process wrote: the start of what ran when its process died, with the time when that was seen."""


class _Position:
    """How far a segment has been read."""

    __slots__ = ("fd", "offset", "pid", "rest")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.offset = 0
        self.rest = b""
        self.pid: int | None = None


class JournalFollower:
    """Start and end records from now on, each once, of every process that writes the store.

    Where a process dies, each part that it was at gives a record of the kind `INTERRUPTED`.

    A context manager. Methods raise OSError where the journals cannot be read.
    """

    def __init__(self, paths: StorePaths) -> None:
        self._directory = paths.journal
        self._positions: dict[Segment, _Position] = {}
        self._begun: OrderedDict[str, tuple[str, dict[str, Any]]] = OrderedDict()  # by writer, and how it began
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._sign: Path | None = None
        self._sign_fd = -1

    def __enter__(self) -> Self:
        try:
            self._leave_sign()
        except OSError:
            pass  # where everything is read-only; a segment may then be deleted between two looks
        self._read()  # what is there already was no news
        for segment in self._let_go():
            self._interrupted(segment.writer, 0)  # nor is it that somebody had died before
        return self

    def _leave_sign(self) -> None:
        files.make_own_dir(self._directory)
        sign = self._directory / f"{_SIGN}{os.getpid()}-{secrets.token_hex(4)}"
        with locks.new_and_held(sign, os.O_WRONLY) as fd:
            os.utime(fd if _BY_DESCRIPTOR else sign, ns=(0, 0))  # nothing has been read yet
        self._sign, self._sign_fd = sign, fd

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sign is not None:
            os.close(self._sign_fd)
            self._sign.unlink(missing_ok=True)
        while self._positions:
            os.close(self._positions.popitem()[1].fd)

    def poll(self) -> list[dict[str, Any]]:
        """The records that were written since the last time, in the order of their times, each with the `pid` of its writer."""
        found = self._read()
        found.sort(key=lambda one: int(one.get("et") or one.get("st") or 0))
        return found

    def _read(self) -> list[dict[str, Any]]:
        begun_ns = time.time_ns()
        let_go = self._let_go()
        there = segments.list_segments(self._directory)
        for segment in there:
            if segment not in self._positions:
                try:
                    self._positions[segment] = _Position(files.open_own(segment.path))
                except (FileNotFoundError, PermissionError):  # gone, or root's
                    continue
        found: list[dict[str, Any]] = []
        for segment in sorted(self._positions):
            found += self._read_segment(segment, self._positions[segment])
        for writer, segment in self._latest().items():
            if segment in let_go or segment not in there:
                found += self._interrupted(writer, begun_ns)
        for segment in self._positions.keys() - set(there):  # deleted before this look, so it was read to its end
            os.close(self._positions.pop(segment).fd)
        if self._sign is not None:
            os.utime(self._sign_fd if _BY_DESCRIPTOR else self._sign, ns=(begun_ns, begun_ns))
        return found

    def _latest(self) -> dict[str, Segment]:
        """The last segment of each writer."""
        return {segment.writer: segment for segment in sorted(self._positions)}

    def _let_go(self) -> set[Segment]:
        """Segments in which something runs and that nobody writes any more: their writer is dead, or at its next one.

        Asked before the segments are listed and read: what a dead one has written is final, and its next one is there by then.
        """
        busy = {writer for writer, _ in self._begun.values()}
        return {
            segment for writer, segment in self._latest().items() if writer in busy and not segments.is_live(segment)
        }

    def _interrupted(self, writer: str, seen_ns: int) -> list[dict[str, Any]]:
        """What `writer` was doing, the innermost first. (Should it live and end after all, that end is news.)"""
        running = [(identity, one) for identity, (whose, one) in self._begun.items() if whose == writer]
        for identity, _ in running:
            self._begun[identity] = ("", {})
        return [{**one, "k": INTERRUPTED, "et": seen_ns} for _, one in reversed(running)]

    def _read_segment(self, segment: Segment, position: _Position) -> list[dict[str, Any]]:
        found = []
        while block := offsets.pread(position.fd, _BLOCK, position.offset):
            position.offset += len(block)
            *lines, position.rest = (position.rest + block).split(b"\n")
            for line in lines:
                if record.is_intact(line):
                    one = self._take(record.decode(line), segment.writer, position)
                    if one is not None:
                        found.append(one)
        return found

    def _take(self, one: dict[str, Any], writer: str, position: _Position) -> dict[str, Any] | None:
        """A record that is news. A new segment repeats the starts of what runs, and a start is written again when more is known."""
        kind = one.get("k")
        if kind == "h":
            position.pid = one.get("pid")
            return None
        if kind not in ("s", "e"):
            return None
        identity = f"{one.get('t')}{one.get('s')}"
        if identity in self._ended:
            return None
        one["pid"] = position.pid
        known = self._begun.get(identity)
        record.completed(one, {} if known is None else known[1].get("a") or {})
        if kind == "s":
            _remember(self._begun, identity, (writer, one))
            return one if known is None else None
        self._begun.pop(identity, None)
        _remember(self._ended, identity, None)
        return one


def _remember(identities: OrderedDict[str, _T], identity: str, what: _T) -> None:
    identities[identity] = what
    if len(identities) > _MAX_REMEMBERED:
        identities.popitem(last=False)


def unread(directory: Path, removable: Iterable[Segment]) -> set[str]:
    """Names of those segments that a follower has not read to their end yet. Raises OSError."""
    seen_ns = _seen_by_all(directory)
    if seen_ns is None:
        return set()
    found = set()
    for segment in removable:
        try:
            if segment.path.stat().st_mtime_ns + _CLOCK_NS >= seen_ns:
                found.add(segment.name)
        except FileNotFoundError:
            continue
    return found


def _seen_by_all(directory: Path) -> int | None:
    """Up to when (ns since 1970) every follower has read; None where there is no follower. Removes the signs of dead ones."""
    oldest: int | None = None
    horizon = time.time_ns() - _PATIENCE_NS
    with os.scandir(directory) as entries:
        signs = [Path(entry.path) for entry in entries if entry.name.startswith(_SIGN)]
    for sign in signs:
        try:
            if not locks.is_held(sign):
                sign.unlink(missing_ok=True)
                continue
            seen_ns = sign.stat().st_mtime_ns
        except (FileNotFoundError, PermissionError):
            continue
        if seen_ns >= horizon:
            oldest = seen_ns if oldest is None else min(oldest, seen_ns)
    return oldest
