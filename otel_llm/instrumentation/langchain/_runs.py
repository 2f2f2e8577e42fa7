"""The runs under way: who is whose parent, which have a span, and how each ends exactly once."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any
from uuid import UUID

from opentelemetry import context as otel
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, set_span_in_context

from otel_llm import context
from otel_llm.calls import abandoned, hand_over, tracing
from otel_llm.calls.ending import end_span
from otel_llm.calls.parent import Find, Parent, inherit, innermost
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import private
from otel_llm.instrumentation.langchain._models import ModelRequest, ModelRun
from otel_llm.instrumentation.langchain._tree import Part, Shown
from otel_llm.signals import metrics
from otel_llm.support import forks, otel_private

_innermost: ContextVar[Run | None] = ContextVar("otel_llm_innermost_run", default=None)
"""The retriever or model run that goes on here: LangChain's own variable does not tell of these. Never reset: a run that has
ended is passed over, and a reset could fail where a coroutine is closed in a context that is not its own."""


class Run:
    """A run under way, in the tree or not."""

    __slots__ = (
        "agent_name",
        "attributes",
        "context",
        "conversation_configured",
        "conversation_id",
        "conversation_told",
        "hidden_nodes",
        "in_agent",
        "is_open",
        "manager",
        "model",
        "name",
        "operation",
        "outer",
        "parent",
        "pending",
        "request",
        "span",
        "started_ns",
        "stopwatch",
        "workflow_name",
    )

    def __init__(self, parent: Run | None) -> None:
        self.parent = parent
        self.name: str | None = None
        self.operation: str | None = None
        self.span: Span | None = None
        self.attributes: dict[str, Any] = {}
        """What its span was told."""
        self.request: ModelRequest | None = None
        """What a model run asks for, until its call has begun."""
        self.model: ModelRun | None = None
        self.pending: str | None = None
        """Name of the step that this run becomes once something is recorded under it."""
        self.context: otel.Context | None = None
        self.started_ns = 0
        self.stopwatch: metrics.Stopwatch | None = None
        self.manager: weakref.ref[Any] | None = None
        """LangChain's run manager, which alone can end the run: once it is gone, the run was abandoned."""
        self.is_open = True
        self.outer: Run | None = None
        """The one that was innermost before this retriever or model run."""
        self.in_agent = False
        self.hidden_nodes: frozenset[str] = frozenset()
        """The nodes of this agent that are not shown."""
        self.agent_name: str | None = None
        self.workflow_name: str | None = None
        self.conversation_id: str | None = None
        self.conversation_configured: str | None = None
        """What the configuration of the nearest run says that has one; the runs under it inherit that too."""
        self.conversation_told: str | None = None
        """What the metadata of the run say, which they may have inherited from one in another conversation."""
        if parent is not None:
            self.in_agent = parent.in_agent
            self.agent_name = parent.agent_name
            self.workflow_name = parent.workflow_name
            self.conversation_id = parent.conversation_id
            self.conversation_configured = parent.conversation_configured

    @property
    def in_tree(self) -> bool:
        """Whether this run or one above it has a span."""
        run: Run | None = self
        while run is not None:
            if run.span is not None:
                return True
            run = run.parent
        return False

    def is_under(self, other: Run) -> bool:
        """Whether this run is `other` or part of it."""
        run: Run | None = self
        while run is not None:
            if run is other:
                return True
            run = run.parent
        return False


class Runs:
    """Every run under way, by its id. Safe to use from any thread."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.active = True
        self._runs: dict[UUID, Run] = {}
        self._opening = threading.RLock()
        _all.add(self)

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run_id: UUID) -> Run | None:
        return self._runs.get(run_id)

    def parent(self, run_id: UUID | None) -> Run | None:
        """The run with the id of a parent, else the one that encloses this place in the program."""
        run = None if run_id is None else self._runs.get(run_id)
        return self._enclosing() if run is None else run

    # --- beginning ---------------------------------------------------------------------------------------------------
    def begin(
        self, run_id: UUID, parent: Run | None, name: str | None = None, conversation_id: str | None = None
    ) -> Run:
        """A run that passes through, until it is given a span.

        A step under which something of its own name begins is no step: so LangChain calls what it wraps around a model or a
        tool (`with_retry`).
        """
        wrapper = parent
        while wrapper is not None and name is not None and wrapper.pending == name:
            wrapper.pending = None
            wrapper = wrapper.parent
        run = Run(parent)
        run.name = name
        run.conversation_told = conversation_id
        if conversation_id is not None and (parent is None or parent.conversation_told != conversation_id):
            run.conversation_id = conversation_id
        self._runs[run_id] = run
        return run

    def begin_chain(self, run: Run, parent: Run | None, part: Part, said: Mapping[str, Any]) -> None:
        """A chain, agent, graph, node or function, shown as `part` says, with `said` on its span."""
        run.hidden_nodes = part.hidden_nodes
        if part.shown is Shown.ALWAYS:
            if part.operation == semconv.INVOKE_AGENT:
                run.in_agent = True
                run.agent_name = part.name or run.agent_name
            self.open_span(run, part.operation, part.name, said)
        elif part.shown is Shown.WITH_CONTENT and (parent is None or parent.name != part.name):
            run.pending = part.name
            run.started_ns = time.time_ns()
            run.context = otel_private.current_context()

    def begin_retriever(
        self,
        run_id: UUID,
        parent: Run | None,
        name: str,
        said: Mapping[str, Any],
        conversation_id: str | None = None,
    ) -> None:
        """A retriever; what it calls is under it, and `said` is on its span."""
        run = self.begin(run_id, parent, name, conversation_id)
        self.open_span(run, semconv.RETRIEVAL, name, said)
        self.enter(run)

    def open_span(self, run: Run, operation: str, name: str | None, attributes: Mapping[str, Any]) -> None:
        """Starts the span of a run, under the nearest one above it."""
        current = otel_private.current_context() if run.context is None else run.context
        at_start: dict[str, Any] = {semconv.OPERATION: operation, **attributes, **context.attributes(current)}
        inherit(at_start, run)
        if (above := self.parent_in(run.parent)) is not None:
            current = set_span_in_context(innermost(above.span, current), current)
        run.operation = operation
        run.attributes = at_start
        run.span = self.tracer.start_span(
            f"{operation} {name}" if name else operation,
            current,
            SpanKind.INTERNAL,
            at_start,
            start_time=run.started_ns or None,
        )
        if not tracing.is_suppressed(run.span):
            run.stopwatch = metrics.stopwatch(operation, at_start)

    def begin_call(self, run: Run, *, may_adopt: bool = True) -> None:
        """Begins the call of a model run, and offers it to the hook of the client that will carry it out.

        A model inside a model (a router, a guard of the app's own) carries out the call of the outer one.
        """
        request, run.request = run.request, None
        if request is None:
            return
        call = hand_over.adopt() if may_adopt else None
        if call is None:
            if run.conversation_id is not None:
                request.attributes.setdefault(semconv.CONVERSATION_ID, run.conversation_id)
            call = request.begin(self.tracer, self.nearest_parent_in(run.parent), run.started_ns or None)
            call.ask()
        else:
            call.describe(request.operation, request.model, request.attributes, request.characters)
        run.model = ModelRun(call, [request])
        hand_over.offer(call)

    def model_of(self, run: Run) -> ModelRun | None:
        """The call of a model run, begun if nobody has."""
        if run.request is not None:
            self.begin_call(run, may_adopt=False)
        return run.model

    # --- the parent of what begins under a run ------------------------------------------------------------------------
    def parent_in(self, run: Run | None) -> Parent | None:
        """The parent of what begins in `run`: the nearest span above it."""
        above = run
        while run is not None and above is not None:
            if above.pending is not None:
                self._open_pending(above)
            if above.span is not None:
                return Parent(above.span, run.agent_name, run.workflow_name, run.conversation_id)
            above = above.parent
        return None

    def nearest_parent_in(self, run: Run | None) -> Parent | None:
        """Like `parent_in`, and below any span that was opened by hand inside it."""
        found = self.parent_in(run)
        return None if found is None else found._replace(span=innermost(found.span))

    def _open_pending(self, run: Run) -> None:
        with self._opening:
            name, run.pending = run.pending, None
            if name is not None and run.is_open:
                self.open_span(run, semconv.STEP, name, {})
                self._close_if_ended(run)

    @staticmethod
    def enter(run: Run) -> None:
        """Makes a retriever or model run the innermost one in this context, until it has ended."""
        run.outer = _still_open(_innermost.get())
        _innermost.set(run)

    def find_parent(self) -> Parent | None:
        """For a call that no model run offered: the parent in the run that encloses it."""
        return self.parent_in(self._enclosing()) if self._runs else None

    def capture_parent(self) -> Find | None:
        """What `find_parent` says here, for use in another thread. Asked then: a run that nothing is recorded in is not shown."""
        run = self._enclosing()
        return None if run is None else partial(self.parent_in, run)

    def _enclosing(self) -> Run | None:
        """The run that encloses this place in the program."""
        if not self._runs:
            return None
        run_id = private.enclosing_run_id()
        enclosing = None if run_id is None else self._runs.get(run_id)
        inner = _still_open(_innermost.get())
        return enclosing if inner is None or (enclosing is not None and enclosing.is_under(inner)) else inner

    # --- ending ------------------------------------------------------------------------------------------------------
    def end(
        self,
        run_id: UUID,
        status: str,
        error_type: str | None = None,
        *,
        error: BaseException | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Run | None:
        """Ends a run and its span. Returns it, None where it has ended before."""
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.manager = (
                None  # nothing of ours runs when the manager goes: what a signal handler raised there would be lost
            )
            if attributes and run.span is not None:
                run.attributes.update(attributes)
                run.span.set_attributes(attributes)
            self._close(run, status, error_type, error=error)
        return run

    def end_later(self, run_id: UUID, status: str, error_type: str | None) -> Run | None:
        """Like `end`, for where no span can be ended: inside a finalizer."""
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.is_open = False
            if run.stopwatch is not None:
                run.stopwatch.halt()
            if run.span is not None:
                abandoned.later(partial(self._close, run, status, error_type, time.time_ns()))
        return run

    def _close(
        self,
        run: Run,
        status: str,
        error_type: str | None = None,
        ended_ns: int | None = None,
        *,
        error: BaseException | None = None,
    ) -> None:
        # Without a lock: the garbage collector may close a generator of LangChain's, and so a run, inside any other lock.
        run.is_open = False
        span = run.span
        if span is None:
            return
        end_span(span, run.attributes, status, error=error, error_type=error_type, end_ns=ended_ns)
        if run.stopwatch is not None:
            run.stopwatch.stop(error_type, span)

    def _close_if_ended(self, run: Run) -> None:
        """For a span that was opened while another thread, which may not have seen it, ended the run."""
        if not run.is_open:
            self._close(run, semconv.OK)

    def end_under(self, ancestor: Run, error_type: str | None) -> None:
        """Ends the tools and retrievers under a cancelled run: LangChain tells them nothing. Chains and models end themselves."""
        for run_id, run in list(self._runs.items()):
            if run.operation in (semconv.EXECUTE_TOOL, semconv.RETRIEVAL) and run.is_under(ancestor):
                self.end(run_id, semconv.CANCELLED, error_type)

    def watch(self, run_id: UUID, manager: Any) -> None:
        """Ties a run to the manager that can end it."""
        run = self._runs.get(run_id)
        if run is not None and run.manager is None:
            run.manager = weakref.ref(manager, partial(self._abandon, run_id))

    def managers(self) -> list[Any]:
        """The managers of the runs under way."""
        told = [None if run.manager is None else run.manager() for run in list(self._runs.values())]
        return [manager for manager in told if manager is not None]

    def _abandon(self, run_id: UUID, manager: weakref.ref[Any]) -> None:
        # Called by the garbage collector, perhaps inside a lock that ending a span needs.
        if (run := self._runs.get(run_id)) is None or run.manager is not manager:
            return
        run = self.end_later(run_id, semconv.CANCELLED, None)
        if run is not None and run.model is not None:
            run.model.abandon()

    # --- stopping ----------------------------------------------------------------------------------------------------
    def stop(self) -> None:
        """Takes no further runs; those under way end as they would."""
        self.active = False

    def belong_to_parent_process(self) -> None:
        """In a forked child: the runs go on as places to hang spans on, but their own spans are the parent's to end."""
        self._opening = threading.RLock()
        for run in list(self._runs.values()):
            run.pending = None
            run.model = None
            run.stopwatch = None
            if run.span is not None:
                run.span = NonRecordingSpan(run.span.get_span_context())


def _still_open(run: Run | None) -> Run | None:
    while run is not None and not run.is_open:
        run = run.outer
    return run


_all = forks.members(forks.Turn.LANGCHAIN_RUNS, Runs.belong_to_parent_process)
