"""The terms of a cost: how many of what at which price, so that they add up to what the database has computed of the same call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from otel_llm.conventions.token_usage import TOKEN_COLUMNS, WHOLE_OF
from otel_llm.prices.rates import LEAST_BILLED, Rate, wholes

_BILLIONTH: Final = Decimal("1e-9")
"""What a cost in the account is told to."""


@dataclass(frozen=True, slots=True)
class CostTerm:
    """One line of a bill."""

    kind: str
    """A column of tokens, a key of `units`, or `call`."""
    number: Decimal
    each: Decimal
    """USD for one."""

    @property
    def amount(self) -> Decimal:
        return self.number * self.each


def terms(call: Mapping[str, Any], rate: Rate) -> list[CostTerm]:
    """What a call is billed for at that rate. `call` has the columns of `llm_usage`; tokens are counted in one term each: what was
    read from a cache is not in the input once more."""
    found = [CostTerm("call", Decimal(1), rate.per_call)] if rate.per_call else []
    own: dict[str, int] = {}
    for column in reversed(tuple(TOKEN_COLUMNS)):  # a part comes after its whole
        parts = sum(own[part] for part in own if column in wholes(part))
        own[column] = (call.get(column) or 0) - parts
    for column in sorted(TOKEN_COLUMNS, key=lambda one: WHOLE_OF.get(one, one)):  # the parts of the input beside it
        if own[column] and (price := rate.per_token.get(column)) is not None:
            found.append(CostTerm(column, Decimal(own[column]), price))
    for unit, number in (call.get("units") or {}).items():
        if number and (price := rate.per_unit.get(unit)) is not None:
            least = LEAST_BILLED.get((call.get("provider") or "", unit), 0)
            found.append(CostTerm(unit, max(Decimal(str(number)), Decimal(least)), price))
    return found


def total(lines: list[CostTerm]) -> Decimal:
    """What they add up to, as the account keeps it."""
    return max(sum((line.amount for line in lines), Decimal(0)), Decimal(0)).quantize(_BILLIONTH)
