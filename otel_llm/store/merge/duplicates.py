"""One row for a model call that several have reported.

Layers of one process, in one trace or not, at once or one after the other:

- Two instrumentations, of which one may sit on a framework and the other on the client, report one request each in its own way.
- They are told to be the same by what they say: one runs inside the other; or both name the same response and overlap in time;
  or, where one of the two names none, they overlap and agree in service, model, tokens and outcome.
- A report of LangChain's beside our row of an answer out of LangChain's cache is of that answer, with whatever tokens it was paid
  for once, unless the two name different responses.
- Rows that have come whole are not told to be the same by how they look: where they come from, that was settled.
- Ours counts, where it is among them; else the client's rather than the framework's; else the inner one.

Processes, which need know nothing of each other:

- A batch that two have seen completed began at the same time and has the same id: the first row stays.
- The result of a background response (`RETRIEVE`) belongs on the row of the call that created it, whichever comes first.

The row of a call that turns out to be reported already is taken out of `llm_usage` again; its span stays in `spans`. So the
account is the same in whatever order the reports arrive. Nothing is looked for in a store that only we write to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import TOKEN_COLUMNS
from otel_llm.prices.billing import CACHE_HIT, REPORTED, REPORTED_COST, SLOT_NS, literal
from otel_llm.store.merge.rows import IS_OURS, USAGE_COLUMNS, USAGE_TYPES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_WINDOW_US: Final = 10 * 60 * 10**6
"""How much earlier than a batch's first span a report of the same call can have begun: as long as a client waits by default."""
_FRAMEWORKS: Final = "langchain|langgraph|llama_?index|crewai|haystack|agents|agno|dspy|smolagents|pydantic_ai"
"""Scopes above a client."""
_CACHES: Final = "langchain|langgraph"
"""Scopes that can report an answer out of a cache that we know of, which is LangChain's."""
_NEVER: Final = 2**62

_RESULT: Final = (
    *("output_chars", "reasoning_chars"),
    "response_model",
    "status",
    "error_type",
    "finish_reasons",
    *TOKEN_COLUMNS,
    "service_tier",
    "error_message",
    "units",
)
"""What only the result of a background response tells."""
_OF_THE_CALL: Final = tuple(
    column
    for column in USAGE_COLUMNS
    if column not in (*_RESULT, "usage_source", "cost_usd", "price_source", "row_version")
)

_COMPARED: Final = (
    "operation", "response_id", "request_model", "response_model", "input_tokens", "output_tokens", "service_name",
)  # fmt: skip
_IDENTITY: Final = {"trace_id": "VARCHAR", "span_id": "VARCHAR"}
_SEEN: Final = {
    **_IDENTITY,
    "parent_span_id": "VARCHAR",
    "start_us": "BIGINT",
    "end_us": "BIGINT",
    "scope": "VARCHAR",
    **{name: USAGE_TYPES[name] for name in _COMPARED},
    **dict.fromkeys(("failed", "is_result", "is_new", "cache_hit", "is_received"), "BOOLEAN"),
    "level": "TINYINT",
}
TABLES: Final = {
    "seen": _SEEN,
    "nested": {**_IDENTITY, "above_id": "VARCHAR"},
    "covered": {**_IDENTITY, "is_new": "BOOLEAN"},
    "result": {
        **{name: USAGE_TYPES[name] for name in (*_RESULT, "output_messages")},
        "reported_cost_usd": USAGE_TYPES["cost_usd"],
        **_IDENTITY,
        **{f"call_{name}": kind for name, kind in _IDENTITY.items()},
        **dict.fromkeys(("is_new", "call_is_new", "is_complete"), "BOOLEAN"),
    },
}
"""Temporary tables, and the types of their columns."""


def settle(
    connection: DuckDBPyConnection,
    first_us: int,
    shared: bool,
    stored: str | None = None,
    received: str = "received_rows",
) -> bool:
    """Leaves each call to be counted once, in the table `batch` and in `llm_usage`. Returns whether `batch` has changed.

    `shared`: the batch has calls that others may have reported too. `stored`: the schema of tables that cannot be written,
    beside `new_llm_usage`; rows to be left out of those go into the table `hidden`. `received`: what tells the rows that have come
    whole, of which layers of one process are settled where they come from.
    """
    tables = ["llm_usage"] if stored is None else [f"{stored}.llm_usage", "new_llm_usage"]
    spans = ["spans"] if stored is None else [f"{stored}.spans", "new_spans"]
    since = f"make_timestamptz({first_us - _WINDOW_US})"
    if not shared and not any(connection.execute(_may_be_shared(table, since)).fetchall()[0][0] for table in tables):
        return False
    retrieved = f"SELECT response_id FROM batch WHERE model_call AND operation = {literal(semconv.RETRIEVE)}"
    # The call that a result belongs to may be of any age; without results, only the last row groups are read.
    older = f"OR response_id IN ({retrieved})" if connection.execute(f"{retrieved} LIMIT 1").fetchall() else ""
    for table in TABLES:
        connection.execute(f"TRUNCATE {table}")
    connection.execute(_seen(tables, since, older, received))
    calls, results = connection.execute("SELECT count(*), count(*) FILTER (WHERE is_result) FROM seen").fetchall()[0]
    if calls < 2:
        return False
    connection.execute(_nested(spans, since))
    connection.execute(_covered())
    if results:
        connection.execute(_results(tables))
        connection.execute(_complete_new())
        connection.execute(_complete_stored(tables))
    connection.execute("UPDATE batch SET model_call = false FROM covered WHERE is_new AND " + _same("batch", "covered"))
    if stored is not None:
        connection.execute("INSERT INTO hidden SELECT trace_id, span_id FROM covered WHERE NOT is_new")
    else:
        connection.execute(_RETRACT)
    connection.execute(f"DELETE FROM {tables[-1]} USING covered WHERE NOT is_new AND {_same(tables[-1], 'covered')}")
    (covered,) = connection.execute("SELECT count(*) FROM covered").fetchall()[0]
    return bool(results or covered)


def _same(one: str, other: str) -> str:
    return f"{one}.trace_id = {other}.trace_id AND {one}.span_id = {other}.span_id"


_RETRACT: Final = """INSERT INTO retracted_calls (trace_id, span_id, started_at, row_version)
    SELECT trace_id, span_id, started_at, coalesce(row_version, 1) + 1
    FROM llm_usage SEMI JOIN (FROM covered WHERE NOT is_new) AS covered USING (trace_id, span_id)"""


def _may_be_shared(table: str, since: str) -> str:
    return f"""SELECT exists(FROM {table} WHERE started_at >= {since}
        AND (operation = {literal(semconv.RETRIEVE)} OR NOT {IS_OURS}))"""


def _seen(tables: list[str], since: str, older: str, received: str) -> str:
    """The calls of the batch, and those stored that may be the same."""
    columns = f"""trace_id, span_id, parent_span_id, epoch_us(started_at) AS start_us,
        coalesce(epoch_us(started_at) + CAST(duration_ms * 1000 AS BIGINT), {_NEVER}) AS end_us,
        coalesce(instrumentation, '') AS scope, {", ".join(_COMPARED)},
        status NOT IN ('ok', 'partial', 'interrupted') AS failed,
        operation = {literal(semconv.RETRIEVE)} AS is_result"""
    # What we have estimated nobody has told.
    told = ", ".join(f"CASE WHEN {REPORTED} THEN {name} END AS {name}" for name in ("input_tokens", "output_tokens"))
    is_hit = f"coalesce(price_source = {literal(CACHE_HIT)}, false)"
    stored = " UNION ALL ".join(
        f"""SELECT false AS is_new, {is_hit} AS cache_hit, (trace_id, span_id) IN
                (SELECT (trace_id, span_id) FROM {received} AS whole WHERE whole.started_at >= {since}) AS is_received, {columns}
            FROM (SELECT * REPLACE ({told}) FROM {table})
            WHERE started_at >= {since} AND ({_concerns_the_batch(tables, since)}) {older}"""
        for table in tables
    )
    return f"""INSERT INTO seen BY NAME
    SELECT *, CASE WHEN starts_with(scope, {literal(semconv.SPAN_SCOPES)}) THEN 2
                   WHEN regexp_matches(scope, {literal(_FRAMEWORKS)}) THEN 0 ELSE 1 END AS level
    FROM (SELECT true AS is_new, cache_hit, received_version IS NOT NULL AS is_received, {columns}
        FROM batch WHERE model_call UNION ALL {stored})"""


def _concerns_the_batch(tables: list[str], since: str) -> str:
    """The condition on a stored call that one of the batch may be the same: of thousands a second most are of no concern."""
    scopes = " UNION ALL ".join(
        f"SELECT coalesce(service_name, '') AS service, coalesce(instrumentation, '') AS scope FROM {table} WHERE {condition}"
        for table, condition in [("batch", "model_call"), *((table, f"started_at >= {since}") for table in tables)]
    )
    return f"""trace_id IN (SELECT trace_id FROM batch WHERE model_call)
        OR response_id IN (SELECT response_id FROM batch WHERE model_call AND response_id IS NOT NULL)
        OR coalesce(service_name, '') IN (SELECT service FROM ({scopes}) GROUP BY service HAVING min(scope) <> max(scope))"""


def _nested(spans: list[str], since: str) -> str:
    """Which calls run inside which, however many spans are between them."""
    links = " UNION ALL ".join(
        f"""SELECT trace_id, span_id, parent_span_id FROM {table}
            WHERE started_at >= {since} AND trace_id IN (SELECT trace_id FROM batch)"""
        for table in spans
    )
    return f"""INSERT INTO nested BY NAME
    WITH RECURSIVE links AS ({links}), above (trace_id, span_id, above_id) AS (
        SELECT trace_id, span_id, parent_span_id FROM seen
        WHERE parent_span_id IS NOT NULL AND trace_id IN (SELECT trace_id FROM batch)
        UNION
        SELECT above.trace_id, above.span_id, links.parent_span_id
        FROM above JOIN links ON links.trace_id = above.trace_id AND links.span_id = above.above_id
        WHERE links.parent_span_id IS NOT NULL
    )
    SELECT above.trace_id, above.span_id, above_id FROM above JOIN seen
        ON seen.trace_id = above.trace_id AND seen.span_id = above.above_id"""


def _covered() -> str:
    """The calls that another one stands for. Each rule points one way only, so that one of the reports is always left."""
    is_nested = """EXISTS (FROM nested WHERE nested.trace_id = a.trace_id AND b.trace_id = a.trace_id
        AND ((nested.span_id, above_id) IN ((a.span_id, b.span_id), (b.span_id, a.span_id))))"""
    side_by_side = f"""a.level < 2 AND a.scope <> b.scope AND (b.level, b.scope) > (a.level, a.scope)
        AND a.start_us <= b.end_us AND b.start_us <= a.end_us AND (a.is_new OR b.is_new) AND NOT {is_nested}"""
    is_guessed = f"{side_by_side} AND NOT (a.is_received AND b.is_received)"
    same_model = """coalesce(a.request_model = b.request_model, false) OR coalesce(a.response_model = b.response_model, false)
        OR coalesce(a.request_model = b.response_model, false) OR coalesce(a.response_model = b.request_model, false)"""
    which = "SELECT a.trace_id, a.span_id, a.is_new FROM"
    # In a service that one instrumentation reports nothing is reported twice; equal calls of one are as many as they like.
    mixed = """coalesce(service_name, '') IN
        (SELECT coalesce(service_name, '') FROM seen GROUP BY ALL HAVING min(scope) <> max(scope))"""
    unnamed = f"{mixed} AND response_id IS NULL"
    looking_alike = "".join(
        f"""UNION {which} (FROM seen WHERE {one}) AS a JOIN (FROM seen WHERE {other}) AS b
            ON a.service_name IS NOT DISTINCT FROM b.service_name
            AND a.input_tokens IS NOT DISTINCT FROM b.input_tokens AND a.output_tokens IS NOT DISTINCT FROM b.output_tokens
            AND a.failed = b.failed
        WHERE {is_guessed} AND ({same_model})
    """
        for one, other in ((unnamed, mixed), (mixed, unnamed))
    )
    return f"""INSERT INTO covered BY NAME
    {which} nested JOIN seen AS a USING (trace_id) JOIN seen AS b USING (trace_id)
        WHERE a.level < 2 AND (a.scope <> b.scope OR a.response_id = b.response_id)
        AND (nested.above_id = a.span_id AND nested.span_id = b.span_id
             OR b.level = 2 AND nested.above_id = b.span_id AND nested.span_id = a.span_id)
    UNION
    {which} seen AS a JOIN seen AS b USING (response_id) WHERE {side_by_side}
    {looking_alike}
    UNION
    {which} seen AS a JOIN (FROM seen WHERE cache_hit AND level = 2) AS b ON a.service_name IS NOT DISTINCT FROM b.service_name
        WHERE a.level = 0 AND regexp_matches(a.scope, {literal(_CACHES)}) AND {is_guessed} AND ({same_model})
            AND coalesce(a.response_id = b.response_id, true)
    UNION
    {which} seen AS a JOIN seen AS b USING (response_id, operation)
        WHERE a.level = 2 AND b.level = 2 AND a.is_new AND (a.is_result OR a.start_us = b.start_us)
        AND (NOT b.is_new OR (b.start_us, b.span_id) < (a.start_us, a.span_id))
        AND (a.trace_id, a.span_id) <> (b.trace_id, b.span_id)"""


def _results(tables: list[str]) -> str:
    """What the results tell that are not counted yet, and the calls that they are the results of."""
    told = f"CASE WHEN price_source = {literal(REPORTED_COST)} THEN cost_usd END AS reported_cost_usd"
    rows = " UNION ALL BY NAME ".join(["SELECT * FROM batch", *(f"SELECT *, {told} FROM {table}" for table in tables)])
    reported = ", ".join(f"reported.{column}" for column in (*_RESULT, "reported_cost_usd", "output_messages"))
    return f"""INSERT INTO result BY NAME
    SELECT {reported}, result.trace_id, result.span_id, result.is_new, call.trace_id AS call_trace_id,
        call.span_id AS call_span_id, call.is_new AS call_is_new, call.input_tokens IS NOT NULL AS is_complete
    FROM seen AS result JOIN seen AS call USING (response_id)
    JOIN ({rows}) AS reported ON {_same("reported", "result")}
    WHERE result.is_result AND NOT call.is_result AND call.level = 2 AND (result.is_new OR call.is_new)
        AND NOT EXISTS (FROM covered WHERE {_same("covered", "result")})
    QUALIFY row_number() OVER (PARTITION BY result.trace_id, result.span_id ORDER BY call.start_us DESC) = 1"""


def _complete_new() -> str:
    """A call of the batch gets what its result, new or stored, tells."""
    reported = ", ".join(f"{column} = result.{column}" for column in (*_RESULT, "reported_cost_usd"))
    return f"""UPDATE batch SET is_given = false, {reported},
        output_messages = coalesce(result.output_messages, batch.output_messages)
    FROM result WHERE call_is_new AND NOT is_complete
        AND batch.trace_id = call_trace_id AND batch.span_id = call_span_id"""


def _complete_stored(tables: list[str]) -> str:
    """A result of the batch takes the place of the stored call. Any other result is covered by its call."""
    rows = " UNION ALL BY NAME ".join(f"SELECT * FROM {table}" for table in tables)
    columns = ", ".join(
        f"{column} = coalesce(batch.{column}, call.{column})"
        if column == "output_messages"
        else f"{column} = call.{column}"
        for column in _OF_THE_CALL
    )
    takes_over = "NOT call_is_new AND NOT is_complete AND result.is_new"
    return f"""
    INSERT INTO covered SELECT call_trace_id, call_span_id, false FROM result WHERE {takes_over};
    INSERT INTO covered SELECT trace_id, span_id, is_new FROM result WHERE NOT ({takes_over});
    UPDATE batch SET is_given = false, {columns}, row_version = coalesce(call.row_version, 1) + 1,
        price_slot = epoch_us(call.started_at) * 1000 // {SLOT_NS}
    FROM result, ({rows}) AS call
    WHERE {takes_over} AND {_same("batch", "result")}
        AND call.trace_id = call_trace_id AND call.span_id = call_span_id"""
