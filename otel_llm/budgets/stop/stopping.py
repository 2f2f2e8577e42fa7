"""Has the budgets of `OTEL_LLM_BUDGETS` stop calls in this process, as far as they are to."""

from __future__ import annotations

import logging
from pathlib import Path

from otel_llm.budgets.rules import Budget, load
from otel_llm.budgets.stop.call_costs import CallCosts
from otel_llm.budgets.stop.gatekeeper import StopRule, gatekeeper
from otel_llm.budgets.stop.ledger import Ledger
from otel_llm.budgets.stop.rebasing import Rebasing, openers
from otel_llm.calls import admittance
from otel_llm.settings import settings
from otel_llm.store.paths import StorePaths

_logger = logging.getLogger("otel_llm")

_rebasing: Rebasing | None = None


def begin(paths: StorePaths | None, service: str | None) -> None:
    """From now on a call is refused that a budget has no room for.

    Args:
        paths: of the store that has the account; None where none is kept, and `fail` decides.
        service: `service.name` of this process.
    """
    global _rebasing
    file = settings().budgets
    if file is None or _rebasing is not None:
        return
    if paths is None:
        gatekeeper.use([StopRule(budget, None, lambda _: None, service) for budget in _stopping(file)], None)
    elif stopping := _stopping(file):
        _rebasing = _begin(file, stopping, paths, service)


def _begin(file: Path, stopping: list[Budget], paths: StorePaths, service: str | None) -> Rebasing:
    ledger, costs = Ledger(paths.budgets), CallCosts(paths)
    known = {"file": _seen(file)}

    def use(budgets: list[Budget]) -> None:
        # One that is as it was keeps what it knows of its period.
        before = {rule.budget: rule for rule in rebasing.rules}
        rebasing.rules = [before.get(each) or StopRule(each, ledger, rebasing.wait_for, service) for each in budgets]
        gatekeeper.use(rebasing.rules, costs)

    def look() -> None:
        costs.prices_may_have_changed()
        if (seen := _seen(file)) != known["file"]:
            known["file"] = seen
            use(_stopping(file))

    rebasing = Rebasing(ledger, openers(paths.database), look)
    use(stopping)
    rebasing.start()
    return rebasing


def end() -> None:
    """Calls are not refused any more, but by budgets that are open as a `with` block."""
    global _rebasing
    rebasing, _rebasing = _rebasing, None
    if rebasing is not None:
        rebasing.stop()
    gatekeeper.use((), None)
    admittance.gate = None


def _stopping(file: Path) -> list[Budget]:
    """The budgets in a file that stop calls. What is wrong with it is said."""
    found = load(file)
    for mistake in found.mistakes:
        _logger.warning("%s", mistake)
    return [budget for budget in found.budgets if budget.stops]


def _seen(file: Path) -> tuple[int, int]:
    """Another after the file has changed."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
