"""Writing the store while others read it: a merge writes a copy, which then takes the place of the database.

DuckDB lets a file be open to write in one process or to read in many, and turns away whoever comes at the wrong moment. So the
database is not opened to write at all. What is written is `<store>.next`, a copy; renamed, it becomes the database, in one
step. Whoever reads goes on with the file that he has opened. That one stays as `<store>.spare` and is brought up to date by its
changed blocks for the next merge, unless somebody still reads it: then a new copy is made.

Where that cannot be (somebody has left a write-ahead log, no room for a copy, a file that is not ours or that cannot be renamed),
the database itself is written, as any DuckDB client would.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from otel_llm.store import blocks, handles
from otel_llm.store.errors import StoreBusy
from otel_llm.store.paths import StorePaths

_SMALL: Final = 16 * 2**20
"""Bytes that are copied without a second thought."""
_COPY_RATE: Final = 32 * 2**20
"""Of larger stores, the bytes a second that go into whole copies at most."""
_PATIENCE: Final = 1.0
"""Seconds to wait for those who still read the spare file before a whole copy is made."""
_UNTOUCHED: Final = 0
"""The time of modification that a draft has until something is written to it, in nanoseconds since 1970."""

_fixed: set[Path] = set()
"""Databases that cannot be renamed: a file that is mounted by itself, for instance."""
_failed: set[Path] = set()
"""Databases whose last draft came to nothing: where the disk is full, there may be room for the new rows but not for a copy."""


class Draft:
    """The file that is written: a copy of the database, a new one, or the database itself."""

    def __init__(self, paths: StorePaths) -> None:
        self._paths = paths
        self._target = paths.database.resolve()
        self._source: int | None = None
        self._before: os.stat_result | None = None
        self.file = self._target
        self.reused = False
        """It is made from the spare file, so that damage found in it says nothing of the database."""

    @property
    def in_place(self) -> bool:
        """It is the database itself."""
        return self.file == self._target

    def begin(self) -> None:
        """Makes the copy. Raises StoreBusy where it is worth waiting for a reader to let go of the spare file."""
        try:
            self._begin()
        except StoreBusy:
            self.abandon()
            raise
        except OSError:  # whatever it is, opening the database itself works, or says best why not
            self.abandon()
            self.file = self._target

    def _begin(self) -> None:
        handles.sweep()
        if self._target in _failed:
            _failed.discard(self._target)
            remove_spare(self._paths)
            return
        if self._target in _fixed or self._paths.wal.exists() or _beside(self._target, ".wal").exists():
            return
        _remove(self._paths.next)
        if not self._target.exists():
            self._paths.spare.unlink(missing_ok=True)  # whoever deletes the store wants its contents gone
            self.file = self._paths.next
            return
        self._before = self._target.stat()
        if self._before.st_uid != os.geteuid() or handles.any_writes(handles.others(self._before)):
            return
        self._source = os.open(self._target, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.lockf(self._source, fcntl.LOCK_SH | fcntl.LOCK_NB)  # nobody writes to it while it is copied
        self._before = os.fstat(self._source)
        if not (self._reuse_spare(self._source) or self._copy_whole(self._source, self._before)):
            self.abandon()
            return
        os.utime(self._paths.next, ns=(time.time_ns(), _UNTOUCHED))
        self.file = self._paths.next
        # Others may write from here on; `publish` sees whether they have. A lock of the app's own would go with ours.
        if handles.others(self._before) == [self._source]:
            fcntl.lockf(self._source, fcntl.LOCK_UN)

    def _reuse_spare(self, source: int) -> bool:
        """Makes the draft from the spare file, if there is one that nobody reads."""
        spare = self._paths.spare
        try:
            stat = spare.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not handles.others(stat) and not os.path.samestat(stat, os.fstat(source)):
            fd = os.open(spare, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                spare.rename(self._paths.next)  # first: half up to date, it must not be taken for the spare file
                _belong_alike(fd, os.fstat(source))
                blocks.copy_changed(source, fd)
                self.reused = True
                return True
            except (BlockingIOError, PermissionError):
                pass  # somebody reads it
            finally:
                os.close(fd)
        size, age = stat.st_size, time.time() - os.fstat(source).st_mtime
        if size > _SMALL and 0 <= age < _PATIENCE:
            raise StoreBusy(f"the store {self._paths.database} is being read, and its spare file as well")
        spare.unlink(missing_ok=True)
        return False

    def _copy_whole(self, source: int, stat: os.stat_result) -> bool:
        """Makes the draft anew, unless that would be done too often for the size of the store."""
        if stat.st_size > _SMALL and (time.time() - stat.st_mtime) * _COPY_RATE < stat.st_size:
            return False
        fd = os.open(self._paths.next, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _belong_alike(fd, stat)
            blocks.copy_changed(source, fd)
        finally:
            os.close(fd)
        return True

    def begin_anew(self) -> None:
        """The database was damaged and is out of the way: the next thing that is opened here is a new one."""
        self.abandon()
        self._before = None

    def publish(self) -> None:
        """Puts the draft, which nobody has open any more, in the place of the database.

        Raises StoreBusy where that has changed meanwhile: nothing was written then.
        """
        if self.in_place:
            return
        try:
            if _beside(self.file, ".wal").exists():
                raise StoreBusy(f"{self.file} could not be written to its end")
            if self._before is None:
                self._put_first()
            elif self._source is None or self.file.stat().st_mtime_ns == _UNTOUCHED:
                _sync(self.file)  # a block of which a power cut kept the checksum alone would pass for up to date
                self.file.replace(self._paths.spare)
            else:
                self._replace(self._source, self._before)
        finally:
            self.abandon()

    def _put_first(self) -> None:
        try:
            os.link(self.file, self._target)
        except FileExistsError:
            raise StoreBusy(f"somebody else has just made {self._target}") from None
        except OSError:  # a file system without hard links
            self.file.rename(self._target)
        _sync(self._target.parent)

    def _replace(self, source: int, before: os.stat_result) -> None:
        try:
            fcntl.lockf(source, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise StoreBusy(f"the store {self._target} has been opened to write while it was merged") from None
        if not _unchanged(self._target, before):
            raise StoreBusy(f"{self._target} was changed or replaced while it was merged")
        with suppress(OSError):  # without hard links each merge makes a whole copy
            os.link(self._target, self._paths.spare)
        try:
            self.file.replace(self._target)
        except OSError as error:
            self._paths.spare.unlink(missing_ok=True)
            _fixed.add(self._target)
            raise StoreBusy(
                f"{self._target} cannot be replaced: {error.strerror or error}; it is written as it is"
            ) from error
        # On the disk before the file that was there is written again: until then a power cut may undo the rename.
        _sync(self._target.parent)

    def abandon(self) -> None:
        """Lets go of the database, and leaves nothing behind."""
        source, self._source = self._source, None
        if source is not None:
            handles.let_go(source)
        _remove(self._paths.next)


@contextmanager
def draft(paths: StorePaths) -> Iterator[Draft]:
    """What to open to write; it becomes the database when the block ends, and nothing has happened where that raises.

    The caller holds the merge lock and `guard.mutex`. Raises StoreBusy.
    """
    made = Draft(paths)
    made.begin()
    try:
        yield made
    except BaseException as error:
        made.abandon()
        if not made.in_place and not isinstance(error, StoreBusy):
            _failed.add(paths.database.resolve())
        raise
    made.publish()


def snapshot(paths: StorePaths, target: Path) -> None:
    """Copies the database as it is now to the new file `target`. The caller holds `guard.mutex`.

    Raises StoreBusy where somebody is writing to it, OSError.
    """
    source = os.open(paths.database, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.lockf(source, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with target.open("x+b") as copy:
            blocks.copy_changed(source, copy.fileno())
        if paths.wal.exists():
            shutil.copy(paths.wal, _beside(target, ".wal"))
    except (BlockingIOError, PermissionError):
        raise StoreBusy(f"the store {paths.database} is being written by another process; try again") from None
    finally:
        handles.let_go(source)


def remove_spare(paths: StorePaths) -> None:
    """Gives the room of the spare file back; the next merge makes a whole copy. Raises OSError."""
    paths.spare.unlink(missing_ok=True)


def _belong_alike(fd: int, stat: os.stat_result) -> None:
    """Whoever may read the database may read the file behind `fd`, and nobody else."""
    os.fchmod(fd, stat.st_mode & 0o777)
    if os.fstat(fd).st_gid != stat.st_gid:
        os.fchown(fd, -1, stat.st_gid)


def _unchanged(path: Path, before: os.stat_result) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(now, before) and (now.st_mtime_ns, now.st_size) == (before.st_mtime_ns, before.st_size)


def _remove(path: Path) -> None:
    for each in (path, _beside(path, ".wal")):
        with suppress(OSError):
            each.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
