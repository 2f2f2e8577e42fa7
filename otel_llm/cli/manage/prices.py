"""`otel-llm prices`: what a model costs, since when, and who says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import locate, nothing_yet, reading
from otel_llm.cli.options.common import output_options, store_option
from otel_llm.cli.screen.output import Column, Format, count, text, write_data, write_line, write_table
from otel_llm.conventions.token_usage import PARTS_OF_PARTS, TOKEN_COLUMNS, WHOLE_OF
from otel_llm.settings import settings

if TYPE_CHECKING:
    from otel_llm.prices.book import PriceBook
    from otel_llm.prices.rates import Quote, Rate

_KINDS: Final = {
    column.removesuffix("_tokens"): PARTS_OF_PARTS.get(column, (WHOLE_OF.get(column, ""),))[0].removesuffix("_tokens")
    for column in TOKEN_COLUMNS
}
"""The kinds of tokens, and the one that a kind is part of."""
_COLUMNS: Final = ("model", "provider", "since", "above", *_KINDS, "call", "units", "source")
_DEFAULT_PROVIDER: Final = "openai"
_MILLION: Final = Decimal(1_000_000)


class _Prices(click.Command):
    """Shows prices, unless the first word is that of a command on the lists behind them."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in ("import", "update"):
            from otel_llm.cli.manage import price_lists

            command = price_lists.import_ if args[0] == "import" else price_lists.update
            return command.make_context(f"{info_name} {args[0]}", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


@click.command(cls=_Prices)
@click.argument("model", required=False)
@click.option("--provider", metavar="NAME", help="Who sells it, as in llm_usage: openai, azure.ai.openai, ...")
@click.option("--tier", metavar="NAME", help="The service tier: flex, priority, ...")
@click.option("--at", metavar="TIME", help="The price at this time only; without MODEL it is that of now.")
@output_options
@store_option
def prices(
    model: str | None, provider: str | None, tier: str | None, at: str | None, output: Format, store: Path | None
) -> None:
    """Show what models cost per million tokens, and where the price comes from.

    \b
    Examples:
      otel-llm prices
      otel-llm prices gpt-5-mini
      otel-llm prices gpt-5-mini --at 2026-01 --json
      otel-llm prices gpt-4.1 --provider azure.ai.openai

    Without MODEL, of each model in the store. Prices are in USD per million tokens, call in USD per call, units in USD for one
    search, image, second or character. A kind of tokens that has no column costs the same as the whole it is part of: cached
    tokens are part of the input, reasoning of the output. Audio and images without a column have no price that is known.
    since is the day from which a price holds, above the number of input tokens beyond which it does. source is the library
    and its version, a list that was imported, or override for what OTEL_LLM_PRICES says.

    update fetches the lists of LiteLLM and models.dev, import takes one of them from a file or a URL. They are asked where the
    library knows no price: see otel-llm prices update --help.
    """
    from otel_llm.prices.book import PriceBook
    from otel_llm.prices.lists import PriceLists
    from otel_llm.store.paths import StorePaths

    book = PriceBook(settings().prices, PriceLists(StorePaths.of(locate(store)).prices))
    book.read()
    moment = None if at is None else when.at(at)
    if model is not None:
        rows = _of_model(book, model, [provider] if provider else _providers(model, store), tier, moment)
    else:
        rows = list(_of_the_store(book, provider, tier, moment, store))
    if write_data(output, _COLUMNS, rows):
        return
    if rows:
        _print(rows)
    else:
        write_line(nothing_yet(locate(store)))


def _of_model(
    book: PriceBook, model: str, providers: Sequence[str | None], tier: str | None, at: datetime | None
) -> list[list[Any]]:
    """The prices of one model from each of `providers`, the oldest first. Raises `CommandError` where there is none."""
    from otel_llm.prices import library

    rows = [row for provider in providers for row in _history(book, model, provider, tier, at)]
    # A model that was never called, and that its name does not give away: most likely it is the one everybody uses.
    if not rows and providers == [None]:
        rows = [*_history(book, model, _DEFAULT_PROVIDER, tier, at)]
    if not rows:
        names = "/".join(filter(None, [providers[0], model]))
        close = library.names_like(model)
        guess = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise CommandError(
            f"there is no price for {names}{guess}; name who sells it with --provider, or give a price of your own in the file "
            "that OTEL_LLM_PRICES names"
        )
    return rows


def _history(
    book: PriceBook, model: str, provider: str | None, tier: str | None, at: datetime | None
) -> Iterator[list[Any]]:
    from otel_llm.prices import library

    seller, dates = library.dates(provider, model)
    moments: list[tuple[datetime, date | None]] = [(datetime.combine(day, time.min, UTC), day) for day in dates]
    first = moments[0][0] - timedelta(seconds=1) if moments else datetime.now(UTC)
    for moment, since in [(first, None), *moments] if at is None else [(at, None)]:
        quote = book.quote(provider, model, None, tier, _nanoseconds(moment))
        if quote.rates:
            yield from _rows(model, provider or seller, since, quote)
        if quote.source == "override":
            return  # it has no dates


def _providers(model: str, store: Path | None) -> list[str | None]:
    """Who answered for this model so far; nobody in particular where it was never called."""
    with reading(store) as connection:
        found = connection.execute(
            "SELECT DISTINCT provider FROM llm_usage WHERE ? IN (request_model, response_model) ORDER BY 1", [model]
        ).fetchall()
    return [provider for (provider,) in found] or [None]


def _of_the_store(
    book: PriceBook, provider: str | None, tier: str | None, at: datetime | None, store: Path | None
) -> Iterator[list[Any]]:
    """The price of each model that was called, as its calls are priced: by the answering model, else the one asked for."""
    moment = _nanoseconds(at or datetime.now(UTC))
    with reading(store) as connection:
        found = connection.execute(
            "SELECT DISTINCT provider, request_model, response_model FROM llm_usage "
            "WHERE coalesce(request_model, response_model) IS NOT NULL AND (? IS NULL OR provider = ?) ORDER BY 2, 3, 1",
            [provider, provider],
        ).fetchall()
    for seller, request_model, response_model in found:
        quote = book.quote(seller, request_model, response_model, tier, moment)
        yield from _rows(response_model or request_model, seller, None, quote)


def _rows(model: str, provider: str | None, since: object, quote: Quote) -> Iterator[list[Any]]:
    if not quote.rates:
        yield [model, provider, since, None, *[None] * (len(_KINDS) + 2), quote.source]
    for rate in quote.rates:
        above = rate.above if rate.above > 0 else None
        units = dict(rate.per_unit) or None
        yield [model, provider, since, above, *_per_million(rate), rate.per_call or None, units, quote.source]


def _per_million(rate: Rate) -> Iterator[Decimal | None]:
    """USD per million tokens of each kind."""
    for kind in _KINDS:
        price = rate.per_token.get(f"{kind}_tokens")
        yield None if price is None else (price * _MILLION).normalize() + 0


def _units(prices: object) -> str:
    """What else is billed, in one cell."""
    return (
        ", ".join(f"{name} {price.normalize():f}" for name, price in prices.items())
        if isinstance(prices, dict)
        else text(None)
    )


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def _print(rows: Sequence[Sequence[Any]]) -> None:
    columns = []
    for position, name in enumerate(_COLUMNS):
        values = [row[position] for row in rows]
        whole = _COLUMNS.index(_KINDS[name]) if _KINDS.get(name) else None
        told_already = whole is not None and values == [row[whole] for row in rows]
        empty = name in ("since", "above", "call", "units", *_KINDS) and not any(value is not None for value in values)
        if not (told_already or (empty and name != "input")):
            number = name in _KINDS or name in ("above", "call")
            show = {"above": count, "units": _units}.get(name, text)
            columns.append((position, Column(name, number=number, show=show)))
    shown = [[row[position] for position, _ in columns] for row in rows]
    write_table([column for _, column in columns], shown)
