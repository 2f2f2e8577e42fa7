"""LangChain and LangGraph: a callback handler adds the tree (workflow, agent, step, tool, retriever) around the model calls.

A model call that an instrumented client carries out is recorded by that client's hook; a model that nothing else instruments is
recorded from here. See `_tree` for which runs become spans.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.trace import Tracer

from otel_llm import call as calls
from otel_llm import faults
from otel_llm.instrumentation import patching
from otel_llm.instrumentation.instrumentor import Instrumentor
from otel_llm.instrumentation.langchain._hooks import Hooks
from otel_llm.instrumentation.langchain._runs import Runs


class LangChainInstrumentor(Instrumentor):
    """Records the runs of LangChain (core 0.3 from 0.3.74, and 1.x) and LangGraph, and the model calls that they make."""

    scope = "otel_llm.instrumentation.langchain"

    def instrumentation_dependencies(self) -> Collection[str]:
        # Older ones do not tell an answer out of a cache from one that was paid for.
        return ("langchain-core >= 0.3.74",)

    def _install(self, tracer: Tracer) -> None:
        runs = Runs(tracer)
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

    def _remove(self) -> None:
        installed = getattr(self, "_installed", None)
        if installed is None:
            return
        runs, patches = installed
        patches.undo()
        runs.stop()
        if runs.find_place in calls.finders:
            calls.finders.remove(runs.find_place)
            calls.guides.remove(runs.guide)
        del self._installed
