"""What a call cost: from the user's own price table, genai-prices' offline data, and price lists that were imported.

Prices are looked up once per provider, model, service tier and half hour, as USD per call, per token of each kind and per unit of
what else is billed; the database multiplies. The look-up runs at ingest, never in the app's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from otel_llm.conventions.token_usage import MAX_TOKENS, TOKEN_COLUMNS
from otel_llm.prices import lists, own
from otel_llm.prices.billing import OVERRIDE, SLOT_NS
from otel_llm.prices.lists import PriceLists
from otel_llm.prices.rates import Quote, Rate
from otel_llm.prices.remembered import RememberedQuotes
from otel_llm.support import faults

_logger = logging.getLogger("otel_llm")


@dataclass(slots=True)
class PriceBook:
    """Prices by provider and model. `overrides` is a TOML file; one that cannot be read is logged and left out."""

    overrides: Path | None = None
    lists: PriceLists = field(default_factory=PriceLists)
    library: RememberedQuotes = field(default_factory=RememberedQuotes)
    _table: tuple[own.Entry, ...] = ()
    _table_read: object = field(default=None)

    def rows(self, keys: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Rows of the table `price` of a merge, for rows of its statement `price_keys`."""
        self.read()
        rows: list[tuple[Any, ...]] = []
        for provider, request_model, response_model, tier, slot in keys:
            key = (provider, request_model, response_model, tier, slot)
            quote = self.quote(provider, request_model, response_model, tier, slot * SLOT_NS)
            for rate in quote.rates:
                units = ", ".join(f"{unit}={price:f}" for unit, price in rate.per_unit.items())
                size = (rate.above, rate.up_to, rate.per_call)
                rows.append((*key, *size, *rate.factors().values(), f"{{{units}}}", quote.source))
            if not quote.rates:
                unknown = [None] * (len(TOKEN_COLUMNS) + 2)
                rows.append((*key, -1, MAX_TOKENS, *unknown, quote.source))
        self.library.save()
        return rows

    def quote(
        self, provider: str | None, request_model: str | None, response_model: str | None, tier: str | None, at_ns: int
    ) -> Quote:
        """The prices at `at_ns` by response model first, then request model. Raises nothing."""
        models = [model for model in dict.fromkeys((response_model, request_model)) if model]
        matching = [entry for entry in self._table if entry.matches(provider, models, tier)]
        whole = next((entry for entry in matching if entry.is_whole), None)
        quote = Quote(OVERRIDE, (whole.rate,)) if whole else self._listed(provider, models, tier, at_ns)
        beside = [entry.rate.per_unit for entry in reversed(matching) if not entry.is_whole]
        for per_unit in beside:
            rates = tuple(replace(rate, per_unit={**rate.per_unit, **per_unit}) for rate in quote.rates)
            quote = Quote(quote.source, rates) if rates else Quote(OVERRIDE, (Rate({}, per_unit),))
        return quote

    def _listed(self, provider: str | None, models: Sequence[str], tier: str | None, at_ns: int) -> Quote:
        """What the price lists say: the library, and then those that were imported."""
        if not models:
            return Quote("no model named")
        imported = self.lists.quote(provider, models, tier)
        for model in models:
            try:
                found = self.library.quote(provider, model, tier, at_ns)
            except (Exception, SystemExit) as error:
                faults.report("look up a price", error)
                return Quote(f"price look-up failed: {type(error).__name__}")
            if found is not None and (found.rates or imported is None):
                return lists.filled(found, imported)
        return lists.whole(imported) if imported else Quote(f"no price for {provider or '?'}/{models[0]}")

    def read(self) -> None:
        """Reads the user's table where it is new or has changed, and looks whether price lists have."""
        self._read_overrides()
        try:
            self.lists.look()
        except OSError as error:
            _logger.debug("the price lists in %s cannot be read: %s", self.lists.folder, error)

    def _read_overrides(self) -> None:
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
        self._table = own.read(self.overrides) if seen != (0, 0) else ()
