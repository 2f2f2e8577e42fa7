"""Every private name of OpenTelemetry's API and SDK that otel-llm uses, and the versions in which each of them was seen.

None of them is promised. Where one is missing, the work is done without it: more slowly, or for less.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import context as otel
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, StaticSampler
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as ApiSpan

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler

SEEN: Final = {"1.40.0": frozenset({"_dict", "_handle_fork", "_tracers"}), "1.45.2": frozenset[str]()}
"""The oldest version that we stand on, and the one that is tested, each with the names here that it has not."""

_BATCH_THREADS: Final = "OtelBatch"
"""How the names of the SDK's threads begin."""


# --- contexts --------------------------------------------------------------------------------------------------------
SPAN_KEY: Final = next(iter(set_span_in_context(INVALID_SPAN, otel.Context())))
"""The key of the current span in a context: the public function copies the context for it alone."""
_SUPPRESSING: Final = getattr(otel, "_SUPPRESS_INSTRUMENTATION_KEY", None)
_VARIABLE: Final[ContextVar[otel.Context] | None] = getattr(
    getattr(otel, "_RUNTIME_CONTEXT", None), "_current_context", None
)
# A call asks for the current context half a dozen times, and each time the public functions are two in Python.
current_context: Final[Callable[[], otel.Context]] = otel.get_current if _VARIABLE is None else _VARIABLE.get
attach: Final[Callable[[otel.Context], object]] = otel.attach if _VARIABLE is None else _VARIABLE.set


def is_instrumentation_suppressed(current: otel.Context) -> bool:
    """Whether it is, in the context that is current: the public function looks that up for each of two keys."""
    if _SUPPRESSING is None:
        return not is_instrumentation_enabled()
    return bool(current.get(_SUPPRESSING) or current.get("suppress_instrumentation"))


# --- spans -----------------------------------------------------------------------------------------------------------
def attributes_of(span: ReadableSpan) -> tuple[Any, Mapping[str, Any]]:
    """What holds the span's attributes, with its limits, and the attributes without a copy where the SDK is as we know it."""
    held = span._attributes
    plain = getattr(held, "_dict", None)
    return held, plain if type(plain) is dict else span.attributes or {}


def is_ended(span: Any) -> bool:
    """Whether a span has ended; false for another's, which does not say. The public property is a function in Python."""
    ended = getattr(span, "_end_time", _UNSAID)
    return (getattr(span, "end_time", None) if ended is _UNSAID else ended) is not None


_UNSAID: Final = object()
_SDK: Final = "opentelemetry.sdk.trace"
_PLAIN: Final = frozenset((str, int, float, bool))
"""The classes of values that the SDK takes as they are."""
_LISTS: Final = (list, tuple)
_TEXTS: Final = frozenset((str,))


def set_attributes(span: Any, attributes: Mapping[str, Any]) -> None:
    """`span.set_attributes`, which cleans what needs no cleaning; that takes longer than most of the rest of a span."""
    held = getattr(span, "_attributes", None) if type(span).__module__ == _SDK else None
    plain = getattr(held, "_dict", None)
    if (
        type(plain) is dict
        and type(held) is BoundedAttributes
        and held.max_value_len is None
        and getattr(span, "_end_time", None) is None
    ):
        ready = None if "" in attributes else _cleaned(attributes)
        if ready is not None and (held.maxlen is None or len(plain) + len(ready) <= held.maxlen):
            plain.update(ready)
            return
    span.set_attributes(attributes)


def _cleaned(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The attributes as the SDK keeps them; None where it has to look for itself."""
    ready: dict[str, Any] | None = None
    # A plain loop: `map` and `compress` take fewer steps, and three times as long between two requests, when nothing is warm.
    for name, value in attributes.items():
        if type(value) in _PLAIN:
            continue
        if type(value) not in _LISTS or not _TEXTS.issuperset(map(type, value)):
            return None
        if ready is None:
            ready = dict(attributes)
        ready[name] = tuple(value)
    return attributes if ready is None else ready


class SpanFacts(NamedTuple):
    """What a record says of a span from its start on, its attributes apart."""

    trace_id: int
    span_id: int
    flags: int
    parent_id: int | None
    name: str
    kind: SpanKind
    start_time: int | None
    scope: str | None
    scope_version: str | None
    resource: Any


_AT_START: Final = attrgetter(
    *("_context", "_parent", "_name", "_kind", "_start_time"),
    *("_instrumentation_scope._name", "_instrumentation_scope._version", "_resource"),
)
_AT_END: Final = attrgetter("_name", "_end_time", "_status._status_code", "_events._dq", "_links._dq")


def facts_of(span: ReadableSpan) -> SpanFacts:
    """All at once: each of the public properties, of a span and of its context, is a function in Python."""
    try:
        context, parent, *rest = _AT_START(span)
        # What a context is made of is public; in which order is not.
        facts = (context[0], context[1], int(context[3]), None if parent is None else parent[1], *rest)
        return tuple.__new__(SpanFacts, facts)
    except (AttributeError, TypeError, LookupError):
        context, parent, scope = span.context, span.parent, span.instrumentation_scope
        parent_id = None if parent is None else parent.span_id
        ids = (context.trace_id, context.span_id, int(context.trace_flags), parent_id)
        named: tuple[str | None, str | None] = (None, None) if scope is None else (scope.name, scope.version)
        return SpanFacts(*ids, span.name, span.kind, span.start_time, *named, span.resource)


def end_of(span: ReadableSpan) -> tuple[str, int | None, StatusCode, bool, bool]:
    """Its name and end, the code of its status, whether it has events, and links: the public properties make copies of those."""
    try:
        name, end_time, code, events, links = _AT_END(span)
        return name, end_time, code, bool(events), bool(links)
    except AttributeError:
        return span.name, span.end_time, span.status.status_code, bool(span.events), bool(span.links)


def readable(span: Span) -> ReadableSpan:
    """What span processors are given at the end."""
    return span._readable_span()


# --- providers of spans ----------------------------------------------------------------------------------------------
def set_sampler(provider: TracerProvider, sampler: Sampler) -> None:
    """Has every tracer use it: one copies the sampler when it is made, and those made before us need it too."""
    provider.sampler = sampler
    for tracer in list(getattr(provider, "_tracers", {}).values()):
        tracer.sampler = sampler


def span_processors(provider: Any) -> tuple[Any, ...]:
    """Those that were added to the provider."""
    return tuple(getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ()))


def remove_span_processor(provider: Any, processor: SpanProcessor) -> None:
    """The opposite of `add_span_processor`, which the SDK has not."""
    multi: Any = getattr(provider, "_active_span_processor", None)
    if hasattr(multi, "_span_processors"):
        multi._span_processors = tuple(one for one in span_processors(provider) if one is not processor)


def without_threads_in_child(provider_class: type[TracerProvider]) -> type[TracerProvider]:
    """A class of providers that start none in the midst of a fork, where the SDK's own ask for the resource anew."""

    class Quiet(provider_class):  # type: ignore[misc, valid-type]
        def _handle_fork(self) -> None:
            self._tracers_lock = threading.Lock()

    return Quiet


def starts_threads_in_child() -> bool:
    """Whether the SDK does that after a fork: its tracer provider does, for the resource, and its batch processors."""
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if hasattr(getattr(sdk, "TracerProvider", None), "_handle_fork"):
        return True
    return any(one.name.startswith(_BATCH_THREADS) for one in threading.enumerate())


# --- spans that begin ------------------------------------------------------------------------------------------------
_RANDOM: Final = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
_OF_EACH: Final = frozenset(
    ("_context", "_parent", "_name", "_kind", "_start_time", "_end_time", "_status", "_lock", "_record_end_metrics")
) | {"_attributes", "_events", "_links"}
"""The fields of the SDK's spans that are another for each; the rest is the same for all of a tracer."""
_OF_ALL: Final = frozenset(
    ("_sampler", "_resource", "_limits", "_span_processor", "_instrumentation_info", "_instrumentation_scope")
) | {"_trace_config", "_record_exception", "_set_status_on_exception"}


class _Processors:
    """Those of a provider, of which each is told what it does something about: at a start, before an end, at an end."""

    __slots__ = ("_known", "_of_provider", "_on_ending", "_starts", "on_end")

    def __init__(self, of_provider: Any) -> None:
        self._of_provider = of_provider
        self._known: tuple[Any, ...] | None = None
        self._starts: list[Any] = []
        self._on_ending: Callable[[Any], object] = id
        self.on_end = of_provider.on_end

    def _look(self) -> None:
        known = self._of_provider._span_processors
        others = [each for each in known if type(each).__module__ != _EXPORT]
        nothing = getattr(SpanProcessor, "_on_ending", None)
        self._starts = others
        is_told = any(getattr(type(each), "_on_ending", nothing) is not nothing for each in others)
        # No function of ours: what comes up in the midst of an end keeps it from the processors.
        self._on_ending = self._of_provider._on_ending if is_told else id
        self._known = known  # last: what comes up before must not keep them from being known

    def begin(self, span: Any, context: otel.Context, told: list[Any]) -> None:
        if self._known is not self._of_provider._span_processors:
            self._look()
        note: Any = told.append
        for each in self._starts:
            # In one line: what comes up between two lines must not leave open what somebody knows, nor end what nobody does.
            each.on_start(note(span) or span, parent_context=context)


_EXPORT: Final = "opentelemetry.sdk.trace.export"
"""Where the SDK's own processors are. They hear of a span at its end: what else they have does nothing."""


class SpanMaker:
    """Makes the spans of a tracer of the SDK's in a third of the time that this takes: by the pattern of one that it has made.

    What the SDK asks for each is asked here too: its id generator, its sampler, its metrics, its configuration.
    """

    __slots__ = ("_class", "_decide", "_processors", "_shared", "_told", "_tracer")

    def __init__(self, tracer: Any, pattern: Any) -> None:
        self._tracer = tracer
        self._class: Any = type(pattern)
        self._shared = {name: value for name, value in vars(pattern).items() if name in _OF_ALL}
        self._processors = tracer.span_processor
        self._told = _Processors(tracer.span_processor)
        self._shared["_span_processor"] = self._told
        self._decide = getattr(tracer.sampler, "decide", None) or partial(decision_of, tracer.sampler)

    def make(
        self,
        name: str,
        context: otel.Context,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        links: Sequence[Link],
        start_time: int | None,
    ) -> Any:
        """A span that has begun, of which no processor knows; None where the SDK has to make it. Changes nothing."""
        tracer, shared = self._tracer, self._shared
        if (
            tracer.sampler is not shared["_sampler"]
            or tracer.span_processor is not self._processors
            or tracer.resource is not shared["_resource"]
            or not tracer._is_enabled()
        ):
            return None
        above: SpanContext | None = None
        if isinstance(around := context.get(SPAN_KEY), ApiSpan):
            above = around.get_span_context()
            above = above if above.is_valid else None
        ids = tracer.id_generator
        trace_id: int = ids.generate_trace_id() if above is None else above.trace_id
        decision, state = self._decide(above), None if above is None else above.trace_state
        if decision is None:
            sampled = tracer.sampler.should_sample(context, trace_id, name, kind, attributes, links)
            decision, state, attributes = sampled.decision, sampled.trace_state, sampled.attributes
        flags = TraceFlags.SAMPLED if decision is Decision.RECORD_AND_SAMPLE else 0
        if _RANDOM and (ids.is_trace_id_random() if above is None else above.trace_flags & _RANDOM):
            flags |= _RANDOM
        own = SpanContext(trace_id, ids.generate_span_id(), False, TraceFlags(flags), state)
        counted = tracer._tracer_metrics.start_span(above, decision)
        if decision is Decision.DROP:
            return NonRecordingSpan(own)
        limits = shared["_limits"]
        held = BoundedAttributes(
            limits.max_span_attributes, None, immutable=False, max_value_len=limits.max_span_attribute_length
        )
        span = object.__new__(self._class)
        span.__dict__.update(
            shared,
            _context=own,
            _parent=above,
            _name=name,
            _kind=kind,
            _start_time=time.time_ns() if start_time is None else start_time,
            _end_time=None,
            _status=_UNSET,
            _lock=threading.Lock(),
            _attributes=held,
            _events=BoundedList(limits.max_events),
            _links=BoundedList(limits.max_links),
            _record_end_metrics=counted,
        )
        if links:
            span._links = span._new_links(links)
        set_attributes(span, attributes)
        return span

    def begin(self, span: Any, context: otel.Context, told: list[Any]) -> None:
        """Tells the processors of it, and puts it into `told` as soon as one of them knows."""
        if type(span) is self._class:
            self._told.begin(span, context, told)
        if not told:
            told.append(span)


_UNSET: Final = Status(StatusCode.UNSET)


def span_maker(tracer: Any, pattern: Any) -> SpanMaker | None:
    """What makes further spans like one that a tracer has made; None where the SDK is not as we know it, or it is another's."""
    real = getattr(tracer, "_tracer", tracer)
    if type(real).__module__ != _SDK or type(pattern).__module__ != _SDK or "start_span" in vars(real):
        return None
    if type(real.span_processor) is not SynchronousMultiSpanProcessor:
        return None
    if vars(pattern).keys() != _OF_EACH | _OF_ALL or real.instrumentation_info is not pattern._instrumentation_info:
        return None
    return SpanMaker(real, pattern)


def decision_of(sampler: Any, above: SpanContext | None) -> Decision | None:
    """What the SDK's own samplers decide below a span, where they decide without a look at the new one; None for any other."""
    if type(sampler) is ParentBased:
        if above is None:
            sampler = sampler._root
        elif above.is_remote:
            is_sampled = above.trace_flags.sampled
            sampler = sampler._remote_parent_sampled if is_sampled else sampler._remote_parent_not_sampled
        else:
            is_sampled = above.trace_flags.sampled
            sampler = sampler._local_parent_sampled if is_sampled else sampler._local_parent_not_sampled
    return sampler._decision if type(sampler) is StaticSampler else None


# --- exporters -------------------------------------------------------------------------------------------------------
def batch_exporters(tracer_provider: Any, logger_provider: Any = None) -> Iterator[Any]:
    """The exporters that batches of spans and of log records go to."""
    logs = getattr(logger_provider, "_multi_log_record_processor", None)
    for processor in (*span_processors(tracer_provider), *getattr(logs, "_log_record_processors", ())):
        exporter = getattr(getattr(processor, "_batch_processor", None), "_exporter", None)
        if exporter is not None:
            yield exporter


def otlp_endpoint(exporter: Any) -> tuple[str | None, bool | None]:
    """Where an OTLP exporter sends, and over gRPC whether it does so without TLS."""
    return getattr(exporter, "_endpoint", None), getattr(exporter, "_insecure", None)


# --- metrics ---------------------------------------------------------------------------------------------------------
def is_meter_provider_unset() -> bool:
    """Whether the app has set none; false where that cannot be told. Asking the API itself makes it read the environment."""
    api = sys.modules.get("opentelemetry.metrics._internal")
    return getattr(api, "_METER_PROVIDER", api) is None


def has_metric_reader(provider: Any) -> bool | None:
    """Whether an SDK's provider has a reader; None where it is not the SDK's."""
    consumer = getattr(provider, "_measurement_consumer", None)
    readers = getattr(consumer, "_reader_storages", None)
    return None if readers is None else bool(readers)


# --- configuration ---------------------------------------------------------------------------------------------------
def set_up_sdk() -> None:
    """What `opentelemetry-instrument` does without another configurator, however often it has been done before."""
    from opentelemetry.sdk._configuration import _OTelSDKConfigurator

    class Configurator(_OTelSDKConfigurator):
        """The SDK keeps one object of each class."""

    Configurator().configure()  # type: ignore[no-untyped-call]


def base_configurator() -> Any:
    """The class that every configurator stands on, whoever's it is."""
    from opentelemetry.sdk._configuration import _BaseConfigurator

    return _BaseConfigurator
