"""The hooks on the OpenAI client: what is wrapped, and what happens around the one request every method makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import wrapt
from opentelemetry import trace

from otel_llm.calls import abandoned, hand_over, request, tracing
from otel_llm.calls.listeners import listeners
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.request import UnrecordedRequest
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import characters, semconv
from otel_llm.conventions.hosts import is_provider
from otel_llm.instrumentation.engine.exchange import Exchange, carry_out, carry_out_async
from otel_llm.instrumentation.openai import _asking, private
from otel_llm.instrumentation.openai._answer import Answer
from otel_llm.instrumentation.openai._asking import Asking
from otel_llm.instrumentation.openai._ending import answer_before, conclude, fail
from otel_llm.instrumentation.openai._observe import Observer, observer_of
from otel_llm.instrumentation.openai._request import (
    UNKNOWN,
    Server,
    attributes,
    endpoint_of,
    sent_body,
    sent_model,
    server_of,
)
from otel_llm.instrumentation.openai._stream import StreamRecorder, follow_body, follow_stream, see_body
from otel_llm.settings import settings
from otel_llm.support import faults

_PROXY: Any = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)


class ClientHooks:
    """The wrappers, with the tracer they write to."""

    def __init__(self, tracer: Tracer, scope: str) -> None:
        self._tracer = tracer
        self._scope = scope

    # wrapt's signature: wrapped, instance, args, kwargs
    def request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Around `OpenAI.request`."""
        return carry_out(self._begin(client, args, kwargs), wrapped, kwargs)

    async def request_async(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Around `AsyncOpenAI.request`."""
        return await carry_out_async(self._begin(client, args, kwargs), wrapped, kwargs)

    @staticmethod
    def retry(wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Around what the client calls once before every further try."""
        call = request.in_flight()
        if call is not None and call.attempts is not None:
            call.attempts += 1
            try:
                _asking.before_retry(kwargs.get("options") or (args[0] if args else None), kwargs.get("response"))
            except Exception as fault:
                faults.report("look at a request that is sent again", fault)
        return wrapped(*args, **kwargs)

    def _begin(self, client: Any, args: Any, kwargs: dict[str, Any]) -> Exchange:
        try:
            if not tracing.is_off() and (recorded := self._begin_recording(client, args, kwargs)) is not None:
                return recorded
        except Exception as fault:
            faults.report("begin recording an OpenAI call", fault)
        try:
            return Exchange(UnrecordedRequest(_propagates(server_of(client))), args)
        except Exception as fault:
            faults.report("withhold the context from a request", fault)
            return Exchange(None, args)

    def _begin_recording(self, client: Any, args: Any, kwargs: dict[str, Any]) -> RecordedExchange | None:
        options = args[1] if len(args) > 1 else kwargs["options"]
        endpoint = endpoint_of(options.method, options.url)
        if endpoint is None:
            return self._look_on(client, options, args, stream=bool(kwargs.get("stream")))
        abandoned.finish_abandoned()
        body = sent_body(options)
        server = server_of(client, options.url)
        stream = bool(kwargs.get("stream"))
        model = sent_model(endpoint, server, options, body)
        known: dict[str, Any] = {}
        try:
            streams = stream if body.get("stream") is None else bool(body["stream"])
            known = attributes(endpoint, server, body, streams)
        except Exception as fault:  # a value of the app's that is not what it seems: it costs its own, not the call
            faults.report("read the parameters of a request", fault)
            known = {semconv.PROVIDER: server.provider}
        configured = settings()
        length = _length_of(endpoint.operation, body) if configured.estimate else None
        if configured.captures_content:
            known |= request_content(endpoint.operation, body, getattr(options, "files", None))
        asking = None
        if stream and len(args) > 1:
            try:
                asking = _asking.asking(client, endpoint, server, options, body, model)
            except Exception as fault:
                faults.report("ask a stream for its usage", fault)
        propagates = server.address in configured.propagate_to
        # From here on there is a span, which only the return ends.
        call = hand_over.claim(endpoint.operation)
        if call is None:
            call = ModelCall(self._tracer, endpoint.operation, model, known, characters=length)
        else:
            if not server.is_known and is_provider(call.attributes.get(semconv.PROVIDER)):
                # LangChain's class says more than an address that nobody knows.
                known.pop(semconv.PROVIDER, None)
            call.describe(endpoint.operation, model, {**known, semconv.RECORDED_BY: self._scope}, length)
        call.attempts = 1
        call.propagates = propagates
        call.ask()
        return RecordedExchange(call, args, asking, propagates=propagates)

    def _look_on(self, client: Any, options: Any, args: Any, *, stream: bool) -> RecordedExchange | None:
        server = server_of(client, options.url)

        def known() -> tuple[str | None, dict[str, Any]]:
            body = sent_body(options)
            model = body.get("model")
            return model if isinstance(model, str) else None, attributes(UNKNOWN, server, body, stream)

        for listener in listeners:
            listener.deny(trace.get_current_span())
        observer = observer_of(options.method, options.url, self._tracer, known)
        return None if observer is None else RecordedExchange(observer, args, None, propagates=_propagates(server))


def _propagates(server: Server) -> bool:
    return server.address in settings().propagate_to


class RecordedExchange(Exchange):
    """The request of a call, or one whose answer may tell of one."""

    __slots__ = ("_as_the_app_made_it", "_asking", "call")

    def __init__(self, call: ModelCall | Observer, args: Any, asking: Asking | None, *, propagates: bool) -> None:
        asked = args if asking is None or asking.options is None else (args[0], asking.options, *args[2:])
        super().__init__(UnrecordedRequest(propagates) if isinstance(call, Observer) else call, asked)
        self.call = call
        self._asking = asking
        self._as_the_app_made_it = args

    def attach(self) -> None:
        """Begins the request, unless a budget is spent: then the app gets that instead of an answer."""
        if isinstance(self.call, ModelCall) and self.call.refusal is not None:
            raise self.call.refusal
        super().attach()

    @property
    def _is_stream(self) -> bool:
        return isinstance(self.call, ModelCall) and semconv.REQUEST_STREAM in self.call.attributes

    def is_sent_again(self, error: Exception) -> bool:
        """Whether the server has refused what we asked with the request, which now goes as the app made it."""
        try:
            was_asked = self.args is not self._as_the_app_made_it
            if self._asking is None or not was_asked or not self._asking.is_refused(error):
                return False
            self.args = self._as_the_app_made_it
            if isinstance(self.call, ModelCall) and self.call.attempts is not None:
                self.call.attempts += 1
            return True
        except Exception as fault:
            faults.report("look at a refusal", fault)
            return False

    def _learn(self, error: BaseException | None = None) -> None:
        """Remembers what the outcome tells of the server."""
        try:
            if self._asking is not None:
                self._asking.ended(error)
        except Exception as fault:
            faults.report("learn what a server takes", fault)

    def end(self) -> None:
        """Finishes the call with its answer, or follows the answer until it is complete."""
        self.detach()
        asking, hides_usage = self._asking, False
        if asking is not None:
            hides_usage = asking.hides_usage  # before it is learned what the answer tells
            self._learn()
        answer = None
        try:
            answer = self._answer()
            if self._see(self.result, answer, hides_usage=hides_usage):
                return
            if answer.refuses_usage and asking is not None:
                asking.refused_late(None, in_answer=True)
        except Exception as fault:
            faults.report("read an OpenAI answer", fault)
        answer = answer or Answer()
        conclude(self.call, answer, answer.status)

    def fail(self, error: BaseException) -> None:
        """The app gets `error` instead of an answer. What had arrived of one was billed all the same."""
        self.detach()
        if isinstance(self.call, ModelCall) and self.call.refusal is not None:
            return  # it has ended, and says nothing about the server
        self._learn(error)
        answer = Answer()
        try:
            answer = self._answer()
            result = answer_before(error) if self.is_pending else self.result
            self._see(result, answer, hides_usage=self._hides_usage)
        except Exception as fault:
            faults.report("read the answer before an error", fault)
        fail(self.call, error, answer)

    def _answer(self) -> Answer:
        return self.call.answer() if isinstance(self.call, Observer) else Answer(self.call.attributes)

    @property
    def _hides_usage(self) -> bool:
        return self._asking is not None and self._asking.hides_usage

    @property
    def _refused(self) -> Callable[..., None] | None:
        return None if self._asking is None else self._asking.refused_late

    def _see(self, result: Any, answer: Answer, *, hides_usage: bool) -> bool:
        """Takes what a result tells. True where it is still to come: then it is followed."""
        while isinstance(result, _PROXY):  # another instrumentation between the client and us
            result = result.__wrapped__
        own = getattr(result, "__dict__", {})
        response = None
        if "usage" not in own:  # as an answer that is parsed and whole has it
            if private.iterator(result) is not None:
                follow_stream(result, StreamRecorder(self.call, hides_usage=hides_usage, refused=self._refused))
                return True
            response = own.get("http_response")  # the raw responses
            if response is None and len(own) == 1:  # a binary answer, of speech
                response = own.get("response")
            if response is None and private.is_read(result):  # an HTTP response
                response = result
        if response is None:
            if isinstance(result, str) and self._is_stream:
                # Asked for behind the client's back, who takes it for text.
                see_body(answer, "text/event-stream", result.encode("utf-8", "replace"))
            else:
                answer.see(result)
        elif not response.is_closed:
            follow_body(response, StreamRecorder(self.call, refused=self._refused))
            return True
        else:
            see_body(answer, response.headers.get("content-type", ""), response.content)
        return False


_IN_TEXT = frozenset({semconv.CHAT, semconv.TEXT_COMPLETION, semconv.EMBEDDINGS})
"""Operations whose input is text."""


def _length_of(operation: str, body: Mapping[str, Any]) -> int | None:
    """How many characters a request asks with; None where that is not known."""
    if operation not in _IN_TEXT:
        return None
    try:
        return characters.of_request(body)
    except Exception as fault:  # a value of the app's that is not what it seems
        faults.report("measure a request", fault)
        return None


def request_content(operation: str, body: Mapping[str, Any], files: object) -> dict[str, Any]:
    """What a request says, where content is captured and has somewhere to go."""
    from otel_llm.content import capture  # only with capture

    if not capture.wanted():
        return {}
    from otel_llm.content.openai import request

    return request(operation, body, files)
