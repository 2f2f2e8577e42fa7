"""Tokens of calls that were billed and told no usage, estimated from the calls of the same store that did tell theirs.

A stream that somebody stops, that breaks, or whose process dies is billed for what was generated, and the provider reports
nothing. How many characters went out and came back is known of it (`input_chars`, `output_chars`). How many tokens that makes is
learned from calls to the same model: those `_NEAREST` that are nearest in length, of the last `_RECENT` among the last `_READ` of
the store. No other state is kept: what the store has is what is learned from, whatever retention removes or a late report replaces.

The output has the median of their tokens per character. The input of a chat has tokens beside those of its text, for each message,
which weigh the more the shorter it is; so it has a straight line through those calls, by the method of Theil and Sen: the median of
the slopes between any two of them, and of what is left of each beside. One that is far off counts for little in either.

- Fewer than `LEAST` such calls, or for the input none of about that length: too little experience, and NULL.
- Reasoning that does not come as text is added as the median of those calls has it, once there is any other text; before, nobody
  knows for how long the model has thought, and the output stays NULL.
- A call of which no chunk came has an input, and no output.
- What came out of the provider's cache is not estimated: an estimated cost has none of its discount.

A row with such numbers has the `usage_source` `ESTIMATED`, and any report that comes later replaces it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_llm.prices.billing import ESTIMATED, literal
from otel_llm.settings import settings
from otel_llm.store.merge.rows import UNREPORTED

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LEAST: Final = 5
"""Calls that it takes to learn from."""
_NEAREST: Final = 25
_RECENT: Final = 200
_READ: Final = 50_000
"""Calls of any model, stored last, among which those are looked for: a merge must not read more of a store that has grown large."""
_ALIKE: Final = 10
"""A request that is so many times as long as another, or as short, is not alike: what every message costs beside its text tells."""

_KEY: Final = "provider, request_model, operation"
_TELLING: Final = """status = 'ok' AND request_model IS NOT NULL AND (input_chars > 0 OR output_chars > 0)
    AND coalesce(audio_input_tokens, 0) + coalesce(audio_output_tokens, 0) = 0
    AND coalesce(image_input_tokens, 0) + coalesce(image_output_tokens, 0) = 0"""
_LEARNED: Final = """{'input_chars': input_chars, 'input_tokens': input_tokens, 'output_chars': output_chars,
    'output_tokens': output_tokens, 'told_at': started_at,
    'hidden': CASE WHEN coalesce(reasoning_chars, 0) = 0 THEN coalesce(reasoning_tokens, 0) ELSE 0 END}"""


def lately(connection: DuckDBPyConnection, table: str) -> str:
    """The calls in `table` that can be learned from, as a query."""
    (last,) = connection.execute(f"SELECT max(rowid) FROM {table}").fetchall()[0]
    return f"FROM {table} WHERE rowid > {(last or 0) - _READ}"


def fill(connection: DuckDBPyConnection, stored: str, *, beside: bool = True) -> bool:
    """Estimates what is missing in the table `batch`; returns whether anything was.

    `stored`: a query for calls to learn from. `beside`: whether those in `batch` are not among them.
    """
    if not settings().estimate:
        return False
    (filled,) = connection.execute(_fill(stored, beside=beside)).fetchall()[0]
    return bool(filled)


def _fill(stored: str, *, beside: bool) -> str:
    new = f"""UNION ALL SELECT {_KEY}, started_at, {_LEARNED} FROM batch
        WHERE model_call AND coalesce(stated_usage_source, 'reported') = 'reported' AND {_TELLING}
            AND coalesce(input_tokens, output_tokens) IS NOT NULL"""
    return f"""
WITH missing AS MATERIALIZED (
    SELECT trace_id, span_id, {_KEY}, input_chars, output_chars FROM batch WHERE {UNREPORTED}
), model AS MATERIALIZED (
    SELECT DISTINCT {_KEY} FROM missing
), telling AS (
    SELECT {_KEY}, started_at, {_LEARNED} AS told FROM ({stored}) AS calls
    WHERE usage_source = 'reported' AND {_TELLING} AND request_model IN (SELECT request_model FROM model)
    {new if beside else ""}
), recent AS MATERIALIZED (
    SELECT {_KEY}, unnest(told, recursive := true) FROM (
        SELECT {_KEY}, max_by(told, started_at, {_RECENT}) AS told
        FROM telling SEMI JOIN model ON {_same("telling", "model")} GROUP BY {_KEY})
), of_input AS MATERIALIZED (
    SELECT missing.trace_id, missing.span_id, recent.input_chars AS asked, recent.input_tokens AS told
    FROM missing JOIN recent ON {_same("missing", "recent")}
    WHERE missing.input_chars > 0 AND recent.input_chars > 0 AND recent.input_tokens IS NOT NULL
        AND recent.input_chars BETWEEN missing.input_chars / {_ALIKE} AND missing.input_chars * {_ALIKE}
    QUALIFY {_is_near("input_chars")}
), slope AS (
    SELECT trace_id, span_id, median((longer.told - shorter.told) / (longer.asked - shorter.asked)) AS per_character
    FROM of_input AS shorter JOIN of_input AS longer USING (trace_id, span_id)
    WHERE shorter.asked < longer.asked GROUP BY ALL
), input AS (
    SELECT trace_id, span_id, any_value(per_character) AS per_character, median(told / asked) AS whole_per_character,
        median(told - per_character * asked) AS beside
    FROM of_input LEFT JOIN slope USING (trace_id, span_id) GROUP BY ALL HAVING count(*) >= {LEAST}
), of_output AS (
    SELECT missing.trace_id, missing.span_id, hidden,
        greatest(recent.output_tokens - hidden, 0) / recent.output_chars AS per_character
    FROM missing JOIN recent ON {_same("missing", "recent")}
    WHERE missing.output_chars IS NOT NULL AND recent.output_chars > 0 AND recent.output_tokens IS NOT NULL
    QUALIFY {_is_near("output_chars")}
), output AS (
    SELECT trace_id, span_id, median(per_character) AS per_character, median(hidden) AS hidden, max(hidden) AS most_hidden
    FROM of_output GROUP BY ALL HAVING count(*) >= {LEAST}
), estimate AS (
    SELECT missing.trace_id, missing.span_id,
        CAST(round(CASE WHEN input.per_character > 0 AND beside >= 0 THEN beside + input_chars * input.per_character
            ELSE input_chars * whole_per_character END) AS BIGINT) AS input_tokens,
        CASE WHEN output_chars > 0 THEN CAST(round(output_chars * output.per_character + hidden) AS BIGINT)
             WHEN most_hidden = 0 THEN 0 END AS output_tokens
    FROM missing LEFT JOIN input USING (trace_id, span_id) LEFT JOIN output USING (trace_id, span_id)
)
UPDATE batch SET input_tokens = estimate.input_tokens, output_tokens = estimate.output_tokens,
    stated_usage_source = {literal(ESTIMATED)}
FROM estimate WHERE batch.trace_id = estimate.trace_id AND batch.span_id = estimate.span_id
    AND coalesce(estimate.input_tokens, estimate.output_tokens) IS NOT NULL"""


def _same(one: str, other: str) -> str:
    return " AND ".join(f"{one}.{column} IS NOT DISTINCT FROM {other}.{column}" for column in _KEY.split(", "))


def _is_near(length: str) -> str:
    """Whether a call is one of those nearest in length to the one that is missing something, and the later of two alike."""
    distance = f"abs(ln(greatest(missing.{length}, 1)) - ln(recent.{length}))"
    return f"""row_number() OVER (PARTITION BY missing.trace_id, missing.span_id
        ORDER BY {distance}, told_at DESC) <= {_NEAREST}"""
