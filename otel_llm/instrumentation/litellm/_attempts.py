"""From LiteLLM's function to the request it makes, and back: what is wrapped, and what becomes of each call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from otel_llm import context
from otel_llm.calls import abandoned, admittance, ending, hand_over, parent, stream_usage, tracing
from otel_llm.calls.hand_over import PassedOn
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import characters, semconv
from otel_llm.conventions.hosts import provider_at, provider_name
from otel_llm.conventions.token_usage import fields
from otel_llm.instrumentation.engine.exchange import Exchange, carry_out, carry_out_async
from otel_llm.instrumentation.litellm import private
from otel_llm.instrumentation.litellm._chunks import ChunkRecorder, follow_chunks
from otel_llm.instrumentation.litellm._told import KnownToLiteLLM, ToldAnswer
from otel_llm.instrumentation.openai._asking import AskedBody, Asking
from otel_llm.instrumentation.openai._hooks import request_content
from otel_llm.instrumentation.openai._request import Endpoint, Server, attributes
from otel_llm.settings import settings
from otel_llm.support import faults

_OPENAI_CHAT: Final = "/chat/completions"
_BEFORE_REQUEST: Final = ("input", "api_key", "model", "additional_args")
_CAUSES_LOOKED_AT: Final = 5

_running: ContextVar[LiteLLMAttempt | None] = ContextVar("otel_llm_litellm_attempt", default=None)
"""The innermost function of LiteLLM's that is at work in this context."""


class LiteLLMHooks:
    """The wrappers, with the tracer they write to."""

    def __init__(self, tracer: Tracer, scope: str) -> None:
        self.tracer = tracer
        self.scope = scope
        self._of: WeakKeyDictionary[Any, LiteLLMAttempt] = WeakKeyDictionary()
        """By LiteLLM's `Logging` object, of which nothing here keeps one alive."""

    # wrapt's signature: wrapped, instance, args, kwargs
    def make(self, operation: str, wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        """Around `completion` and its like, inside LiteLLM's cache, retries and fallbacks."""
        return carry_out(self._begin(operation, wrapped, args, kwargs), wrapped, kwargs)

    async def make_async(self, operation: str, wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        """Around `acompletion` and its like."""
        return await carry_out_async(self._begin(operation, wrapped, args, kwargs), wrapped, kwargs)

    def about_to_ask(self, wrapped: Callable[..., Any], logging: Any, args: Any, kwargs: Any) -> Any:
        """Around what is called before each request."""
        try:
            if (attempt := self._attempt_of(logging)) is not None:
                attempt.begin(logging, {**dict(zip(_BEFORE_REQUEST, args, strict=False)), **kwargs})
        except Exception as fault:
            faults.report("begin recording a LiteLLM call", fault)
        return wrapped(*args, **kwargs)

    def priced(self, wrapped: Callable[..., Any], logging: Any, args: Any, kwargs: Any) -> Any:
        """Around what computes the price of an answer, before the app gets it."""
        cost = wrapped(*args, **kwargs)
        self._conclude(logging, cost)
        return cost

    def failed(self, wrapped: Callable[..., Any], logging: Any, args: Any, kwargs: Any) -> Any:
        """Around what is called where LiteLLM gives up, perhaps after the answer."""
        self._conclude(logging, None)
        return wrapped(*args, **kwargs)

    def stream(self, wrapped: Callable[..., Any], stream: Any, args: Any, kwargs: Any) -> None:
        """Around the making of a stream of chunks, wherever in LiteLLM it is made."""
        wrapped(*args, **kwargs)
        try:
            attempt = self._attempt_of(private.logging_of_stream(stream))
            if attempt is not None:
                attempt.follow(stream)
        except Exception as fault:
            faults.report("follow a stream of LiteLLM's", fault)

    def look_up(self, wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        """Around what asks LiteLLM's cache: a framework's call that it answers costs nothing."""
        found = wrapped(*args, **kwargs)
        _see_cached(found, kwargs)
        return found

    async def look_up_async(self, wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
        """Around its asynchronous twin."""
        found = await wrapped(*args, **kwargs)
        _see_cached(found, kwargs)
        return found

    def _conclude(self, logging: Any, cost: object) -> None:
        try:
            if (attempt := self._of.get(logging)) is not None:
                attempt.facts.take_cost(cost)
                attempt.conclude()
        except Exception as fault:
            faults.report("end a LiteLLM call", fault)

    def _begin(self, operation: str, wrapped: Any, args: Any, kwargs: Any) -> Exchange:
        try:
            logging = private.logging_of(kwargs)
            if logging is not None and not tracing.is_off():
                attempt = LiteLLMAttempt(self, operation, logging, _arguments(wrapped, args, kwargs), _running.get())
                self._of[logging] = attempt
                if admittance.gate is not None:
                    attempt.ask(admittance.gate)
                return LiteLLMExchange(attempt, args)
        except Exception as fault:
            faults.report("look at a LiteLLM call", fault)
        return Exchange(None, args)  # not to be recorded

    def left(self, logging: Any, attempt: LiteLLMAttempt) -> None:
        """The function around is at work again, where there is one for the same call."""
        if logging is not None and attempt.around is not None and self._of.get(logging) is attempt:
            self._of[logging] = attempt.around

    def _attempt_of(self, logging: Any) -> LiteLLMAttempt | None:
        if logging is None:
            return None
        attempt = self._of.get(logging)
        if attempt is None and (around := _running.get()) is not None and around.is_of(logging):
            return around
        return attempt


class LiteLLMAttempt:
    """One run of a function of LiteLLM's, which makes a request, or has another function make it."""

    __slots__ = (
        "__weakref__",
        "_answer",
        "_arguments",
        "_held",
        "_id",
        "_offer",
        "_operation",
        "around",
        "asking",
        "call",
        "facts",
        "framework_offers",
        "is_again",
        "offers",
        "records",
        "refusal",
    )

    def __init__(
        self,
        records: LiteLLMHooks,
        operation: str,
        logging: Any,
        arguments: Mapping[str, Any],
        around: LiteLLMAttempt | None,
    ) -> None:
        self.records = records
        self._operation = operation
        self._id = private.call_id(logging)
        self._arguments = arguments
        self._answer: ToldAnswer | None = None
        self._offer: ModelCall | PassedOn | None = None
        self.around = around if around is not None and around.is_of(logging) else None
        """The run around it that is of the same call: `acompletion` has `completion` prepare the request."""
        self.asking: Asking | None = None
        self.is_again = False
        """Whether the request is made once more, as LiteLLM made it."""
        self.call: ModelCall | None = None
        """None until LiteLLM is about to make a request."""
        self.facts = KnownToLiteLLM(operation)
        self.framework_offers: Sequence[ModelCall | PassedOn] = (
            hand_over.offered.get() if around is None else around.framework_offers
        )
        """What a framework offers around all of LiteLLM's functions that are at work here."""
        self.offers: list[ModelCall | PassedOn] = []
        """What the OpenAI client is offered in this run."""
        self._held: admittance.Held | None = None
        """What is set aside for the call, until it begins."""
        self.refusal: Exception | None = None
        """Why nothing may be asked, to be raised instead."""

    def is_of(self, logging: Any) -> bool:
        """Whether it is of the call that a `Logging` object stands for."""
        return self._id is not None and private.call_id(logging) == self._id

    @property
    def is_taken_over(self) -> bool:
        """Whether the OpenAI client makes the request: its hook ends the call."""
        return self._offer is not None and hand_over.is_claimed(self._offer)

    def ask(self, gate: admittance.CallGate) -> None:
        """Asks whether the call may be made. Here already: what is raised where LiteLLM makes its request, it makes another of.

        A framework around has asked, and so has the function around where there is one for the same call.
        """
        if self.around is not None or private.is_mocked(self._arguments):
            return
        if any(offer.is_waiting for offer in self.framework_offers):
            return
        asked = self._arguments
        provider, model = private.named(asked)
        known = attributes(Endpoint(self._operation), _server("", provider), asked, bool(asked.get("stream")))
        try:
            length = characters.of_request(asked) if settings().estimate else None
        except Exception as fault:
            faults.report("measure a request", fault)
            length = None
        said = {semconv.OPERATION: self._operation, **known, **context.attributes()}
        if model is not None:
            said[semconv.REQUEST_MODEL] = model
        if (above := parent.find_parent()) is not None:
            parent.inherit(said, above)
        answer = gate.admit(said, None if above is None else above.span, length)
        if isinstance(answer, Exception):
            self.refusal = answer
            ModelCall(self.records.tracer, self._operation, model, known, under=above).refuse(answer)
        else:
            self._held = answer

    # --- the request ---------------------------------------------------------------------------------------------------
    def begin(self, logging: Any, said: Mapping[str, Any]) -> None:
        """LiteLLM is about to make a request."""
        if private.is_mocked(self._arguments):
            return
        url, body = private.request(said)
        self.facts.provider, self.facts.model = private.told(logging)
        if self.facts.provider in private.SENT_BY_CLIENT:
            self.offers.extend(self.framework_offers)
            return
        server = _server(url, self.facts.provider)
        if self.call is None and (around := self.around) is not None and around.is_again:
            self.call, self._offer = around.call, around._offer
        if self.call is None:
            self._begin_call(server)
        elif self.call.attempts is not None and not self.is_taken_over:
            self.call.attempts += 1
        if hand_over.offered.get() is not self.offers:  # a thread that was begun before there was anything to offer
            hand_over.offered.set(self.offers)
        try:
            self._ask_for_usage(url, body, server)
        except Exception as fault:
            faults.report("ask a stream for its usage", fault)

    def _begin_call(self, server: Server) -> None:
        abandoned.finish_abandoned()
        asked = self._arguments
        known: dict[str, Any] = {semconv.PROVIDER: server.provider}
        try:
            known = attributes(Endpoint(self._operation), server, asked, bool(asked.get("stream")))
        except Exception as fault:
            faults.report("read the parameters of a LiteLLM call", fault)
        if settings().captures_content:
            known |= request_content(self._operation, asked, asked.get("file"))
        # From here on there is a span.
        model = self.facts.model
        call = hand_over.claim(self._operation, self.framework_offers)
        if call is None:
            self._offer = call = ModelCall(self.records.tracer, self._operation, model, known)
        else:
            self._offer = PassedOn(call)
            call.describe(self._operation, model, {**known, semconv.RECORDED_BY: self.records.scope})
        self.call = call
        outermost = self
        while outermost.around is not None:  # which has asked
            outermost = outermost.around
        held, outermost._held = outermost._held, None
        call.hold(held)
        call.attempts = 1
        call.propagates = server.address in settings().propagate_to
        self.offers.append(self._offer)

    def _ask_for_usage(self, url: str, body: Any, server: Server) -> None:
        """Has a stream of chat tell its usage. LiteLLM itself keeps what comes of it from the app.

        Only where LiteLLM sends the request: where the OpenAI client does, its hook asks. The body is LiteLLM's own.
        """
        mode = settings().stream_usage
        self.facts.is_asked = False
        if type(body) is not dict or body.get("stream") is not True or not urlsplit(url).path.endswith(_OPENAI_CHAT):
            return
        if (options := body.get("stream_options")) is not None:
            self.facts.is_asked = bool(fields(options).get("include_usage"))
            return
        was_asked = self.asking is not None or (self.around is not None and self.around.asking is not None)
        if mode == "never" or was_asked:  # it has refused: this time the request goes as LiteLLM made it
            return
        name = server.address or "unknown"
        known = stream_usage.server(
            url.partition("?")[0], name if server.port in (None, 443) else f"{name}:{server.port}"
        )
        model = self.facts.model or ""
        if known.is_suspected(model):
            self.asking = Asking(known, model, None, None)
        elif not known.refuses(model, here=mode == "always"):
            self.asking = Asking(known, model, None, AskedBody({}, {}, known))
            body["stream_options"] = {"include_usage": True}
            self.facts.is_asked = True

    # --- its end -------------------------------------------------------------------------------------------------------
    def leave(self) -> None:
        """The function is at its end: what it was called with is not needed any more."""
        self.records.left(private.logging_of(self._arguments), self)
        self._arguments = {}
        held, self._held = self._held, None
        if held is not None:  # no request was made
            held.release()

    def take(self, result: Any) -> None:
        """The function has returned. What is no stream ends when LiteLLM has put a price on it, which it does next."""
        if self.call is None or self.is_taken_over:
            return
        if isawaitable(result):  # the request is made by the function around
            if self.around is not None:
                self.around.take_over(self)
            return
        if private.is_stream(result):
            self.follow(result)
            return
        answer = ToldAnswer(self.facts, self.call.attributes)
        answer.see_whole(result)
        self._answer = answer
        abandoned.later(self.conclude)  # where LiteLLM gives up before, or this was a retry, which it puts no price on

    def follow(self, stream: Any) -> None:
        """The answer comes as a stream, unless it is the OpenAI client's, or inside one that is followed already."""
        if self.call is not None and not self.is_taken_over and not self.call.is_followed:
            follow_chunks(stream, ChunkRecorder(self.call, self.facts, self.asking))

    def take_over(self, inner: LiteLLMAttempt) -> None:
        """Goes on with what a run inside has begun."""
        self.call, self.facts, self._offer = inner.call, inner.facts, inner._offer
        self.asking = self.asking or inner.asking
        self.offers.extend(offer for offer in inner.offers if offer not in self.offers)

    def conclude(self) -> None:
        """Ends the call whose answer is there, now that its price is known, or will not be."""
        answer, self._answer = self._answer, None
        if self.call is not None and answer is not None:
            self.call.finish(
                answer.status, usage=answer.usage, error_type=answer.error_type, attributes=answer.attributes()
            )

    def end(self, status: str, error: BaseException | None = None, **told: Any) -> None:
        """Ends a call that has no answer, unless the OpenAI client's hook does."""
        if self.call is not None and not self.is_taken_over:
            self.call.finish(status, error=error, **told)


class LiteLLMExchange(Exchange):
    """The function around an attempt, from its beginning to its end."""

    __slots__ = ("_attempt", "_before", "_handled", "_offered")

    def __init__(self, attempt: LiteLLMAttempt, args: Any) -> None:
        super().__init__(None, args)
        self._attempt = attempt
        self._before = _running.get()
        self._offered = hand_over.offered.get()
        self._handled = sys.exception()
        """What the app is handling, which is nothing of this call's."""

    def attach(self) -> None:
        if self._attempt.refusal is not None:
            raise self._attempt.refusal
        _running.set(self._attempt)
        hand_over.offered.set(self._attempt.offers)

    def detach(self) -> None:
        if _running.get() is self._attempt:
            _running.set(self._before)
        if hand_over.offered.get() is self._attempt.offers:
            hand_over.offered.set(self._offered)
        self._attempt.leave()

    def is_sent_again(self, error: Exception) -> bool:
        """Whether the server has refused to tell the usage of a stream."""
        try:
            attempt = self._attempt
            if attempt.asking is None or attempt.is_again or attempt.is_taken_over:
                return False
            attempt.is_again = attempt.asking.is_refused(error)
            return attempt.is_again
        except Exception as fault:
            faults.report("look at a refusal", fault)
            return False

    def end(self) -> None:
        self.detach()
        if not isawaitable(self.result):
            self._learn(None)
        try:
            self._attempt.take(self.result)
        except Exception as fault:
            faults.report("read a LiteLLM answer", fault)
            self._attempt.end(semconv.OK)

    def fail(self, error: BaseException) -> None:
        self.detach()
        self._learn(error)
        status = ending.status_of(error)
        if status == semconv.PARTIAL:  # a coroutine that was dropped while it waited for the answer
            status = semconv.CANCELLED
        causes = list(self._causes_of(error))
        is_not_sent = status == semconv.ERROR and any(map(ending.is_not_sent, causes))
        self._attempt.end(
            status,
            error,
            error_type=private.status_code(error, causes),
            attributes={semconv.NOT_SENT: True} if is_not_sent else None,
        )

    def _learn(self, error: BaseException | None) -> None:
        """Remembers what the outcome tells of the server."""
        try:
            if self._attempt.asking is not None and not self._attempt.is_taken_over:
                self._attempt.asking.ended(error)
        except Exception as fault:
            faults.report("learn what a server takes", fault)

    def _causes_of(self, error: BaseException) -> Iterator[BaseException]:
        """What came up before it in this function. LiteLLM raises errors of its own while it handles others."""
        cause: BaseException | None = error
        for _ in range(_CAUSES_LOOKED_AT):
            if cause is None or cause is self._handled:
                break
            yield cause
            cause = cause.__cause__ or cause.__context__


def _see_cached(found: Any, arguments: Mapping[str, Any]) -> None:
    try:
        if private.is_cached_text(found, arguments) and (call := hand_over.claim(semconv.CHAT)) is not None:
            call.finish(semconv.OK, attributes={semconv.CACHE_HIT: True})
    except Exception as fault:
        faults.report("look at an answer out of LiteLLM's cache", fault)


def _arguments(wrapped: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a function by their names."""
    if not args:
        return kwargs
    code = wrapped.__code__
    return {**dict(zip(code.co_varnames[: code.co_argcount], args, strict=False)), **kwargs}


def _server(url: str, provider: str | None) -> Server:
    at = urlsplit(url if "://" in url else f"//{url}")
    try:
        host, port = at.hostname or None, at.port
    except ValueError:
        host = port = None
    name = provider_at(host) or provider_name(private.PROVIDERS.get(provider or "", provider or "unknown"))
    return Server(name, host, port or {"https": 443, "http": 80}.get(at.scheme), url)
