"""`otel-llm sql`: one query against the store."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otel_llm.cli.access import is_empty, locate, nothing_yet, reading
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import FormatOption, StoreOption
from otel_llm.cli.output import Column, Format, write_csv, write_json, write_line, write_table

if TYPE_CHECKING:
    import duckdb

_MOST_ROWS = 1_000
"""A table longer than this is not for reading; JSON and CSV have no limit."""
_NARROWEST = 20
"""Room for a time to the second: columns are left out before they say less than that."""

_ZONE = "TIME ZONE"


def _iso(moment: str) -> str:
    try:
        return datetime.fromisoformat(moment).isoformat()
    except ValueError:  # such as infinity
        return moment


_DECODE: dict[str, Callable[[str], Any]] = {"JSON": json.loads, "TIMESTAMP WITH TIME ZONE": _iso}


def sql(
    query: Annotated[str, typer.Argument(metavar="SQL", help="The query; - reads it from standard input.")],
    output: FormatOption = Format.table,
    store: StoreOption = None,
) -> None:
    """Run SQL on the store, read-only.

    \b
    Examples:
      otel-llm sql "from llm_usage order by started_at desc limit 5"
      otel-llm sql "select user_id, sum(cost_usd) from llm_usage group by all" --format json
      otel-llm sql "describe llm_usage"
      otel-llm sql "copy llm_usage to 'usage.parquet'"
      otel-llm sql - < query.sql

    The dialect is DuckDB's. llm_usage has one row a model call, spans has whole traces; llm_events, llm_tool_calls,
    llm_conversations and llm_daily are views on the two. The store sees every call that has ended, in whatever process.
    """
    text = sys.stdin.read() if query == "-" else query
    with reading(store) as connection:
        if not connection.extract_statements(text):
            raise CommandError("the SQL is empty; for example: otel-llm sql 'from llm_usage limit 5'")
        result = connection.sql(text)
        if result is None:  # a statement without an answer, such as SET; some versions of DuckDB say so
            if output is Format.json:
                write_json([], [])
            return
        names, types = result.columns, [str(kind) for kind in result.types]
        result = _without_zones(result, types)
        match output:
            case Format.json:
                write_json(_told_apart(names), _decoded(result.fetchall(), types))
            case Format.csv:
                write_csv(names, result.fetchall())
            case Format.table:
                rows = result.limit(_MOST_ROWS + 1).fetchall()
                if not rows and is_empty(connection):
                    write_line(nothing_yet(locate(store)))
                else:
                    _print(names, rows)


def _without_zones(result: duckdb.DuckDBPyRelation, types: Sequence[str]) -> duckdb.DuckDBPyRelation:
    """The same rows with times as text in local time: DuckDB makes a datetime with a zone only where pytz is installed."""
    if not any(_ZONE in kind for kind in types):
        return result
    return result.project(
        ", ".join(
            f"#{position}::VARCHAR" if _ZONE in kind else f"#{position}" for position, kind in enumerate(types, 1)
        )
    )


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names with numbers where one comes again: an object has each key once."""
    apart: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        apart.append(next(each for each in candidates if each not in apart))
    return apart


def _decoded(rows: Iterable[Sequence[Any]], types: Sequence[str]) -> Iterator[list[Any]]:
    """Rows for JSON: a JSON column is part of the document, not a string with a document in it; times are ISO 8601."""
    for row in rows:
        yield [
            _DECODE[kind](value) if value is not None and kind in _DECODE else value
            for value, kind in zip(row, types, strict=True)
        ]


def _print(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    shown = rows[:_MOST_ROWS]
    numbers = [_is_number([row[index] for row in shown]) for index in range(len(names))]
    notes = ["no rows"] if not rows else []
    if len(rows) > _MOST_ROWS:
        notes.append(f"the first {_MOST_ROWS:,} rows; --format json or csv has them all")
    columns = [Column(name, number=number) for name, number in zip(names, numbers, strict=True)]
    write_table(columns, shown, notes=notes, narrowest=_NARROWEST)


def _is_number(values: Iterable[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(
        isinstance(value, int | float | Decimal) and not isinstance(value, bool) for value in known
    )
