"""The segment that a writer has open: it holds the lock that tells the living from the dead."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from otel_llm.store.journal import locks
from otel_llm.support.system import offsets


class OpenSegment:
    """An append-only file whose last line may be torn by a write that failed. Methods raise OSError."""

    def __init__(self, fd: int, path: Path, size: int) -> None:
        self.path = path
        self.size = self.empty_size = size
        """`empty_size`: of one that holds nothing but its header and what it took over."""
        self._opened_at = time.monotonic()
        self._fd = fd
        self._torn = False

    @classmethod
    def create(cls, path: Path, beginning: bytes) -> OpenSegment:
        """Makes it, locked and with `beginning` in it; after an error nothing is left."""
        with locks.new_and_held(path, os.O_RDWR | os.O_APPEND) as fd:
            rest = memoryview(beginning)
            while rest:
                rest = rest[os.write(fd, rest) :]
        return cls(fd, path, len(beginning))

    @property
    def is_empty(self) -> bool:
        return self.size == self.empty_size

    @property
    def age(self) -> float:
        return time.monotonic() - self._opened_at

    def write(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        written = os.write(self._fd, data)
        while written < len(data):
            self._torn = True
            data = data[written:]
            self.size += written
            written = os.write(self._fd, data)
        self._torn = False
        self.size += written

    def content(self) -> Iterator[bytes]:
        """All that was written, also where the file was deleted."""
        offset = 0
        while block := offsets.pread(self._fd, 2**20, offset):
            offset += len(block)
            yield block

    def is_deleted(self) -> bool:
        """Whether its name leads to it no longer."""
        try:
            return not os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def to_disk(self) -> None:
        offsets.fdatasync(self._fd)

    def close(self) -> None:
        """Lets go of it: whoever looks takes its writer for gone, or gone on to the next."""
        os.close(self._fd)
