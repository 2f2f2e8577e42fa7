"""A model call as LangChain sees it: what is known at its start, and the life of the call until somebody finishes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otel_llm.calls import ending, hand_over
from otel_llm.calls.listeners import stream_listeners, teller
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.parent import Parent
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import characters, semconv
from otel_llm.conventions.hosts import provider_name
from otel_llm.instrumentation.langchain._result import ModelResult
from otel_llm.settings import settings
from otel_llm.support import faults

_MODEL_KEYS = ("model", "model_name", "model_id")
_NUMBER = (int, float)
_TOLD = (
    ("ls_temperature", semconv.REQUEST_TEMPERATURE, _NUMBER),
    ("ls_max_tokens", semconv.REQUEST_MAX_TOKENS, (int,)),
)
"""What the metadata of a run tell of its request."""
_PARAMETERS = (
    ("top_p", semconv.REQUEST_TOP_P, _NUMBER),
    ("top_k", semconv.REQUEST_TOP_K, (int,)),
    ("frequency_penalty", semconv.REQUEST_FREQUENCY_PENALTY, _NUMBER),
    ("presence_penalty", semconv.REQUEST_PRESENCE_PENALTY, _NUMBER),
    ("seed", semconv.REQUEST_SEED, (int,)),
    ("n", semconv.REQUEST_CHOICE_COUNT, (int,)),
)
"""What the parameters of a call tell, in the names that most of LangChain's models have for them."""
_TOLD_KEYS, _PARAMETER_KEYS = (frozenset(key for key, _, _ in told) for told in (_TOLD, _PARAMETERS))


class ModelRun:
    """The call of a model run, or of the several runs that a non-chat model answers at once."""

    __slots__ = ("_answer", "_asked", "_increments", "_left", "_parameters", "call")

    def __init__(self, call: ModelCall, requests: Sequence[ModelRequest]) -> None:
        self.call = call
        self._answer = ModelResult(call.attributes)
        if call.answer is None:
            call.answer = self._answer
        self._left = len(requests)
        self._increments: Any = None
        """What tells of the answer as it comes, where somebody asks for that."""
        # Read at the end, and only if no client's hook has carried out the call: it reads what is really sent.
        self._asked = [request.asked for request in requests if request.asked is not None]
        self._parameters = requests[0].parameters if requests else None

    def _attributes(self) -> dict[str, Any]:
        """What is known at the end."""
        found = self._answer.attributes()
        if self._asked:
            from otel_llm.content.langchain import request

            found |= request(self._asked, self._parameters)
        return found

    def chunk(self, piece: object = None, chunk: object = None) -> None:
        """Takes note of a piece of a stream, unless the client's hook does. What is in it is for those alone who ask for that."""
        call = self.call
        if hand_over.is_claimed(call):
            return
        if call.first_chunk_ns is None:
            call.attributes[semconv.REQUEST_STREAM] = True
            call.span.set_attribute(semconv.REQUEST_STREAM, True)
            if stream_listeners and settings().captures_content and _content_wanted():
                self._increments = _increments(call)
        call.chunk()
        if self._increments is not None:
            self._increments.see(piece, chunk)
        if settings().estimate:
            message = getattr(chunk, "message", None)
            self._answer.see_piece(piece if message is None else message)

    def end(self, result: object) -> None:
        """One of the runs has ended; the last one finishes the call, unless the client's hook does."""
        if hand_over.is_claimed(self.call):
            return
        answer = self._answer
        answer.see(result)
        self._left -= 1
        if self._left <= 0:
            self._tell_rest()
            ended = self.call.last_chunk_ns
            self.call.finish(semconv.OK, usage=answer.usage, attributes=self._attributes(), ended_perf_ns=ended)

    def fail(self, error: BaseException, result: object = None) -> None:
        """A run failed, and with it the call, unless the client's hook finishes it."""
        if hand_over.is_claimed(self.call):
            return
        answer = self._answer
        answer.see(result)
        if isinstance(error, GeneratorExit):  # perhaps inside the garbage collector
            self.call.abandon(semconv.PARTIAL, answer.usage, self._attributes())
            return
        self._tell_rest()
        status_code = getattr(error, "status_code", None)
        self.call.finish(
            ending.status_of(error),
            usage=answer.usage,
            error=error,
            error_type=str(status_code) if isinstance(status_code, int) else None,
            attributes=self._attributes(),
        )

    def _tell_rest(self) -> None:
        if self._increments is not None:
            self._increments.finish()

    def abandon(self) -> None:
        """The run can never end: whoever could end it is gone."""
        if not hand_over.is_claimed(self.call):
            self.call.abandon(semconv.CANCELLED, self._answer.usage, self._answer.attributes())


class ModelRequest:
    """What is known of a model call when its run starts."""

    __slots__ = ("asked", "attributes", "characters", "model", "operation", "parameters")

    def __init__(
        self,
        operation: str,
        serialized: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        parameters: Mapping[str, Any] | None,
        asked: object = None,
    ) -> None:
        self.asked: object = None
        """The messages or prompts, where content is captured."""
        self.parameters: Mapping[str, Any] | None = None
        if settings().captures_content and _content_wanted():
            self.asked, self.parameters = asked, parameters
        self.characters = _length_of(asked, parameters) if settings().estimate else None
        metadata, parameters = metadata or {}, parameters or {}
        self.operation = operation
        self.model = _model(metadata, parameters)
        self.attributes: dict[str, Any] = {semconv.PROVIDER: _provider(metadata, serialized)}
        for source, wanted, keys in ((metadata, _TOLD, _TOLD_KEYS), (parameters, _PARAMETERS, _PARAMETER_KEYS)):
            for key, name, types in () if keys.isdisjoint(source) else wanted:
                value = source.get(key)
                if isinstance(value, types) and not isinstance(value, bool) and abs(value) < 2**63:
                    self.attributes[name] = float(value) if float in types else value
        if self.attributes.get(semconv.REQUEST_CHOICE_COUNT) == 1:
            del self.attributes[semconv.REQUEST_CHOICE_COUNT]  # told only where there are several
        if stop := metadata.get("ls_stop"):
            self.attributes[semconv.REQUEST_STOP_SEQUENCES] = (
                [stop] if isinstance(stop, str) else [str(s) for s in stop]
            )

    def begin(self, tracer: Tracer, under: Parent | None, started_ns: int | None = None) -> ModelCall:
        return ModelCall(
            tracer,
            self.operation,
            self.model,
            self.attributes,
            under=under,
            started_ns=started_ns,
            characters=self.characters,
        )


def _length_of(asked: object, parameters: Mapping[str, Any] | None) -> int | None:
    """How many characters a model is asked with: prompts, or the messages of the one conversation in a list."""
    if isinstance(asked, list) and len(asked) == 1 and isinstance(asked[0], list):
        asked = asked[0]
    try:
        return characters.of_messages(asked, parameters) if isinstance(asked, list) else None
    except Exception as fault:  # a value of the app's that is not what it seems
        faults.report("measure a request", fault)
        return None


def _increments(call: ModelCall) -> Any:
    from otel_llm.content.increments import LangChainIncrements  # only with capture

    return LangChainIncrements(teller(call.span))


def _content_wanted() -> bool:
    """Whether content has somewhere to go. Asked only where it is captured."""
    from otel_llm.content import capture

    return capture.wanted()


def _model(metadata: Mapping[str, Any], parameters: Mapping[str, Any]) -> str | None:
    # The parameters first: they hold what is sent, `ls_model_name` what LangSmith shows.
    for key in _MODEL_KEYS:
        value = parameters.get(key)
        if isinstance(value, str) and value:
            return value
    shown = metadata.get("ls_model_name")
    return shown if isinstance(shown, str) and shown else None


def _provider(metadata: Mapping[str, Any], serialized: Mapping[str, Any] | None) -> str:
    provider = metadata.get("ls_provider")
    if not isinstance(provider, str) or not provider:
        path = (serialized or {}).get("id") or ["unknown"]
        provider = str(path[-1]).removeprefix("Chat").lower() or "unknown"
    return provider_name(provider)
