"""Conversations, sessions and users: the list of them with sums, and one conversation as the talk that it was."""

from __future__ import annotations

from starlette.requests import Request

from otel_llm.ui import page_questions as questions
from otel_llm.ui.scope import BadRequest, PageScope
from otel_llm.ui.views.view import Backend, PageView


def many(request: Request, scope: PageScope, backend: Backend) -> PageView:
    by = request.query_params.get("by", "conversation")
    skip = request.query_params.get("skip", "0")
    if not skip.isascii() or not skip.isdigit() or len(skip) > 9:
        raise BadRequest(f"{skip[:40]!r} is no place in the list")
    found = questions.groups(backend.engine, scope, by, skip=int(skip))
    if not found and questions.is_empty(backend.engine):
        return PageView("empty.html", {"title": "Conversations"}, [])
    context = {
        "title": "Conversations", "groups": found, "by": by, "kinds": questions.GROUPS, "skip": int(skip),
        "more": len(found) == questions.PAGE, "page": questions.PAGE,
    }  # fmt: skip
    return PageView("conversations/many.html", context, found)


def one(request: Request, scope: PageScope, backend: Backend) -> PageView:
    key = request.path_params["key"]
    turns = questions.conversation(backend.engine, key)
    if not turns:
        raise BadRequest(f"there is no conversation {key[:100]!r} in the store")
    captured = any(turn.asked or turn.answered for turn in turns)
    data = [
        {
            **turn.call,
            "input_messages": turn.asked,
            "output_messages": turn.answered,
            "spent_usd": turn.spent,
            "pause_ms": turn.pause_ms,
        }
        for turn in turns
    ]
    return PageView(
        "conversations/one.html", {"title": key[:60], "key": key, "turns": turns, "captured": captured}, data
    )
