"""`otel-llm reprice`: price stored calls again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options import when
from otel_llm.cli.options.access import Place, maintaining, remote
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import counted, text, write_line

if TYPE_CHECKING:
    from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
    from otel_llm.store.jobs.repricing import Choice, Repriced

_REASONS = 5


@click.command()
@click.option(
    "--since", metavar="TIME", help="Only calls that began then or later: 2h, 7d, today, 2026-11, 2026-11-01."
)
@click.option("--model", metavar="NAME", help="Only calls that asked for this model, or got it; * and ? match.")
@click.option("--all", "everything", is_flag=True, help="Also calls that have a price.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@store_option
def reprice(since: str | None, model: str | None, everything: bool, dry_run: bool, store: Place | None) -> None:
    """Price calls again whose price was not known, with the prices as they are known now.

    \b
    Examples:
      otel-llm reprice --dry-run
      otel-llm reprice --model 'my-deployment*'
      otel-llm reprice --all --since 2026-11

    Prices are those of the time of each call, from the price table that OTEL_LLM_PRICES names and from the price library:
    after an entry in the table, or a newer library (pip install --upgrade genai-prices). All calls change, or none does; in a
    ClickHouse, which machines send their calls to, one block of them after the other.
    """
    from otel_llm.store.jobs import exclusive
    from otel_llm.store.jobs.repricing import Choice
    from otel_llm.store.jobs.repricing import reprice as price_again

    choice = Choice(None if since is None else when.since(since), model, everything)
    if (url := remote(store)) is not None:
        done = _there(url, choice, dry_run=dry_run)
    else:
        with maintaining(store) as paths:
            exclusive.brought_up_to_date(paths)
            with exclusive.alone(paths) as connection:
                done = price_again(connection, choice, dry_run=dry_run, paths=paths)
    verb = "would get" if dry_run else "got"
    write_line(f"{done.changed:,} of {counted(done.calls, 'call')} {verb} another price.")
    if done.changed:
        write_line(f"They cost {done.before:.6f} USD before, {done.after:.6f} USD now.")
    for reason, number in list(done.unpriced.items())[:_REASONS]:
        write_line(f"Without a price: {counted(number, 'call')} ({text(reason)}).")
    if len(done.unpriced) > _REASONS:
        rest = sum(list(done.unpriced.values())[_REASONS:])
        write_line(f"Without a price: {counted(rest, 'call')} for other reasons (see price_source in llm_usage).")


def _there(url: ClickHouseURL, choice: Choice, *, dry_run: bool) -> Repriced:
    from otel_llm.account.engine import AccountError
    from otel_llm.cli.manage import clickhouse_repricing
    from otel_llm.store import StoreError

    try:
        return clickhouse_repricing.reprice(url, choice, dry_run=dry_run)
    except (AccountError, StoreError, OSError) as error:
        raise CommandError(one_line(error)) from error
