"""Tying otel-llm to a TracerProvider.

That is the account's processor, the sampler that hides nothing from it, and the propagator that sends nothing of ours to a model
provider."""

from __future__ import annotations

import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from opentelemetry import trace

from otel_llm.calls import abandoned, stream_usage, tracing, withholding
from otel_llm.calls.listeners import listeners
from otel_llm.conventions import semconv
from otel_llm.settings import settings
from otel_llm.support import faults, otel_private

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from otel_llm.store import Store
    from otel_llm.store.paths import StorePaths
    from otel_llm.store.usage_processor import UsageSpanProcessor

_lock = threading.Lock()
_wirings: WeakKeyDictionary[Any, _Wiring] = WeakKeyDictionary()
"""By tracer provider."""
_DEEPEST: Final = 8
"""Wrappers round a provider, as far as they are looked into."""


class _Wiring:
    """What one tracer provider has been given."""

    def __init__(self, provider: Any) -> None:
        from otel_llm.lifecycle.event_processor import LifecycleProcessor
        from otel_llm.lifecycle.hub import hub

        self.observer = LifecycleProcessor()
        self.stage = tracing.Stage(provider, getattr(taking_processors(provider), "resource", None))
        self.stage.is_listened_to = lambda: hub.subscribers
        self.stage.add(self.observer)
        self.store: Store | None = None
        self._account: UsageSpanProcessor | None = None
        tracing.stages.append(self.stage)

    def observe(self, able: TracerProvider | None) -> None:
        """Has the provider tell the observer of its spans, those that its sampler drops included."""
        if able is not None:
            able.add_span_processor(self.observer)
            if callable(getattr(getattr(able, "sampler", None), "should_sample", None)):
                otel_private.set_sampler(able, tracing.AccountSampler(able.sampler))

    def keep_account(self, provider: TracerProvider | None, store: Store) -> None:
        """Has the provider's spans go to `store`, those that it does not tell of included."""
        from otel_llm.setup import arrivals
        from otel_llm.store.usage_processor import UsageSpanProcessor

        self._account = UsageSpanProcessor(store)
        arrivals.watch(provider, self._account, store)
        self.stage.add(self._account)
        self.stage.keeps_account = True
        if provider is not None:
            provider.add_span_processor(self._account)
        listeners.append(self._account)
        self.store = store

    def undo(self, provider: Any) -> None:
        """Takes all of it off the provider again."""
        if isinstance(sampler := getattr(provider, "sampler", None), tracing.AccountSampler):
            otel_private.set_sampler(provider, sampler.inner)
        otel_private.remove_span_processor(provider, self.observer)
        if self._account is not None:
            otel_private.remove_span_processor(provider, self._account)
            listeners.remove(self._account)
            self._account.shutdown()


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


def observe(provider: Any) -> None:
    """Has `chain`, `step` and `tool` write to a TracerProvider, and its GenAI spans tell of themselves to whoever subscribes."""
    _wiring(provider)


def _wiring(provider: Any) -> _Wiring:
    from otel_llm.lifecycle.scopes import tracer

    tracer.use(provider)
    key = _key(provider)
    with _lock:
        found = _wirings.get(key)
        if found is None:
            found = _wirings[key] = _Wiring(provider)
            found.observe(taking_processors(provider))
        return found


def wire(provider: Any, path: Path) -> Store:
    """Keeps the account of a tracer provider at `path`, once. Returns its store.

    The provider may be anybody's. From one that takes span processors the account hears of the spans of others too.
    """
    from otel_llm.store import Store

    withholding.withhold()
    wiring = _wiring(provider)
    with _lock:
        if wiring.store is None:
            store = Store.open(path)
            if abandoned.finish_abandoned not in store.before_flush:
                store.before_flush.append(abandoned.finish_abandoned)
                store.before_flush.append(stream_usage.save)
                _ship(store)
                _watch_budgets(store)
            stream_usage.keep_at(store.paths.stream_usage)
            wiring.keep_account(taking_processors(provider), store)
            stop_calls(provider, store.paths)
            return store
        return wiring.store


def _ship(store: Store) -> None:
    """Has the account go elsewhere too, where `OTEL_LLM_SHIP_TO` says so."""
    if settings().ship_to:
        from otel_llm.fleet.ship import background

        background.begin(store)


def _watch_budgets(store: Store) -> None:
    """Has it told of what is spent, where `OTEL_LLM_BUDGETS` says what may be."""
    if settings().budgets is not None:
        from otel_llm.budgets.alerts import watching

        watching.begin(store)


def stop_calls(provider: Any, paths: StorePaths | None) -> None:
    """Has budgets stop calls, where `OTEL_LLM_BUDGETS` names any. `paths`: of the store that has the account, if one is kept."""
    if settings().budgets is not None:
        try:
            from otel_llm.budgets.stop import stopping

            resource = getattr(taking_processors(provider), "resource", None)
            service = getattr(resource, "attributes", {}).get(semconv.SERVICE_NAME)
            stopping.begin(paths, service if isinstance(service, str) else None)
        except Exception as fault:  # the account is kept all the same
            faults.report("have budgets stop calls", fault)


def unwire() -> None:
    """Takes the account, and the events, off every provider again."""
    from otel_llm.lifecycle.scopes import tracer

    tracer.use(None)
    with _lock:
        for provider, wiring in list(_wirings.items()):
            wiring.undo(provider)
        _wirings.clear()
        tracing.stages.clear()  # those of providers that are no more, too
        stream_usage.keep_at(None)
        if (stopping := sys.modules.get("otel_llm.budgets.stop.stopping")) is not None:
            stopping.end()
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
