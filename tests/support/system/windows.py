"""A stand-in for Windows, as far as Python shows it: importing this takes away what only POSIX has, and puts `msvcrt` there.

No Windows is to be had here. What is told of it stands on its documentation: `_locking`, `LockFileEx`, `CreateFile` (sharing), and
`os`, `msvcrt` of Python's. A file that is open can be neither renamed, replaced nor deleted; one that is opened without `O_BINARY`
is a text file.
"""

from __future__ import annotations

import asyncio  # noqa: F401  (it and what stands below are written for both, and choose as they are imported)
import concurrent.futures.thread  # noqa: F401
import errno
import fcntl
import logging.handlers  # noqa: F401
import os
import shutil
import struct
import subprocess  # noqa: F401
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import duckdb  # noqa: F401
import httpx  # noqa: F401
import openai
import opentelemetry.sdk.trace  # noqa: F401

GONE_MODULES = ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "readline")
GONE = (
    *("fork", "forkpty", "register_at_fork", "getuid", "geteuid", "getgid", "getegid", "setuid", "chown", "fchown", "lchown"),
    *("fchmod", "pread", "pwrite", "preadv", "pwritev", "fdatasync", "getxattr", "setxattr", "removexattr", "listxattr"),
    *("mkfifo", "mknod", "killpg", "getpgid", "setsid", "sched_getaffinity", "sync"),
    *("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_DIRECTORY", "O_SYNC", "O_DSYNC"),
)  # fmt: skip
O_BINARY = 0x40000000

text_files: list[str] = []
"""What was opened without `O_BINARY`."""

_real_open, _real_fcntl = os.open, fcntl
_close, _cloexec = os.close, os.O_CLOEXEC
_FLOCK = struct.Struct("@hhqqi4x")


def _locking(fd: int, mode: int, count: int) -> None:
    kind = _real_fcntl.F_UNLCK if mode == 0 else _real_fcntl.F_WRLCK
    flock = _FLOCK.pack(kind, os.SEEK_SET, os.lseek(fd, 0, os.SEEK_CUR), count, 0)
    try:
        try:
            _real_fcntl.fcntl(fd, _real_fcntl.F_OFD_SETLK, flock)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # Open to read, which does for Windows; here it is looked through another one.
            other = _real_open(f"/proc/self/fd/{fd}", os.O_RDWR | _cloexec)
            try:
                _real_fcntl.fcntl(other, _real_fcntl.F_OFD_SETLK, flock)
            finally:
                _close(other)
    except OSError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error


def _open(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
    if not flags & O_BINARY:
        text_files.append(os.fsdecode(path))
    return _real_open(path, flags & ~O_BINARY | _cloexec, mode, **more)


def _is_open(path: Any) -> bool:
    """Whether any process has it open."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.path.samestat(os.stat(descriptor), found):
                return True
        except OSError:
            continue
    return False


def _keeps_what_is_open(function: Any, *, both: bool) -> Any:
    def call(path: Any, *arguments: Any, **more: Any) -> Any:
        for each in (path, *(arguments[:1] if both else ())):
            if isinstance(each, str | os.PathLike) and not Path(each).is_dir() and _is_open(each):
                raise PermissionError(
                    errno.EACCES, "The process cannot access the file because it is being used", str(each)
                )
        return function(path, *arguments, **more)

    return call


def _stand_in() -> None:
    msvcrt: Any = types.ModuleType("msvcrt")
    msvcrt.LK_UNLCK, msvcrt.LK_LOCK, msvcrt.LK_NBLCK = 0, 1, 2
    msvcrt.locking = _locking
    sys.modules["msvcrt"] = msvcrt
    for name in GONE_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in GONE:
        if hasattr(os, name):
            delattr(os, name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    operating: Any = os
    operating.O_BINARY, operating.O_NOINHERIT = O_BINARY, 0
    operating.open = _open
    tempfile._bin_openflags |= O_BINARY  # type: ignore[attr-defined]
    operating.supports_fd = os.supports_fd - {os.utime, os.chmod}
    operating.rename = _keeps_what_is_open(os.rename, both=True)
    operating.replace = _keeps_what_is_open(os.replace, both=True)
    operating.unlink = operating.remove = _keeps_what_is_open(os.unlink, both=False)


openai.OpenAI(api_key="none").close()  # which imports its transport
_stand_in()
