"""Where events come from: the start and the end of spans.

So a hand-written chain, LangChain, LangGraph, a direct call and the spans of other instrumentations all give the same events, and
no hook knows of them.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, Final

from opentelemetry import context as otel
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext, StatusCode

from otel_llm import context
from otel_llm.calls import ending
from otel_llm.calls.tracing import Given, hear
from otel_llm.conventions import semconv
from otel_llm.conventions.dialects import is_genai, operation_of
from otel_llm.conventions.spans import attributes_of
from otel_llm.conventions.token_usage import Usage
from otel_llm.lifecycle import event as kinds
from otel_llm.lifecycle.event import Event, ToolCall
from otel_llm.lifecycle.hub import SCOPE, hub
from otel_llm.support import faults

_MAX_PARTS: Final = 20_000
"""Spans that run, as far as they are remembered; those that never end must not fill the memory."""
_MAX_COMPLETED: Final = 100


class _Part:
    """A GenAI span that runs."""

    __slots__ = ("chain", "failed", "given", "lineage", "parent", "root", "sequence", "span_id")

    def __init__(self, span_id: int, parent: _Part | None, *, is_chain: bool = False) -> None:
        self.span_id = span_id
        self.parent = parent
        self.root: int = span_id if parent is None else parent.root
        self.lineage: Collection[int] = (span_id,) if parent is None else (span_id, *parent.lineage)
        self.sequence: itertools.count[int] = itertools.count(1) if parent is None else parent.sequence
        self.chain = _Chain() if is_chain else None
        self.given: Given | None = None
        """What its span was told, where that is ours."""
        self.failed: tuple[str, int] | None = None
        """Name and span id of the innermost part that the last thing in here failed in."""


class _Chain:
    """What has happened in a chain so far."""

    __slots__ = ("completed", "model_calls", "usage")

    def __init__(self) -> None:
        self.model_calls = 0
        self.usage = Usage()
        self.completed: deque[str] = deque(maxlen=_MAX_COMPLETED)


class LifecycleProcessor(SpanProcessor):
    """Tells the hub of GenAI spans. Costs one look at the hub while nobody listens, and no exception leaves it."""

    def __init__(self) -> None:
        # None: a span that is in no run.
        self._parts: dict[int, _Part | None] = {}
        self._generation = 0

    def on_start(self, span: Span, parent_context: otel.Context | None = None) -> None:
        if hub.subscriptions:
            try:
                self._start(span, parent_context)
            except Exception as fault:
                faults.report("tell of a beginning", fault)

    def on_end(self, span: ReadableSpan) -> None:
        if hub.subscriptions:
            try:
                self._end(span)
            except Exception as fault:
                faults.report("tell of an end", fault)

    def _start(self, span: Span, parent_context: otel.Context | None) -> None:
        self._forget_what_is_out_of_date()
        own = span.get_span_context()
        parent = self._above(span)
        told = hear(own.span_id, parent_context)
        attributes = attributes_of(span, None if told is None else told.attributes)
        if len(self._parts) >= _MAX_PARTS:
            self._parts.pop(next(iter(self._parts)), None)
        if not is_genai(attributes):
            self._parts[own.span_id] = parent
            return
        operation = _operation(attributes)
        part = _Part(own.span_id, parent, is_chain=operation in semconv.CHAIN_OPERATIONS)
        part.given = told
        self._parts[own.span_id] = part
        scope = otel.get_value(SCOPE, parent_context)
        if scope is not None:
            for tap in hub.subscriptions:
                tap.entered(scope, own.span_id)
        kind = kinds.started(operation)
        details: dict[str, Any] = {}
        if kind is kinds.ProviderStarted:
            details = {
                "provider": _text(attributes, semconv.PROVIDER),
                "model": _text(attributes, semconv.REQUEST_MODEL),
                "stream": attributes.get(semconv.REQUEST_STREAM) is True,
                "input_messages": _text(attributes, semconv.INPUT_MESSAGES),
            }
        elif kind is kinds.ToolsStarted:
            details = {"calls": (_tool(span, attributes),)}
        self._tell(kind, span, own, part, operation, attributes, span.start_time, details)

    def _forget_what_is_out_of_date(self) -> None:
        """What was known when somebody last listened: spans have ended since, of which nothing was heard."""
        if self._generation != hub.generation:
            self._generation = hub.generation
            self._parts = {}

    def _above(self, span: ReadableSpan) -> _Part | None:
        """The nearest part above a span. One that began before anybody listened is known by its id alone."""
        parent = span.parent
        if parent is None or parent.is_remote:
            return None
        if parent.span_id not in self._parts:
            self._parts[parent.span_id] = _Part(parent.span_id, None, is_chain=True)
        return self._parts[parent.span_id]

    def _end(self, span: ReadableSpan) -> None:
        own = span.context
        assert own is not None
        self._forget_what_is_out_of_date()
        part = self._parts.pop(own.span_id, None)
        given = None if part is None or part.span_id != own.span_id else part.given
        attributes = attributes_of(span, None if given is None else given.attributes)
        if is_genai(attributes):
            if part is None:
                part = _Part(own.span_id, self._above(span), is_chain=True)
            self._ended(span, own, part, attributes)
        for tap in hub.subscriptions:
            tap.left(own.span_id)

    def _ended(self, span: ReadableSpan, own: SpanContext, part: _Part, attributes: Mapping[str, Any]) -> None:
        operation = _operation(attributes)
        error_type = _text(attributes, semconv.ERROR_TYPE)
        status = _text(attributes, semconv.STATUS)
        if status is None:
            failed = error_type is not None or span.status.status_code is StatusCode.ERROR
            status = ending.ERROR if failed else ending.OK
        kind = kinds.ended(operation, status)
        ended_ns = span.end_time or time.time_ns()
        details: dict[str, Any] = {
            "status": status,
            "error_type": error_type,
            "duration_ms": (ended_ns - (span.start_time or ended_ns)) / 1e6,
        }
        where = part.failed or (span.name, own.span_id)
        requested: tuple[ToolCall, ...] = ()
        usage: Usage | None = None
        if kind is kinds.ProviderCompleted:
            usage = _usage(attributes)
            requested = kinds.requested(
                attributes.get(semconv.REQUESTED_TOOL_IDS), attributes.get(semconv.REQUESTED_TOOL_NAMES)
            )
            details |= {
                "provider": _text(attributes, semconv.PROVIDER),
                "model": _text(attributes, semconv.REQUEST_MODEL),
                "response_model": _text(attributes, semconv.RESPONSE_MODEL),
                "response_id": _text(attributes, semconv.RESPONSE_ID),
                "finish_reasons": tuple(attributes.get(semconv.FINISH_REASONS) or ()),
                "usage": usage,
                "output_messages": _text(attributes, semconv.OUTPUT_MESSAGES),
            }
        elif kind is kinds.ToolCompleted:
            details["call"] = _tool(span, attributes)
        elif operation in semconv.CHAIN_OPERATIONS:
            chain = part.chain or _Chain()
            details |= {"model_calls": chain.model_calls, "usage": chain.usage}
            if kind is kinds.ChainError:
                details |= {
                    "where": where[0],
                    "where_span_id": f"{where[1]:016x}",
                    "completed": tuple(chain.completed),
                }
        _note(part.parent, span.name, status, where, usage, is_call=kind is kinds.ProviderCompleted)
        self._tell(kind, span, own, part, operation, attributes, ended_ns, details)
        if requested:
            asked = {"calls": requested}
            self._tell(kinds.ToolsRequested, span, own, part, operation, attributes, ended_ns, asked)

    @staticmethod
    def _tell(
        kind: type[Event],
        span: ReadableSpan,
        own: SpanContext,
        part: _Part,
        operation: str,
        attributes: Mapping[str, Any],
        time_ns: int | None,
        details: Mapping[str, Any],
    ) -> None:
        trace_id, span_id = f"{own.trace_id:032x}", f"{own.span_id:016x}"
        event = kind(
            id=f"{trace_id}-{span_id}-{kind.__name__}",
            time_ns=time_ns or time.time_ns(),
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=None if span.parent is None else f"{span.parent.span_id:016x}",
            run=f"{part.root:016x}",
            sequence=next(part.sequence),
            name=kinds.name_of(operation, span.name),
            operation=operation,
            context=context.of_span(attributes),
            **details,
        )
        for tap in hub.subscriptions:
            tap.offer(event, part.lineage)


def _note(
    above: _Part | None, name: str, status: str, where: tuple[str, int], usage: Usage | None, *, is_call: bool
) -> None:
    """Adds what has ended to the chains that it was in."""
    if above is not None:
        above.failed = where if status in (ending.ERROR, ending.CANCELLED) else None
    while above is not None:
        chain = above.chain
        if chain is not None:
            if status == ending.OK:
                chain.completed.append(name)
            chain.model_calls += is_call
            if usage is not None:
                chain.usage = chain.usage.plus(usage)
        above = above.parent


def _operation(attributes: Mapping[str, Any]) -> str:
    return str(operation_of(attributes) or "unknown")


def _tool(span: ReadableSpan, attributes: Mapping[str, Any]) -> ToolCall:
    name = _text(attributes, semconv.TOOL_NAME) or kinds.name_of(semconv.EXECUTE_TOOL, span.name)
    return ToolCall(name, _text(attributes, semconv.TOOL_CALL_ID))


def _usage(attributes: Mapping[str, Any]) -> Usage | None:
    return Usage.from_attributes(attributes) or None


def _text(attributes: Mapping[str, Any], name: str) -> str | None:
    value = attributes.get(name)
    return None if value is None else str(value)
