"""`otel-llm usage`: calls, tokens and cost, added up by whatever one wants to know them by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from otel_llm.cli import when
from otel_llm.cli.access import is_empty, locate, nothing_yet, reading
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import FormatOption, SinceOption, StoreOption, UntilOption
from otel_llm.cli.output import Column, Format, count, text, write_csv, write_json, write_line, write_table

if TYPE_CHECKING:
    import duckdb

Row: TypeAlias = tuple[Any, ...]

DIMENSIONS: Final = {
    "model": "coalesce(request_model, response_model)",
    "response_model": "response_model",
    "user": "user_id",
    "module": "module",
    "day": "strftime(started_at, '%Y-%m-%d')",
    "hour": "strftime(started_at, '%Y-%m-%d %H:00')",
    "provider": "provider",
    "operation": "operation",
    "status": "status",
    "session": "session_id",
    "conversation": "conversation_id",
    "agent": "agent_name",
    "workflow": "workflow_name",
    "profile": "profile",
    "service": "service_name",
    "server": "server_address",
}
"""What `--by` takes, and the SQL for it. Nothing that a user types becomes SQL: a name is looked up here, a tag's key
is a bound parameter."""

_TAG = "tag:"
_TIMES = ("day", "hour")

_MEASURES: Final = {
    "calls": "count(*)",
    "errors": "count(*) FILTER (status = 'error')",
    "input_tokens": "sum(input_tokens)",
    "output_tokens": "sum(output_tokens)",
    "cached": "sum(cache_read_tokens)",
    "cost_usd": "sum(cost_usd)",
    "unpriced": "count(*) FILTER (cost_usd IS NULL)",
}
_SHORT = {"input_tokens": "input", "output_tokens": "output", "cost_usd": "cost"}
_REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Dimension:
    """One of `--by`: what it is called, its SQL, and the parameters that this SQL takes."""

    name: str
    sql: str
    parameters: tuple[str, ...] = ()


def usage(
    by: Annotated[
        str,
        typer.Option("--by", "-b", metavar="DIMENSIONS", help="What to add up by: one or more, with commas between."),
    ] = "model",
    since: SinceOption = None,
    until: UntilOption = None,
    output: FormatOption = Format.table,
    store: StoreOption = None,
) -> None:
    """Add up calls, errors, tokens and cost by model, user, day, ...

    \b
    Examples:
      otel-llm usage
      otel-llm usage --by model,user
      otel-llm usage --by day,module --since 7d
      otel-llm usage --by tag:team --since 2026-11-01 --until 2026-11-30
      otel-llm usage --by conversation --since today --format json

    \b
    Dimensions for --by:
      model         the model as it was asked for   response_model  as the answer names it
      user          user id                         module          module of llm_context
      day, hour     local time                      session         session id
      conversation  conversation id                 provider        openai, azure.ai.openai, ...
      operation     chat, embeddings, ...           status          ok, error, cancelled, ...
      agent         nearest enclosing agent         workflow        nearest enclosing workflow
      profile       profile that chose the model    service         service.name
      server        host that answered              tag:KEY         a tag of llm_context

    Times and days are local. errors counts the calls with status error, cached the part of input_tokens that came from the
    provider's cache. cost_usd adds up the calls whose price is known; unpriced says how many are not in it. – (null in
    JSON) is a number that nobody reported.
    """
    dimensions = parse_dimensions(by)
    period = when.period(since, until)
    names = [*(dimension.name for dimension in dimensions), *_MEASURES]
    with reading(store) as connection:
        rows = _query(connection, dimensions, period)
        match output:
            case Format.json:
                write_json(names, rows)
            case Format.csv:
                write_csv(names, rows)
            case Format.table if rows:
                _print(names, rows, _unpriced(connection, period))
            case Format.table:
                path = locate(store)
                write_line(nothing_yet(path) if is_empty(connection) else f"No model calls {period.words} in {path}.")


def parse_dimensions(by: str) -> list[Dimension]:
    """The dimensions of a comma list, each once. Raises `CommandError` for one that there is not."""
    return [_dimension(name) for name in dict.fromkeys(name.strip() for name in by.split(","))]


def _dimension(name: str) -> Dimension:
    if name.startswith(_TAG) and (key := name.removeprefix(_TAG)):
        return Dimension(name, "tags[?]", (key,))
    if sql := DIMENSIONS.get(name):
        return Dimension(name, sql)
    close = get_close_matches(name, DIMENSIONS, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise CommandError(f"--by does not know {name!r}{guess}; it takes {', '.join(DIMENSIONS)}, tag:KEY")


def _query(connection: duckdb.DuckDBPyConnection, dimensions: Sequence[Dimension], period: when.Period) -> list[Row]:
    keys = [str(position) for position in range(1, len(dimensions) + 1)]
    times = [key for key, dimension in zip(keys, dimensions, strict=True) if dimension.name in _TIMES]
    sql = f"""
        SELECT {", ".join(dimension.sql for dimension in dimensions)}, {", ".join(_MEASURES.values())}
        FROM llm_usage
        WHERE {period.sql}
        GROUP BY {", ".join(keys)}
        ORDER BY {", ".join([*times, "sum(cost_usd) DESC NULLS LAST", "count(*) DESC", *keys])}
    """
    tags = [parameter for dimension in dimensions for parameter in dimension.parameters]
    rows: list[Row] = connection.execute(sql, [*tags, *period.parameters]).fetchall()
    return rows


def _unpriced(connection: duckdb.DuckDBPyConnection, period: when.Period) -> str | None:
    """Why some calls are not in the cost, the commonest reasons first."""
    reasons = connection.execute(
        f"""
        SELECT coalesce(price_source, 'no reason recorded'), count(*)
        FROM llm_usage
        WHERE cost_usd IS NULL AND {period.sql}
        GROUP BY 1 ORDER BY 2 DESC, 1
        """,
        list(period.parameters),
    ).fetchall()
    if not reasons:
        return None
    shown = [f"{reason} ({calls:,})" for reason, calls in reasons[:_REASONS_SHOWN]]
    rest = len(reasons) - len(shown)
    return f"Not in the cost: {', '.join(map(text, shown))}{f' and {rest} more reasons' if rest else ''}"


def _print(names: Sequence[str], rows: Sequence[Row], note: str | None) -> None:
    measures = len(_MEASURES)
    sums = [_sum(values) for values in list(zip(*rows, strict=True))[-measures:]]
    totals: list[Any] = ["total", *[""] * (len(names) - measures - 1), *sums]
    columns = [
        Column(name, _SHORT.get(name, ""), number=True, show=_money(sums) if name == "cost_usd" else count)
        if name in _MEASURES
        else Column(name)
        for name in names
    ]
    # Where every call has a price, the last column, `unpriced`, has nothing to say.
    shown = len(names) if note else len(names) - 1
    write_table(columns[:shown], [row[:shown] for row in rows], totals=totals[:shown], notes=[note] if note else [])


def _sum(values: Iterable[Any]) -> Any:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _money(sums: Sequence[Any]) -> Callable[[object], str]:
    """How to write the amounts of one table: all with the same number of places, enough of them to tell rows apart."""
    total = sums[list(_MEASURES).index("cost_usd")] or Decimal(0)
    places = 6 if total < 1 else 4 if total < 100 else 2
    least = Decimal(1).scaleb(-places)

    def show(value: object) -> str:
        if not isinstance(value, Decimal):
            return text(value)
        return f"<{least}" if 0 < value < least / 2 else f"{value:,.{places}f}"

    return show
