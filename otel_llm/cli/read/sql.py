"""`otel-llm sql`: a query against the store, from the command line, a file, a pipe or a prompt."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.account.engine import ColumnKind, QueryAnswer, iso
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import Place, asking, nothing_yet
from otel_llm.cli.options.common import FILE, output_options, store_option
from otel_llm.cli.screen.output import (
    Column,
    Format,
    printable,
    text,
    write_csv,
    write_json,
    write_line,
    write_note,
    write_table,
)

if TYPE_CHECKING:
    from otel_llm.account.questions import Account

_MOST_ROWS = 1_000
"""A table longer than this is not for reading; JSON and CSV have no limit."""
_NARROWEST = 20
"""Room for a time to the second: columns are left out before they say less than that."""

_REMARK: Final = re.compile(r"--[^\s]*\s")


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a column of the user's, called as one of ours
        return text


_DECODE: dict[ColumnKind, Callable[[str], Any]] = {ColumnKind.json: _document, ColumnKind.time: iso}


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
@click.option("--expanded", "-x", is_flag=True, help="A row as lines, a column each, as psql's \\x does.")
@output_options
@store_option
def sql(query: str | None, file: Path | None, expanded: bool, output: Format, store: Place | None) -> None:
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
    llm_conversations and llm_daily are views on the two; llm_scores has what was thought of them. The store sees every call
    that has ended, in whatever process.

    Without SQL it is read from a pipe; on a terminal there is a prompt, where Tab completes and a statement ends with a
    semicolon.
    """
    if query is not None and file is not None:
        raise CommandError("give either SQL or --file, not both")
    if query is None and file is None and sys.stdin.isatty() and sys.stdout.isatty():
        from otel_llm.cli.read.prompt import converse

        converse(lambda text: answer(text, output, store, expanded=expanded), store)
        return
    answer(_read(query, file), output, store, expanded=expanded)


def _read(query: str | None, file: Path | None) -> str:
    try:
        if file is not None:
            return file.expanduser().read_text(encoding="utf-8")
        return sys.stdin.read() if query in (None, "-") else str(query)
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file or 'standard input'} is not text in UTF-8") from error


def answer(query: str, output: Format, store: Place | None, *, expanded: bool = False) -> None:
    """Runs SQL and prints what each statement in it answers; as JSON or CSV the last one. Raises `CommandError`."""
    with asking(store) as account:
        if output is Format.table and len(statements := account.statements(query)) > 1:
            for number, statement in enumerate(statements):
                if number:
                    write_line()
                _show(account, statement, expanded=expanded)
            return
        if output is Format.table:
            _show(account, query, expanded=expanded)
            return
        found = account.query(query)
        if found is None:
            if output is Format.json:
                write_json([], [])
            return
        match output:
            case Format.json:
                write_json(_told_apart(found.names), _decoded(found))
            case Format.csv | Format.raw_csv:
                write_csv(found.names, found.rows, raw=output is Format.raw_csv)


def _show(account: Account, statement: str, *, expanded: bool) -> None:
    """Runs one statement and prints its rows for people."""
    found = account.query(statement, _MOST_ROWS + 1)
    if found is None:
        return
    rows = [*found.rows]
    if not rows and [*found.names] == ["Success"]:  # what DuckDB says of SET
        return
    if not rows and account.is_empty():
        write_line(nothing_yet(account.place))
    elif expanded:
        _print_expanded(found.names, rows)
    else:
        _print(found.names, rows)


def _print_expanded(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    width = max(map(len, names), default=0)
    for number, row in enumerate(rows[:_MOST_ROWS], 1):
        write_line(f"row {number}")
        for name, value in zip(names, row, strict=True):
            write_line(f"  {name:<{width}}  {printable(text(value))}")
    if not rows:
        write_note("no rows")
    elif len(rows) > _MOST_ROWS:
        write_note(f"the first {_MOST_ROWS:,} rows; --format json or csv has them all")


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names with numbers where one comes again: an object has each key once."""
    apart: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        apart.append(next(each for each in candidates if each not in apart))
    return apart


def _decoded(found: QueryAnswer) -> Iterator[list[Any]]:
    """Rows for JSON: a JSON column is part of the document, not a string with a document in it; times are ISO 8601."""
    for row in found.rows:
        yield [
            _DECODE[kind](value) if value is not None and kind in _DECODE else value
            for value, kind in zip(row, found.kinds, strict=True)
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
