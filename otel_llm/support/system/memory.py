"""Giving memory back that this process does not use any more."""

from __future__ import annotations


def give_back() -> None:
    """What was freed goes back to the system, where glibc is the allocator: of itself it keeps what lies between pieces in use."""
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another libc
        pass
