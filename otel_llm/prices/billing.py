"""Which calls are billed, as SQL on `llm_usage`. Commands need it for their help, which must not wait for the store's code.

ClickHouse is asked by the same conditions; 25.8 has no IS DISTINCT FROM.
"""

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
LITELLM: Final = "litellm"
"""The `price_source` of a cost that LiteLLM has computed, by its own prices or those of the deployment."""
OVERRIDE: Final = "override"
"""The `price_source` of a cost by the user's own table."""
TOLD: Final = f"coalesce(price_source, '') = {literal(REPORTED_COST)}"
"""The condition on `llm_usage` for a cost that the provider told; any other is computed."""
NO_REASON: Final = "no reason recorded"
"""What stands for the `price_source` of rows that have neither a cost nor a reason."""
ESTIMATED: Final = "estimated"
"""The `usage_source` of tokens that nobody has reported: `otel_llm.store.merge.estimates`."""
REPORTED: Final = f"coalesce(usage_source, '') <> {literal(ESTIMATED)}"
"""The condition on `llm_usage` for what sums of tokens and of costs are made of; the rest stands beside. The views have it too."""
BILLED: Final = f"coalesce(price_source, '') <> {literal(CACHE_HIT)}"
"""The condition on `llm_usage` for what was a call to a provider. The views have it too."""
UNPRICED: Final = f"cost_usd IS NULL AND coalesce(price_source, '') <> {literal(REFUSED)}"
"""The condition on `llm_usage` for what is missing in a sum of costs. The views have it too."""
REMEDIES: Final = (
    (
        r"no (\w+ )?price\b.*",
        "No price: enter one in OTEL_LLM_PRICES, or run otel-llm prices update; then otel-llm reprice",
    ),
    (
        r"no (input |output )?usage reported",
        "No usage: it may have been billed all the same, and the provider's bill alone tells how much",
    ),
    (r"no model named", "No model: the call names neither the one it asked for nor the one that answered"),
    (
        r"reported parts exceed .*|the reported tokens .*|cached .* not told .*",
        "Unclear usage: the provider, or a gateway before it, reports tokens that cannot be priced",
    ),
    (r"price look-up failed.*", "No price list: pip install --force-reinstall genai-prices; then otel-llm reprice"),
    (NO_REASON, "No reason: an older version left none; otel-llm reprice gives one"),
)
"""What can be done where a cost is not known: patterns of `price_source`, and the remedy of each."""
SLOT_NS: Final = 30 * 60 * 10**9
"""Prices may change with the hour of the day; half an hour is the finest step that price data has."""


def remedy_for(reason: str) -> str | None:
    """What can be done where a cost is not known for this reason."""
    import re

    return next((remedy for pattern, remedy in REMEDIES if re.fullmatch(pattern, reason)), None)
