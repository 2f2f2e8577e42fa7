"""The life of one model call: begin, first chunk, finish once.

A `ModelCall` owns one span. Whoever carries the call out (the hook on a client) begins it, tells it of the first and last
chunk, and finishes it; the first `finish` counts, later ones do nothing, so error paths may overlap freely.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from opentelemetry.trace import SpanKind, set_span_in_context

from otel_llm import context
from otel_llm.calls import abandoned, admittance, parent, tracing
from otel_llm.calls.ending import end_span, error_type_of, is_not_sent
from otel_llm.calls.listeners import listeners
from otel_llm.calls.parent import Parent, inherit
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import semconv, tool_calls
from otel_llm.conventions.token_usage import Usage
from otel_llm.settings import settings
from otel_llm.signals import metrics
from otel_llm.support import faults, otel_private

_NEVER: Final = 2**63
_PROGRESS_NS: Final = 250 * 10**6
"""How long a stream runs until it is noted how much of it has come, should the process die; the longer it has run, the longer."""
_PROGRESS_PART: Final = 3
_WRITES: Final = frozenset({semconv.CHAT, semconv.TEXT_COMPLETION, semconv.GENERATE_CONTENT})
"""Operations whose answer is text."""


class Arriving(Protocol):
    """An answer, as far as it has come."""

    characters: int
    """Of everything that the model has written."""
    reasoning_characters: int
    """Those of them that are its reasoning."""


class _Ending(NamedTuple):
    status: str
    usage: Usage | None
    error: BaseException | None
    error_type: str | None
    attributes: Mapping[str, Any]
    perf_ns: int


class ModelCall:
    """One model call and its span, from begin to the one finish. Safe to finish from any thread."""

    __slots__ = (
        "__weakref__",
        "_aside",
        "_chunk_times",
        "_conversation_is_asked",
        "_endings",
        "_held",
        "_process",
        "_progress_ns",
        "adopted",
        "answer",
        "attempts",
        "attributes",
        "claimed",
        "event_content",
        "first_chunk_ns",
        "is_followed",
        "last_chunk_ns",
        "model",
        "propagates",
        "quiet_until_ns",
        "refusal",
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
        under: Parent | None = None,
        started_ns: int | None = None,
        characters: int | None = None,
    ) -> None:
        """Starts the span.

        Args:
            operation: `gen_ai.operation.name`.
            model: `gen_ai.request.model`, None where the request names none.
            attributes: everything else that is known at the start; samplers decide on it. Content is in structured form here,
                as in every method that takes attributes.
            under: the parent; looked up where it is not given.
            started_ns: wall clock in nanoseconds, for a call that began earlier; default now.
            characters: of the text that it asks with, for the account alone; None where that is not known.
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
        self.answer: Arriving | None = None
        """What its answer is read into, while it comes."""
        self._aside: dict[str, Any] = {} if characters is None else {semconv.INPUT_CHARACTERS: characters}
        self._progress_ns = _NEVER
        self.quiet_until_ns = 0
        """Until when, by the monotonic clock, nothing is to be done for a chunk but to note its time in `last_chunk_ns`."""
        self._chunk_times: metrics.ChunkTimes | None = None
        self._held: admittance.Held | None = None
        """What is set aside for it in the budgets that it falls under."""
        self.refusal: Exception | None = None
        """Why it may not be made, for whoever is about to make it: to be raised in its place."""
        self.adopted = threading.Lock()
        self.claimed = threading.Lock()
        self._process = abandoned.process()
        self.__class__ = _Open
        self._endings: list[_Ending] = []
        """How it ended, by each who said so: the first counts."""
        if under is None:
            under = parent.find_parent()
        around = otel_private.current_context()
        asked = context.attributes(around)
        self._conversation_is_asked = semconv.CONVERSATION_ID in asked
        """Whether the app has said which conversation it is: what the request and the answer call it counts less."""
        at_start: dict[str, Any] = {semconv.OPERATION: operation, **attributes, **asked}
        if model is not None:
            at_start[semconv.REQUEST_MODEL] = model
        if under is not None:
            around = set_span_in_context(under.span, around)
            inherit(at_start, under)
        self.event_content: dict[str, Any] | None = None
        """What the event tells of the content, in structured form."""
        if settings().captures_content:
            at_start = self._take_content(at_start)
        self.attributes = at_start
        """The attributes so far, whole: a span that nobody records has none, and the SDK's limits cut those of any other."""
        self.span = tracer.start_span(
            f"{operation} {model}" if model else operation,
            around,
            SpanKind.CLIENT,
            at_start,
            tool_calls.links(returned) if (returned := at_start.get(semconv.RETURNED_TOOL_IDS)) else (),
            start_time=self.started_ns,
            aside=self._aside,
        )

    def ask(self) -> None:
        """Asks whether it may be made, before it is: once, by the first layer that sees it. One that may not has ended then."""
        if admittance.gate is None or self._held is not None or self._endings:
            return
        try:
            characters = self._aside.get(semconv.INPUT_CHARACTERS)
            answer = admittance.gate.admit(self.attributes, self.span, characters)
        except Exception as fault:
            faults.report("ask whether a budget has room for a call", fault)
            return
        if isinstance(answer, Exception):
            self.refuse(answer)
        else:
            self._held = answer

    def hold(self, held: admittance.Held | None) -> None:
        """Takes over what was set aside for it before it began; gives it back where it has something of its own."""
        if held is not None and self._held is None and not self._endings:
            self._held = held
        elif held is not None:
            held.release()

    def refuse(self, refusal: Exception) -> None:
        """Ends it: it is not made, because of a budget."""
        held, self._held = self._held, None
        if held is not None:
            held.release()
        self.refusal = refusal
        self.finish(semconv.REFUSED, error=refusal)

    def describe(
        self, operation: str, model: str | None, attributes: Mapping[str, Any], characters: int | None = None
    ) -> None:
        """Adds what is known to the layer that took the call over; it is nearer to the provider."""
        if operation:
            self._aside[semconv.INPUT_CHARACTERS] = characters
        if self._conversation_is_asked and semconv.CONVERSATION_ID in attributes:
            attributes = {name: value for name, value in attributes.items() if name != semconv.CONVERSATION_ID}
        returned = attributes.get(semconv.RETURNED_TOOL_IDS)
        if returned and not getattr(self.span, "links", ()):
            for link in tool_calls.links(returned):
                self.span.add_link(link.context, link.attributes)
        if settings().captures_content:
            attributes = self._take_content(attributes)
        self.attributes.update(attributes)
        otel_private.set_attributes(self.span, attributes)
        if model is not None and model != self.model:
            self.model = self.attributes[semconv.REQUEST_MODEL] = model
            self.span.set_attribute(semconv.REQUEST_MODEL, model)
            self.span.update_name(f"{operation} {model}")
        self._tell()

    def _take_content(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with their content as the span takes it; keeps what the event will tell."""
        from otel_llm.content import capture

        on_span, in_event = capture.split(attributes)
        if in_event:
            self.event_content = {**(self.event_content or {}), **in_event}
        return on_span

    def chunk(self, response_model: str | None = None) -> None:
        """Notes the time of a chunk of a stream. Called for each, before the app sees it.

        `response_model`: what the chunks before have told of it.
        """
        before, self.last_chunk_ns = self.last_chunk_ns, time.perf_counter_ns()
        if self.last_chunk_ns > self._progress_ns:
            self._tell_progress(self.last_chunk_ns)
        if self._chunk_times is not None and before is not None:
            self._chunk_times.record((self.last_chunk_ns - before) / 1e9, response_model)
        elif self.first_chunk_ns is None:
            self.first_chunk_ns = now = self.last_chunk_ns
            if self.answer is not None and settings().estimate:
                self._progress_ns = now + _PROGRESS_NS
            if not tracing.is_suppressed(self.span):
                self._chunk_times = metrics.chunk_times(self.attributes, self.span)
            seconds = self.attributes[semconv.TIME_TO_FIRST_CHUNK] = (now - self.started_perf_ns) / 1e9
            self.span.set_attribute(semconv.TIME_TO_FIRST_CHUNK, seconds)
            self._tell()
        if self._chunk_times is None:
            self.quiet_until_ns = self._progress_ns

    def _tell_progress(self, now: int) -> None:
        """Has it on record how much of the answer has come, should the process die: less and less often."""
        self._measure()
        self._tell()
        self._progress_ns = now + max(_PROGRESS_NS, (now - (self.first_chunk_ns or now)) // _PROGRESS_PART)

    def _measure(self) -> None:
        """Notes how long the answer is by now."""
        answer = self.answer
        if answer is None or not settings().estimate or self.attributes.get(semconv.OPERATION) not in _WRITES:
            return
        if answer.characters or self.first_chunk_ns is not None:
            self._aside[semconv.OUTPUT_CHARACTERS] = answer.characters
            if answer.reasoning_characters:
                self._aside[semconv.REASONING_CHARACTERS] = answer.reasoning_characters

    def _tell(self) -> None:
        for listener in listeners:
            listener.update(self.span)

    @property
    def finished(self) -> bool:
        return bool(self._endings)

    @property
    def is_waiting(self) -> bool:
        """Whether no request and no answer have been seen of it."""
        return not (self.claimed.locked() or self._endings or self.first_chunk_ns)

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
        if self._process is not abandoned.process():
            return  # a forked child holds copies of its parent's calls: they are the parent's to finish
        if error_type is None and error is not None:
            error_type = error_type_of(error)
        ended_perf_ns = ended_perf_ns or time.perf_counter_ns()
        ending = _Ending(status, usage, error, error_type, attributes or {}, ended_perf_ns)
        faults.surely(self._finish, ending)

    def _finish(self, ending: _Ending) -> None:
        if not self._endings:
            self._endings.append(ending)  # one step under the GIL
        if self._endings[0] is ending:
            end_ns = self._end(ending)
            if self._held is not None:
                self._settle()
            self._signal(ending, end_ns)
            self.__class__ = ModelCall

    def _settle(self) -> None:
        """Tells the budgets what it has cost, now that the account knows."""
        held, self._held = self._held, None
        try:
            if held is not None:
                held.settle(self.attributes)
        except Exception as fault:
            faults.report("settle a call with its budgets", fault)

    def _end(self, ending: _Ending) -> int:
        """Ends the span; returns when, in nanoseconds since 1970."""
        at_end: dict[str, Any] = {}
        try:
            self._measure()
            at_end.update(ending.attributes)
            if semconv.CONVERSATION_ID in self.attributes:
                at_end.pop(semconv.CONVERSATION_ID, None)
            if semconv.REQUESTED_TOOL_IDS in at_end:
                tool_calls.remember(at_end, self.span.get_span_context())
            if ending.usage is not None:
                at_end.update(ending.usage.attributes())
                at_end.setdefault(semconv.USAGE_SOURCE, "reported")
            if self.attempts is not None:
                at_end[semconv.ATTEMPTS] = self.attempts
            if ending.error is not None and ending.status == semconv.ERROR and is_not_sent(ending.error):
                at_end[semconv.NOT_SENT] = True
            if settings().captures_content:
                at_end = self._take_content(at_end)
        except Exception as fault:
            faults.report("describe a finished call", fault)
        # Durations come from the monotonic clock: a wall clock that is set back gives no negative ones.
        end_ns = self.started_ns + ending.perf_ns - self.started_perf_ns
        end_span(
            self.span,
            self.attributes,
            ending.status,
            error=ending.error,
            error_type=ending.error_type,
            at_end=at_end,
            end_ns=end_ns,
        )
        return end_ns

    def _signal(self, ending: _Ending, end_ns: int) -> None:
        """Metrics and events, after the account: it must not wait for them."""
        if tracing.is_suppressed(self.span):
            return  # whoever suppresses ours sends its own
        configured = settings()
        try:
            if configured.metrics != "none" and metrics.wanted():
                first = None if self.first_chunk_ns is None else (self.first_chunk_ns - self.started_perf_ns) / 1e9
                seconds = (end_ns - self.started_ns) / 1e9
                at = set_span_in_context(self.span)
                metrics.record(self.attributes, ending.usage, ending.error_type, seconds, first, at)
            in_event = configured.captures_content and configured.capture.in_event
            if in_event and (self.event_content or ending.error is not None):
                from otel_llm.content import capture
                from otel_llm.signals import events

                error = {} if ending.error is None else capture.error_attributes(ending.error)
                events.emit(self.attributes, self.event_content, error, set_span_in_context(self.span), end_ns)
        except Exception as fault:
            faults.report("signal the end of a call", fault)

    def abandon(
        self, status: str = semconv.PARTIAL, usage: Usage | None = None, attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Finishes later, on another stack, as of now.

        For finalizers: they run wherever the garbage collector does, perhaps inside a lock that ending a span needs.
        """
        if not self.finished:
            ended = self.dropped_perf_ns()
            abandoned.later(partial(self.finish, status, usage=usage, attributes=attributes, ended_perf_ns=ended))

    def dropped_perf_ns(self) -> int:
        """When a call ended that is dropped now: nobody knows for how long it was not wanted, its last chunk was."""
        return self.last_chunk_ns or time.perf_counter_ns()

    def _let_go(self, ended_perf_ns: int) -> None:
        self.finish(semconv.CANCELLED, ended_perf_ns=ended_perf_ns)
        if self.span.is_recording():  # what came up did so within `finish`
            self._end(_Ending(semconv.CANCELLED, None, None, None, {}, ended_perf_ns))


class _Open(ModelCall):
    """A call that has not ended. One that has is plain, so that nothing of ours runs when it goes: Python drops whatever a signal
    handler of the app's raises in a finalizer."""

    __slots__ = ()

    def __del__(self) -> None:
        # Nobody is left to finish it: something like KeyboardInterrupt came up in the midst of our own lines. (Where its answer
        # is followed, whoever follows it knows more of how it ended, and finishes it.)
        try:
            given_up = not self.is_followed or self._endings
            if given_up and self._process is abandoned.process() and self.span.is_recording():
                abandoned.later(partial(self._let_go, self.dropped_perf_ns()))
        except Exception:
            pass  # it never got a span, or the interpreter is shutting down
