"""What a view is handed, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from otel_llm.account.engine import Engine
from otel_llm.budgets.alerts.crossings import Told
from otel_llm.budgets.rules import Rules
from otel_llm.prices.rates import Quote
from otel_llm.ui.live import Arrivals, Live
from otel_llm.ui.scope import PageScope


@dataclass(frozen=True, slots=True)
class ScoreTold:
    """What somebody has said of a span."""

    name: str
    value: float | None = None
    label: str | None = None
    comment: str | None = None


@dataclass(slots=True)
class Backend:
    """What the page stands on, handed in by the command that starts it."""

    engine: Engine
    store: str
    """How the store is called, for people."""
    live: Live | None = None
    arrivals: Arrivals = field(default_factory=Arrivals)
    run_sql: Callable[[str], dict[str, Any]] | None = None
    """Runs SQL of the user's inside a fence. Raises CommandError."""
    health: Callable[[], Sequence[Any]] | None = None
    """What `otel-llm doctor` finds."""
    running: Callable[[], list[dict[str, Any]]] | None = None
    """The calls that run right now."""
    export: Callable[[PageScope, str], Any] | None = None
    """The calls of a scope as a file of that kind."""
    score: Callable[[str, str, ScoreTold], None] | None = None
    """Keeps a score of a span, by the ids of its trace and itself. Raises `BadRequest`."""
    quote: Callable[[Mapping[str, Any]], Quote] | None = None
    """What calls like that row of `llm_usage` cost by the prices that are known here."""
    rules: Callable[[], Rules] | None = None
    """The budgets as their file says now; None where no file is named."""
    crossings: Callable[[], Sequence[Told]] | None = None
    """The thresholds of budgets that were crossed, and who was told."""
    one_moment: Callable[[], AbstractContextManager[None]] = nullcontext
    """What a page asks is asked in this."""
    jaeger_url: str | None = None
    token: str | None = None
    errors: tuple[type[Exception], ...] = ()
    """What reading the store may raise, each with one line for people."""


@dataclass(slots=True)
class PageView:
    """What a page shows, as HTML by its template and as JSON by `data`."""

    template: str
    context: dict[str, Any] = field(default_factory=dict)
    data: Any = None
    status: int = 200


Answer = Callable[[Request, PageScope, Backend], PageView | Response]
