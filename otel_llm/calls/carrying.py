"""What a piece of work takes with it: to another thread the OpenTelemetry context as it is, to another process a message.

Of the context variables only OpenTelemetry's and our own are carried. Copying all of them would hand the app's own
(Flask's request, a decimal context, what a structured logger has bound) to threads that never saw them, and keep alive what they
refer to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry import context as otel
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace import get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_llm import context
from otel_llm.calls import hand_over, parent
from otel_llm.calls.hand_over import PassedOn
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.parent import Find, Parent
from otel_llm.support import faults

# Both ends are ours, so the app's choice of propagators does not matter here.
_propagators = TraceContextTextMapPropagator(), W3CBaggagePropagator()


class Carried(NamedTuple):
    """What work takes with it to another thread, besides the OpenTelemetry context."""

    find_parent: Find | None
    offered: tuple[ModelCall | PassedOn, ...]


def carried() -> Carried | None:
    """What work that is begun here takes with it; None where there is nothing."""
    find, offered = parent.capture_parent(), hand_over.waiting()
    return Carried(find, offered) if find is not None or offered else None


def run_here(
    inside: otel.Context | None,
    carried: Carried | None,
    function: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`function(*args, **kwargs)` in the OpenTelemetry context `inside` (None: the current one) with what is `carried`."""
    outside = otel.get_current()
    if inside is not None:
        otel.attach(inside)
    tokens = None
    if carried is not None:
        tokens = parent.carried.set(carried.find_parent), hand_over.offered.set(carried.offered)
    try:
        return function(*args, **kwargs)
    finally:
        if tokens is not None:
            parent.carried.reset(tokens[0])
            hand_over.offered.reset(tokens[1])
        if inside is not None:
            otel.attach(outside)


class Message:
    """The context of this moment for another process: W3C headers, and what `llm_context` says. To be pickled."""

    __slots__ = ("_sent", "_unpacked")

    def __init__(
        self,
        headers: Mapping[str, str],
        values: Mapping[str, str],
        agent_name: str | None = None,
        workflow_name: str | None = None,
        conversation_id: str | None = None,
    ) -> None:
        self._sent = headers, values, agent_name, workflow_name, conversation_id
        self._unpacked: tuple[otel.Context, Carried | None] | None = None

    def __reduce__(self) -> tuple[type[Message], tuple[Any, ...]]:
        return Message, self._sent

    def unpack(self) -> tuple[otel.Context, Carried | None]:
        """The context and what is carried for `run_here`. Kept, since a chunk of work brings one message for all its items."""
        if self._unpacked is None:
            headers, values, *names = self._sent
            inside = otel.Context()
            for propagator in _propagators:
                inside = propagator.extract(headers, inside)
            if values:
                # From our own process: this is believed, whatever baggage from elsewhere is worth.
                inside = context.opened(inside, values)
            carried = None
            if any(name is not None for name in names):
                above = Parent(get_current_span(inside), *names)
                carried = Carried(lambda: above, ())
            self._unpacked = inside, carried
        return self._unpacked


def message() -> Message:
    """The context of this moment, to be sent to another process."""
    current = otel.get_current()
    above = parent.find_parent()
    if above is not None:
        current = set_span_in_context(above.span, current)
    headers: dict[str, str] = {}
    for propagator in _propagators:
        propagator.inject(headers, current)
    values = dict(context.attributes(current))
    return Message(headers, values) if above is None else Message(headers, values, *above[1:])


def run_there(sent: Message, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)` in the context that `sent` brought; what was current in this process does not count."""
    try:
        inside, carried = sent.unpack()
    except Exception as error:
        faults.report("take over a context from another process", error)
        inside, carried = otel.Context(), None
    return run_here(inside, carried, function, *args, **kwargs)
