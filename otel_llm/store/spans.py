"""OpenTelemetry spans as journal records, and which of them are about generative AI.

This is the work that the app's thread does at the start and the end of every model call. Where the SDK's public properties
copy, the plain field behind them is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode

from otel_llm import semconv

_LEGACY_MARK: Final = "gen_ai.system"
_FOREIGN_MARKS: Final = frozenset((*semconv.FOREIGN_KINDS, _LEGACY_MARK))
_STATUS_NAMES: Final = {code.value: code.name for code in StatusCode}

Attributes = Mapping[str, Any]


def attributes_of(span: ReadableSpan) -> Attributes:
    """The span's attributes, without a copy where the SDK is as we know it."""
    plain = getattr(span._attributes, "_dict", None)
    if type(plain) is dict:
        return plain
    return span.attributes or {}


def is_genai(attributes: Attributes) -> bool:
    """Whether attributes are those of a model, agent, tool, retriever or workflow span, in any dialect that we read."""
    return semconv.OPERATION in attributes or not _FOREIGN_MARKS.isdisjoint(attributes)


def is_model_call(attributes: Attributes) -> bool:
    """Whether the attributes of a GenAI span say that it runs a model, as far as the start of a span tells."""
    operation = attributes.get(semconv.OPERATION)
    if operation is None:
        for kind, operations in semconv.FOREIGN_KINDS.items():
            if kind in attributes:
                operation = operations.get(str(attributes[kind]), semconv.STEP)
                break
    return operation not in semconv.TREE_OPERATIONS


def start_record(span: ReadableSpan, context: SpanContext, attributes: Attributes) -> dict[str, Any]:
    """The record of a span that has begun."""
    scope = span.instrumentation_scope
    parent = span.parent
    record = {
        "k": "s",
        "t": f"{context.trace_id:032x}",
        "s": f"{context.span_id:016x}",
        "n": span.name,
        "kd": span.kind.name,
        "st": span.start_time,
        "a": attributes,
        "f": int(context.trace_flags),
    }
    if parent is not None:
        record["p"] = f"{parent.span_id:016x}"
    if scope is not None:
        record["sc"] = scope.name
        if scope.version:
            record["scv"] = scope.version
    return record


def end_record(
    span: ReadableSpan, context: SpanContext, attributes: Attributes, started: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The record of a span that has ended. `started`, its start record, saves saying again what has not changed."""
    if started is None:
        record = start_record(span, context, attributes)
    else:
        record = dict(started)
        record["n"] = span.name
        record["a"] = attributes
    record["k"] = "e"
    record["et"] = span.end_time
    status = span.status
    record["sts"] = _STATUS_NAMES[status.status_code.value]
    if status.description:
        record["std"] = status.description
    if span._events:
        record["e"] = [
            {
                "name": event.name,
                "time_unix_nano": event.timestamp,
                "attributes": dict(event.attributes or {}),
            }
            for event in span.events
        ]
    if span._links:
        record["l"] = [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                "attributes": dict(link.attributes or {}),
            }
            for link in span.links
        ]
    return record
