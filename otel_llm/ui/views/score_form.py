"""The one thing that the page writes: how good an answer was, from the form beside a span."""

from __future__ import annotations

import hmac
import math
from urllib.parse import parse_qsl

from otel_llm.ui import page_questions as questions
from otel_llm.ui.gate import form_token
from otel_llm.ui.scope import BadRequest
from otel_llm.ui.views import traces
from otel_llm.ui.views.view import Backend, PageView, ScoreTold

LARGEST_FORM = 2**18
"""Bytes."""
THUMB = "thumb"
_THUMBS = {"up": ScoreTold(THUMB, 1.0, "good"), "down": ScoreTold(THUMB, 0.0, "bad")}


def give(body: bytes, backend: Backend) -> PageView:
    """Keeps the score of a form; shows the span again with it. Raises `BadRequest`."""
    form = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    if not hmac.compare_digest(form.get("csrf", "").encode(), form_token(backend.token).encode()):
        raise BadRequest("this form is not of this page, or of an earlier start of it: load the page again")
    if backend.score is None:
        raise BadRequest(f"scores are kept in a DuckDB store alone, and this is {backend.store}")
    trace_id, span_id = form.get("trace_id", ""), form.get("span_id", "")
    traces.detail(questions.trace(backend.engine, trace_id), span_id, backend)  # it is there
    told = _THUMBS.get(form.get("thumb", "")) or _told(form)
    backend.score(trace_id, span_id, told)
    found = questions.trace(backend.engine, trace_id)
    context = {"detail": traces.detail(found, span_id, backend), "trace": found, "scored": span_id}
    return PageView("traces/scored.html", context)


def _told(form: dict[str, str]) -> ScoreTold:
    text = form.get("value", "").strip()
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise BadRequest(f"{text[:40]!r} is no number; a word is a label")
    return ScoreTold(
        form.get("name", "").strip(),
        value,
        form.get("label", "").strip() or None,
        form.get("comment", "").strip() or None,
    )
