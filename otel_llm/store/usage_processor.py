"""The span processor that journals every model call, whatever samplers, queues and exporters make of its span."""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_llm.calls import request
from otel_llm.calls.tracing import Given, backstage, hear
from otel_llm.conventions import semconv
from otel_llm.conventions.dialects import is_genai, is_model_call
from otel_llm.conventions.spans import Attributes, attributes_of, is_ours
from otel_llm.store.span_record import end_record, recorded, start_record
from otel_llm.store.store import Store
from otel_llm.support import faults, otel_private
from otel_llm.support.otel_private import SpanFacts

MARK: Final = "_otel_llm_journalled"
"""Set on an ended span that is in the journal, so that an exporter in the same process does not store it again."""

_OPENAI: Final = "openai"
"""What the scopes of instrumentations of that client have in their names."""

MAX_NODES: Final = 20_000
"""Spans that run, as far as they are remembered; those that never end must not fill the memory."""


class _Node:
    """What is known of a span that runs."""

    __slots__ = ("agent", "covered", "given", "is_ours", "keep", "model_call", "parent", "started", "workflow")

    def __init__(self, parent: _Node | None) -> None:
        self.parent = parent
        self.keep = False
        """The span is about GenAI, or above one that is."""
        self.given: Given | None = None
        """What it was given, where it is ours: more than the SDK may let it hold."""
        self.started: dict[str, Any] | None = None
        """Its start record, where it has one."""
        self.model_call = False
        self.is_ours = False
        self.covered = False
        """It is a model call that another span, above or below it, stands for in the account."""
        # The names of the nearest agent and workflow that it runs in.
        self.agent: Any = None
        self.workflow: Any = None
        if parent is not None:
            self.agent = parent.agent
            self.workflow = parent.workflow


class UsageSpanProcessor(SpanProcessor):
    """Journals GenAI spans at their start and their end, and the spans of this process above them at their end.

    No exception leaves it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.exports_to: str | None = None
        """The OTLP endpoint that sampled spans go to beside, where the store is told what has arrived there."""
        self._nodes: dict[int, _Node] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        try:
            nodes = self._nodes
            facts = otel_private.facts_of(span)
            node = _Node(None if facts.parent_id is None else nodes.get(facts.parent_id))
            if len(nodes) >= MAX_NODES:
                self._forget_oldest()
            nodes[facts.span_id] = node
            node.given = given = hear(facts.span_id, parent_context)
            attributes = attributes_of(span, None if given is None else given.attributes)
            if is_genai(attributes):
                self._started(facts, attributes, node)
        except Exception as error:
            faults.report("journal a span", error)

    def _started(self, facts: SpanFacts, attributes: Attributes, node: _Node) -> None:
        record = start_record(facts, attributes)
        if node.given is not None and node.given.aside:
            record |= node.given.aside
        self._complete(record, facts.resource, node)
        node.agent = attributes.get(semconv.AGENT_NAME, node.agent)
        node.workflow = attributes.get(semconv.WORKFLOW_NAME, node.workflow)
        node.started = record
        node.keep = True
        above = node.parent
        while above is not None and not above.keep:
            above.keep = True
            above = above.parent
        if is_model_call(attributes):
            node.model_call = True
            node.is_ours = is_ours(record.get("sc"))
            if node.parent is not None:
                _count_once(node)
            if not node.is_ours and _OPENAI in record.get("sc", "") and request.is_unrecorded():
                node.covered = True  # see `deny`
            if node.covered:
                record["x"] = 1
        self._store.write(record, start_of=facts.span_id)

    def update(self, span: Any) -> None:
        """Journals the start of a running span once more, with what is known of it by now."""
        try:
            span = backstage(span)
            context = span.get_span_context()
            node = self._nodes.get(context.span_id)
            if node is not None and node.started is not None:
                given = node.given
                kept = recorded(
                    attributes_of(span, None if given is None else given.attributes), node.started.get("sc", "")
                )
                record = {**node.started, "n": span.name, "a": kept}
                if given is not None:
                    record |= given.aside
                self._store.write(record, start_of=context.span_id)
        except Exception as error:
            faults.report("journal a span", error)

    def deny(self, span: Any) -> None:
        """A request to OpenAI in this span is no model call: another instrumentation of that client has taken it for one."""
        try:
            node = self._nodes.get(span.get_span_context().span_id)
            if node is not None and node.started is not None and _OPENAI in node.started.get("sc", ""):
                node.covered = node.covered or (node.model_call and not node.is_ours)
        except Exception as error:
            faults.report("look at the span around a request", error)

    def on_end(self, span: ReadableSpan) -> None:
        try:
            span_id = span.context.span_id
            node = self._nodes.get(span_id)
            given = None if node is None else node.given
            attributes = attributes_of(span, None if given is None else given.attributes)
            if not (node is not None and node.keep) and not is_genai(attributes):
                self._nodes.pop(span_id, None)
                return
            started = node.started if node is not None else None
            record = end_record(span, attributes, started, given)
            if started is None:
                self._complete(record, span.resource, node)
            if node is not None and node.covered:
                record["x"] = 1
            self._store.write(record, end_of=None if started is None else span_id)
            self._nodes.pop(span_id, None)  # not before: what comes up on the way must find it for `end_untold`
            setattr(span, MARK, True)
        except Exception as error:
            faults.report("journal a span", error)
            self._nodes.pop(span.context.span_id, None)

    def end_untold(self, span: Any) -> None:
        """Journals the end of a span that has ended, if that is not in the journal: an exception came up before it was."""
        context = span.get_span_context()
        if context is not None and context.span_id in self._nodes and getattr(span, "end_time", None) is not None:
            self.on_end(otel_private.readable(span))

    def _complete(self, record: dict[str, Any], resource: Any, node: _Node | None) -> None:
        """Adds what the span does not say itself: its resource where it is not the journal's, and who it runs for."""
        if resource is not self._store.resource and (told := self._store.resource_for(resource)) is not None:
            record["r"] = told
        if self.exports_to is not None and record["f"] & 1:
            record["o"] = self.exports_to
        if node is not None:
            if node.agent is not None:
                record["ag"] = node.agent
            if node.workflow is not None:
                record["wf"] = node.workflow

    def _forget_oldest(self) -> None:
        try:
            self._nodes.pop(next(iter(self._nodes)), None)
        except (RuntimeError, StopIteration):
            pass  # another thread was faster

    def shutdown(self) -> None:
        self._store.awaits_exports = False  # exporters that were there before us are shut down by now
        self.force_flush()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Everything that has ended is on disk and merged, unless that takes longer than `timeout_millis`."""
        try:
            return self._store.flush(timeout_millis / 1000)
        except Exception as error:
            faults.report("flush the account", error)
            return False


def _count_once(node: _Node) -> None:
    """Settles which of two nested model calls the account counts: two instrumentations report what is one call.

    Ours, if one of them is; of two others the inner one, which is nearer to the request. Two of ours are two calls.
    """
    above = node.parent
    while above is not None and not above.model_call:
        above = above.parent
    if above is None or (above.is_ours and node.is_ours):
        return
    if above.is_ours:
        node.covered = True
    else:
        above.covered = True
