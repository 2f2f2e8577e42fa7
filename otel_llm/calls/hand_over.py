"""One call seen by two layers.

LangChain starts a run, and the OpenAI client inside it sends the request. LangChain *offers* its call in a context variable; the
client's hook *claims* it and finishes it with the provider's own numbers. A call that nobody claimed is finished by LangChain.
So one model call is one span, whoever is installed.
"""

from __future__ import annotations

from contextvars import ContextVar

from otel_llm.calls.model_call import ModelCall
from otel_llm.conventions import semconv

offered: ContextVar[tuple[ModelCall, ...]] = ContextVar("otel_llm_offered_calls", default=())
_ANSWERED_IN_TEXT = frozenset({semconv.CHAT, semconv.TEXT_COMPLETION, semconv.GENERATE_CONTENT})


def offer(*calls: ModelCall) -> None:
    """Lets a client's hook in this context (or a copy of it) take the calls over, one request each, in this order.

    Never reset: a call that has finished, or has begun to answer, is no offer any more.
    """
    offered.set(calls)


def waiting() -> tuple[ModelCall, ...]:
    """The calls offered here whose request has not been made."""
    return tuple(call for call in offered.get() if call.is_waiting)


def claim(operation: str) -> ModelCall | None:
    """Takes over the first call offered here that nobody has claimed, for a request that does `operation`.

    The models are not compared: a framework's name for one (a deployment, an alias) need not be the one sent. The operation
    tells a model's own request from others made on its way: the embeddings of a semantic cache, a moderation.
    """
    if operation not in _ANSWERED_IN_TEXT:
        return None
    for call in offered.get():
        if call.is_waiting and call.claimed.acquire(blocking=False):
            return call
    return None


def adopt() -> ModelCall | None:
    """Takes over the first call offered here for a run inside it, which offers it in turn.

    A model that hands its prompt to another model makes one call, not two.
    """
    for call in offered.get():
        if call.is_waiting and call.adopted.acquire(blocking=False):
            return call
    return None


def is_claimed(call: ModelCall) -> bool:
    """Whether a client's hook has taken the call over, and will finish it."""
    return call.claimed.locked()
