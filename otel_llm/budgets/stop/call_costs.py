"""What a call is expected to cost, before it is sent, and what it has cost at its end: in the process that makes it.

The account says the same later and better; this is what counts until it has been read again.

    expected: the largest of what it asks with and may be answered (`max_tokens`), and what calls to the model have cost of late
    actual:   as the provider has reported it, by the price book; what is expected, where it has reported nothing
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import TOKEN_COLUMNS
from otel_llm.prices.billing import OVERRIDE, SLOT_NS
from otel_llm.prices.book import PriceBook
from otel_llm.prices.lists import PriceLists
from otel_llm.settings import settings
from otel_llm.store.paths import StorePaths
from otel_llm.support import faults

NANO: Final = 10**9
"""Parts of a US dollar that costs are counted in, as the account has them."""
_FIRST_TOKENS: Final = 1_000
"""What is expected of an answer, or of a request of unknown length, while nothing is known of the model."""
_FIRST_PER_CHARACTER: Final = 0.35
"""Tokens of a character of text: English has a quarter, many other languages more."""
_BESIDE: Final = 16
"""Tokens of a request beside its text."""
_WEIGHT: Final = 0.1
"""Of the last call in the recent average."""
_MOST: Final = 1_000
"""Models that are remembered."""
_WRITES: Final = frozenset({semconv.CHAT, semconv.TEXT_COMPLETION, semconv.GENERATE_CONTENT})
_REFUSAL: Final = re.compile(r"[45][0-9][0-9]|.*(BadRequest|Authentication|PermissionDenied|NotFound|RateLimit)Error")
"""`error_type` of what the provider refused, and does not bill."""


class Cost(NamedTuple):
    """Of one call."""

    nanos: int | None
    """In billionths of a US dollar; None where no price is known."""
    tokens: int
    calls: int = 1
    sure: Cost | None = None
    """What it costs at least of what is only guessed, while nothing is known of the model; None where more is known."""


NOTHING: Final = Cost(0, 0, 0)


class _Learned:
    """What calls to one model were like of late."""

    __slots__ = ("input_tokens", "nanos", "output_tokens", "per_character")

    def __init__(self) -> None:
        self.input_tokens: float | None = None
        self.output_tokens: float | None = None
        self.per_character: float | None = None
        self.nanos: float | None = None


class _RateInNanos(NamedTuple):
    """One rate, in nanos."""

    above: int
    up_to: int
    per_call: float
    per_token: tuple[tuple[str, float | None], ...]
    """By attribute: what one of them adds; None where that is not known."""
    per_unit: tuple[tuple[str, float], ...]


class CallCosts:
    """By the prices of one store."""

    def __init__(self, paths: StorePaths | None) -> None:
        self._book = PriceBook(settings().prices)
        if paths is not None:
            self._book.lists = PriceLists(paths.prices)
            self._book.library.path = paths.quotes
        self._read_ns = 0
        self._quotes: dict[tuple[Any, ...], tuple[bool, tuple[_RateInNanos, ...]]] = {}
        self._learned: dict[tuple[Any, ...], _Learned] = {}

    # --- before it is sent -----------------------------------------------------------------------------------------------
    def expected(self, attributes: Mapping[str, Any], characters: int | None) -> Cost:
        """What a call may cost, by what is known of it."""
        operation = attributes.get(semconv.OPERATION)
        learned = self._learned.get(_model(attributes))
        if characters is not None:
            rate = _FIRST_PER_CHARACTER if learned is None or learned.per_character is None else learned.per_character
            asked = int(characters * rate) + _BESIDE
        else:
            asked = 0
        if learned is not None and learned.input_tokens is not None:
            asked = max(asked, int(learned.input_tokens)) if characters is None else asked
        elif characters is None:
            asked = _FIRST_TOKENS
        sure_asked = asked if characters is not None or learned is not None else 0
        answered = sure_answered = 0
        is_guessed = sure_asked < asked
        if operation in _WRITES:
            most = attributes.get(semconv.REQUEST_MAX_TOKENS)
            if type(most) is int and most > 0:
                answered = most * max(1, _count(attributes.get(semconv.REQUEST_CHOICE_COUNT)))
            recent = None if learned is None else learned.output_tokens
            is_guessed = is_guessed or (recent is None and not answered)
            sure_answered = max(answered, int(recent)) if recent is not None else answered
            answered = sure_answered or _FIRST_TOKENS
        tier = attributes.get(semconv.OPENAI_REQUEST_SERVICE_TIER)
        _, prices = self._priced(attributes, None, tier)
        nanos = _sum(prices, {semconv.INPUT_TOKENS: asked, semconv.OUTPUT_TOKENS: answered}, asked)
        if learned is not None and learned.nanos is not None:
            nanos = max(nanos or 0, int(learned.nanos))
        sure = None
        if is_guessed:
            least = _sum(prices, {semconv.INPUT_TOKENS: sure_asked, semconv.OUTPUT_TOKENS: sure_answered}, asked)
            sure = Cost(least, sure_asked + sure_answered)
        return Cost(nanos, asked + answered, 1, sure)

    # --- at its end --------------------------------------------------------------------------------------------------------
    def actual(self, attributes: Mapping[str, Any], expected: Cost, characters: int | None) -> Cost:
        """What a call has cost that has ended."""
        status = attributes.get(semconv.STATUS)
        given, written = attributes.get(semconv.INPUT_TOKENS), attributes.get(semconv.OUTPUT_TOKENS)
        if status == semconv.REFUSED or attributes.get(semconv.CACHE_HIT):
            return NOTHING
        told = attributes.get(semconv.REPORTED_COST_USD)
        if given is None and written is None and told is None:
            refused = status == semconv.ERROR and _REFUSAL.fullmatch(str(attributes.get(semconv.ERROR_TYPE)))
            if refused or attributes.get(semconv.NOT_SENT):
                return Cost(0, 0)
            if not any(name.startswith(semconv.UNIT_PREFIX) for name in attributes):
                return expected
        nanos: int | None
        if told is not None:
            nanos = round(told * NANO)
        else:
            tier = attributes.get(semconv.OPENAI_RESPONSE_SERVICE_TIER)
            is_own, prices = self._priced(attributes, attributes.get(semconv.RESPONSE_MODEL), tier)
            nanos = _sum(prices, attributes, given or 0)
            by_litellm = attributes.get(semconv.LITELLM_COST_USD)
            if by_litellm is not None and not is_own:
                nanos = round(by_litellm * NANO)
        cost = Cost(nanos, (given or 0) + (written or 0))
        if status == semconv.OK:
            self._learn(attributes, cost, characters)
        return cost

    def _learn(self, attributes: Mapping[str, Any], cost: Cost, characters: int | None) -> None:
        key = _model(attributes)
        learned = self._learned.get(key)
        if learned is None:
            if len(self._learned) >= _MOST:
                self._learned.clear()
            learned = self._learned[key] = _Learned()
        given, written = attributes.get(semconv.INPUT_TOKENS), attributes.get(semconv.OUTPUT_TOKENS)
        if given is not None:
            learned.input_tokens = _average(learned.input_tokens, given)
            if characters:
                learned.per_character = _average(learned.per_character, max(given - _BESIDE, 0) / characters)
        if written is not None:
            learned.output_tokens = _average(learned.output_tokens, written)
        if cost.nanos is not None:
            learned.nanos = _average(learned.nanos, cost.nanos)

    # --- prices ------------------------------------------------------------------------------------------------------------
    def _priced(
        self, attributes: Mapping[str, Any], answered: str | None, tier: Any
    ) -> tuple[bool, tuple[_RateInNanos, ...]]:
        """Whether the price is one of the user's own, and the rates."""
        asked, provider = attributes.get(semconv.REQUEST_MODEL), attributes.get(semconv.PROVIDER)
        slot = time.time_ns() // SLOT_NS
        key = (provider, asked, answered, tier, slot)
        found = self._quotes.get(key)
        if found is None:
            found = self._quotes[key] = self._look_up(provider, asked, answered, tier, slot * SLOT_NS)
        return found

    def _look_up(
        self, provider: Any, asked: Any, answered: Any, tier: Any, at_ns: int
    ) -> tuple[bool, tuple[_RateInNanos, ...]]:
        if len(self._quotes) >= _MOST:
            self._quotes.clear()
        try:
            if not self._read_ns or at_ns > self._read_ns:
                self._read_ns = at_ns
                self._book.read()
            quote = self._book.quote(provider, asked, answered, tier, at_ns)
        except Exception as fault:
            faults.report("look up a price for a budget", fault)
            return False, ()
        rates = tuple(
            _RateInNanos(
                rate.above,
                rate.up_to,
                float(rate.per_call) * NANO,
                tuple(
                    (TOKEN_COLUMNS[column], None if factor is None else float(factor) * NANO)
                    for column, factor in rate.factors().items()
                    if factor != 0
                ),
                tuple((semconv.UNIT_PREFIX + unit, float(price) * NANO) for unit, price in rate.per_unit.items()),
            )
            for rate in quote.rates
        )
        return quote.source == OVERRIDE, rates

    def prices_may_have_changed(self) -> None:
        """They are looked up again."""
        self._read_ns = 0
        self._quotes.clear()


def _model(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    named = attributes.get(semconv.REQUEST_MODEL)
    return attributes.get(semconv.PROVIDER), named, attributes.get(semconv.OPERATION)


def _sum(prices: tuple[_RateInNanos, ...], counted: Mapping[str, Any], size: int) -> int | None:
    """What so much costs; None where a price is missing."""
    for rate in prices:
        if not rate.above < size <= rate.up_to:
            continue
        total = rate.per_call
        for attribute, price in rate.per_token:
            count = counted.get(attribute)
            if count:
                if price is None:
                    return None
                total += count * price
        for attribute, each in rate.per_unit:
            if attribute in counted:
                total += _number(counted[attribute]) * each
        return int(total + 0.5) if total > 0 else 0
    return None


def _average(before: float | None, value: float) -> float:
    return value if before is None else before + (value - before) * _WEIGHT


def _count(value: object) -> int:
    return value if type(value) is int else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
