"""When merges are due: a small simulation of a store, its clock and what its merges cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from otel_llm.store.jobs.merge_rhythm import FEW, LONGEST, SHARE, MergeRhythm

LOOK = 0.8
CALL = 3000
"""Bytes of journal."""


@dataclass
class Run:
    """So many calls a second for `seconds`, looked at every `LOOK`."""

    calls: float
    seconds: float
    cost: float = 0.05
    fixed: bool = False
    merges: int = 0
    longest: float = 0.0
    """The age of the oldest call when it was merged."""
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        rhythm = MergeRhythm(LOOK, fixed=self.fixed)
        merged_at, taken, now = -1000.0, 0, 0.0
        while now < self.seconds:
            made = int(now * self.calls)
            wait = LOOK
            if made > taken:
                wait = rhythm.wait(now, (made - taken) * CALL, now - merged_at)
                if wait <= LOOK / 10:  # as `MergeThread` has it
                    self.waits.append(now - (taken + 1) / self.calls)
                    self.merges, merged_at, taken = self.merges + 1, now, made
                    rhythm.merged(now, self.cost)
                    wait = LOOK
            now += min(wait, LOOK)
        self.longest = max(self.waits)


@pytest.mark.parametrize("calls", [0.02, 0.1])
def test_few_calls_are_merged_at_once(calls: float) -> None:
    run = Run(calls, 1000)
    assert run.longest <= LOOK + 1e-6


def test_a_burst_of_a_few_calls_is_merged_at_once() -> None:
    assert Run(1.0, 8).longest <= LOOK + 1e-6


@pytest.mark.parametrize("calls", [1.0, 45.0, 1000.0])
@pytest.mark.parametrize("cost", [0.01, 0.04])
def test_many_calls_cost_a_hundredth(calls: float, cost: float) -> None:
    run = Run(calls, 1000, cost)
    assert run.merges * cost <= 1000 * SHARE * 1.1


@pytest.mark.parametrize("calls", [0.5, 3.0, 45.0, 1000.0])
@pytest.mark.parametrize("cost", [0.01, 0.05, 0.5])
def test_nothing_waits_for_longer_than_it_says(calls: float, cost: float) -> None:
    assert Run(calls, 300, cost).longest <= LONGEST + LOOK / 10


def test_a_cheap_merge_is_made_more_often() -> None:
    assert Run(45.0, 300, 0.01).merges > 2 * Run(45.0, 300, 0.05).merges


def test_an_interval_that_is_asked_for_is_kept() -> None:
    run = Run(45.0, 100, 0.5, fixed=True)
    assert run.longest <= LOOK + 1e-6 and run.merges >= 100


def test_few_is_more_than_one_call() -> None:
    assert 2 * CALL < FEW < 45 * CALL
