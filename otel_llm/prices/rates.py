"""What one token, search, image or second costs: prices, and how they add up to the cost of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import MAX_TOKENS, PARTS_OF_PARTS, TOKEN_COLUMNS, WHOLE_OF

NOTHING: Final[Mapping[str, Decimal]] = MappingProxyType({})

IN_PLACE_OF_TOKENS: Final = tuple(
    attribute.removeprefix(semconv.UNIT_PREFIX)
    for attribute in (semconv.IMAGES, semconv.CHARACTERS, semconv.AUDIO_SECONDS)
)
"""Units by which some models are billed and others, billed by tokens, are not: without a price they are no gap beside tokens that
have one."""

LEAST_BILLED: Final = {("groq", semconv.AUDIO_SECONDS.removeprefix(semconv.UNIT_PREFIX)): 10}
"""By provider and unit how many are billed at least, where a call has any: so genai-prices' own reckoning has it for Groq."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Prices in USD for calls with more than `above` and at most `up_to` input tokens. What is not there is not known."""

    per_token: Mapping[str, Decimal | None]
    """By column of `llm_usage`."""
    per_unit: Mapping[str, Decimal] = field(default_factory=lambda: NOTHING)
    """By key of `units`."""
    per_call: Decimal = Decimal(0)
    above: int = -1
    up_to: int = MAX_TOKENS

    def factors(self) -> dict[str, Decimal | None]:
        """What a token of each column adds to a sum over all of them, where a part is counted in its whole as well.

        So the cost of tokens is one sum of products, though it is of kinds that have nothing in common: cached audio is part of
        the cached, of the audio and of the input, and costs its own price alone.
        """
        factors: dict[str, Decimal | None] = {}
        for column in TOKEN_COLUMNS:
            price = self.per_token.get(column)
            beyond = [factors[whole] for whole in wholes(column)]
            known = [factor for factor in beyond if factor is not None]
            factors[column] = None if price is None or len(known) < len(beyond) else price - sum(known, Decimal(0))
        return factors


@dataclass(frozen=True, slots=True)
class Quote:
    """What calls of one kind cost: the rates by size, or none and the reason."""

    source: str
    rates: tuple[Rate, ...] = ()


def wholes(column: str) -> tuple[str, ...]:
    """All that a token of this kind is counted in beside."""
    parts = PARTS_OF_PARTS.get(column, ())
    whole = WHOLE_OF.get(column)
    return (*((whole,) if whole else ()), *parts)


def complete(stated: Mapping[str, Decimal | None], *, like_text: bool = False) -> dict[str, Decimal]:
    """The stated prices per token, and those that follow from them; None is stated to be unknown.

    A provider with no price for cached tokens makes no difference for them, and reasoning is output. Audio and images follow from
    nothing; with `like_text` they cost what text does.
    """
    prices = dict(stated)

    def follows(column: str, *others: str) -> None:
        if column not in prices and (found := next((other for other in others if other in prices), None)):
            prices[column] = prices[found]

    follows("reasoning_tokens", "output_tokens")
    follows("cache_read_tokens", "input_tokens")
    follows("cache_write_tokens", "input_tokens")
    if "cache_write_tokens" not in stated or like_text:
        follows("cache_write_1h_tokens", "cache_write_tokens")
    for kind in ("audio", "image"):
        if like_text:
            follows(f"{kind}_input_tokens", "input_tokens")
            follows(f"{kind}_output_tokens", "output_tokens")
        if f"{kind}_input_tokens" not in stated and f"{kind}_input_tokens" in prices:
            follows(f"{kind}_cache_read_tokens", "cache_read_tokens")
        elif "cache_read_tokens" not in stated:
            follows(f"{kind}_cache_read_tokens", f"{kind}_input_tokens")
    return {column: price for column, price in prices.items() if price is not None}
