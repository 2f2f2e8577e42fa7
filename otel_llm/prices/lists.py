"""Price lists of others, taken in by `otel-llm prices import` and `prices update`: LiteLLM's map and models.dev's.

A list is kept beside the store, cut down to prices that this version understands. It is asked where genai-prices knows no price, or
lacks one of a kind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson

from otel_llm.conventions import semconv
from otel_llm.conventions.hosts import priced_as, provider_name
from otel_llm.conventions.token_usage import MAX_TOKENS
from otel_llm.prices.rates import Quote, Rate, complete
from otel_llm.support import files

Models = dict[str, dict[str, dict[str, list[Any]]]]
"""By provider, model and service tier ("" is the standard one): rates as `_kept` has them."""

SOURCES: Final = {
    "LiteLLM": "https://raw.githubusercontent.com/BerriAI/litellm/main/model_prices_and_context_window.json",
    "models.dev": "https://models.dev/api.json",
}
"""The lists, in the order in which they are asked. Both are under the MIT licence."""

_LITELLM_TOKENS: Final = {
    "input_cost_per_token": "input_tokens",
    "output_cost_per_token": "output_tokens",
    "cache_read_input_token_cost": "cache_read_tokens",
    "cache_creation_input_token_cost": "cache_write_tokens",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h_tokens",
    "output_cost_per_reasoning_token": "reasoning_tokens",
    "input_cost_per_audio_token": "audio_input_tokens",
    "output_cost_per_audio_token": "audio_output_tokens",
    "cache_read_input_audio_token_cost": "audio_cache_read_tokens",
    "input_cost_per_image_token": "image_input_tokens",
    "output_cost_per_image_token": "image_output_tokens",
    "cache_read_input_image_token_cost": "image_cache_read_tokens",
}
_LITELLM_KEY: Final = re.compile(
    rf"({'|'.join(_LITELLM_TOKENS)})(?:_above_(\d+)k_tokens)?(?:_(batches|flex|priority))?"
)
_LITELLM_UNITS: Final = {
    ("audio_transcription", "input_cost_per_second"): semconv.AUDIO_SECONDS,
    ("audio_speech", "input_cost_per_character"): semconv.CHARACTERS,
    ("image_generation", "output_cost_per_image"): semconv.IMAGES,
    ("image_generation", "input_cost_per_image"): semconv.IMAGES,
    ("video_generation", "output_cost_per_video_per_second"): semconv.UNIT_PREFIX + "video_seconds",
    (None, "code_interpreter_cost_per_session"): semconv.CODE_SESSIONS,
}
"""What is billed by other things than tokens, for models of one mode or of any."""
_MODELS_DEV_TOKENS: Final = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "reasoning": "reasoning_tokens",
    "input_audio": "audio_input_tokens",
    "output_audio": "audio_output_tokens",
}
_NAMES: Final = {
    "amazon-bedrock": "aws.bedrock",
    "google-vertex": "gcp.vertex_ai",
    "google-vertex-anthropic": "gcp.vertex_ai",
    "togetherai": "together_ai",
    "fireworks-ai": "fireworks_ai",
    "github-models": "github",
    "moonshotai": "moonshot_ai",
    "alibaba": "dashscope",
    "zai": "zhipu",
    "zhipuai": "zhipu",
    "text-completion-openai": "openai",
    "azure_text": "azure.ai.openai",
    "cohere_chat": "cohere",
    "nvidia_nim": "nvidia",
    "x-ai": "x_ai",
}
"""What the lists call providers, where `hosts` does not know it."""


class NoPriceList(ValueError):
    """The text is in no format that is known here."""


@dataclass(slots=True)
class PriceLists:
    """The lists in a folder. Each is read where it is asked for what was not asked before, and not kept."""

    folder: Path | None = None
    _read: list[tuple[str, Models]] | None = None
    _found: dict[tuple[Any, ...], Quote | None] = field(default_factory=dict)
    _stamp: object = None

    def look(self) -> None:
        """Forgets what was found where the files have changed, and what was read of them."""
        stamp = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in self._files()]
        self._read = None
        if stamp != self._stamp or len(self._found) > _MOST_FOUND:
            self._stamp, self._found = stamp, {}

    def names(self) -> list[str]:
        """Which lists there are, and of which day."""
        return [source for source, _ in map(_load, self._files())]

    def quote(self, provider: str | None, models: Sequence[str], tier: str | None) -> Quote | None:
        """What the first list that knows one of the models states."""
        if not self._stamp or provider is None:
            return None
        key = (provider, *models, tier)
        if key not in self._found:
            self._found[key] = self._look_up(provider, models, tier or "")
        return self._found[key]

    def _files(self) -> list[Path]:
        if self.folder is None:
            return []
        return [path for name in SOURCES if (path := self.folder / f"{name}.json").is_file()]

    def _look_up(self, provider: str, models: Sequence[str], tier: str) -> Quote | None:
        if self._read is None:
            self._read = list(map(_load, self._files()))
        for source, by_provider in self._read:
            for seller, model in _sold(provider, models):
                if (tiers := by_provider.get(seller, {}).get(model.lower())) is None:
                    continue
                if (kept := tiers.get(tier if tier in _TIERS else "")) is None:
                    return Quote(f"no {tier} price for {seller}/{model}")
                return Quote(source, tuple(map(_rate, kept)))
        return None


_MOST_FOUND: Final = 4096
_TIERS: Final = ("batch", "flex", "priority", "fast")
"""Service tiers that cost less or more."""


def _sold(provider: str, models: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Who may sell one of the models, under which name."""
    for model in models:
        yield provider_name(provider), model
        if (sold := priced_as(provider, model)) is not None:
            yield provider_name(sold[0]), sold[1]


def whole(quote: Quote) -> Quote:
    """What a list says, with the prices that follow from those that it states."""
    return Quote(quote.source, tuple(replace(rate, per_token=complete(rate.per_token)) for rate in quote.rates))


def filled(quote: Quote, other: Quote | None) -> Quote:
    """`quote` with what it lacks, from a list that has the same prices of text: it means the same model."""
    if other is None or not other.rates or not quote.rates:
        return quote
    beside = {rate.above: rate for rate in other.rates}
    rates = []
    for rate in quote.rates:
        more = beside.get(rate.above)
        if more is None or any(rate.per_token.get(kind) != more.per_token.get(kind) for kind in _TEXT):
            return quote
        tokens, units = complete({**more.per_token, **rate.per_token}), {**more.per_unit, **rate.per_unit}
        if _SEARCH not in rate.per_unit and _PREVIEW in rate.per_unit:
            units.pop(_SEARCH, None)  # it is known to be not known
        rates.append(replace(rate, per_token=tokens, per_unit=units))
    if tuple(rates) == quote.rates:
        return quote
    return Quote(f"{quote.source}, {other.source}", tuple(rates))


_TEXT: Final = ("input_tokens", "output_tokens")
_SEARCH, _PREVIEW = (
    attribute.removeprefix(semconv.UNIT_PREFIX) for attribute in (semconv.WEB_SEARCHES, semconv.WEB_SEARCH_PREVIEWS)
)


# --- taking a list in -------------------------------------------------------------------------------------------------


def parse(text: str | bytes) -> tuple[str, Models]:
    """Which list a text is, and its prices. Raises NoPriceList."""
    try:
        data = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise NoPriceList(f"it is no JSON: {error}") from error
    if isinstance(data, dict):
        entries = [entry for entry in data.values() if isinstance(entry, dict)]
        if any("litellm_provider" in entry for entry in entries):
            return "LiteLLM", _collect(_of_litellm(data))
        if any(isinstance(entry.get("models"), dict) for entry in entries):
            return "models.dev", _collect(_of_models_dev(data))
    raise NoPriceList("it is neither LiteLLM's map of model prices nor models.dev's api.json")


def save(folder: Path, name: str, models: Models, now: datetime | None = None) -> Path:
    """Keeps a list, in place of the one of the same name. Raises OSError."""
    files.make_private_dir(folder)
    path = folder / f"{name}.json"
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    source = f"{name} {(now or datetime.now(UTC)).date()}"
    with os.fdopen(files.create(new), "w", encoding="utf-8") as file:
        json.dump({"v": 1, "source": source, "models": models}, file)
    new.replace(path)
    return path


def _load(path: Path) -> tuple[str, Models]:
    """A list as `save` has kept it; an empty one where it cannot be read."""
    try:
        kept = orjson.loads(files.read_own(path))
        if kept["v"] == 1:
            return str(kept["source"]), kept["models"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return path.stem, {}


_Entry = tuple[str, str, dict[str, list[Rate]]]


def _collect(entries: Iterator[_Entry]) -> Models:
    models: Models = {}
    for provider, model, tiers in entries:
        kept = {tier: list(map(_kept, rates)) for tier, rates in tiers.items() if any(map(_costs, rates))}
        if kept:
            models.setdefault(provider, {}).setdefault(model.lower(), kept)
    return models


def _costs(rate: Rate) -> bool:
    """Whether anything costs something: lists have 0 for what they do not know, and for what a subscription pays."""
    return any(rate.per_token.values()) or any(rate.per_unit.values()) or bool(rate.per_call)


def _kept(rate: Rate) -> list[Any]:
    tokens = {column: None if price is None else f"{price:f}" for column, price in rate.per_token.items()}
    units = {unit: f"{price:f}" for unit, price in rate.per_unit.items()}
    return [rate.above, rate.up_to, tokens, units, f"{rate.per_call:f}"]


def _rate(kept: Sequence[Any]) -> Rate:
    above, up_to, tokens, units, call = kept
    per_token = {column: None if price is None else Decimal(price) for column, price in tokens.items()}
    return Rate(per_token, {unit: Decimal(price) for unit, price in units.items()}, Decimal(call), above, up_to)


def _of_litellm(data: Mapping[str, Any]) -> Iterator[_Entry]:
    for key, named in data.items():
        alias = named.get("alias_of") if isinstance(named, dict) else None
        entry = data.get(alias) if isinstance(alias, str) else named
        if (
            not isinstance(entry, dict)
            or key == "sample_spec"
            or not isinstance(by := entry.get("litellm_provider"), str)
        ):
            continue
        name = "gcp.vertex_ai" if by.startswith("vertex_ai") else _NAMES.get(by) or provider_name(by)
        first, _, rest = key.partition("/")
        model = rest if rest and first in (by, by.partition("-")[0], name, "bedrock") else key
        yield name, model, _litellm_tiers(entry)


def _litellm_tiers(entry: Mapping[str, Any]) -> dict[str, list[Rate]]:
    prices: dict[str, dict[int, dict[str, Decimal]]] = {"": {}}
    for name, value in _fields(entry):
        if (match := _LITELLM_KEY.fullmatch(name)) and (price := _amount(value)) is not None:
            tier = (match[3] or "").replace("batches", "batch")
            prices.setdefault(tier, {}).setdefault(int(match[2] or 0) * 1000, {})[_LITELLM_TOKENS[match[1]]] = price
    units, per_call = _litellm_units(entry), _amount(entry.get("input_cost_per_request")) or Decimal(0)
    columns = {tier: {column for stated in sizes.values() for column in stated} for tier, sizes in prices.items()}
    tiers = {}
    for tier, sizes in prices.items():
        if tier and "input_tokens" not in sizes.get(0, {}):
            continue
        # What has a price of its own in the standard tier has one in this, and it is not told.
        unknown = dict.fromkeys(columns[""] - columns[tier])
        rates = _by_size(sizes, units, per_call)
        tiers[tier] = [replace(rate, per_token={**rate.per_token, **unknown}) for rate in rates]
    return tiers


def _fields(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of an entry, those of its `tiered_pricing` by the names that others have for the same."""
    yield from entry.items()
    tiers = entry.get("tiered_pricing")
    for tier in tiers if isinstance(tiers, list) else ():
        size = tier.get("range") if isinstance(tier, dict) else None
        if isinstance(size, list) and size and (above := _number(size[0])) is not None and above % 1000 == 0:
            ending = f"_above_{int(above) // 1000}k_tokens" if above else ""
            yield from ((f"{name}{ending}", value) for name, value in tier.items())


def _litellm_units(entry: Mapping[str, Any]) -> dict[str, Decimal]:
    units: dict[str, Decimal] = {}
    by_size = any(re.fullmatch(r"output_cost_per_(second|image)_\d+[pPkK]", name) for name in entry)
    for (mode, name), attribute in _LITELLM_UNITS.items():
        if by_size and mode in ("video_generation", "image_generation"):
            continue  # it depends on what is not known here
        if mode in (None, entry.get("mode")) and (price := _amount(entry.get(name))):
            units.setdefault(attribute, price)
    if isinstance(by_context := entry.get("search_context_cost_per_query"), dict):
        fees = {_amount(fee) for fee in by_context.values()}
        if len(fees) == 1 and (fee := fees.pop()) is not None:  # else it depends on what is not known here
            units[semconv.WEB_SEARCHES] = fee
    return {attribute.removeprefix(semconv.UNIT_PREFIX): price for attribute, price in units.items()}


def _of_models_dev(data: Mapping[str, Any]) -> Iterator[_Entry]:
    for by, provider in data.items():
        models = provider.get("models") if isinstance(provider, dict) else None
        for model, entry in models.items() if isinstance(models, dict) else ():
            cost = entry.get("cost") if isinstance(entry, dict) else None
            if not isinstance(cost, dict):
                continue
            sizes = {0: cost}
            tiers = cost.get("tiers")
            for tier in tiers if isinstance(tiers, list) else ():
                size = tier.get("tier", {}) if isinstance(tier, dict) else {}
                if not isinstance(size, dict) or size.get("type") != "context" or type(size.get("size")) is not int:
                    sizes = {}  # it depends on what is not known here
                    break
                sizes[size["size"]] = tier
            if tiers is None and isinstance(over := cost.get("context_over_200k"), dict):
                sizes[200_000] = over
            stated = {size: _million(prices) for size, prices in sizes.items()}
            yield _NAMES.get(by) or provider_name(by), model, {"": _by_size(stated, {}, Decimal(0))} if stated else {}


def _million(prices: Mapping[str, Any]) -> dict[str, Decimal]:
    amounts = {column: _amount(prices.get(name)) for name, column in _MODELS_DEV_TOKENS.items()}
    return {column: amount / 1_000_000 for column, amount in amounts.items() if amount is not None}


def _by_size(
    stated: Mapping[int, Mapping[str, Decimal]], units: Mapping[str, Decimal], per_call: Decimal
) -> list[Rate]:
    """Rates of prices that hold from more than so many input tokens on."""
    bounds = [*sorted({0, *stated}), MAX_TOKENS]
    prices: dict[str, Decimal] = {}
    rates = []
    for size, up_to in pairwise(bounds):
        prices |= stated.get(size, {})
        rates.append(Rate(dict(prices), units, per_call, size or -1, up_to))
    return rates


def _amount(value: object) -> Decimal | None:
    """A price; None for anything else."""
    amount = _number(value)
    return amount if amount is not None and 0 <= amount < 1_000 else None


def _number(value: object) -> Decimal | None:
    if type(value) not in (int, Decimal, str):
        return None
    try:
        amount = Decimal(value)  # type: ignore[arg-type]
    except ArithmeticError:
        return None
    return amount if amount.is_finite() else None
