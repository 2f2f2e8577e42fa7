"""SQL of the user's own, read-only and fenced."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from starlette.requests import Request

from otel_llm.account.recipes import RECIPES
from otel_llm.ui import charts
from otel_llm.ui import page_questions as questions
from otel_llm.ui.scope import PageScope
from otel_llm.ui.views.view import Backend, PageView

_SHOWN: Final = 1000
_MOST_BARS: Final = 200


def page(request: Request, scope: PageScope, backend: Backend) -> PageView:
    text = request.query_params.get("query", "")
    result: dict[str, Any] = {}
    if text.strip() and backend.run_sql is not None:
        result = backend.run_sql(text)
    columns, rows = result.get("columns", []), result.get("rows", [])
    names = questions.tables(backend.engine)
    recipes = {one.title: one.sql for one in RECIPES if one.everywhere or backend.engine.store is not None}
    context = {
        "title": "SQL", "query": text, "columns": columns, "rows": rows[:_SHOWN], "found": len(rows), "error": result.get("error"),
        "cut": result.get("cut", False), "ms": result.get("ms"), "names": names,
        "recipes": recipes, "chart": _chart(columns, rows),
    }  # fmt: skip
    data = {"error": result["error"]} if result.get("error") else [dict(zip(columns, row, strict=True)) for row in rows]
    return PageView(
        "sql.html", context, data, 400 if result.get("error") and request.url.path.endswith(".json") else 200
    )


def _chart(columns: list[str], rows: list[list[Any]]) -> Any:
    """Bars, where there is a column of names and one of numbers after it."""
    if len(columns) < 2 or not 2 <= len(rows) <= _MOST_BARS:
        return None
    number = next((at for at in range(1, len(columns)) if all(_is_number(row[at]) for row in rows)), None)
    if number is None or any(float(row[number] or 0) < 0 for row in rows):
        return None
    bars = [
        charts.ChartBar(
            str(row[0])[:14], [charts.BarPart(0, float(row[number] or 0), f"{row[0]}\n{row[number]}", "#result")]
        )
        for row in rows
    ]
    return charts.stacked(bars, lambda value: f"{value:.3g}", name=f"{columns[number]} by {columns[0]}")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool))
