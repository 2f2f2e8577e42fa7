"""What a receiver tells of itself: counters since it started, as Prometheus reads them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

_HELP: Final = {
    "requests_total": (
        "counter",
        "Requests by protocol, signal and what they were answered (HTTP's or gRPC's status).",
    ),
    "received_bytes_total": ("counter", "Bytes of requests, as they came over the wire."),
    "items_total": ("counter", "Spans and account records: stored, dropped by setting, or rejected for ever."),
    "request_seconds_total": ("counter", "Seconds from a whole request to its answer, all added up."),
    "waiting_bytes": ("gauge", "Bytes of journal that are not merged."),
    "merges_total": ("counter", "Merges into the database."),
    "merge_failures_total": ("counter", "Merges that failed."),
    "corrupt_lines_total": ("counter", "Lines of the journal that were put aside."),
    "merged_seconds_ago": ("gauge", "Seconds since the last merge."),
}
_PREFIX: Final = "otel_llm_serve_"

Labels = tuple[tuple[str, str], ...]


class Counters:
    """Used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[tuple[str, Labels], float] = defaultdict(float)

    def request(self, protocol: str, signal: str, code: str, size: int, seconds: float) -> None:
        """A request has been answered."""
        of = (("protocol", protocol), ("signal", signal))
        with self._lock:
            self._counts["requests_total", (*of, ("code", code))] += 1
            self._counts["received_bytes_total", of] += size
            self._counts["request_seconds_total", of] += seconds

    def items(self, what: str, **outcomes: int) -> None:
        """So many parts of a request were `stored`, `dropped`, `rejected`."""
        with self._lock:
            for outcome, number in outcomes.items():
                self._counts["items_total", (("item", what), ("outcome", outcome))] += number

    def page(self, gauges: Callable[[], Mapping[str, float]]) -> str:
        """Prometheus's text, with what `gauges` tells of now."""
        with self._lock:
            found = dict(self._counts)
        found |= {(name, ()): value for name, value in gauges().items()}
        lines = []
        for name, (kind, told) in _HELP.items():
            lines += [f"# HELP {_PREFIX}{name} {told}", f"# TYPE {_PREFIX}{name} {kind}"]
            for (of, labels), value in sorted(found.items()):
                if of == name:
                    shown = ",".join(f'{label}="{text}"' for label, text in labels)
                    lines.append(f"{_PREFIX}{name}{f'{{{shown}}}' if shown else ''} {value:.17g}")
        return "\n".join(lines) + "\n"
