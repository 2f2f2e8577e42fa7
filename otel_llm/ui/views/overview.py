"""The first page: what was spent, by whom, when; how long calls took; what has no price."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from otel_llm.ui import charts, wording
from otel_llm.ui import page_questions as questions
from otel_llm.ui.scope import COLUMNS, PERIODS, PageScope
from otel_llm.ui.views.budget_list import crossed
from otel_llm.ui.views.view import Backend, PageView

MEASURES: Final = {"cost": "cost_usd", "calls": "calls", "tokens": "tokens", "errors": "errors"}
DIMENSIONS: Final = (
    "model",
    "user",
    "module",
    "agent",
    "service",
    "provider",
    "status",
    "operation",
    "workflow",
    "session",
)
_BARS: Final = charts.COLOURS - 1
_ROWS: Final = 50


def overview(request: Request, scope: PageScope, backend: Backend) -> PageView:
    by = request.query_params.get("by", "model")
    engine = backend.engine
    if questions.is_empty(engine):
        return PageView("empty.html", {"title": "Overview"}, {"calls": 0})
    sums = questions.totals(engine, scope)
    found = questions.series(engine, scope, by)
    measure = request.query_params.get("measure", "cost")
    if measure not in MEASURES:
        measure = "cost"
    if measure == "cost" and "measure" not in request.query_params and not sums["cost_usd"]:
        measure = "tokens"  # where no price is known there is something to see all the same
    tags = [f"tag:{key}" for key in questions.tag_keys(engine, scope)]
    context = {
        "title": "Overview",
        "sums": sums,
        "spend": questions.spend(engine, scope),
        "unpriced": questions.unpriced(engine, scope) if sums["unpriced"] else [],
        "by": by,
        "measure": measure,
        "measures": MEASURES,
        "dimensions": [*DIMENSIONS, *(tag for tag in tags if tag not in COLUMNS)],
        "chart": chart(found, measure, scope, lambda path, chosen, **more: link(request, path, chosen, **more)),
        "groups": found.groups[:_ROWS],
        "more_groups": max(len(found.groups) - _ROWS, 0),
        "bars": _BARS,
        "whole": sum((amount(row, measure) for row in found.groups), 0.0),
        "amount": amount,
        "earlier": None
        if sums["calls"] or scope.period == "all"
        else questions.totals(engine, scope.during("all"))["calls"],
        "crossed": crossed(backend),
        "all_time": scope.during("all"),
        "all_periods": PERIODS,
    }
    data = {
        "totals": sums,
        "spend": context["spend"],
        "unpriced": context["unpriced"],
        "crossed_budgets": context["crossed"],
        "by": by,
        "groups": found.groups,
        "series": [
            {"begin": begin, "end": end, **row, "value": value}
            for begin, end, cell in found.steps
            for value, row in sorted(cell.items(), key=lambda item: str(item[0]))
        ],
    }
    return PageView("overview/page.html", context, data)


def link(request: Request, path: str, scope: PageScope, **more: str) -> str:
    query = scope.query(**more)
    return f"{request.scope.get('root_path', '').rstrip('/')}{path}{'?' if query else ''}{query}"


def amount(row: dict[str, Any], measure: str) -> float:
    """What a group is drawn by."""
    if measure == "tokens":
        return float((row.get("input_tokens") or 0) + (row.get("output_tokens") or 0))
    return float(row.get(MEASURES[measure]) or 0)


def chart(found: questions.Series, measure: str, scope: PageScope, href: Any) -> Any:
    """The groups over time, the largest ones each in a colour of their own."""
    show = wording.money if measure == "cost" else wording.count
    ranked = sorted(found.groups, key=lambda row: -amount(row, measure))
    colours = {row["value"]: min(index, _BARS) for index, row in enumerate(ranked)}
    bars = []
    for begin, end, cell in found.steps:
        within = scope.between(begin, end)
        parts, rest = [], 0.0
        for row in ranked:
            part = cell.get(row["value"])
            size = 0.0 if part is None else amount(part, measure)
            if not size:
                continue
            if colours[row["value"]] == _BARS:
                rest += size
                continue
            name = "none" if row["value"] is None else str(row["value"])
            parts.append(
                charts.BarPart(
                    colours[row["value"]], size, f"{name}\n{_label(begin, end, full=True)}\n{show(size)}",
                    href("/calls", within.only(found.by, row["value"])),
                )
            )  # fmt: skip
        if rest:
            parts.append(
                charts.BarPart(
                    _BARS, rest, f"others\n{_label(begin, end, full=True)}\n{show(rest)}", href("/calls", within)
                )
            )
        bars.append(charts.ChartBar(_label(begin, end), parts))
    short = wording.money if measure == "cost" else wording.short
    return charts.stacked(bars, short, name=f"{measure} over time by {found.by}, {scope.words}")


def _label(begin: Any, end: Any, *, full: bool = False) -> str:
    seconds = (end - begin).total_seconds()
    if seconds > 40000:
        month = seconds > 20 * 86400
        return f"{begin:%Y-%m}" if month else f"{begin:%Y-%m-%d}" if full else f"{begin:%b %d}"
    return f"{begin:%Y-%m-%d %H:%M}" if full else f"{begin:%H:%M:%S}" if seconds < 60 else f"{begin:%H:%M}"
