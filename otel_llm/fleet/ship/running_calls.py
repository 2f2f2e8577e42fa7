"""The calls that run, for a destination that shows them: those of every process that writes the store, told every few seconds."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol, runtime_checkable

from otel_llm.conventions import semconv
from otel_llm.fleet.ship.destination import Never, NotNow
from otel_llm.store.journal import segments
from otel_llm.store.paths import StorePaths

_logger = logging.getLogger("otel_llm")

EVERY_SECONDS: Final = 10.0
"""To look is to read what each process has in its open segment."""
_ATTRIBUTES: Final = {
    "operation": semconv.OPERATION,
    "model": semconv.REQUEST_MODEL,
    "user_id": semconv.USER_ID,
    "module": semconv.MODULE,
}


@runtime_checkable
class ShowsRunning(Protocol):
    """A destination that has a place for calls that run."""

    def show_running(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Takes them: what was told before and is not among them has ended. Raises NotNow or Never."""


class RunningTeller:
    """Tells one destination what runs, if that has a use for it. What it cannot tell, it tells the next time."""

    def __init__(self, destination: object) -> None:
        self._destination = destination if isinstance(destination, ShowsRunning) else None
        self._told = float("-inf")

    def tell(self, paths: StorePaths) -> None:
        """Does so if it is time. Raises nothing."""
        if self._destination is None or time.monotonic() - self._told < EVERY_SECONDS:
            return
        self._told = time.monotonic()
        try:
            if calls := [_call(start) for start in segments.running_calls(paths.journal)]:
                self._destination.show_running(calls)
        except (NotNow, Never, OSError):
            _logger.debug("what runs could not be told", exc_info=True)


def _call(start: Mapping[str, Any]) -> dict[str, Any]:
    """A call from the journal's record of its start."""
    attributes = start.get("a") or {}
    return {
        "host": socket.gethostname(),
        "pid": start.get("pid"),
        "started_at": datetime.fromtimestamp(start["st"] / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "seconds": round(max(time.time() - start["st"] / 1e9, 0.0), 3),
        "name": start.get("n"),
        **{column: attributes.get(name) for column, name in _ATTRIBUTES.items()},
        "trace_id": start["t"],
        "span_id": start["s"],
    }
