"""The providers of metrics and events that an instrumentor was given. All instrumentors share one pair: the last given counts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from opentelemetry.metrics import MeterProvider

from otel_llm.signals import metrics

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

_giver: object = None


def use(giver: object, meter_provider: MeterProvider | None, logger_provider: LoggerProvider | None) -> None:
    """Has metrics and events go where `giver`, an instrumentor, was told; without providers it changes nothing."""
    global _giver
    if meter_provider is None and logger_provider is None:
        return
    _giver = giver
    metrics.use(meter_provider)
    if logger_provider is not None:
        from otel_llm.signals import events  # brings the logs API with it

        events.use(logger_provider)


def forget(giver: object) -> None:
    """Goes back to the global providers, if `giver` said otherwise."""
    global _giver
    if _giver is giver:
        _giver = None
        metrics.use(None)
        if (details := sys.modules.get("otel_llm.signals.events")) is not None:
            details.use(None)
