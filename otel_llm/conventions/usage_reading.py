"""What an answer says of its tokens, its cost and what else is billed: any server's usage object, by the table in `accents`.

The sum is an invariant. Where input and output are not the total, the part that stands beside is found and put into its whole;
where that cannot be found out, the counts stay as they are, and the reading says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final, NamedTuple

from otel_llm.conventions import semconv
from otel_llm.conventions.accents import MODALITY_LISTS, SLOTS, TREE
from otel_llm.conventions.hosts import DEEPINFRA, PAID_IN_USD, counts_no_thoughts
from otel_llm.conventions.token_usage import Usage, count, fields

INCONSISTENT: Final = "inconsistent"
"""`usage_source` of counts that do not add up to the total that came with them, and nobody knows why."""

_FIELDS: Final = len(Usage._fields)
_INPUT: Final = SLOTS["input"]
_OUTPUT: Final = SLOTS["output"]
_READ: Final = SLOTS["cache_read"]
_WRITE: Final = SLOTS["cache_write"]
_WRITE_1H: Final = SLOTS["cache_write_1h"]
_WRITE_5M: Final = SLOTS["cache_write_5m"]
_REASONING: Final = SLOTS["reasoning"]
_TOTAL: Final = SLOTS["total"]
_REASONING_APART: Final = SLOTS["reasoning_apart"]
_READ_APART: Final = SLOTS["cache_read_apart"]
_WRITE_APART: Final = SLOTS["cache_write_apart"]
_TOOL_INPUT: Final = SLOTS["tool_input"]
_CITATIONS: Final = SLOTS["citations"]
_UNKNOWN: Final[list[int | None]] = [None] * len(SLOTS)
_NOTHING_APART: Final[list[int | None]] = [None] * (len(SLOTS) - _TOTAL - 1)
_NO_COUNTS: Final = _UNKNOWN[:_FIELDS]
_BITS: Final = 62
_NUMBERS: Final = (int, float)
_LISTS: Final = (list, tuple)
_TICKS: Final = 10**10
"""Of xAI's, to the USD."""
_DEAREST: Final = 10**6
"""USD that no call costs."""
NO_UNITS: Final[Mapping[str, float]] = {}
"""Of a reading that says nothing but tokens."""


class Reading(NamedTuple):
    """What a usage object says."""

    usage: Usage | None
    adds_up: bool = True
    """Whether the counts are the total that came with them, as far as one came."""
    cost_usd: float | None = None
    """What the call costs him who pays the provider, as he says himself."""
    units: Mapping[str, float] = NO_UNITS
    """What is billed by other things than tokens, by attribute."""

    def attributes(self) -> dict[str, Any]:
        """The span attributes, tokens apart."""
        found: dict[str, Any] = dict(self.units)
        if self.cost_usd is not None:
            found[semconv.REPORTED_COST_USD] = self.cost_usd
        if not self.adds_up:
            found[semconv.USAGE_SOURCE] = INCONSISTENT
        return found

    def completed_by(self, other: Reading) -> Reading:
        """With what another reading of the same answer knows beyond it."""
        if other is _NOTHING or not other:
            return self
        usage = self.usage
        if usage is None:
            usage = other.usage
        elif other.usage is not None and usage[:2] == other.usage[:2]:
            usage = Usage._make(
                one if one or another is None else another for one, another in zip(usage, other.usage, strict=True)
            )
        cost = self.cost_usd if self.cost_usd is not None else other.cost_usd
        return Reading(usage, self.adds_up and other.adds_up, cost, {**other.units, **self.units})

    def __bool__(self) -> bool:
        return self.usage is not None or self.cost_usd is not None or bool(self.units)


def read_usage(
    payload: object, provider: str | None = None, model: str | None = None, *, embeds: bool = False
) -> Reading:
    """Reads the usage object of an answer: a client's model object or plain JSON; anything else says nothing.

    Args:
        provider: `gen_ai.provider.name`, and
        model: which model answered: what the object leaves open is as they are known to have it.
        embeds: whether the answer has no output, so that a bare total is the input.
    """
    found = fields(payload)
    if not found:
        return _NOTHING
    counts = _UNKNOWN.copy()
    others: dict[str, Any] = {}
    _walk(found, TREE, counts, others)
    adds_up = True
    asked, answered, whole = counts[_INPUT], counts[_OUTPUT] or 0, counts[_TOTAL]
    # Most answers: the sum is right, and nothing is called by a name that may stand beside.
    if (
        asked is None
        or (whole is not None and asked + answered != whole)
        or (counts[_REASONING] or 0) > answered
        or counts[_TOTAL + 1 :] != _NOTHING_APART
    ):
        if asked is None and counts[_OUTPUT] is None and embeds:
            counts[_INPUT] = whole
        adds_up = _add_up(counts, "prompt_tokens" in found, counts_no_thoughts(provider, model))
    if (hour := counts[_WRITE_1H]) is not None:
        counts[_WRITE] = max(counts[_WRITE] or 0, hour + (counts[_WRITE_5M] or 0))
    told = counts[:_FIELDS]
    usage = _made(Usage, told) if told != _NO_COUNTS else None
    if others:
        return Reading(usage, adds_up, _cost(others, provider), _units(others))
    return _NOTHING if usage is None else _made(Reading, (usage, adds_up, None, NO_UNITS))


_NOTHING: Final = Reading(None)
_made: Final[Any] = tuple.__new__
"""A named tuple's own way through keywords and defaults takes longer than the reading."""


def _walk(found: Mapping[str, Any], tree: Mapping[str, Any], counts: list[int | None], others: dict[str, Any]) -> None:
    """Takes every name that an accent knows. What is said twice counts once, as the larger: who does not know it says 0."""
    # A mapping of another's may have no end: it is asked for what we know.
    own = found if isinstance(found, dict) else {name: found.get(name) for name in tree}
    node_of = tree.get
    for name, value in dict.items(own):
        if value is None or (node := node_of(name)) is None:
            continue
        if type(node) is int:
            before = counts[node]
            if type(value) is int and not value >> _BITS:  # neither negative, nor too large
                if before is None or value > before:
                    counts[node] = value
            elif before is None:
                counts[node] = count(value)
        elif type(node) is dict and type(value) is not list:
            if below := value if type(value) is dict else fields(value):
                _walk(below, node, counts, others)
        elif type(value) in _LISTS:
            _take_list(name, value, counts)
        elif node not in others or (type(value) in _NUMBERS and value):
            others[node] = value


def _take_list(name: str, entries: list[Any] | tuple[Any, ...], counts: list[int | None]) -> None:
    slots = MODALITY_LISTS.get(name)
    if slots is None:
        return
    for entry in map(fields, entries):
        word = entry.get("modality") or entry.get("ttl")
        slot = slots.get(word.lower()) if isinstance(word, str) else None
        if slot is None:
            continue
        for said in ("tokenCount", "token_count", "inputTokens"):
            if (number := count(entry.get(said))) is not None:
                counts[slot] = (counts[slot] or 0) + number


# --- the sum ---------------------------------------------------------------------------------------------------------
def _add_up(counts: list[int | None], is_openai: bool, hides_thoughts: bool) -> bool:
    """Puts what stands beside into its whole. Returns whether the counts are the total then.

    `is_openai`: the input is called `prompt_tokens`, which has what is cached in it. `hides_thoughts`: a part of the output is
    known to be counted nowhere but in the total.
    """
    told_apart = counts[_READ_APART] is not None or counts[_WRITE_APART] is not None
    counts[_READ] = _larger(counts[_READ], counts[_READ_APART])
    counts[_WRITE] = _larger(counts[_WRITE], counts[_WRITE_APART])
    reasoning_apart = counts[_REASONING_APART]
    counts[_REASONING] = _larger(counts[_REASONING], reasoning_apart)
    written_apart = (counts[_WRITE_5M] or 0) + (counts[_WRITE_1H] or 0)
    if written_apart:
        counts[_WRITE] = max(counts[_WRITE] or 0, written_apart)
    read, written, reasoning = counts[_READ] or 0, counts[_WRITE] or 0, counts[_REASONING] or 0
    asked, answered, whole = counts[_INPUT], counts[_OUTPUT], counts[_TOTAL]
    if asked is None:
        return True
    if not whole:  # 0 beside tokens is no total
        if told_apart and (not is_openai or read + written > asked):
            counts[_INPUT] = asked + read + written
        if answered is not None and reasoning > answered:
            counts[_OUTPUT] = answered + reasoning
        return True
    if answered is None:
        if whole <= asked:
            return whole == asked  # embeddings
        answered = 0
    missing = whole - asked - answered
    beside = [
        (_OUTPUT, reasoning),
        (_INPUT, read),
        (_INPUT, written),
        (_INPUT, counts[_TOOL_INPUT] or 0),
        (_INPUT, counts[_CITATIONS] or 0),
    ]
    if missing > 0:
        if not (found := _sum_of(missing, beside)) and (hides_thoughts or counts[_OUTPUT] is None):
            found = [(_OUTPUT, missing)]
            if hides_thoughts:
                counts[_REASONING] = missing + reasoning
        for slot, number in found:
            if slot == _INPUT:
                asked += number
            else:
                answered += number
        counts[_INPUT], counts[_OUTPUT] = asked, answered
        return bool(found)
    if missing < 0:
        # Some totals leave out what is cached, though the input has it.
        return bool(_sum_of(-missing, [(_INPUT, read), (_INPUT, written)]))
    if told_apart and read + written > asked:
        counts[_INPUT] = asked + read + written
    if counts[_CITATIONS] is not None or (reasoning_apart and reasoning > answered):
        counts[_OUTPUT] = answered + reasoning  # Perplexity: neither in the output nor in the total
        return True
    return reasoning <= answered and max(read, written) <= (counts[_INPUT] or 0)


def _sum_of(missing: int, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The fewest parts that are this together; none where none are."""
    told = [part for part in parts if part[1]]
    for size in range(1, len(told) + 1):
        for some in combinations(told, size):
            if sum(number for _, number in some) == missing:
                return list(some)
    return []


def _larger(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


# --- what is billed besides ------------------------------------------------------------------------------------------
def _units(others: Mapping[str, Any]) -> dict[str, float]:
    return {
        semconv.UNIT_PREFIX + name: float(number)
        for name, number in others.items()
        if name[0] != "$" and type(number) in _NUMBERS and 0 < number < 2**53
    }


def _cost(others: Mapping[str, Any], provider: str | None) -> float | None:
    """In USD, where the unit is known: by the name, by what stands beside it, or because this provider is known to bill in it."""
    if (ticks := _amount(others.get("$ticks"))) is not None:
        return ticks / _TICKS
    said = others.get("$cost")
    if said is not None and type(said) not in _NUMBERS:
        told = fields(said)
        return _amount(told.get("total_cost")) if told.get("currency", "USD") == "USD" else None
    cost = _amount(said)
    if cost is not None and (provider in PAID_IN_USD or "$details" in others or "$byok" in others):
        if others.get("$byok") is True:  # the fee of the gateway; the provider behind it is paid too
            upstream = _amount(fields(others.get("$details")).get("upstream_inference_cost"))
            return None if upstream is None else cost + upstream
        return cost
    return _amount(others.get("$estimate")) if provider == DEEPINFRA else None


def _amount(value: object) -> float | None:
    if isinstance(value, int | float) and type(value) is not bool and 0 <= value < _DEAREST * _TICKS:
        return float(value)
    return None
