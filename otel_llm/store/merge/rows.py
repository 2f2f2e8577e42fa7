"""The SQL that turns journal lines into rows, generated from `conventions`, so that every attribute name lives there alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from otel_llm.conventions import dialects, semconv
from otel_llm.conventions.token_usage import MAX_TOKENS, TOKEN_COLUMNS
from otel_llm.prices.billing import CACHE_HIT, LITELLM, OVERRIDE, REFUSED, REPORTED_COST, SLOT_NS, literal
from otel_llm.prices.rates import IN_PLACE_OF_TOKENS, LEAST_BILLED

PRICE_KEY: Final = ("provider", "request_model", "response_model", "service_tier", "price_slot")
"""What a price depends on, beside the number of tokens."""

# Numbers are read as text: one that is out of range must not make the whole batch fail.
_LINE: Final = {
    "k": "VARCHAR",
    "t": "VARCHAR",
    "s": "VARCHAR",
    "p": "VARCHAR",
    "n": "VARCHAR",
    "kd": "VARCHAR",
    "st": "VARCHAR",
    "et": "VARCHAR",
    "sts": "VARCHAR",
    "std": "VARCHAR",
    "a": "JSON",
    "e": "JSON",
    "l": "JSON",
    "r": "JSON",
    "sc": "VARCHAR",
    "scv": "VARCHAR",
    "f": "VARCHAR",
    "ag": "VARCHAR",
    "wf": "VARCHAR",
    "x": "BIGINT",
    "o": "VARCHAR",
    "w": "VARCHAR",
    "u": "JSON",
    **dict.fromkeys(semconv.LENGTHS, "VARCHAR"),
}

SPAN_COLUMNS: Final = (
    "trace_id", "span_id", "parent_span_id", "name", "kind", "start_ns", "end_ns", "started_at", "duration_ms",
    "status_code", "status_message", "status", "operation", "service_name", "attributes", "events", "links", "resource",
    "scope_name", "scope_version", "trace_flags",
)  # fmt: skip

USAGE_COLUMNS: Final = (
    "started_at", "duration_ms", "time_to_first_chunk_ms", "trace_id", "span_id", "parent_span_id", "service_name",
    "operation", "provider", "request_model", "response_model", "response_id", "stream", "status", "error_type",
    "finish_reasons", *TOKEN_COLUMNS, "usage_source", "cost_usd", "price_source", "module", "user_id", "session_id",
    "conversation_id", "request_id", "tags", "agent_name", "workflow_name", "profile", "server_address",
    "instrumentation", "attempts", "input_messages", "output_messages", "service_tier", "error_message", "conversation_source",
    "units", "row_version", "input_chars", "output_chars", "reasoning_chars",
)  # fmt: skip

CHAIN: Final = "previous_response_id"
"""The `conversation_source` of calls whose conversation nobody says: see `conversations.py`."""


# --- reading attributes -----------------------------------------------------------------------------------------------
# The query reads every attribute once, into a column that is named after it; what follows works on those columns. Written
# out in place, DuckDB would spend more time on planning a small merge than on the merge.

_READ: Final[dict[str, str]] = {
    **TOKEN_COLUMNS,
    "operation_name": semconv.OPERATION,
    "provider_name": semconv.PROVIDER,
    "request_model": semconv.REQUEST_MODEL,
    "response_model": semconv.RESPONSE_MODEL,
    "response_id": semconv.RESPONSE_ID,
    "stream": semconv.REQUEST_STREAM,
    "own_status": semconv.STATUS,
    "error_type": semconv.ERROR_TYPE,
    "finish_reasons": semconv.FINISH_REASONS,
    "time_to_first_chunk": semconv.TIME_TO_FIRST_CHUNK,
    "stated_usage_source": semconv.USAGE_SOURCE,
    "module": semconv.MODULE,
    "user_id": semconv.USER_ID,
    "session_id": semconv.SESSION_ID,
    "stated_conversation": semconv.CONVERSATION_ID,
    "previous_response": semconv.REQUEST_PREVIOUS_RESPONSE,
    "request_id": semconv.REQUEST_ID,
    "agent_name": semconv.AGENT_NAME,
    "workflow_name": semconv.WORKFLOW_NAME,
    "profile": semconv.PROFILE,
    "server_address": semconv.SERVER_ADDRESS,
    "recorded_by": semconv.RECORDED_BY,
    "attempts": semconv.ATTEMPTS,
    "input_messages": semconv.INPUT_MESSAGES,
    "output_messages": semconv.OUTPUT_MESSAGES,
    "cache_hit": semconv.CACHE_HIT,
    "not_sent": semconv.NOT_SENT,
    "service_tier": semconv.OPENAI_RESPONSE_SERVICE_TIER,
    "invocation": dialects.INVOCATION_PARAMETERS,
    "reported_cost": semconv.REPORTED_COST_USD,
    "litellm_cost": semconv.LITELLM_COST_USD,
}

_KINDS: Final = {f"kind_{number}": name for number, name in enumerate(dialects.KINDS)}
_NO_SPANS: Final = {f"no_span_{number}": name for number, (name, _) in enumerate(dialects.NO_SPANS)}
_ALL_READ: Final = _READ | _KINDS | _NO_SPANS


def _read_attributes() -> str:
    """Columns with the text of each attribute, or of the first of its older names that is there."""
    columns = []
    for column, attribute in _ALL_READ.items():
        read = [f'v."{name}"' for name in dialects.names(attribute)]
        text = read[0] if len(read) == 1 else f"coalesce({', '.join(read)})"
        columns.append(f"{text} AS {column}")
    return ", ".join(columns)


def _attribute_spec() -> str:
    """What `from_json` is to read: every attribute, in all its names, as text."""
    names = [name for attribute in _ALL_READ.values() for name in dialects.names(attribute)]
    return literal(json.dumps(dict.fromkeys(names, "VARCHAR")))


def _operation() -> str:
    """What was done, as `dialects.operation_of` has it."""
    known = []
    for column, kind in _KINDS.items():
        cases = " ".join(
            f"WHEN {literal(theirs)} THEN {literal(ours)}" for theirs, ours in dialects.KINDS[kind].items()
        )
        known.append(f"CASE lower({column}) {cases} ELSE lower({column}) END")
    theirs = " ".join(f"WHEN {literal(name)} THEN {literal(ours)}" for name, ours in dialects.OPERATIONS.items())
    stated = f"coalesce(CASE operation_name {theirs} ELSE operation_name END, {', '.join(known)})"
    return f"CASE WHEN {_is_span()} THEN {stated} END"


def _provider() -> str:
    """Who was asked, as `dialects.provider_of` has it."""
    endings = "|".join(re.escape(ending) for ending in dialects.PROVIDER_ENDINGS)
    return f"regexp_replace(lower(provider_name), {literal(f'({endings})$')}, '')"


def _is_span() -> str:
    """Whether it is none of those that a dialect writes beside the span of a call."""
    pairs = zip(_NO_SPANS, dialects.NO_SPANS, strict=True)
    return " AND ".join(f"{column} IS DISTINCT FROM {literal(value)}" for column, (_, value) in pairs)


def _model_call() -> str:
    """Whether a span is a model call. Where nobody says what was done, a model or a token count must be there."""
    tree, calls = (", ".join(map(literal, sorted(names))) for names in (semconv.TREE_OPERATIONS, dialects.CALLS))
    columns = {attribute: column for column, attribute in _READ.items()}
    marks = ", ".join(columns[attribute] for attribute in dialects.CALL_MARKS)
    return f"""coalesce(operation NOT IN ({tree}), true) AND (
        operation_name IS NOT NULL OR coalesce(operation IN ({calls}), false)
        OR (coalesce(operation, provider_name) IS NOT NULL AND coalesce({marks}) IS NOT NULL)) AND {_is_span()}"""


def _tokens(column: str) -> str:
    number = f"TRY_CAST({column} AS BIGINT)"
    return f"CASE WHEN {number} BETWEEN 0 AND {MAX_TOKENS} THEN {number} END"


def _usd(column: str) -> str:
    return f"CASE WHEN TRY_CAST({column} AS DOUBLE) BETWEEN 0 AND 1e8 THEN TRY_CAST({column} AS DECIMAL(18, 9)) END"


def _json(column: str) -> str:
    """Content is an attribute that holds JSON as text, or is JSON; anything else becomes a JSON string."""
    return f"CASE WHEN json_valid({column}) THEN CAST({column} AS JSON) ELSE to_json({column}) END"


def _texts(column: str) -> str:
    """A list of texts from a JSON array, or from one text."""
    return f"""CASE WHEN {column} LIKE '[%' THEN coalesce(TRY(from_json({column}, '["VARCHAR"]')), [{column}])
                    WHEN {column} IS NOT NULL THEN [{column}] END"""


def _first_chunk_ms() -> str:
    """The time to the first chunk: as it is said, or told by an event that others add."""
    names = ", ".join(map(literal, dialects.FIRST_CHUNK_EVENTS))
    events = """from_json(e, '[{"name": "VARCHAR", "time_unix_nano": "BIGINT"}]')"""
    return f"""coalesce(TRY_CAST(time_to_first_chunk AS DOUBLE) * 1000,
        CASE WHEN json_extract_string(e, '$[0].name') IN ({names})
             THEN ([event.time_unix_nano FOR event IN {events} IF event.name IN ({names})][1] - st) / 1e6 END)"""


def _has(source: str, prefix: str) -> str:
    """Whether an attribute, or a text in one, begins with `prefix`."""
    beginning = literal(f'"{prefix}')
    return f"contains(CAST({source} AS VARCHAR), {beginning})"


def _below(source: str, prefix: str, read: str = "{}") -> str:
    """A map of the attributes that begin with `prefix`, without it; `read` is the SQL for what is kept of the text of one."""
    names = f"[key FOR key IN json_keys({source}) IF starts_with(key, {literal(prefix)})]"
    pointer = "'/' || replace(replace(key, '~', '~0'), '/', '~1')"
    value = read.format(f"json_extract_string({source}, {pointer})")
    return f"""CASE WHEN {_has(source, prefix)} THEN map(
        [key[{len(prefix) + 1}:] FOR key IN {names}], [{value} FOR key IN {names}]) END"""


_NUMBER: Final = "CASE WHEN TRY_CAST({0} AS DOUBLE) BETWEEN 0 AND 1e12 THEN TRY_CAST({0} AS DOUBLE) END"
"""What is no number of something stays as unknown: whoever prices it must see that it is there."""


_READ_AS_IT_IS: Final = """format = 'newline_delimited', records = 'true', compression = 'uncompressed',
    auto_detect = false, hive_partitioning = false, union_by_name = false, ignore_errors = false"""
"""What DuckDB would guess from the first lines or from the path: below a directory `k=1` it would read a column `k`."""


def load_lines(files: Iterable[str], longest_line: int) -> str:
    """Reads journal lines into the table `line`. Each file begins with its segment's header line."""
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in _LINE.items())
    paths = ", ".join(literal(_no_pattern(path)) for path in files)
    names = ", ".join((*_LINE, "filename"))
    return f"""INSERT INTO line ({names}) SELECT {names} FROM read_json([{paths}], {_READ_AS_IT_IS}, filename = true,
        columns = {{{columns}}}, maximum_object_size = {max(longest_line * 2, 2**20)})"""


def _no_pattern(path: str) -> str:
    """`path` as a pattern that matches it alone: DuckDB's readers take the name of a file for one."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _fill_batch() -> str:
    """A row of `batch` for each record in `line`: the columns of `spans`, those of `llm_usage` but the cost, and what the
    price depends on."""
    return f"""
INSERT INTO batch BY NAME
WITH header AS (
    SELECT filename, any_value(r) AS resource, any_value(w) AS writer FROM line WHERE k = 'h' GROUP BY filename
), parsed AS (
    SELECT line.* REPLACE (
            coalesce(TRY_CAST(st AS BIGINT), TRY_CAST(et AS BIGINT), 0) AS st,
            TRY_CAST(et AS BIGINT) AS et,
            TRY_CAST(f AS UTINYINT) AS f),
        coalesce(line.r, header.resource) AS resource, header.writer AS writer, from_json(line.a, {_attribute_spec()}) AS v
    FROM line LEFT JOIN header USING (filename)
    WHERE k IN ('e', 's') AND t IS NOT NULL AND s IS NOT NULL
), named AS MATERIALIZED (
    SELECT * EXCLUDE (v), {_read_attributes()} FROM parsed
), judged AS (
    SELECT * REPLACE (coalesce(TRY_CAST(invocation AS JSON) ->> '$.model', request_model) AS request_model),
        TRY_CAST(invocation AS JSON) AS asked, request_model AS named_model, {_operation()} AS operation,
        CASE WHEN k = 's' THEN 'interrupted'
             WHEN own_status IN ({", ".join(map(literal, semconv.STATUSES))}) THEN own_status
             WHEN error_type IS NOT NULL OR sts = 'ERROR' THEN 'error'
             ELSE 'ok' END AS status
    FROM named
)
SELECT
    t AS trace_id, s AS span_id, p AS parent_span_id, n AS name, kd AS kind, st AS start_ns, et AS end_ns,
    make_timestamptz(st // 1000) AS started_at,
    CASE WHEN et >= st THEN (et - st) / 1e6 END AS duration_ms,
    sts AS status_code, std AS status_message, status, operation,
    json_extract_string(resource, '$."{semconv.SERVICE_NAME}"') AS service_name,
    a AS attributes, e AS events, l AS links, resource, sc AS scope_name, scv AS scope_version, f AS trace_flags,
    x IS NULL AND {_model_call()} AS model_call,
    {_first_chunk_ms()} AS time_to_first_chunk_ms,
    {_provider()} AS provider, request_model,
    coalesce(response_model, CASE WHEN asked ->> '$.model' IS NOT NULL AND status <> 'error' THEN named_model END)
        AS response_model,
    response_id,
    coalesce(TRY_CAST(stream AS BOOLEAN), TRY_CAST(asked ->> '$.stream' AS BOOLEAN), false) AS stream,
    CASE WHEN error_type IS NULL AND status = 'error' AND contains(CAST(e AS VARCHAR), 'exception.type')
         THEN json_extract_string(e, '$[*].attributes."exception.type"')[1] ELSE error_type END AS error_type,
    {_texts("finish_reasons")} AS finish_reasons,
    {", ".join(f"{_tokens(column)} AS {column}" for column in TOKEN_COLUMNS)},
    stated_usage_source, module, user_id, session_id,
    coalesce(stated_conversation, nullif(previous_response, '')) AS conversation_id,
    CASE WHEN stated_conversation IS NULL AND previous_response <> '' THEN {literal(CHAIN)} END AS conversation_source,
    request_id,
    {_below("a", semconv.TAG_PREFIX)} AS tags,
    coalesce(agent_name, ag) AS agent_name, coalesce(workflow_name, wf) AS workflow_name,
    profile, server_address, coalesce(recorded_by, sc) AS instrumentation,
    TRY_CAST(attempts AS INTEGER) AS attempts,
    {_json("input_messages")} AS input_messages,
    {_json("output_messages")} AS output_messages,
    service_tier, std AS error_message,
    1 AS row_version,
    {_tokens(semconv.INPUT_CHARACTERS)} AS input_chars, {_tokens(semconv.OUTPUT_CHARACTERS)} AS output_chars,
    {_tokens(semconv.REASONING_CHARACTERS)} AS reasoning_chars,
    {_usd("reported_cost")} AS reported_cost_usd, {_usd("litellm_cost")} AS litellm_cost_usd,
    coalesce(TRY_CAST(cache_hit AS BOOLEAN), false) AS cache_hit,
    status = {literal(semconv.REFUSED)}
        OR (status = 'error' AND ({_is_refusal()} OR coalesce(TRY_CAST(not_sent AS BOOLEAN), false))) AS refused,
    st // {SLOT_NS} AS price_slot, o AS endpoint, writer
FROM judged"""


# --- rows that come whole ---------------------------------------------------------------------------------------------
_OF_THE_LINE: Final = {"trace_id": "t", "span_id": "s"}
_JSON_TYPES: Final = {"finish_reasons": ["VARCHAR"], "tags": "MAP(VARCHAR,VARCHAR)", "units": "MAP(VARCHAR,VARCHAR)"}


def _fill_received() -> str:
    """A row of `batch` for each account record in `line`: a row of `llm_usage` that another store has, or takes back."""
    spec = literal(json.dumps({name: _JSON_TYPES.get(name, "VARCHAR") for name in (*USAGE_COLUMNS, "retracted")}))
    units = f"map(map_keys(v.units), [{_NUMBER.format('one')} FOR one IN map_values(v.units)])"
    columns = []
    for name in USAGE_COLUMNS:
        kind = USAGE_TYPES[name]
        if name in _OF_THE_LINE:
            read = _OF_THE_LINE[name]
        elif name == "units":
            read = f"CASE WHEN v.units IS NOT NULL THEN {units} END"
        elif name == "row_version":
            read = "greatest(coalesce(TRY_CAST(v.row_version AS INTEGER), 1), 1)"
        elif name == "started_at":
            read = "coalesce(TRY_CAST(v.started_at AS TIMESTAMPTZ), make_timestamptz(0))"
        elif kind == "JSON":
            read = _json(f"v.{name}")
        elif name in _JSON_TYPES or kind == "VARCHAR":
            read = f"v.{name}"
        else:
            read = f"TRY_CAST(v.{name} AS {kind})"
        columns.append(f"{read} AS {_TOLD.get(name, name)}")
    return f"""
INSERT INTO batch BY NAME
SELECT * EXCLUDE (retracted), row_version AS received_version, NOT retracted AS model_call, true AS is_given,
    epoch_us(started_at) * 1000 AS start_ns, epoch_us(started_at) * 1000 // {SLOT_NS} AS price_slot,
    CASE WHEN told_source = {literal(REPORTED_COST)} THEN told_cost_usd END AS reported_cost_usd,
    CASE WHEN told_source = {literal(LITELLM)} THEN told_cost_usd END AS litellm_cost_usd,
    coalesce(told_source = {literal(CACHE_HIT)}, false) AS cache_hit,
    coalesce(told_source = {literal(REFUSED)}, false) AS refused
FROM (
    SELECT {", ".join(columns)}, coalesce(TRY_CAST(v.retracted AS BOOLEAN), false) AS retracted
    FROM (SELECT t, s, from_json(u, {spec}) AS v FROM line WHERE k = 'u' AND t IS NOT NULL AND s IS NOT NULL)
)"""


_TOLD: Final = {"usage_source": "stated_usage_source", "cost_usd": "told_cost_usd", "price_source": "told_source"}
"""What is computed of a span, and told by an account record: the column of `batch` that has it."""


_REFUSALS: Final = "|".join(
    (
        "BadRequest",
        "Authentication",
        "PermissionDenied",
        "NotFound",
        "Conflict",
        "UnprocessableEntity",
        "RateLimit",
        "InternalServer",
    )
)
"""What the clients call the statuses from 400 on, for instrumentations that record the class."""


def _is_refusal() -> str:
    """Whether `error_type` says that the provider answered with a status from 400 on."""
    return f"coalesce(regexp_full_match(error_type, '[45][0-9][0-9]|(.*[.])?({_REFUSALS})Error'), false)"


IS_OURS: Final = f"starts_with(coalesce(instrumentation, ''), {literal(semconv.SPAN_SCOPES)})"
"""The condition on `instrumentation` for what our own instrumentors have recorded."""

_LEFT: Final = ", ".join(map(literal, (semconv.PARTIAL, semconv.CANCELLED, semconv.INTERRUPTED)))
UNREPORTED: Final = f"""model_call AND input_tokens IS NULL AND output_tokens IS NULL
    AND coalesce(input_chars, output_chars) IS NOT NULL AND request_model IS NOT NULL AND NOT cache_hit AND NOT refused
    AND reported_cost_usd IS NULL AND is_given IS NOT TRUE
    AND (status IN ({_LEFT}) OR (status = {literal(semconv.ERROR)} AND time_to_first_chunk_ms IS NOT NULL))"""
"""The condition on the table `batch` for a call that was billed, as far as anybody can tell, and told no usage."""

_MEASURE_BATCH: Final = f"""
SELECT count(*), count(*) FILTER (WHERE status = 'interrupted' AND is_given IS NOT TRUE), count(DISTINCT trace_id || span_id),
    min(start_ns) // 1000, max(start_ns) // 1000,
    coalesce(bool_or({_has("attributes", semconv.UNIT_PREFIX)}), false),
    coalesce(bool_or(model_call AND (operation IN ({literal(semconv.BATCH)}, {literal(semconv.RETRIEVE)})
        OR NOT {IS_OURS})), false),
    count(endpoint) > 0, count(conversation_source) > 0,
    coalesce(bool_or({UNREPORTED}), false), count(received_version) > 0
FROM batch
"""
"""Rows, rows that never ended, different spans, the microseconds of the first start and the last, whether there is something
billed by other things than tokens, whether there are calls that others may have reported too (see `duplicates.py`), whether there
are spans that go out over OTLP, calls that go on from others (see `conversations.py`), calls to estimate (see `estimates.py`), and
rows that have come whole."""

_FILL_UNITS: Final = f"""UPDATE batch SET units = {_below("attributes", semconv.UNIT_PREFIX, _NUMBER)}
    WHERE {_has("attributes", semconv.UNIT_PREFIX)}"""
"""Apart from `_fill_batch`, since most batches have none and it takes its time."""

DROP_REPEATED: Final = """
DELETE FROM batch WHERE rowid IN (
    SELECT rowid FROM batch
    QUALIFY row_number() OVER (PARTITION BY trace_id, span_id, received_version IS NULL
        ORDER BY received_version DESC, status = 'interrupted', end_ns DESC) > 1)
"""
"""Leaves each span of the batch once, its end before its start, and of each row that has come whole the last version."""


def _same_span(table: str, first_us: int, last_us: int) -> str:
    """The batch's spans in `table`. The batch's time range is spelled out so that older row groups are not read."""
    return f"""{same_as(table)}
        AND {table}.started_at BETWEEN make_timestamptz({first_us}) AND make_timestamptz({last_us})"""


def any_known(first_us: int, last_us: int) -> str:
    """Whether any span of the batch is stored already, and whether the store has rows that came whole.

    The account keeps calls whose spans retention has removed.
    """
    identity = "SELECT trace_id, span_id, started_at"
    stored = f"({identity} FROM spans UNION ALL {identity} FROM llm_usage) AS stored"
    return f"""SELECT exists(FROM {stored}, batch WHERE {_same_span("stored", first_us, last_us)}),
        exists(FROM received_rows)"""


def next_version(stored: str, first_us: int, last_us: int) -> str:
    """Counts on from what `stored` has as interrupted, where the batch brings its end after all."""
    return f"""UPDATE batch SET row_version = coalesce(stored.row_version, 1) + 1 FROM {stored} AS stored
        WHERE {_same_span("stored", first_us, last_us)} AND stored.status = 'interrupted' AND batch.status <> 'interrupted'
            AND {_COUNTS}"""


def drop_interrupted(table: str, first_us: int, last_us: int) -> str:
    """Removes what was recorded as interrupted from `table`, where the batch brings its end after all."""
    return f"""DELETE FROM {table} USING batch
        WHERE {_same_span(table, first_us, last_us)} AND {table}.status = 'interrupted' AND batch.status <> 'interrupted'
            AND {_of(table)}"""


def drop_known(stored: str, first_us: int, last_us: int, *, but_interrupted: bool = False) -> str:
    """Removes from the batch what is in `stored` already.

    `but_interrupted`: an end in the batch counts more than a stored `interrupted`, which could not be removed.
    """
    exception = "AND (stored.status <> 'interrupted' OR batch.status = 'interrupted')" if but_interrupted else ""
    return f"""DELETE FROM batch USING {stored} AS stored
        WHERE {_same_span("stored", first_us, last_us)} AND {_of(stored)} {exception}"""


_COUNTS: Final = "batch.received_version IS NULL AND batch.has_record IS NOT TRUE"
"""The condition on a span of the batch for one whose row is made of it, and has not come whole."""


def _of(table: str) -> str:
    """The condition for what of the batch is on its way into `table`, as spans or made of spans."""
    return "batch.received_version IS NULL" if table.endswith("spans") else _COUNTS


def drop_received(received: str, first_us: int, last_us: int) -> str:
    """Removes from the batch the rows that have come whole before, in this version or a later one (the query `received`)."""
    return f"""DELETE FROM batch USING ({received}) AS stored
        WHERE {_same_span("stored", first_us, last_us)} AND batch.received_version <= stored.row_version"""


def same_as(stored: str) -> str:
    """The condition for the same span, or row, of the batch and of `stored`."""
    return f"batch.trace_id = {stored}.trace_id AND batch.span_id = {stored}.span_id"


def leave_to_records(received: str) -> str:
    """Marks the spans whose rows come whole, or have come (the query `received`): they are kept for the tree alone."""
    return f"""UPDATE batch SET has_record = true, model_call = false FROM ({received}) AS stored
        WHERE batch.received_version IS NULL AND {same_as("stored")}"""


def received_in(table: str, first_us: int, last_us: int) -> str:
    """What the batch may have of `received_rows`, as a query."""
    return f"FROM {table} WHERE started_at BETWEEN make_timestamptz({first_us}) AND make_timestamptz({last_us})"


RECEIVED: Final = """SELECT trace_id, span_id, received_version AS row_version, started_at FROM batch
    WHERE received_version IS NOT NULL"""
"""What of the batch has come whole, with the columns of `received_rows`."""


def count_on(stored: str, first_us: int, last_us: int) -> str:
    """Gives a row that has come whole a higher version than the one that it takes the place of: `stored` may have changed it."""
    return f"""UPDATE batch SET row_version = greatest(batch.row_version, coalesce(stored.row_version, 1) + 1)
        FROM {stored} AS stored WHERE {_same_span("stored", first_us, last_us)} AND batch.received_version IS NOT NULL"""


def drop_replaced(table: str, first_us: int, last_us: int) -> str:
    """Removes the rows of `table` that those which have come whole take the place of."""
    return f"""DELETE FROM {table} USING batch
        WHERE {_same_span(table, first_us, last_us)} AND batch.received_version IS NOT NULL"""


RETRACT_UNCOUNTED: Final = """INSERT INTO retracted_calls (trace_id, span_id, started_at, row_version)
    SELECT trace_id, span_id, started_at, row_version FROM batch WHERE row_version > 1 AND NOT model_call"""
"""Calls that were stored as interrupted, and turn out to be none with a row of its own."""


def insert_spans(table: str) -> str:
    columns = ", ".join(SPAN_COLUMNS)
    return f"INSERT INTO {table} ({columns}) SELECT {columns} FROM batch WHERE received_version IS NULL"


INSERT_PENDING: Final = """INSERT INTO pending_exports (trace_id, span_id, endpoint, writer, started_at)
    SELECT trace_id, span_id, endpoint, writer, started_at FROM batch WHERE endpoint IS NOT NULL AND writer IS NOT NULL"""

DROP_ARRIVED: Final = """DELETE FROM pending_exports
    USING (SELECT unnest($traces) AS trace_id, unnest($spans) AS span_id) AS arrived
    WHERE pending_exports.trace_id = arrived.trace_id AND pending_exports.span_id = arrived.span_id
        AND pending_exports.endpoint = $endpoint"""
"""Takes note that so many spans are where they are to go."""

_PRICE: Final = {
    "provider": "VARCHAR",
    "request_model": "VARCHAR",
    "response_model": "VARCHAR",
    "service_tier": "VARCHAR",
    "price_slot": "BIGINT",
    "above": "BIGINT",
    "up_to": "BIGINT",
    "per_call": "DECIMAL(18, 9)",
    **{f"per_{column}": "DECIMAL(18, 15)" for column in TOKEN_COLUMNS},
    "per_unit": "MAP(VARCHAR, DECIMAL(18, 15))",
    "price_basis": "VARCHAR",
}
"""A price: for one key and tier (`above < input tokens <= up_to`) the USD per call, per token of each column (see `Rate.factors`)
and per unit. Where there is none at all, `per_call` is NULL, and `price_basis` the reason."""


def insert_prices(rows: int) -> str:
    """Puts that many rows of parameters, as `PriceBook.rows` gives them, into the table `price`."""
    hole = "(" + ", ".join("?" * len(_PRICE)) + ")"
    return f"INSERT INTO price VALUES {', '.join([hole] * rows)}"


_PRICE_KEYS: Final = f"""SELECT DISTINCT {", ".join(PRICE_KEY)} FROM batch
    WHERE model_call AND NOT cache_hit AND is_given IS NOT TRUE"""


PRICED_AS: Final = {
    "audio_cache_read_tokens": "audio_cached",
    "image_cache_read_tokens": "image_cached",
    "image_output_tokens": "images_made",
}
"""Columns of which more may be known than was reported: see `known`."""


_BY_LITELLM: Final = f"""litellm_cost_usd IS NOT NULL AND price_basis IS DISTINCT FROM {literal(OVERRIDE)}
    AND (coalesce(input_tokens, output_tokens) IS NOT NULL OR units IS NOT NULL)"""
"""What LiteLLM has computed counts, but for a price of the user's own, and where it has guessed the tokens."""


def _fill_usage(with_units: bool) -> str:
    """A row of `usage_batch` for each model call in `batch`, with its cost. Unknown is NULL with the reason, never 0.

    Without units it takes half the time, and most batches have none.
    """
    tokens = " + ".join(
        f"coalesce({PRICED_AS.get(column, column)}, 0)::DECIMAL(19, 0) * coalesce(per_{column}, 0)"
        for column in TOKEN_COLUMNS
    )
    units = f""" + coalesce(list_sum([{_billed_units()}::DECIMAL(20, 6) * per_unit[unit.key] FOR unit IN map_entries(units)
        IF per_unit[unit.key] IS NOT NULL])::DECIMAL(38, 15), 0)"""
    beside = units if with_units else ""
    computed = {
        "usage_source": f"""coalesce(stated_usage_source,
            CASE WHEN coalesce({", ".join(TOKEN_COLUMNS)}) IS NOT NULL THEN 'reported' END)""",
        "cost_usd": f"""CASE WHEN cache_hit THEN 0 WHEN reported_cost_usd IS NOT NULL THEN reported_cost_usd
            WHEN {_BY_LITELLM} THEN litellm_cost_usd
            WHEN unpriced IS NULL THEN TRY_CAST(greatest(per_call + {tokens}{beside}, 0) AS DECIMAL(18, 9)) END""",
        "price_source": f"""CASE WHEN cache_hit THEN {literal(CACHE_HIT)} WHEN reported_cost_usd IS NOT NULL
            THEN {literal(REPORTED_COST)} WHEN {_BY_LITELLM} THEN {literal(LITELLM)} ELSE coalesce(unpriced, price_basis) END""",
    }
    values = ", ".join(computed.get(column, column) for column in USAGE_COLUMNS)
    join = " AND ".join(f"price.{column} IS NOT DISTINCT FROM batch.{column}" for column in PRICE_KEY)
    return f"""
INSERT INTO usage_batch ({", ".join(USAGE_COLUMNS)})
SELECT {values} FROM (
    SELECT *, {_gap(with_units)} AS gap, {_unpriced()} AS unpriced FROM (
        SELECT batch.*, price.* EXCLUDE ({", ".join(PRICE_KEY)}), {known()}
        FROM batch LEFT JOIN price ON {join}
            AND coalesce(batch.input_tokens, 0) > price.above AND coalesce(batch.input_tokens, 0) <= price.up_to
        WHERE model_call AND is_given IS NOT TRUE
    )
)"""


_FILL_GIVEN: Final = f"""INSERT INTO usage_batch ({", ".join(USAGE_COLUMNS)})
    SELECT {", ".join(_TOLD.get(column, column) for column in USAGE_COLUMNS)} FROM batch WHERE model_call AND is_given"""
"""A row of `usage_batch` for each that has come whole, as it came."""


def _billed_units() -> str:
    """How many of `unit` are billed."""
    least = " ".join(
        f"WHEN provider = {literal(provider)} AND unit.key = {literal(key)} AND unit.value > 0 THEN greatest(unit.value, {number})"
        for (provider, key), number in LEAST_BILLED.items()
    )
    return f"(CASE {least} ELSE unit.value END)"


def known() -> str:
    """What follows from the counts that were reported: how much of the cached is audio and images, where that can be but one
    number; and that what is made of the endpoint of images is images."""
    both = []
    for kind in ("audio", "image"):
        cached, of_kind = "coalesce(cache_read_tokens, 0)", f"coalesce({kind}_input_tokens, 0)"
        both.append(f"""coalesce({kind}_cache_read_tokens, CASE WHEN least({cached}, {of_kind}) = 0 THEN 0
            WHEN {cached} + {of_kind} - input_tokens >= least({cached}, {of_kind}) THEN least({cached}, {of_kind}) END)
            AS {kind}_cached""")
    images = literal(semconv.IMAGE_GENERATION)
    made = f"""coalesce(image_output_tokens, CASE WHEN operation = {images} THEN output_tokens END) AS images_made"""
    return ", ".join([*both, made])


def _unpriced() -> str:
    """Why the cost of a call is not known whole; NULL where it is."""
    written = ", ".join(map(literal, (semconv.CHAT, semconv.TEXT_COMPLETION, semconv.GENERATE_CONTENT)))
    return f"""CASE
        WHEN refused AND coalesce({", ".join(TOKEN_COLUMNS)}) IS NULL THEN {literal(REFUSED)}
        WHEN stated_usage_source = 'inconsistent' THEN 'the reported tokens do not add up'
        WHEN input_tokens IS NULL AND output_tokens IS NULL AND (units IS NULL OR per_input_tokens IS NOT NULL)
            THEN 'no usage reported'
        WHEN input_tokens IS NULL AND output_tokens IS NOT NULL THEN 'no input usage reported'
        WHEN output_tokens IS NULL AND input_tokens IS NOT NULL AND operation IN ({written}) THEN 'no output usage reported'
        WHEN {_exceed()} THEN 'reported parts exceed their whole'
        WHEN per_call IS NULL THEN coalesce(price_basis, 'no price')
        WHEN gap IS NOT NULL
            THEN concat('no price for ', gap, ' of ', coalesce(provider, '?'), '/', coalesce(response_model, request_model, '?'))
        WHEN audio_cached IS NULL AND per_audio_cache_read_tokens <> 0 THEN 'cached audio not told from cached text'
        WHEN image_cached IS NULL AND per_image_cache_read_tokens <> 0 THEN 'cached images not told from cached text'
        END"""


def _exceed() -> str:
    """Whether parts that have nothing in common are more than their whole."""
    read, written = "coalesce(cache_read_tokens, 0)", "coalesce(cache_write_tokens, 0)"
    fresh = " + ".join(
        f"coalesce({kind}_input_tokens, 0) - coalesce({kind}_cached, least({read}, coalesce({kind}_input_tokens, 0)))"
        for kind in ("audio", "image")
    )
    made = "coalesce(reasoning_tokens, 0) + coalesce(audio_output_tokens, 0) + coalesce(images_made, 0)"
    return f"""coalesce({read} + {written} + {fresh} > input_tokens, false) OR {made} > coalesce(output_tokens, 0)
            OR coalesce(cache_write_1h_tokens, 0) > {written} OR coalesce(audio_cached, 0) + coalesce(image_cached, 0) > {read}
            OR coalesce(audio_cached, 0) > coalesce(audio_input_tokens, 0)
            OR coalesce(image_cached, 0) > coalesce(image_input_tokens, 0)"""


def _gap(with_units: bool) -> str:
    """What was billed and has no price: a column of tokens, or a key of `units`."""
    columns = " ".join(
        f"WHEN {PRICED_AS.get(column, column)} > 0 AND per_{column} IS NULL THEN {literal(column)}"
        for column in TOKEN_COLUMNS
    )
    place = ", ".join(map(literal, IN_PLACE_OF_TOKENS))
    if not with_units:
        return f"CASE {columns} END"
    return f"""coalesce(CASE {columns} END, [unit.key FOR unit IN map_entries(units) IF coalesce(unit.value, 1) > 0
            AND (unit.value IS NULL OR per_unit[unit.key] IS NULL)
            AND NOT (per_unit[unit.key] IS NULL AND input_tokens IS NOT NULL AND unit.key IN ({place}))][1])"""


def load_stored_calls(wanted: str) -> str:
    """Puts stored calls into the table `batch`, with all that their price depends on, to be priced again.

    `wanted` is a condition with the parameters $1 and $2; $3 and $4 are times as text, from and to before. What older versions
    did not keep of a call is read from its span, where that is there still.
    """
    columns = ", ".join(
        (
            *(
                "trace_id",
                "span_id",
                "started_at",
                "operation",
                "provider",
                "request_model",
                "response_model",
                "status",
            ),
            *("time_to_first_chunk_ms", "input_chars", "output_chars", "reasoning_chars"),
        )
    )
    tier = semconv.OPENAI_RESPONSE_SERVICE_TIER
    return f"""INSERT INTO batch BY NAME
    SELECT {columns}, {", ".join(TOKEN_COLUMNS)}, units, usage_source AS stated_usage_source, true AS model_call,
        CASE WHEN price_source = {literal(REPORTED_COST)} THEN cost_usd END AS reported_cost_usd,
        CASE WHEN price_source = {literal(LITELLM)} THEN cost_usd END AS litellm_cost_usd,
        coalesce(service_tier, (SELECT any_value(attributes ->> '$."{tier}"') FROM spans
            WHERE spans.trace_id = calls.trace_id AND spans.span_id = calls.span_id)) AS service_tier,
        coalesce(price_source = {literal(CACHE_HIT)}, false) AS cache_hit,
        status = {literal(semconv.REFUSED)}
            OR (status = 'error' AND ({_is_refusal()} OR coalesce(price_source = {literal(REFUSED)}, false))) AS refused,
        epoch_us(started_at) * 1000 // {SLOT_NS} AS price_slot
    FROM llm_usage AS calls
    WHERE {wanted} AND ($3 IS NULL OR started_at >= $3::TIMESTAMPTZ) AND ($4 IS NULL OR started_at < $4::TIMESTAMPTZ)"""


def insert_usage(table: str) -> str:
    columns = ", ".join(USAGE_COLUMNS)
    return f"INSERT INTO {table} ({columns}) SELECT {columns} FROM usage_batch"


# --- the tables that a batch goes through -----------------------------------------------------------------------------

SPAN_TYPES: Final = {
    **dict.fromkeys(SPAN_COLUMNS, "VARCHAR"),
    **dict.fromkeys(("start_ns", "end_ns"), "BIGINT"),
    **dict.fromkeys(("attributes", "events", "links", "resource"), "JSON"),
    "started_at": "TIMESTAMPTZ",
    "duration_ms": "DOUBLE",
    "trace_flags": "UTINYINT",
}
USAGE_TYPES: Final = {
    **dict.fromkeys(USAGE_COLUMNS, "VARCHAR"),
    **dict.fromkeys((*TOKEN_COLUMNS, "input_chars", "output_chars", "reasoning_chars"), "BIGINT"),
    **dict.fromkeys(("duration_ms", "time_to_first_chunk_ms"), "DOUBLE"),
    **dict.fromkeys(("input_messages", "output_messages"), "JSON"),
    "started_at": "TIMESTAMPTZ",
    "stream": "BOOLEAN",
    "finish_reasons": "VARCHAR[]",
    "cost_usd": "DECIMAL(18, 9)",
    "tags": "MAP(VARCHAR, VARCHAR)",
    "units": "MAP(VARCHAR, DOUBLE)",
    **dict.fromkeys(("attempts", "row_version"), "INTEGER"),
}
_COMPUTED: Final = ("usage_source", "cost_usd", "price_source")
_BATCH_TYPES: Final = {
    **SPAN_TYPES,
    **{name: kind for name, kind in USAGE_TYPES.items() if name not in _COMPUTED},
    "model_call": "BOOLEAN",
    "stated_usage_source": "VARCHAR",
    "reported_cost_usd": "DECIMAL(18, 9)",
    "litellm_cost_usd": "DECIMAL(18, 9)",
    "cache_hit": "BOOLEAN",
    "refused": "BOOLEAN",
    "price_slot": "BIGINT",
    "endpoint": "VARCHAR",
    "writer": "VARCHAR",
    "received_version": "INTEGER",
    **dict.fromkeys(("is_given", "has_record"), "BOOLEAN"),
    "told_cost_usd": "DECIMAL(18, 9)",
    "told_source": "VARCHAR",
}
"""Beside what becomes columns: `received_version` is the version of a row that has come whole (an account record), NULL of a span;
`is_given`: its cost is the one that it came with; `has_record`: a span whose row comes whole."""
TABLES: Final = {
    "line": {**_LINE, "filename": "VARCHAR"},
    "batch": _BATCH_TYPES,
    "price": _PRICE,
    "usage_batch": USAGE_TYPES,
}
"""Temporary tables, and the types of their columns."""

STATEMENTS: Final = {
    "fill_batch": _fill_batch(),
    "fill_received": _fill_received(),
    "measure_batch": _MEASURE_BATCH,
    "price_keys": _PRICE_KEYS,
    "fill_units": _FILL_UNITS,
    "any_units": "SELECT count(units) > 0, count(received_version) > 0 FROM batch",
    "fill_usage": _fill_usage(with_units=False),
    "fill_usage_with_units": _fill_usage(with_units=True),
    "fill_given": _FILL_GIVEN,
}
"""Prepared once: planning them takes longer than running them on a small batch."""


def create_table(name: str, types: Mapping[str, str]) -> str:
    columns = ", ".join(f"{column} {kind}" for column, kind in types.items())
    return f"CREATE TEMP TABLE {name} ({columns})"
