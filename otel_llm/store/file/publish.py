"""Writing the store while others read it: a merge writes a copy, which then takes the place of the database.

DuckDB lets a file be open to write in one process or to read in many, and turns away whoever comes at the wrong moment. So the
database is not opened to write at all. What is written is `<store>.next`, a copy; renamed, it becomes the database, in one
step. Whoever reads goes on with the file that he has opened. That one stays as `<store>.spare` and is brought up to date by its
changed blocks for the next merge, unless somebody still reads it or it is not as it was left: then a new copy is made.

Where that cannot be (somebody has left a write-ahead log, no room for a copy, a file that cannot be renamed, Windows),
the database itself is written, as any DuckDB client would.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Final

from otel_llm.store.errors import StoreBusy
from otel_llm.store.file import blocks, handles, spare_note
from otel_llm.store.paths import StorePaths
from otel_llm.support import files, forks
from otel_llm.support.system import file_locks, users

_logger = logging.getLogger("otel_llm")

_SMALL: Final = 16 * 2**20
"""Bytes that are copied without a second thought."""
_COPY_RATE: Final = 32 * 2**20
"""Of larger stores, the bytes a second that go into whole copies at most. The lock file's time says when the last was made."""
_ROOM: Final = 8 * 2**20
"""Bytes that must be free besides those of a whole copy: new rows take some, and so may others on the same disk."""
_PATIENCE: Final = 1.0
"""Seconds to wait for those who still read the spare file before a whole copy is made."""
_REST: Final = 0.5
"""Seconds that a small file is left alone after it was the database: who has opened it may take that long to lock it."""
_COMPARED: Final = 8 * 2**20
"""Bytes of the spare file that each merge compares whole, not by checksum only. That takes 2 ms where both files are in memory."""
_UNTOUCHED: Final = 0
"""The time of modification that a working copy has until something is written to it, in nanoseconds since 1970."""

_ABANDONED: Final = 3600.0
"""Seconds after which a copy that nobody writes to is that of a dead process."""
_ACL: Final = "system.posix_acl_access"
_NO_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""What a directory says that cannot be synced, on some file systems or because it may not be read."""

_fixed: set[Path] = set()
"""Databases that cannot be renamed, such as a file that is mounted by itself, or that must be written in place otherwise."""
_failed: set[Path] = set()
"""Databases whose last working copy came to nothing: on a full disk there may be room for the new rows but not for a copy."""


_under_way: WorkingCopy | None = None
"""The one that this process writes now."""


class WorkingCopy:
    """The file that is written: a copy of the database, a new one, or the database itself."""

    def __init__(self, paths: StorePaths) -> None:
        self._paths = paths
        self._target = paths.database
        self._source: int | None = None
        self._before: os.stat_result | None = None
        self._made: os.stat_result | None = None
        self.file = self._target
        self.reused = False
        """It is made from the spare file, so that damage found in it says nothing of the database."""
        self._spare_note = spare_note.Note()

    @property
    def in_place(self) -> bool:
        """It is the database itself."""
        return self.file == self._target

    def begin(self) -> None:
        """Makes the copy. Raises StoreBusy where it is worth waiting for a reader to let go of the spare file, or for the app."""
        try:
            self._begin()
        except OSError:  # whatever it is, opening the database itself works, or says best why not
            self.abandon()
            self.file = self._target
        if self.in_place:
            self._require_closed_here()

    def _require_closed_here(self) -> None:
        """DuckDB's locks would not keep it from writing to what it has open in this process by another name."""
        try:
            used = bool(handles.others(self._target.stat()))
        except OSError:  # it is not there, or cannot be told
            return
        if used:
            raise StoreBusy(
                f"the store {self._target} is open in this process itself; it can be written when that is closed"
            )

    def _begin(self) -> None:
        handles.sweep()
        if self._target in _failed:
            _failed.discard(self._target)
            remove_spare(self._paths)
            return
        if self._target in _fixed or self._paths.wal.exists() or not file_locks.IS_POSIX:
            return
        _remove(self._paths.next)
        for file in (self._paths.next, _beside(self._paths.next, ".wal")):
            if os.path.lexists(file):
                raise files.NotOurs(f"{file} is in the way")
        if not self._target.exists():
            _unlink(self._paths.spare)  # whoever deletes the store wants its contents gone
            self.file = self._paths.next
            return
        if users.effective() not in (0, self._target.stat().st_uid):
            return
        self._source = files.open_own(self._target)
        handles.lock(self._source, handles.SHARED)  # nobody writes to it while it is copied
        self._before = os.fstat(self._source)
        self._spare_note = spare_note.read(self._paths)
        if not (self._reuse_spare(self._source) or self._copy_whole(self._source, self._before)):
            self.abandon()
            return
        os.utime(self._paths.next, ns=(time.time_ns(), _UNTOUCHED))
        self.file = self._paths.next
        handles.lock(self._source, handles.NONE)  # others may write from here on; `publish` sees whether they have

    def _reuse_spare(self, source: int) -> bool:
        """Makes the working copy from the spare file, if there is one that nobody reads."""
        spare = self._paths.spare
        try:
            stat = spare.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        if S_ISREG(stat.st_mode) and spare_note.identity(stat) != self._spare_note.spare:
            spare.unlink(missing_ok=True)
            return False
        fresh = stat.st_size <= _SMALL and 0 <= time.time() - stat.st_ctime < _REST
        # One that has another name, as a backup of hard links has, is somebody else's too; so is a link.
        ours = S_ISREG(stat.st_mode) and files.owned(stat)
        if not fresh and stat.st_nlink <= 1 and ours and not handles.others(stat):
            fd = files.open_own(spare, os.O_RDWR)
            try:
                handles.lock(fd, handles.EXCLUSIVE)
                spare.rename(self._paths.next)  # first: half up to date, it must not be taken for the spare file
                belong_alike(fd, source)
                blocks.copy_changed(source, fd)
                self._compare(source, fd)
                self.reused = True
                return True
            except (BlockingIOError, PermissionError):
                pass  # somebody reads it
            finally:
                os.close(fd)
        size, age = stat.st_size, time.time() - os.fstat(source).st_mtime
        if size > _SMALL and 0 <= age < _PATIENCE:
            raise StoreBusy(f"the store {self._paths.database} is being read, and its spare file as well")
        _unlink(spare)
        return False

    def _compare(self, source: int, spare: int) -> None:
        compared, damaged = blocks.compare(source, spare, self._spare_note.compared, _COMPARED)
        self._spare_note = replace(self._spare_note, compared=compared)
        if damaged:
            _logger.warning(
                "%d blocks of %s or of its spare file are not what was written there, and are mended; see to the disk",
                damaged,
                self._target,
            )

    def _copy_whole(self, source: int, stat: os.stat_result) -> bool:
        """Makes the working copy anew, unless that would be done too often for the size of the store."""
        if stat.st_size > _SMALL and 0 <= time.time() - self._paths.lock.stat().st_mtime < stat.st_size / _COPY_RATE:
            return False
        disk = shutil.disk_usage(self._target.parent)
        if disk.total and disk.free < stat.st_size + _ROOM:
            return False
        fd = files.create(self._paths.next)
        try:
            belong_alike(fd, source)
            blocks.copy_changed(source, fd)
        finally:
            os.close(fd)
        with suppress(OSError):  # it is somebody else's
            os.utime(self._paths.lock)
        self._spare_note = replace(self._spare_note, database=spare_note.identity(stat))
        return True

    def opened(self) -> None:
        """DuckDB has it open now: this is the file that is to become the database, and no other of its name."""
        self._made = self.file.stat()

    def begin_anew(self) -> None:
        """The database was damaged and is out of the way: the next thing that is opened here is a new one."""
        self.abandon()
        self._before = None

    def publish(self) -> None:
        """Puts the working copy, which nobody has open any more, in the place of the database.

        Raises StoreBusy where that has changed meanwhile: nothing was written then.
        """
        if self.in_place:
            return
        changed = True
        try:
            if _beside(self.file, ".wal").exists():
                raise StoreBusy(f"{self.file} could not be written to its end")
            now = _stat(self.file)
            if now is None or self._made is None or not os.path.samestat(now, self._made):
                # By hand, or by another merge, which has begun because somebody deleted the lock file.
                raise StoreBusy(f"{self.file} was deleted while it was written")
            if self._before is None:
                self._put_first()
            elif self._source is None or now.st_mtime_ns == _UNTOUCHED:
                changed = False
                _sync(self.file)  # a block of which a power cut kept the checksum alone would pass for up to date
                _unlink(self._paths.spare)
                if not os.path.lexists(self._paths.spare):  # something that is no file of ours
                    self.file.rename(self._paths.spare)
            else:
                self._replace(self._source, self._before)
        finally:
            self.abandon()
        self._note(changed=changed)

    def _note(self, *, changed: bool) -> None:
        """For the next merge, when nothing touches the two files any more.

        Where somebody else has put the database there or written to it, it is not what the working copy was made equal to by
        checksums, and so does not do as the spare file of that.
        """
        spare = _stat(self._paths.spare)
        if not changed:
            spare_note.write(self._paths, replace(self._spare_note, spare=spare_note.identity(spare)))
            return
        kept = self._before is None or spare_note.identity(self._before) == self._spare_note.database
        note = spare_note.Note(
            spare_note.identity(_stat(self._target)),
            spare_note.identity(spare) if kept else (),
            self._spare_note.compared,
        )
        spare_note.write(self._paths, note)

    def _put_first(self) -> None:
        try:
            os.link(self.file, self._target)
        except FileExistsError:
            raise StoreBusy(f"somebody else has just made {self._target}") from None
        except OSError:  # a file system without hard links
            if os.path.lexists(self._target):
                raise StoreBusy(f"somebody else has just made {self._target}") from None
            self.file.rename(self._target)
        _sync_directory(self._target.parent)

    def _replace(self, source: int, before: os.stat_result) -> None:
        try:
            handles.lock(source, handles.SHARED)
        except OSError:
            raise StoreBusy(f"the store {self._target} has been opened to write while it was merged") from None
        if self._paths.wal.exists() or not unchanged(self._target, before):
            raise StoreBusy(f"{self._target} was changed or replaced while it was merged")
        with suppress(OSError):  # without hard links each merge makes a whole copy
            os.link(self._target, self._paths.spare)
        try:
            self.file.replace(self._target)
        except OSError as error:
            _unlink(self._paths.spare)
            if error.errno != errno.ENOENT:
                _fixed.add(self._target)
            raise StoreBusy(
                f"{self._target} cannot be replaced: {error.strerror or error}; it is written as it is"
            ) from error
        # On the disk before the file that was there is written again: until then a power cut may undo the rename.
        _sync_directory(self._target.parent)

    def disown(self) -> None:
        """This process is a child that was forked in the middle: all of it is its parent's."""
        source, self._source = self._source, None
        if source is not None:
            os.close(source)
        with suppress(OSError):
            handles.disown(self.file.stat())
        if not self.in_place:
            _fixed.add(self._target)  # for DuckDB, the other name is in use in this process from now on

    def abandon(self) -> None:
        """Lets go of the database, and leaves nothing behind."""
        source, self._source = self._source, None
        if source is not None:
            handles.let_go(source)
        _remove(self._paths.next)


@contextmanager
def working_copy(paths: StorePaths) -> Iterator[WorkingCopy]:
    """What to open to write; it becomes the database when the block ends, and nothing has happened where that raises.

    The caller holds the merge lock and `guard.mutex`. Raises StoreBusy.
    """
    global _under_way
    made = _under_way = WorkingCopy(paths)
    try:
        made.begin()
        try:
            yield made
        except Exception as error:
            if not made.in_place and not isinstance(error, StoreBusy):
                _failed.add(paths.database)
            raise
        made.publish()
    finally:
        made.abandon()
        _under_way = None


def snapshot(paths: StorePaths, target: Path) -> None:
    """Copies the database as it is now to the new file `target`. The caller holds `guard.mutex`.

    Raises StoreBusy where somebody is writing to it, OSError.
    """
    source = files.open_own(paths.database)
    try:
        handles.lock(source, handles.SHARED)
        with os.fdopen(files.create(target), "r+b") as copy:
            blocks.copy_changed(source, copy.fileno())
        if paths.wal.exists():
            with (
                os.fdopen(files.open_own(paths.wal), "rb") as log,
                os.fdopen(files.create(_beside(target, ".wal")), "wb") as log_copy,
            ):
                shutil.copyfileobj(log, log_copy)
    except (BlockingIOError, PermissionError):
        raise StoreBusy(f"the store {paths.database} is being written by another process; try again") from None
    finally:
        handles.let_go(source)


def remove_spare(paths: StorePaths) -> None:
    """Gives the room of the spare file back; the next merge makes a whole copy. Raises OSError."""
    _unlink(paths.spare)


def remove_leftovers(path: Path) -> None:
    """Deletes the copies beside `path` whose makers died over them: hidden names like `.usage.duckdb.1f2e.tmp`. Raises nothing."""
    with suppress(OSError):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def belong_alike(file: int | Path, like: int | Path) -> None:
    """Whoever may read the file `like` may read `file`, and nobody else. Raises OSError."""
    stat, own = os.stat(like), os.stat(file)
    owner = stat.st_uid if users.effective() == 0 else own.st_uid
    if (owner, stat.st_gid) != (own.st_uid, own.st_gid):
        os.chown(file, owner, stat.st_gid)
    os.chmod(file, stat.st_mode & 0o777)  # noqa: PTH101  (a descriptor has no Path)
    acl = _acl(like)
    if acl != _acl(file):
        os.removexattr(file, _ACL) if acl is None else os.setxattr(file, _ACL, acl)


def _acl(file: int | Path) -> bytes | None:
    """Who else may read it, where the system has such lists."""
    if not hasattr(os, "getxattr"):
        return None
    try:
        return os.getxattr(file, _ACL)
    except OSError:
        return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def unchanged(path: Path, before: os.stat_result) -> bool:
    """Whether `path` still leads to the file of `before`, and nobody has written to it."""
    now = _stat(path)
    if now is None:
        return False
    return os.path.samestat(now, before) and (now.st_mtime_ns, now.st_size) == (before.st_mtime_ns, before.st_size)


def _remove(path: Path) -> None:
    for each in (path, _beside(path, ".wal")):
        _unlink(each)


def _unlink(path: Path) -> None:
    """Deletes a file or a link that stands under a name of ours; what is neither, a device for instance, was not made by us."""
    with suppress(OSError):
        stat = path.lstat()
        if S_ISREG(stat.st_mode) or S_ISLNK(stat.st_mode):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _after_fork_in_child() -> None:
    global _under_way
    if _under_way is not None:  # the fork has not waited for its end any longer
        _under_way.disown()
        _under_way = None


forks.register(forks.Turn.PUBLISHING, after_in_child=_after_fork_in_child)
