"""What LiteLLM says of the tokens and the price of a call, as far as the provider said it and LiteLLM has not guessed."""

from __future__ import annotations

from typing import Final

from otel_llm.conventions.hosts import provider_name
from otel_llm.conventions.token_usage import Usage, count, fields
from otel_llm.conventions.usage_reading import read_usage

_COUNTED_BY_LITELLM: Final = frozenset(
    {"a2a", "aleph_alpha", "langflow", "langgraph", "petals", "predibase", "replicate", "sagemaker"}
)
"""Providers whose answers tell no tokens: LiteLLM counts them with a tokenizer (its `llms/*/transformation.py`)."""
_LARGEST: Final = 10**6
"""USD that no call costs."""


def usage_told(usage: object, provider: str | None, model: str | None) -> tuple[Usage | None, float | None]:
    """Reads a usage object of LiteLLM's: the tokens and the cost in USD, as far as the provider has told them."""
    if usage is None or provider in _COUNTED_BY_LITELLM:
        return None, None
    reading = read_usage(usage, None if provider is None else provider_name(provider), model)
    found = reading.usage
    if found is None or not (found.input or found.output):
        return None, reading.cost_usd  # it fills in noughts
    details = fields(fields(usage).get("prompt_tokens_details"))
    if not found.cache_write and (written := count(details.get("cache_creation_tokens"))):
        found = found._replace(cache_write=written)
    if model is not None and "claude" in model:
        found = found._replace(reasoning=None)  # counted by LiteLLM, where Anthropic has told none
    return found, reading.cost_usd


def later(before: Usage | None, after: Usage | None) -> Usage | None:
    """What two pieces of a stream tell together: each number as it was told last, by who knew it."""
    if before is None or after is None:
        return after or before
    return Usage(*(b or a for a, b in zip(before, after, strict=True)))


def price(value: object) -> float | None:
    """What LiteLLM says that a call costs, in USD; None where it knows no price, for which it says 0 as well."""
    return float(value) if isinstance(value, float | int) and 0 < value < _LARGEST else None
