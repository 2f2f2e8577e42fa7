"""Conversations, sessions and users: the list of them with sums, and each as the talk that it was."""

from __future__ import annotations

from starlette.requests import Request

from otel_llm.ui import page_questions as questions
from otel_llm.ui.scope import BadRequest, PageScope
from otel_llm.ui.views.view import Backend, PageView


def many(request: Request, scope: PageScope, backend: Backend) -> PageView:
    by = request.query_params.get("by", "conversation")
    found = questions.groups(backend.engine, scope, by, after=request.query_params.get("after"))
    if not found and questions.is_empty(backend.engine):
        return PageView("empty.html", {"title": "Conversations"}, [])
    context = {
        "title": "Conversations", "groups": found, "by": by, "kinds": questions.GROUPS,
        "more": found[-1]["mark"] if len(found) == questions.PAGE else None,
    }  # fmt: skip
    return PageView("conversations/many.html", context, found)


def one(request: Request, backend: Backend, by: str) -> PageView:
    """A conversation, or all of a session or of a user, as a talk."""
    key = request.path_params["key"]
    found = questions.talk(backend.engine, by, key)
    if not found.turns:
        raise BadRequest(f"there is no {by} {key[:100]!r} in the store")
    data = [
        {
            **turn.call,
            "input_messages": turn.asked,
            "output_messages": turn.answered,
            "spent_usd": turn.spent,
            "pause_ms": turn.pause_ms,
        }
        for turn in found.turns
    ]
    context = {
        "title": key[:60], "key": key, "by": by, "turns": found.turns, "talk": found,
        "captured": any(turn.asked or turn.answered for turn in found.turns),
    }  # fmt: skip
    return PageView("conversations/one.html", context, data)


def conversation(request: Request, scope: PageScope, backend: Backend) -> PageView:
    return one(request, backend, "conversation")


def session(request: Request, scope: PageScope, backend: Backend) -> PageView:
    return one(request, backend, "session")


def user(request: Request, scope: PageScope, backend: Backend) -> PageView:
    return one(request, backend, "user")
