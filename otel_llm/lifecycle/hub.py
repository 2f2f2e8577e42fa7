"""Those who listen to events. While nobody does, `hub.subscribers` is empty, and nothing else here runs."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any, Protocol
from weakref import WeakSet

from opentelemetry import context as otel

from otel_llm.calls.listeners import StreamListener, stream_listeners
from otel_llm.lifecycle.event import Event, ProviderDelta
from otel_llm.support import forks

SCOPE_KEY = otel.create_key("otel-llm-scope")
"""In the context that a span is started with: the `Scope` that opens it, for those who wait for that one."""


class Subscriber:
    """One listener: what it wants, and where it is put. Subclasses say how it gets there."""

    def __init__(self, types: Collection[type[Event]], run: Any, max_queue_size: int) -> None:
        """
        Args:
            types: classes of events that are wanted; none for all but `ProviderDelta`.
            run: the id of a span (an int) whose events, and those of what is in it, are wanted; or the `Scope` that will open
                it; None for all.
            max_queue_size: events that may wait; further ones are dropped.
        """
        self._types = tuple(types)
        self.wants_deltas = ProviderDelta in self._types
        """Whether it asks for what is streamed. Nobody gets that unasked, or as one of the subclasses of `Event`."""
        self._run = run
        self._max_queue_size = max_queue_size
        self.dropped = 0
        self.has_begun = run is None or (isinstance(run, int) and hub.is_running(run))
        """Whether there is something to listen to: what is to be heard of one run may never begin."""

    def offer(self, event: Event, lineage: Collection[int]) -> None:
        """Takes an event if it is wanted. `lineage`: the ids of the span it is about and of those above it."""
        if self._run is not None and self._run not in lineage:
            return
        self.has_begun = True
        if not (self.wants_deltas if type(event) is ProviderDelta else self._wants(event)):
            return
        if self.waiting() >= self._max_queue_size:
            self.dropped += 1
            return
        self.put(event)

    def _wants(self, event: Event) -> bool:
        return not self._types or isinstance(event, self._types)

    def scope_entered(self, scope: object, span_id: int) -> None:
        """A scope has opened its span."""
        if self._run is scope:
            self._run = span_id
            self.has_begun = True

    def span_ended(self, ended: object) -> None:
        """A span (its id), or a scope whose span is not recorded, has ended; if it is what was listened to, no more is to come."""
        if self._run is not None and self._run == ended:
            self.close()

    def waiting(self) -> int:
        raise NotImplementedError

    def put(self, event: Event) -> None:
        """Called in the app's thread: never waits and never raises."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def after_fork(self) -> None:
        """In the child of a fork, where no thread and no event loop of the parent runs."""


class SpanHearer(StreamListener, Protocol):
    def is_running(self, span_id: int) -> bool:
        """Whether it has heard of the start of a span, or of a chain that continues the run of this id, and not of the end."""


class Hub:
    """The listeners of this process."""

    def __init__(self) -> None:
        self.subscribers: tuple[Subscriber, ...] = ()
        self.generation = 0
        """Counts the times that somebody began to listen after nobody did: what was known before is out of date."""
        self._processors: WeakSet[SpanHearer] = WeakSet()
        self._lock = threading.RLock()

    def take(self, processor: SpanHearer) -> None:
        """Has `processor` tell of spans, and of what is streamed while a subscriber asks for it."""
        with self._lock:
            self._processors.add(processor)
            self._ask_for_streams()

    def is_running(self, span_id: int) -> bool:
        """Whether a span is known to run; one that began before anybody listened is not known."""
        return bool(self.subscribers) and any(processor.is_running(span_id) for processor in self._processors)

    def _ask_for_streams(self) -> None:
        wanted = any(one.wants_deltas for one in self.subscribers)
        stream_listeners[:] = list(self._processors) if wanted else []

    def add(self, subscriber: Subscriber) -> None:
        with self._lock:
            if not self.subscribers:
                self.generation += 1
            self.subscribers = (*self.subscribers, subscriber)
            self._ask_for_streams()

    def remove(self, subscriber: Subscriber) -> None:
        with self._lock:
            self.subscribers = tuple(one for one in self.subscribers if one is not subscriber)
            self._ask_for_streams()

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        for subscriber in self.subscribers:
            subscriber.after_fork()


hub = Hub()

forks.register(forks.Turn.SUBSCRIPTIONS, after_in_child=hub.after_fork)
