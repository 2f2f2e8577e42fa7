"""How a call ends, without a word of what the provider said: error texts can echo the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from otel_llm.calls import ending
from otel_llm.calls.model_call import ModelCall
from otel_llm.conventions import semconv
from otel_llm.instrumentation.openai import private
from otel_llm.instrumentation.openai._answer import Answer, error_code
from otel_llm.instrumentation.openai._observe import Observer, background
from otel_llm.support import faults


def conclude(
    call: ModelCall | Observer,
    answer: Answer,
    status: str,
    error: BaseException | None = None,
    ended_perf_ns: int | None = None,
) -> None:
    """Ends a call with what is known of its answer. Raises nothing, and leaves no span open that nobody will end.

    `ended_perf_ns`: as for `ModelCall.finish`.
    """
    if not call.finished:
        faults.surely(_conclude, call, answer, status, error, ended_perf_ns)


def _conclude(
    call: ModelCall | Observer, answer: Answer, status: str, error: BaseException | None, ended_perf_ns: int | None
) -> None:
    try:
        if isinstance(call, Observer):
            call.finished = True
            call.ended_perf_ns = ended_perf_ns
            call.end(answer, status, error)
            return
        # What goes on at the provider is ended by whoever asks for its result, however this request was left.
        call.answer = answer
        if answer.background and answer.is_running and answer.id is not None:
            background.defer(answer.id, call, answer.attributes())
            return
        call.finish(
            status,
            usage=answer.usage,
            error=error,
            error_type=_error_type(answer, error),
            attributes=answer.attributes(),
            ended_perf_ns=ended_perf_ns,
        )
    except Exception as fault:
        faults.report("record the end of a call", fault)
        if isinstance(call, ModelCall):
            call.finish(status, ended_perf_ns=ended_perf_ns)


def fail(call: ModelCall | Observer, error: BaseException, answer: Answer | None = None) -> None:
    """Ends a call that raised, with what had arrived by then."""
    status = ending.status_of(error)
    if (
        status == semconv.PARTIAL
    ):  # a coroutine that was dropped while it waited for the answer: there is no part of one
        status = semconv.CANCELLED
    conclude(call, Answer() if answer is None else answer, status, error)


def _error_type(answer: Answer, error: BaseException | None) -> str | None:
    """What the call failed with, where more is known than the class of `error`: the status, or the code that the answer tells."""
    if error is None:
        return answer.error_type
    status_code = getattr(error, "status_code", None)
    if type(status_code) is int:
        return str(status_code)
    body = getattr(error, "body", None)  # what the client raises of an error in a stream
    return answer.error_type or (error_code(body) if isinstance(body, Mapping) else None)


_CAUSES_LOOKED_AT = 5


def answer_before(error: BaseException) -> Any:
    """The HTTP response that the client had read when `error` came up; None where there was none, or one that refused the call.

    What comes up after it (the client cannot parse it, a model or a hook of the app's raises) does not undo what was billed. No
    hook on the client sees every such answer, but the traceback goes through whoever had it in hand.
    """
    for response in _responses(error):
        if private.is_read(response) and getattr(response, "status_code", 400) < 400:
            return response
    return None


def statuses_before(error: BaseException) -> Iterator[int]:
    """The statuses of the HTTP responses that were in hand when `error` came up, which may be no error of the client's."""
    for response in _responses(error):
        status = getattr(response, "status_code", None)
        if type(status) is int:
            yield status


def _responses(error: BaseException) -> Iterator[Any]:
    cause: BaseException | None = error
    for _ in range(_CAUSES_LOOKED_AT):
        if cause is None:
            break
        step = cause.__traceback__
        while step is not None:
            for value in list(step.tb_frame.f_locals.values()):
                if _is_response(value):
                    yield value
            step = step.tb_next
        cause = cause.__cause__  # not its context: that may be of another call, whose failure is being handled


def _is_response(value: object) -> bool:
    return any(
        cls.__name__ == "Response" and cls.__module__.partition(".")[0] in ("httpx", "httpx2")
        for cls in type(value).__mro__
    )
