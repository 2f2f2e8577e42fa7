"""Sending stored spans to an OTLP backend again: what an outage of Jaeger or the Collector has cost is in the store.

What has been sent is remembered in the table `replayed`, under the endpoint it went to, once the backend has taken it. So a
run that broke off is simply run again. The store is open for milliseconds between two batches, never while one is on its way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import orjson
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_INSECURE,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_INSECURE,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_llm.content import otlp_sizes
from otel_llm.content.otlp_sizes import size_of
from otel_llm.conventions import dialects, semconv
from otel_llm.store.errors import StoreBusy, StoreError
from otel_llm.store.file import database
from otel_llm.store.jobs import exclusive
from otel_llm.store.merge import pending
from otel_llm.store.merge.rows import DROP_ARRIVED
from otel_llm.store.paths import StorePaths
from otel_llm.support.captured_warnings import warnings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duckdb import DuckDBPyConnection

Protocol = Literal["grpc", "http/protobuf"]

_PAGE: Final = 2048
"""Spans that are read, and remembered as sent, at once."""
_BATCH: Final = 512
"""Spans that are sent at once, as many as the SDK's batch processor sends, if they are not too large for that."""
_CONTENT: Final = re.compile(dialects.CONTENT_PATTERN)
_TRACES_PATH: Final = "/v1/traces"
_GRPC_PORT: Final = 4317


class BackendError(StoreError):
    """The backend did not take the spans."""


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """Where spans are sent."""

    endpoint: str
    protocol: Protocol

    @classmethod
    def of(cls, endpoint: str | None, protocol: str | None, environment: Mapping[str, str]) -> ReplayTarget:
        """The target that is given, or else the one that `OTEL_EXPORTER_OTLP_*` names. Raises ValueError for neither."""
        whole = environment.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, "").strip() if not endpoint else ""
        url = endpoint or whole or environment.get(OTEL_EXPORTER_OTLP_ENDPOINT, "").strip()
        if not url:
            raise ValueError(f"no endpoint is given: use --endpoint URL, or set {OTEL_EXPORTER_OTLP_ENDPOINT}")
        # What the environment names without a scheme, gRPC's exporter takes for TLS; on the command line it is not.
        tls = not endpoint and not is_insecure("", environment)
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not an endpoint like http://localhost:4318")
        chosen = (
            protocol
            or environment.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, "").strip()
            or environment.get(OTEL_EXPORTER_OTLP_PROTOCOL, "").strip()
            or ("grpc" if parts.port == _GRPC_PORT and not parts.path.endswith(_TRACES_PATH) else "http/protobuf")
        )
        match chosen:
            case "grpc":
                if "://" not in url and tls:
                    parts = parts._replace(scheme="https")
                return cls(parts._replace(path="").geturl(), "grpc")
            case "http/protobuf":
                return cls((parts if whole else _with_traces_path(parts)).geturl(), "http/protobuf")
        raise ValueError(f"the protocol {chosen} is not one of grpc, http/protobuf")

    @property
    def name(self) -> str:
        """The endpoint as it is remembered: without what may be secret in it."""
        parts = urlsplit(self.endpoint)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def exporter(self) -> SpanExporter:
        """The OpenTelemetry exporter for it. Headers, certificates and timeouts come from `OTEL_EXPORTER_OTLP_*`."""
        if self.protocol == "grpc":
            try:
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
            except ModuleNotFoundError as error:
                raise BackendError(
                    f"{self.name} is asked over gRPC, which needs pip install 'otel-llm[grpc]'"
                ) from error

            return GrpcExporter(endpoint=self.endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(endpoint=self.endpoint)


def is_insecure(scheme: str, environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's gRPC exporter sends without TLS, to an endpoint of this scheme."""
    said = environment.get(OTEL_EXPORTER_OTLP_TRACES_INSECURE, environment.get(OTEL_EXPORTER_OTLP_INSECURE))
    return scheme != "https" and (scheme == "http" if said is None else said.lower() == "true")


def _with_traces_path(parts: SplitResult) -> SplitResult:
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(_TRACES_PATH) else path + _TRACES_PATH)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which spans are sent."""

    since_ns: int | None = None
    until_ns: int | None = None
    """Nanoseconds since 1970: spans that began at `since_ns` or later and before `until_ns`."""
    trace_id: str | None = None
    unsampled: bool = False
    """Those as well that a sampler kept from the backend the first time."""
    again: bool = False
    """Those as well that a replay has sent to this endpoint already."""
    pending_of: Collection[str] | None = None
    """Those alone that these writers of journals have left pending: see `missing`."""
    service: str | None = None
    pages: int | None = None
    """No more than so many pages of them."""
    content: bool = True
    """With what was said, where that was recorded."""


@dataclass(slots=True)
class Outcome:
    """What became of the selected spans."""

    selected: int = 0
    """Spans to be sent."""
    sent: int = 0
    before: int = 0
    """Left out: a replay has sent them to this endpoint already."""
    unsampled: int = 0
    """Left out: a sampler did not want them there."""
    left: int = 0
    """Left for another time: they are more than the pages that were asked for."""
    too_large: list[str] = field(default_factory=list)
    """Not sent: what the backend says of spans that are larger than what receivers take."""


_Row = dict[str, Any]
_Key = tuple[int, str]
"""The place of a span in the order in which they are sent: `_ORDER`."""
_ORDER: Final = "start_ns, id"
_BEFORE_ALL: Final[_Key] = (-(2**63), "")


def replay(
    paths: StorePaths,
    target: ReplayTarget,
    selection: Selection,
    progress: Callable[[int, int], None] = lambda sent, of: None,
) -> Outcome:
    """Sends the selected spans, oldest first; calls `progress` with how many are sent, and of how many.

    Raises StoreNotFound, StoreBusy, StoreError, BackendError. What was sent by then is remembered as sent.
    """
    merged = exclusive.brought_up_to_date(paths)
    if selection.pending_of is not None and not merged.complete:
        raise StoreBusy(merged.reason or "")  # what has arrived may be told in what was not taken in
    with exclusive.alone(paths) as connection:
        outcome, page_ends = _plan(connection, target, selection)
    progress(0, outcome.selected)
    if not page_ends:
        return outcome
    with _exporting(target) as send:
        for after, last in pairwise([_BEFORE_ALL, *page_ends]):
            with exclusive.alone(paths) as connection:
                page = _page(connection, target, selection, after, last)
            sent: list[_Row] = []
            try:
                for rows, spans in _parts(page, content=selection.content):
                    try:
                        send(spans)
                    except BackendError as error:
                        if not _is_too_large(spans):
                            raise
                        outcome.too_large.append(
                            f"{otlp_sizes.name_of(spans[0])} ({size_of(spans[0]):,} bytes): {error}"
                        )
                        continue
                    sent += rows
                    outcome.sent += len(rows)
                    progress(outcome.sent, outcome.selected)
            except BackendError as error:
                raise BackendError(f"{error}; {outcome.sent:,} of {outcome.selected:,} spans were sent") from error
            finally:
                if sent:
                    with exclusive.alone(paths) as connection:
                        _remember(connection, paths, target, sent)
    return outcome


# --- what to send -----------------------------------------------------------------------------------------------------

_SAMPLED: Final = "coalesce(trace_flags, 1) & 1 = 1"
_SENT_BEFORE: Final = """EXISTS (FROM replayed WHERE replayed.trace_id = spans.trace_id AND replayed.span_id = spans.span_id
    AND replayed.endpoint = $endpoint)"""


_PENDING: Final = """EXISTS (FROM pending_exports AS pending WHERE pending.trace_id = spans.trace_id
    AND pending.span_id = spans.span_id AND pending.endpoint = $endpoint AND list_contains($writers, pending.writer))"""


def _considered(selection: Selection) -> tuple[str, dict[str, Any]]:
    """The spans that the selection speaks of, as a condition with its parameters."""
    clauses = {
        "since": ("start_ns >= $since", selection.since_ns),
        "until": ("start_ns < $until", selection.until_ns),
        "trace": ("trace_id = $trace", selection.trace_id),
        "service": ("service_name = $service", selection.service),
        "writers": (_PENDING, None if selection.pending_of is None else list(selection.pending_of)),
    }
    given = {name: value for name, (_, value) in clauses.items() if value is not None}
    return " AND ".join(["true", *(clauses[name][0] for name in given)]), given


def _wanted(selection: Selection) -> str:
    """Those of them that are sent, as a condition on `sampled` and `before`."""
    clauses = ["true"]
    if not selection.unsampled:
        clauses.append("sampled")
    if not selection.again:
        clauses.append("NOT before")
    return " AND ".join(clauses)


def _judged(columns: str, condition: str) -> str:
    """A query for spans with what `_wanted` and `_ORDER` ask about them."""
    judgement = f"trace_id || span_id AS id, {_SAMPLED} AS sampled, {_SENT_BEFORE} AS before"
    return f"SELECT {columns}, {judgement} FROM spans WHERE {condition}"


def _plan(connection: DuckDBPyConnection, target: ReplayTarget, selection: Selection) -> tuple[Outcome, list[_Key]]:
    """What there is to do, and the last span of each page. Only that is kept: a store may have millions of spans."""
    condition, values = _considered(selection)
    rows = connection.execute(
        f"""WITH judged AS MATERIALIZED ({_judged("start_ns", condition)}),
        counted AS (SELECT count(*) FILTER (before) AS before, count(*) FILTER (NOT sampled AND NOT before) AS unsampled,
            count(*) FILTER ({_wanted(selection)}) AS selected FROM judged),
        placed AS (SELECT {_ORDER}, row_number() OVER (ORDER BY {_ORDER}) AS place FROM judged WHERE {_wanted(selection)})
        SELECT counted.*, {_ORDER} FROM counted LEFT JOIN placed ON place % {_PAGE} = 0 OR place = selected ORDER BY place""",
        values | {"endpoint": target.name},
    ).fetchall()
    before, unsampled, selected = rows[0][:3]
    page_ends = [row[3:] for row in rows] if selected else []
    if selection.pages is not None and len(page_ends) > selection.pages:
        page_ends = page_ends[: selection.pages]
    now = min(selected, len(page_ends) * _PAGE)
    outcome = Outcome(now, 0, 0 if selection.again else before, 0 if selection.unsampled else unsampled, selected - now)
    return outcome, page_ends


_COLUMNS: Final = (
    "trace_id", "span_id", "parent_span_id", "name", "kind", "start_ns", "end_ns", "status_code", "status_message",
    "attributes", "events", "links", "resource", "scope_name", "scope_version", "trace_flags",
)  # fmt: skip


def _page(
    connection: DuckDBPyConnection, target: ReplayTarget, selection: Selection, after: _Key, last: _Key
) -> list[_Row]:
    """The spans behind `after` up to `last`. One that another replay has sent meanwhile is not among them."""
    condition, values = _considered(selection)
    (after_ns, after_id), (last_ns, last_id) = after, last
    values |= {"endpoint": target.name}
    values |= {"after_ns": after_ns, "after_id": after_id, "last_ns": last_ns, "last_id": last_id}
    rows = connection.execute(
        f"""SELECT {", ".join(_COLUMNS)} FROM ({_judged(", ".join(_COLUMNS), condition)}
            AND start_ns BETWEEN $after_ns AND $last_ns)
        WHERE {_wanted(selection)} AND (start_ns > $after_ns OR id > $after_id) AND (start_ns < $last_ns OR id <= $last_id)
        ORDER BY {_ORDER}""",
        values,
    ).fetchall()
    return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]


def _parts(page: Sequence[_Row], *, content: bool) -> Iterator[tuple[Sequence[_Row], list[ReadableSpan]]]:
    """Rows, and the spans to send for them, of a size that receivers take."""
    for first in range(0, len(page), _BATCH):
        rows = page[first : first + _BATCH]
        done = 0
        for spans in otlp_sizes.parts_of([span_of(row, content=content) for row in rows]):
            yield rows[done : done + len(spans)], spans
            done += len(spans)


def _is_too_large(spans: Sequence[ReadableSpan]) -> bool:
    """Whether it is one that no receiver needs to take: then it holds nobody else up."""
    return len(spans) == 1 and size_of(spans[0]) > otlp_sizes.LARGEST


def _remember(connection: DuckDBPyConnection, paths: StorePaths, target: ReplayTarget, rows: Sequence[_Row]) -> None:
    ids = {"traces": [row["trace_id"] for row in rows], "spans": [row["span_id"] for row in rows]}
    with database.transaction(connection):
        _note_sent(connection, target, rows, ids)
        connection.execute(DROP_ARRIVED, ids | {"endpoint": target.name})
    pending.leave_sign(paths, connection)


def _note_sent(
    connection: DuckDBPyConnection, target: ReplayTarget, rows: Sequence[_Row], ids: Mapping[str, list[str]]
) -> None:
    connection.execute(
        """INSERT INTO replayed (trace_id, span_id, endpoint, started_at, sent_at)
        SELECT trace_id, span_id, $endpoint, make_timestamptz(start_ns // 1000), now()
        FROM (SELECT unnest($traces) AS trace_id, unnest($spans) AS span_id, unnest($starts) AS start_ns) AS sent
        WHERE NOT EXISTS (FROM replayed WHERE replayed.trace_id = sent.trace_id AND replayed.span_id = sent.span_id
            AND replayed.endpoint = $endpoint)""",
        {
            **ids,
            "endpoint": target.name,
            "starts": [row["start_ns"] for row in rows],
        },
    )


# --- spans from rows --------------------------------------------------------------------------------------------------


def span_of(row: Mapping[str, Any], *, content: bool = True) -> ReadableSpan:
    """A row of `spans` as the span that it was. One that never ended, because its process died, ends where it began.

    Without `content` it goes without what was said: that is in some attributes, in texts of errors, and in events of others.
    """
    context = _context(row["trace_id"], row["span_id"], row["trace_flags"])
    parent = row["parent_span_id"]
    status = StatusCode.__members__.get(row["status_code"], StatusCode.UNSET)
    scope = row["scope_name"]
    return ReadableSpan(
        name=row["name"] or "",
        context=context,
        parent=_context(row["trace_id"], parent, row["trace_flags"]) if parent else None,
        resource=_resource(row["resource"] or "{}"),
        attributes=_known(orjson.loads(row["attributes"] or "{}"), content),
        events=[
            Event(event["name"], _known(event["attributes"], content), event["time_unix_nano"])
            for event in orjson.loads(row["events"] or "[]")
        ],
        links=[
            Link(_context(link["trace_id"], link["span_id"], None), _known(link["attributes"]))
            for link in orjson.loads(row["links"] or "[]")
        ],
        kind=SpanKind.__members__.get(row["kind"], SpanKind.INTERNAL),
        # A description belongs to an error; the SDK takes it with nothing else.
        status=Status(status, row["status_message"] if status is StatusCode.ERROR and content else None),
        start_time=row["start_ns"],
        end_time=row["start_ns"] if row["end_ns"] is None else row["end_ns"],
        instrumentation_scope=None if scope is None else InstrumentationScope(scope, row["scope_version"]),
    )


def _context(trace_id: str, span_id: str, flags: int | None) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(flags or 0))


@lru_cache(maxsize=64)
def _resource(text: str) -> Resource:
    # The very object for the same text: the exporter groups spans by it.
    return Resource(_known(orjson.loads(text)))


def _known(attributes: dict[str, Any] | None, content: bool = True) -> dict[str, Any]:
    """Attributes without those that have no value (JSON knows no NaN): a span cannot say so."""
    return {
        key: value
        for key, value in (attributes or {}).items()
        if value is not None and (content or not (key in semconv.CONTENT or _CONTENT.fullmatch(key)))
    }


# --- sending ----------------------------------------------------------------------------------------------------------


@contextmanager
def _exporting(target: ReplayTarget) -> Iterator[Callable[[Sequence[ReadableSpan]], None]]:
    """A function that sends spans, or raises BackendError with what the exporter has to say about it."""
    with warnings_of("opentelemetry.exporter.otlp") as said:
        exporter = target.exporter()

        reason = "the export failed"

        def send(spans: Sequence[ReadableSpan]) -> None:
            nonlocal reason
            said.clear()
            if exporter.export(spans) is not SpanExportResult.SUCCESS:
                reason = said[-1] if said else reason  # OpenTelemetry does not say the same again at once
                raise BackendError(f"{target.name} does not take the spans: {reason}")

        try:
            yield send
        finally:
            exporter.shutdown()
