"""One call seen by two layers.

LangChain starts a run, and the OpenAI client inside it sends the request. LangChain *offers* its call in a context variable; the
client's hook *claims* it and finishes it with the provider's own numbers. A call that nobody claimed is finished by LangChain.
So one model call is one span, whoever is installed. A library between the two, LiteLLM, claims a call and offers it in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar

from otel_llm.calls.model_call import ModelCall
from otel_llm.conventions import semconv


class PassedOn:
    """A call that was claimed here, for one more layer to claim."""

    __slots__ = ("adopted", "call", "claimed")

    def __init__(self, call: ModelCall) -> None:
        self.call = call
        self.adopted = threading.Lock()
        self.claimed = threading.Lock()

    @property
    def is_waiting(self) -> bool:
        """As of a `ModelCall`."""
        return not (self.claimed.locked() or self.call.finished or self.call.first_chunk_ns)


offered: ContextVar[Sequence[ModelCall | PassedOn]] = ContextVar("otel_llm_offered_calls", default=())
_ANSWERED_IN_TEXT = frozenset({semconv.CHAT, semconv.TEXT_COMPLETION, semconv.GENERATE_CONTENT})


def offer(*calls: ModelCall) -> None:
    """Lets a client's hook in this context (or a copy of it) take the calls over, one request each, in this order.

    Never reset: a call that has finished, or has begun to answer, is no offer any more.
    """
    offered.set(calls)


def waiting() -> tuple[ModelCall | PassedOn, ...]:
    """The calls offered here whose request has not been made."""
    return tuple(call for call in offered.get() if call.is_waiting)


def claim(operation: str, offers: Sequence[ModelCall | PassedOn] | None = None) -> ModelCall | None:
    """Takes over the first call offered (default: here) that nobody has claimed, for a request that does `operation`.

    The models are not compared: a framework's name for one (a deployment, an alias) need not be the one sent. The operation
    tells a model's own request from others made on its way: the embeddings of a semantic cache, a moderation.
    """
    for offer in offered.get() if offers is None else offers:
        if offer.is_waiting and _is_such(_call(offer), operation) and offer.claimed.acquire(blocking=False):
            return _call(offer)
    return None


def adopt() -> ModelCall | None:
    """Takes over the first call offered here for a run inside it, which offers it in turn.

    A model that hands its prompt to another model makes one call, not two.
    """
    for offer in offered.get():
        if offer.is_waiting and offer.adopted.acquire(blocking=False):
            return _call(offer)
    return None


def is_claimed(call: ModelCall | PassedOn) -> bool:
    """Whether a client's hook has taken the call over, and will finish it."""
    return call.claimed.locked()


def _call(offer: ModelCall | PassedOn) -> ModelCall:
    return offer.call if isinstance(offer, PassedOn) else offer


def _is_such(call: ModelCall, operation: str) -> bool:
    """Whether a request that does `operation` may be that of the call."""
    wanted = call.attributes.get(semconv.OPERATION)
    return wanted == operation or (wanted in _ANSWERED_IN_TEXT and operation in _ANSWERED_IN_TEXT)
