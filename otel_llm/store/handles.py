"""Which files this process has open, whoever opened them.

DuckDB locks its files with POSIX locks. Those do not hold within a process, and a process loses all of its locks on a file as
soon as it closes any descriptor of that file. So before we open the file of a store ourselves we look whether the app has it
open in a DuckDB connection of its own, and do not close it before that does.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

_DIRECTORY: Final = Path("/dev/fd")

_parked: set[int] = set()
"""Descriptors of ours that are kept open for the sake of the app's locks. Whoever uses it holds `guard.mutex`."""


def others(file: os.stat_result) -> list[int]:
    """The descriptors of `file` in this process, but for those of ours that are parked. Raises OSError where none can be told."""
    return [fd for fd in _descriptors() if fd not in _parked and _is(fd, file)]


def any_writes(descriptors: list[int]) -> bool:
    """Whether one of `descriptors` is open to write."""
    return any(_access(fd) != os.O_RDONLY for fd in descriptors)


def let_go(fd: int) -> None:
    """Closes `fd`, or keeps it open for as long as something else in this process has the same file open."""
    _parked.add(fd)
    sweep()


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
    return [int(path.name) for path in _DIRECTORY.iterdir()]


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


os.register_at_fork(after_in_child=_after_fork_in_child)
