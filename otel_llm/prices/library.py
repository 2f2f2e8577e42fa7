"""genai-prices: what its offline data says that a model costs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from otel_llm.conventions import semconv
from otel_llm.conventions.hosts import priced_as
from otel_llm.conventions.token_usage import MAX_TOKENS
from otel_llm.prices.rates import Quote, Rate, complete

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

_PER_MILLION_TOKENS: Final = {
    "input_mtok": "input_tokens",
    "output_mtok": "output_tokens",
    "cache_read_mtok": "cache_read_tokens",
    "cache_write_mtok": "cache_write_tokens",
    "cache_write_5m_mtok": "cache_write_tokens",
    "cache_write_1h_mtok": "cache_write_1h_tokens",
    "output_reasoning_mtok": "reasoning_tokens",
    "input_audio_mtok": "audio_input_tokens",
    "output_audio_mtok": "audio_output_tokens",
    "cache_audio_read_mtok": "audio_cache_read_tokens",
    "input_image_mtok": "image_input_tokens",
    "output_image_mtok": "image_output_tokens",
    "cache_image_read_mtok": "image_cache_read_tokens",
}
_UNITS: Final = {
    "web_searches_kcount": (semconv.WEB_SEARCHES, 1_000),
    "storage_searches_kcount": (semconv.FILE_SEARCHES, 1_000),
    "audio_hours": (semconv.AUDIO_SECONDS, 3_600),
    "input_audio_hours": (semconv.AUDIO_SECONDS, 3_600),
    "input_mchars": (semconv.CHARACTERS, 1_000_000),
}
"""Its names for prices -> what has them with us, and of how many the price is."""

_SEARCH_FEES: Final[tuple[tuple[str, Decimal | None, Decimal | None, Decimal], ...]] = (
    (r"gpt-4o.*-search-preview.*", None, None, Decimal("0.025")),
    (r"gpt-5-search-api.*", None, None, Decimal("0.01")),
    (r"gpt-4(o|\.1)-mini.*", None, Decimal("0.025"), Decimal(0)),
    (r"gpt-4(o|\.1).*", Decimal("0.01"), Decimal("0.025"), Decimal(0)),
)
"""What OpenAI takes for a web search, where the library has it otherwise: by the name of the model the price of a search, of one of
the preview, and of each call to a model that always searches. (openai.com/api/pricing, built-in tools. For small models a search
also bills a block of 8,000 tokens, of which nobody says whether they are in the usage.)"""

_OWN_PRICE: Final = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast"},
}
"""Service tiers that cost less or more, in genai-prices' words. Where it has no price for one, the standard price is not it."""

_IMAGES_ARE_TEXT: Final = ("google",)
"""Who says that images cost what text does: ai.google.dev/gemini-api/docs/pricing has one price for "text / image / video"."""
_MAX_COMPUTED: Final = 4096
_computed: dict[str, tuple[Rate, ...]] = {}
"""The rates of each price, by all its amounts: the same price holds for many half hours, and a look at one takes a while."""


def find(provider: str | None, model: str) -> tuple[Provider, ModelInfo] | None:
    """Who sells a model, and its prices; None where the library does not know it."""
    from genai_prices.data_snapshot import get_snapshot

    if (sold := priced_as(provider, model) if provider else (None, model)) is None:
        return None
    try:
        found: tuple[Provider, ModelInfo] = get_snapshot().find_provider_model(sold[1], None, sold[0], None)
    except LookupError:
        return None
    return found


def names_like(model: str, most: int = 3) -> list[str]:
    """Names of models that look like this one, the likeliest first."""
    from difflib import get_close_matches

    from genai_prices.data_snapshot import get_snapshot

    names = {known.id for provider in get_snapshot().providers for known in provider.models}
    # What people leave out are the hyphens.
    plain = {name.replace("-", ""): name for name in sorted(names)}
    exact = plain.get(model.lower().replace("-", ""))
    return list(dict.fromkeys([*([exact] if exact else []), *get_close_matches(model.lower(), names, most)]))[:most]


@lru_cache(maxsize=4096)
def quote(provider: str | None, model: str, tier: str | None, at_ns: int) -> Quote | None:
    """What calls at `at_ns` cost; None where no price is known."""
    import genai_prices

    found = find(provider, model)
    if found is None:
        return None
    known = _rates(*found, tier, at_ns, f"genai-prices {genai_prices.__version__}")
    return known if known is None or found[0].id != "openai" else _with_search_fees(known, model)


def _with_search_fees(known: Quote, model: str) -> Quote:
    """The prices with OpenAI's for web searches."""
    fees = next((entry[1:] for entry in _SEARCH_FEES if re.fullmatch(entry[0], model.lower())), None)
    rates = []
    for rate in known.rates:
        usual = rate.per_unit.get("web_search_calls")
        search, preview, per_call = fees or (usual, usual, rate.per_call)
        units = dict(rate.per_unit) | {"web_search_calls": search, "web_search_preview_calls": preview}
        priced = {unit: price for unit, price in units.items() if price is not None}
        rates.append(replace(rate, per_unit=priced, per_call=per_call))
    return Quote(known.source, tuple(rates))


def _rates(provider: Provider, model: ModelInfo, tier: str | None, at_ns: int, source: str) -> Quote | None:
    at = datetime.fromtimestamp(at_ns // 10**9, UTC)
    own = _OWN_PRICE.get(tier) if tier else None
    context = own or ({"service_tier": tier} if tier else None)
    if own is not None and not _is_priced(model, own, at):
        return Quote(f"no {tier} price for {provider.id}/{model.id}")
    price = model.get_prices(at, context)
    prices = {name: value for name, value in vars(price).items() if not name.startswith("_") and value is not None}
    if not prices.keys() & {"input_mtok", *_UNITS}:
        return None  # priced by the page, by the message: nothing of it is known here
    key = repr((provider.id, sorted(prices.items())))
    if (rates := _computed.get(key)) is None:
        if len(_computed) >= _MAX_COMPUTED:
            _computed.clear()
        rates = _computed[key] = _by_size(prices, provider.id)
    return Quote(source, rates)


def _is_priced(model: ModelInfo, context: Mapping[str, str], at: datetime) -> bool:
    """Whether the library has a price of its own for calls of this kind at this time."""
    return any(
        variant.when.items() <= context.items() and (variant.constraint is None or variant.constraint.active(at))
        for variant in getattr(model, "price_variants", None) or ()
        if variant.when
    )


def _by_size(prices: Mapping[str, Any], seller: str) -> tuple[Rate, ...]:
    from genai_prices.types import TieredPrices

    starts = {tier.start for value in prices.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    bounds = [-1, *sorted(starts), MAX_TOKENS]
    return tuple(
        _rate({name: _at(value, above) for name, value in prices.items()}, seller, above, up_to)
        for above, up_to in pairwise(bounds)
    )


def _at(value: Any, above: int) -> Any:
    """The price of one unit for calls of just more than `above` input tokens."""
    from genai_prices.types import TieredPrices

    if not isinstance(value, TieredPrices):
        return value
    passed = [tier.price for tier in value.tiers if above >= tier.start]
    return passed[-1] if passed else value.base


def _rate(prices: Mapping[str, Decimal], seller: str, above: int, up_to: int) -> Rate:
    stated = {
        column: prices[name] / 1_000_000 for name, column in reversed(_PER_MILLION_TOKENS.items()) if name in prices
    }
    if "image_input_tokens" in stated and "audio_input_tokens" not in stated and "output_tokens" in stated:
        stated.setdefault("image_output_tokens", stated["output_tokens"])  # a model of images: its output is images
    if seller in _IMAGES_ARE_TEXT and "image_input_tokens" not in stated and "input_tokens" in stated:
        stated["image_input_tokens"] = stated["input_tokens"]
        if "cache_read_tokens" in stated:
            stated["image_cache_read_tokens"] = stated["cache_read_tokens"]
    per_unit = {
        attribute.removeprefix(semconv.UNIT_PREFIX): prices[name] / number
        for name, (attribute, number) in _UNITS.items()
        if name in prices
    }
    per_call = prices.get("requests_kcount", Decimal(0)) / 1_000
    return Rate(complete(stated), per_unit, per_call, above, up_to)


def holds(provider: str | None, model: str, at_ns: int) -> tuple[int, int] | None:
    """From when until before when a quote for `at_ns` holds, in nanoseconds since 1970; None for one that changes within a day."""
    from genai_prices import data, data_snapshot
    from genai_prices.types import StartDateConstraint

    if data_snapshot.get_snapshot().providers is not data.providers:
        return None  # the app has others, which come and go
    days: list[date] = []
    if (found := find(provider, model)) is not None:
        prices = found[1].prices if isinstance(found[1].prices, list) else []
        for priced in (*prices, *(getattr(found[1], "price_variants", None) or ())):
            if isinstance(priced.constraint, StartDateConstraint):
                days.append(priced.constraint.start_date)
            elif priced.constraint is not None:
                return None
    changes = [int(datetime.combine(day, time(), UTC).timestamp()) * 10**9 for day in days]
    first = max((change for change in changes if change <= at_ns), default=0)
    return first, min((change for change in changes if change > at_ns), default=2**63 - 1)


def dates(provider: str | None, model: str) -> tuple[str | None, tuple[date, ...]]:
    """Who sells `model`, as the library names them, and the days on which its price there changes; None where it is not known."""
    from genai_prices.types import StartDateConstraint

    if (found := find(provider, model)) is None:
        return None, ()
    seller, model_info = found
    dated = model_info.prices if isinstance(model_info.prices, list) else []
    constraints = [price.constraint for price in dated]
    starts = {constraint.start_date for constraint in constraints if isinstance(constraint, StartDateConstraint)}
    return seller.id, tuple(sorted(starts))
