"""What the pages ask of the account. All SQL of the browser page stands here, in the words that every engine shares."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from otel_llm.account.engine import Engine, Values
from otel_llm.account.questions import Account, common_tag_keys
from otel_llm.account.sums import MEASURES
from otel_llm.prices.billing import BILLED, NO_REASON, REPORTED, UNPRICED, literal, remedy_for
from otel_llm.store.merge.rows import PRICED_AS, USAGE_TYPES, known
from otel_llm.ui.scope import COLUMNS, BadRequest, PageScope, column_of
from otel_llm.ui.score_filter import GOOD, SCORE, SUBJECTS, has_scores

Row = dict[str, Any]

_MOST_BARS: Final = 400
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

SUMS: Final = {
    **{name: MEASURES[name] for name in ("calls", "errors", "input_tokens", "output_tokens")},
    "cache_read_tokens": MEASURES["cached"],
    "reasoning_tokens": "sum(reasoning_tokens)",
    **{name: MEASURES[name] for name in ("cost_usd", "estimated_usd", "unpriced")},
}
"""As `otel-llm usage` adds up, and what reasoning took."""


def _rows(engine: Engine, columns: Mapping[str, str], rest: str, values: Values | None = None) -> list[Row]:
    """The rows with their columns by name; what is called `..._at` is asked for in microseconds and is a moment here."""
    # Names that no column has: to ClickHouse one of a column would stand for it in conditions, too.
    chosen = [
        f"{engine.microseconds(sql) if name.endswith('_at') else sql} AS c{at}"
        for at, (name, sql) in enumerate(columns.items(), 1)
    ]
    found = engine.ask(f"SELECT {', '.join(chosen)} {rest}", values)
    moments = [at for at, name in enumerate(columns) if name.endswith("_at")]
    rows = []
    for row in found:
        one = [*row]
        for at in moments:
            if one[at] is not None:
                one[at] = (_EPOCH + timedelta(microseconds=one[at])).astimezone()
        rows.append(dict(zip(columns, one, strict=True)))
    return rows


def totals(engine: Engine, scope: PageScope) -> Row:
    """Sums, and the median and 95th percentile of times, over the scope."""
    values = Values()
    columns = {
        **SUMS,
        **{
            f"{name}_p{round(share * 100)}": engine.quantile(column, share)
            for name, column in (("duration", "duration_ms"), ("first_chunk", "time_to_first_chunk_ms"))
            for share in (0.5, 0.95)
        },
    }
    return _rows(engine, columns, f"FROM llm_usage WHERE {scope.condition(engine, values)}", values)[0]


def spend(engine: Engine, scope: PageScope) -> Row:
    """What today and this month cost so far, under the filters of the scope but not its period."""
    values = Values()
    today = scope.during("today").since
    assert today is not None
    columns = {
        "month": SUMS["cost_usd"],
        "today": f"sum(cost_usd) FILTER (WHERE {REPORTED} AND started_at >= {engine.moment(values.add(today.isoformat()))})",
    }
    where = scope.during("month").condition(engine, values)
    return _rows(engine, columns, f"FROM llm_usage WHERE {where}", values)[0]


@dataclass(slots=True)
class Series:
    """Sums by a dimension, over all the time and in steps of it."""

    by: str
    groups: list[Row]
    """The dearest first: `value` and the sums."""
    steps: list[tuple[datetime, datetime, dict[str | None, Row]]]
    """Each step's begin and end, and what each value has in it."""


def series(engine: Engine, scope: PageScope, by: str) -> Series:
    """Sums by one of the filters' names, and by time in steps that suit the period. Raises `BadRequest`."""
    values = Values()
    column = column_of(by, engine, values)
    where = scope.condition(engine, values)
    first, last = _span(engine, scope)
    step = _step(first, last)
    if isinstance(step, int):
        slot = engine.slot("started_at", step)
        shown = slot
    else:
        slot = engine.local("started_at", "day")
        shown = engine.written(slot, "%Y-%m-%d")
    columns = {"slot": shown, "value": column, **SUMS}
    rows = _rows(engine, columns, f"FROM llm_usage WHERE {where} GROUP BY {slot}, {column}", values)
    groups: dict[str | None, Row] = {}
    begins = list(_begins(first, last, step))
    cells: dict[datetime, dict[str | None, Row]] = {begin: {} for begin in begins}
    for row in rows:
        _add(groups.setdefault(row["value"], {"value": row["value"]}), row)
        cell = cells.get(_begin_of(row["slot"], step))
        if cell is not None:
            _add(cell.setdefault(row["value"], {}), row)
    ends = [*begins[1:], _after(begins[-1], step)] if begins else []
    ordered = sorted(
        groups.values(), key=lambda row: (-(row["cost_usd"] or 0), -(row["calls"] or 0), str(row["value"]))
    )
    return Series(by, ordered, list(zip(begins, ends, cells.values(), strict=True)))


def _add(sums: Row, row: Row) -> None:
    for name, value in row.items():
        if name not in ("slot", "value"):
            known = sums.get(name)
            sums[name] = value if known is None else known if value is None else known + value


def _span(engine: Engine, scope: PageScope) -> tuple[datetime, datetime]:
    """From when to when there is something to draw: the period, or where it is open what there is."""
    now = datetime.now().astimezone()
    if scope.since is not None:
        return scope.since, max(scope.until or now, scope.since + timedelta(seconds=1))
    values = Values()
    where = scope.condition(engine, values)
    found = _rows(
        engine, {"first_at": "min(started_at)", "last_at": "max(started_at)"}, f"FROM llm_usage WHERE {where}", values
    )[0]
    first = found["first_at"] or now
    return first, max(scope.until or found["last_at"] or now, first) + timedelta(seconds=1)


def _step(first: datetime, last: datetime) -> int | str:
    """Seconds of a bar, or `day`, `month`: both are as long as they are."""
    length = (last - first).total_seconds()
    for limit, step in ((1200, 30), (7200, 120), (6 * 3600, 600), (30 * 3600, 1800), (4 * 86400, 7200)):
        if length <= limit:
            return step
    return "day" if length <= _MOST_BARS * 86400 else "month"


def _begins(first: datetime, last: datetime, step: int | str) -> Iterable[datetime]:
    begin = _start(first, step)
    while begin < last:
        yield begin
        begin = _after(begin, step)


def _begin_of(slot: int | str, step: int | str) -> datetime:
    """When the bar begins that a group of rows belongs to."""
    if isinstance(slot, str):
        return _start(datetime.fromisoformat(slot).astimezone(), step)
    return _start(datetime.fromtimestamp(slot * int(step), UTC), step)


def _start(moment: datetime, step: int | str) -> datetime:
    if isinstance(step, int):
        return datetime.fromtimestamp(moment.timestamp() // step * step, UTC).astimezone()
    local = moment.astimezone()
    return datetime(local.year, local.month, local.day if step == "day" else 1).astimezone()


def _after(begin: datetime, step: int | str) -> datetime:
    if isinstance(step, int):
        return (begin.astimezone(UTC) + timedelta(seconds=step)).astimezone()
    day = begin.replace(tzinfo=None) + timedelta(days=1 if step == "day" else 31)
    return day.replace(day=day.day if step == "day" else 1).astimezone()


def unpriced(engine: Engine, scope: PageScope) -> list[Row]:
    """Why calls are in no sum of costs, the commonest reason first: `reason`, `calls`, `remedy`."""
    values = Values()
    where = scope.condition(engine, values)
    columns = {"reason": f"coalesce(price_source, {literal(NO_REASON)})", "calls": "count(*)"}
    rows = _rows(
        engine, columns, f"FROM llm_usage WHERE {UNPRICED} AND {where} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20", values
    )
    return [{**row, "remedy": remedy_for(row["reason"])} for row in rows]


def is_empty(engine: Engine) -> bool:
    """Whether no model call has been recorded at all."""
    return Account(engine).is_empty()


# --- calls --------------------------------------------------------------------------------------------------------------

CALL_COLUMNS: Final = {
    "started_at": "started_at", "model": COLUMNS["model"], "status": "status", "user": "user_id", "module": "module",
    "input_tokens": "input_tokens", "output_tokens": "output_tokens", "cache_read_tokens": "cache_read_tokens",
    "reasoning_tokens": "reasoning_tokens", "cost_usd": "cost_usd", "duration_ms": "duration_ms",
    "time_to_first_chunk_ms": "time_to_first_chunk_ms", "operation": "operation", "provider": "provider",
    "agent": "agent_name", "workflow": "workflow_name", "service": "service_name", "conversation": "conversation_id",
    "session": "session_id", "request_id": "request_id", "profile": "profile", "error_type": "error_type",
    "price_source": "price_source", "attempts": "attempts", "stream": "stream", "server": "server_address",
    "tags": "tags",
}  # fmt: skip
"""The columns that the table of calls can show, and the SQL of each."""
SCORES: Final = "scores"
"""The column beside these that has what was thought of a call."""
SHOWN_FIRST: Final = ("model", "status", "user", "module", "input_tokens", "output_tokens", "cost_usd", "duration_ms")
SORTS: Final = ("started_at", "cost_usd", "duration_ms", "input_tokens", "output_tokens", "time_to_first_chunk_ms")
PAGE: Final = 100


def calls(
    engine: Engine,
    scope: PageScope,
    *,
    sort: str = "started_at",
    after: str | None = None,
    lately: bool = False,
    most: int = PAGE,
) -> list[Row]:
    """The calls of the scope, the newest (or the most of `sort`) first; `lately` those that ended within the last minute.

    `after` is the `mark` of the last row of the page before. Raises `BadRequest`.
    """
    if sort not in SORTS:
        raise BadRequest(f"calls cannot be sorted by {sort!r}; there are {', '.join(SORTS)}")
    values = Values()
    where = scope.condition(engine, values)
    us = engine.microseconds("started_at")
    by_time = sort == "started_at"
    if after is not None and by_time:
        at, span = _mark(after)
        where += f" AND ({us}, span_id) < ({at}, {engine.value(values.add(span))})"
    elif after is not None:
        where += f" AND {_behind(sort, after, engine, values)}"
    if lately:
        now = datetime.now(UTC)
        # By the longest that a call may take the engine knows what it need not read.
        where += f" AND started_at >= {engine.moment(values.add((now - _LONGEST_CALL).isoformat()))}"
        since = round((now - _LATE - _EPOCH).total_seconds() * 1e6)
        where += f" AND {us} + 1000 * coalesce(duration_ms, 0) >= {since}"
    columns = {"trace_id": "trace_id", "span_id": "span_id", "usage_source": "usage_source", "us": us, **CALL_COLUMNS}
    rows = _rows(
        engine,
        columns,
        f"""FROM llm_usage WHERE {where}
        ORDER BY {sort} DESC NULLS LAST, span_id DESC LIMIT {most}""",
        values,
    )
    for row in rows:
        begun_us = row.pop("us")
        row["mark"] = (
            f"{begun_us}-{row['span_id']}" if by_time else f"{'' if row[sort] is None else row[sort]}~{row['span_id']}"
        )
    for row, found in zip(rows, _scores_of(engine, rows), strict=True):
        row[SCORES] = found
    return rows


_MOST_SCORES: Final = 10_000


def _scores_of(engine: Engine, rows: Sequence[Row]) -> list[list[Row]]:
    """What was thought of each of these calls."""
    if not rows or not has_scores(engine):
        return [[] for _ in rows]
    values = Values()
    traces, requests = (
        ", ".join(engine.value(values.add(one)) for one in sorted({row[key] for row in rows if row[key] is not None}))
        for key in ("trace_id", "request_id")
    )
    of_request = f" OR (trace_id IS NULL AND request_id IN ({requests}))" if requests else ""
    columns = {"trace_id": "trace_id", **{name: name for name in _OF_SCORE}, "good": f"coalesce({GOOD}, false)"}
    found = _rows(
        engine,
        columns,
        f"FROM llm_scores WHERE trace_id IN ({traces}){of_request} ORDER BY name, scored_at LIMIT {_MOST_SCORES}",
        values,
    )
    of_span: dict[tuple[Any, ...], list[Row]] = {}
    for score in found:
        of_span.setdefault((score["trace_id"], score["span_id"], score["request_id"]), []).append(score)
    calls = {(row["trace_id"], row["span_id"]) for row in rows}
    spans = {key[:2] for key in of_span if key[0] is not None and key[1] is not None} - calls
    calls |= _calls_among(engine, spans)
    whole: dict[tuple[str, Any], list[Row]] = {}
    for (trace_id, span_id, request_id), told in of_span.items():
        if (trace_id, span_id) not in calls:
            whole.setdefault(("request", request_id) if trace_id is None else ("trace", trace_id), []).extend(told)
    own: dict[tuple[Any, ...], list[Row]] = {}
    for key, told in of_span.items():
        own.setdefault(key[:2], []).extend(told)
    return [
        [
            {name: value for name, value in score.items() if name not in ("trace_id", "span_id", "request_id")}
            for score in (
                *own.get((row["trace_id"], row["span_id"]), ()),
                *whole.get(("trace", row["trace_id"]), ()),
                *(whole.get(("request", row["request_id"]), ()) if row["request_id"] is not None else ()),
            )
        ]
        for row in rows
    ]


def _calls_among(engine: Engine, spans: Iterable[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Those of the spans that are calls."""
    values = Values()
    pairs = [", ".join(engine.value(values.add(one)) for one in span) for span in spans]
    if not pairs:
        return set()
    listed = ", ".join(f"({pair})" for pair in pairs)
    return set(engine.ask(f"SELECT trace_id, span_id FROM llm_usage WHERE (trace_id, span_id) IN ({listed})", values))


_LONGEST_CALL: Final = timedelta(days=1)
_LATE: Final = timedelta(minutes=1)
"""How long after its end a call may get into the store and is still seen to arrive: it may come from another machine."""


def _behind(sort: str, mark: str, engine: Engine, values: Values) -> str:
    """The condition for what comes after a row in that order, those without a value last. Raises `BadRequest`."""
    text, _, span = mark.partition("~")
    after_it = f"span_id < {engine.value(values.add(span))}"
    if not text:
        return f"{sort} IS NULL AND {after_it}"
    try:
        known = Decimal(text)
    except ArithmeticError:
        known = Decimal("NaN")
    if not known.is_finite() or abs(known.adjusted()) > 300:
        raise BadRequest(f"{mark[:40]!r} is no place in the list")
    value = f"CAST({engine.value(values.add(text))} AS {USAGE_TYPES[sort]})"
    return f"({sort} < {value} OR ({sort} = {value} AND {after_it}) OR {sort} IS NULL)"


def _mark(text: str) -> tuple[int, str]:
    us, _, span = text.partition("-")
    return _number(us), span


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadRequest(f"{text[:40]!r} is no place in the list")
    return int(text)


FACETS: Final = ("model", "user", "module", "status", "agent", "service")
_MOST_FACETS: Final = 12
_MOST_TAGS: Final = 6


def facets(engine: Engine, scope: PageScope) -> list[tuple[str, list[Row]]]:
    """For each name how many calls each of its values has: of the calls that all other filters let through."""
    found = []
    for name in FACETS:
        found.append((name, _facet(engine, scope, name)))
    for key in tag_keys(engine, scope)[:_MOST_TAGS]:
        found.append((f"tag:{key}", _facet(engine, scope, f"tag:{key}")))
    for name in score_names(engine)[:_MOST_TAGS]:
        found.append((f"{SCORE}{name}", _score_facet(engine, scope, name)))
    return [(name, values) for name, values in found if any(row["value"] is not None for row in values)]


def _facet(engine: Engine, scope: PageScope, name: str) -> list[Row]:
    values = Values()
    columns = {"value": column_of(name, engine, values), "calls": "count(*)"}
    where = scope.condition(engine, values, but=name)
    return _rows(
        engine, columns, f"FROM llm_usage WHERE {where} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MOST_FACETS}", values
    )


def score_names(engine: Engine) -> list[str]:
    """The names of scores, the commonest first."""
    if not has_scores(engine):
        return []
    found = engine.ask("SELECT name, count(*) FROM llm_scores GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20")
    return [name for name, _ in found]


def _score_facet(engine: Engine, scope: PageScope, name: str) -> list[Row]:
    """How many calls have that score above 0, at most 0, or as which word; and how many have none."""
    values = Values()
    where = scope.condition(engine, values, but=f"{SCORE}{name}")
    of_name = f"name = {engine.value(values.add(name))}"
    told = "CASE WHEN value > 0 THEN '>0' WHEN value <= 0 THEN '<=0' ELSE label END"
    joined = " UNION ALL ".join(
        f"""SELECT calls.trace_id, calls.span_id, told FROM calls JOIN (
            SELECT {told} AS told, {", ".join(f"{key} AS s_{key}" for key in keys)} FROM llm_scores WHERE {of_name} AND {of}
        ) AS scored ON {" AND ".join(f"calls.{key} = s_{key}" for key in keys)}"""
        for keys, of in SUBJECTS.items()
    )
    found = engine.ask(
        f"""WITH calls AS (SELECT trace_id, span_id, request_id FROM llm_usage WHERE {where}), joined AS ({joined}),
            told AS (SELECT told, count(*) AS n FROM (SELECT DISTINCT * FROM joined) AS once GROUP BY told)
        SELECT told, n FROM told UNION ALL SELECT NULL, (SELECT count(*) FROM calls)
            - (SELECT count(*) FROM (SELECT DISTINCT trace_id, span_id FROM joined) AS any_score)
        ORDER BY 1 IS NULL, 2 DESC, 1 LIMIT {_MOST_FACETS}""",
        values,
    )
    return [{"value": value, "calls": calls} for value, calls in found if calls]


def tag_keys(engine: Engine, scope: PageScope) -> list[str]:
    """The keys of tags, the commonest first, in a sample of the scope."""
    values = Values()
    where = scope.condition(engine, values)
    return common_tag_keys(engine, where, values)


# --- one trace ----------------------------------------------------------------------------------------------------------

_OF_SPAN: Final = (
    "trace_id", "span_id", "parent_span_id", "name", "kind", "operation", "service_name", "start_ns", "end_ns", "started_at",
    "duration_ms", "status", "status_message",
)  # fmt: skip
_OF_BOTH: Final = ("trace_id", "span_id", "parent_span_id", "operation", "service_name", "started_at", "duration_ms")
_OF_CALL: Final = (
    "request_model", "response_model", "provider", "input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens",
    "cost_usd", "price_source", "usage_source", "time_to_first_chunk_ms", "user_id", "module", "conversation_id", "session_id",
)  # fmt: skip
_PRICED_BY: Final = {name: column for column, name in PRICED_AS.items()}
_DETAILS: Final = ("attributes", "events", "links", "resource", "scope_name", "scope_version")


@dataclass(slots=True)
class Node:
    """A span in its place in the tree."""

    span: Row
    depth: int
    children: int = 0


@dataclass(slots=True)
class Trace:
    """All spans of a trace, parents before their children."""

    trace_id: str
    nodes: list[Node]
    calls: int = 0
    sums: Row = field(default_factory=dict)
    spans_pruned: bool = False
    scores: list[Row] = field(default_factory=list)
    """Of the trace, its spans and its requests."""

    def scores_of(self, span_id: str | None) -> list[Row]:
        """The scores of a span; of the whole trace and its requests for None."""
        return [score for score in self.scores if score["span_id"] == span_id]

    @property
    def begin_ns(self) -> int:
        return min((node.span["start_ns"] for node in self.nodes), default=0)

    @property
    def end_ns(self) -> int:
        return max((node.span["end_ns"] or node.span["start_ns"] for node in self.nodes), default=0)


def trace_id_of(engine: Engine, text: str) -> str:
    """The one trace whose id begins with `text`. Raises `BadRequest` for none and for several."""
    wanted = text.strip().lower()
    if not wanted or not all(character in "0123456789abcdef" for character in wanted):
        raise BadRequest(f"{text[:40]!r} is no trace id: that has hexadecimal digits alone")
    if len(wanted) == 32:
        return wanted
    values = Values()
    begins = f"starts_with(trace_id, {engine.value(values.add(wanted))})"
    found = engine.ask(
        f"""SELECT DISTINCT trace_id FROM (SELECT trace_id FROM spans WHERE {begins}
        UNION ALL SELECT trace_id FROM llm_usage WHERE {begins}) AS known LIMIT 2""",
        values,
    )
    if len(found) != 1:
        raise BadRequest(f"{'several traces begin' if found else 'no trace begins'} with {wanted}")
    return str(found[0][0])


def trace(engine: Engine, trace_id: str) -> Trace:
    """The tree of a trace; of one whose spans have been pruned its calls. Empty where there is none."""
    values = Values()
    of_trace = f"WHERE trace_id = {engine.value(values.add(trace_id))}"
    error_type = engine.attribute("attributes", "error.type")
    spans = _rows(
        engine,
        {**{name: name for name in _OF_SPAN}, "error_type": error_type},
        f"FROM spans {of_trace} ORDER BY start_ns, end_ns DESC",
        values,
    )
    usage = _rows(
        engine,
        {
            **{name: name for name in _OF_BOTH},
            "status": "status", "error_type": "error_type", **{name: name for name in _OF_CALL},
        },
        f"FROM llm_usage {of_trace} ORDER BY llm_usage.started_at",
        values,
    )  # fmt: skip
    calls = {row["span_id"]: row for row in usage}
    unknown = dict.fromkeys(_OF_CALL)
    pruned = not spans and bool(usage)
    for span in spans:
        call = calls.get(span["span_id"])
        span |= unknown if call is None else {name: call[name] for name in _OF_CALL}
        span["error_type"] = span["error_type"] or (call and call["error_type"])
    if pruned:
        spans = [_span_of(call) for call in usage]
    sums = {
        name: _sum(call[name] for call in usage if call["usage_source"] != "estimated")
        for name in ("input_tokens", "output_tokens", "cost_usd")
    }
    return Trace(trace_id, list(_placed(spans)), len(usage), sums, pruned, scores(engine, trace_id))


def _span_of(call: Row) -> Row:
    """What stands for the span of a call where that has been pruned."""
    start_ns = round((call["started_at"] - _EPOCH).total_seconds() * 1e6) * 1000
    name = " ".join(filter(None, (call["operation"], call["request_model"] or call["response_model"])))
    return {
        **call, "name": name, "kind": "CLIENT", "start_ns": start_ns, "end_ns": start_ns + round((call["duration_ms"] or 0) * 1e6),
        "status_message": None,
    }  # fmt: skip


_OF_SCORE: Final = ("span_id", "request_id", "name", "value", "label", "comment", "source", "scored_at")


def scores(engine: Engine, trace_id: str) -> list[Row]:
    """What was thought of a trace, of its spans and of the requests that its calls were made for."""
    if not has_scores(engine):
        return []
    values = Values()
    of_trace = f"trace_id = {engine.value(values.add(trace_id))}"
    return _rows(
        engine,
        {**{name: name for name in _OF_SCORE}, "good": f"coalesce({GOOD}, false)"},
        f"""FROM llm_scores WHERE {of_trace} OR (trace_id IS NULL AND request_id IN (
            SELECT request_id FROM llm_usage WHERE {of_trace} AND request_id IS NOT NULL))
        ORDER BY name, llm_scores.scored_at LIMIT 1000""",
        values,
    )


def details(engine: Engine, trace_id: str, span_id: str) -> Row:
    """What else is known of a span: its row of `llm_usage`, its attributes, events and links."""
    values = Values()
    chosen = f"WHERE trace_id = {engine.value(values.add(trace_id))} AND span_id = {engine.value(values.add(span_id))}"
    rows = _rows(engine, {name: name for name in _DETAILS}, f"FROM spans {chosen}", values)
    found: Row = {name: decoded(value) for name, value in rows[0].items()} if rows else {}
    columns = {name: name for name in (*USAGE_TYPES, *_PRICED_BY)}
    usage = _rows(engine, columns, f"FROM (SELECT *, {known()} FROM llm_usage {chosen}) AS priced", values)
    found["priced_by"] = {token: usage[0].pop(name) for name, token in _PRICED_BY.items()} if usage else {}
    found["usage"] = usage[0] if usage else None
    return found


def decoded(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _placed(spans: Sequence[Row]) -> Iterable[Node]:
    """The spans in the order of the tree. A span whose parent is not in the store (another service's) is a root."""
    known = {span["span_id"] for span in spans}
    children: dict[str | None, list[Row]] = {}
    for span in spans:
        parent = span["parent_span_id"]
        children.setdefault(parent if parent in known and parent != span["span_id"] else None, []).append(span)
    waiting = [(span, 0) for span in reversed(children.get(None, []))]
    while waiting:  # a stack, not a recursion: an agent's trace may be deeper than Python's
        span, depth = waiting.pop()
        inner = children.get(span["span_id"], [])
        yield Node(span, depth, len(inner))
        waiting += [(child, depth + 1) for child in reversed(inner)]


# --- conversations, sessions, users -------------------------------------------------------------------------------------

GROUPS: Final = {"conversation": "conversation_id", "session": "session_id", "user": "user_id"}


def groups(engine: Engine, scope: PageScope, by: str, *, after: str | None = None, most: int = PAGE) -> list[Row]:
    """Conversations, sessions or users with their sums, the one that was heard of last first. `after` is the `mark` of the last one
    of the page before. Raises `BadRequest`."""
    if by not in GROUPS:
        raise BadRequest(f"there is no list of {by!r}; there are {', '.join(GROUPS)}")
    values = Values()
    where = scope.condition(engine, values)
    columns = {
        "value": GROUPS[by], "first_at": "min(started_at)", "last_at": "max(started_at)", "traces": "count(DISTINCT trace_id)",
        **SUMS,
        "user_name": "max(user_id)", "module": "max(module)", "model": f"max({COLUMNS['model']})",
    }  # fmt: skip
    last_us = engine.microseconds("max(started_at)")
    behind = ""
    if after is not None:
        at, value = _mark(after)
        behind = f"HAVING {last_us} < {at} OR ({last_us} = {at} AND {GROUPS[by]} > {engine.value(values.add(value))})"
    rows = _rows(
        engine,
        {**columns, "us": last_us},
        f"""FROM llm_usage WHERE {where} AND {GROUPS[by]} IS NOT NULL GROUP BY 1 {behind} ORDER BY 3 DESC, 1 LIMIT {most}""",
        values,
    )
    for row in rows:
        row["mark"] = f"{row.pop('us')}-{row['value']}"
    return rows


@dataclass(slots=True)
class TalkTurn:
    """A call of a talk: what is new in what it was asked, and what came back."""

    call: Row
    asked: list[Row]
    answered: list[Row]
    spent: Decimal | None
    """The cost of the talk up to here, as far as it is known."""
    pause_ms: float | None
    """From the end of the call before."""
    goes_on: bool = True
    """Whether it is of the same conversation as the call before."""


@dataclass(slots=True)
class Talk:
    """The calls of a conversation, of a session or of a user in their order; of very many the last ones."""

    turns: list[TalkTurn]
    calls: int
    """How many there are in all."""
    conversations: int


def talk(engine: Engine, by: str, key: str, *, most: int = 500) -> Talk:
    """What was said in one of the `GROUPS`."""
    values = Values()
    of_key = f"FROM llm_usage WHERE {GROUPS[by]} = {engine.value(values.add(key))}"
    sums = {"calls": "count(*)", "conversations": "count(DISTINCT conversation_id)", "cost": MEASURES["cost_usd"]}
    whole = _rows(engine, sums, of_key, values)[0]
    names = (
        "trace_id", "span_id", "started_at", "duration_ms", "status", "error_type", "error_message", "operation", "input_tokens",
        "output_tokens", "cost_usd", "price_source", "usage_source", "user_id", "module", "conversation_id", "input_messages",
        "output_messages",
    )  # fmt: skip
    rows = _rows(
        engine,
        {**{name: name for name in names}, "model": COLUMNS["model"]},
        f"{of_key} ORDER BY llm_usage.started_at DESC, span_id DESC LIMIT {most}",
        values,
    )[::-1]
    costs = [None if row["usage_source"] == "estimated" else row["cost_usd"] for row in rows]
    # What came before those that are shown was spent, too.
    spent = None if whole["cost"] is None else whole["cost"] - (_sum(costs) or 0)
    if spent is not None and whole["calls"] == len(rows):
        spent = None  # nothing came before
    turns: list[TalkTurn] = []
    heard: dict[str, list[str]] = {}
    ended: datetime | None = None
    last: str | None = None
    for row, cost in zip(rows, costs, strict=True):
        given, taken = messages(row.pop("input_messages")), messages(row.pop("output_messages"))
        of = row["conversation_id"] or row["trace_id"]
        said = heard.get(of, [])
        known = 0
        marks = [json.dumps(message, sort_keys=True) for message in given]
        while known < min(len(marks), len(said)) and marks[known] == said[known]:
            known += 1
        new = [message for message in given[known:] if message.get("role") != "assistant" or of not in heard]
        heard[of] = marks + [json.dumps(message, sort_keys=True) for message in taken]
        if cost is not None:
            spent = (spent or Decimal(0)) + cost
        pause = None if ended is None else max((row["started_at"] - ended).total_seconds() * 1000, 0.0)
        turns.append(TalkTurn(row, new, taken, spent, pause, of == last))
        ended, last = row["started_at"] + timedelta(milliseconds=row["duration_ms"] or 0), of
    return Talk(turns, whole["calls"], whole["conversations"])


def messages(value: Any) -> list[Row]:
    """Captured messages as a list of objects, whatever stands there."""
    if isinstance(value, str):
        value = decoded(value)
    if not isinstance(value, list):
        return []
    return [message for message in value if isinstance(message, dict)]


# --- comparing ----------------------------------------------------------------------------------------------------------

_COMPARED: Final = {
    "input_tokens": f"CASE WHEN {REPORTED} THEN input_tokens END",
    "output_tokens": f"CASE WHEN {REPORTED} THEN output_tokens END",
    "cost_usd": f"1e0 * CASE WHEN {REPORTED} THEN cost_usd END",
    "duration_ms": "duration_ms",
    "time_to_first_chunk_ms": "time_to_first_chunk_ms",
}
_ENOUGH: Final = 20
_LIKELY: Final = 1.96


def compared(engine: Engine, one: PageScope, other: PageScope) -> list[Row]:
    """Two groups of calls side by side: `name`, `a`, `b`, `change` (of b against a) and `verdict`, whether it is noise."""
    a, b = (_statistics(engine, scope) for scope in (one, other))
    rows: list[Row] = [
        {"name": name, "a": a[name], "b": b[name], "change": _change(a[name], b[name]), "verdict": "", "kind": kind}
        for name, kind in (
            ("calls", "count"),
            ("cost_usd_sum", "money"),
            ("input_tokens_sum", "count"),
            ("output_tokens_sum", "count"),
        )
    ]
    rows.append(
        {
            "name": "error_rate", "a": a["error_rate"], "b": b["error_rate"], "kind": "percent",
            "change": _change(a["error_rate"], b["error_rate"]),
            "verdict": _verdict(
                (a["calls"], a["error_rate"], _binomial(a["error_rate"])), (b["calls"], b["error_rate"], _binomial(b["error_rate"]))
            ),
        }
    )  # fmt: skip
    for name in _COMPARED:
        kind = "money" if name == "cost_usd" else "ms" if name.endswith("_ms") else "count"
        x, y = ((s[f"{name}_n"], s[f"{name}_mean"], s[f"{name}_deviation"]) for s in (a, b))
        rows.append(
            {"name": name, "a": x[1], "b": y[1], "change": _change(x[1], y[1]), "verdict": _verdict(x, y), "kind": kind}
        )
        if kind == "ms":
            rows.append(
                {"name": f"{name}_p95", "a": a[f"{name}_p95"], "b": b[f"{name}_p95"], "kind": kind,
                 "change": _change(a[f"{name}_p95"], b[f"{name}_p95"]), "verdict": ""}
            )  # fmt: skip
    return rows + _compared_scores(engine, one, other)


_MOST_NAMES: Final = 20
_MOST_VALUES: Final = 50
_MOST_COMPARED: Final = 4
_NOBODY: Final[Row] = {"n": 0, "mean": None, "deviation": None, "scores": 0, "share": None, "cost_per_good": None}


def _compared_scores(engine: Engine, one: PageScope, other: PageScope) -> list[Row]:
    """What was thought of the two groups, by the names of scores: the mean, the share of good ones, and what a good one costs."""
    if not has_scores(engine) or not engine.ask("SELECT 1 FROM llm_scores LIMIT 1"):
        return []
    a, b = (_score_statistics(engine, scope).get(None, {}) for scope in (one, other))
    rows: list[Row] = []
    for name in dict.fromkeys((*a, *b)):
        x, y = a.get(name, _NOBODY), b.get(name, _NOBODY)
        means = [(side["n"], side["mean"], side["deviation"]) for side in (x, y)]
        shares = [(side["scores"], side["share"], _binomial(side["share"])) for side in (x, y)]
        for column, words, kind, verdict in (
            ("mean", f"score {name}", "score", _verdict(means[0], means[1], "scores")),
            ("share", f"good, by {name}", "percent", _verdict(shares[0], shares[1], "scores")),
            ("cost_per_good", f"cost per good answer, by {name}", "money", ""),
        ):
            if x[column] is not None or y[column] is not None:
                rows.append(
                    {"name": f"score_{column}:{name}", "words": words, "a": x[column], "b": y[column], "kind": kind,
                     "change": _change(x[column], y[column]), "verdict": verdict}
                )  # fmt: skip
    return rows


def _score_statistics(engine: Engine, scope: PageScope, by: str | None = None) -> dict[Any, dict[str, Row]]:
    """What was thought of the calls of the scope, by each value of a filter's column (all under None without it) and by the names
    of scores, the commonest first. Raises `BadRequest`."""
    values = Values()
    value = "NULL" if by is None else column_of(by, engine, values)
    joined = " UNION ALL ".join(
        f"""SELECT s.*, c.trace_id AS call_trace, c.span_id AS call_span, c.cost AS call_cost, c.dimension
        FROM (SELECT * FROM llm_scores WHERE {of}) AS s JOIN grouped AS c
            ON {" AND ".join(f"s.{key} = c.{key}" for key in keys)}"""
        for keys, of in SUBJECTS.items()
    )
    chosen = f"""WITH grouped AS (
            SELECT trace_id, span_id, request_id, CASE WHEN {REPORTED} THEN cost_usd END AS cost, {value} AS dimension
            FROM llm_usage WHERE {scope.condition(engine, values)} AND {BILLED}), joined AS ({joined})"""
    found = engine.ask(
        f"""{chosen} SELECT dimension, name, count(value), avg(value), stddev_samp(value), count(*),
            count(CASE WHEN {GOOD} THEN 1 END)
        FROM (SELECT DISTINCT dimension, trace_id, span_id, request_id, name, source, value, label FROM joined) AS scores
        GROUP BY dimension, name ORDER BY 6 DESC, 2, 1""",
        values,
    )
    costs = engine.ask(
        f"""{chosen} SELECT dimension, name, sum(call_cost)
        FROM (SELECT DISTINCT dimension, name, call_trace, call_span, call_cost FROM joined) AS calls
        GROUP BY dimension, name""",
        values,
    )
    cost_of: dict[Any, Any] = {(row[0], row[1]): row[2] for row in costs}
    statistics: dict[Any, dict[str, Row]] = {}
    for dimension, name, n, mean, deviation, count, good in found:
        cost = cost_of.get((dimension, name))
        names = statistics.setdefault(dimension, {})
        if len(names) < _MOST_NAMES:
            names[name] = {
                "n": n, "mean": mean, "deviation": deviation, "scores": count, "share": good / count,
                "cost_per_good": cost / good if good and cost is not None else None,
            }  # fmt: skip
    return statistics


def compared_values(engine: Engine, scope: PageScope, by: str) -> tuple[list[Row], list[str]]:
    """The values of a filter side by side, the one with the most calls first: `value`, calls, failures, cost and time of one,
    and `scores` by name; and those names. Raises `BadRequest`."""
    values = Values()
    column = column_of(by, engine, values)
    columns = {
        "value": column, "calls": "count(*)", "error_rate": "avg(CASE WHEN status = 'error' THEN 1.0 ELSE 0.0 END)",
        **{name: f"avg({sql})" for name, sql in _COMPARED.items()}, "cost_usd_sum": SUMS["cost_usd"],
    }  # fmt: skip
    rows = _rows(
        engine,
        columns,
        f"""FROM llm_usage WHERE {scope.condition(engine, values)} AND {BILLED}
        GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MOST_VALUES}""",
        values,
    )
    found = _score_statistics(engine, scope, by) if has_scores(engine) else {}
    for row in rows:
        row[SCORES] = found.get(row["value"], {})
    names = dict.fromkeys(name for told in found.values() for name in told)
    return rows, [*names][:_MOST_COMPARED]


def _statistics(engine: Engine, scope: PageScope) -> Row:
    values = Values()
    columns = {"calls": "count(*)", "error_rate": "count(*) FILTER (WHERE status = 'error') / nullif(count(*), 0)"}
    for name, sql in _COMPARED.items():
        columns |= {
            f"{name}_n": f"count({sql})", f"{name}_mean": f"avg({sql})",
            f"{name}_deviation": f"stddev_samp({sql})", f"{name}_sum": f"sum({sql})"
        }  # fmt: skip
    for name in ("duration_ms", "time_to_first_chunk_ms"):
        columns[f"{name}_p95"] = engine.quantile(name, 0.95)
    return _rows(engine, columns, f"FROM llm_usage WHERE {scope.condition(engine, values)} AND {BILLED}", values)[0]


def _binomial(rate: float | None) -> float | None:
    return None if rate is None else math.sqrt(rate * (1 - rate))


def _change(a: Any, b: Any) -> float | None:
    return None if a is None or b is None or not a else (float(b) - float(a)) / float(a)


def _verdict(
    a: tuple[int, float | None, float | None], b: tuple[int, float | None, float | None], what: str = "calls"
) -> str:
    """Whether two means differ by more than chance would have it in 19 of 20 cases (Welch)."""
    if a[1] is None or b[1] is None:
        return ""
    if min(a[0], b[0]) < _ENOUGH:
        return f"too few {what} to tell: {min(a[0], b[0])}, of {_ENOUGH} at least"
    error = math.sqrt((a[2] or 0.0) ** 2 / a[0] + (b[2] or 0.0) ** 2 / b[0])
    difference = abs(float(b[1]) - float(a[1]))
    if not difference:
        return "the same"
    return "more than noise" if difference > _LIKELY * error else "within noise"


def _sum(values: Iterable[Any]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def tables(engine: Engine) -> dict[str, list[str]]:
    """The tables and views that are meant for people, with the names of their columns."""
    return {table: [column.name for column in columns] for table, columns in Account(engine).described().items()}
