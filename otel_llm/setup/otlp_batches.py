"""The batches of OTLP exporters in requests of a size that receivers take.

OpenTelemetry counts the spans of a batch, whatever they hold. With content captured, that is soon too much. The exporters that
the `OTEL_*` variables ask for get their batches in parts; those that an app sets up itself are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from otel_llm.content.otlp_sizes import parts_of
from otel_llm.support import faults, otel_private


def bound(tracer_provider: Any) -> None:
    """Bounds the OTLP exporters of a tracer provider, and of the global logger provider beside it. Raises nothing."""
    from opentelemetry import _logs

    try:
        for exporter in exporters(tracer_provider, _logs.get_logger_provider()):
            if type(exporter.export) is not Parts:
                # On the object: a class of the app's own may stand on the same exporter.
                exporter.export = Parts(exporter.export)
    except Exception as fault:
        faults.report("bound what is sent over OTLP", fault)


def exporters(*providers: Any) -> Iterator[Any]:
    """The OTLP exporters that providers of spans, or of log records, send batches to."""
    for exporter in otel_private.batch_exporters(*providers):
        if type(exporter).__module__.startswith("opentelemetry.exporter.otlp."):
            yield exporter


class Parts:
    """Exports in parts; stands in the place of an exporter's `export`."""

    def __init__(self, export: Callable[..., Any]) -> None:
        self._export = export
        self.arrived: Callable[[Sequence[Any]], None] | None = None
        """Is told what the backend has taken, part by part."""

    def __call__(self, batch: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            parts = list(parts_of(batch))
        except Exception as fault:
            faults.report("measure what is sent over OTLP", fault)
            parts = [list(batch)]
        worst = None
        done = 0
        for part in parts:
            result = self._export(part, *args, **kwargs)
            is_taken = getattr(result, "value", 0) == 0  # SUCCESS is 0 in every signal
            if is_taken and self.arrived is not None:
                try:
                    self.arrived(batch[done : done + len(part)])  # as they came: one too large is not what was sent
                except Exception as fault:
                    faults.report("note what has arrived over OTLP", fault)
            done += len(part)
            if worst is None or getattr(worst, "value", 0) == 0:
                worst = result
        return self._export(batch, *args, **kwargs) if worst is None else worst
