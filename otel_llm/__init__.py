"""OpenTelemetry instrumentation for the OpenAI and LangChain clients, with a local DuckDB account of every model call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_llm import lazy
from otel_llm.version import __version__

if TYPE_CHECKING:
    from otel_llm.autoload import flush, instrument, uninstrument
    from otel_llm.context import llm_context
    from otel_llm.lifecycle import chain, events, step, subscribe, tool
    from otel_llm.provider import LLMProvider
    from otel_llm.provider.invoker import LLMInvoker
    from otel_llm.store import connect

__all__ = [
    "LLMInvoker",
    "LLMProvider",
    "__version__",
    "chain",
    "connect",
    "events",
    "flush",
    "instrument",
    "llm_context",
    "step",
    "subscribe",
    "tool",
    "uninstrument",
]

_HOMES = {
    "LLMInvoker": "provider.invoker",
    "LLMProvider": "provider",
    "chain": "lifecycle",
    "connect": "store",
    "events": "lifecycle",
    "flush": "autoload",
    "instrument": "autoload",
    "llm_context": "context",
    "step": "lifecycle",
    "subscribe": "lifecycle",
    "tool": "lifecycle",
    "uninstrument": "autoload",
}


# `import otel_llm` costs next to nothing.
__getattr__ = lazy.attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
