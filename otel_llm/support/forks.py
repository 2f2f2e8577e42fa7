"""What a forked child must not take over from its parent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakSet

_T = TypeVar("_T")


def reset_in_child(reset: Callable[[_T], None]) -> WeakSet[_T]:
    """A set for objects that a forked child calls `reset` with; it keeps none of them alive."""
    members: WeakSet[_T] = WeakSet()

    def after_fork_in_child() -> None:
        for member in list(members):
            reset(member)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=after_fork_in_child)
    return members
