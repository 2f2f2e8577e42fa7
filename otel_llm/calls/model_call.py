"""The life of one model call: begin, first chunk, finish once.

A `ModelCall` owns one span. Whoever carries the call out (the hook on a client) begins it, tells it of the first and last
chunk, and finishes it; the first `finish` counts, later ones do nothing, so error paths may overlap freely.

Two layers can see the same call: LangChain starts a run, and the OpenAI client inside it sends the request. LangChain
*offers* its call in a context variable; the client's hook *claims* it and finishes it with the provider's own numbers. A call
that nobody claimed is finished by LangChain. So one model call is one span, whoever is installed.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, NamedTuple

from opentelemetry import context as otel
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import get_current_span as current_span

from otel_llm import context
from otel_llm.calls import tracing
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import semconv, tool_calls
from otel_llm.conventions.token_usage import Usage
from otel_llm.settings import settings
from otel_llm.signals import metrics
from otel_llm.support import faults

_KEY = otel.create_key("otel-llm-call")
_ERROR = Status(StatusCode.ERROR)  # without a description: error texts can echo the prompt

OK: Final = "ok"
ERROR: Final = "error"
CANCELLED: Final = "cancelled"
PARTIAL: Final = "partial"


_CANCELLATIONS: Final = frozenset({"CancelledError", "Cancelled"})
"""Cancellations that are an `Exception`: that of `concurrent.futures`, Twisted's, Temporal's."""


def status_of(error: BaseException | None) -> str:
    """How a block, a function or a run has ended that was left by `error`; None where it came to its end.

    What is no `Exception` tells no failure: it tells the work to stop, whoever says so (asyncio, trio, gevent, curio, Ctrl-C,
    `sys.exit`). So no event loop need be known here. A group is a failure if anything in it is one.
    """
    if error is None:
        return OK
    if isinstance(error, GeneratorExit):
        return PARTIAL
    if isinstance(error, BaseExceptionGroup):
        inside = {status_of(one) for one in error.exceptions}
        return next(status for status in (ERROR, CANCELLED, PARTIAL) if status in inside)
    if not isinstance(error, Exception):
        return CANCELLED
    return CANCELLED if any(cls.__name__ in _CANCELLATIONS for cls in type(error).__mro__) else ERROR


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


class Place(NamedTuple):
    """Where in the tree of a run a model call stands."""

    span: Span
    agent_name: str | None = None
    workflow_name: str | None = None
    conversation_id: str | None = None
    """What the framework calls the conversation; an `llm_context` of the app's knows better."""


finders: list[Callable[[], Place | None]] = []
"""Asked in turn for the place of a new call: frameworks whose runs are not attached to the OpenTelemetry context register here."""


guides: list[Callable[[], Callable[[], Place | None] | None]] = []
"""Asked for what finds the place of a call that is made elsewhere, in a thread say, by work that was begun here."""


watchers: list[Callable[[Span], None]] = []
"""Told of the span of a running call when more is known of it, which counts if the process dies before its end."""


end_watchers: list[Callable[[Any], None]] = []
"""Told of the span of a call that has ended, perhaps without a word to its processors: an exception may have come up on the way."""


deniers: list[Callable[[Span], None]] = []
"""Told of the span around a request of a client's that is no model call, in case somebody else has taken it for one."""


class ModelCall:
    """One model call and its span, from begin to the one finish. Safe to finish from any thread."""

    __slots__ = (
        "__weakref__",
        "_adopted",
        "_chunk_times",
        "_claimed",
        "_endings",
        "_process",
        "attempts",
        "facts",
        "first_chunk_ns",
        "is_followed",
        "last_chunk_ns",
        "model",
        "propagates",
        "said",
        "span",
        "started_ns",
        "started_perf_ns",
    )

    def __init__(
        self,
        tracer: Tracer,
        operation: str,
        model: str | None,
        attributes: Mapping[str, Any],
        *,
        place: Place | None = None,
        started_ns: int | None = None,
    ) -> None:
        """Starts the span.

        Args:
            operation: `gen_ai.operation.name`.
            model: `gen_ai.request.model`, None where the request names none.
            attributes: everything else that is known at the start; samplers decide on it. Content is in structured form here,
                as in every method that takes attributes.
            place: the parent; looked up where it is not given.
            started_ns: wall clock in nanoseconds, for a call that began earlier; default now.
        """
        self.started_ns = started_ns or time.time_ns()
        self.started_perf_ns = time.perf_counter_ns() - (time.time_ns() - self.started_ns if started_ns else 0)
        self.first_chunk_ns: int | None = None
        self.last_chunk_ns: int | None = None
        self.attempts: int | None = None
        self.model = model
        self.is_followed = False
        """Whether somebody follows its answer, and ends it when that is dropped."""
        self.propagates = False
        """Whether the provider may see our trace context (`OTEL_LLM_PROPAGATE_TO`)."""
        self._chunk_times: metrics.ChunkTimes | None = None
        self._adopted = threading.Lock()
        self._claimed = threading.Lock()
        self._process = _process
        self.__class__ = _Open
        self._endings: list[object] = []
        """How it ended, by each who said so: the first counts."""
        if place is None:
            place = find_place()
        parent = otel.get_current()
        at_start: dict[str, Any] = {semconv.OPERATION: operation, **attributes, **context.attributes(parent)}
        if model is not None:
            at_start[semconv.REQUEST_MODEL] = model
        if place is not None:
            parent = set_span_in_context(place.span, parent)
            if place.agent_name is not None:
                at_start[semconv.AGENT_NAME] = place.agent_name
            if place.workflow_name is not None:
                at_start[semconv.WORKFLOW_NAME] = place.workflow_name
            if place.conversation_id is not None:
                at_start.setdefault(semconv.CONVERSATION_ID, place.conversation_id)
        self.said: dict[str, Any] | None = None
        """What the event tells of the content, in structured form."""
        if settings().captures_content:
            at_start = self._take_content(at_start)
        self.facts = at_start
        """The attributes so far, whole: a span that nobody records has none, and the SDK's limits cut those of any other."""
        self.span = tracer.start_span(
            f"{operation} {model}" if model else operation,
            parent,
            SpanKind.CLIENT,
            at_start,
            tool_calls.links(returned) if (returned := at_start.get(semconv.RETURNED_TOOL_IDS)) else (),
            start_time=self.started_ns,
        )

    def describe(self, operation: str, model: str | None, attributes: Mapping[str, Any]) -> None:
        """Adds what is known to the layer that took the call over; it is nearer to the provider."""
        returned = attributes.get(semconv.RETURNED_TOOL_IDS)
        if returned and not getattr(self.span, "links", ()):
            for link in tool_calls.links(returned):
                self.span.add_link(link.context, link.attributes)
        if settings().captures_content:
            attributes = self._take_content(attributes)
        self.facts.update(attributes)
        self.span.set_attributes(attributes)
        if model is not None and model != self.model:
            self.model = self.facts[semconv.REQUEST_MODEL] = model
            self.span.set_attribute(semconv.REQUEST_MODEL, model)
            self.span.update_name(f"{operation} {model}")
        self._tell()

    def _take_content(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with their content as the span takes it; keeps what the event will tell."""
        from otel_llm.content import capture

        on_span, in_event = capture.split(attributes)
        if in_event:
            self.said = {**(self.said or {}), **in_event}
        return on_span

    def context(self) -> otel.Context:
        """The context for the request itself: this span is current, and `wiring` withholds all of it from the provider."""
        return otel.set_value(_KEY, self, set_span_in_context(self.span))

    def chunk(self, response_model: str | None = None) -> None:
        """Notes the time of a chunk of a stream. Called for each, before the app sees it.

        `response_model`: what the chunks before have told of it.
        """
        before, self.last_chunk_ns = self.last_chunk_ns, time.perf_counter_ns()
        if self._chunk_times is not None and before is not None:
            self._chunk_times.record((self.last_chunk_ns - before) / 1e9, response_model)
        elif self.first_chunk_ns is None:
            self.first_chunk_ns = now = self.last_chunk_ns
            if not tracing.is_suppressed(self.span):
                self._chunk_times = metrics.chunk_times(self.facts, self.span)
            seconds = self.facts[semconv.TIME_TO_FIRST_CHUNK] = (now - self.started_perf_ns) / 1e9
            self.span.set_attribute(semconv.TIME_TO_FIRST_CHUNK, seconds)
            self._tell()

    def _tell(self) -> None:
        for watcher in watchers:
            watcher(self.span)

    @property
    def finished(self) -> bool:
        return bool(self._endings)

    @property
    def is_waiting(self) -> bool:
        """Whether no request and no answer have been seen of it."""
        return not (self._claimed.locked() or self._endings or self.first_chunk_ns)

    def finish(
        self,
        status: str,
        *,
        usage: Usage | None = None,
        error: BaseException | None = None,
        error_type: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        ended_perf_ns: int | None = None,
    ) -> None:
        """Ends the span with what is known at the end. Only the first call counts.

        Args:
            status: `ok`, `error`, `cancelled` or `partial`.
            usage: what the provider reported; None where it reported nothing.
            error: what the app gets to see; only its class is recorded.
            error_type: HTTP status or class name, where it is better known than from `error`.
            attributes: response id, model, finish reasons and the like.
            ended_perf_ns: when it ended, by the monotonic clock; default now. A stream that the app lets go late has ended with
                its last chunk, but one that hung until it was given up took until then.
        """
        if self._process is not _process:
            return  # a forked child holds copies of its parent's calls: they are the parent's to finish
        if error_type is None and error is not None:
            error_type = error_type_of(error)
        ended_perf_ns = ended_perf_ns or time.perf_counter_ns()
        faults.surely(partial(self._finish, object(), status, usage, error, error_type, attributes, ended_perf_ns))

    def _finish(
        self,
        ending: object,
        status: str,
        usage: Usage | None,
        error: BaseException | None,
        error_type: str | None,
        attributes: Mapping[str, Any] | None,
        ended_perf_ns: int,
    ) -> None:
        if not self._endings:
            self._endings.append(ending)  # one step under the GIL
        if self._endings[0] is not ending:
            return
        if getattr(self.span, "end_time", None) is None:  # else this is done again, and the span has ended
            try:
                self._describe_end(status, usage, error, error_type, attributes)
            except Exception as fault:
                faults.report("describe a finished call", fault)
        self._signal(usage, error, error_type, self._end(ended_perf_ns))
        self.__class__ = ModelCall

    def _describe_end(
        self,
        status: str,
        usage: Usage | None,
        error: BaseException | None,
        error_type: str | None,
        attributes: Mapping[str, Any] | None,
    ) -> None:
        at_end: dict[str, Any] = {semconv.STATUS: status}
        if attributes:
            at_end.update(attributes)
            if semconv.REQUESTED_TOOL_IDS in attributes:
                tool_calls.remember(attributes, self.span.get_span_context())
        if usage is not None:
            at_end.update(usage.attributes())
            at_end[semconv.USAGE_SOURCE] = "reported"
        if self.attempts is not None:
            at_end[semconv.ATTEMPTS] = self.attempts
        if error_type is not None:
            at_end[semconv.ERROR_TYPE] = error_type
        if error is not None and status == ERROR and is_not_sent(error):
            at_end[semconv.NOT_SENT] = True
        captures = settings().captures_content
        if captures:
            at_end = self._take_content(at_end)
        self.facts.update(at_end)
        self.span.set_attributes(at_end)
        if status in (ERROR, CANCELLED):
            self.span.set_status(_failed(self.span, error) if captures and error is not None else _ERROR)

    def _end(self, ended_perf_ns: int | None = None) -> int:
        """Ends the span; returns when, in nanoseconds since 1970."""
        # Durations come from the monotonic clock: a wall clock that is set back gives no negative ones.
        end_ns = self.started_ns + (ended_perf_ns or time.perf_counter_ns()) - self.started_perf_ns
        try:
            if self.span.is_recording():
                self.span.end(end_ns)
            else:  # not recorded, or this is done again: what came up may have kept the account from being told
                for watcher in end_watchers:
                    watcher(self.span)
        except Exception as fault:  # a span processor of the app's that raises
            faults.report("end a span", fault)
        return end_ns

    def _signal(self, usage: Usage | None, error: BaseException | None, error_type: str | None, end_ns: int) -> None:
        """Metrics and events, after the account: it must not wait for them."""
        if tracing.is_suppressed(self.span):
            return  # whoever suppresses ours sends its own
        try:
            if metrics.wanted():
                first = None if self.first_chunk_ns is None else (self.first_chunk_ns - self.started_perf_ns) / 1e9
                at = set_span_in_context(self.span)
                metrics.record(self.facts, usage, error_type, (end_ns - self.started_ns) / 1e9, first, at)
            if settings().capture.in_event and (self.said or error is not None):
                from otel_llm.signals import events

                events.emit(self.facts, self.said, error, set_span_in_context(self.span), end_ns)
        except Exception as fault:
            faults.report("signal the end of a call", fault)

    def abandon(
        self, status: str = PARTIAL, usage: Usage | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Finishes later, on another stack, as of now.

        For finalizers: they run wherever the garbage collector does, perhaps inside a lock that ending a span needs.
        """
        if not self.finished:
            ended = self.dropped_perf_ns()
            later(partial(self.finish, status, usage=usage, attributes=attributes, ended_perf_ns=ended))

    def dropped_perf_ns(self) -> int:
        """When a call ended that is dropped now: nobody knows for how long it was not wanted, its last chunk was."""
        return self.last_chunk_ns or time.perf_counter_ns()

    def _let_go(self, ended_perf_ns: int) -> None:
        self.finish(CANCELLED, ended_perf_ns=ended_perf_ns)
        if self.span.is_recording():  # what came up did so within `finish`
            self._end(ended_perf_ns)


class _Open(ModelCall):
    """A call that has not ended. One that has is plain, so that nothing of ours runs when it goes: Python drops whatever a signal
    handler of the app's raises in a finalizer."""

    __slots__ = ()

    def __del__(self) -> None:
        # Nobody is left to finish it: something like KeyboardInterrupt came up in the midst of our own lines. (Where its answer
        # is followed, whoever follows it knows more of how it ended, and finishes it.)
        try:
            given_up = not self.is_followed or self._endings
            if given_up and self._process is _process and self.span.is_recording():
                later(partial(self._let_go, self.dropped_perf_ns()))
        except Exception:
            pass  # it never got a span, or the interpreter is shutting down


def _failed(span: Span, error: BaseException) -> Status:
    from otel_llm.content import capture

    return capture.failed(span, error)


_abandoned: deque[Callable[[], None]] = deque()


def later(finish: Callable[[], None]) -> None:
    """Has `finish_abandoned` call this, so that a finalizer need not end a span itself."""
    _abandoned.append(finish)


def finish_abandoned() -> None:
    """Ends what was dropped unfinished. The store's background thread, the next call and `flush()` do this."""
    while _abandoned:
        try:
            finish = _abandoned.popleft()
        except IndexError:  # another thread was quicker
            return
        finish()


_process = object()
"""Stands for this process; another after a fork."""


def process() -> object:
    """Stands for this process. A forked child, which gets another, leaves its parent's spans for the parent to end."""
    return _process


def _after_fork_in_child() -> None:
    global _process
    _process = object()
    _abandoned.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def in_flight(current: otel.Context | None = None) -> ModelCall | None:
    """The call whose request is being made in this context, if any."""
    call = otel.get_value(_KEY, current)
    return call if isinstance(call, ModelCall) else None


class Aside:
    """A request to a provider that is no call of a model: nothing goes out with it either."""

    __slots__ = ("finished", "propagates")

    def __init__(self, propagates: bool) -> None:
        self.propagates = propagates
        self.finished = False

    def context(self) -> otel.Context:
        """The context for the request itself."""
        return otel.set_value(_KEY, self)


def is_aside(current: otel.Context | None = None) -> bool:
    """Whether a request that is no model call is being made in this context."""
    request = otel.get_value(_KEY, current)
    return isinstance(request, Aside) and not request.finished


def enter(request: ModelCall | Aside) -> None:
    """Makes the context of `request` the current one. Whoever will `leave` it keeps the one before."""
    otel.attach(request.context())


def leave(request: ModelCall | Aside, outside: otel.Context) -> None:
    """Undoes `enter`: `outside` is the current context again.

    Changes nothing where it is not inside: a coroutine that is dropped is closed wherever that happens.
    """
    if otel.get_value(_KEY) is request:
        otel.attach(outside)


def withholds(current: otel.Context | None = None) -> bool:
    """Whether what is sent in this context may go to a model provider that is to get no trace context and no baggage."""
    request = otel.get_value(_KEY, current)
    # A thread that was started during a request keeps its context; once that is over, it is no request any more.
    if isinstance(request, ModelCall | Aside) and not request.finished:
        return not request.propagates
    # Offered, and a client may be asking that nothing of ours is on.
    return any(call.is_waiting for call in _offered.get())


def find_place() -> Place | None:
    """The place of a call that begins here, by the frameworks that know better than the OpenTelemetry context."""
    for finder in finders:
        try:
            place = finder()
        except Exception as fault:
            faults.report("find the parent of a call", fault)
            continue
        if place is not None and (place := _here(place)) is not None:
            return place
    if (find := _brought.get()) is not None and (place := find()) is not None:
        return _here(place)
    return None


def _here(place: Place) -> Place | None:
    """`place`, or what still counts of it below a span that was opened inside it: the conversation goes on there."""
    span = nearer(place.span)
    if span is place.span:
        return place
    return None if place.conversation_id is None else Place(span, conversation_id=place.conversation_id)


def nearer(span: Span, at: otel.Context | None = None) -> Span:
    """`span`, or the current span where that was opened inside it (by hand, say)."""
    current = current_span(at)
    return current if _is_older(span, current) else span


def _is_older(span: Span, other: Span) -> bool:
    """Whether `other` was opened inside `span` (by hand, say), which makes it the nearer parent."""
    ids = tracing.identity(other)
    if span is other or not ids.is_valid or ids.trace_id != tracing.identity(span).trace_id:
        return False
    own, others = getattr(span, "start_time", None), getattr(other, "start_time", None)
    return own is not None and others is not None and others > own


# --- work that is done elsewhere -------------------------------------------------------------------------------------
_brought: ContextVar[Callable[[], Place | None] | None] = ContextVar("otel_llm_brought_place", default=None)


class Belongings(NamedTuple):
    """What work takes with it to another thread, besides the OpenTelemetry context."""

    find: Callable[[], Place | None] | None
    offered: tuple[ModelCall, ...]

    def unpack(self) -> tuple[Any, Any]:
        """Makes them count in this thread; returns what `put_back` wants."""
        return _brought.set(self.find), _offered.set(self.offered)


def belongings() -> Belongings | None:
    """What work that is begun here takes with it; None where there is nothing."""
    find = _brought.get()
    for guide in guides:
        try:
            find = guide() or find
        except Exception as fault:
            faults.report("find the parent of work in a thread", fault)
    offered = tuple(call for call in _offered.get() if call.is_waiting)
    return Belongings(find, offered) if find is not None or offered else None


def put_back(tokens: tuple[Any, Any]) -> None:
    """Undoes `Belongings.unpack`."""
    _brought.reset(tokens[0])
    _offered.reset(tokens[1])


# --- one call seen by two layers -------------------------------------------------------------------------------------
_offered: ContextVar[tuple[ModelCall, ...]] = ContextVar("otel_llm_offered_calls", default=())
_ANSWERED_IN_TEXT = frozenset({semconv.CHAT, semconv.TEXT_COMPLETION, semconv.GENERATE_CONTENT})


def offer(*offered: ModelCall) -> None:
    """Lets a client's hook in this context (or a copy of it) take the calls over, one request each, in this order.

    Never reset: a call that has finished, or has begun to answer, is no offer any more.
    """
    _offered.set(offered)


def claim(operation: str) -> ModelCall | None:
    """Takes over the first call offered here that nobody has claimed, for a request that does `operation`.

    The models are not compared: a framework's name for one (a deployment, an alias) need not be the one sent. The operation
    tells a model's own request from others made on its way: the embeddings of a semantic cache, a moderation.
    """
    if operation not in _ANSWERED_IN_TEXT:
        return None
    for call in _offered.get():
        if call.is_waiting and call._claimed.acquire(blocking=False):
            return call
    return None


def adopt() -> ModelCall | None:
    """Takes over the first call offered here for a run inside it, which offers it in turn.

    A model that hands its prompt to another model makes one call, not two.
    """
    for call in _offered.get():
        if call.is_waiting and call._adopted.acquire(blocking=False):
            return call
    return None


def is_claimed(call: ModelCall) -> bool:
    """Whether a client's hook has taken the call over, and will finish it."""
    return call._claimed.locked()
