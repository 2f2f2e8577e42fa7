"""The reading side of the journal: what segments there are, whose they are, and their records from an offset on."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from otel_llm.store.journal import locks, record
from otel_llm.support import files
from otel_llm.support.system import offsets

_SUFFIX: Final = ".jsonl"
_ORPHAN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One journal file."""

    writer: str
    sequence: int
    path: Path = field(compare=False)

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(slots=True)
class Chunk:
    """Records of one segment from one offset to another."""

    segment: Segment
    header: bytes = b""
    """The segment's header line; empty where it is not intact."""
    ends: list[bytes] = field(default_factory=list)
    """What has ended, and the rows that have come whole."""
    unfinished: list[bytes] = field(default_factory=list)
    """Start lines of what will never end."""
    acknowledgements: list[bytes] = field(default_factory=list)
    scores: list[bytes] = field(default_factory=list)
    corrupt: list[bytes] = field(default_factory=list)
    start: int = 0
    next: int = 0
    """Offset behind the last line that was read."""
    at_end: bool = False
    """Nothing more to read there, for now."""
    finished: bool = False
    """The writer is gone or has gone on to its next segment, and this is the rest."""


class Snapshot:
    """The journal folder at one moment: which segments there are, and how long they were. What comes later is not in it.

    Whether a writer lives is asked when it matters, and once: a dead one stays dead, and for one that lived, what it has
    written since is left for the next snapshot.

    Raises files.NotOurs where others may have put something into the folder, OSError.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sizes: dict[Segment, int] = {}
        """By writer and number; nothing where there is no folder."""
        self._hidden: list[Path] = []
        self._live: dict[Segment, bool] = {}
        try:
            files.require_own_dir(directory)
            with os.scandir(directory) as entries:
                found = [one for entry in entries if (one := self._look_at(entry)) is not None]
        except (FileNotFoundError, NotADirectoryError):
            return
        self.sizes = dict(sorted(found))

    def _look_at(self, entry: os.DirEntry[str]) -> tuple[Segment, int] | None:
        if entry.name.startswith("."):
            if entry.name.endswith(".tmp"):
                self._hidden.append(Path(entry.path))
            return None
        segment = _parse(Path(entry.path))
        try:
            if segment is not None and entry.is_file(follow_symlinks=False):
                return segment, entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:  # deleted meanwhile
            pass
        return None

    def is_live(self, segment: Segment) -> bool:
        """Whether the process that writes `segment` is alive and still has it open. Raises OSError."""
        live = self._live.get(segment)
        if live is None:
            live = self._live[segment] = is_live(segment)
        return live

    def read(self, segment: Segment, offset: int, limit: int) -> Chunk:
        """About `limit` bytes of `segment` from `offset` on, opened once. Raises OSError.

        Whether its writer lives is asked before it is read: what a dead one has written is final then.
        """
        with os.fdopen(files.open_own(segment.path), "rb", buffering=0) as file:
            fd = file.fileno()
            if segment not in self._live:
                self._live[segment] = locks.is_held_elsewhere(fd)
            chunk = _read_chunk(fd, segment, offset, limit, live=self._live[segment])
        if chunk.at_end and not self._live[segment]:
            chunk.finished = True
            if self._latest().get(segment.writer) == segment:
                header, starts = unfinished(segment)
                # One that has just gone on to its next segment has let go of this one too, and still runs what it carried over.
                if starts and Snapshot(self.directory)._latest().get(segment.writer) == segment:
                    chunk.unfinished = starts
                    chunk.header = chunk.header or header
        return chunk

    def _latest(self) -> dict[str, Segment]:
        """The last segment of each writer."""
        return {segment.writer: segment for segment in self.sizes}

    def remove_leftovers(self) -> None:
        """Deletes half-born segments and batch files of processes that died. Raises nothing."""
        horizon = time.time() - _ORPHAN_SECONDS
        for path in self._hidden:
            try:
                if path.stat().st_mtime < horizon and not locks.is_held(path):
                    path.unlink()
            except OSError:
                continue


def list_segments(directory: Path) -> list[Segment]:
    """The segments in `directory` by writer and number; none where it does not exist. Raises files.NotOurs, OSError."""
    return list(Snapshot(directory).sizes)


def _parse(path: Path) -> Segment | None:
    if path.suffix != _SUFFIX:
        return None
    writer, _, number = path.stem.rpartition("-")
    if not writer or not number.isdecimal():
        return None
    return Segment(writer, int(number), path)


def is_live(segment: Segment) -> bool:
    """Whether the process that writes `segment` is alive and still has it open, now. Raises OSError."""
    try:
        return locks.is_held(segment.path)
    except FileNotFoundError:
        return False


def read_chunk(segment: Segment, offset: int, limit: int, *, live: bool) -> Chunk:
    """Reads about `limit` bytes of whole lines from `offset` on.

    The last line of a live writer may still be on its way, so it is left for later; that of a dead one never will be
    whole. Raises OSError.
    """
    with os.fdopen(files.open_own(segment.path), "rb", buffering=0) as file:
        return _read_chunk(file.fileno(), segment, offset, limit, live=live)


def _read_chunk(fd: int, segment: Segment, offset: int, limit: int, *, live: bool) -> Chunk:
    chunk = Chunk(segment, start=offset, next=offset)
    size = os.fstat(fd).st_size
    if size <= offset:
        chunk.at_end = True
        return chunk
    if offset:
        chunk.header = _first_line(fd)
    block = offsets.pread(fd, limit, offset)
    while b"\n" not in block and offset + len(block) < size:  # one line longer than the limit
        block += offsets.pread(fd, limit, offset + len(block))
    chunk.at_end = offset + len(block) >= size
    whole, newline, tail = block.rpartition(b"\n")
    if newline:
        _sort_lines(whole, chunk)
        chunk.next += len(whole) + 1
    if tail and chunk.at_end and not live:
        if record.is_intact(tail):  # only its newline is missing
            _sort_lines(tail, chunk)
        else:
            chunk.corrupt.append(tail)
        chunk.next += len(tail)
    _complete(fd, chunk, block)
    return chunk


def _complete(fd: int, chunk: Chunk, block: bytes) -> None:
    """Gives the end lines of `chunk`, which was read from `block`, the texts that only the start lines of their spans have."""
    short: dict[int, tuple[bytes, dict[str, Any]]] = {}
    for number, line in enumerate(chunk.ends):
        if record.is_shortened(line) and (span := _identity(line)) is not None:
            with suppress(ValueError):  # the database will refuse it, and say why
                short[number] = span, record.decode(line)
    if not short:
        return
    said = _attributes_of(block, {span for span, _ in short.values()})
    begun_earlier = {span for span, one in short.values() if not said.get(span, {}).keys() >= set(record.left_out(one))}
    for span, attributes in _attributes_of(offsets.pread(fd, chunk.start, 0), begun_earlier).items():
        said[span] = attributes | said.get(span, {})
    for number, (span, one) in short.items():
        chunk.ends[number] = record.encode(record.completed(one, said.get(span, {}))).removesuffix(b"\n")


def _attributes_of(block: bytes, spans: Collection[bytes]) -> dict[bytes, dict[str, Any]]:
    """The attributes in the start lines of `spans`."""
    found: dict[bytes, dict[str, Any]] = {}
    for line in block.split(b"\n") if spans else ():
        if record.kind(line) == b"s" and (span := _identity(line)) in spans and record.is_intact(line):
            assert span is not None
            found.setdefault(span, {}).update(record.attributes(line))
    return found


def _sort_lines(block: bytes, chunk: Chunk) -> None:
    for line in block.split(b"\n"):
        if not record.is_intact(line):
            if line:
                chunk.corrupt.append(line)
            continue
        match record.kind(line):
            case b"e" | b"u":
                chunk.ends.append(line)
            case b"a":
                chunk.acknowledgements.append(line)
            case b"g":
                chunk.scores.append(line)
            case b"h" if not chunk.header:
                chunk.header = line


def _first_line(fd: int) -> bytes:
    block = b""
    while b"\n" not in block:
        more = offsets.pread(fd, 2**16, len(block))
        if not more:
            return b""
        block += more
    line = block.partition(b"\n")[0]
    return line if record.is_intact(line) and record.kind(line) == b"h" else b""


def unfinished(segment: Segment) -> tuple[bytes, list[bytes]]:
    """The header of `segment`, and for each span that no end line follows one start line. Raises OSError."""
    header = b""
    starts: dict[bytes, list[bytes]] = {}
    for line in _intact_lines(segment.path):
        kind = record.kind(line)
        if kind == b"h" and not header:
            header = line
        elif kind in (b"s", b"e"):
            identity = _identity(line)
            if identity is None:
                continue
            if kind == b"s":
                starts.setdefault(identity, []).append(line)
            else:
                starts.pop(identity, None)
    return header, [_last_known(lines) for lines in starts.values()]


def _last_known(lines: list[bytes]) -> bytes:
    """The last start line of a span, with what it leaves out."""
    *before, last = lines
    if not record.is_shortened(last):
        return last
    earlier: dict[str, Any] = {}
    for line in before:
        earlier |= record.attributes(line)
    try:
        return record.encode(record.completed(record.decode(last), earlier)).removesuffix(b"\n")
    except ValueError:
        return last


def running_calls(directory: Path) -> list[dict[str, Any]]:
    """The start records of the calls that run right now, in every living process, oldest first.

    Each has the fields of a start record (see `writer.py`) and `pid`. Raises OSError.
    """
    latest = {segment.writer: segment for segment in list_segments(directory)}
    calls = []
    for segment in latest.values():
        try:
            if not is_live(segment):
                continue
            header, starts = unfinished(segment)
        except (FileNotFoundError, PermissionError):
            continue
        pid = record.decode(header).get("pid") if header else None
        calls += [{**record.decode(line), "pid": pid} for line in starts]
    return sorted(calls, key=lambda call: call.get("st") or 0)


def _intact_lines(path: Path) -> Iterator[bytes]:
    with os.fdopen(files.open_own(path), "rb") as file:
        for raw in file:
            line = raw.rstrip(b"\n")
            if record.is_intact(line):
                yield line


def _identity(line: bytes) -> bytes | None:
    """The bytes `"t":"…","s":"…"` of a line, which are the first fields after the kind."""
    begin = 24  # `{"c":"xxxxxxxx","k":"x",`
    identity = line[begin : begin + 61]
    if identity.startswith(b'"t":"') and identity[38:44] == b',"s":"':
        return identity
    return None
