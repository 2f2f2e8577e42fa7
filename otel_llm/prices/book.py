"""What a call cost, from genai-prices' offline data and the user's own price table.

Prices are looked up once per provider, model, service tier and half hour, as USD per call and per token of each kind; the
database multiplies. The look-up runs at ingest, never in the app's thread.

The user's table (`OTEL_LLM_PRICES`, TOML) goes before the library's. The first entry that matches wins:

    [[price]]
    provider = "azure.ai.openai"   # as in llm_usage; * and ? match; may be left out
    model = "my-deployment*"       # response model or request model; * and ? match
    tier = "batch"                 # of calls in this service tier only; left out, of calls in any
    input = 0.15                   # USD per million tokens, as is everything but `call`
    output = 0.60
    cache_read = 0.075             # of these, what is left out is priced like the whole it is part of
    cache_write = 0.1875
    reasoning = 0.60
    audio_input = 10
    audio_output = 20
    image_input = 10
    image_output = 40
    call = 0                       # USD per call
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_llm.conventions.hosts import priced_as
from otel_llm.conventions.token_usage import MAX_TOKENS, PARTS_OF_PARTS, TOKEN_COLUMNS, WHOLE_OF
from otel_llm.prices.billing import SLOT_NS
from otel_llm.support import faults

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

_logger = logging.getLogger("otel_llm")

_MILLION: Final = Decimal(1_000_000)

_LIBRARY_KINDS: Final = {
    "reasoning_tokens": "output_reasoning_tokens",
    "audio_input_tokens": "input_audio_tokens",
    "audio_output_tokens": "output_audio_tokens",
    "image_input_tokens": "input_image_tokens",
    "image_output_tokens": "output_image_tokens",
}
"""Our token columns in genai-prices' words, where it has others."""

_OWN_PRICE: Final = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast"},
}
"""Service tiers that cost less or more, in genai-prices' words. Where it has no price for one, the standard price is not it."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Prices in USD for calls with more than `above` and at most `up_to` input tokens.

    `per_token` is by column of `llm_usage`; a part's price is what it costs beyond the whole that it is counted in
    already, so that the cost is one sum of products.
    """

    per_token: Mapping[str, Decimal]
    per_call: Decimal = Decimal(0)
    above: int = -1
    up_to: int = MAX_TOKENS
    prices_output: bool = True


@dataclass(frozen=True, slots=True)
class Quote:
    """What calls of one kind cost: the rates by size, or none and the reason."""

    source: str
    rates: tuple[Rate, ...] = ()


@dataclass(frozen=True, slots=True)
class _Override:
    provider: str
    model: str
    tier: str | None
    rate: Rate


@dataclass(slots=True)
class PriceBook:
    """Prices by provider and model. `overrides` is a TOML file; one that cannot be read is logged and left out."""

    overrides: Path | None = None
    _table: tuple[_Override, ...] = ()
    _table_read: object = field(default=None)

    def rows(self, keys: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Rows of the table `price` of a merge, for rows of its statement `price_keys`."""
        self._read_overrides()
        rows: list[tuple[Any, ...]] = []
        for provider, request_model, response_model, tier, slot in keys:
            quote = self.quote(provider, request_model, response_model, tier, slot * SLOT_NS)
            for rate in quote.rates:
                amounts = [rate.per_token.get(column, Decimal(0)) for column in TOKEN_COLUMNS]
                size = (rate.above, rate.up_to, rate.per_call)
                rows.append(
                    (
                        provider,
                        request_model,
                        response_model,
                        tier,
                        slot,
                        *size,
                        *amounts,
                        rate.prices_output,
                        quote.source,
                    )
                )
            if not quote.rates:
                unknown = [None] * (len(TOKEN_COLUMNS) + 2)
                rows.append(
                    (provider, request_model, response_model, tier, slot, -1, MAX_TOKENS, *unknown, quote.source)
                )
        return rows

    def quote(
        self, provider: str | None, request_model: str | None, response_model: str | None, tier: str | None, at_ns: int
    ) -> Quote:
        """The prices at `at_ns` by response model first, then request model. Raises nothing."""
        models = [model for model in dict.fromkeys((response_model, request_model)) if model]
        for entry in self._table:
            if entry.tier not in (None, tier):
                continue
            if fnmatchcase(provider or "", entry.provider) and any(fnmatchcase(model, entry.model) for model in models):
                return Quote("override", (entry.rate,))
        if not models:
            return Quote("no model named")
        for model in models:
            try:
                found = _library_quote(provider, model, tier, at_ns)
            except (Exception, SystemExit) as error:
                faults.report("look up a price", error)
                return Quote(f"price look-up failed: {type(error).__name__}")
            if found is not None:
                return found
        return Quote(f"no price for {provider or '?'}/{models[0]}")

    def _read_overrides(self) -> None:
        """Reads the user's table where it is new or has changed."""
        if self.overrides is None:
            self._table, self._table_read = (), None
            return
        try:
            stat = self.overrides.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
        except OSError as error:
            seen = (0, 0)
            if self._table_read != seen:
                _logger.warning("the price table %s cannot be read: %s", self.overrides, error)
        if self._table_read == seen:
            return
        self._table_read = seen
        self._table = _parse_overrides(self.overrides) if seen != (0, 0) else ()


def _parse_overrides(path: Path) -> tuple[_Override, ...]:
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError) as error:
        _logger.warning("the price table %s cannot be read: %s", path, error)
        return ()
    entries = []
    tables = data.get("price", [])
    for number, table in enumerate(tables if isinstance(tables, list) else [], start=1):
        try:
            entries.append(_override(table))
        except (TypeError, ValueError, ArithmeticError) as error:
            _logger.warning("entry %d of the price table %s is left out: %s", number, path, error)
    return tuple(entries)


def _override(table: Mapping[str, Any]) -> _Override:
    known = {column.removesuffix("_tokens"): column for column in TOKEN_COLUMNS}
    unknown = sorted(set(table) - set(known) - {"provider", "model", "tier", "call"})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]}")
    if "model" not in table or "input" not in table:
        raise ValueError("model and input are needed")
    prices = {known[key]: _amount(value) / _MILLION for key, value in table.items() if key in known}
    output = prices.setdefault("output_tokens", Decimal(0))
    whole = {"input_tokens": prices["input_tokens"], "output_tokens": output}
    per_token = whole | {part: prices[part] - whole[WHOLE_OF[part]] for part in WHOLE_OF if part in prices}
    rate = Rate(per_token, per_call=_amount(table.get("call", 0)), prices_output="output" in table)
    tier = table.get("tier")
    return _Override(str(table.get("provider", "*")), str(table["model"]), None if tier is None else str(tier), rate)


def _amount(value: object) -> Decimal:
    amount = Decimal(str(value))
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{value} is not a price")
    return amount


@lru_cache(maxsize=4096)
def _library_quote(provider: str | None, model: str, tier: str | None, at_ns: int) -> Quote | None:
    """genai-prices' answer; None where it knows no price."""
    import genai_prices
    from genai_prices.data_snapshot import get_snapshot

    sold = priced_as(provider, model) if provider else (None, model)
    if sold is None:
        return None
    try:
        provider_info, model_info = get_snapshot().find_provider_model(sold[1], None, sold[0], None)
    except LookupError:
        return None
    return _rates(provider_info, model_info, tier, at_ns, f"genai-prices {genai_prices.__version__}")


def _rates(provider: Provider, model: ModelInfo, tier: str | None, at_ns: int, source: str) -> Quote | None:
    at = datetime.fromtimestamp(at_ns // 10**9, UTC)
    own = _OWN_PRICE.get(tier) if tier else None
    context = own or ({"service_tier": tier} if tier else None)
    if own is not None and not _is_priced(model, own, at):
        return Quote(f"no {tier} price for {provider.id}/{model.id}")
    price = model.get_prices(at, context)
    prices = {name: value for name, value in vars(price).items() if not name.startswith("_") and value is not None}
    if "input_mtok" not in prices:
        return None  # priced by the second, the character, the page: tokens do not tell
    key = repr(sorted(prices.items()))
    if (rates := _computed.get(key)) is None:
        if len(_computed) >= _MAX_COMPUTED:
            _computed.clear()
        rates = _computed[key] = _by_size(price, prices)
    return Quote(source, rates)


_MAX_COMPUTED: Final = 4096
_computed: dict[str, tuple[Rate, ...]] = {}
"""The rates of each price, by all its amounts: the same price holds for many half hours, and a look at one takes milliseconds."""


def _is_priced(model: ModelInfo, context: Mapping[str, str], at: datetime) -> bool:
    """Whether the library has a price of its own for calls of this kind at this time."""
    return any(
        variant.when.items() <= context.items() and (variant.constraint is None or variant.constraint.active(at))
        for variant in getattr(model, "price_variants", None) or ()
        if variant.when
    )


def _by_size(price: ModelPrice, prices: Mapping[str, Any]) -> tuple[Rate, ...]:
    from genai_prices.types import TieredPrices

    starts = {tier.start for value in prices.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    bounds = [-1, *sorted(starts), MAX_TOKENS]
    rates = []
    for above, up_to in pairwise(bounds):
        flat = type(price)(**{name: _at(value, above) for name, value in prices.items()})
        rates.append(_linear(flat, above, up_to, any(name.startswith("output_") for name in prices)))
    return tuple(rates)


def _at(value: Any, above: int) -> Any:
    """The price of one unit for calls of just more than `above` input tokens."""
    from genai_prices.types import TieredPrices

    if not isinstance(value, TieredPrices):
        return value
    passed = [tier.price for tier in value.tiers if above >= tier.start]
    return passed[-1] if passed else value.base


def _linear(price: ModelPrice, above: int, up_to: int, prices_output: bool) -> Rate:
    """Without tiers a price is a sum of products; its factors are found by asking for one kind of token at a time."""
    from genai_prices.types import Usage

    def cost(*columns: str) -> Decimal:
        usage = Usage(**{_LIBRARY_KINDS.get(column, column): 1_000_000 for column in columns})
        return Decimal(price.calc_price(usage)["total_price"])

    per_call = cost()
    per_token = {
        "input_tokens": (cost("input_tokens") - per_call) / _MILLION,
        "output_tokens": (cost("output_tokens") - per_call) / _MILLION,
    }
    for part, whole in WHOLE_OF.items():
        if part in PARTS_OF_PARTS:
            continue
        beyond = (cost(whole, part) - cost(whole)) / _MILLION
        if beyond:
            per_token[part] = beyond
    return Rate(per_token, per_call, above, up_to, prices_output)


def library_dates(provider: str | None, model: str) -> tuple[str | None, tuple[date, ...]]:
    """Who sells `model`, as genai-prices names them, and the days on which its price there changes; None where it is not known."""
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import StartDateConstraint

    sold = priced_as(provider, model) if provider else (None, model)
    if sold is None:
        return None, ()
    try:
        provider_info, model_info = get_snapshot().find_provider_model(sold[1], None, sold[0], None)
    except LookupError:
        return None, ()
    dated = model_info.prices if isinstance(model_info.prices, list) else []
    constraints = [price.constraint for price in dated]
    starts = {constraint.start_date for constraint in constraints if isinstance(constraint, StartDateConstraint)}
    return provider_info.id, tuple(sorted(starts))
