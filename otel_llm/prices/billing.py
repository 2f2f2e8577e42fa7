"""Which calls are billed, as SQL on `llm_usage`. Commands need it for their help, which must not wait for the store's code."""

from __future__ import annotations

from typing import Final


def literal(text: str) -> str:
    """`text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


CACHE_HIT: Final = "cache hit, not billed"
"""The `price_source` of an answer out of a client-side cache."""
REFUSED: Final = "refused, not billed"
"""The `price_source` of a call that the provider refused, or that never reached it: nothing is owed, and no usage is missing."""
REPORTED_COST: Final = "reported"
"""The `price_source` of a cost that the provider told."""
BILLED: Final = f"price_source IS DISTINCT FROM {literal(CACHE_HIT)}"
"""The condition on `llm_usage` for what was a call to a provider. The views have it too."""
UNPRICED: Final = f"cost_usd IS NULL AND price_source IS DISTINCT FROM {literal(REFUSED)}"
"""The condition on `llm_usage` for what is missing in a sum of costs. The views have it too."""
SLOT_NS: Final = 30 * 60 * 10**9
"""Prices may change with the hour of the day; half an hour is the finest step that price data has."""
