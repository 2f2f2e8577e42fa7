"""LangChain and LangGraph: their callback managers tell of the tree (workflow, agent, step, tool, retriever) around model calls.

A model call that an instrumented client carries out is recorded by that client's hook; a model that nothing else instruments is
recorded from here. See `_tree` for which runs become spans.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, Final

from otel_llm.calls import parent
from otel_llm.calls.tracing import Tracer
from otel_llm.instrumentation import patching
from otel_llm.instrumentation.instrumentor import Instrumentor
from otel_llm.instrumentation.langchain._handler import Handler, tell_to_the_end
from otel_llm.instrumentation.langchain._hooks import Hooks
from otel_llm.instrumentation.langchain._runs import Runs
from otel_llm.support import faults

STARTS: Final = ("on_chain_start", "on_tool_start", "on_retriever_start", "on_chat_model_start", "on_llm_start")
"""What the callback managers of LangChain are told of runs that begin."""
OF_RUNS: Final = {
    "ChainRun": ("on_chain_end", "on_chain_error"),
    "ToolRun": ("on_tool_end", "on_tool_error"),
    "RetrieverRun": ("on_retriever_end", "on_retriever_error"),
    "LLMRun": ("on_llm_new_token", "on_llm_end", "on_llm_error", "on_stream_event"),
}
"""What the manager of one run is told of it, by the kind of the run."""
_PIECES: Final = frozenset({"on_llm_new_token", "on_stream_event"})
_NEW: Final = frozenset({"on_stream_event"})
"""Not in langchain-core 0.3."""


class LangChainInstrumentor(Instrumentor):
    """Records the runs of LangChain (core 0.3 from 0.3.74, and 1.x) and LangGraph, and the model calls that they make."""

    scope = "otel_llm.instrumentation.langchain"

    def instrumentation_dependencies(self) -> Collection[str]:
        # Older ones do not tell an answer out of a cache from one that was paid for.
        return ("langchain-core >= 0.3.74",)

    def _install(self, tracer: Tracer) -> None:
        runs = Runs(tracer)
        hooks = Hooks(runs)
        handler = Handler(runs)
        patches = patching.Patches()
        self._installed = (runs, handler, patches)
        parent.sources.append(runs)

        def patch(module: str, *wrapped: tuple[str, str, Any]) -> None:
            def apply(imported: Any) -> None:
                for owner, name, wrapper in wrapped:
                    try:
                        patches.wrap(getattr(imported, owner), name, wrapper, optional=name in _NEW)
                    except Exception as fault:
                        faults.report(f"instrument {module}.{owner}.{name}", fault)

            patches.when_imported(module, apply)

        patch(
            "langchain_core.callbacks.manager",
            *(
                (f"{kind}CallbackManager", event, partial(hooks.start, getattr(handler, event), event))
                for kind in ("", "Async")
                for event in STARTS
            ),
            *(
                (
                    f"{kind}CallbackManagerFor{run}",
                    event,
                    hooks.token if event in _PIECES else partial(hooks.tell, getattr(handler, event)),
                )
                for kind in ("", "Async")
                for run, events in OF_RUNS.items()
                for event in events
            ),
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
        runs, handler, patches = installed
        patches.undo()
        runs.stop()
        tell_to_the_end(runs, handler)
        if runs in parent.sources:
            parent.sources.remove(runs)
        del self._installed
