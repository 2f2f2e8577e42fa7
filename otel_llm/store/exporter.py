"""The store as a span exporter of OpenTelemetry's: `OTEL_TRACES_EXPORTER=duckdb`, or from a declarative configuration file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_llm.conventions.dialects import is_genai
from otel_llm.conventions.spans import attributes_of
from otel_llm.settings import announce_store, settings, store_path
from otel_llm.store.span_record import end_record
from otel_llm.store.store import Store
from otel_llm.store.usage_processor import MARK

_logger = logging.getLogger("otel_llm")


class DuckDBSpanExporter(SpanExporter):
    """Stores GenAI spans, and the spans of the same batch above them, of any instrumentation.

    `store` is a file path; without it `OTEL_LLM_STORE` says where. Spans that `UsageSpanProcessor` has journalled already
    are not stored again. Unknown keywords, as a YAML mapping may bring them, are named in one warning.
    """

    def __init__(self, store: str | os.PathLike[str] | None = None, **unknown: object) -> None:
        if unknown:
            _logger.warning("the duckdb exporter does not know %s; it takes: store", ", ".join(sorted(unknown)))
        path = settings().store if store is None else store_path(store)
        self._store = Store.open(path) if path is not None else None
        self._is_default = store is None
        self._failures = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._store is None:
            return SpanExportResult.SUCCESS
        try:
            for span in _wanted(spans):
                self._write(self._store, span)
        except Exception:
            self._failures += 1
            if self._failures == 1:
                _logger.warning("spans could not be journalled; further failures are only counted", exc_info=True)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _write(self, store: Store, span: ReadableSpan) -> None:
        assert span.context is not None
        if self._is_default:
            announce_store()
        record = end_record(span, attributes_of(span))
        resource = store.resource_for(span.resource)
        if resource is not None:
            record["r"] = resource
        store.write(record)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Everything exported is merged, unless that takes longer than `timeout_millis`."""
        return self._store is None or self._store.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        if self._store is not None:
            self._store.flush()


def _wanted(spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
    """Spans that are about GenAI or above such a span, and not journalled yet."""
    parents = {
        (span.context.trace_id, span.context.span_id): span.parent.span_id if span.parent is not None else None
        for span in spans
        if span.context is not None
    }
    wanted: set[tuple[int, int]] = set()
    for span in spans:
        if span.context is None or not is_genai(attributes_of(span)):
            continue
        trace_id, span_id = span.context.trace_id, span.context.span_id
        step: int | None = span_id
        while step is not None and (trace_id, step) not in wanted and (trace_id, step) in parents:
            wanted.add((trace_id, step))
            step = parents[trace_id, step]
    return [
        span
        for span in spans
        if span.context is not None
        and (span.context.trace_id, span.context.span_id) in wanted
        and not getattr(span, MARK, False)
    ]
