"""Where events come from: the start and the end of spans.

So a hand-written chain, LangChain, LangGraph, a direct call and the spans of other instrumentations all give the same events, and
no hook knows of them.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext

from otel_llm import context
from otel_llm.calls.tracing import Given, hear, identity
from otel_llm.conventions import semconv
from otel_llm.conventions.dialects import is_genai
from otel_llm.conventions.spans import attributes_of
from otel_llm.conventions.token_usage import Usage
from otel_llm.lifecycle import run_ids
from otel_llm.lifecycle.event import (
    ChainCompleted,
    ChainError,
    Event,
    ProviderCompleted,
    ProviderDelta,
    ProviderStarted,
    ToolCall,
)
from otel_llm.lifecycle.from_record import Derived, at_end, at_start, event_operation
from otel_llm.lifecycle.hub import SCOPE_KEY, hub
from otel_llm.store.span_record import error_message, recorded
from otel_llm.support import faults

if TYPE_CHECKING:
    from otel_llm.content.increments import Increment

_MAX_RUNNING: Final = 20_000
"""Spans that run, as far as they are remembered; those that never end must not fill the memory."""
_MAX_COMPLETED: Final = 100
_NOTHING: Final[Mapping[str, Any]] = {}
_OF_THE_CALL: Final = ("trace_id", "span_id", "parent_span_id", "run", "sequence", "name", "operation", "context")
"""What an increment has of the start of its call."""


class _RunningSpan:
    """A GenAI span that runs."""

    __slots__ = (
        "chain",
        "continues",
        "deltas",
        "failed",
        "given",
        "lineage",
        "parent",
        "root",
        "sequence",
        "span_id",
        "started",
    )

    def __init__(
        self, span_id: int, parent: _RunningSpan | None, *, is_chain: bool = False, continues: int | None = None
    ) -> None:
        """`continues`: the root of the run that it continues."""
        self.span_id = span_id
        self.parent = parent
        self.continues = continues
        above: Collection[int] = () if parent is None else parent.lineage
        if parent is None or continues is not None:
            self.root: int = continues or span_id
            self.sequence: itertools.count[int] = itertools.count(1)
        else:
            self.root, self.sequence = parent.root, parent.sequence
        self.lineage: Collection[int] = (span_id, *above) if continues is None else (span_id, continues, *above)
        self.chain = _Chain() if is_chain else None
        self.given: Given | None = None
        """What it was given, where it is ours."""
        self.started: Event | None = None
        """What was told of its start."""
        self.deltas: itertools.count[int] = itertools.count(1)
        self.failed: tuple[str, int] | None = None
        """Name and span id of the innermost span that the last thing in here failed in."""


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
        self._running: dict[int, _RunningSpan | None] = {}
        self._generation = 0
        hub.take(self)

    def on_start(self, span: Span, parent_context: otel.Context | None = None) -> None:
        if hub.subscribers:
            try:
                self._start(span, parent_context)
            except Exception as fault:
                faults.report("tell of a beginning", fault)

    def on_end(self, span: ReadableSpan) -> None:
        if hub.subscribers:
            try:
                self._end(span)
            except Exception as fault:
                faults.report("tell of an end", fault)

    def _start(self, span: Span, parent_context: otel.Context | None) -> None:
        self._forget_what_is_outdated()
        own = span.get_span_context()
        parent = self._nearest_above(span, parent_context)
        given = hear(own.span_id, parent_context)
        attributes = attributes_of(span, None if given is None else given.attributes)
        if len(self._running) >= _MAX_RUNNING:
            self._running.pop(next(iter(self._running)), None)
        if not is_genai(attributes):
            self._running[own.span_id] = parent
            return
        is_chain = event_operation(attributes) in semconv.CHAIN_OPERATIONS
        continues = run_ids.root_of(attributes.get(semconv.RUN_CONTINUES)) if is_chain else None
        running = _RunningSpan(own.span_id, parent, is_chain=is_chain, continues=continues)
        running.given = given
        self._running[own.span_id] = running
        scope = otel.get_value(SCOPE_KEY, parent_context)
        if scope is not None:
            for subscriber in hub.subscribers:
                subscriber.scope_entered(scope, own.span_id)
        running.started = self._publish(at_start(_record(span, own, attributes)), running, attributes)

    def _forget_what_is_outdated(self) -> None:
        """What was known when somebody last listened: spans have ended since, of which nothing was heard."""
        if self._generation != hub.generation:
            self._generation = hub.generation
            self._running = {}

    def _nearest_above(self, span: ReadableSpan, parent_context: otel.Context | None = None) -> _RunningSpan | None:
        """The nearest span above that is remembered. One that began before anybody listened is known by its id alone.

        `parent_context`: where it can be seen, as long as it runs.
        """
        parent = span.parent
        if parent is None or parent.is_remote:
            return None
        if parent.span_id not in self._running:
            seen = trace.get_current_span(parent_context)
            is_outside = seen.get_span_context() == parent and _is_in_no_run(seen)
            self._running[parent.span_id] = None if is_outside else _RunningSpan(parent.span_id, None, is_chain=True)
        return self._running[parent.span_id]

    def _end(self, span: ReadableSpan) -> None:
        own = span.context
        assert own is not None
        self._forget_what_is_outdated()
        running = self._running.pop(own.span_id, None)
        given = None if running is None or running.span_id != own.span_id else running.given
        attributes = attributes_of(span, None if given is None else given.attributes)
        if is_genai(attributes):
            if running is None:
                running = _RunningSpan(own.span_id, self._nearest_above(span), is_chain=True)
            self._ended(span, own, running, attributes)
        for subscriber in hub.subscribers:
            subscriber.span_ended(own.span_id)
            if running is not None and running.span_id == own.span_id and running.continues is not None:
                subscriber.span_ended(running.continues)

    def _ended(
        self, span: ReadableSpan, own: SpanContext, running: _RunningSpan, attributes: Mapping[str, Any]
    ) -> None:
        record = _record(span, own, attributes)
        record["et"] = span.end_time or time.time_ns()
        record["sts"] = span.status.status_code.name
        record["std"] = error_message(span)
        ended, *requested = at_end(record)
        name, span_id = running.failed or (span.name, own.span_id)
        sums: dict[str, Any] = {}
        if issubclass(ended.type, ChainCompleted | ChainError):
            chain = running.chain or _Chain()
            sums = {"model_calls": chain.model_calls, "usage": chain.usage}
            if ended.type is ChainError:
                sums |= {"where": name, "where_span_id": f"{span_id:016x}", "completed": tuple(chain.completed)}
        _add_to_chains(running.parent, span.name, ended, (name, span_id))
        self._publish(ended, running, attributes, sums)
        for event in requested:
            self._publish(event, running, attributes)

    @staticmethod
    def _publish(
        derived: Derived, running: _RunningSpan, attributes: Mapping[str, Any], sums: Mapping[str, Any] = _NOTHING
    ) -> Event:
        event = derived.type(
            run=f"{running.root:016x}",
            sequence=next(running.sequence),
            context=context.of_span(attributes),
            **derived.fields,
            **sums,
        )
        for subscriber in hub.subscribers:
            subscriber.offer(event, running.lineage)
        return event

    def is_running(self, span_id: int) -> bool:
        self._forget_what_is_outdated()
        return any(span_id in (one.span_id, one.continues) for one in list(self._running.values()) if one is not None)

    def increment(self, span: trace.Span, increment: Increment) -> None:
        """Tells of what has been streamed of a call that runs."""
        span_id = identity(span).span_id
        running = self._running.get(span_id)
        if running is None or running.span_id != span_id or not isinstance(running.started, ProviderStarted):
            return  # another provider's, or begun before anybody listened
        started, number = running.started, next(running.deltas)
        told = {name: getattr(started, name) for name in _OF_THE_CALL}
        is_tool = increment.tool_name is not None or increment.tool_call_id is not None
        event = ProviderDelta(
            **told,
            id=f"{started.trace_id}-{started.span_id}-{ProviderDelta.__name__}-{number}",
            time_ns=time.time_ns(),
            number=number,
            kind=increment.kind,
            text=increment.text,
            call=ToolCall(increment.tool_name, increment.tool_call_id) if is_tool else None,
            choice=increment.choice,
        )
        for subscriber in hub.subscribers:
            subscriber.offer(event, running.lineage)


def _is_in_no_run(span: object) -> bool:
    """Whether it is the first span of this process for what it is about, and that is no run: a request to a web server, say."""
    if not isinstance(span, ReadableSpan) or not (span.parent is None or span.parent.is_remote):
        return False
    scope = span.instrumentation_scope
    is_ours = scope is not None and scope.name.startswith("otel_llm")  # which a limit may have left without attributes
    return not is_ours and not is_genai(attributes_of(span))


def _record(span: ReadableSpan, own: SpanContext, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A span as `from_record` reads it."""
    scope = span.instrumentation_scope
    return {
        "t": f"{own.trace_id:032x}",
        "s": f"{own.span_id:016x}",
        "p": None if span.parent is None else f"{span.parent.span_id:016x}",
        "n": span.name,
        "st": span.start_time or span.end_time or time.time_ns(),
        "a": recorded(attributes, "" if scope is None else scope.name),
    }


def _add_to_chains(above: _RunningSpan | None, name: str, ended: Derived, where: tuple[str, int]) -> None:
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
