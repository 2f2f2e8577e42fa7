"""LangChain and LangGraph: a callback handler adds the tree (workflow, agent, step, tool, retriever) around the model calls.

A model call that an instrumented client carries out is recorded by that client's hook; a model that nothing else instruments is
recorded from here. See `_tree` for which runs become spans.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider, get_tracer

from otel_llm import call as calls
from otel_llm import faults
from otel_llm.instrumentation import patching, signals
from otel_llm.instrumentation.langchain._hooks import Hooks
from otel_llm.instrumentation.langchain._runs import Runs
from otel_llm.settings import settings
from otel_llm.version import __version__

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

SCOPE = "otel_llm.instrumentation.langchain"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.40.0"


class LangChainInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Records the runs of LangChain (core 0.3 from 0.3.74, and 1.x) and LangGraph, and the model calls that they make."""

    def instrumentation_dependencies(self) -> Collection[str]:
        # Older ones do not tell an answer out of a cache from one that was paid for.
        return ("langchain-core >= 0.3.74",)

    def _instrument(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        **_: Any,
    ) -> None:
        if settings().sdk_disabled:
            return
        signals.use(self, meter_provider, logger_provider)
        runs = Runs(get_tracer(SCOPE, __version__, tracer_provider, SCHEMA_URL))
        hooks = Hooks(runs)
        patches = patching.Patches()
        self._installed = (runs, patches)
        calls.finders.append(runs.find_place)
        calls.guides.append(runs.guide)

        def patch(module: str, *wrapped: tuple[str, str, Any]) -> None:
            def apply(imported: Any) -> None:
                for owner, name, wrapper in wrapped:
                    try:
                        patches.wrap(getattr(imported, owner), name, wrapper)
                    except Exception as fault:
                        faults.report(f"instrument {module}.{owner}.{name}", fault)

            patches.when_imported(module, apply)

        patch("langchain_core.callbacks.base", ("BaseCallbackManager", "__init__", hooks.add_handler))
        patch(
            "langchain_core.callbacks.manager",
            ("BaseRunManager", "__init__", hooks.watch_manager),
            ("AsyncCallbackManager", "on_llm_start", hooks.start_llm_async),
        )
        patch(
            "langchain_core.language_models.chat_models",
            ("BaseChatModel", "_generate_with_cache", hooks.generate_one),
            ("BaseChatModel", "_agenerate_with_cache", hooks.generate_one_async),
        )
        patch(
            "langchain_core.language_models.llms",
            ("BaseLLM", "_generate_helper", hooks.generate_many),
            ("BaseLLM", "_agenerate_helper", hooks.generate_many),
        )

    def _uninstrument(self, **_: Any) -> None:
        installed = getattr(self, "_installed", None)
        if installed is None:
            return
        runs, patches = installed
        patches.undo()
        runs.stop()
        if runs.find_place in calls.finders:
            calls.finders.remove(runs.find_place)
            calls.guides.remove(runs.guide)
        signals.forget(self)
        del self._installed
