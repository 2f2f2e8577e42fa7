"""Two groups of calls side by side: two prompts, two weeks, two models, two traces; and whether they differ by more than chance."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from otel_llm.ui import page_questions as questions
from otel_llm.ui.scope import PageScope
from otel_llm.ui.views.overview import DIMENSIONS
from otel_llm.ui.views.view import Backend, PageView


def compare(request: Request, scope: PageScope, backend: Backend) -> PageView:
    """All values of one filter (`by`); or two groups of calls: `a` and `b` are queries of URLs themselves, as in
    `a=model=gpt-5-mini&b=model%3Dgpt-4o-mini%26period%3D30d`."""
    texts = [request.query_params.get(side, "") for side in ("a", "b")]
    a, b = (PageScope.of(parse_qsl(text.lstrip("?"), keep_blank_values=True)) for text in texts)
    rows = questions.compared(backend.engine, a, b) if any(texts) else []
    by = request.query_params.get("by")
    found, names = questions.compared_values(backend.engine, scope, by) if by else ([], [])
    tags = [f"tag:{key}" for key in questions.tag_keys(backend.engine, scope)]
    context = {
        "title": "Compare", "rows": rows, "a": a, "b": b, "text_a": texts[0], "text_b": texts[1],
        "by": by, "groups": found, "score_names": names, "dimensions": [*DIMENSIONS, *tags],
    }  # fmt: skip
    return PageView("compare.html", context, found if by else rows)
