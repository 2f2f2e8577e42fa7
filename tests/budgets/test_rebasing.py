"""What the account says, brought into the counters: of this machine, and of all where there is such an account."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.account.opening import open_store
from otel_llm.budgets.rules import Budget, Per, Unit
from otel_llm.budgets.spending import Spending
from otel_llm.budgets.stop import rebasing as reading
from otel_llm.budgets.stop.gatekeeper import StopRule
from otel_llm.budgets.stop.ledger import Ledger
from otel_llm.budgets.stop.rebasing import Rebasing

NOBODY = (None, None)


class Machine:
    """The counters of one machine, and a rule of a budget of 10 calls a day."""

    def __init__(self, directory: Path, accounts: list[Any], **more: Any) -> None:
        self.ledger = Ledger(directory)
        self.rebasing = Rebasing(self.ledger, accounts, lambda: None)
        budget = Budget("all", Unit.calls, Decimal(10), Per.day, action="stop", **more)
        self.rule = StopRule(budget, self.ledger, self.rebasing.wait_for, None)
        self.rebasing.rules = [self.rule]
        self.rule.turn(time.time_ns())

    def spend(self, calls: int) -> None:
        row = self.rule.row(NOBODY)
        assert self.ledger.reserve(row, calls, 10**9) is None
        self.ledger.settle(row, calls, calls)

    @property
    def spent(self) -> int:
        return self.ledger.standing(self.rule.row(NOBODY)).spent


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What each account says, by its name; `meanwhile` is called while it is asked."""
    said: dict[str, Any] = {}

    def spent(account: str, budget: Budget, now: Any, **_: Any) -> list[Spending]:
        said.get("meanwhile", lambda: None)()
        return [Spending(budget, None, None, None, Decimal(said[account]), said[account], 0, 0)]

    monkeypatch.setattr("otel_llm.budgets.spending.spent", spent)
    return said


def opening(name: str) -> Any:
    @contextmanager
    def opened() -> Iterator[str]:
        yield name

    return opened


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "budgets", [opening("here")])
    yield made
    made.rebasing.stop()


def test_the_account_replaces_what_was_counted(machine: Machine, accounts: dict[str, int]) -> None:
    machine.spend(3)
    accounts["here"] = 7
    machine.rebasing.read()
    assert machine.spent == 7
    accounts["here"] = 5  # a call is another's by now
    machine.rebasing.read()
    assert machine.spent == 5
    machine.spend(1)
    assert machine.spent == 6


def test_a_call_that_ends_while_the_account_is_read_is_never_left_out(
    machine: Machine, accounts: dict[str, Any]
) -> None:
    machine.spend(3)
    accounts["here"] = 3  # as it was before the next call ended
    accounts["meanwhile"] = lambda: machine.spend(1)
    machine.rebasing.read()
    assert machine.spent == 4
    del accounts["meanwhile"]
    accounts["here"] = 4
    machine.rebasing.read()
    assert machine.spent == 4


def test_what_all_machines_have_spent_counts(tmp_path: Path, accounts: dict[str, int]) -> None:
    machine = Machine(tmp_path / "budgets", [opening("here"), opening("everywhere")])
    try:
        machine.spend(2)
        accounts |= {"here": 2, "everywhere": 9}
        machine.rebasing.read()
        assert machine.spent == 9
        accounts |= {"here": 3, "everywhere": 2}  # what is not shipped yet
        machine.rebasing.read()
        assert machine.spent == 3
    finally:
        machine.rebasing.stop()


def test_one_process_reads_for_all(machine: Machine, accounts: dict[str, int]) -> None:
    accounts["here"] = 1
    machine.rebasing.read()
    other = Machine(machine.ledger.directory, [opening("nowhere")])
    try:
        other.rebasing.read()  # it would fail
        assert other.rule.is_read
        assert other.spent == 1
    finally:
        other.rebasing.stop()


def test_a_store_that_is_not_there_yet_has_spent_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "budgets", [lambda: open_store(tmp_path / "usage.duckdb")])
    try:
        machine.rebasing.read()
        assert machine.rule.is_read
        assert machine.spent == 0
    finally:
        machine.rebasing.stop()


def test_a_new_period_that_begins_here_need_not_be_read(
    machine: Machine, accounts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts["here"] = 7
    machine.rebasing.read()
    machine.rule.turn(machine.rule.end_ns + int(timedelta(hours=1).total_seconds()) * 10**9)
    assert machine.rule.is_read
    assert machine.spent == 0


def test_the_first_call_waits_no_longer_than_it_says(
    machine: Machine, accounts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "WAIT", 0.0)
    monkeypatch.setattr(machine.rebasing, "start", lambda: None)
    assert machine.rebasing.wait_for(machine.rule) == "it takes too long"
