"""`otel-llm usage`: calls, tokens and cost, added up by whatever one wants to know them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.account.call_filter import CallFilter
from otel_llm.account.sums import DIMENSIONS, MEASURES, TAG, TIMES, Dimension, total, weights
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import Place, asking, nothing_yet
from otel_llm.cli.options.common import call_options, output_options, period_options, store_option, where_option
from otel_llm.cli.read import side_by_side
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
from otel_llm.prices.billing import remedy_for

if TYPE_CHECKING:
    from otel_llm.account.engine import Row
    from otel_llm.account.questions import Account

_COST, _SHARE, _UNPRICED, _ESTIMATED = (
    list(MEASURES).index(name) - len(MEASURES) for name in ("cost_usd", "share", "unpriced", "estimated_usd")
)
"""Where these stand in a row, counted from its end."""
_SHORT = {"input_tokens": "input", "output_tokens": "output", "cost_usd": "cost"}
_SPARED: Final = (
    *("cost_usd", "calls", "estimated_usd", "input_tokens", "output_tokens", "errors", "share", "unpriced", "cached"),
)
"""What a narrow terminal can spare, the last first."""
_SORTS: Final = {short: name for name, short in _SHORT.items()} | {name: name for name in MEASURES}
_REASONS_SHOWN = 3


@click.command()
@click.argument("others", nargs=-1, metavar="")
@click.option(
    "--by", "-b", multiple=True, default=["model"], show_default="model", metavar="DIMENSIONS",
    help="What to add up by: one or more, with commas between.",
)  # fmt: skip
@call_options
@period_options
@where_option
@click.option("--sort", metavar="COLUMN", help="Order by this: cost, calls, tokens, ... or one of --by.")
@click.option("--top", metavar="N", type=click.IntRange(1), help="Only the first N rows; the total is of all.")
@click.option(
    "--against", metavar="PERIOD",
    help="The same of another time beside it: last-month, last-week, yesterday, 2026-11, or before: as long, right before --since.",
)  # fmt: skip
@click.option("--plot", is_flag=True, help="Draw the cost as bars: the tokens where no cost is known.")
@output_options
@store_option
def usage(
    others: Sequence[str],
    by: Sequence[str],
    model: str | None,
    user: str | None,
    module: str | None,
    errors: bool,
    since: str | None,
    until: str | None,
    where: str | None,
    sort: str | None,
    top: int | None,
    against: str | None,
    plot: bool,
    output: Format,
    store: Place | None,
) -> None:
    """Add up calls, errors, tokens and cost by model, user, day, ...

    \b
    Examples:
      otel-llm usage
      otel-llm usage --by model,user
      otel-llm usage --by day,module --since 7d
      otel-llm usage --by day --since 30d --plot
      otel-llm usage --by user --sort tokens --top 10
      otel-llm usage --by day --user alice --model "gpt-5*" --since this-month
      otel-llm usage --by module --where "tags['team'] = 'core' and status <> 'ok'"
      otel-llm usage --by tag:team --since 2026-11-01 --until 2026-11-30
      otel-llm usage --by conversation --since today --json
      otel-llm usage --by user --against last-month
      otel-llm usage --by model --since 7d --against before

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
    if others:
        every = ",".join([*by, *others]) if all(map(Dimension.named, others)) else "model,user"
        raise CommandError(f"--by takes several with commas between: --by {every}")
    dimensions = parse_dimensions(",".join(by))
    if against is None:
        period, other = when.period(since, until), None
    else:
        if plot:
            raise CommandError("--plot draws one period, and --against sets two side by side; leave one out")
        if times := [dimension.name for dimension in dimensions if dimension.name in TIMES]:
            raise CommandError(f"--against has no {times[0]} in common with the other period; leave it out of --by")
        period, other = when.compared(since, until, against)
    order = None if sort is None else _sort(sort, dimensions)
    names = [*(dimension.name for dimension in dimensions), *MEASURES]
    calls = CallFilter(
        since=period.since, until=period.until, user=user, module=module, model=model, errors=errors, where=where
    )
    with asking(store) as account:
        everything = account.sums(dimensions, calls, sort=order)
        if other is not None:
            before = account.sums(dimensions, replace(calls, since=other.since, until=other.until), sort=order)
            notes = [f"calls {period.words}; before: {other.words}", *_unknown_tags(account, dimensions)]
            _against(
                output, [one.name for one in dimensions], everything, before, top, [*notes, *_remarks(account, calls)]
            )
            return
        rows = everything[:top]
        if write_data(output, names, rows):
            return
        if not rows:
            holds = "for which that holds" if where or user or model or module or errors else ""
            found = " ".join(filter(None, ["No model calls", period.words, holds]))
            write_line(nothing_yet(account.place) if account.is_empty() else f"{found} in {account.place}.")
        elif plot:
            _plot(dimensions, everything, rows, series=sort in (None, *TIMES))
            for note in _remarks(account, calls):
                write_note(note)
        else:
            _print(
                names,
                everything,
                rows,
                [*_period(period), *_unknown_tags(account, dimensions), *_remarks(account, calls)],
            )


_COMPARED: Final = ("calls", "cost_usd", "input_tokens", "output_tokens", "errors")


def _against(
    output: Format, names: list[str], now: Sequence[Row], before: Sequence[Row], top: int | None, notes: list[str]
) -> None:
    """Two sums side by side."""
    at = [len(names) + list(MEASURES).index(measure) for measure in _COMPARED]
    one, other = ({row[: len(names)]: [row[each] for each in at] for row in rows} for rows in (now, before))
    rows = side_by_side.paired(one, other)
    shown = rows[:top]
    if write_data(output, [*names, *side_by_side.names(_COMPARED, when.BEFORE)], shown):
        return
    if not rows:
        write_line(f"No model calls for that: {notes[0]}.")
        return
    bottom = side_by_side.totals(one, other)
    if len(shown) < len(rows):
        notes.insert(0, f"the first {len(shown):,} of {len(rows):,} rows; the total is of all")
    costs = [cost for cost in bottom[3:5] if cost is not None]
    show = {_SHORT.get(name, name): count for name in _COMPARED} | {"cost": money(max(costs, default=None))}
    columns = [*map(Column, names), *side_by_side.columns(show, when.BEFORE)]
    write_table(columns, shown, totals=["total", *[""] * (len(names) - 1), *bottom], notes=notes)


def parse_dimensions(by: str) -> list[Dimension]:
    """The dimensions of a comma list, each once. Raises `CommandError` for one that there is not."""
    return [_dimension(name) for name in dict.fromkeys(name.strip() for name in by.split(","))]


def _period(period: when.Period) -> list[str]:
    """Of what time the sums are, where that is not all."""
    return [f"Calls {period.words}"] if period.words else []


def _unknown_tags(account: Account, dimensions: Sequence[Dimension]) -> list[str]:
    """Which tags there are, where one is asked for that no call has."""
    asked = [one.name.removeprefix(TAG) for one in dimensions if one.name.startswith(TAG)]
    if not asked:
        return []
    known = account.tag_keys()
    there = f"there are {', '.join(map(text, known))}" if known else "none has any"
    return [f"No call has a tag {text(key)}; {there}" for key in asked if key not in known]


def _dimension(name: str) -> Dimension:
    if (dimension := Dimension.named(name)) is not None:
        return dimension
    if len(words := name.split()) > 1 and all(Dimension.named(word) for word in words):
        raise CommandError(f"--by takes several with commas between: --by {','.join(words)}")
    close = get_close_matches(name, DIMENSIONS, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise CommandError(f"--by does not know {name!r}{guess}; it takes {', '.join(DIMENSIONS)}, tag:KEY")


def _sort(sort: str, dimensions: Sequence[Dimension]) -> str:
    """What `--sort` names: a dimension, a measure, or `tokens`."""
    names = [dimension.name for dimension in dimensions]
    if sort in (*names, "tokens"):
        return sort
    if name := _SORTS.get(sort):
        return name
    known = [*names, "tokens", *_SORTS]
    close = get_close_matches(sort, known, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise CommandError(f"--sort does not know {sort!r}{guess}; it takes {', '.join(known)}")


# --- remarks ----------------------------------------------------------------------------------------------------------


def _remarks(account: Account, calls: CallFilter) -> list[str]:
    """What is to be said of the sums."""
    notes = (
        _estimates(account, calls),
        _reported(account, calls),
        *_unpriced(account, calls),
        _not_billed(account, calls),
        _untold(account, calls),
    )
    return [note for note in notes if note]


def _unpriced(account: Account, calls: CallFilter) -> list[str]:
    """Why some calls are not in the cost, the commonest reasons first, and what can be done."""
    reasons = account.unpriced(calls)
    if not reasons:
        return []
    shown = [f"{reason} ({number:,})" for reason, number in reasons[:_REASONS_SHOWN]]
    rest = len(reasons) - len(shown)
    what = f"Not in the cost: {', '.join(map(text, shown))}{f' and {rest} more reasons' if rest else ''}"
    return [what, *dict.fromkeys(remedy for reason, _ in reasons if (remedy := remedy_for(reason)))]


def _reported(account: Account, calls: CallFilter) -> str | None:
    """How much of the cost the providers have told themselves, where they have."""
    costs = account.costs(calls)
    if not costs.told_calls:
        return None
    told = costs.told or Decimal(0)
    show = money(max(told, costs.computed or Decimal(0)))
    if not costs.computed_calls:
        return f"The cost is as the providers say: {show(told)} of {counted(costs.told_calls, 'call')}"
    return (
        f"Of the cost {show(told)} is as the providers say ({counted(costs.told_calls, 'call')}), "
        f"{show(costs.computed)} computed from prices ({counted(costs.computed_calls, 'call')})"
    )


def _untold(account: Account, calls: CallFilter) -> str | None:
    """Which streams told no usage, and the remedy."""
    from otel_llm.cli.checks.streams import without_usage

    found = without_usage(account, calls)
    return None if found is None else f"{found.what}; {found.remedy}"


def _not_billed(account: Account, calls: CallFilter) -> str | None:
    """What costs nothing, and so is not missing: calls that were refused, and answers that were no calls."""
    unbilled = account.unbilled(calls)
    told = [
        f"{number:,} {what}"
        for number, what in ((unbilled.refused, "refused"), (unbilled.cached, "answered out of a cache"))
        if number
    ]
    return f"Not billed: {', '.join(told)}" if told else None


def _estimates(account: Account, calls: CallFilter) -> str | None:
    """What stands beside the sums because nobody has reported it."""
    beside = account.estimated(calls)
    if not beside.calls:
        return None
    return (
        f"Estimated, and not in these sums: {count(beside.input_tokens)} input and {count(beside.output_tokens)} output tokens "
        f"of {counted(beside.calls, 'call')} that told none and may have been billed (OTEL_LLM_ESTIMATE=off estimates none)"
    )


# --- on the screen ----------------------------------------------------------------------------------------------------


def _print(names: Sequence[str], everything: Sequence[Row], rows: Sequence[Row], remarks: Sequence[str]) -> None:
    measures = len(MEASURES)
    sums = [total(values) for values in list(zip(*everything, strict=True))[-measures:]]
    totals: list[Any] = ["total", *[""] * (len(names) - measures - 1), *sums]
    amounts = money(max((amount for amount in (sums[_COST], sums[_ESTIMATED]) if amount is not None), default=None))
    show = {"cost_usd": amounts, "estimated_usd": amounts, "share": _percent}
    columns = [
        Column(name, _SHORT.get(name, ""), number=True, show=show.get(name, count), spare=_SPARED.index(name))
        if name in MEASURES
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

    amounts, what = weights(everything)
    whole = total(amounts)
    show = money(whole) if what == "cost_usd" else count
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
    write_note(f"total {show(whole)}{more}")


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
