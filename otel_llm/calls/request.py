"""The request under way in this context: whose call it is, and whether the provider gets anything of ours with it."""

from __future__ import annotations

from opentelemetry import context as otel

from otel_llm.calls import hand_over
from otel_llm.calls.model_call import ModelCall
from otel_llm.support import otel_private
from otel_llm.support.otel_private import SPAN_KEY

_KEY = otel.create_key("otel-llm-call")


def in_flight(current: otel.Context | None = None) -> ModelCall | None:
    """The call whose request is being made in this context, if any."""
    call = otel.get_value(_KEY, current)
    return call if isinstance(call, ModelCall) else None


class UnrecordedRequest:
    """A request to a provider that is no call of a model: nothing of ours goes out with it either."""

    __slots__ = ("finished", "propagates")

    def __init__(self, propagates: bool) -> None:
        self.propagates = propagates
        self.finished = False


def is_unrecorded(current: otel.Context | None = None) -> bool:
    """Whether a request that is no model call is being made in this context."""
    request = otel.get_value(_KEY, current)
    return isinstance(request, UnrecordedRequest) and not request.finished


def enter(request: ModelCall | UnrecordedRequest, outside: otel.Context) -> None:
    """Begins a request in the current context, `outside`, with the span of the call current."""
    if isinstance(request, ModelCall):
        otel_private.attach(otel.Context({**outside, SPAN_KEY: request.span, _KEY: request}))
    else:
        otel_private.attach(otel.set_value(_KEY, request, outside))


def leave(request: ModelCall | UnrecordedRequest, outside: otel.Context) -> None:
    """Undoes `enter`: `outside` is the current context again.

    Changes nothing where it is not inside: a coroutine that is dropped is closed wherever that happens.
    """
    if otel_private.current_context().get(_KEY) is request:
        otel_private.attach(outside)


def withholds(current: otel.Context | None = None) -> bool:
    """Whether what is sent in this context may go to a model provider that is to get no trace context and no baggage."""
    request = otel.get_value(_KEY, current)
    # A thread that was started during a request keeps its context; once that is over, it is no request any more.
    if isinstance(request, ModelCall | UnrecordedRequest) and not request.finished:
        return not request.propagates
    # Offered, and a client may be asking that nothing of ours is on.
    return bool(hand_over.waiting())
