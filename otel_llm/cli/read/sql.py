"""`otel-llm sql`: a query against the store, from the command line, a file, a pipe or a prompt."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import is_empty, locate, nothing_yet, reading
from otel_llm.cli.options.common import FILE, output_options, store_option
from otel_llm.cli.screen.output import Column, Format, write_csv, write_json, write_line, write_table

if TYPE_CHECKING:
    import duckdb

_MOST_ROWS = 1_000
"""A table longer than this is not for reading; JSON and CSV have no limit."""
_SOME_ROWS = 1_000
_NARROWEST = 20
"""Room for a time to the second: columns are left out before they say less than that."""

_REMARK: Final = re.compile(r"--[^\s]*\s")
_ZONE = "TIME ZONE"


def iso(moment: str) -> str:
    """A time that DuckDB wrote, as ISO 8601."""
    try:
        return datetime.fromisoformat(moment).isoformat()
    except ValueError:  # such as infinity
        return moment


_DECODE: dict[str, Callable[[str], Any]] = {"JSON": json.loads, "TIMESTAMP WITH TIME ZONE": iso}


class _SqlCommand(click.Command):
    """A command whose argument may begin with a remark: `--` and a blank or a line's end is SQL, and never an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [each for parameter in self.params for each in parameter.opts]
        remarks = [each for each in args if _REMARK.match(each) and each.partition("=")[0] not in options]
        if remarks and "--" not in args:
            args = [*(each for each in args if each not in remarks), "--", *remarks]
        return super().parse_args(ctx, args)


@click.command(cls=_SqlCommand)
@click.argument("query", metavar="[SQL]", required=False)
@click.option("--file", "-F", type=FILE, metavar="FILE", help="Read the SQL from a file.")
@output_options
@store_option
def sql(query: str | None, file: Path | None, output: Format, store: Path | None) -> None:
    """Run SQL on the store, read-only.

    \b
    Examples:
      otel-llm sql "from llm_usage order by started_at desc limit 5"
      otel-llm sql "select user_id, sum(cost_usd) from llm_usage group by all" --json
      otel-llm sql "describe llm_usage"
      otel-llm sql "copy llm_usage to 'usage.parquet'"
      otel-llm sql --file query.sql --format csv
      otel-llm sql - < query.sql

    The dialect is DuckDB's. llm_usage has one row a model call, spans has whole traces; llm_events, llm_runs, llm_tool_calls,
    llm_conversations and llm_daily are views on the two. The store sees every call that has ended, in whatever process.

    Without SQL it is read from a pipe; on a terminal there is a prompt, where Tab completes and a statement ends with a
    semicolon.
    """
    if query is not None and file is not None:
        raise CommandError("give either SQL or --file, not both")
    if query is None and file is None and sys.stdin.isatty() and sys.stdout.isatty():
        from otel_llm.cli.read.prompt import converse

        converse(lambda text: answer(text, output, store), store)
        return
    answer(_read(query, file), output, store)


def _read(query: str | None, file: Path | None) -> str:
    try:
        if file is not None:
            return file.expanduser().read_text(encoding="utf-8")
        return sys.stdin.read() if query in (None, "-") else str(query)
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file or 'standard input'} is not text in UTF-8") from error


def answer(text: str, output: Format, store: Path | None) -> None:
    """Runs SQL and prints what the last statement in it answers. Raises `CommandError`."""
    with reading(store) as connection:
        statements = connection.extract_statements(text)
        if not statements:
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
                write_json(_told_apart(names), _decoded(_stream(connection, result, statements[-1]), types))
            case Format.csv | Format.raw_csv:
                write_csv(names, _stream(connection, result, statements[-1]), raw=output is Format.raw_csv)
            case Format.table:
                rows = result.limit(_MOST_ROWS + 1).fetchall()
                if not rows and is_empty(connection):
                    write_line(nothing_yet(locate(store)))
                else:
                    _print(names, rows)


def _stream(
    connection: duckdb.DuckDBPyConnection, result: duckdb.DuckDBPyRelation, statement: duckdb.Statement
) -> Iterator[Sequence[Any]]:
    """The rows, some at a time: they may be more than fit in memory. (A relation hands out all of them, or the first.)"""
    import duckdb

    if statement.type != duckdb.StatementType.SELECT:  # EXPLAIN, PRAGMA, COPY: run already, and a few rows at most
        yield from result.fetchall()
        return
    cursor = connection.execute(result.sql_query())
    while rows := cursor.fetchmany(_SOME_ROWS):
        yield from rows


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
