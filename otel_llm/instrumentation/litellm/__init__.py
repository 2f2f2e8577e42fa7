"""LiteLLM: its functions that ask a model, whichever provider is behind them, and the Router, retries and fallbacks above them.

Some providers are asked through the OpenAI client, others over HTTP by LiteLLM itself. A call begins when LiteLLM is about to send
its request, and is offered to the OpenAI client, whose hook takes it over where it is the one that sends; else it is recorded here.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from otel_llm.calls.tracing import Tracer
from otel_llm.instrumentation import patching
from otel_llm.instrumentation.instrumentor import Instrumentor
from otel_llm.instrumentation.litellm import private
from otel_llm.instrumentation.litellm._attempts import LiteLLMHooks
from otel_llm.support import faults


class LiteLLMInstrumentor(Instrumentor):
    """Records every model call of LiteLLM (from 1.80) and of what stands on it: its Router, DSPy, smolagents, openai-agents."""

    scope = "otel_llm.instrumentation.litellm"

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("litellm >= 1.80",)

    def _install(self, tracer: Tracer) -> None:
        hooks = LiteLLMHooks(tracer, self.scope)
        patches = self._patches = patching.Patches()

        def patch_functions(operations: dict[str, str], module: Any) -> None:
            for name, operation in operations.items():
                for function, wrapper in ((name, hooks.make), (f"a{name}", hooks.make_async)):
                    try:
                        patches.wrap_inner(getattr(module, function), private.INNER, partial(wrapper, operation))
                    except Exception as fault:
                        faults.report(f"instrument {module.__name__}.{function}", fault)

        def patch_logging(module: Any) -> None:
            try:
                logging = module.Logging
                patches.wrap(logging, private.BEFORE_REQUEST, hooks.about_to_ask)
                patches.wrap(logging, private.cost_calculator(logging), hooks.priced)
                patches.wrap(logging, private.AFTER_FAILURE, hooks.failed, optional=True)
            except Exception as fault:
                faults.report("instrument litellm", fault)

        def patch_cache(module: Any) -> None:
            try:
                handler = module.LLMCachingHandler
                for name, wrapper in zip(
                    private.cache_lookups(handler), (hooks.look_up, hooks.look_up_async), strict=True
                ):
                    patches.wrap(handler, name, wrapper)
            except Exception as fault:
                faults.report("instrument LiteLLM's cache", fault)

        def patch_streams(module: Any) -> None:
            try:
                patches.wrap(getattr(module, chunks), "__init__", hooks.stream)
            except Exception as fault:
                faults.report("instrument LiteLLM's streams", fault)

        streams, chunks = private.CHUNKS
        patches.when_imported(streams, patch_streams)
        patches.when_imported(private.LOGGING, patch_logging)
        patches.when_imported(private.CACHE, patch_cache)
        for module, operations in private.FUNCTIONS.items():
            patches.when_imported(module, partial(patch_functions, dict(operations)))

    def _remove(self) -> None:
        patches = getattr(self, "_patches", None)
        if patches is not None:
            patches.undo()
