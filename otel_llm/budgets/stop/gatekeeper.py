"""The gate: which budgets a call falls under, what is set aside for it, and what it has cost in the end.

Asked once for each call before anything is sent. First come the budgets that are open around it (`run_budget`), then the rules of
`OTEL_LLM_BUDGETS` that stop calls, whose sums are in the `ledger`. Where one has no room, what others have set aside is given back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from opentelemetry.trace import Span, get_current_span

from otel_llm.budgets.periods import period
from otel_llm.budgets.rules import TAG, Budget, Per, Unit, Unpriced
from otel_llm.budgets.stop.amounts import in_parts, in_units, no_price, open_here, parts_of, to_set_aside
from otel_llm.budgets.stop.call_costs import CallCosts, Cost
from otel_llm.budgets.stop.exceeded import BudgetExceeded, exceeded
from otel_llm.budgets.stop.ledger import Ledger, LedgerUnusable, digest
from otel_llm.calls import admittance, tracing
from otel_llm.conventions import semconv

_logger = logging.getLogger("otel_llm")

ATTRIBUTES: Final = {
    "module": semconv.MODULE,
    "user_id": semconv.USER_ID,
    "session_id": semconv.SESSION_ID,
    "conversation_id": semconv.CONVERSATION_ID,
    "agent_name": semconv.AGENT_NAME,
    "workflow_name": semconv.WORKFLOW_NAME,
    "model": semconv.REQUEST_MODEL,
    "provider": semconv.PROVIDER,
    "operation": semconv.OPERATION,
    "profile": semconv.PROFILE,
    "service_name": semconv.SERVICE_NAME,
    "server_address": semconv.SERVER_ADDRESS,
}
"""The columns that a budget may go by, and the attributes that tell them before a call is sent."""
NO_VALUE: Final = "\0"
"""Stands for the value of calls that have none."""
_RUN_US: Final = 48 * 3600 * 10**6
"""How long the row of a trace or a conversation is kept at least."""
_MOST: Final = 10_000
"""Values whose rows are remembered."""
_Settle = Callable[[Cost | None], None]


class StopRule:
    """One budget that stops calls: the row of each of its limits in the ledger, by the period that it is now."""

    def __init__(
        self, budget: Budget, ledger: Ledger | None, wait: Callable[[StopRule], str | None], service: str | None
    ) -> None:
        """`wait` has the account read, and says why it cannot be."""
        self.budget = budget
        self.limit = in_parts(budget.unit, budget.limit)
        self._ledger = ledger
        self._wait = wait
        self._service = service
        self._column = None if budget.each is None else attribute_of(budget.each)
        covers = budget.where
        self._simple = tuple((attribute_of(one.column), one) for one in covers)
        parts = (budget.name, repr(budget.where), str(budget.each), budget.unit, budget.per, str(budget.time_zone))
        self._parts = tuple(map(str, parts))
        self.start_ns = self.end_ns = 0
        self.resets_at: datetime | None = None
        self.family = b""
        self.is_read = False
        """Whether the ledger has what the account says of this period."""
        self._rows: dict[tuple[str | None, str | None], int] = {}
        self._generation: object = None
        self._turning = threading.RLock()

    # --- which calls ---------------------------------------------------------------------------------------------------------
    def covers(self, attributes: Mapping[str, Any]) -> bool:
        if self.budget.per is Per.conversation and semconv.CONVERSATION_ID not in attributes:
            return False
        for attribute, cover in self._simple:
            value = attributes.get(attribute)
            if value is None and attribute == semconv.SERVICE_NAME:
                value = self._service
            if not cover.matches(value):
                return False
        return True

    def key(self, attributes: Mapping[str, Any], span: Span | None) -> tuple[str | None, str | None]:
        """Whose limit it is: the value of `each`, and the run."""
        value = run = None
        if self._column is not None:
            value = attributes.get(self._column)
            if value is None and self._column == semconv.SERVICE_NAME:
                value = self._service
            value = NO_VALUE if value is None else value
        if self.budget.per is Per.conversation:
            run = attributes.get(semconv.CONVERSATION_ID)
        elif self.budget.per is Per.trace:
            ids = tracing.identity(get_current_span() if span is None else span)
            run = f"{ids.trace_id:032x}" if ids.is_valid else NO_VALUE
        return value, run

    # --- its rows ------------------------------------------------------------------------------------------------------------
    def turn(self, now_ns: int) -> None:
        """Begins the period of this moment, where that is another than it was."""
        with self._turning:
            if self.start_ns <= now_ns < self.end_ns:
                return
            follows = self.is_read and now_ns >= self.end_ns
            if self.budget.per.run_column is None:
                now = period(self.budget.per, datetime.fromtimestamp(now_ns / 1e9, UTC), self.budget.zone)
                self.start_ns, self.end_ns = (int(one.timestamp()) * 10**9 for one in now)
                self.resets_at = now.end
            else:
                self.end_ns = 2**63 - 1
            self.family = digest(*self._parts, str(self.start_ns))
            self._rows = {}
            # What began since then was seen from here, or by others who keep the same ledger.
            self.is_read = follows

    def row_digest(self, key: tuple[str | None, str | None]) -> bytes:
        """What stands for one of its limits in the ledger."""
        return self.family[:8] + digest(*self._parts, str(self.start_ns), *(str(part) for part in key))[:8]

    def row(self, key: tuple[str | None, str | None]) -> int:
        """Raises LedgerUnusable."""
        assert self._ledger is not None
        if self._generation is not self._ledger.generation:
            self._rows, self._generation = {}, self._ledger.generation
            self.is_read = self.is_read and self._ledger.standing(self.marker()).read_at_us > 0
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= _MOST:
                self._rows = {}
            row = self._rows[key] = self._ledger.row(self.row_digest(key), self.ends_at_us)
        return row

    @property
    def ends_at_us(self) -> int:
        if self.budget.per.run_column is None:
            return self.end_ns // 1000
        return time.time_ns() // 1000 + _RUN_US

    def marker(self) -> int:
        """The row that says whether the account was read for this period. Raises LedgerUnusable."""
        assert self._ledger is not None
        return self._ledger.row(self.family, self.ends_at_us)

    # --- its room ------------------------------------------------------------------------------------------------------------
    def reserve(
        self, expected: Cost, attributes: Mapping[str, Any], span: Span | None
    ) -> BudgetExceeded | _Settle | None:
        """What settles the call with it, or why it may not be made; None where it cannot be told and the budget is open then."""
        budget, ledger = self.budget, self._ledger
        now_ns = time.time_ns()
        if not self.start_ns <= now_ns < self.end_ns:
            self.turn(now_ns)
        amount = to_set_aside(budget.unit, expected, budget.unpriced, self.limit)
        if amount is None:
            return exceeded(budget.name, because=no_price(attributes), resets_at=self.resets_at)
        if amount == 0 and expected.nanos is None and budget.unit is Unit.usd:
            _say_unpriced(budget.name, str(attributes.get(semconv.REQUEST_MODEL)))
        key = self.key(attributes, span)
        try:
            if ledger is None:
                raise LedgerUnusable("no account is kept")
            row = self.row(key)
            if not self.is_read and (why := self._wait(self)) is not None and (refusal := self._unknown(why)):
                return refusal
            # Where the account cannot be read, what this machine has counted is the least that was spent.
            refused = ledger.reserve(row, amount, self.limit)
        except LedgerUnusable as error:
            return self._unknown(str(error))
        if refused is None:
            return _SetAside(self, ledger, row, amount)
        spent, limit, reserved = (in_units(budget.unit, each) for each in (refused.spent, self.limit, refused.reserved))
        whose = next((part for part in key if part is not None and part != NO_VALUE), None)
        return exceeded(
            budget.name, spent, limit, budget.unit.value, reserved=reserved, key=whose, resets_at=self.resets_at
        )

    def _unknown(self, why: str) -> BudgetExceeded | None:
        _say_unknown(self.budget.name, self.budget.fail)
        _logger.debug("budget %s: %s", self.budget.name, why)
        if self.budget.fail == "open":
            return None
        return exceeded(
            self.budget.name,
            because=f"the account cannot be read ({why}), and fail is 'closed'",
            resets_at=self.resets_at,
        )


class _SetAside:
    """What is set aside for one call in one row of the ledger."""

    __slots__ = ("_amount", "_generation", "_ledger", "_row", "_rule")

    def __init__(self, rule: StopRule, ledger: Ledger, row: int, amount: int) -> None:
        self._rule = rule
        self._ledger = ledger
        self._row = row
        self._amount = amount
        self._generation = ledger.generation

    def __call__(self, cost: Cost | None) -> None:
        if self._generation is not self._ledger.generation:
            return  # the child of a fork, or other counters: the account will say
        rule = self._rule
        spent = None if cost is None else parts_of(rule.budget.unit, cost, rule.budget.unpriced)
        if spent is None and cost is not None:  # a model has answered that has no price
            spent = self._amount
        self._ledger.settle(self._row, self._amount, spent or 0)


class _Reservation:
    """What is set aside for one call, in all budgets that it falls under."""

    __slots__ = ("_characters", "_costs", "_expected", "_parts")

    def __init__(self, costs: CallCosts, expected: Cost, characters: int | None, parts: Sequence[_Settle]) -> None:
        self._costs = costs
        self._expected = expected
        self._characters = characters
        self._parts = parts

    def settle(self, attributes: Mapping[str, Any]) -> None:
        cost = self._costs.actual(attributes, self._expected, self._characters)
        for part in self._parts:
            part(cost)

    def release(self) -> None:
        for part in self._parts:
            part(None)


class Gatekeeper:
    """The one gate of this process."""

    def __init__(self) -> None:
        self.rules: tuple[StopRule, ...] = ()
        self._costs: CallCosts | None = None

    @property
    def costs(self) -> CallCosts:
        if self._costs is None:
            from otel_llm.store.store import opened

            self._costs = CallCosts(next((store.paths for store in opened()), None))
        return self._costs

    def use(self, rules: Sequence[StopRule], costs: CallCosts | None) -> None:
        """Has these rules stop calls from now on."""
        self.rules, self._costs = tuple(rules), costs
        if rules:
            admittance.gate = self

    def admit(
        self, attributes: Mapping[str, Any], span: Span | None, characters: int | None
    ) -> admittance.Held | Exception | None:
        """As `admittance.CallGate` has it."""
        expected: Cost | None = None
        parts: list[_Settle] = []
        answer: BudgetExceeded | _Settle | None
        for opened in open_here():
            expected = expected or self.costs.expected(attributes, characters)
            amounts = opened.reserve(expected, attributes)
            if isinstance(amounts, BudgetExceeded):
                return _given_back(parts, amounts)
            parts.append(_of_run(opened, amounts))
        for rule in self.rules:
            if rule.covers(attributes):
                expected = expected or self.costs.expected(attributes, characters)
                answer = rule.reserve(expected, attributes, span)
                if isinstance(answer, BudgetExceeded):
                    return _given_back(parts, answer)
                if answer is not None:
                    parts.append(answer)
        if expected is None or not parts:
            return None
        return _Reservation(self.costs, expected, characters, parts)


def _of_run(opened: Any, amounts: Mapping[Unit, int]) -> _Settle:
    def settle(cost: Cost | None) -> None:
        opened.settle(amounts, cost)

    return settle


def _given_back(parts: Sequence[_Settle], refusal: BudgetExceeded) -> BudgetExceeded:
    for part in parts:
        part(None)
    return refusal


def attribute_of(column: str) -> str:
    """The attribute that tells what a column will have."""
    return semconv.TAG_PREFIX + column.removeprefix(TAG) if column.startswith(TAG) else ATTRIBUTES[column]


@cache
def _say_unpriced(name: str, model: str) -> None:
    _logger.warning(
        "budget %r: no price is known for %s, and its calls count nothing (unpriced = %r); enter a price in OTEL_LLM_PRICES, "
        "or run otel-llm prices update",
        name,
        model,
        Unpriced.ignore.value,
    )


@cache
def _say_unknown(name: str, fail: str) -> None:
    what = "calls are sent all the same" if fail == "open" else "no call is sent"
    _logger.warning(
        "budget %r: what was spent cannot be read, so %s (fail = %r); see otel-llm doctor", name, what, fail
    )


gatekeeper: Final = Gatekeeper()
