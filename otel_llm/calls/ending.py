"""How a call, a run or a scope ends: what an exception makes of it, and the end of its span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.trace import Span, Status, StatusCode

from otel_llm.calls.listeners import listeners
from otel_llm.conventions import semconv
from otel_llm.settings import settings
from otel_llm.support import faults, otel_private

_NO_ATTRIBUTES: Final[Mapping[str, Any]] = {}

_CANCELLATIONS: Final = frozenset({"CancelledError", "Cancelled"})
"""Cancellations that are an `Exception`: that of `concurrent.futures`, Twisted's, Temporal's."""


def status_of(error: BaseException | None) -> str:
    """How a block, a function or a run has ended that was left by `error`; None where it came to its end.

    What is no `Exception` tells no failure: it tells the work to stop, whoever says so (asyncio, trio, gevent, curio, Ctrl-C,
    `sys.exit`). So no event loop need be known here. A group is a failure if anything in it is one.
    """
    if error is None:
        return semconv.OK
    if isinstance(error, GeneratorExit):
        return semconv.PARTIAL
    if isinstance(error, BaseExceptionGroup):
        inside = {status_of(one) for one in error.exceptions}
        return next(status for status in (semconv.ERROR, semconv.CANCELLED, semconv.PARTIAL) if status in inside)
    if not isinstance(error, Exception):
        return semconv.CANCELLED
    return semconv.CANCELLED if any(cls.__name__ in _CANCELLATIONS for cls in type(error).__mro__) else semconv.ERROR


def error_type_of(error: BaseException) -> str:
    """`error.type` of an exception: its class, named as the SDK names it in `exception.type`, builtins by their bare names."""
    cls = type(error)
    module = cls.__module__
    return cls.__qualname__ if module in (None, "builtins") else f"{module}.{cls.__qualname__}"


_NO_CONNECTION: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ConnectionRefusedError", "gaierror"}
)


def is_not_sent(error: BaseException) -> bool:
    """Whether `error` says that no connection was made, which HTTP clients tell by the cause of what they raise.

    By name, so that no HTTP library need be known. One that broke later may have delivered a request that is billed.
    """
    cause: BaseException | None = error
    for _ in range(5):
        if cause is None:
            return False
        if type(cause).__name__ in _NO_CONNECTION:
            return True
        cause = cause.__cause__  # not its context: that may be of another call, whose failure is being handled
    return False


def is_control_flow(error: BaseException | None) -> bool:
    """Whether `error` is how a graph of LangGraph's waits for somebody (`interrupt`) or hands over (`Command.PARENT`).

    That is no failure: what it passes through has done its part. By name, so that LangGraph need not be there.
    """
    return any(cls.__name__ == "GraphBubbleUp" for cls in type(error).__mro__)


def end_span(
    span: Span,
    attributes: dict[str, Any],
    status: str,
    *,
    error: BaseException | None = None,
    error_type: str | None = None,
    at_end: Mapping[str, Any] = _NO_ATTRIBUTES,
    end_ns: int | None = None,
) -> None:
    """Ends a span. Raises nothing, and changes nothing of one that has ended.

    Args:
        attributes: those that the span was given so far, to which these are added.
        status: `ok`, `error`, `cancelled` or `partial`.
        error: what it ended with; its text is recorded where content is captured.
        at_end: what else is known at the end.
        end_ns: when, in nanoseconds since 1970; default now.
    """
    try:
        if not otel_private.is_ended(span):
            described = {semconv.STATUS: status, **at_end}
            if error_type is not None:
                described[semconv.ERROR_TYPE] = error_type
            attributes.update(described)
            otel_private.set_attributes(span, described)
            if status in semconv.FAILED:
                span.set_status(_failed(span, error))
    except Exception as fault:
        faults.report("describe the end of a span", fault)
    try:
        if span.is_recording():
            span.end(end_ns)
        else:  # not recorded, or this is done again: what came up may have kept the account from being told
            for listener in listeners:
                listener.end_untold(span)
    except Exception as fault:  # a span processor of the app's that raises
        faults.report("end a span", fault)


def _failed(span: Span, error: BaseException | None) -> Status:
    if error is None or not settings().captures_content:
        return Status(StatusCode.ERROR)  # without a description: error texts can echo the prompt
    from otel_llm.content import capture

    return capture.failed(span, error)
