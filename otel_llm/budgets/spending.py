"""What was spent of a budget, by the account: by period or run, and by each value that has a limit for itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

from otel_llm.account.call_filter import CallFilter
from otel_llm.account.questions import Account
from otel_llm.account.sums import COLUMNS, SPENDING, TRACE, Dimension
from otel_llm.account.sums import TAG as DIMENSION_TAG
from otel_llm.budgets.periods import CalendarPeriod, period
from otel_llm.budgets.rules import MILLION, TAG, Budget, Per, Unit, Unpriced

State = Literal["ok", "warned", "spent", "stopped"]
"""Below all thresholds, above one, above the limit; `stopped`: above the limit of a budget that stops."""
RUNS_OF: Final = timedelta(days=1)
"""Of traces and conversations, those count that had a call in this time; then with all their calls."""
_SOON: Final = 0.02
"""Of a period: before so much of it has passed, nothing is said of its end."""
_NEARLY: Final = Decimal("0.999999")
"""Sums in an engine may be off by a hair; who has crossed what is told from the exact ones."""
_MOST: Final = 10_000
"""Values and runs at once: the largest."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What is spent of one limit: of a budget, in one period or run, by one value of `each`."""

    budget: Budget
    value: str | None
    """Of `each`; None for calls that have none, and where there is no `each`."""
    run: str | None
    """The trace or the conversation."""
    period: CalendarPeriod | None
    amount: Decimal
    """In what the budget limits; calls without a price at the price that it states."""
    calls: int
    unpriced: int
    """How many of them have no price."""
    untold: int
    """And of those nobody knows the tokens, so that they count nothing at whatever price."""

    def row(self, now: datetime) -> dict[str, Any]:
        """All of it, as commands and pages have it for programs; moments in the zone of the budget."""
        budget = self.budget
        forecast = self.forecast(now)
        start, end = (one.astimezone(budget.zone) for one in self.period) if self.period is not None else (None, None)
        return {
            "budget": budget.name,
            "each": budget.each,
            "value": self.value,
            "run": self.run,
            "per": budget.per.value,
            "start": start,
            "end": end,
            "unit": budget.unit.value,
            "spent": _number(self.amount),
            "limit": _number(budget.limit),
            "share": round(self.share, 6),
            "forecast": None if forecast is None else _number(round(forecast, 9)),
            "state": self.state,
            "action": budget.action,
            "calls": self.calls,
            "uncounted": self.uncounted,
        }

    @property
    def share(self) -> float:
        """Of the limit."""
        return float(self.amount / self.budget.limit)

    @property
    def uncounted(self) -> int:
        """How many calls are not in `amount`, because nobody knows what they have spent."""
        if self.budget.unit is Unit.calls:
            return 0
        has_price = self.budget.unit is not Unit.usd or isinstance(self.budget.unpriced, Decimal)
        return self.untold if has_price else self.unpriced

    @property
    def is_blocked(self) -> bool:
        """Whether a call without a price has spent it. (A budget that stops has refused such calls.)"""
        return _blocks(self.budget) and self.unpriced > 0

    @property
    def is_spent(self) -> bool:
        return self.amount >= self.budget.limit or self.is_blocked

    @property
    def state(self) -> State:
        """How it stands with the limit."""
        if self.is_spent:
            return "stopped" if self.budget.stops else "spent"
        return "warned" if self.crossed else "ok"

    @property
    def crossed(self) -> tuple[float, ...]:
        """The thresholds that are reached, from the lowest."""
        if self.is_blocked:
            return self.budget.thresholds
        return tuple(one for one in self.budget.thresholds if self.amount >= self.budget.limit * Decimal(str(one)))

    def forecast(self, now: datetime) -> Decimal | None:
        """What it will be at the end of the period: spent / passed * length. None where that says nothing."""
        if self.period is None:
            return None
        passed = (now - self.period.start) / (self.period.end - self.period.start)
        if not _SOON <= passed <= 1:
            return None
        return self.amount / Decimal(passed)


def spent(
    account: Account, budget: Budget, now: datetime, *, least: float | None = None, most: int = _MOST
) -> list[Spending]:
    """What is spent of a budget now, the largest first; at `most` so many, with `least` only from that share of the limit on.

    Without `each` and runs that is one. Raises what the engine of the account raises.
    """
    current = None if budget.per.run_column else period(budget.per, now, budget.zone)
    run = {Per.trace: Dimension(TRACE), Per.conversation: Dimension("conversation")}.get(budget.per)
    by = [one for one in (_dimension(budget.each), run) if one is not None]
    calls = CallFilter(
        since=now.astimezone(UTC) - RUNS_OF if current is None else current.start,
        until=None if current is None else current.end,
        having=tuple((_known(cover.column), cover.values) for cover in budget.where),
        run=run,
    )
    floor = None if least is None else budget.limit * Decimal(str(least)) * _NEARLY
    if _blocks(budget):
        floor = None  # what has cost nothing may be blocked
    rows = account.spent(by, calls, _amount(budget), least=floor, most=most)
    found = []
    for row in rows:
        dimensions, measures = row[: len(by)], dict(zip(SPENDING, row[len(by) :], strict=True))
        value = dimensions[0] if budget.each is not None else None
        of_run = dimensions[-1] if run is not None else None
        numbers = {name: Decimal(number or 0) for name, number in measures.items()}
        found.append(
            Spending(
                budget,
                value,
                of_run,
                current,
                _exact(budget, numbers),
                *(int(numbers[name]) for name in ("calls", "unpriced", "untold")),
            )
        )
    return found


def _blocks(budget: Budget) -> bool:
    return budget.unit is Unit.usd and budget.unpriced is Unpriced.block and not budget.stops


def _number(amount: Decimal) -> int | Decimal:
    return int(amount) if amount == int(amount) else amount


def _exact(budget: Budget, measures: dict[str, Decimal]) -> Decimal:
    if budget.unit is not Unit.usd:
        return measures[budget.unit.value]
    price = budget.unpriced if isinstance(budget.unpriced, Decimal) else Decimal(0)
    return measures["cost_usd"] + measures["unpriced_tokens"] * price / MILLION


def _amount(budget: Budget) -> str:
    """The same in SQL, to put in order by."""
    if budget.unit is not Unit.usd:
        return SPENDING[budget.unit.value]
    if not isinstance(budget.unpriced, Decimal):
        return SPENDING["cost_usd"]
    unpriced = f"coalesce({SPENDING['unpriced_tokens']}, 0) * {float(budget.unpriced / MILLION)!r}"
    return f"(coalesce(CAST({SPENDING['cost_usd']} AS DOUBLE), 0) + {unpriced})"


def _dimension(column: str | None) -> Dimension | None:
    return None if column is None else _known(column)


def _known(column: str) -> Dimension:
    if column.startswith(TAG):
        return Dimension(f"{DIMENSION_TAG}{column.removeprefix(TAG)}")
    return next(Dimension(name) for name, sql in COLUMNS.items() if column in (name, sql))
