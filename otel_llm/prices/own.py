"""The user's own price table: `OTEL_LLM_PRICES`, a TOML file. The first entry that matches wins.

    [[price]]
    provider = "azure.ai.openai"   # as in llm_usage; * and ? match; may be left out
    model = "my-deployment*"       # response model or request model; * and ? match
    tier = "batch"                 # of calls in this service tier only; left out, of calls in any
    input = 0.15                   # USD per million tokens
    output = 0.60
    cache_read = 0.075             # of these, what is left out is priced like the whole it is part of
    cache_write = 0.1875
    cache_write_1h = 0.3
    reasoning = 0.60
    audio_input = 10
    audio_output = 20
    audio_cache_read = 0.3
    image_input = 10
    image_output = 40
    image_cache_read = 2.5
    call = 0                       # USD per call
    units = { web_search_calls = 0.01, audio_seconds = 0.0001 }   # USD each

An entry without `input` adds its `units` to whatever else knows the tokens of the call.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from otel_llm.conventions.token_usage import TOKEN_COLUMNS
from otel_llm.prices.rates import Rate, complete

_logger = logging.getLogger("otel_llm")

_MILLION: Final = Decimal(1_000_000)
_KNOWN: Final = {column.removesuffix("_tokens"): column for column in TOKEN_COLUMNS}
_UNIT: Final = re.compile(r"[a-z0-9_.]{1,80}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One `[[price]]`."""

    provider: str
    model: str
    tier: str | None
    rate: Rate

    @property
    def is_whole(self) -> bool:
        """Whether it has the price of tokens, or only of what is billed beside them."""
        return bool(self.rate.per_token)

    def matches(self, provider: str | None, models: list[str], tier: str | None) -> bool:
        return (
            self.tier in (None, tier)
            and fnmatchcase(provider or "", self.provider)
            and any(fnmatchcase(model, self.model) for model in models)
        )


def read(path: Path) -> tuple[Entry, ...]:
    """The entries of a table. What cannot be read is logged and left out."""
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
            entries.append(_entry(table))
        except (TypeError, ValueError, ArithmeticError) as error:
            _logger.warning("entry %d of the price table %s is left out: %s", number, path, error)
    return tuple(entries)


def _entry(table: Mapping[str, Any]) -> Entry:
    unknown = sorted(set(table) - set(_KNOWN) - {"provider", "model", "tier", "call", "units"})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]}")
    units = table.get("units", {})
    if not isinstance(units, Mapping) or not all(_UNIT.fullmatch(unit) for unit in units):
        raise ValueError("units is to be a table of names and prices")
    if "model" not in table or not ("input" in table or units):
        raise ValueError("model and input are needed")
    stated = {_KNOWN[key]: _amount(value) / _MILLION for key, value in table.items() if key in _KNOWN}
    if stated and "input" not in table:
        raise ValueError("model and input are needed")
    per_unit = {unit: _amount(price) for unit, price in units.items()}
    rate = Rate(complete(stated, like_text=True), per_unit, _amount(table.get("call", 0)))
    tier = table.get("tier")
    return Entry(str(table.get("provider", "*")), str(table["model"]), None if tier is None else str(tier), rate)


def _amount(value: object) -> Decimal:
    amount = Decimal(str(value))
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{value} is not a price")
    return amount
