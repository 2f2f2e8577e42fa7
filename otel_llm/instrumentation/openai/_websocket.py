"""Websockets: `realtime.connect`, `responses.connect`, `live.connect` and what is connected to a live session.

Every way of reading (`recv`, iteration, event handlers) gets its messages from `recv_bytes`, so that is what is wrapped. One call
for each response, from `response.created` to the event that ends it; one for each live session, which reports what it has used.
What they were asked is what the app gave to `send`, with which every resource of a connection sends; it is looked at only where
content is captured.

Most messages are pieces of audio or text: they cost one regular expression on their first bytes. Only the few that tell of a
response or a session are parsed.
"""

from __future__ import annotations

import inspect
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

from otel_llm import context
from otel_llm.calls import abandoned, admittance, tracing
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import fields
from otel_llm.conventions.usage_reading import read_usage
from otel_llm.instrumentation.openai import private
from otel_llm.instrumentation.openai._answer import Answer
from otel_llm.instrumentation.openai._observe import Once
from otel_llm.instrumentation.openai._request import Endpoint, attributes, server_at
from otel_llm.instrumentation.openai._stream import loads
from otel_llm.instrumentation.patching import Patches
from otel_llm.settings import settings
from otel_llm.support import faults

_SESSION = "_otel_llm_session"
_TYPE = re.compile(rb'\s*\{\s*(?:"event_id"\s*:\s*"[^"\\]*"\s*,\s*)?"type"\s*:\s*"([^"\\]+)"')
"""The type of a message that begins with it, as OpenAI's do."""
_RESPONSE_ID = re.compile(rb'"response_id"\s*:\s*"([^"\\]+)"')
_HEAD = 512
_BEGINS = b"response.created"
_ENDS = frozenset({b"response.done", b"response.completed", b"response.incomplete", b"response.failed"})
_TRANSCRIBED = b"conversation.item.input_audio_transcription.completed"
_TELLING = _ENDS | {
    _BEGINS,
    _TRANSCRIBED,
    b"session.created",
    b"session.started",
    b"session.updated",
    b"session.usage.updated",
    b"session.closed",
    b"response.event",
    b"decision.event",
}
_ASKS = frozenset({"response.create", "decision.create", "session.start"})
"""What an app sends to have a model answer."""
_HEARS = ("input_audio.append", "input_audio_buffer.append", "input_audio_buffer.commit")
"""How what it sends ends that a model may answer without being asked."""
_MENTIONED = re.compile(rb'"(?:' + b"|".join(re.escape(kind) for kind in sorted(_TELLING)) + rb')"')
"""Inside a JSON string the quotes are escaped, so this finds no text that a model wrote."""

_counted = Once()
"""Responses and sessions that were recorded: a sideband connection sees those of the connection beside it."""


class WebsocketHooks:
    """The wrappers, with the tracer they write to."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def patch(self, patches: Patches) -> None:
        """Wraps the connection classes as their modules are imported."""
        for module, api in private.WEBSOCKETS.items():
            patches.when_imported(module, partial(self._patch_module, patches, api))

    def _patch_module(self, patches: Patches, api: str, module: Any) -> None:
        try:
            for cls in list(vars(module).values()):
                if isinstance(cls, type) and "recv_bytes" in vars(cls):
                    is_async = inspect.iscoroutinefunction(vars(cls)["recv_bytes"])
                    patches.wrap(cls, "recv_bytes", partial(self._recv_async if is_async else self._recv, api))
                    patches.wrap(cls, "send", partial(self._send, api), optional=True)
                    patches.wrap(cls, "close", _close_async if is_async else _close, optional=True)
        except Exception as fault:
            faults.report("instrument a websocket", fault)

    def _recv(self, api: str, wrapped: Callable[..., Any], connection: Any, args: Any, kwargs: Any) -> Any:
        try:
            message = wrapped(*args, **kwargs)
        except BaseException as error:
            _lost(connection, error)
            raise
        self._see(api, connection, message)
        return message

    async def _recv_async(self, api: str, wrapped: Callable[..., Any], connection: Any, args: Any, kwargs: Any) -> Any:
        try:
            message = await wrapped(*args, **kwargs)
        except BaseException as error:
            _lost(connection, error)
            raise
        self._see(api, connection, message)
        return message

    def _send(self, api: str, wrapped: Callable[..., Any], connection: Any, args: Any, kwargs: Any) -> Any:
        """Around `send`, async or not. Before it: the answer may come while it is still at work."""
        if admittance.gate is not None:
            refusal = None
            try:
                if (session := self._session(api, connection)) is not None:
                    refusal = session.ask(admittance.gate, args[0] if args else kwargs.get("event"))
            except Exception as fault:
                faults.report("ask whether a budget has room for what a websocket sends", fault)
            if refusal is not None:
                raise refusal
        try:
            if settings().captures_content and (session := self._session(api, connection)) is not None:
                session.send(args[0] if args else kwargs.get("event"))
        except Exception as fault:
            faults.report("read what is sent over a websocket", fault)
        return wrapped(*args, **kwargs)

    def _see(self, api: str, connection: Any, message: Any) -> None:
        try:
            if (session := self._session(api, connection)) is not None:
                session.see(message if isinstance(message, bytes) else bytes(message, "utf-8", "replace"))
        except Exception as fault:
            faults.report("read a websocket message", fault)

    def _session(self, api: str, connection: Any) -> Session | None:
        """The session of a connection; None where the app has turned instrumentation off."""
        session: Session | None = connection.__dict__.get(_SESSION)
        if session is None and not tracing.is_off():
            session = connection.__dict__[_SESSION] = Session(self._tracer, api, connection)
        return session


def _close(wrapped: Callable[..., Any], connection: Any, args: Any, kwargs: Any) -> Any:
    try:
        return wrapped(*args, **kwargs)
    finally:
        _leave(connection)


async def _close_async(wrapped: Callable[..., Any], connection: Any, args: Any, kwargs: Any) -> Any:
    try:
        return await wrapped(*args, **kwargs)
    finally:
        _leave(connection)


def _leave(connection: Any) -> None:
    session = connection.__dict__.get(_SESSION)
    if session is not None:
        session.end(semconv.PARTIAL)


def _lost(connection: Any, error: BaseException) -> None:
    """A read has failed. Only the end of the connection ends its calls: a read that timed out or was cancelled can be repeated."""
    session = connection.__dict__.get(_SESSION)
    if session is not None and type(error).__name__.startswith("ConnectionClosed"):
        is_ours = private.is_closed_by_app(connection)
        session.end(semconv.PARTIAL if is_ours else semconv.ERROR, None if is_ours else error)


class Session:
    """The calls under way on one connection. The connection alone refers to it, so it ends with that."""

    MAX_OPEN = 256
    """Responses that never end must not fill the memory."""

    def __init__(self, tracer: Tracer, api: str, connection: Any) -> None:
        self._tracer = tracer
        self._api = api
        self._open: dict[str, tuple[ModelCall, Answer]] = {}
        self._live: ModelCall | None = None
        self._live_details: dict[str, Any] = {}
        self._live_usage: object = None
        self._transcription_model: str | None = None
        self._held: deque[admittance.Held] = deque()
        """What is set aside for responses that were asked for and have not begun."""
        self._is_refused = False
        self._sent: Any = None
        """What keeps what the app sends, where that is captured."""
        request = private.handshake(connection)
        url = urlsplit(getattr(request, "path", None) or "")
        query = parse_qs(url.query)
        self._model: str | None = next(iter(query.get("model") or query.get("deployment") or ()), None)
        host = urlsplit("//" + (getattr(request, "headers", None) or {}).get("Host", ""))
        self._server = server_at(host.hostname, host.port)

    def send(self, event: object) -> None:
        """Takes note of what the app is about to send."""
        from otel_llm.content import capture  # only with capture

        if self._sent is None:
            from otel_llm.content.websocket import Sent

            self._sent = Sent(self._api == "live")
        if capture.wanted():
            self._sent.see(event)

    def ask(self, gate: admittance.CallGate, event: object) -> Exception | None:
        """Why what the app is about to send may not be sent: it has a model answer, and a budget is spent."""
        told = fields(event)
        kind = told.get("type")
        if not isinstance(kind, str) or not (kind in _ASKS or kind.endswith(_HEARS)):
            return None
        body = fields(told.get("response")) or told
        said = attributes(Endpoint(semconv.CHAT, self._api), self._server, body, True)
        said = {semconv.OPERATION: semconv.CHAT, **said, **context.attributes()}
        model = body.get("model") or self._model
        if isinstance(model, str):
            said[semconv.REQUEST_MODEL] = model
        answer = gate.admit(said, None, None)
        is_new, self._is_refused = not self._is_refused, isinstance(answer, Exception)
        if isinstance(answer, Exception):
            if kind in _ASKS or is_new:  # of pieces of audio there are fifty in a second
                self._call(semconv.CHAT, self._model).refuse(answer)
            return answer
        if answer is not None:
            if kind not in _ASKS:
                answer.release()
            elif len(self._held) < self.MAX_OPEN:
                self._held.append(answer)
        return None

    def see(self, message: bytes) -> None:
        """Takes note of a message before the app sees it."""
        if found := _TYPE.match(message):
            kind = found[1]
            if kind not in _TELLING:
                if self._open and kind.endswith(b".delta"):
                    self._first_chunk(message)
                return
        elif not _MENTIONED.search(message):
            return
        event = fields(loads(message))
        kind = event.get("type")
        if isinstance(kind, str):
            self._take(kind.encode("utf-8", "replace"), event)

    def _take(self, kind: bytes, event: Mapping[str, Any]) -> None:
        if kind == _BEGINS:
            self._begin_response(event)
        elif kind in _ENDS:
            self._end_response(event)
        elif kind == b"response.event":  # of the model that a live session delegates to
            nested = fields(event.get("event"))
            kind = str(nested.get("type")).encode("utf-8", "replace")
            if kind == _BEGINS or kind in _ENDS:
                self._take(kind, nested)
        elif kind == b"decision.event":
            decision = fields(fields(event.get("event")).get("decision"))
            self._count(semconv.DECISION, decision, decision.get("model"), event.get("event_id"))
        elif kind == _TRANSCRIBED:
            item = f"{event.get('item_id')}/{event.get('content_index')}"
            told = {"usage": event.get("usage"), "text": event.get("transcript")}
            self._count(semconv.TRANSCRIPTION, told, self._transcription_model, item)
        elif kind.startswith(b"session."):
            self._see_session(kind, event)

    # --- responses -----------------------------------------------------------------------------------------------------
    def _begin_response(self, event: Mapping[str, Any]) -> ModelCall | None:
        answer = Answer()
        answer.see(event)
        if answer.id is None or not _counted.first(answer.id):
            return None
        call = self._call(semconv.CHAT, self._model)
        if self._held:
            call.hold(self._held.popleft())
        self._open[answer.id] = call, answer
        if len(self._open) > self.MAX_OPEN:
            oldest, answer = self._open.pop(next(iter(self._open)))
            oldest.finish(semconv.PARTIAL, attributes=answer.attributes())
        return call

    def _end_response(self, event: Mapping[str, Any]) -> None:
        response_id = fields(event.get("response")).get("id")
        if not isinstance(response_id, str):
            return
        if response_id not in self._open:
            self._begin_response(event)  # connected in the middle of it
        if (found := self._open.pop(response_id, None)) is None:
            return
        call, answer = found
        answer.see({**event, "type": "response.done"})
        call.finish(answer.status, usage=answer.usage, error_type=answer.error_type, attributes=answer.attributes())

    def _first_chunk(self, message: bytes) -> None:
        if len(self._open) == 1:
            (found,) = self._open.values()
        else:
            named = _RESPONSE_ID.search(message, 0, _HEAD)
            one = self._open.get(named[1].decode("utf-8", "replace")) if named else None
            if one is None:
                return
            found = one
        call = found[0]
        if call.first_chunk_ns is None:
            call.chunk()
        else:
            call.last_chunk_ns = time.perf_counter_ns()

    def _count(self, operation: str, payload: Mapping[str, Any], model: object, identity: object) -> None:
        """Records what is reported at its end alone."""
        answer = Answer()
        answer.see(payload)
        if answer.usage is None or not _counted.first(f"{operation} {identity}"):
            return
        call = self._call(operation, model if isinstance(model, str) else None)
        call.finish(semconv.OK, usage=answer.usage, attributes=answer.attributes())

    def _call(self, operation: str, model: str | None) -> ModelCall:
        abandoned.finish_abandoned()
        known = attributes(Endpoint(operation, self._api), self._server, {}, True)
        if operation != semconv.LIVE_SESSION:  # whose input goes on to its end
            known |= self._asked(operation)
        return ModelCall(self._tracer, operation, model, known)

    def _asked(self, operation: str) -> dict[str, Any]:
        """What the app has sent for a call, where that is captured."""
        return self._sent.take(operation) if self._sent is not None else {}

    # --- sessions ------------------------------------------------------------------------------------------------------
    def _see_session(self, kind: bytes, event: Mapping[str, Any]) -> None:
        told = fields(event.get("session"))
        if isinstance(model := told.get("model"), str):
            self._model = model
        transcription = fields(fields(fields(told.get("audio")).get("input")).get("transcription"))
        transcription = transcription or fields(told.get("input_audio_transcription"))
        if isinstance(model := transcription.get("model"), str):
            self._transcription_model = model
        if self._api != "live":
            return
        session_id = told.get("id")
        if self._live is None and isinstance(session_id, str) and _counted.first(session_id):
            self._live = self._call(semconv.LIVE_SESSION, self._model)
            self._live_details = {semconv.RESPONSE_ID: session_id}
        if (usage := event.get("usage")) is not None:
            self._live_usage = usage
        if kind == b"session.closed":
            reason = event.get("reason")
            if isinstance(reason, str):
                self._live_details[semconv.FINISH_REASONS] = [reason]
            failed = reason in ("content", "connection_lost")
            self._end_session(semconv.ERROR if failed else semconv.OK, error_type=str(reason) if failed else None)

    def _end_session(self, status: str, error: BaseException | None = None, error_type: str | None = None) -> None:
        call, self._live = self._live, None
        if call is None:
            return
        reading = read_usage(self._live_usage)
        call.finish(
            status,
            usage=reading.usage,
            error=error,
            error_type=error_type,
            attributes=self._live_details | reading.attributes() | self._asked(semconv.LIVE_SESSION),
        )

    def end(self, status: str, error: BaseException | None = None) -> None:
        """The connection is gone, and with it everything that runs on it."""
        try:
            while self._held:
                self._held.popleft().release()
            while self._open:
                _, (call, answer) = self._open.popitem()
                call.finish(status, error=error, usage=answer.usage, attributes=answer.attributes())
            self._end_session(status, error)
        except Exception as fault:
            faults.report("end the calls of a websocket", fault)

    def __del__(self) -> None:
        for held in self._held:
            abandoned.later(held.release)
        for call, answer in self._open.values():
            call.abandon(semconv.PARTIAL, answer.usage, answer.attributes())
        if self._live is not None:
            reading = read_usage(self._live_usage)
            details = self._live_details | reading.attributes() | self._asked(semconv.LIVE_SESSION)
            self._live.abandon(semconv.PARTIAL, reading.usage, details)
