"""The table of calls: it grows at the top while they end, and at the bottom while one scrolls."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from otel_llm.conventions import semconv
from otel_llm.ui import page_questions as questions
from otel_llm.ui.page_questions import Row
from otel_llm.ui.scope import BadRequest, PageScope
from otel_llm.ui.score_filter import has_scores
from otel_llm.ui.views.view import Backend, PageView

_MOST_NEW: Final = 200
_MOST_SEEN: Final = 10_000
_FORMATS: Final = ("csv", "parquet", "sql")
_RUNNING: Final = {
    "model": semconv.REQUEST_MODEL, "user": semconv.USER_ID, "module": semconv.MODULE, "agent": semconv.AGENT_NAME,
    "provider": semconv.PROVIDER, "operation": semconv.OPERATION, "conversation": semconv.CONVERSATION_ID,
}  # fmt: skip


def page(request: Request, scope: PageScope, backend: Backend) -> PageView:
    chosen = _chosen(request, backend)
    newest = None
    if chosen["sort"] == "started_at":  # asked first: what comes meanwhile comes twice, and not never
        _, newest = backend.arrivals.after(None, lambda: _lately(scope, backend))
    found = questions.calls(backend.engine, scope, sort=chosen["sort"], after=request.query_params.get("after"))
    if not found and questions.is_empty(backend.engine):
        return PageView("empty.html", {"title": "Calls"}, [])
    return PageView(
        "calls/page.html",
        {
            "title": "Calls",
            "calls": found,
            "running": _running(scope, backend),
            "newest": newest,
            "more": found[-1]["mark"] if len(found) == questions.PAGE else None,
            "all_columns": [*questions.CALL_COLUMNS, questions.SCORES],
            **chosen,
        },
        found,
    )  # fmt: skip


def rows(request: Request, scope: PageScope, backend: Backend) -> PageView:
    """The next page of the table."""
    chosen = _chosen(request, backend)
    found = questions.calls(backend.engine, scope, sort=chosen["sort"], after=request.query_params.get("after"))
    more = found[-1]["mark"] if len(found) == questions.PAGE else None
    return PageView("calls/rows.html", {"calls": found, "more": more, **chosen}, found)


def new(request: Request, scope: PageScope, backend: Backend) -> PageView:
    """What has ended since, and what runs."""
    chosen = _chosen(request, backend)
    known = request.query_params.get("newer", "0")
    if not known.isascii() or not known.isdigit() or len(known) > 20:
        raise BadRequest(f"{known[:40]!r} is no number of an arrival")
    came, newest = backend.arrivals.after(int(known), lambda: _lately(scope, backend))
    return PageView(
        "calls/new.html",
        {
            "calls": came[:_MOST_NEW], "left_out": max(len(came) - _MOST_NEW, 0), "running": _running(scope, backend),
            "newest": newest, **chosen,
        },
    )  # fmt: skip


def _lately(scope: PageScope, backend: Backend) -> Mapping[Hashable, Row]:
    rows = questions.calls(backend.engine, scope, lately=True, most=_MOST_SEEN)
    return {(row["trace_id"], row["span_id"]): row for row in rows}


def facets(request: Request, scope: PageScope, backend: Backend) -> PageView:
    found = questions.facets(backend.engine, scope)
    no_scores = not has_scores(backend.engine)
    return PageView("calls/facets.html", {"facets": found, "no_scores": no_scores}, dict(found))


def export(request: Request, scope: PageScope, backend: Backend) -> Response:
    kind = request.query_params.get("as", "csv")
    if kind not in _FORMATS or backend.export is None:
        raise BadRequest(f"calls cannot be exported as {kind!r}; there are {', '.join(_FORMATS)}")
    answer = backend.export(scope, kind)
    assert isinstance(answer, Response)
    return answer


def _chosen(request: Request, backend: Backend) -> dict[str, Any]:
    """The columns and the order, as the URL has them."""
    named = request.query_params.get("columns", "")
    columns = [name for name in named.split(",") if name in questions.CALL_COLUMNS or name == questions.SCORES]
    if not columns:
        columns = [*questions.SHOWN_FIRST, *([questions.SCORES] if questions.score_names(backend.engine) else [])]
    sort = request.query_params.get("sort", "started_at")
    if sort not in questions.SORTS:
        raise BadRequest(f"calls cannot be sorted by {sort!r}; there are {', '.join(questions.SORTS)}")
    return {
        "columns": columns,
        "sort": sort,
        "sorts": questions.SORTS,
        "columns_as_asked": named or None,
        "sort_as_asked": None if sort == "started_at" else sort,
    }


def _running(scope: PageScope, backend: Backend) -> list[dict[str, Any]]:
    """The calls that run, as far as the filters can be told of them yet."""
    if backend.running is None or scope.until is not None or scope.search:
        return []
    found = []
    for start in backend.running():
        attributes = start.get("a") or {}
        row = {name: attributes.get(key) for name, key in _RUNNING.items()}
        row |= {"trace_id": start["t"], "span_id": start["s"], "name": start.get("n"), "pid": start.get("pid")}
        row["seconds"] = max(time.time() - (start.get("st") or 0) / 1e9, 0.0)
        if all(name in row and scope.has(name, row[name]) for name in scope.filters):
            found.append(row)
    return found[-50:]
