"""The journal: this process's own append-only file, one write per record.

Lines are JSON with a checksum (see `record.py`). Their fields:

    header  {"k":"h","v":4,"w":writer,"pid":…,"sdk":otel-llm version,"r":{resource attributes}}
    start   {"k":"s","t":trace id,"s":span id,"p":parent span id or null,"n":name,"kd":span kind,"st":start ns,
             "a":{attributes},"sc":scope name,"scv":scope version,"f":trace flags,
             "ag":enclosing agent's name,"wf":enclosing workflow's name,"r":{resource, where not the header's},
             "x":1 where another span stands for this call in the account,
             "m":[names of attributes that are in an earlier line of this span in this segment, and not in "a" again],
             "o":OTLP endpoint that the span goes to, where this process notes what has arrived there}
    end     the same and "et":end ns,"sts":status code,"std":status description,
             "e":[{"name","time_unix_nano","attributes"}],"l":[{"trace_id","span_id","attributes"}]
    row     {"k":"u","t":trace id,"s":span id,"u":{columns of llm_usage}}, which another store has
    arrived {"k":"a","o":OTLP endpoint that has taken spans of this process,"i":their ids: trace id and span id of each, joined}
    score   {"k":"g","t":trace id,"s":span id,"ri":request id,"n":name,"v":number,"l":label,"d":comment,"o":who gave it,
             "at":when, in microseconds}, with what it is about and what it says as far as that is told

Ids are lower-case hex, times nanoseconds since 1970. Absent and null mean the same.

A segment is `<writer>-<number>.jsonl`. Its writer holds `flock` on it. When a segment has grown too big or too old the
next one begins with the start lines of the calls that still run, so that only the last segment of a dead writer
can hold calls that never ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from otel_llm.store.journal import record
from otel_llm.store.journal.open_segment import OpenSegment
from otel_llm.store.journal.running import RunningSpans
from otel_llm.store.journal.unwritten import UnwrittenLines
from otel_llm.support import faults, files, forks
from otel_llm.version import __version__

_logger = logging.getLogger("otel_llm")

FORMAT_VERSION: Final = 4
"""1 had no "m": each line of a span said everything. 2 had no rows of other stores, 3 no scores."""
_RETRY_SECONDS: Final = 0.25

Fsync = Literal["none", "interval", "always"]


class Journal:
    """An append-only log of calls for one process.

    Safe to use from many threads, from a signal handler or finalizer that interrupts it, and after a fork: the child
    never writes to its parent's file. No method raises for what the file system does.

    `segment_size` is in bytes, `segment_age` in seconds.
    """

    def __init__(
        self, directory: Path, *, segment_size: int = 16 * 2**20, segment_age: float = 60.0, fsync: Fsync = "none"
    ) -> None:
        self.directory = directory
        self.segment_size = segment_size
        self.segment_age = segment_age
        self.fsync = fsync
        self.resource: Mapping[str, Any] = {}
        self.elsewhere: Callable[[], Path | None] | None = None
        """Says which directory to use where this user may not use this one: as after `setuid`."""
        self._start_afresh()
        _journals.add(self)

    def _start_afresh(self) -> None:
        """The state of a writer that has written nothing: at construction, and in the child of a fork."""
        self._lock = threading.RLock()
        self._writer = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}"
        self._sequence = 0
        self._open: OpenSegment | None = None
        self._retry_at = 0.0
        self._starts_missing = False  # some start lines are in memory only
        self._busy = False
        self._unsynced = False
        self._running = RunningSpans()
        self._unwritten = UnwrittenLines()
        self._waiting = self._unwritten.lines
        self.records = 0
        """Records taken, in this process."""

    @property
    def segment(self) -> Path | None:
        """The open segment, if there is one."""
        return None if self._open is None else self._open.path

    @property
    def position(self) -> tuple[Path | None, int]:
        """The open segment and its size: whoever saw this position has seen every record written so far."""
        segment = self._open
        return (None, 0) if segment is None else (segment.path, segment.size)

    @property
    def waiting(self) -> int:
        """Ended calls that are in memory only, because the file system refuses them."""
        return len(self._waiting)

    @property
    def dropped(self) -> int:
        """Ended calls that could not be kept: the file system refused them until the memory set aside was full."""
        return self._unwritten.dropped

    @property
    def last_error(self) -> str | None:
        return self._unwritten.last_error

    # --- writing ------------------------------------------------------------------------------------------------------

    def append(self, entry: record.Record, *, start_of: int | None = None, end_of: int | None = None) -> None:
        """Writes one record. `start_of` and `end_of` are the id of the span that it begins or ends."""
        is_start = start_of is not None
        running = self._running
        short = entry
        if running.texts and (texts := running.texts.get(start_of if is_start else end_of)) is not None:
            short = record.shortened(entry, texts)
        line = record.encode(short)
        outermost = not self._lock._is_owned()  # type: ignore[attr-defined]
        with self._lock:
            if outermost:
                self._busy = False  # an exception may have kept that from being said
            self.records += 1
            running = self._running  # another, if this is in the child of a fork by now
            if end_of is not None and not running.end(end_of) and short is not entry:
                line = record.encode(entry)  # its start line may not be in the open segment
            if start_of is not None:
                line = running.begin(start_of, line, entry, is_short=short is not entry)
            segment = self._open
            if self._busy or self._waiting or self._starts_missing or segment is None:
                self._append_slowly(entry, is_start=is_start)
                return
            try:
                self._busy = True
                segment.write(line)
                if segment.size >= self.segment_size:
                    self._rotate(segment)
                elif self.fsync == "always":
                    segment.to_disk()
                elif self.fsync == "interval":
                    self._unsynced = True
            except OSError as error:
                self._keep(entry, is_start=is_start)
                self._failed(error)
            except BaseException:  # a signal handler raised, before the write or after it: a line may be there twice
                self._keep(entry, is_start=is_start)
                raise
            finally:
                self._busy = False
            if self._waiting or self._starts_missing:  # a failure, or whoever interrupted the write
                self._catch_up()

    def append_whole(self, lines: bytes, records: int) -> None:
        """Writes that many records, as lines, in one go, for who answers for them: on disk, where `fsync` is `always`.

        Raises OSError. Nothing is kept in memory then; what has got into the file may come again.
        """
        with self._lock:
            ready = self._open is not None and not (self._waiting or self._starts_missing)
            if not ready and not self._catch_up(now=True):
                raise OSError(self.last_error or "the journal is in use")
            segment = self._open
            assert segment is not None
            try:
                segment.write(lines)
                if self.fsync == "always":
                    segment.to_disk()
            except OSError as error:
                self._failed(error)
                raise
            self._unsynced = self.fsync == "interval"
            self.records += records
            self._unwritten.recovered(self.directory)
            if segment.size >= self.segment_size:
                self._rotate(segment)

    def _append_slowly(self, entry: record.Record, *, is_start: bool) -> None:
        """The way of a record when the file is not simply there to be written to."""
        self._keep(entry, is_start=is_start)
        # While busy this is a signal handler or a finalizer that interrupted a write of its own thread: the record waits
        # in memory until that write is done.
        if not self._busy:
            self._catch_up()

    def _keep(self, entry: record.Record, *, is_start: bool) -> None:
        if is_start:
            self._starts_missing = True  # the line itself is in `_running`
        else:
            self._unwritten.add(record.encode(entry))  # whole: it may get into a segment without its start line

    def _catch_up(self, *, now: bool = False) -> bool:
        """Writes what is in memory only; True where nothing is left. Not before the last failure has had time to pass."""
        if self._busy or (not now and time.monotonic() < self._retry_at):
            return False
        try:
            self._busy = True
            segment = self._open
            if segment is None:
                segment = self._begin_segment()
            elif self._starts_missing:
                segment.write(self._running.lines())
            self._starts_missing = False
            while self._waiting:
                segment.write(self._waiting[0])
                self._unwritten.remove_first()
            if self.fsync == "always":
                segment.to_disk()
            self._unwritten.recovered(self.directory)
        except OSError as error:
            self._failed(error)
            return False
        finally:
            self._busy = False
        return True

    def _failed(self, error: OSError) -> None:
        faults.pass_on(error)  # a time limit of the app's may be a TimeoutError
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        self._unwritten.failed(error, self.directory)

    def sync(self, *, to_disk: bool = False) -> bool:
        """Writes what waits in memory; True where nothing is left. `to_disk` makes it survive a power cut as well."""
        outermost = not self._lock._is_owned()  # type: ignore[attr-defined]
        with self._lock:
            if outermost:
                self._busy = False
            done = True
            if self._waiting or self._starts_missing:
                done = self._catch_up(now=True)
            if self._open is not None and (to_disk or self._unsynced):
                try:
                    self._open.to_disk()
                    self._unsynced = False
                except OSError as error:
                    self._unwritten.last_error = str(error)
                    done = False
            return done

    # --- segments -----------------------------------------------------------------------------------------------------

    def _begin_segment(self) -> OpenSegment:
        """Begins the next segment with a header and the start lines of what runs. Raises OSError and changes nothing then."""
        self._make_directory()
        self._sequence += 1
        path = self.directory / f"{self._writer}-{self._sequence:06d}.jsonl"
        self._open = OpenSegment.create(path, record.encode(self._header()) + self._running.lines())
        return self._open

    def _make_directory(self) -> None:
        """Makes the directory, here or elsewhere. What others may write to is no place for a journal. Raises OSError."""
        try:
            files.make_own_dir(self.directory)
        except OSError as error:
            other = self.elsewhere() if error.errno in files.REFUSED and self.elsewhere is not None else None
            if other is None:
                raise
            files.make_own_dir(other)
            self.directory = other

    def _header(self) -> dict[str, Any]:
        return {
            "k": "h",
            "v": FORMAT_VERSION,
            "w": self._writer,
            "pid": os.getpid(),
            "sdk": __version__,
            "r": dict(self.resource),
        }

    def _rotate(self, full: OpenSegment) -> None:
        try:
            self._begin_segment()
        except OSError as error:
            faults.pass_on(error)
            # The full segment still takes lines; only its size is past the limit.
            self._unwritten.last_error = str(error)
            full.size = 0
            return
        self._let_go(full)

    def _let_go(self, segment: OpenSegment) -> None:
        try:
            if self.fsync != "none":
                segment.to_disk()
        except OSError as error:
            self._unwritten.last_error = str(error)
        try:
            segment.close()
        except OSError:
            pass

    def rotate(self) -> None:
        """Seals the open segment and begins a new one, if there is one."""
        with self._lock:
            if self._open is not None and not self._busy:
                try:
                    self._busy = True
                    self._rotate(self._open)
                finally:
                    self._busy = False

    def tend(self) -> None:
        """What the background thread does every so often: catch up, sync, rotate by age, notice a file that was deleted."""
        with self._lock:
            if self._open is not None and self._open.is_deleted():
                self._rescue(self._open)
            self.sync()
            segment = self._open
            if segment is not None and not segment.is_empty and segment.age >= self.segment_age:
                self.rotate()

    def _rescue(self, deleted: OpenSegment) -> None:
        """The segment was deleted under us: its bytes are ours as long as it is open, and go into a new one."""
        if self._busy:
            return
        try:
            self._busy = True
            segment = self._begin_segment()
            for block in deleted.content():
                segment.write(block)
            _logger.warning(
                "the journal segment %s was deleted while in use; written again as %s", deleted.path, segment.path
            )
        except OSError as error:
            self._failed(error)
        finally:
            self._busy = False
            if self._open is not deleted:
                self._let_go(deleted)

    def close(self) -> None:
        """Writes what waits in memory and lets go of the segment. A record after that begins a new one."""
        with self._lock:
            self.sync(to_disk=self.fsync != "none")
            segment = self._open
            if segment is None or self._busy:
                return
            self._open = None
            self._let_go(segment)
            if segment.is_empty and not self._running:
                segment.path.unlink(missing_ok=True)

    def log_lost(self) -> None:
        """At the end of the process: says how many calls go with it, because the journal could not be written."""
        with self._lock:
            self._unwritten.log_lost(self.directory)

    def _abandon(self) -> None:
        """In the child of a fork: let go of the parent's descriptor, which would keep its lock alive, and start afresh."""
        segment = self._open
        self._start_afresh()
        if segment is not None:
            try:
                segment.close()
            except OSError:
                pass


# No segment may be half open at a fork.
_journals = forks.members(forks.Turn.JOURNALS, Journal._abandon, lambda journal: journal._lock)
