"""What an OTLP request brings, into the journal: whoever is answered is answered because it is there.

The sender sends again what it got no answer for. That a span is counted once, and a version of a row, however often it comes, is
the merge's doing (`store/merge/batch.py`). So a request is taken as a whole or refused as a whole, but for parts that could never
be taken: those are told as OTLP's partial success.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_llm.fleet import usage_log_record
from otel_llm.fleet.serve import otlp_spans
from otel_llm.fleet.serve.counters import Counters
from otel_llm.store.journal import record
from otel_llm.store.merge import ingest
from otel_llm.store.store import Store

MAX_AT_ONCE: Final = 32
"""Requests that are worked on at a time; each may hold several times its size in memory."""
RETRY_SECONDS: Final = 2
"""When to come again, while requests are many or the journal cannot be written."""
BEHIND_SECONDS: Final = 10
"""When to come again, while merges do not keep up."""
_LOOKS_EVERY: Final = 1.0


class Refused(Exception):
    """Not now, and nothing of it is kept: what to say, and after how many seconds to send it again."""

    def __init__(self, message: str, retry_after: int, *, busy: bool) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.busy = busy
        """There is too much to do; else the store cannot be written."""


@dataclass(frozen=True, slots=True)
class PartialSuccess:
    """How many parts of a request could not be taken, and why; none and nothing, mostly."""

    rejected: int = 0
    message: str = ""


class Intake:
    """Puts requests into the journal of `store`. Used by many threads."""

    def __init__(self, store: Store, counters: Counters, *, only_genai: bool, max_waiting: int) -> None:
        self._store = store
        self._counters = counters
        self._only_genai = only_genai
        self._max_waiting = max_waiting
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        self._waiting = 0
        self._looked_at = -_LOOKS_EVERY

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those that are worked on. Raises Refused where there is none, or where merges do not keep up."""
        if (waiting := self.waiting()) > self._max_waiting:
            raise Refused(
                f"{waiting >> 20} MB wait to be merged, more than OTEL_LLM_SERVE_MAX_WAITING; send it again later",
                BEHIND_SECONDS,
                busy=True,
            )
        if not self._places.acquire(blocking=False):
            raise Refused(f"{MAX_AT_ONCE} requests are worked on; send it again later", RETRY_SECONDS, busy=True)
        try:
            yield
        finally:
            self._places.release()

    def waiting(self) -> int:
        """Bytes of the journals that are not merged, as of a second ago at most."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOKS_EVERY:
            self._looked_at = now
            try:
                self._waiting = ingest.waiting(self._store.paths)
            except OSError:
                self._waiting = 0  # the write says what is wrong
        return self._waiting

    def traces(self, request: ExportTraceServiceRequest) -> PartialSuccess:
        """Journals the spans. Raises Refused."""
        refused: list[str] = []
        lines: list[bytes] = []
        came = 0
        for of_resource in request.resource_spans:
            came += sum(len(of_scope.spans) for of_scope in of_resource.scope_spans)
            spans = otlp_spans.records(of_resource, only_genai=self._only_genai, refused=refused)
            lines += map(record.encode, spans)
        self._write(lines)
        self._counters.items(
            "spans", stored=len(lines), rejected=len(refused), dropped=came - len(lines) - len(refused)
        )
        return _partial(refused, "spans")

    def logs(self, request: ExportLogsServiceRequest) -> PartialSuccess:
        """Journals the account records. Raises Refused."""
        refused: list[str] = []
        lines = []
        for of_resource in request.resource_logs:
            for of_scope in of_resource.scope_logs:
                for one in of_scope.log_records:
                    if not usage_log_record.is_usage(one):
                        refused.append(f"of logs only account records are kept here ({usage_log_record.EVENT_NAME})")
                        continue
                    try:
                        lines.append(record.encode(_row_record(usage_log_record.row_of(one))))
                    except usage_log_record.NotARecord as error:
                        refused.append(str(error))
        self._write(lines)
        self._counters.items("account_records", stored=len(lines), rejected=len(refused), dropped=0)
        return _partial(refused, "log records")

    def _write(self, lines: list[bytes]) -> None:
        if not lines:
            return
        try:
            self._store.write_whole(b"".join(lines), len(lines))
        except OSError as error:
            message = f"the journal cannot be written ({error.strerror or error}); nothing was taken, send it again"
            raise Refused(message, RETRY_SECONDS, busy=False) from error


def _row_record(row: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in row.items() if value is not None}
    return {"k": "u", "t": told.pop("trace_id"), "s": told.pop("span_id"), "u": told}


def _partial(refused: list[str], what: str) -> PartialSuccess:
    if not refused:
        return PartialSuccess()
    others = len(set(refused)) - 1
    more = f", and {others} other reasons" if others > 1 else ", and another reason" if others else ""
    return PartialSuccess(len(refused), f"{len(refused)} {what} could not be taken: {refused[0]}{more}")
