"""What the instrumentors share: the providers they are given, and the switch that keeps them off."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import semconv
from otel_llm.settings import settings
from otel_llm.signals import providers

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider


class Instrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments one client library. The providers are OpenTelemetry's, by default the global ones."""

    scope: ClassVar[str]
    """Name of the instrumentation scope of its spans."""

    @abstractmethod
    def _install(self, tracer: Tracer) -> None:
        """Puts the hooks in place; their spans go to `tracer`."""

    @abstractmethod
    def _remove(self) -> None:
        """Takes them away again. Called where they were never put in place, too."""

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
        providers.use(self, meter_provider, logger_provider)
        self._install(Tracer(self.scope, tracer_provider, semconv.SCHEMA_URL))

    def _uninstrument(self, **_: Any) -> None:
        self._remove()
        providers.forget(self)
