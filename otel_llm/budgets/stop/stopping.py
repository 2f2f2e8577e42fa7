"""Has the budgets of `OTEL_LLM_BUDGETS` stop calls in this process, as far as they are to."""

from __future__ import annotations

import logging

from otel_llm.budgets.rules import load
from otel_llm.budgets.stop.call_costs import CallCosts
from otel_llm.budgets.stop.gatekeeper import StopRule, gatekeeper
from otel_llm.budgets.stop.ledger import Ledger
from otel_llm.budgets.stop.rebasing import Rebasing, opener
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
    found = load(file)
    for mistake in found.mistakes:
        _logger.warning("%s", mistake)
    stopping = [budget for budget in found.budgets if budget.stops]
    if not stopping:
        return
    if paths is None:
        gatekeeper.use([StopRule(budget, None, lambda _: None, service) for budget in stopping], None)
        return
    ledger, costs = Ledger(paths.budgets), CallCosts(paths)
    _rebasing = rebasing = Rebasing(ledger, opener(paths.database), costs.prices_may_have_changed)
    rebasing.rules = [StopRule(budget, ledger, rebasing.wait_for, service) for budget in stopping]
    gatekeeper.use(rebasing.rules, costs)
    rebasing.start()


def end() -> None:
    """Calls are not refused any more, but by budgets that are open as a `with` block."""
    global _rebasing
    rebasing, _rebasing = _rebasing, None
    if rebasing is not None:
        rebasing.stop()
    gatekeeper.use((), None)
    admittance.gate = None
