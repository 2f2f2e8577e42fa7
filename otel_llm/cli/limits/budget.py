"""`otel-llm budget`: what is spent of each budget, what it will be at the end of its period, and who is next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options.access import Place, asking, locate, remote
from otel_llm.cli.options.common import FILE, output_options, store_option
from otel_llm.cli.screen.output import Column, Format, counted, printable, text, write_data, write_line, write_table
from otel_llm.settings import settings

if TYPE_CHECKING:
    from otel_llm.account.questions import Account
    from otel_llm.budgets.rules import Budget, Rules
    from otel_llm.budgets.spending import Spending

_NAMES: Final = (
    "budget", "each", "value", "run", "per", "start", "end", "unit", "spent", "limit", "share", "forecast", "state", "action",
    "calls", "uncounted",
)  # fmt: skip
_STYLES: Final = {"warned": "yellow", "spent": "red", "stopped": "red"}
_EXAMPLE: Final = """[[budget]] with name = "all", limit_usd = 100 and per = "month\""""


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--check",
    is_flag=True,
    help="Print what is spent and nothing else, and exit with 1 if anything is: for cron and CI.",
)
@click.option(
    "--top",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=5,
    show_default=True,
    help="How many values, or runs, of a budget with a limit for each: the largest.",
)
@click.option("--file", metavar="FILE", type=FILE, help="The file of budgets, in place of $OTEL_LLM_BUDGETS.")
@click.option(
    "--test-notify", is_flag=True, help="Send a message to each webhook and command, and say whether it came."
)
@output_options
@store_option
def budget(
    names: Sequence[str],
    check: bool,
    top: int,
    file: Path | None,
    test_notify: bool,
    output: Format,
    store: Place | None,
) -> int:
    """Show what is spent of each budget, what it will be, and who is next.

    \b
    Examples:
      otel-llm budget
      otel-llm budget search --top 20
      otel-llm budget --check || echo "somebody has spent it all"
      otel-llm budget --json --store clickhouse://user@host:8123/otel
      otel-llm budget --test-notify

    spent is of the period that goes on now, of every call that has ended, estimates and the stated price of calls without one
    included; of a trace or a conversation that had a call in the last day it is of the whole. forecast is what it will be at the
    end of the period if it goes on as it did: spent / passed * length, once a fiftieth has passed. state is ok, warned (above a
    threshold), spent, or stopped where a budget stops calls.

    Exit code 0; with --check 1 if something is spent; with --test-notify 1 if somebody could not be told; 2 if the file of
    budgets, or anything else that was given, is wrong. What is right in it is shown all the same.
    """
    from otel_llm.budgets.spending import spent

    rules = _rules(file)
    chosen = _chosen(rules, names)
    for mistake in rules.mistakes:
        sys.stderr.write(f"otel-llm: {one_line(mistake)}\n")
    wrong = 2 if rules.mistakes else 0
    if test_notify:
        return _test(rules, chosen) or wrong
    now = datetime.now(UTC)
    with asking(store) as account:
        if check:
            return _check(account, chosen, now, top, output) or wrong
        found = [(one, spent(account, one, now, most=top + 1)) for one in chosen]  # one more tells that there are more
        place = account.place
    everything = [spending for _, spendings in found for spending in spendings[:top]]
    rows = [[*one.row(now).values()] for one in everything]
    if write_data(output, _NAMES, rows):
        return wrong
    if not everything:
        write_line(f"Nothing is spent of {counted(len(chosen), 'budget')} by the account in {place}.")
    else:
        _print(everything, rows, _notes(found, top, store))
    return wrong


def _rules(file: Path | None) -> Rules:
    from otel_llm.budgets import rules

    path = settings().budgets if file is None else file.expanduser().absolute()
    if path is None:
        raise CommandError(
            f"there are no budgets: set OTEL_LLM_BUDGETS to a TOML file, or give --file; it has {_EXAMPLE}"
        )
    return rules.load(path)


def _chosen(rules: Rules, names: Sequence[str]) -> list[Budget]:
    """The budgets that are named, or all. Raises `CommandError`."""
    known = {one.name: one for one in rules.budgets}
    for name in names:
        if name not in known:
            from difflib import get_close_matches

            close = get_close_matches(name, known, 1)
            there = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(map(repr, known)) or 'none'}"
            raise CommandError(f"there is no budget {name!r}; {there}")
    return [known[name] for name in dict.fromkeys(names)] if names else [*rules.budgets]


# --- for programs -----------------------------------------------------------------------------------------------------
def _check(account: Account, budgets: Sequence[Budget], now: datetime, top: int, output: Format) -> int:
    from otel_llm.budgets.alerts.crossings import Crossing
    from otel_llm.budgets.spending import spent

    found = [(one, [each for each in spent(account, one, now, least=1.0) if each.is_spent]) for one in budgets]
    everything = [one for _, spendings in found for one in spendings]
    if not write_data(output, _NAMES, [[*one.row(now).values()] for one in everything]):
        for budget, spendings in found:
            for one in spendings[:top]:
                write_line(printable(Crossing.of(one, 1.0, now).text))
            if len(spendings) > top:
                write_line(printable(f"budget {budget.name!r}: {len(spendings) - top:,} more"))
    return 1 if everything else 0


# --- for people -------------------------------------------------------------------------------------------------------
def _notes(found: Sequence[tuple[Budget, list[Spending]]], top: int, store: Place | None) -> list[str]:
    notes = []
    for budget, spendings in found:
        if len(spendings) > top:
            what = "runs" if budget.per.run_column else "values"
            notes.append(f"{text(budget.name)}: the largest {top} {what}; --top shows more")
        if uncounted := sum(one.uncounted for one in spendings[:top]):
            notes.append(
                f"{text(budget.name)}: {counted(uncounted, 'call')} of unknown cost not counted; "
                "unpriced says what a call without a price counts"
            )
    return [*notes, *_waiting(store)]


def _waiting(store: Place | None) -> list[str]:
    """Who is still to be told of something."""
    if remote(store) is not None:
        return []
    from otel_llm.budgets.alerts import crossings
    from otel_llm.store.paths import StorePaths

    waiting: dict[str, int] = {}
    for told in crossings.read(StorePaths.of(locate(store))):
        for name, how in told.to.items():
            if how == "waiting" and name != crossings.LOG:
                waiting[name] = waiting.get(name, 0) + 1
    return [f"{text(name)} has not been told of {counted(number, 'threshold')} yet" for name, number in waiting.items()]


def _print(everything: Sequence[Spending], rows: Sequence[list[Any]], notes: Sequence[str]) -> None:
    from otel_llm.budgets.alerts.crossings import amount

    def amounts(value: object) -> str:
        return amount(value) if isinstance(value, int | Decimal) else text(value)

    def until(value: object) -> str:
        return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else text(value)

    show = {
        "spent": amounts,
        "limit": amounts,
        "forecast": amounts,
        "end": until,
        "share": lambda share: f"{share:.1%}",
    }
    columns = {
        name: Column(
            {"end": "until"}.get(name, name),
            number=name in ("spent", "limit", "share", "forecast"),
            show=show.get(name, text),
            style=(lambda state: _STYLES.get(str(state), "")) if name == "state" else None,
            spare={"unit": 1, "end": 2, "forecast": 3}.get(name, 9),
        )
        for name in ("budget", "value", "run", "end", "spent", "limit", "unit", "share", "forecast", "state")
    }
    if not any(one.budget.each for one in everything):
        del columns["value"]
    if not any(one.run for one in everything):
        del columns["run"]
    at = [_NAMES.index(name) for name in columns]
    write_table([*columns.values()], [[row[number] for number in at] for row in rows], notes=notes)


# --- trying it --------------------------------------------------------------------------------------------------------
def _test(rules: Rules, budgets: Sequence[Budget]) -> int:
    """Tells every receiver of something that has not happened; whether one did not take it."""
    from otel_llm.budgets.alerts import receivers
    from otel_llm.budgets.alerts.crossings import Crossing
    from otel_llm.budgets.periods import period
    from otel_llm.budgets.spending import Spending

    now = datetime.now(UTC)
    failed = 0
    told: dict[str, Budget] = {}
    for one in budgets:
        told |= {receiver.name: one for receiver in rules.receivers_of(one) if receiver.name not in told}
    for name, of in told.items():
        current = None if of.per.run_column else period(of.per, now, of.zone)
        run = "test" if of.per.run_column else None
        crossing = Crossing.of(Spending(of, "test" if of.each else None, run, current, of.limit, 0, 0, 0), 1.0, now)
        try:
            receivers.tell(rules.receivers[name], replace(crossing, budget=f"{of.name} (only a test)"))
            write_line(f"{printable(name)}: told")
        except receivers.NotTold as error:
            failed += 1
            write_line(f"{printable(name)}: could not be told ({one_line(error)})")
    if not told:
        write_line("No budget says whom to notify: the log alone is told.")
    return 1 if failed else 0
