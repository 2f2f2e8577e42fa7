"""Reading and writing at an offset, and putting a file on disk, where the system has its own call for that and where it has not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["fdatasync", "pread", "pwrite"]

_moving: Final = threading.Lock()
"""Without `pread` a descriptor is moved and put back, which another thread must not come between."""


@contextmanager
def _moved(fd: int, offset: int) -> Iterator[None]:
    with _moving:
        before = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            yield
        finally:
            os.lseek(fd, before, os.SEEK_SET)


def pread_by_moving(fd: int, length: int, offset: int) -> bytes:
    """As `os.pread`."""
    with _moved(fd, offset):
        return os.read(fd, length)


def pwrite_by_moving(fd: int, data: bytes | memoryview, offset: int) -> int:
    """As `os.pwrite`."""
    with _moved(fd, offset):
        return os.write(fd, data)


pread = getattr(os, "pread", pread_by_moving)
pwrite = getattr(os, "pwrite", pwrite_by_moving)


def fdatasync(fd: int) -> None:
    """What was written is on disk when this returns."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)
