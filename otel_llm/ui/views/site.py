"""The browser page as an ASGI app: its routes, and what every view has in common."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from decimal import Decimal
from importlib import resources
from typing import Any, Final
from urllib.parse import quote, urlencode

import jinja2
import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from otel_llm.ui import wording
from otel_llm.ui.gate import Gate, form_token
from otel_llm.ui.scope import PERIODS, BadRequest, PageScope, chips
from otel_llm.ui.views import (
    budget_list,
    calls,
    compare,
    conversation_list,
    health,
    overview,
    score_form,
    sql_editor,
    traces,
)
from otel_llm.ui.views.view import Answer, Backend, PageView

NAVIGATION: Final = (
    ("Overview", "/"), ("Calls", "/calls"), ("Conversations", "/conversations"), ("Compare", "/compare"), ("Budgets", "/budgets"),
    ("SQL", "/sql"), ("Health", "/health"),
)  # fmt: skip


def create_app(
    backend: Backend, *, hosts: Collection[str] = (), cookie: str = "otel_llm", root_path: str = ""
) -> Starlette:
    """The app. `hosts`: see `Gate`. `root_path`: the prefix that a proxy in front takes off the path."""
    environment = _environment(backend, root_path)
    routes: list[Route | Mount] = []

    def page(path: str, answer: Answer, *, json: str | None = "") -> None:
        """A view under its path, and its rows under the same with `.json`."""

        def as_html(request: Request) -> Response:
            return _answered(request, answer, backend, environment, as_json=False)

        routes.append(Route(path, as_html))
        if json is not None:

            def as_json(request: Request) -> Response:
                return _answered(request, answer, backend, environment, as_json=True)

            routes.append(Route(json or f"{path}.json", as_json))

    # A path with `.json` after a parameter has to come first, or the parameter takes it.
    page("/", overview.overview, json="/overview.json")
    page("/calls", calls.page)
    page("/calls/rows", calls.rows, json=None)
    page("/calls/new", calls.new, json=None)
    page("/calls/facets", calls.facets)
    page("/calls/export", calls.export, json=None)
    for path, answer in (
        ("/traces/{trace_id:str}/spans/{span_id:str}", traces.span),
        ("/traces/{trace_id:str}", traces.trace),
        ("/conversations/{key:path}", conversation_list.conversation),
        ("/sessions/{key:path}", conversation_list.session),
        ("/users/{key:path}", conversation_list.user),
    ):
        own = answer

        def json_first(request: Request, own: Answer = own) -> Response:
            return _answered(request, own, backend, environment, as_json=True)

        routes.append(Route(f"{path}.json", json_first))
        page(path, answer, json=None)
    page("/conversations", conversation_list.many)
    page("/compare", compare.compare)
    page("/budgets", budget_list.budgets)
    page("/sql", sql_editor.page)
    page("/health", health.health)

    async def score(request: Request) -> Response:
        body = b""
        async for block in request.stream():
            body += block
            if len(body) > score_form.LARGEST_FORM:
                return PlainTextResponse("This form is too large.\n", 413)

        def given(request: Request, _: PageScope, backend: Backend) -> PageView | Response:
            view = score_form.give(body, backend)
            if request.headers.get("hx-request"):
                return view
            path = quote(f"/traces/{view.context['trace'].trace_id}")
            return RedirectResponse(f"{root_path.rstrip('/')}{path}?{urlencode({'span': view.context['scored']})}", 303)

        return await run_in_threadpool(_answered, request, given, backend, environment, as_json=False)

    routes.append(Route("/scores", score, methods=["POST"]))
    if backend.live is not None:
        routes.append(Route("/live", backend.live.stream))
    static = StaticFiles(directory=str(resources.files("otel_llm.ui") / "static"))
    routes.append(Mount("/static", static, name="static"))

    def missing(request: Request, _: Exception) -> Response:
        return _error(request, environment, f"There is no page {request.url.path}.", 404)

    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Gate, token=backend.token, hosts=hosts, cookie=cookie),
            Middleware(GZipMiddleware, minimum_size=1000),
        ],
        exception_handlers={404: missing},
    )
    app.root_path = root_path  # type: ignore[attr-defined]
    return app


def _answered(
    request: Request, answer: Answer, backend: Backend, environment: jinja2.Environment, *, as_json: bool
) -> Response:
    try:
        scope = PageScope.of(request.query_params.multi_items())
        with backend.one_moment():
            view = answer(request, scope, backend)
    except BadRequest as error:
        return _json({"error": str(error)}, 400) if as_json else _error(request, environment, str(error), 400)
    except backend.errors as error:
        line = " ".join(str(error).split())
        return _json({"error": line}, 503) if as_json else _error(request, environment, line, 503)
    if isinstance(view, Response):
        return view
    if as_json:
        return _json(view.data, view.status)
    html = environment.get_template(view.template).render(
        scope=scope, path=request.url.path, here=_here(request), chips=chips(scope), **view.context
    )
    return HTMLResponse(html, view.status)


def _here(request: Request) -> str:
    root = request.scope.get("root_path", "").rstrip("/")
    path = request.url.path
    return path.removeprefix(root) if root else path


def _error(request: Request, environment: jinja2.Environment, line: str, status: int) -> Response:
    if request.headers.get("hx-request"):
        return PlainTextResponse(line, status)
    html = environment.get_template("error.html").render(
        scope=PageScope(), path=request.url.path, here=_here(request), chips=(), line=line
    )
    return HTMLResponse(html, status)


def _json(data: Any, status: int = 200) -> Response:
    body = orjson.dumps(data, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME)
    return Response(body, status, media_type="application/json")


def _plain(value: Any) -> Any:
    """A value for JSON as `otel-llm sql --format json` has it: a decimal as its digits, a time as ISO 8601."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime):
        return value.astimezone().isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return str(value)


def _environment(backend: Backend, root_path: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("otel_llm.ui"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(wording.FILTERS)
    root = root_path.rstrip("/")

    def url(path: str, scope: PageScope | None = None, **more: Any) -> str:
        pairs = [
            *(scope.pairs() if scope is not None else ()),
            *((k, str(v)) for k, v in more.items() if v is not None),
        ]
        return f"{root}{quote(path)}{'?' if pairs else ''}{urlencode(pairs)}"

    environment.globals.update(
        url=url, navigation=NAVIGATION, periods=PERIODS, store=backend.store, jaeger=backend.jaeger_url,
        csrf=form_token(backend.token), is_live=backend.live is not None, none_word=wording.UNKNOWN,
    )  # fmt: skip
    return environment
