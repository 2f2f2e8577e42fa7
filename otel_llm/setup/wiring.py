"""Tying otel-llm to a TracerProvider.

That is the account's processor, the sampler that hides nothing from it, and the propagator that sends nothing of ours to a model
provider."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from otel_llm.calls import abandoned, stream_usage, tracing, withholding
from otel_llm.calls.listeners import listeners
from otel_llm.conventions import semconv
from otel_llm.support import otel_private

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from otel_llm.store import Store

_lock = threading.Lock()
_wired: WeakKeyDictionary[Any, _Wiring] = WeakKeyDictionary()
_observed: WeakKeyDictionary[Any, SpanProcessor] = WeakKeyDictionary()
_stages: WeakKeyDictionary[Any, tracing.Stage] = WeakKeyDictionary()
_DEEPEST: Final = 8
"""Wrappers round a provider, as far as they are looked into."""


class AccountSampler(Sampler):
    """Decides as `inner` does, but records a GenAI span that `inner` drops: the account sees it, no exporter does."""

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner

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
        if result.decision is Decision.DROP and attributes and semconv.OPERATION in attributes:
            return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        return result

    def get_description(self) -> str:
        return self.inner.get_description()


class _Wiring:
    def __init__(self, provider: TracerProvider | None, stage: tracing.Stage, store: Store) -> None:
        from otel_llm.store.usage_processor import UsageSpanProcessor

        self.store = store
        self.processor = UsageSpanProcessor(store)
        stage.add(self.processor)
        stage.keeps_account = True
        if provider is not None:
            provider.add_span_processor(self.processor)
        listeners.append(self.processor)


class _Other:
    """Stands for a provider that nothing can be noted of."""


_other: Final = _Other()


def taking_processors(provider: Any) -> TracerProvider | None:
    """The provider, or the one that it wraps, that span processors can be added to; None where there is none.

    Told by what it can do: wrappers (Logfire's, say) are of classes of their own.
    """
    found = None
    for _ in range(_DEEPEST):
        if callable(getattr(provider, "add_span_processor", None)):
            found = provider
        held = getattr(provider, "__dict__", {}).values()
        provider = next((inner for inner in held if callable(getattr(inner, "get_tracer", None))), None)
        if provider is None:
            break
    return found


def _key(provider: Any) -> Any:
    """What stands for a provider in a dictionary of weak references."""
    provider = taking_processors(provider) or provider
    try:
        weakref.ref(provider)
        hash(provider)
    except TypeError:
        return _other
    return provider


def _observe(provider: Any) -> tracing.Stage:
    from otel_llm.lifecycle.event_processor import LifecycleProcessor
    from otel_llm.lifecycle.hub import hub

    key = _key(provider)
    if key not in _observed:
        able = taking_processors(provider)
        _observed[key] = observer = LifecycleProcessor()
        _stages[key] = stage = tracing.Stage(provider, getattr(able, "resource", None))
        stage.is_listened_to = lambda: hub.subscribers
        stage.add(observer)
        tracing.stages.append(stage)
        if able is not None:
            able.add_span_processor(observer)
            if callable(getattr(getattr(able, "sampler", None), "should_sample", None)):
                otel_private.set_sampler(able, AccountSampler(able.sampler))
    return _stages[key]


def observe(provider: Any) -> None:
    """Has `chain`, `step` and `tool` write to a TracerProvider, and its GenAI spans tell of themselves to whoever subscribes."""
    from otel_llm.lifecycle.scopes import tracer

    tracer.use(provider)
    with _lock:
        _observe(provider)


def wire(provider: Any, path: Path) -> Store:
    """Keeps the account of a tracer provider at `path`, once. Returns its store.

    The provider may be anybody's. From one that takes span processors the account hears of the spans of others too.
    """
    from otel_llm.store import Store

    withholding.withhold()
    observe(provider)
    with _lock:
        key = _key(provider)
        wiring = _wired.get(key)
        if wiring is None:
            store = Store.open(path)
            if abandoned.finish_abandoned not in store.before_flush:
                store.before_flush.append(abandoned.finish_abandoned)
                store.before_flush.append(stream_usage.save)
            stream_usage.keep_at(store.paths.stream_usage)
            wiring = _wired[key] = _Wiring(taking_processors(provider), _stages[key], store)
        return wiring.store


def unwire() -> None:
    """Takes the account, and the events, off every provider again."""
    from otel_llm.lifecycle.scopes import tracer

    tracer.use(None)
    with _lock:
        for provider, observer in list(_observed.items()):
            if isinstance(sampler := getattr(provider, "sampler", None), AccountSampler):
                otel_private.set_sampler(provider, sampler.inner)
            otel_private.remove_span_processor(provider, observer)
        _observed.clear()
        _stages.clear()
        tracing.stages.clear()
        for provider, wiring in list(_wired.items()):
            otel_private.remove_span_processor(provider, wiring.processor)
            listeners.remove(wiring.processor)
            wiring.processor.shutdown()
        _wired.clear()
        stream_usage.keep_at(None)
        withholding.restore()


def global_provider() -> Any:
    """The provider that the app (or the auto-instrumentation) has set, of whatever class, or the one that stands for none."""
    return _current()


def is_provider_set() -> bool:
    """Whether any tracer provider has been set, the SDK's or another."""
    return not isinstance(_current(), trace.ProxyTracerProvider | None)


def _current() -> Any:
    """The global provider; None where none is set and `OTEL_PYTHON_TRACER_PROVIDER` names one that cannot be had."""
    try:
        return trace.get_tracer_provider()
    except Exception:
        return None
