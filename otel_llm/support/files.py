"""Opening and making files where somebody else may have put something in their place.

A store may lie in a directory that others can write to (`/tmp`, a shared data directory), and what stands there under one of
its names may be anything: a FIFO on which opening waits for ever, a device, a link to a file of ours, a file of another user.
So whatever of a store is opened is opened here: a regular file, by its own name, that belongs to who runs this; and what is
made is new and open to its owner alone, whatever the umask says.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from otel_llm.support.system import users

PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
OTHERS_MAY_WRITE: Final = 0o022

_FLAGS: Final = ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_NOINHERIT", "O_BINARY")
_SAFELY: Final = sum(getattr(os, name, 0) for name in _FLAGS)
"""A link is not followed, and a FIFO or a device is not waited for: `os.fstat` then says what it is. Windows has the last two."""
_NO_FILE: Final = {errno.ELOOP: "a link", errno.ENXIO: "a socket or a FIFO", errno.EISDIR: "a directory"}
"""What the system says in place of opening something that is no regular file. (FreeBSD has EMLINK for a link.)"""
_KINDS: Final = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


_NO_PLACES: Final = ("/dev/", "/proc/", "/sys/")
"""What lies there is no file, whatever it looks like."""
_A_PLACE: Final = "/dev/shm/"

_MAX_LINKS: Final = 40

REFUSED: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
"""That this user may not, which does not pass; a full disk does."""


class NotOurs(PermissionError):
    """What is there is no file of this store, or another user's."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)

    def __str__(self) -> str:
        return str(self.strerror)


def owned(found: os.stat_result) -> bool:
    """Whether it belongs to who runs this. To root, everybody's files do: `sudo otel-llm` works on a user's store."""
    return found.st_uid == users.effective() or users.effective() == 0


def no_file(found: os.stat_result) -> str | None:
    """What it is, where it is no regular file: "a FIFO"."""
    if stat.S_ISREG(found.st_mode):
        return None
    return next((name for is_one, name in _KINDS if is_one(found.st_mode)), "something else")


def no_file_at(path: Path) -> str | None:
    """Why nothing may be put in the place of `path`, in words: it is, or leads to, something other than a regular file.

    Links to files are none of those, but what the system names itself is: `/dev/stdout` may lead to the file that an app prints to.
    """
    path = path.absolute()
    if any(each.startswith(_NO_PLACES) and not each.startswith(_A_PLACE) for each in _names(path)):
        return f"{path} is a device, not a file"
    try:
        return f"{path} is {kind}, not a file" if (kind := no_file(path.stat())) else None
    except OSError:
        return None


def _names(path: Path) -> Iterator[str]:
    """`path` and what it leads to, link by link."""
    name = os.path.normpath(path)
    for _ in range(_MAX_LINKS):
        yield name
        try:
            name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))  # noqa: PTH118, PTH120
        except OSError:
            break
    yield os.path.realpath(path)


def objection(path: Path) -> str | None:
    """Why `path` cannot be taken for a file of ours, in words; None where it can, or where nothing is there. Raises OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if (kind := no_file(found)) is not None:
        return f"{path} is {kind}, not a file"
    if not owned(found) or (found.st_uid != users.effective() and path.parent.stat().st_mode & OTHERS_MAY_WRITE):
        return f"{path} belongs to {user(found.st_uid)}"
    return None


def user(uid: int) -> str:
    """How to speak of a user."""
    return "root" if uid == 0 else f"user {uid}"


def require(path: Path) -> None:
    """Raises NotOurs where something stands at `path` that is no regular file of ours; OSError."""
    if (reason := objection(path)) is not None:
        raise NotOurs(reason)


def open_own(path: Path, flags: int = os.O_RDONLY) -> int:
    """Opens the regular file of ours at `path`, never waiting and following no link. Raises NotOurs, OSError."""
    try:
        fd = os.open(path, flags | _SAFELY)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise NotOurs(f"{path} is {_NO_FILE[error.errno]}, not a file") from error
        raise
    try:
        found = os.fstat(fd)
        if (kind := no_file(found)) is not None:
            raise NotOurs(f"{path} is {kind}, not a file")
        if not owned(found):
            raise NotOurs(f"{path} belongs to {user(found.st_uid)}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_own(path: Path) -> bytes:
    """What is in the regular file of ours at `path`. Raises NotOurs, OSError."""
    with os.fdopen(open_own(path), "rb") as file:
        return file.read()


def create(path: Path, flags: int = os.O_RDWR) -> int:
    """Makes the file `path`, which must not be there, for its owner alone; returns its descriptor. Raises OSError.

    Root's belong to the owner of the directory, who could not read or replace them otherwise.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | _SAFELY, PRIVATE_FILE)
    try:
        make_private(fd, path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_private(file: int | Path, directory: Path) -> None:
    """Opens `file` to its owner alone, who is that of `directory` where root has made it. Raises OSError."""
    if users.ARE_KNOWN:
        os.chmod(file, PRIVATE_FILE)  # noqa: PTH101  (a descriptor has no Path; a umask may have taken from the owner as well)
    if users.effective() == 0 and (owner := directory.stat()).st_uid:
        os.chown(file, owner.st_uid, owner.st_gid)


def open_or_create(path: Path, flags: int = os.O_RDWR) -> int:
    """Opens the file of ours at `path`, which is made where it is missing. Raises NotOurs, OSError."""
    while True:
        try:
            return open_own(path, flags)
        except FileNotFoundError:
            try:
                return create(path, flags)
            except FileExistsError:
                continue  # somebody else has just made it


@contextmanager
def hidden_dir(beside: Path) -> Iterator[Path]:
    """A directory of ours beside a file, gone after the block, for what others make there with whatever mode. Raises OSError."""
    directory = beside.with_name(f".{beside.name}.{secrets.token_hex(8)}.tmp")
    os.mkdir(directory, PRIVATE_DIRECTORY)  # noqa: PTH102  (must not be there)
    try:
        directory.chmod(PRIVATE_DIRECTORY)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def append(file: Path, data: bytes) -> None:
    """Adds to `file`, in a directory of ours; both are made where they are missing. Raises NotOurs, OSError."""
    make_own_dir(file.parent)
    with os.fdopen(open_or_create(file, os.O_WRONLY | os.O_APPEND), "ab") as end:
        end.write(data)


def make_own_dir(directory: Path) -> None:
    """A directory into which nobody else puts anything; made where it is missing. Raises NotOurs, OSError."""
    make_private_dir(directory)
    require_own_dir(directory)


def require_own_dir(directory: Path) -> None:
    """Raises NotOurs where others may have put something into `directory`; OSError."""
    if (reason := directory_objection(directory)) is not None:
        raise NotOurs(reason)


def make_private_dir(directory: Path) -> None:
    """Creates `directory`, and those above it that are missing, open to their owner alone. Raises OSError."""
    try:
        os.mkdir(directory, PRIVATE_DIRECTORY)  # noqa: PTH102  (as `os.open`)
    except FileExistsError:
        if not directory.is_dir():
            raise
        return
    except FileNotFoundError:
        if directory.parent == directory:
            raise
        make_private_dir(directory.parent)
        make_private_dir(directory)
        return
    directory.chmod(PRIVATE_DIRECTORY)  # a umask may have taken from the owner as well
    if users.effective() == 0 and (owner := directory.parent.stat()).st_uid:
        os.chown(directory, owner.st_uid, owner.st_gid, follow_symlinks=False)


def directory_objection(directory: Path) -> str | None:
    """Why what is in `directory` cannot be relied upon, in words; None where it can, or where nothing is there. Raises OSError.

    It must be ours, and nobody else may put anything in. A link to one counts where it was made by us.
    """
    try:
        found = directory.lstat()
        if stat.S_ISLNK(found.st_mode):
            if not _is_owners(directory, found):
                return f"{directory} is a link of {user(found.st_uid)}"
            found = directory.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is {no_file(found) or 'a file'}, not a directory"
    if not _is_owners(directory, found):
        return f"{directory} belongs to {user(found.st_uid)}"
    if users.ARE_KNOWN and found.st_mode & OTHERS_MAY_WRITE:
        return f"others may write to {directory}"
    return None


def _is_owners(directory: Path, found: os.stat_result) -> bool:
    """Whether it belongs to who runs this; to root also, where it belongs to whose directory it is in and nobody else's."""
    if found.st_uid == users.effective():
        return True
    if users.effective() != 0:
        return False
    above = directory.parent.stat()
    return above.st_uid == found.st_uid and not above.st_mode & OTHERS_MAY_WRITE
