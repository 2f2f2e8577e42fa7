"""The receiver as a whole: from the first word on its ports to the last merge."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from otel_llm.fleet.serve.admission import Address, Admission, NotAllowed
from otel_llm.fleet.serve.counters import Counters
from otel_llm.fleet.serve.grpc_side import GrpcSide
from otel_llm.fleet.serve.http_side import HttpSide
from otel_llm.fleet.serve.intake import Intake
from otel_llm.store import place
from otel_llm.store.store import Store

GRACE: Final = 5.0
"""Seconds for requests at work, when it is told to end, and as many for the last merge."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to serve, and to whom. At least one of the two addresses is given."""

    store: Path
    grpc: Address | None
    http: Address | None
    only_genai: bool
    max_request: int
    """Bytes of a request, unpacked."""
    max_waiting: int
    """Bytes of journal that may wait to be merged before senders are told to wait."""
    admission: Admission = field(default_factory=Admission)


def serve(plan: Plan, told: Callable[[str], None], opened: Callable[[Store], object] = lambda _: None) -> None:
    """Receives until SIGTERM or SIGINT, then takes in what it has. `told` gets a line when it listens, `opened` the store.

    Raises NotAllowed where it must not start like this, or cannot. To be called on the main thread.
    """
    addresses = [address for address in (plan.grpc, plan.http) if address is not None]
    plan.admission.require_safe(*addresses)
    if (why := place.of(plan.store).because) is not None:
        raise NotAllowed(f"{why}: nothing could be kept in {plan.store}; name another store with --store")
    store = Store.open(plan.store)
    store.journal.elsewhere = None  # what was answered for is to be where it was asked for
    opened(store)
    counters = Counters()
    intake = Intake(store, counters, only_genai=plan.only_genai, max_waiting=plan.max_waiting)
    sides: list[GrpcSide | HttpSide] = []
    names = []
    stopping = threading.Event()
    before = {one: signal.signal(one, lambda *_: stopping.set()) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        if plan.grpc is not None:
            grpc_side = GrpcSide(plan.grpc, plan.admission, intake, counters, max_request=plan.max_request)
            sides.append(grpc_side)
            names.append(f"gRPC at {Address(plan.grpc.host, grpc_side.port)}")
        if plan.http is not None:
            http_side = HttpSide(
                plan.http,
                plan.admission,
                intake,
                counters,
                lambda: _gauges(store, intake),
                max_request=plan.max_request,
            )
            sides.append(http_side)
            names.append(f"HTTP at {Address(plan.http.host, http_side.port)}")
        for side in sides:
            side.start()
        told(f"Listening for OTLP: {', '.join(names)}. Into {store.path}")
        stopping.wait()
    finally:
        for side in sides:
            side.stop(GRACE)
        store.close(GRACE)
        for one, handler in before.items():
            signal.signal(one, handler)


def _gauges(store: Store, intake: Intake) -> Mapping[str, float]:
    stats = store.stats
    found: dict[str, float] = {
        "waiting_bytes": intake.waiting(),
        "merges_total": stats.merges,
        "merge_failures_total": stats.merge_failures,
        "corrupt_lines_total": stats.corrupt,
    }
    try:
        found["merged_seconds_ago"] = time.time() - store.paths.merged.stat().st_mtime
    except OSError:
        pass  # none so far
    return found


__all__ = ["GRACE", "Address", "Admission", "NotAllowed", "Plan", "serve"]
