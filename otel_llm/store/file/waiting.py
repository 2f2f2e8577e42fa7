"""Trying again while somebody else has the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from otel_llm.store.errors import StoreBusy

_Result = TypeVar("_Result")

_FIRST_WAIT: Final = 0.002
_LONGEST_WAIT: Final = 0.1


def when_free(attempt: Callable[[], _Result], deadline: float) -> _Result:
    """What `attempt` returns, tried again until `deadline` (monotonic seconds) while it raises StoreBusy."""
    wait = _FIRST_WAIT
    while True:
        try:
            return attempt()
        except StoreBusy:
            if time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        wait = min(wait * 2, _LONGEST_WAIT)
