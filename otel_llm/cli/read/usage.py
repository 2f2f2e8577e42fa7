"""`otel-llm usage`: calls, tokens and cost, added up by whatever one wants to know them by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import is_empty, locate, nothing_yet, reading
from otel_llm.cli.options.common import output_options, period_options, store_option, where_option
from otel_llm.cli.options.where import condition
from otel_llm.cli.screen.output import (
    Column,
    Format,
    count,
    counted,
    text,
    write_data,
    write_line,
    write_note,
    write_table,
)
from otel_llm.prices.billing import BILLED, CACHE_HIT, NO_REASON, REFUSED, REPORTED, TOLD, UNPRICED, literal, remedy_for

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
    "price_source": "price_source",
}
"""What `--by` takes, and the SQL for it. Nothing that a user types becomes SQL: a name is looked up here, a tag's key
is a bound parameter."""

_TAG = "tag:"
TIMES: Final = ("day", "hour")

_MEASURES: Final = {
    "calls": f"count(*) FILTER ({BILLED})",
    "errors": "count(*) FILTER (status = 'error')",
    "input_tokens": f"sum(input_tokens) FILTER ({REPORTED})",
    "output_tokens": f"sum(output_tokens) FILTER ({REPORTED})",
    "cached": "sum(cache_read_tokens)",
    "cost_usd": f"sum(cost_usd) FILTER ({REPORTED})",
    "share": "NULL",  # of what all rows have together: see `_with_shares`
    "unpriced": f"count(*) FILTER ({UNPRICED})",
    "estimated_usd": f"sum(cost_usd) FILTER (NOT {REPORTED})",
}
_INPUT, _OUTPUT, _COST, _SHARE, _UNPRICED, _ESTIMATED = (
    list(_MEASURES).index(name) - len(_MEASURES)
    for name in ("input_tokens", "output_tokens", "cost_usd", "share", "unpriced", "estimated_usd")
)
"""Where these stand in a row, counted from its end."""
_SHORT = {"input_tokens": "input", "output_tokens": "output", "cost_usd": "cost"}
_SPARED: Final = (
    *("cost_usd", "calls", "estimated_usd", "input_tokens", "output_tokens", "errors", "share", "unpriced", "cached"),
)
"""What a narrow terminal can spare, the last first."""
_SORTS: Final = {short: name for name, short in _SHORT.items()} | {name: name for name in _MEASURES}
_TOKENS: Final = " + ".join(f"coalesce({_MEASURES[name]}, 0)" for name in ("input_tokens", "output_tokens"))
_REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Dimension:
    """One of `--by`: what it is called, its SQL, and the parameters that this SQL takes."""

    name: str
    sql: str
    parameters: tuple[str, ...] = ()


@click.command()
@click.option(
    "--by", "-b", multiple=True, default=["model"], show_default="model", metavar="DIMENSIONS",
    help="What to add up by: one or more, with commas between.",
)  # fmt: skip
@period_options
@where_option
@click.option("--sort", metavar="COLUMN", help="Order by this: cost, calls, tokens, ... or one of --by.")
@click.option("--top", metavar="N", type=click.IntRange(1), help="Only the first N rows; the total is of all.")
@click.option("--plot", is_flag=True, help="Draw the cost as bars: the tokens where no cost is known.")
@output_options
@store_option
def usage(
    by: Sequence[str],
    since: str | None,
    until: str | None,
    where: str | None,
    sort: str | None,
    top: int | None,
    plot: bool,
    output: Format,
    store: Path | None,
) -> None:
    """Add up calls, errors, tokens and cost by model, user, day, ...

    \b
    Examples:
      otel-llm usage
      otel-llm usage --by model,user
      otel-llm usage --by day,module --since 7d
      otel-llm usage --by day --since 30d --plot
      otel-llm usage --by user --sort tokens --top 10
      otel-llm usage --by module --where "tags['team'] = 'core' and status <> 'ok'"
      otel-llm usage --by tag:team --since 2026-11-01 --until 2026-11-30
      otel-llm usage --by conversation --since today --json

    \b
    Dimensions for --by:
      model         the model that was asked for,   response_model  as the answer names it,
                    or else the one that answered                   dated versions apart
      user          user id                         module          module of llm_context
      day, hour     local time                      session         session id
      conversation  conversation id                 provider        openai, azure.ai.openai, ...
      operation     chat, embeddings, ...           status          ok, error, cancelled, ...
      agent         nearest enclosing agent         workflow        nearest enclosing workflow
      profile       profile that chose the model    service         service.name
      server        host that answered              price_source    reported, or which prices, or why none
      tag:KEY       a tag of llm_context

    Times and days are local. errors counts the calls with status error, cached the part of input_tokens that came from the
    provider's cache. cost_usd adds up the calls whose price is known; unpriced says how many are not in it, without those that
    were refused, which cost nothing. An answer out of a cache of the app's is no call. estimated_usd stands beside the cost: of
    calls that were billed and told no usage, such as streams that were stopped. Their tokens are in no column. share is the part
    of the whole cost; where no cost at all is known, of all tokens. – (null in JSON) is a number that nobody reported.

    Without --sort the dearest come first, days and hours in their order. --sort puts the largest number first, and names in
    the order of the alphabet.
    """
    if plot and output is not Format.table:
        raise CommandError(f"--plot draws for people; leave it out for --format {output}")
    dimensions = parse_dimensions(",".join(by))
    period = when.period(since, until)
    order = _order(sort, dimensions)
    names = [*(dimension.name for dimension in dimensions), *_MEASURES]
    with reading(store) as connection:
        # The condition stands in the SQL itself, the times are parameters.
        period = when.Period(f"{period.sql} AND {condition(connection, where)}", period.parameters, period.words)
        everything = _query(connection, dimensions, period, order)
        rows = everything[:top]
        if write_data(output, names, rows):
            return
        if not rows:
            path = locate(store)
            found = " ".join(filter(None, ["No model calls", period.words, "for which that holds" if where else ""]))
            write_line(nothing_yet(path) if is_empty(connection) else f"{found} in {path}.")
        elif plot:
            _plot(dimensions, everything, rows, series=sort in (None, *TIMES))
            for note in _remarks(connection, period, store):
                write_note(note)
        else:
            _print(names, everything, rows, _remarks(connection, period, store))


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


def _order(sort: str | None, dimensions: Sequence[Dimension]) -> list[str]:
    """What `--sort` puts before the usual order: SQL over the columns of the result."""
    names = [dimension.name for dimension in dimensions]
    if sort is None:
        return [str(position) for position, name in enumerate(names, 1) if name in TIMES]
    if sort in names:
        return [str(names.index(sort) + 1)]
    if sort == "tokens":
        return [f"{_TOKENS} DESC NULLS LAST"]
    if name := _SORTS.get(sort):
        return [] if name == "share" else [f"{_MEASURES[name]} DESC NULLS LAST"]
    known = [*names, "tokens", *_SORTS]
    close = get_close_matches(sort, known, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise CommandError(f"--sort does not know {sort!r}{guess}; it takes {', '.join(known)}")


def _query(
    connection: duckdb.DuckDBPyConnection, dimensions: Sequence[Dimension], period: when.Period, order: Sequence[str]
) -> list[Row]:
    keys = [str(position) for position in range(1, len(dimensions) + 1)]
    dearest = (f"{_MEASURES['cost_usd']} DESC NULLS LAST", f"{_TOKENS} DESC", f"{_MEASURES['calls']} DESC")
    sql = f"""
        SELECT {", ".join(dimension.sql for dimension in dimensions)}, {", ".join(_MEASURES.values())}
        FROM llm_usage
        WHERE {period.sql}
        GROUP BY {", ".join(keys)}
        ORDER BY {", ".join([*order, *dearest, *keys])}
    """
    tags = [parameter for dimension in dimensions for parameter in dimension.parameters]
    return _with_shares(connection.execute(sql, [*tags, *period.parameters]).fetchall())


def _with_shares(rows: Sequence[Row]) -> list[Row]:
    """The rows with the share of each: of the cost, or of the tokens where no cost is known."""
    amounts, _ = _amounts(rows)
    whole = _sum(amounts)
    return [
        (*row[:_SHARE], None if amount is None or not whole else round(float(amount / whole), 6), *row[_SHARE + 1 :])
        for row, amount in zip(rows, amounts, strict=True)
    ]


def _amounts(rows: Sequence[Row]) -> tuple[list[Any], str]:
    """What the rows are weighed by, and its name: their cost, or their tokens where no cost is known."""
    if any(row[_COST] is not None for row in rows):
        return [row[_COST] for row in rows], "cost_usd"
    return [_sum((row[_INPUT], row[_OUTPUT])) for row in rows], "tokens"


def _unpriced(connection: duckdb.DuckDBPyConnection, period: when.Period) -> list[str]:
    """Why some calls are not in the cost, the commonest reasons first, and what can be done."""
    reasons = connection.execute(
        f"""
        SELECT coalesce(price_source, {literal(NO_REASON)}), count(*)
        FROM llm_usage
        WHERE {UNPRICED} AND {period.sql}
        GROUP BY 1 ORDER BY 2 DESC, 1
        """,
        list(period.parameters),
    ).fetchall()
    if not reasons:
        return []
    shown = [f"{reason} ({calls:,})" for reason, calls in reasons[:_REASONS_SHOWN]]
    rest = len(reasons) - len(shown)
    what = f"Not in the cost: {', '.join(map(text, shown))}{f' and {rest} more reasons' if rest else ''}"
    return [what, *dict.fromkeys(remedy for reason, _ in reasons if (remedy := remedy_for(reason)))]


def _reported(connection: duckdb.DuckDBPyConnection, period: when.Period) -> str | None:
    """How much of the cost the providers have told themselves, where they have."""
    told, calls, computed, others = connection.execute(
        f"""
        SELECT sum(cost_usd) FILTER ({TOLD}), count(*) FILTER ({TOLD}), sum(cost_usd) FILTER (NOT {TOLD} AND {REPORTED}),
            count(cost_usd) FILTER (NOT {TOLD} AND {BILLED} AND {REPORTED})
        FROM llm_usage WHERE {period.sql}
        """,
        list(period.parameters),
    ).fetchall()[0]
    if not calls:
        return None
    show = money(max(told, computed or Decimal(0)))
    if not others:
        return f"The cost is as the providers say: {show(told)} of {counted(calls, 'call')}"
    return (
        f"Of the cost {show(told)} is as the providers say ({counted(calls, 'call')}), "
        f"{show(computed)} computed from prices ({counted(others, 'call')})"
    )


def _untold(connection: duckdb.DuckDBPyConnection, period: when.Period, store: Path | None) -> str | None:
    """Which streams told no usage, and the remedy."""
    from otel_llm.cli.checks.streams import without_usage
    from otel_llm.store.paths import StorePaths

    found = without_usage(connection, StorePaths.of(locate(store)).stream_usage, period.sql, period.parameters)
    return None if found is None else f"{found.what}; {found.remedy}"


def _not_billed(connection: duckdb.DuckDBPyConnection, period: when.Period) -> str | None:
    """What costs nothing, and so is not missing: calls that were refused, and answers that were no calls."""
    refused, hits = connection.execute(
        f"""
        SELECT count(*) FILTER (price_source = {literal(REFUSED)}), count(*) FILTER (price_source = {literal(CACHE_HIT)})
        FROM llm_usage WHERE {period.sql}
        """,
        list(period.parameters),
    ).fetchall()[0]
    told = [
        f"{number:,} {what}" for number, what in ((refused, "refused"), (hits, "answered out of a cache")) if number
    ]
    return f"Not billed: {', '.join(told)}" if told else None


def _estimates(connection: duckdb.DuckDBPyConnection, period: when.Period) -> str | None:
    """What stands beside the sums because nobody has reported it."""
    calls, given, taken = connection.execute(
        f"""SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0)
        FROM llm_usage WHERE NOT {REPORTED} AND {period.sql}""",
        list(period.parameters),
    ).fetchall()[0]
    if not calls:
        return None
    return (
        f"Estimated, and not in these sums: {count(given)} input and {count(taken)} output tokens of {counted(calls, 'call')} "
        "that told none and may have been billed (OTEL_LLM_ESTIMATE=off estimates none)"
    )


def _remarks(connection: duckdb.DuckDBPyConnection, period: when.Period, store: Path | None) -> list[str]:
    """What is to be said of the sums."""
    notes = (
        _estimates(connection, period),
        _reported(connection, period),
        *_unpriced(connection, period),
        _not_billed(connection, period),
        _untold(connection, period, store),
    )
    return [note for note in notes if note]


def _print(names: Sequence[str], everything: Sequence[Row], rows: Sequence[Row], remarks: Sequence[str]) -> None:
    measures = len(_MEASURES)
    sums = [_sum(values) for values in list(zip(*everything, strict=True))[-measures:]]
    totals: list[Any] = ["total", *[""] * (len(names) - measures - 1), *sums]
    amounts = money(max((amount for amount in (sums[_COST], sums[_ESTIMATED]) if amount is not None), default=None))
    show = {"cost_usd": amounts, "estimated_usd": amounts, "share": _percent}
    columns = [
        Column(name, _SHORT.get(name, ""), number=True, show=show.get(name, count), spare=_SPARED.index(name))
        if name in _MEASURES
        else Column(name)
        for name in names
    ]
    # Where every call has a price, `unpriced` has nothing to say, nor has `estimated_usd` where nothing is estimated.
    silent = {name for name, at in (("unpriced", _UNPRICED), ("estimated_usd", _ESTIMATED)) if not sums[at]}
    shown = [number for number, name in enumerate(names) if name not in silent]
    notes = (
        []
        if len(rows) == len(everything)
        else [f"the first {len(rows):,} of {len(everything):,} rows; the total is of all"]
    )
    if sums[_COST] is None and sums[_SHARE] is not None:
        notes.append("no cost is known: share is of the tokens")
    notes += remarks
    table, bottom = [[row[number] for number in shown] for row in rows], [totals[number] for number in shown]
    write_table([columns[number] for number in shown], table, totals=bottom, notes=notes)


def _plot(dimensions: Sequence[Dimension], everything: Sequence[Row], rows: Sequence[Row], *, series: bool) -> None:
    from otel_llm.cli.screen.plot import Bar, write_bars

    amounts, what = _amounts(everything)
    total = _sum(amounts)
    show = money(total) if what == "cost_usd" else count
    bars = [
        Bar(tuple(map(text, row[: len(dimensions)])), amount, show(amount))
        for row, amount in zip(rows, amounts, strict=False)
    ]
    write_bars([dimension.name for dimension in dimensions], bars, what, series=series)
    more = (
        f" in {len(everything):,} rows, of which these are the first {len(rows):,}"
        if len(rows) < len(everything)
        else ""
    )
    write_note(f"total {show(total)}{more}")


def _sum(values: Iterable[Any]) -> Any:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _percent(share: object) -> str:
    return f"{share:.1%}" if isinstance(share, float) else text(share)


def money(most: Decimal | None) -> Callable[[object], str]:
    """How to write the amounts of one table: all with the same number of places, enough of them to tell rows apart."""
    places = 6 if not most or most < 1 else 4 if most < 100 else 2
    least = Decimal(1).scaleb(-places)

    def show(value: object) -> str:
        if not isinstance(value, Decimal):
            return text(value)
        return f"<{least}" if 0 < value < least / 2 else f"{value:,.{places}f}"

    return show
