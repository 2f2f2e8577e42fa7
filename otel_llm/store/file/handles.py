"""Which files this process has open, whoever opened them, and locks of ours that leave the app's alone.

DuckDB locks its files with POSIX locks. Those do not hold within a process, a process that takes one on a file replaces the one
that it had, and it loses all of them as soon as it closes any descriptor of that file. So we lock by open file descriptions where
the system can. And before we open the file of a store ourselves we look whether the app has it open in a DuckDB connection of its
own, and do not close it before that does.

On Windows DuckDB opens its files so that nobody else can open them at the same time; there is nothing to lock.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from typing import Final

from otel_llm.support import forks
from otel_llm.support.system import file_locks

if file_locks.IS_POSIX:
    import fcntl

SHARED: Final = 1
EXCLUSIVE: Final = 2
NONE: Final = 8
"""Kinds of locks, by the numbers that `flock` and `lockf` have for them everywhere."""

_DIRECTORY: Final = "/dev/fd"
_FLOCK: Final = struct.Struct("@hhqqi4x")
"""`struct flock` of Linux: type, whence, start, length, process."""

_parked: set[int] = set()
"""Descriptors of ours that are kept open for the sake of the app's locks. Whoever uses it holds `guard.mutex`."""
_inherited: set[int] = set()
"""Those of a merge in the middle of which this process was forked: nobody uses them."""


def others(file: os.stat_result) -> list[int]:
    """The descriptors of `file` in this process, but for those that nobody uses. Raises OSError where none can be told."""
    return [fd for fd in _descriptors() if fd not in _parked and fd not in _inherited and _is(fd, file)]


def lock(fd: int, kind: int) -> None:
    """Takes a lock that is `SHARED` or `EXCLUSIVE` on the file behind `fd` or lets go of it (`NONE`).

    It conflicts with the locks that DuckDB takes, in this process as well. Raises BlockingIOError, OSError.
    """
    if not file_locks.IS_POSIX:
        return
    if sys.platform == "linux":
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(_type_of(kind), os.SEEK_SET, 0, 0, 0))
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # not one of those who only look like Linux
                raise
    app = [other for other in others(os.fstat(fd)) if other != fd]
    if kind == NONE:
        if not app:
            fcntl.lockf(fd, NONE)  # a lock of the app's own would go with ours
        return
    if any(_access(other) != os.O_RDONLY for other in app):
        raise BlockingIOError(errno.EAGAIN, "open to write in this process")
    fcntl.lockf(fd, kind | fcntl.LOCK_NB)


def _type_of(kind: int) -> int:
    return {SHARED: fcntl.F_RDLCK, EXCLUSIVE: fcntl.F_WRLCK, NONE: fcntl.F_UNLCK}[kind]


def let_go(fd: int) -> None:
    """Closes `fd`, or keeps it open for as long as something else in this process has the same file open."""
    if not file_locks.IS_POSIX:
        os.close(fd)
        return
    _parked.add(fd)  # first: whatever comes up in here, the next sweep closes it
    try:
        lock(fd, NONE)
    except OSError:  # it goes when the descriptor is closed
        pass
    sweep()


def disown(file: os.stat_result) -> None:
    """Has the descriptors of `file` count for nothing: they are those of the parent of this process. Raises OSError."""
    _inherited.update(others(file))


def sweep() -> None:
    """Closes what was kept open for somebody who has let go meanwhile."""
    for fd in list(_parked):
        try:
            needed = bool(others(os.fstat(fd)))
        except OSError:
            needed = True
        if not needed:
            _parked.discard(fd)
            os.close(fd)


def _descriptors() -> list[int]:
    return [int(name) for name in os.listdir(_DIRECTORY)]  # noqa: PTH208  (three times as fast)


def _is(fd: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:  # closed meanwhile
        return False


def _access(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return os.O_RDONLY


def _after_fork_in_child() -> None:
    """A child has none of its parent's POSIX locks, and so nothing to keep."""
    for fd in _parked:
        os.close(fd)
    _parked.clear()


forks.register(forks.Turn.PARKED_FILES, after_in_child=_after_fork_in_child)
