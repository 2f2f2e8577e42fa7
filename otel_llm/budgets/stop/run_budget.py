"""`budget`: what one run may spend. Kept in memory: by this process, for as long as the block is open."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from decimal import Decimal
from types import TracebackType
from typing import Any, NamedTuple

from otel_llm.budgets.rules import Unit, Unpriced
from otel_llm.budgets.stop.amounts import (
    in_parts,
    in_units,
    no_price,
    open_from_here,
    open_here,
    parts_of,
    to_set_aside,
)
from otel_llm.budgets.stop.call_costs import NANO, Cost
from otel_llm.budgets.stop.exceeded import BudgetExceeded, exceeded
from otel_llm.budgets.stop.gatekeeper import gatekeeper
from otel_llm.calls import admittance
from otel_llm.support import faults, forks


class budget:
    """What the model calls inside the `with` block may spend, at most.

        with otel_llm.budget("triage", limit_usd=0.50) as run:
            agent.invoke(...)
        print(run.spent_usd)

    A call for which there is no room raises `otel_llm.BudgetExceeded` before anything is sent. Works as `with` and `async with`,
    nests (each counts), and follows the work into tasks and threads as `llm_context` does, but not into other processes. The same
    object may be entered again, by any number of tasks and threads, and counts on.

    Args:
        name: what `BudgetExceeded` calls it.
        limit_usd: US dollars, by the price book.
        limit_tokens: of input and output together.
        limit_calls: model calls that are sent.
        unpriced: under `limit_usd`, what a call counts whose model has no price: USD per million tokens; "block": it is refused;
            "ignore": nothing, which is logged once.

    Raises ValueError where there is no limit, or one that is not more than 0.
    """

    def __init__(
        self,
        name: str,
        *,
        limit_usd: float | Decimal | None = None,
        limit_tokens: int | None = None,
        limit_calls: int | None = None,
        unpriced: float | Decimal | str = "ignore",
    ) -> None:
        given = {Unit.usd: limit_usd, Unit.tokens: limit_tokens, Unit.calls: limit_calls}
        limits = {unit: Decimal(str(limit)) for unit, limit in given.items() if limit is not None}
        if not limits:
            raise ValueError(f"budget {name!r} has no limit: give it limit_usd, limit_tokens or limit_calls")
        if wrong := [unit for unit, limit in limits.items() if not (limit.is_finite() and limit > 0)]:
            raise ValueError(f"budget {name!r}: limit_{wrong[0]} is not more than 0")
        self.name = name
        self._limits = [_Limit(unit, limit, in_parts(unit, limit)) for unit, limit in limits.items()]
        self._unpriced = Unpriced(unpriced) if isinstance(unpriced, str) else Decimal(str(unpriced))
        self._lock = threading.RLock()
        self._spent = dict.fromkeys(Unit, 0)
        self._reserved = dict.fromkeys(Unit, 0)
        _all.add(self)

    @property
    def spent_usd(self) -> Decimal:
        """By the calls that have ended."""
        return Decimal(self._spent[Unit.usd]) / NANO

    @property
    def spent_tokens(self) -> int:
        return self._spent[Unit.tokens]

    @property
    def spent_calls(self) -> int:
        return self._spent[Unit.calls]

    def __enter__(self) -> budget:
        try:
            if admittance.gate is None:
                admittance.gate = gatekeeper
            open_from_here((*open_here(), self))
        except Exception as fault:
            faults.report("open a budget", fault)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What is current may be another context by now: this alone is taken out of it.
        try:
            opened = list(open_here())
            if self in opened:
                del opened[len(opened) - 1 - opened[::-1].index(self)]
                open_from_here(tuple(opened))
        except Exception as fault:
            faults.report("leave a budget", fault)

    async def __aenter__(self) -> budget:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    # --- for the gate ------------------------------------------------------------------------------------------------------
    def reserve(self, expected: Cost, attributes: Mapping[str, Any]) -> BudgetExceeded | dict[Unit, int]:
        """What is set aside for a call, or why it may not be made."""
        amounts = {}
        for limit in self._limits:
            amount = to_set_aside(limit.unit, expected, self._unpriced, limit.parts)
            if amount is None:
                return exceeded(self.name, because=no_price(attributes))
            amounts[limit.unit] = amount
        with self._lock:
            for limit in self._limits:
                spent, reserved = self._spent[limit.unit], self._reserved[limit.unit]
                if spent + reserved + amounts[limit.unit] > limit.parts:
                    said = (in_units(limit.unit, each) for each in (spent, limit.parts))
                    return exceeded(self.name, *said, limit.unit, reserved=in_units(limit.unit, reserved))
            for unit, amount in amounts.items():
                self._reserved[unit] += amount
        return amounts

    def settle(self, amounts: Mapping[Unit, int], cost: Cost | None) -> None:
        """A call that has something set aside has cost that; None: it was never made."""
        with self._lock:
            for unit, amount in amounts.items():
                self._reserved[unit] -= amount
            if cost is not None:
                for unit in Unit:
                    unpriced = Unpriced.ignore if self._unpriced is Unpriced.block else self._unpriced
                    self._spent[unit] += parts_of(unit, cost, unpriced) or 0

    def _after_fork(self) -> None:
        """A child goes on with what was spent; what runs is its parent's."""
        self._lock = threading.RLock()
        self._reserved = dict.fromkeys(Unit, 0)


class _Limit(NamedTuple):
    unit: Unit
    limit: Decimal
    parts: int


_all = forks.members(forks.Turn.RUN_BUDGETS, budget._after_fork)
