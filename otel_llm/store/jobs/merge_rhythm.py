"""How often a store is merged: so that merges take a hundredth of a core, and nobody waits long for what is new.

What a merge costs hardly depends on how much it takes in. So where calls are few, each is merged at once; where they are many, they
wait for one another, until the merge has been earned, and no longer than `LONGEST` seconds whatever it costs.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.01
"""Of one core, for merges."""
LONGEST: Final = 4.8
"""Seconds between merges at most while there is something to merge: a plain DuckDB client sees what is older than five."""
FEW: Final = 32 * 1024
"""Bytes of journal that are few calls: about ten, each with its start and its end."""
_SAVED: Final = 0.5
"""Seconds of merging that can be saved up: some ten merges at once, for who makes a call now and then and looks at it."""


class MergeRhythm:
    """Times are in seconds: `now` of a monotonic clock, `cost` of a processor."""

    def __init__(self, shortest: float, *, fixed: bool) -> None:
        """`shortest` is the time between two looks; `fixed`: what is found then is merged at once, whatever that costs."""
        self._shortest = shortest
        self._fixed = fixed
        self._credit = _SAVED
        self._credited_at: float | None = None
        self._cost = 0.0

    def merged(self, now: float, cost: float) -> None:
        """A merge has ended, which took `cost`."""
        self._earn(now)
        self._credit -= cost
        self._cost = cost

    def wait(self, now: float, waiting: int, age: float) -> float:
        """How long to wait until the next merge: 0 or less where it is due.

        `waiting` bytes of journal are not merged, and the last merge was `age` ago.
        """
        self._earn(now)
        earned = self._shortest
        if not self._fixed and (waiting > FEW or self._credit < 0):
            earned = max(min(self._cost / SHARE, LONGEST), self._shortest)
        return earned - age

    def _earn(self, now: float) -> None:
        if self._credited_at is not None:
            self._credit = min(self._credit + (now - self._credited_at) * SHARE, _SAVED)
        self._credited_at = now
