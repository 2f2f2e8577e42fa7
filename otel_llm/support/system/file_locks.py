"""A lock on a whole file that a dead process cannot keep: `flock` of POSIX, `msvcrt.locking` of Windows.

Either belongs to what was opened and not to the process: who opens the file once more, in the same process, is kept out too. It is
freed by the system with the last descriptor.

Windows locks ranges of bytes, and keeps others from reading those: so it is one that no file of ours reaches. It has no shared
locks in Python: who only looks holds it for a moment, in which a second one who looks takes the first for its owner.
"""

from __future__ import annotations

import errno
import os
import time
from importlib import import_module
from typing import Any, Final

try:
    import fcntl
except ModuleNotFoundError:
    _msvcrt: Any = import_module("msvcrt")  # a platform without either keeps no account
    IS_POSIX = False
else:
    IS_POSIX = True
"""Whether files behave as POSIX has it: one that is open can be renamed, replaced and deleted."""

_BYTE: Final = 2**31 - 2
"""Which one is locked. `msvcrt` takes no offset of more than 31 bits, and what is locked here is smaller than that."""
_WAIT: Final = 0.001


def take(fd: int) -> None:
    """Locks the file behind `fd`. Raises BlockingIOError where somebody else has, OSError."""
    if IS_POSIX:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        _locking(fd, _msvcrt.LK_NBLCK)


def wait_for(fd: int) -> None:
    """Locks the file behind `fd`, which nobody holds for longer than it takes to look. Raises OSError."""
    if IS_POSIX:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    while True:
        try:
            _locking(fd, _msvcrt.LK_NBLCK)
            return
        except BlockingIOError:
            time.sleep(_WAIT)


def is_taken(fd: int) -> bool:
    """Whether somebody else has locked the file that is open here, to read, as `fd`. Raises OSError."""
    try:
        if IS_POSIX:
            # Shared, so that two who look do not take each other for the owner.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
        else:
            _locking(fd, _msvcrt.LK_NBLCK)
            _locking(fd, _msvcrt.LK_UNLCK)
    except BlockingIOError:
        return True
    return False


def _locking(fd: int, mode: int) -> None:
    before = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        os.lseek(fd, _BYTE, os.SEEK_SET)  # it locks where the descriptor is
        _msvcrt.locking(fd, mode, 1)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDEADLK, errno.EAGAIN):
            raise
        raise BlockingIOError(errno.EAGAIN, "locked by another process") from error
    finally:
        os.lseek(fd, before, os.SEEK_SET)
