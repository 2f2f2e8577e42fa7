"""Scores on their way from the journal into `llm_scores`: each once, and the last one of its name that a source gave.

They are few and short, and are told of in Python; calls go through DuckDB's own reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from otel_llm.store.journal import record
from otel_llm.store.journal.record import Score

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TYPES: Final = {
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "request_id": "VARCHAR",
    "name": "VARCHAR",
    "value": "DOUBLE",
    "label": "VARCHAR",
    "comment": "VARCHAR",
    "source": "VARCHAR",
    "scored_at": "TIMESTAMPTZ",
}
"""The columns of `llm_scores`."""

_KEY: Final = ("trace_id", "span_id", "request_id", "name", "source")
"""What a score is about, what it is called and who gave it: of those that agree in all of these, the last one counts."""
_COLUMNS: Final = ", ".join(TYPES)
# The values are lists, one for each column: a statement for any number of scores, and no temporary table (see `batch.prepare`).
_LISTS: Final = ", ".join(
    f"unnest(${name}::{type if name != 'scored_at' else 'BIGINT'}[]) AS {name}" for name, type in TYPES.items()
)
_GIVEN: Final = f"""(SELECT * REPLACE (make_timestamptz(scored_at) AS scored_at)
    FROM (SELECT {_LISTS}, unnest(range(len($name))) AS place)
    QUALIFY row_number() OVER (PARTITION BY {", ".join(_KEY)} ORDER BY scored_at DESC, place DESC) = 1)"""


def same(one: str, other: str) -> str:
    """Whether two rows are the same score, given once more."""
    return " AND ".join(f"{one}.{name} IS NOT DISTINCT FROM {other}.{name}" for name in _KEY)


def read(lines: Iterable[bytes]) -> tuple[list[Score], list[bytes]]:
    """The scores in intact lines of the journal, and the lines that hold none that could be stored."""
    scores: list[Score] = []
    bad: list[bytes] = []
    for line in lines:
        try:
            scores.append(record.score(line))
        except ValueError:
            bad.append(line)
    return scores, bad


def store(connection: DuckDBPyConnection, scores: Sequence[Score], table: str = "llm_scores") -> None:
    """Puts scores into a table, in the place of earlier ones. To do it again changes nothing."""
    values = _by_column(scores)
    connection.execute(
        f"""DELETE FROM {table} AS stored USING {_GIVEN} AS given
        WHERE {same("stored", "given")} AND stored.scored_at <= given.scored_at""",
        values,
    )
    connection.execute(
        f"""INSERT INTO {table} ({_COLUMNS}) SELECT {_COLUMNS} FROM {_GIVEN} AS given
        WHERE NOT EXISTS (FROM {table} AS stored WHERE {same("stored", "given")})""",
        values,
    )


def _by_column(scores: Sequence[Score]) -> Mapping[str, list[Any]]:
    return {name: [score[place] for score in scores] for place, name in enumerate(TYPES)}


def latest_of(stored: str | None, new: str) -> str:
    """The rows of two tables, as a query; there may be no stored one."""
    if stored is None:
        return f"SELECT {_COLUMNS} FROM {new}"
    return f"""SELECT {_COLUMNS} FROM {stored} AS stored
        WHERE NOT EXISTS (FROM {new} AS new WHERE {same("new", "stored")} AND stored.scored_at <= new.scored_at)
        UNION ALL SELECT {_COLUMNS} FROM {new} AS new
        WHERE NOT EXISTS (FROM {stored} AS stored WHERE {same("stored", "new")} AND stored.scored_at > new.scored_at)"""
