"""What `otel-llm doctor` says."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request

from otel_llm.ui.scope import PageScope
from otel_llm.ui.views.view import Backend, PageView


def health(request: Request, scope: PageScope, backend: Backend) -> PageView:
    sections = list(backend.health()) if backend.health is not None else []
    problems = sum(len(section.problems) for section in sections)
    data = {"ok": not problems, "sections": [asdict(section) for section in sections]}
    return PageView("health.html", {"title": "Health", "sections": sections, "problems": problems}, data)
