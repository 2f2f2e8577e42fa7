"""How much a call is of what a budget limits, and the budgets that are open around it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Protocol

from opentelemetry import context as otel

from otel_llm.budgets.rules import MILLION, Unit, Unpriced
from otel_llm.budgets.stop.call_costs import NANO, Cost
from otel_llm.budgets.stop.exceeded import BudgetExceeded
from otel_llm.conventions import semconv
from otel_llm.support import otel_private


def in_parts(unit: Unit, amount: Decimal) -> int:
    """An amount of what is limited as it is counted: dollars in billionths."""
    return int(amount * NANO) if unit is Unit.usd else int(amount)


def in_units(unit: Unit, parts: int) -> Decimal | int:
    """The same back."""
    return Decimal(parts) / NANO if unit is Unit.usd else parts


def parts_of(unit: Unit, cost: Cost, unpriced: Unpriced | Decimal) -> int | None:
    """How much a call is of what is limited; None where it has no price and that is to block it."""
    if unit is Unit.calls:
        return cost.calls
    if unit is Unit.tokens:
        return cost.tokens
    if cost.nanos is not None:
        return cost.nanos
    if isinstance(unpriced, Decimal):
        return int(cost.tokens * unpriced * NANO / MILLION)
    return None if unpriced is Unpriced.block else 0


def to_set_aside(unit: Unit, expected: Cost, unpriced: Unpriced | Decimal, limit: int) -> int | None:
    """How much is set aside for a call; as `parts_of`. A guess alone refuses no call where nothing else is spent."""
    amount = parts_of(unit, expected, unpriced)
    if amount is None or expected.sure is None or amount <= limit:
        return amount
    return max(limit, parts_of(unit, expected.sure, unpriced) or 0)


def no_price(attributes: Mapping[str, Any]) -> str:
    """Why a call is refused whose model has no price."""
    model = attributes.get(semconv.REQUEST_MODEL) or "the model"
    remedy = "enter one in OTEL_LLM_PRICES, or run otel-llm prices update"
    return f"no price is known for {model}, and unpriced is 'block'; {remedy}"


class OpenBudget(Protocol):
    """One that is open as a `with` block."""

    def reserve(self, expected: Cost, attributes: Mapping[str, Any]) -> BudgetExceeded | Mapping[Unit, int]:
        """What is set aside for a call, or why it may not be made."""

    def settle(self, amounts: Mapping[Unit, int], cost: Cost | None) -> None:
        """A call for which that was set aside has cost that; None: it was never made."""


_KEY: Final = otel.create_key("otel-llm-budgets")


def open_here() -> tuple[Any, ...]:
    """The budgets that this place in the program is in, the innermost last."""
    found = otel_private.current_context().get(_KEY)
    return found if isinstance(found, tuple) else ()


def open_from_here(budgets: tuple[OpenBudget, ...]) -> None:
    """Makes them those that this place in the program is in."""
    around = {name: value for name, value in otel_private.current_context().items() if name != _KEY}
    otel_private.attach(otel.Context({**around, _KEY: budgets} if budgets else around))
