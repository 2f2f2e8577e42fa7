"""Locks between processes that a dead one cannot keep (`file_locks`).

A writer holds it on its open segment, which tells the living from the dead where process ids, which are reused, do not;
a merge holds it on the store's sidecar file.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from weakref import WeakSet

from otel_llm.support import files, fork_guard, forks
from otel_llm.support.system import file_locks

_FIRST_WAIT: Final = 0.001
_LONGEST_WAIT: Final = 0.02


@contextmanager
def new_and_held(path: Path, flags: int) -> Iterator[int]:
    """Makes the file `path`, open with `flags` and locked: yields its descriptor, which stays open; after an error nothing is left.

    It is born under a hidden name and gets its own when the block has ended: until it is locked and whole, somebody who looks
    would take it for one of the dead. Where a file that is open cannot be renamed it has its name from the first: who looks then
    sees one of the dead that has written nothing, and cannot delete it. Raises OSError.
    """
    hidden = path.with_name(f".{path.name}.tmp") if file_locks.IS_POSIX else path
    fd = files.create(hidden, flags)
    try:
        file_locks.wait_for(fd)
        yield fd
        if hidden != path:
            hidden.rename(path)
    except BaseException:
        os.close(fd)
        hidden.unlink(missing_ok=True)
        raise


def is_held(path: Path) -> bool:
    """Whether a living writer holds `path`. Raises OSError (FileNotFoundError where it is gone)."""
    fd = files.open_own(path)
    try:
        return is_held_elsewhere(fd)
    finally:
        os.close(fd)


def is_held_elsewhere(fd: int) -> bool:
    """Whether a living writer holds the file that is open here, to read, as `fd`. Raises OSError."""
    return file_locks.is_taken(fd)


@contextmanager
def exclusive(path: Path, deadline: float) -> Iterator[None]:
    """Holds the lock file `path`, which is made where it is missing and never deleted.

    Those who wait take turns: who lets go and comes back at once, in a loop, has to queue behind whoever waits.
    Raises TimeoutError where another process holds it beyond `deadline` (monotonic seconds) or where somebody deletes it
    meanwhile, OSError where the file cannot be made.
    """
    with ExitStack() as held:
        with _locked(path.with_name(f"{path.name}.next"), deadline):
            held.enter_context(_locked(path, deadline))
        yield


def hold(path: Path) -> io.FileIO | None:
    """Holds the lock file `path` until what is returned is closed; None where somebody else does. Never waits.

    Raises OSError where the file cannot be made, TimeoutError where it is deleted meanwhile or a merge of this process goes on.
    """
    file = _open(path, time.monotonic())
    try:
        file_locks.take(file.fileno())
        if leads_to(path, file.fileno()):
            return file
    except BlockingIOError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    # Whatever line an exception comes up at, the file is closed with the last reference to it, and the lock is gone.
    file = _open(path, deadline)
    try:
        fd = file.fileno()
        wait = _FIRST_WAIT
        while True:
            try:
                file_locks.take(fd)
                break
            except BlockingIOError:
                if time.monotonic() + wait > deadline:
                    raise TimeoutError(f"{path} is held by another process") from None
            time.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
        if not leads_to(path, fd):  # whoever comes now makes another, which is the one to hold
            raise TimeoutError(f"{path} was deleted while it was waited for")
        yield
    finally:
        file.close()


def _open(path: Path, deadline: float) -> io.FileIO:
    """Opens the lock file `path`. Raises TimeoutError where another thread holds the mutex beyond `deadline`, OSError."""
    taken = False
    mutex = fork_guard.mutex  # a fork replaces it
    try:
        # A fork waits for the mutex. Without it a child could come between these lines, with a descriptor that it does not
        # know of and that keeps the lock alive.
        taken = mutex.acquire(timeout=max(deadline - time.monotonic(), 0))
        if not taken:
            raise TimeoutError(f"{path} is held by another thread")
        file = io.FileIO(files.open_or_create(path), "r+")
        _held.add(file)
        return file
    finally:
        if taken:
            mutex.release()


def leads_to(path: Path, fd: int) -> bool:
    """Whether `path` still is the file that is open as `fd`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


_held: WeakSet[io.FileIO] = WeakSet()


def _after_fork_in_child() -> None:
    """A child that was forked while its parent waited for the lock, or had it, must not keep it alive."""
    for file in list(_held):
        file.close()
    _held.clear()


forks.register(forks.Turn.JOURNAL_LOCKS, after_in_child=_after_fork_in_child)
