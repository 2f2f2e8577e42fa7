"""The journal: this process's own append-only file, one write per record.

Lines are JSON with a checksum (see `record.py`). Their fields:

    header  {"k":"h","v":1,"w":writer,"pid":…,"sdk":otel-llm version,"r":{resource attributes}}
    start   {"k":"s","t":trace id,"s":span id,"p":parent span id or null,"n":name,"kd":span kind,"st":start ns,
             "a":{attributes},"sc":scope name,"scv":scope version,"f":trace flags,
             "ag":enclosing agent's name,"wf":enclosing workflow's name,"r":{resource, where not the header's},
             "x":1 where another span stands for this call in the account}
    end     the same and "et":end ns,"sts":status code,"std":status description,
             "e":[{"name","time_unix_nano","attributes"}],"l":[{"trace_id","span_id","attributes"}]

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
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from otel_llm.store.journal import locks, record
from otel_llm.support import faults, files, fork_guard, forks
from otel_llm.version import __version__

_logger = logging.getLogger("otel_llm")

FORMAT_VERSION: Final = 1
MAX_WAITING: Final = 16 * 2**20
"""Bytes of ended calls that are kept in memory while the journal cannot be written."""
MAX_RUNNING: Final = 10_000
"""Start lines kept in memory; spans that never end must not fill it."""
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
        self.records = 0
        """Records taken, in this process."""
        self.dropped = 0
        """Ended calls that could not be kept: the file system refused them until the memory set aside was full."""
        self._told_lost = 0  # of those, how many the log has told of
        self.last_error: str | None = None
        self._start_afresh()
        _journals.add(self)

    def _start_afresh(self) -> None:
        """The state of a writer that has written nothing: at construction, and in the child of a fork."""
        self._lock = threading.RLock()
        self._writer = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}"
        self._sequence = 0
        self._fd = -1
        self._path: Path | None = None
        self._size = 0
        self._empty_size = 0  # size of a segment that holds nothing but its header and what it took over
        self._opened_at = 0.0
        self._retry_at = 0.0
        self._torn = False  # the last write stopped in the middle of a line
        self._starts_missing = False  # some start lines are in memory only
        self._busy = False
        self._warned = False
        self._unsynced = False
        self._running: dict[int, bytes] = {}
        self._waiting: deque[bytes] = deque()
        self._waiting_size = 0

    @property
    def segment(self) -> Path | None:
        """The open segment, if there is one."""
        return self._path

    @property
    def position(self) -> tuple[Path | None, int]:
        """The open segment and its size: whoever saw this position has seen every record written so far."""
        return self._path, self._size

    @property
    def waiting(self) -> int:
        """Ended calls that are in memory only, because the file system refuses them."""
        return len(self._waiting)

    # --- writing ------------------------------------------------------------------------------------------------------

    def append(self, entry: record.Record, *, start_of: int | None = None, end_of: int | None = None) -> None:
        """Writes one record. `start_of` and `end_of` are the id of the call that it begins or ends."""
        line = record.encode(entry)
        outermost = not self._lock._is_owned()  # type: ignore[attr-defined]
        with self._lock:
            if outermost:
                self._busy = False  # an exception may have kept that from being said
            self.records += 1
            if end_of is not None:
                self._running.pop(end_of, None)
            if start_of is not None:
                if len(self._running) >= MAX_RUNNING:
                    del self._running[next(iter(self._running))]
                self._running[start_of] = line
            if self._busy or self._waiting or self._starts_missing or self._fd < 0:
                self._append_slowly(line, is_start=start_of is not None)
                return
            try:
                self._busy = True
                self._write(line)
                if self._size >= self.segment_size:
                    self._rotate()
                elif self.fsync == "always":
                    os.fdatasync(self._fd)
                elif self.fsync == "interval":
                    self._unsynced = True
            except OSError as error:
                self._keep(line, is_start=start_of is not None)
                self._failed(error)
            except BaseException:  # a signal handler raised, before the write or after it: a line may be there twice
                self._keep(line, is_start=start_of is not None)
                raise
            finally:
                self._busy = False
            if self._waiting or self._starts_missing:  # a failure, or whoever interrupted the write
                self._catch_up()

    def _append_slowly(self, line: bytes, *, is_start: bool) -> None:
        """The way of a record when the file is not simply there to be written to."""
        self._keep(line, is_start=is_start)
        # While busy this is a signal handler or a finalizer that interrupted a write of its own thread: the record waits
        # in memory until that write is done.
        if not self._busy:
            self._catch_up()

    def _keep(self, line: bytes, *, is_start: bool) -> None:
        if is_start:
            self._starts_missing = True  # the line itself is in `_running`
            return
        self._waiting.append(line)
        self._waiting_size += len(line)
        while self._waiting_size > MAX_WAITING:
            self._waiting_size -= len(self._waiting.popleft())
            self.dropped += 1

    def _catch_up(self, *, now: bool = False) -> bool:
        """Writes what is in memory only; True where nothing is left. Not before the last failure has had time to pass."""
        if self._busy or (not now and time.monotonic() < self._retry_at):
            return False
        try:
            self._busy = True
            if self._fd < 0:
                self._open_segment()
            elif self._starts_missing:
                self._write(b"".join(self._running.values()))
            self._starts_missing = False
            while self._waiting:
                line = self._waiting[0]
                self._write(line)
                self._waiting.popleft()
                self._waiting_size -= len(line)
            if self.fsync == "always":
                os.fdatasync(self._fd)
            if self._warned:
                self._warned = False
                lost = self._lost_since_told(self.dropped)
                _logger.warning(
                    "the journal %s can be written again; %s",
                    self.directory,
                    f"{lost} calls did not fit in memory and are lost" if lost else "nothing is lost",
                )
        except OSError as error:
            self._failed(error)
            return False
        finally:
            self._busy = False
        return True

    def _write(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        written = os.write(self._fd, data)
        while written < len(data):
            self._torn = True
            data = data[written:]
            self._size += written
            written = os.write(self._fd, data)
        self._torn = False
        self._size += written

    def _failed(self, error: OSError) -> None:
        faults.pass_on(error)  # a time limit of the app's may be a TimeoutError
        self.last_error = str(error)
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        if not self._warned:
            self._warned = True
            _logger.warning(
                "the journal %s cannot be written (%s); calls are kept in memory, up to %d MB. "
                "Free space there or make it writable, or set OTEL_LLM_STORE to another path",
                self.directory,
                error,
                MAX_WAITING >> 20,
            )

    # --- segments -----------------------------------------------------------------------------------------------------

    def _open_segment(self) -> None:
        """Begins the next segment with a header and the start lines of what runs. Raises OSError and changes nothing then."""
        self._make_directory()
        self._sequence += 1
        path = self.directory / f"{self._writer}-{self._sequence:06d}.jsonl"
        with locks.new_and_held(path, os.O_RDWR | os.O_APPEND) as fd:
            beginning = record.encode(self._header()) + b"".join(self._running.values())
            rest = memoryview(beginning)
            while rest:
                rest = rest[os.write(fd, rest) :]
        self._fd, self._path = fd, path
        self._size = self._empty_size = len(beginning)
        self._opened_at = time.monotonic()
        self._torn = False

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

    def _rotate(self) -> None:
        old = self._fd
        try:
            self._open_segment()
        except OSError as error:
            faults.pass_on(error)
            # The full segment still takes lines; only its size is past the limit.
            self.last_error = str(error)
            self._size = 0
            return
        self._close_fd(old)

    def _close_fd(self, fd: int) -> None:
        try:
            if self.fsync != "none":
                os.fdatasync(fd)
        except OSError as error:
            self.last_error = str(error)
        try:
            os.close(fd)
        except OSError:
            pass

    def rotate(self) -> None:
        """Seals the open segment and begins a new one, if there is one."""
        with self._lock:
            if self._fd >= 0 and not self._busy:
                try:
                    self._busy = True
                    self._rotate()
                finally:
                    self._busy = False

    def sync(self, *, to_disk: bool = False) -> bool:
        """Writes what waits in memory; True where nothing is left. `to_disk` makes it survive a power cut as well."""
        outermost = not self._lock._is_owned()  # type: ignore[attr-defined]
        with self._lock:
            if outermost:
                self._busy = False
            done = True
            if self._waiting or self._starts_missing:
                done = self._catch_up(now=True)
            if self._fd >= 0 and (to_disk or self._unsynced):
                try:
                    os.fdatasync(self._fd)
                    self._unsynced = False
                except OSError as error:
                    self.last_error = str(error)
                    done = False
            return done

    def tend(self) -> None:
        """What the background thread does every so often: catch up, sync, rotate by age, notice a file that was deleted."""
        with self._lock:
            if self._fd >= 0 and self._is_deleted():
                self._rescue()
            self.sync()
            aged = time.monotonic() - self._opened_at >= self.segment_age
            if self._fd >= 0 and aged and self._size > self._empty_size:
                self.rotate()

    def _is_deleted(self) -> bool:
        assert self._path is not None
        try:
            mine, there = os.fstat(self._fd), self._path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino)

    def _rescue(self) -> None:
        """The segment was deleted under us: its bytes are ours as long as it is open, and go into a new one."""
        if self._busy:
            return
        old, deleted = self._fd, self._path
        try:
            self._busy = True
            self._open_segment()
            offset = 0
            while chunk := os.pread(old, 2**20, offset):
                offset += len(chunk)
                self._write(chunk)
            _logger.warning("the journal segment %s was deleted while in use; written again as %s", deleted, self._path)
        except OSError as error:
            self._failed(error)
        finally:
            self._busy = False
            if self._fd != old:
                self._close_fd(old)

    def close(self) -> None:
        """Writes what waits in memory and lets go of the segment. A record after that begins a new one."""
        with self._lock:
            self.sync(to_disk=self.fsync != "none")
            if self._fd < 0 or self._busy:
                return
            fd, path = self._fd, self._path
            self._fd, self._path = -1, None
            self._close_fd(fd)
            if path is not None and self._size == self._empty_size and not self._running:
                path.unlink(missing_ok=True)
            self._size = self._empty_size = 0

    def tell_lost(self) -> None:
        """At the end of the process: says how many calls go with it, because the journal could not be written."""
        with self._lock:
            lost = self._lost_since_told(self.dropped + len(self._waiting))
            if lost:
                _logger.error(
                    "%d calls that had ended are lost: the journal %s could not be written (%s)",
                    lost,
                    self.directory,
                    self.last_error,
                )

    def _lost_since_told(self, lost: int) -> int:
        """How many of `lost` calls the log has not told of yet; it is about to."""
        told, self._told_lost = self._told_lost, max(lost, self._told_lost)
        return self._told_lost - told

    def _abandon(self) -> None:
        """In the child of a fork: let go of the parent's descriptor, which would keep its lock alive, and start afresh."""
        fd = self._fd
        self._start_afresh()
        self.records = self.dropped = self._told_lost = 0
        if fd >= 0:
            try:
                os.close(fd)
            except OSError:
                pass


_journals = forks.reset_in_child(Journal._abandon)
# No segment may be half open at a fork.
fork_guard.short_locks.append(lambda: [journal._lock for journal in list(_journals)])
