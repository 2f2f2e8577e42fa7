"""The spans that otel-llm starts: made by the app's tracer provider, and known to the account whatever that makes of them.

The account hears of a span through a span processor on the app's provider. Where it does not (the provider is another's and
takes no processors, it was replaced, it samples in its own way, instrumentation is suppressed), the same span is made once more
*backstage*, by a provider that nothing but our own processors listens to. Whether it heard is asked of every span, not of the
provider's class. Where the SDK cuts what a span holds, the account keeps what was `given`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

import wrapt
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

from otel_llm.conventions import semconv
from otel_llm.support import faults, otel_private
from otel_llm.support.otel_private import SpanMaker
from otel_llm.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

_GIVEN: Final = otel.create_key("otel-llm-given")
_PROXY: Any = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)
_NOTHING: Final[Mapping[str, Any]] = {}


class Given:
    """What a span of ours was told, whole: a span holds no more than the SDK's limits let it."""

    __slots__ = ("aside", "attributes", "links", "span_id")

    def __init__(self, attributes: Mapping[str, Any], links: Sequence[Link], aside: Mapping[str, Any]) -> None:
        self.attributes = attributes
        """Whoever has started the span goes on adding to them."""
        self.links = links
        self.aside = aside
        """What the account alone is told: fields of a journal record. These too go on being added to."""
        self.span_id: int | None = None
        """Of the span, once a processor of ours has heard of its start."""


def hear(span_id: int, parent_context: otel.Context | None) -> Given | None:
    """What the span that starts in this context was told; None for one that is not ours. For our span processors."""
    told = None if parent_context is None else parent_context.get(_GIVEN)
    if not isinstance(told, Given):
        return None
    if told.span_id is None:
        told.span_id = span_id
    # Another span in the same context, started by a processor of the app's, is not the one that was told this.
    return told if told.span_id == span_id else None


class AccountSampler(Sampler):
    """Decides as `inner` does, but records a GenAI span that `inner` drops: the account sees it, no exporter does."""

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner

    def decide(self, above: SpanContext | None) -> Decision | None:
        """Of a GenAI span below another, where that is all that is looked at; None where `inner` has to see the new one."""
        decision = otel_private.decision_of(self.inner, above)
        return Decision.RECORD_ONLY if decision is Decision.DROP else decision

    def should_sample(
        self,
        parent_context: otel.Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        # The SDK passes six arguments and lets the sampler find the trace state itself.
        result = self.inner.should_sample(parent_context, trace_id, name, kind, attributes, links)
        if result.decision is not Decision.DROP or not attributes or semconv.OPERATION not in attributes:
            return result
        return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)

    def get_description(self) -> str:
        return self.inner.get_description()


class Tracer:
    """Starts the spans of one instrumentation scope."""

    def __init__(
        self,
        scope: str,
        provider: trace.TracerProvider | None = None,
        schema_url: str | None = None,
        *,
        hides: bool = True,
    ) -> None:
        """`hides`: whether its spans are instrumentation, which an app or another instrumentation can suppress."""
        self._scope = scope
        self._provider = provider
        self._hides = hides
        self._tracer = trace.get_tracer(scope, __version__, provider, schema_url)
        self._start = self._tracer.start_span
        self._maker: SpanMaker | None = None

    def start_span(
        self,
        name: str,
        context: otel.Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] = _NOTHING,
        links: Sequence[Link] = (),
        start_time: int | None = None,
        aside: Mapping[str, Any] = _NOTHING,
    ) -> Span:
        """Starts a span. What is set on it later is added to `attributes` too, by whoever sets it.

        `aside`: what the account is to know beside, as fields of its record; the span does not have it.
        """
        opened: list[Span] = []
        current = otel_private.current_context()
        suppressed = self._hides and otel_private.is_instrumentation_suppressed(current)
        if context is None:
            context = current
        try:
            told = Given(attributes, links, aside)
            return self._open(opened, suppressed, name, context, kind, told, start_time)
        except BaseException:  # a signal handler may raise at any line, and nobody has these spans yet
            for span in dict.fromkeys(opened):
                if span is trace.get_current_span(context):
                    continue
                span.set_attribute(semconv.STATUS, semconv.CANCELLED)
                span.end()
            raise

    def _open(
        self,
        opened: list[Span],
        suppressed: bool,
        name: str,
        context: otel.Context,
        kind: SpanKind,
        told: Given,
        start_time: int | None,
    ) -> Span:
        attributes, links = told.attributes, told.links
        if not suppressed:
            try:
                at = otel.Context({**context, _GIVEN: told})
                maker = self._maker
                if maker is None or (span := self._made(maker, name, at, kind, told, start_time)) is None:
                    opened.append(self._start(name, at, kind, attributes, links, start_time=start_time))
                    self._maker = otel_private.span_maker(self._tracer, opened[0])
                else:
                    maker.begin(span, at, opened)
                if told.span_id is not None:
                    return opened[0]
            except Exception as fault:  # a provider of the app's, or a span processor
                faults.report("start a span", fault)
        around = trace.get_current_span(context).get_span_context()
        # A provider that does nothing hands back the span around. And what is opened inside a suppressed one hangs on that, as if
        # there were none of ours.
        span = opened[0] if opened and type(opened[0]) is not Twofold else NonRecordingSpan(around)
        stage = stage_of(self._provider)
        if stage is None or not (stage.is_wanted if suppressed else stage.keeps_account):
            return Twofold(span, trace.INVALID_SPAN, suppressed) if suppressed else span
        with _ids.of(None if suppressed else span.get_span_context(), around):
            start = stage.tracer(self._scope).start_span
            at = otel.set_value(_GIVEN, told, _inside(context))
            opened.append(start(name, at, kind, attributes, links, start_time))
        return Twofold(span, opened[-1], suppressed)

    def _made(
        self,
        maker: SpanMaker,
        name: str,
        at: otel.Context,
        kind: SpanKind,
        told: Given,
        start_time: int | None,
    ) -> Any:
        """A span that nobody has been told of; None where the SDK has to make it."""
        try:
            return maker.make(name, at, kind, told.attributes, told.links, start_time)
        except Exception as error:
            faults.pass_on(
                error
            )  # else an SDK that is not as we know it, or a sampler of the app's, which is asked again
            return None


class Twofold(_PROXY):  # type: ignore[misc]
    """The app's span as it is, and the account's, which is told the same."""

    # wrapt keeps what begins with `_self_` on the proxy itself.
    def __init__(self, span: Span, backstage: Span, suppressed: bool) -> None:
        super().__init__(span)
        self._self_backstage = backstage
        self._self_suppressed = suppressed

    @property
    def start_time(self) -> int | None:
        """When it began, in nanoseconds since 1970."""
        return getattr(self._self_backstage, "start_time", None)

    def is_recording(self) -> bool:
        return bool(self._self_backstage.is_recording() or self.__wrapped__.is_recording())

    def end(self, end_time: int | None = None) -> None:
        # The account first: a span processor of the app's may raise.
        self._self_backstage.end(end_time)
        self.__wrapped__.end(end_time)


def _both(name: str) -> Callable[..., None]:
    def tell(self: Twofold, *args: Any, **kwargs: Any) -> None:
        getattr(self._self_backstage, name)(*args, **kwargs)
        getattr(self.__wrapped__, name)(*args, **kwargs)

    tell.__name__ = name
    return tell


for _name in (
    "set_attribute",
    "set_attributes",
    "set_status",
    "add_event",
    "add_link",
    "record_exception",
    "update_name",
):
    setattr(Twofold, _name, _both(_name))


def backstage(span: Span) -> Span:
    """The span that the account hears of."""
    return span._self_backstage if type(span) is Twofold else span


def identity(span: Span) -> SpanContext:
    """The ids of a span in the account."""
    return backstage(span).get_span_context()


def is_suppressed(span: Span) -> bool:
    """Whether the account alone is to hear of a span: no exporter, no metrics, no events."""
    return type(span) is Twofold and bool(span._self_suppressed)


def is_off() -> bool:
    """Whether nobody wants to hear of a span that starts here: suppressed, and neither an account nor anybody who listens."""
    if not otel_private.is_instrumentation_suppressed(otel_private.current_context()):
        return False
    return not any(stage.is_wanted for stage in stages)


def _inside(context: otel.Context) -> otel.Context:
    """The context, in which the current span is the one that the account knows."""
    current = trace.get_current_span(context)
    return set_span_in_context(current._self_backstage, context) if type(current) is Twofold else context


# --- backstage -------------------------------------------------------------------------------------------------------
class _Ids(IdGenerator):
    """Those of the span that the app's provider made, where it made one."""

    def __init__(self) -> None:
        self._random = SystemRandom()  # not the app's, which may be seeded; right in forked children too
        self._next = threading.local()

    @contextmanager
    def of(self, own: SpanContext | None, above: SpanContext) -> Iterator[None]:
        """Makes the next span have the ids of `own`, if those are its own: a span that is not recorded may have its parent's."""
        self._next.ids = (own.trace_id, own.span_id) if own is not None and _is_new(own, above) else None
        try:
            yield
        finally:
            self._next.ids = None

    def generate_span_id(self) -> int:
        ids = getattr(self._next, "ids", None)
        return ids[1] if ids is not None else self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        ids = getattr(self._next, "ids", None)
        return ids[0] if ids is not None else self._random.getrandbits(128) or 1


def _is_new(own: SpanContext, above: SpanContext) -> bool:
    try:
        return bool(
            own.is_valid and 0 < own.span_id < 2**64 and 0 < own.trace_id < 2**128 and own.span_id != above.span_id
        )
    except Exception:  # another provider's, which is none
        return False


_ids: Final = _Ids()


class Stage:
    """Makes the spans that only our processors hear of, beside one provider of the app's."""

    def __init__(self, provider: Any, resource: Resource | None) -> None:
        try:
            self._beside: Callable[[], Any] = ref(provider)
        except TypeError:
            self._beside = lambda: provider
        self._resource = resource
        self._lock = threading.Lock()
        self._processors: list[SpanProcessor] = []
        self._provider: TracerProvider | None = None
        self._tracers: dict[str, Any] = {}
        self.keeps_account = False
        self.is_listened_to: Callable[[], object] = bool

    def serves(self, provider: Any) -> bool:
        """Whether it stands beside this provider."""
        return self._beside() is provider

    @property
    def is_wanted(self) -> bool:
        return self.keeps_account or bool(self.is_listened_to())

    def add(self, processor: SpanProcessor) -> None:
        """Has a processor of ours hear of the spans."""
        with self._lock:
            self._processors.append(processor)
            if self._provider is not None:
                self._provider.add_span_processor(processor)

    def tracer(self, scope: str) -> Any:
        """The tracer of an instrumentation scope."""
        tracer = self._tracers.get(scope)
        if tracer is None:
            with self._lock:
                if self._provider is None:
                    self._provider = _provider(self._resource, self._processors)
            tracer = self._tracers[scope] = self._provider.get_tracer(scope, __version__)
        return tracer


stages: list[Stage] = []
"""One for each provider that is wired."""


def stage_of(provider: Any) -> Stage | None:
    """The stage for what a provider does not tell us of; None where nothing is wired."""
    return next((stage for stage in stages if stage.serves(provider)), stages[0] if stages else None)


def _provider(resource: Resource | None, processors: Sequence[SpanProcessor]) -> TracerProvider:
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.sampling import Decision, StaticSampler

    options: dict[str, Any] = {
        "sampler": StaticSampler(Decision.RECORD_ONLY),  # not sampled: the row says that no backend has it
        "resource": resource,
        "shutdown_on_exit": False,
        "id_generator": _ids,
        "span_limits": SpanLimits(*(8 * (SpanLimits.UNSET,))),
        "meter_provider": NoOpMeterProvider(),  # the SDK counts its spans
    }
    takes = inspect.signature(TracerProvider).parameters
    quiet = otel_private.without_threads_in_child(TracerProvider)
    made = quiet(**{name: value for name, value in options.items() if name in takes})
    for processor in processors:
        made.add_span_processor(processor)
    return made
