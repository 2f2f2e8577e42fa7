"""LangChain and LangGraph: their callback managers tell of the workflows, agents, steps, tools and retrievers around model calls.

A model call that an instrumented client carries out is recorded by that client's hook; a model that nothing else instruments is
recorded from here. See `_tree` for which runs become spans.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from otel_llm.calls import parent
from otel_llm.calls.tracing import Tracer
from otel_llm.instrumentation import patching
from otel_llm.instrumentation.instrumentor import Instrumentor
from otel_llm.instrumentation.langchain import private
from otel_llm.instrumentation.langchain._callbacks import CallbackHooks
from otel_llm.instrumentation.langchain._handler import Handler, tell_to_the_end
from otel_llm.instrumentation.langchain._runs import Runs
from otel_llm.support import faults


class LangChainInstrumentor(Instrumentor):
    """Records the runs of LangChain (core 0.3 from 0.3.74, and 1.x) and LangGraph, and the model calls that they make."""

    scope = "otel_llm.instrumentation.langchain"

    def instrumentation_dependencies(self) -> Collection[str]:
        # Older ones do not tell an answer out of a cache from one that was paid for.
        return ("langchain-core >= 0.3.74",)

    def _install(self, tracer: Tracer) -> None:
        runs = Runs(tracer)
        hooks = CallbackHooks(runs)
        handler = Handler(runs)
        patches = patching.Patches()
        self._installed = (runs, handler, patches)
        parent.sources.append(runs)

        def patch(module: str, *wrapped: tuple[str, str, Any]) -> None:
            def apply(imported: Any) -> None:
                for owner, name, wrapper in wrapped:
                    try:
                        patches.wrap(getattr(imported, owner), name, wrapper, optional=name in private.NEW)
                    except Exception as fault:
                        faults.report(f"instrument {module}.{owner}.{name}", fault)

            patches.when_imported(module, apply)

        patch(
            private.MANAGERS,
            *(
                (f"{kind}CallbackManager", event, partial(hooks.start, getattr(handler, event), event))
                for kind in ("", "Async")
                for event in private.STARTS
            ),
            *(
                (
                    f"{kind}CallbackManagerFor{run}",
                    event,
                    hooks.token if event in private.CHUNKS else partial(hooks.tell, getattr(handler, event)),
                )
                for kind in ("", "Async")
                for run, events in private.OF_RUNS.items()
                for event in events
            ),
        )
        module, model = private.CHAT_MODELS
        sync, not_sync = private.CHAT_REQUEST
        patch(module, (model, sync, hooks.generate_one), (model, not_sync, hooks.generate_one_async))
        module, model = private.TEXT_MODELS
        patch(module, *((model, name, hooks.generate_many) for name in private.TEXT_REQUEST))

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
