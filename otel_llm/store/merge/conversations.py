"""Calls that go on from a response of another, by `previous_response_id`, are one conversation.

- Where nobody says which conversation a call is in, it is in that of the call whose response it goes on from.
- A chain in which nobody says it is called as the first response in it. Its first call gets that name when another goes on from it:
  one of which nothing follows is no conversation.
- Where the call before is not known, the chain begins with its response. When that call arrives after all, from a journal that is
  merged later, all of them get the name that they would have got.

So a conversation depends on the rows that there are, and not on the order in which they came, nor on who wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from otel_llm.prices.billing import literal
from otel_llm.store.merge.rows import CHAIN, USAGE_COLUMNS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_DEEPEST: Final = 64
"""How often a name is handed on: each time twice as far. Responses that name one another in a circle have no end."""

TABLES: Final = {
    "link": {
        **dict.fromkeys(("trace_id", "span_id", "response_id", "conversation_id", "was"), "VARCHAR"),
        **dict.fromkeys(("derived", "is_new"), "BOOLEAN"),
        "started_at": "TIMESTAMPTZ",
    }
}
"""Temporary tables, and the types of their columns."""


def settle(connection: DuckDBPyConnection, chained: bool, stored: str | None = None) -> None:
    """Names the conversations of `usage_batch`, and of stored calls that it goes on from or that go on from it.

    `chained`: the batch has calls that go on from others. `stored`: as for `duplicates.settle`; it may be of an older version.
    """
    table = "llm_usage"
    if stored is not None:
        kept = f"SELECT * FROM {stored}.llm_usage AS one WHERE NOT EXISTS {_REPLACED}"
        table = f"({kept} UNION ALL BY NAME FROM new_llm_usage)"
    awaited = connection.execute(_is_awaited(table)).fetchall()[0][0]
    if not chained and not awaited:
        return
    connection.execute("TRUNCATE link")
    connection.execute(_NEW)
    if chained:
        connection.execute(_known(table, f"response_id IN ({_before(connection)})"))
    if awaited:
        connection.execute(_known(table, _AWAITS))
    for _ in range(_DEEPEST):
        if not connection.execute(_HAND_ON).fetchall()[0][0]:
            break
    connection.execute(_NAME_FIRST)
    connection.execute("DELETE FROM link WHERE conversation_id IS NOT DISTINCT FROM was")
    if stored is not None:  # what cannot be written is hidden by a row that can
        columns = ", ".join(USAGE_COLUMNS)
        connection.execute(
            f"CREATE TEMP TABLE moved AS SELECT {columns} FROM {table} AS one SEMI JOIN link USING (trace_id, span_id, started_at)"
        )
        connection.execute(f"DELETE FROM new_llm_usage USING link WHERE NOT is_new AND {_same('new_llm_usage')}")
        connection.execute("INSERT INTO hidden SELECT trace_id, span_id FROM moved")
        connection.execute(f"INSERT INTO new_llm_usage ({columns}) FROM moved")
        connection.execute("DROP TABLE moved")
    connection.execute(_rename("usage_batch"))
    table, more = ("llm_usage", ", commit_number = NULL") if stored is None else ("new_llm_usage", "")
    more += f", row_version = coalesce({table}.row_version, 1) + 1"
    connection.execute(_rename(table, more))


def _same(table: str) -> str:
    return (
        f"{table}.trace_id = link.trace_id AND {table}.span_id = link.span_id AND {table}.started_at = link.started_at"
    )


_REPLACED: Final = """(FROM (FROM hidden UNION ALL SELECT trace_id, span_id FROM new_spans) AS new
    WHERE new.trace_id = one.trace_id AND new.span_id = one.span_id)"""
"""Whether a stored call counts no more."""

_IS_DERIVED: Final = f"coalesce(conversation_source = {literal(CHAIN)}, false)"


_AWAITS: Final = (
    f"""conversation_source = {literal(CHAIN)} AND conversation_id IN (SELECT response_id FROM usage_batch)"""
)


def _is_awaited(table: str) -> str:
    """Whether a stored call goes on from one of the batch, which was not known before."""
    return f"SELECT exists(FROM {table} WHERE {_AWAITS})"


_LINK: Final = (
    f"""trace_id, span_id, started_at, response_id, conversation_id, conversation_id AS was, {_IS_DERIVED} AS derived"""
)
_NEW: Final = f"""INSERT INTO link BY NAME
    SELECT {_LINK}, true AS is_new FROM usage_batch WHERE response_id IS NOT NULL OR {_IS_DERIVED}"""


def _known(table: str, condition: str) -> str:
    """Stored calls before those of the batch, or behind them."""
    return f"""INSERT INTO link BY NAME SELECT {_LINK}, false AS is_new FROM {table} AS stored
    WHERE ({condition}) AND NOT EXISTS (FROM link WHERE {_same("stored")})"""


_FEW: Final = 1_000
_BEFORE: Final = f"SELECT DISTINCT conversation_id FROM usage_batch WHERE {_IS_DERIVED}"


def _before(connection: DuckDBPyConnection) -> str:
    """The ids that calls of the batch go on from. With a few, spelled out, DuckDB reads no other column of most rows."""
    ids = [name for (name,) in connection.execute(f"{_BEFORE} LIMIT {_FEW + 1}").fetchall()]
    return ", ".join(map(literal, ids)) if 0 < len(ids) <= _FEW else _BEFORE


_HAND_ON: Final = """UPDATE link SET conversation_id = before.conversation_id
    FROM (SELECT response_id, arg_min(conversation_id, (started_at, span_id)) AS conversation_id FROM link
        WHERE response_id IS NOT NULL AND conversation_id IS NOT NULL GROUP BY response_id) AS before
    WHERE link.derived AND link.conversation_id = before.response_id AND before.conversation_id <> before.response_id"""
"""A call whose conversation is called as a response gets the name that the call with that response has."""

_NAME_FIRST: Final = """UPDATE link SET conversation_id = response_id, derived = true
    WHERE conversation_id IS NULL AND response_id IN (SELECT conversation_id FROM link WHERE derived)"""


def _rename(table: str, more: str = "") -> str:
    return f"""UPDATE {table} SET conversation_id = link.conversation_id, conversation_source = {literal(CHAIN)}{more}
    FROM link WHERE {_same(table)}"""
