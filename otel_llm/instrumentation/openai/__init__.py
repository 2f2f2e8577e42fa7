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
from otel_llm.instrumentation.openai import private
from otel_llm.instrumentation.openai._hooks import ClientHooks
from otel_llm.instrumentation.openai._observe import background
from otel_llm.instrumentation.openai._websocket import WebsocketHooks
from otel_llm.support import faults


class OpenAIInstrumentor(Instrumentor):
    """Records every model call of the OpenAI Python client (1.x, 2.x and 3.x)."""

    scope = "otel_llm.instrumentation.openai"

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("openai >= 1.26",)

    def _install(self, tracer: Tracer) -> None:
        hooks = ClientHooks(tracer, self.scope)
        self._patches = patching.Patches()
        atexit.register(background.close)

        def patch(module: Any) -> None:
            try:
                self._patches.wrap(module.SyncAPIClient, "request", hooks.request)
                self._patches.wrap(module.AsyncAPIClient, "request", hooks.request_async)
                self._wrap_what_bypasses(hooks)
                for client in (module.SyncAPIClient, module.AsyncAPIClient):
                    self._patches.wrap(client, private.before_retry(client), hooks.retry, optional=True)
            except Exception as fault:
                faults.report("instrument openai", fault)

        self._patches.when_imported(private.BASE_CLIENT, patch)
        WebsocketHooks(tracer).patch(self._patches)

    def _wrap_what_bypasses(self, hooks: ClientHooks) -> None:
        """Another instrumentation may have wrapped `request` on a subclass before us: its wrapper calls the plain one."""
        for module, names in private.CLIENTS.items():
            for name, hook in zip(names, (hooks.request, hooks.request_async), strict=True):
                client = getattr(sys.modules.get(module), name, None)
                if isinstance(client, type) and self._patches.is_bypassed(client, "request"):
                    self._patches.wrap(client, "request", hook)

    def _remove(self) -> None:
        patches = getattr(self, "_patches", None)
        if patches is not None:
            patches.undo()
        atexit.unregister(background.close)
        background.close()
