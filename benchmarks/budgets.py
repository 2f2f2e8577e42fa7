"""What budgets that stop calls take of the app's thread: asked before a call, and settled after it.

    python benchmarks/budgets.py [calls]

Prints microseconds of processor time a call, the best of seven rounds. The ledger is real, the model call is not.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

from opentelemetry.trace import INVALID_SPAN

import otel_llm
from otel_llm.budgets.rules import Budget, Cover, Per, Unit
from otel_llm.budgets.stop.call_costs import CallCosts
from otel_llm.budgets.stop.gatekeeper import StopRule, gatekeeper
from otel_llm.budgets.stop.ledger import Ledger
from otel_llm.calls import admittance
from otel_llm.conventions import semconv
from otel_llm.store.paths import StorePaths

ROUNDS = 7
ASKED = {
    semconv.OPERATION: semconv.CHAT,
    semconv.PROVIDER: "openai",
    semconv.REQUEST_MODEL: "gpt-4o-mini",
    semconv.REQUEST_MAX_TOKENS: 500,
    semconv.MODULE: "search",
    semconv.USER_ID: "u-17",
    semconv.REQUEST_ID: "0" * 32,
}
ENDED = ASKED | {semconv.STATUS: semconv.OK, semconv.INPUT_TOKENS: 300, semconv.OUTPUT_TOKENS: 120}
SEARCH = (Cover("module", ("search",)),)


def budget(name: str, **more: Any) -> Budget:
    return Budget(name, Unit.usd, Decimal(10**6), Per.month, action="stop", **more)


CASES: dict[str, tuple[list[Budget], Callable[[], AbstractContextManager[object]]]] = {
    "no budget": ([], nullcontext),
    "one that does not cover the call": ([budget("a", where=(Cover("module", ("other",)),))], nullcontext),
    "one": ([budget("a")], nullcontext),
    "one for each user of a module": ([budget("a", each="user_id", where=SEARCH)], nullcontext),
    "three": ([budget("a"), budget("b", each="user_id"), budget("c", where=SEARCH)], nullcontext),
    "otel_llm.budget() around it": ([], lambda: otel_llm.budget("run", limit_usd=10**6)),
}


@contextmanager
def gate(budgets: list[Budget], directory: Path) -> Iterator[None]:
    paths = StorePaths.of(directory / "usage.duckdb")
    ledger, costs = Ledger(paths.budgets), CallCosts(paths)
    gatekeeper.use([StopRule(each, ledger, lambda rule: None, "bench") for each in budgets], costs)
    try:
        yield
    finally:
        gatekeeper.use((), costs)
        admittance.gate = None


def call() -> None:
    """As `ModelCall.ask` and its end have it."""
    if admittance.gate is not None:
        held = admittance.gate.admit(ASKED, INVALID_SPAN, 1200)
        if held is not None:
            assert not isinstance(held, Exception), held
            held.settle(ENDED)


def microseconds(calls: int) -> float:
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(calls):
            call()
        rounds.append((time.thread_time() - began) / calls * 1e6)
    return min(rounds)


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    for name, (budgets, around) in CASES.items():
        with tempfile.TemporaryDirectory() as directory, gate(budgets, Path(directory)), around():
            call()
            print(f"{name:40} {microseconds(calls):8.2f} µs")


if __name__ == "__main__":
    main()
