"""OpenTelemetry instrumentation for the OpenAI and LangChain clients, with a local DuckDB account of every model call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_llm.support import lazy
from otel_llm.version import __version__

if TYPE_CHECKING:
    from otel_llm.budgets.stop.exceeded import BudgetExceeded
    from otel_llm.budgets.stop.run_budget import budget
    from otel_llm.context import LLMContext, LLMContextFilter, current_context, llm_context
    from otel_llm.lifecycle import chain, events, step, subscribe, tool
    from otel_llm.lifecycle.scoring import score
    from otel_llm.notebook.frames import df
    from otel_llm.notebook.shown import trace, usage
    from otel_llm.routing import LLMProvider
    from otel_llm.routing.invoker import LLMInvoker
    from otel_llm.setup.distro import flush, instrument, uninstrument
    from otel_llm.store import connect

__all__ = [
    "BudgetExceeded",
    "LLMContext",
    "LLMContextFilter",
    "LLMInvoker",
    "LLMProvider",
    "__version__",
    "budget",
    "chain",
    "connect",
    "current_context",
    "df",
    "events",
    "flush",
    "instrument",
    "llm_context",
    "score",
    "step",
    "subscribe",
    "tool",
    "trace",
    "uninstrument",
    "usage",
]

_HOMES = {
    "BudgetExceeded": "budgets.stop.exceeded",
    "LLMContext": "context",
    "LLMContextFilter": "context",
    "LLMInvoker": "routing.invoker",
    "LLMProvider": "routing",
    "budget": "budgets.stop.run_budget",
    "chain": "lifecycle",
    "connect": "store",
    "current_context": "context",
    "df": "notebook.frames",
    "events": "lifecycle",
    "flush": "setup.distro",
    "instrument": "setup.distro",
    "llm_context": "context",
    "score": "lifecycle.scoring",
    "step": "lifecycle",
    "subscribe": "lifecycle",
    "tool": "lifecycle",
    "trace": "notebook.shown",
    "uninstrument": "setup.distro",
    "usage": "notebook.shown",
}


# `import otel_llm` costs next to nothing.
__getattr__ = lazy.attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
