"""What a new call, run or scope belongs under, where frameworks know better than the OpenTelemetry context."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from opentelemetry import context as otel
from opentelemetry.trace import Span
from opentelemetry.trace import get_current_span as current_span

from otel_llm.calls import tracing
from otel_llm.conventions import semconv
from otel_llm.support import faults


class Parent(NamedTuple):
    """The span that a new one belongs under, and what it inherits from there."""

    span: Span
    agent_name: str | None = None
    workflow_name: str | None = None
    conversation_id: str | None = None
    """What the framework calls the conversation; an `llm_context` of the app's knows better."""


class Inherited(Protocol):
    """What everything under a run takes over from it."""

    @property
    def agent_name(self) -> str | None: ...
    @property
    def workflow_name(self) -> str | None: ...
    @property
    def conversation_id(self) -> str | None: ...


def inherit(attributes: dict[str, Any], inherited: Inherited) -> None:
    """Adds what is inherited to the attributes of a new span; what they say themselves counts more."""
    if inherited.agent_name is not None:
        attributes.setdefault(semconv.AGENT_NAME, inherited.agent_name)
    if inherited.workflow_name is not None:
        attributes.setdefault(semconv.WORKFLOW_NAME, inherited.workflow_name)
    if inherited.conversation_id is not None:
        attributes.setdefault(semconv.CONVERSATION_ID, inherited.conversation_id)


Find = Callable[[], Parent | None]


class ParentSource(Protocol):
    """A framework whose runs are not attached to the OpenTelemetry context."""

    def find_parent(self) -> Parent | None:
        """The parent of what begins here."""

    def capture_parent(self) -> Find | None:
        """What finds, elsewhere and later (in a thread, say), the parent of what is begun here."""


sources: list[ParentSource] = []
"""Asked in turn."""

carried: ContextVar[Find | None] = ContextVar("otel_llm_carried_parent", default=None)
"""What finds the parent in a thread or process that does work which was begun elsewhere."""


def find_parent() -> Parent | None:
    """The parent of what begins here; None where the OpenTelemetry context alone tells."""
    for source in sources:
        try:
            found = source.find_parent()
        except Exception as fault:
            faults.report("find the parent of a call", fault)
            continue
        if found is not None and (found := _counting_here(found)) is not None:
            return found
    if (find := carried.get()) is not None and (found := find()) is not None:
        return _counting_here(found)
    return None


def capture_parent() -> Find | None:
    """What finds, elsewhere and later, the parent of what is begun here; None where there is nothing to carry."""
    find = carried.get()
    for source in sources:
        try:
            find = source.capture_parent() or find
        except Exception as fault:
            faults.report("find the parent of work in a thread", fault)
    return find


def _counting_here(found: Parent) -> Parent | None:
    """`found`, or what still counts of it below a span that was opened inside it: the conversation goes on there."""
    span = innermost(found.span)
    if span is found.span:
        return found
    return None if found.conversation_id is None else Parent(span, conversation_id=found.conversation_id)


def innermost(span: Span, at: otel.Context | None = None) -> Span:
    """`span`, or the current span where that was opened inside it (by hand, say)."""
    current = current_span(at)
    ids = tracing.identity(current)
    if span is current or not ids.is_valid or ids.trace_id != tracing.identity(span).trace_id:
        return span
    own, others = getattr(span, "start_time", None), getattr(current, "start_time", None)
    return current if own is not None and others is not None and others > own else span
