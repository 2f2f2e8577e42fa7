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
from opentelemetry.trace import SpanContext

from otel_llm import context
from otel_llm.calls.tracing import Given, hear
from otel_llm.conventions import semconv
from otel_llm.conventions.dialects import is_genai
from otel_llm.conventions.spans import attributes_of
from otel_llm.conventions.token_usage import Usage
from otel_llm.lifecycle.event import ChainCompleted, ChainError, ProviderCompleted
from otel_llm.lifecycle.from_record import Derived, at_end, at_start, event_operation
from otel_llm.lifecycle.hub import SCOPE, hub
from otel_llm.support import faults

_MAX_PARTS: Final = 20_000
"""Spans that run, as far as they are remembered; those that never end must not fill the memory."""
_MAX_COMPLETED: Final = 100
_NOTHING: Final[Mapping[str, Any]] = {}


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
        part = _Part(own.span_id, parent, is_chain=event_operation(attributes) in semconv.CHAIN_OPERATIONS)
        part.given = told
        self._parts[own.span_id] = part
        scope = otel.get_value(SCOPE, parent_context)
        if scope is not None:
            for tap in hub.subscriptions:
                tap.entered(scope, own.span_id)
        self._tell(at_start(_record(span, own, attributes)), part, attributes)

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
        record = _record(span, own, attributes)
        record["et"] = span.end_time or time.time_ns()
        record["sts"] = span.status.status_code.name
        ended, *requested = at_end(record)
        name, span_id = part.failed or (span.name, own.span_id)
        sums: dict[str, Any] = {}
        if issubclass(ended.type, ChainCompleted | ChainError):
            chain = part.chain or _Chain()
            sums = {"model_calls": chain.model_calls, "usage": chain.usage}
            if ended.type is ChainError:
                sums |= {"where": name, "where_span_id": f"{span_id:016x}", "completed": tuple(chain.completed)}
        _note(part.parent, span.name, ended, (name, span_id))
        self._tell(ended, part, attributes, sums)
        for event in requested:
            self._tell(event, part, attributes)

    @staticmethod
    def _tell(derived: Derived, part: _Part, attributes: Mapping[str, Any], sums: Mapping[str, Any] = _NOTHING) -> None:
        event = derived.type(
            run=f"{part.root:016x}",
            sequence=next(part.sequence),
            context=context.of_span(attributes),
            **derived.fields,
            **sums,
        )
        for tap in hub.subscriptions:
            tap.offer(event, part.lineage)


def _record(span: ReadableSpan, own: SpanContext, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A span as `from_record` reads it."""
    return {
        "t": f"{own.trace_id:032x}",
        "s": f"{own.span_id:016x}",
        "p": None if span.parent is None else f"{span.parent.span_id:016x}",
        "n": span.name,
        "st": span.start_time or span.end_time or time.time_ns(),
        "a": attributes,
    }


def _note(above: _Part | None, name: str, ended: Derived, where: tuple[str, int]) -> None:
    """Adds what has ended to the chains that it was in."""
    status = ended.fields["status"]
    is_call = ended.type is ProviderCompleted
    usage = ended.fields["usage"] if is_call else None
    if above is not None:
        above.failed = where if status in semconv.FAILED else None
    while above is not None:
        chain = above.chain
        if chain is not None:
            if status == semconv.OK:
                chain.completed.append(name)
            chain.model_calls += is_call
            if usage is not None:
                chain.usage = chain.usage.plus(usage)
        above = above.parent
