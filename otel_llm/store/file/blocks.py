"""Making one DuckDB file equal to another by writing only the blocks that differ.

A DuckDB file is three headers of 4 KiB each and then blocks of one size, each of which begins with the checksum of the rest of
it. So two versions of a file are told apart by reading the first page of each block: a few milliseconds where a copy of a million
calls would take a quarter of a second. The checksum is weak (an exclusive or of all words, in whatever order) and says nothing of
what has become of the rest since, so some blocks are compared whole each time. (The layout: `storage_info.hpp` and
`single_file_block_manager.cpp` in DuckDB's source.)
"""

from __future__ import annotations

import os
import struct
from typing import Final

from otel_llm.support.system import offsets

_HEADERS: Final = 3 * 4096
_MAIN: Final = struct.Struct("<8x4sQ")
"""Of the first header: the magic bytes and the version of the format."""
_DATABASE: Final = struct.Struct("<8xQ24xQ")
"""Of the second and third, of which the one with the higher iteration holds: the iteration and the size of a block."""
_KNOWN_FORMATS: Final = range(64, 69)
"""Those of DuckDB 0.10 to 2.0, in which blocks are laid out as above. Of others every byte is compared."""
_PAGE: Final = 4096
"""The checksum, and as much of what follows as is read with it anyway."""
_CHUNK: Final = 262_144


def copy_changed(source: int, target: int) -> int:
    """Makes the file behind the descriptor `target` equal to the one behind `source`; returns the bytes that took.

    Nobody else writes to either meanwhile. Raises OSError.
    """
    size = os.fstat(source).st_size
    there = os.fstat(target).st_size
    block, compared = _layout(source, size)
    if _layout(target, there) != (block, compared):
        there = 0  # of another make: nothing in it can be relied upon
    copied = _copy(source, target, 0, min(_HEADERS, size))
    for offset in range(_HEADERS, size, block):
        length = min(block, size - offset)
        if offset + length > there or _differ(source, target, offset, min(compared, length)):
            copied += _copy(source, target, offset, length)
    if there != size:
        os.ftruncate(target, size)
    return copied


def compare(source: int, target: int, start: int, room: int) -> tuple[int, int]:
    """Compares whole blocks of two files that `copy_changed` has made equal, `room` bytes from about `start` on, round and round.

    Those that differ are written anew, unless only the source's is not what its checksum says. Returns how far it came, and how
    many were damaged, in either file. Raises OSError.
    """
    size = os.fstat(source).st_size
    block, _ = _layout(source, size)
    starts = range(_HEADERS, size, block)
    first = max(start - _HEADERS, 0) // block
    damaged = 0
    for number in range(first, first + min(max(room // block, 1), len(starts))):
        offset = starts[number % len(starts)]
        ours, theirs = offsets.pread(source, block, offset), offsets.pread(target, block, offset)
        if ours != theirs:
            sound = _is_sound(ours), _is_sound(theirs)
            damaged += not all(sound)
            if sound != (False, True):
                _copy(source, target, offset, len(ours))
        start = offset + block
    return start, damaged


def _is_sound(block: bytes) -> bool:
    """Whether the checksum is that of what follows it. Takes some milliseconds."""
    checksum, *words = struct.unpack(f"<{len(block) // 8}Q", block[: len(block) // 8 * 8])
    found = 0
    for word in words:
        found ^= word * 0xBF58476D1CE4E5B9
    return bool((found & 2**64 - 1) ^ 5381 == checksum)


def _layout(fd: int, size: int) -> tuple[int, int]:
    """The size of a block, and how many of its first bytes tell whether two of them are equal."""
    if size >= _HEADERS:
        headers = offsets.pread(fd, _HEADERS, 0)
        magic, version = _MAIN.unpack_from(headers)
        _, block = max(_DATABASE.unpack_from(headers, offset) for offset in (4096, 8192))
        if magic == b"DUCK" and version in _KNOWN_FORMATS and 4096 <= block <= 2**20 and not block & (block - 1):
            return block, _PAGE
    return _CHUNK, _CHUNK


def _differ(source: int, target: int, offset: int, length: int) -> bool:
    return offsets.pread(source, length, offset) != offsets.pread(target, length, offset)


def _copy(source: int, target: int, offset: int, length: int) -> int:
    data = memoryview(offsets.pread(source, length, offset))
    if len(data) != length:
        raise OSError(f"the file ends at {offset + len(data)} while it is copied")
    written = 0
    while written < length:
        written += offsets.pwrite(target, data[written:], offset + written)
    return length
