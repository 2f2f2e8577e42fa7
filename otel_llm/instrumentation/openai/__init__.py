"""OpenAI: one wrapper on the client's `request` covers every resource method, sync and async, raw responses and Azure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.trace import TracerProvider, get_tracer

from otel_llm import faults
from otel_llm.instrumentation import patching
from otel_llm.instrumentation.openai._hooks import Hooks
from otel_llm.settings import settings
from otel_llm.version import __version__

SCOPE = "otel_llm.instrumentation.openai"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.40.0"


class OpenAIInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Records every model call of the OpenAI Python client (1.x, 2.x and 3.x)."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("openai >= 1.0",)

    def _instrument(self, *, tracer_provider: TracerProvider | None = None, **_: Any) -> None:
        if settings().sdk_disabled:
            return
        hooks = Hooks(get_tracer(SCOPE, __version__, tracer_provider, SCHEMA_URL), SCOPE)
        self._patches = patching.Patches()

        def patch(module: Any) -> None:
            try:
                self._patches.wrap(module.SyncAPIClient, "request", hooks.request)
                self._patches.wrap(module.AsyncAPIClient, "request", hooks.request_async)
                for client in (module.SyncAPIClient, module.AsyncAPIClient):
                    self._patches.wrap(client, "_sleep_for_retry", hooks.retry, optional=True)
            except Exception as fault:
                faults.report("instrument openai", fault)

        self._patches.when_imported("openai._base_client", patch)

    def _uninstrument(self, **_: Any) -> None:
        patches = getattr(self, "_patches", None)
        if patches is not None:
            patches.undo()
