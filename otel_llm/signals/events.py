"""The GenAI events, through OpenTelemetry's logs: what was said, and what went wrong, beside the trace rather than in it.

Emitted only in the event modes of content capture, and only where a LoggerProvider takes them. Imported only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import context as otel
from opentelemetry._logs import Logger, LoggerProvider, LogRecord, SeverityNumber, get_logger

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


def wanted() -> bool:
    """Whether somebody takes the events."""
    enabled = getattr(_logger(), "enabled", None)  # newer than the oldest API we run on
    return enabled is None or bool(enabled(severity_number=SeverityNumber.DEBUG, event_name=semconv.EVENT_DETAILS))


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
            _emit(SeverityNumber.DEBUG, semconv.EVENT_DETAILS, {**attributes, **content}, at, end_ns)
        if error:
            _emit(SeverityNumber.WARN, semconv.EVENT_EXCEPTION, error, at, end_ns)
    except Exception as fault:
        faults.report("emit an event", fault)


def _emit(severity: SeverityNumber, name: str, attributes: Mapping[str, Any], at: otel.Context, end_ns: int) -> None:
    record = LogRecord(timestamp=end_ns, context=at, severity_number=severity, event_name=name, attributes=attributes)
    _logger().emit(record)
