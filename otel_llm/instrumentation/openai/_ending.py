"""How a call ends, without a word of what the provider said: error texts can echo the prompt."""

from __future__ import annotations

from otel_llm import call as calls
from otel_llm import faults
from otel_llm.call import ModelCall
from otel_llm.instrumentation.openai._answer import Answer
from otel_llm.instrumentation.openai._observe import Observer, background


def conclude(call: ModelCall | Observer, answer: Answer, status: str, error: BaseException | None = None) -> None:
    """Ends a call with what is known of its answer. Raises nothing, and leaves no span open that nobody will end."""
    if call.finished:
        return
    try:
        if isinstance(call, Observer):
            call.finished = True
            call.end(answer, status, error)
            return
        # What goes on at the provider is ended by whoever asks for its result, however this request was left.
        if answer.background and answer.is_running and answer.id is not None:
            background.defer(answer.id, call, answer.attributes())
            return
        call.finish(
            status,
            usage=answer.usage,
            error=error,
            error_type=_error_type(answer, error),
            attributes=answer.attributes(),
        )
    except Exception as fault:
        faults.report("record the end of a call", fault)
        if isinstance(call, ModelCall):
            call.finish(status)


def fail(call: ModelCall | Observer, error: BaseException, answer: Answer | None = None) -> None:
    """Ends a call that raised, with what had arrived by then."""
    status = calls.status_of(error)
    if status == calls.PARTIAL:  # a coroutine that was dropped while it waited for the answer: there is no part of one
        status = calls.CANCELLED
    conclude(call, Answer() if answer is None else answer, status, error)


def _error_type(answer: Answer, error: BaseException | None) -> str | None:
    if error is None:
        return answer.error_type
    status_code = getattr(error, "status_code", None)
    return str(status_code) if type(status_code) is int else None
