"""Ties otel-llm to a TracerProvider: the account's processor, the sampler that hides nothing from it, and the propagator
that sends nothing of ours to a model provider."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from otel_llm import call as calls
from otel_llm import propagation, semconv, stream_usage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from otel_llm.store import Store
    from otel_llm.store.processor import UsageSpanProcessor

_logger = logging.getLogger("otel_llm")
_lock = threading.Lock()
_wired: WeakKeyDictionary[TracerProvider, _Wiring] = WeakKeyDictionary()
_observed: WeakKeyDictionary[TracerProvider, SpanProcessor] = WeakKeyDictionary()


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
    def __init__(self, provider: TracerProvider, store: Store, processor: UsageSpanProcessor) -> None:
        self.store = store
        self.processor = processor
        provider.add_span_processor(processor)
        calls.watchers.append(processor.update)
        calls.end_watchers.append(processor.end_untold)


def observe(provider: Any) -> None:
    """Has `chain`, `step` and `tool` write to a TracerProvider, and its GenAI spans tell of themselves to whoever subscribes."""
    from otel_llm.lifecycle.processor import LifecycleProcessor
    from otel_llm.lifecycle.scopes import tracer

    tracer.use(provider)
    if not isinstance(provider, TracerProvider):
        return
    with _lock:
        if provider not in _observed:
            _observed[provider] = processor = LifecycleProcessor()
            provider.add_span_processor(processor)
            _set_sampler(provider, AccountSampler(provider.sampler))


def wire(provider: Any, path: Path) -> Store | None:
    """Adds the account at `path` to an SDK TracerProvider, once. Returns its store, None where `provider` is not the SDK's."""
    propagation.withhold()
    observe(provider)
    if not isinstance(provider, TracerProvider):
        _logger.warning(
            "the tracer provider is a %s, not the OpenTelemetry SDK's: spans are made, but no account is kept. "
            "Call otel_llm.instrument(tracer_provider=...) with an SDK TracerProvider.",
            type(provider).__name__,
        )
        return None
    from otel_llm.store import Store
    from otel_llm.store.processor import UsageSpanProcessor

    with _lock:
        wiring = _wired.get(provider)
        if wiring is None:
            store = Store.open(path)
            if calls.finish_abandoned not in store.before_flush:
                store.before_flush.append(calls.finish_abandoned)
                store.before_flush.append(stream_usage.save)
            stream_usage.keep_at(store.paths.stream_usage)
            wiring = _wired[provider] = _Wiring(provider, store, UsageSpanProcessor(store))
        return wiring.store


def unwire() -> None:
    """Takes the account, and the events, off every provider again."""
    from otel_llm.lifecycle.scopes import tracer

    tracer.use(None)
    with _lock:
        for provider, observer in list(_observed.items()):
            if isinstance(provider.sampler, AccountSampler):
                _set_sampler(provider, provider.sampler.inner)
            _remove_processor(provider, observer)
        _observed.clear()
        for provider, wiring in list(_wired.items()):
            _remove_processor(provider, wiring.processor)
            calls.watchers.remove(wiring.processor.update)
            calls.end_watchers.remove(wiring.processor.end_untold)
            wiring.processor.shutdown()
        _wired.clear()
        stream_usage.keep_at(None)
        propagation.restore()


def global_provider() -> TracerProvider | None:
    """The SDK provider that the app (or the auto-instrumentation) has set, None where there is none yet."""
    provider = _current()
    return provider if isinstance(provider, TracerProvider) else None


def is_provider_set() -> bool:
    """Whether any tracer provider has been set, the SDK's or another."""
    return not isinstance(_current(), trace.ProxyTracerProvider | None)


def _current() -> Any:
    """The global provider; None where none is set and `OTEL_PYTHON_TRACER_PROVIDER` names one that cannot be had."""
    try:
        return trace.get_tracer_provider()
    except Exception:
        return None


def _set_sampler(provider: TracerProvider, sampler: Sampler) -> None:
    # A tracer copies the sampler when it is made; those made before us need it too.
    provider.sampler = sampler
    for tracer in list(getattr(provider, "_tracers", {}).values()):
        tracer.sampler = sampler


def _remove_processor(provider: TracerProvider, processor: SpanProcessor) -> None:
    multi = getattr(provider, "_active_span_processor", None)
    current = getattr(multi, "_span_processors", None)
    if current is not None:
        multi._span_processors = tuple(one for one in current if one is not processor)  # type: ignore[union-attr]
