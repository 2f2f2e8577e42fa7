"""OpenAI: one wrapper on the client's `request` covers every resource method, sync and async, raw responses and Azure.

Websockets go another way and have a hook of their own, on what reads their messages.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Collection
from typing import Any

from otel_llm.calls.tracing import Tracer
from otel_llm.instrumentation import patching
from otel_llm.instrumentation.instrumentor import Instrumentor
from otel_llm.instrumentation.openai._hooks import Hooks
from otel_llm.instrumentation.openai._observe import background
from otel_llm.instrumentation.openai._websocket import WebsocketHooks
from otel_llm.support import faults

_CLIENTS = {
    "openai._client": {"OpenAI": "request", "AsyncOpenAI": "request_async"},
    "openai.lib.azure": {"AzureOpenAI": "request", "AsyncAzureOpenAI": "request_async"},
}
"""The classes that others wrap, and our hook for each."""


class OpenAIInstrumentor(Instrumentor):
    """Records every model call of the OpenAI Python client (1.x, 2.x and 3.x)."""

    scope = "otel_llm.instrumentation.openai"

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("openai >= 1.26",)

    def _install(self, tracer: Tracer) -> None:
        hooks = Hooks(tracer, self.scope)
        self._patches = patching.Patches()
        atexit.register(background.close)

        def patch(module: Any) -> None:
            try:
                self._patches.wrap(module.SyncAPIClient, "request", hooks.request)
                self._patches.wrap(module.AsyncAPIClient, "request", hooks.request_async)
                self._wrap_what_bypasses(hooks)
                for client in (module.SyncAPIClient, module.AsyncAPIClient):
                    # Called once before every further try; 1.68 and older have it under the other name.
                    before_retry = "_sleep_for_retry" if hasattr(client, "_sleep_for_retry") else "_retry_request"
                    self._patches.wrap(client, before_retry, hooks.retry, optional=True)
            except Exception as fault:
                faults.report("instrument openai", fault)

        self._patches.when_imported("openai._base_client", patch)
        WebsocketHooks(tracer).patch(self._patches)

    def _wrap_what_bypasses(self, hooks: Hooks) -> None:
        """Another instrumentation may have wrapped `request` on a subclass before us: its wrapper calls the plain one."""
        for module, names in _CLIENTS.items():
            for name, hook in names.items():
                client = getattr(sys.modules.get(module), name, None)
                if isinstance(client, type) and self._patches.is_bypassed(client, "request"):
                    self._patches.wrap(client, "request", getattr(hooks, hook))

    def _remove(self) -> None:
        patches = getattr(self, "_patches", None)
        if patches is not None:
            patches.undo()
        atexit.unregister(background.close)
        background.close()
