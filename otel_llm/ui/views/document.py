"""The overview as one document that needs nothing else: HTML to mail or keep, Markdown for a chat message."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from typing import Any, Final

import jinja2
from markupsafe import Markup

from otel_llm.account.engine import Engine
from otel_llm.ui import page_questions, wording
from otel_llm.ui.page_questions import Row, Series
from otel_llm.ui.scope import PageScope
from otel_llm.ui.views.overview import chart

BY: Final = ("model", "user", "module")
_ROWS: Final = 15


def as_html(engine: Engine, scope: PageScope, *, place: str, by: Sequence[str] = BY) -> str:
    """A page with sums, a chart and a table for each of `by`; no script, no link, nothing to load. Raises `BadRequest`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("otel_llm.ui"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(wording.FILTERS)
    style = (resources.files("otel_llm.ui") / "static" / "page.css").read_text(encoding="utf-8")
    found = [page_questions.series(engine, scope, name) for name in by]
    return environment.get_template("overview/report.html").render(
        scope=scope, place=place, made=datetime.now().astimezone(), style=Markup(style), rows=_ROWS, **_asked(engine, scope),
        sections=[(one, chart(one, _measure(one), scope, lambda *_, **__: None)) for one in found],
    )  # fmt: skip


def as_markdown(engine: Engine, scope: PageScope, *, place: str, by: Sequence[str] = BY) -> str:
    """The same sums and tables as Markdown. Raises `BadRequest`."""
    asked = _asked(engine, scope)
    sums = asked["sums"]
    failed = f"{wording.count(sums['errors'])} failed" if sums["errors"] else "none failed"
    lines = [
        f"**Model calls, {scope.words}**: {wording.money(sums['cost_usd'])}, {wording.count(sums['calls'])} calls ({failed}), "
        f"{wording.short(sums['input_tokens'])} tokens in, {wording.short(sums['output_tokens'])} out, "
        f"p50 {wording.ms(sums['duration_p50'])}, p95 {wording.ms(sums['duration_p95'])}"
    ]
    for name in by:
        found = page_questions.series(engine, scope, name)
        lines += ["", f"| {name} | cost | calls | failed | in | out |", "|---|--:|--:|--:|--:|--:|"]
        for row in found.groups[:_ROWS]:
            cells = [
                _cell(row["value"]), wording.money(row["cost_usd"]), wording.count(row["calls"]), wording.count(row["errors"]),
                wording.count(row["input_tokens"]), wording.count(row["output_tokens"]),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        if len(found.groups) > _ROWS:
            lines.append(f"\n… and {len(found.groups) - _ROWS:,} more")
    if asked["unpriced"]:
        reasons = ", ".join(f"{_cell(row['reason'])} ({row['calls']:,})" for row in asked["unpriced"])
        lines += ["", f"Not in the cost: {reasons}"]
    lines += ["", f"From {_cell(place)}, {datetime.now().astimezone():%Y-%m-%d %H:%M}"]
    return "\n".join(lines) + "\n"


def _asked(engine: Engine, scope: PageScope) -> dict[str, Any]:
    sums: Row = page_questions.totals(engine, scope)
    return {"sums": sums, "unpriced": page_questions.unpriced(engine, scope) if sums["unpriced"] else []}


def _measure(found: Series) -> str:
    """The cost; tokens where none is known."""
    return "cost" if any(row["cost_usd"] for row in found.groups) else "tokens"


def _cell(value: Any) -> str:
    """What somebody else has named, as a cell: it closes none and begins nothing."""
    if value is None:
        return "none"
    text = " ".join(str(value).split())
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>()#|~!" else character for character in text)
