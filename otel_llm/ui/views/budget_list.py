"""Budgets: what is spent of each, what it will be, who is next, and what was crossed when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request

from otel_llm.account.questions import Account
from otel_llm.budgets.rules import Rules
from otel_llm.budgets.spending import Spending, spent
from otel_llm.ui.scope import PageScope
from otel_llm.ui.views.view import Backend, PageView

_MOST: Final = 10
"""Values, or runs, of a budget with a limit for each."""
_FEW: Final = 100
"""Of one budget, for the overview."""
_LATEST: Final = 50
"""Crossings."""
NO_RULES: Final = Rules()


def budgets(request: Request, scope: PageScope, backend: Backend) -> PageView:
    rules = NO_RULES if backend.rules is None else backend.rules()
    now = datetime.now(UTC)
    account = Account(backend.engine)
    found = [(one, spent(account, one, now, most=_MOST + 1)) for one in rules.budgets]
    told = [one for one in (backend.crossings() if backend.crossings is not None else ()) if one.to][-_LATEST:][::-1]
    context = {
        "title": "Budgets",
        "mistakes": rules.mistakes,
        "budgets": [
            {
                "name": one.name,
                "per": one.per,
                "each": one.each,
                "where": one.where,
                "stops": one.stops,
                "more": len(spendings) > _MOST,
                "rows": [row.row(now) for row in spendings[:_MOST]],
            }
            for one, spendings in found
        ],
        "crossings": [
            {"at": datetime.fromisoformat(one.crossing.at), "text": one.crossing.text, "spent": one.crossing.is_spent, "to": one.to}
            for one in told
        ],
    }  # fmt: skip
    data = {
        "mistakes": rules.mistakes,
        "budgets": [row.row(now) for _, spendings in found for row in spendings[:_MOST]],
        "crossings": [{"at": one.crossing.at, "id": one.crossing.id, "text": one.crossing.text} for one in told],
    }
    return PageView("budgets.html", context, data)


def crossed(backend: Backend) -> list[dict[str, Any]]:
    """The limits of which a threshold is crossed now, a row each as `Spending.row` has it, those that are spent
    first; of one budget a hundred."""
    rules = NO_RULES if backend.rules is None else backend.rules()
    now = datetime.now(UTC)
    account = Account(backend.engine)
    found: list[Spending] = []
    for one in rules.budgets:
        found += [row for row in spent(account, one, now, least=one.thresholds[0], most=_FEW) if row.crossed]
    return [row.row(now) for row in sorted(found, key=lambda row: (not row.is_spent, -row.share))]
