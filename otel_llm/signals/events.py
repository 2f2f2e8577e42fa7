"""The GenAI events, through OpenTelemetry's logs: what was said, and what went wrong, beside the trace rather than in it.

Emitted only where a LoggerProvider takes them; those of calls only in the event modes of content capture. Imported only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import context as otel
from opentelemetry._logs import Logger, LoggerProvider, LogRecord, SeverityNumber, get_logger
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_llm.conventions import semconv
from otel_llm.support import faults
from otel_llm.version import __version__

_given: LoggerProvider | None = None
_loggers: dict[LoggerProvider | None, Logger] = {}


def use(provider: LoggerProvider | None) -> None:
    """Emits through `provider`; None: through the global one, once the app has set it."""
    global _given
    _given = provider
    _loggers.clear()


def _logger() -> Logger:
    logger = _loggers.get(_given)
    if logger is None:
        logger = _loggers[_given] = get_logger(semconv.SCOPE, __version__, _given, semconv.SCHEMA_URL)
    return logger


_SEVERITIES = {
    semconv.EVENT_DETAILS: SeverityNumber.DEBUG,
    semconv.EVENT_EXCEPTION: SeverityNumber.WARN,
    semconv.EVENT_EVALUATION: SeverityNumber.INFO,
    semconv.EVENT_BUDGET_THRESHOLD: SeverityNumber.WARN,
}


def wanted(name: str = semconv.EVENT_DETAILS) -> bool:
    """Whether somebody takes the events of that name."""
    enabled = getattr(_logger(), "enabled", None)  # newer than the oldest API we run on
    return enabled is None or bool(enabled(severity_number=_SEVERITIES[name], event_name=name))


def emit(
    attributes: Mapping[str, Any],
    content: Mapping[str, Any] | None,
    error: Mapping[str, Any],
    at: otel.Context,
    end_ns: int,
) -> None:
    """Emits the events of a model call that has ended. Raises nothing.

    Args:
        attributes: those of its span, content apart.
        content: in structured form.
        error: the attributes of what the call raised; empty where it raised nothing.
        at: context with the call's span.
        end_ns: when it ended, nanoseconds since 1970.
    """
    try:
        if content:
            _emit(semconv.EVENT_DETAILS, {**attributes, **content}, at, end_ns)
        if error:
            _emit(semconv.EVENT_EXCEPTION, error, at, end_ns)
    except Exception as fault:
        faults.report("emit an event", fault)


def evaluated(attributes: Mapping[str, Any], of: tuple[int, int] | None, at_ns: int) -> None:
    """Emits the event of a score. `of` are the ids of trace and span, 0 where there is none; None: the current span."""
    if of is None:
        _emit(semconv.EVENT_EVALUATION, attributes, otel.get_current(), at_ns)
        return
    span = NonRecordingSpan(SpanContext(*of, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    _emit(semconv.EVENT_EVALUATION, attributes, set_span_in_context(span, otel.Context()), at_ns)


def budget_crossed(attributes: Mapping[str, Any], at_ns: int) -> None:
    """Emits the event of a threshold of a budget. It belongs to no span."""
    _emit(semconv.EVENT_BUDGET_THRESHOLD, attributes, otel.Context(), at_ns)


def _emit(name: str, attributes: Mapping[str, Any], at: otel.Context, end_ns: int) -> None:
    record = LogRecord(
        timestamp=end_ns, context=at, severity_number=_SEVERITIES[name], event_name=name, attributes=attributes
    )
    _logger().emit(record)
