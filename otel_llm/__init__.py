"""OpenTelemetry instrumentation for the OpenAI and LangChain clients, with a local DuckDB account of every model call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_llm.version import __version__

if TYPE_CHECKING:
    from otel_llm.autoload import instrument, uninstrument
    from otel_llm.context import llm_context
    from otel_llm.lifecycle import chain, events, step, subscribe, tool
    from otel_llm.provider import LLMProvider
    from otel_llm.provider.invoker import LLMInvoker
    from otel_llm.store import connect, flush

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
    "LLMInvoker": "otel_llm.provider.invoker",
    "LLMProvider": "otel_llm.provider",
    "chain": "otel_llm.lifecycle",
    "connect": "otel_llm.store",
    "events": "otel_llm.lifecycle",
    "flush": "otel_llm.store",
    "instrument": "otel_llm.autoload",
    "llm_context": "otel_llm.context",
    "step": "otel_llm.lifecycle",
    "subscribe": "otel_llm.lifecycle",
    "tool": "otel_llm.lifecycle",
    "uninstrument": "otel_llm.autoload",
}


def __getattr__(name: str) -> Any:
    # Loaded when used: `import otel_llm` costs next to nothing.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
