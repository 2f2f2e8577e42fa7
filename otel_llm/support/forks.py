"""All that otel-llm does at a fork, in one order: what must not be under way then, and what a child does not take over.

Only here is Python told (`os.register_at_fork`). Whoever has a part in it registers it under a turn of its own, so that the
order is that of `Turn` and not that of imports. A part that fails is said once, and the others are done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from enum import Enum, auto
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from weakref import WeakSet

from otel_llm.support import faults

_T = TypeVar("_T")
_Part = Callable[[], None]

_SECONDS: Final = 1.0
"""How long a fork waits for the lock of one of `members`."""


class Turn(Enum):
    """Who has a part in a fork. They have it in this order: before it, after it in the parent, and after it in the child."""

    GREENLETS = auto()
    """Warns of what gevent makes of a fork, while no lock is taken for it yet."""
    STORE_MUTEX = auto()
    """Nobody has a database or half a file open. Its lock is taken before any other."""
    JOURNALS = auto()
    """No record is half written; the child begins journals of its own."""
    JOURNAL_LOCKS = auto()
    PARKED_FILES = auto()
    PUBLISHING = auto()
    DUCKDB_INSTANCE = auto()
    STORES = auto()
    """What a child thinks of its stores is true when their files are closed."""
    SHIPPING = auto()
    BUDGET_ALERTS = auto()
    BUDGETS = auto()
    RUN_BUDGETS = auto()
    BUDGET_READING = auto()
    CALLS = auto()
    LANGCHAIN_RUNS = auto()
    CONTEXT_IDS = auto()
    SUBSCRIPTIONS = auto()
    DEPLOYMENTS = auto()
    SLOTS = auto()


class _Parts(NamedTuple):
    before: _Part | None
    after_in_parent: _Part | None
    after_in_child: _Part | None


_registered: dict[Turn, _Parts] = {}


def register(
    turn: Turn,
    *,
    before: _Part | None = None,
    after_in_parent: _Part | None = None,
    after_in_child: _Part | None = None,
) -> None:
    """Has the parts be done at every fork from now on, in place of those that `turn` had."""
    _registered[turn] = _Parts(before, after_in_parent, after_in_child)


def hold(turn: Turn, locks: Callable[[], Iterable[tuple[threading.RLock, float]]], *, after_in_child: _Part) -> None:
    """Has a fork take `locks`, each with the seconds that it waits at most. In the child they are still held, for good."""
    taken: Any = threading.local()

    def before() -> None:
        taken.locks = []
        for lock, seconds in locks():
            if lock.acquire(timeout=seconds):
                taken.locks.append(lock)

    def after_in_parent() -> None:
        while getattr(taken, "locks", None):  # none, where it was registered in the midst of a fork
            taken.locks.pop().release()

    register(turn, before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


def members(
    turn: Turn, reset: Callable[[_T], None], lock: Callable[[_T], threading.RLock] | None = None
) -> WeakSet[_T]:
    """A set for objects that a forked child calls `reset` with, and whose `lock` a fork takes. It keeps none of them alive."""
    found: WeakSet[_T] = WeakSet()

    def after_in_child() -> None:
        for member in list(found):
            _do(turn, partial(reset, member))

    if lock is None:
        register(turn, after_in_child=after_in_child)
    else:
        hold(turn, lambda: [(lock(member), _SECONDS) for member in list(found)], after_in_child=after_in_child)
    return found


def _do(turn: Turn, part: _Part) -> None:
    try:
        part()
    except Exception as error:
        faults.report(f"do its part of a fork ({turn.name})", error)


def _at_fork(moment: int) -> None:
    passing_by: BaseException | None = None
    for turn in Turn:
        part = _registered[turn][moment] if turn in _registered else None
        if part is not None:
            try:
                _do(turn, part)
            except BaseException as error:  # Ctrl-C, say
                passing_by = error
    if passing_by is not None:
        raise passing_by  # Python says so and goes on: nothing can be raised out of a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(**{name: partial(_at_fork, moment) for moment, name in enumerate(_Parts._fields)})
