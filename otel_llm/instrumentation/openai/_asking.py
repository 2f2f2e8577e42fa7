"""Asking a stream for its usage, and the way back.

Chat streams tell their usage only if `stream_options.include_usage` asks for it. Most servers take the question or pass over
it, some refuse the request. So whatever is asked here can be taken back:

known not to take it   -> the request goes as the app made it
an error in a 200      -> the app has it already; the next stream is not asked, if the error names what we asked
400 or 422             -> the request is sent again as the app made it, once, unless the server has taken the question before
                          and does not name it now: then the error is the app's own
the client's own retry -> goes as the app made it, where the server has not taken the question yet

After any other answer we send nothing that the client would not send: after a 5xx or a broken connection the call may have been
made and billed, and how often to try is the app's to say. A server that breaks down is suspected, and is not asked the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from otel_llm.calls import stream_usage
from otel_llm.instrumentation.openai._answer import names_usage_question
from otel_llm.instrumentation.openai._ending import statuses_before
from otel_llm.instrumentation.openai._request import Endpoint, Server, sent_query
from otel_llm.instrumentation.openai._stream import hide_usage_of
from otel_llm.settings import settings
from otel_llm.support import faults

_REFUSALS: Final = (400, 422)
_NOT_OF_THE_SERVER: Final = (401, 403, 404, 408, 409, 429)
"""Statuses that say nothing about what a request asks for."""
_FIRST_AZURE: Final = "2024-08-01"
"""Azure's API versions (`2024-08-01-preview`) before this one refuse `stream_options`."""
_LONGEST_MODEL: Final = 200
_OPTION: Final = "stream_options"
_ABSENT: Final = object()


class AskedBody(dict[str, Any]):
    """The part of a request's body that we put the question into: our own copy, which the client's retries share."""

    __slots__ = ("_before", "is_asked", "server")

    def __init__(self, body: Mapping[str, Any], asked: Mapping[str, Any], server: stream_usage.KnownServer) -> None:
        super().__init__(body)
        self._before = body.get(_OPTION, _ABSENT)
        self[_OPTION] = {**asked, "include_usage": True}
        self.is_asked = True
        self.server = server

    def take_back(self) -> None:
        """Makes it what the app gave."""
        self.is_asked = False
        if self._before is _ABSENT:
            self.pop(_OPTION, None)
        else:
            self[_OPTION] = self._before


class Asking:
    """One stream that may be asked for its usage."""

    __slots__ = ("_body", "_is_again", "_is_over", "_model", "_server", "options")

    def __init__(
        self, server: stream_usage.KnownServer, model: str, options: Any | None, body: AskedBody | None
    ) -> None:
        self._server = server
        self._model = model
        self._body = body
        self._is_again = False
        self._is_over = False
        self.options = options
        """What the request is made with in place of the app's options; None where those are right."""

    @property
    def hides_usage(self) -> bool:
        """Whether the usage that comes was asked for by us, so that the app must not see it."""
        return not self._is_again and self._body is not None and self._body.is_asked

    def is_refused(self, error: BaseException) -> bool:
        """Whether the request is to be sent again as the app made it."""
        if self._body is None or not self._body.is_asked or _status(error) not in _REFUSALS:
            return False
        if not _names_it(error) and self._server.blames_the_app():
            return False
        self._is_again = True
        return True

    def refused_late(self, error: BaseException | None, *, in_answer: bool) -> None:
        """A stream of status 200 tells of an error, which may name our question. The app has it; the next is not asked."""
        if self.hides_usage and (in_answer or (error is not None and _names_it(error))):
            self._server.refused_late(self._model)

    def ended(self, error: BaseException | None) -> None:
        """The request has got an answer, or has failed for good."""
        if self._is_over:  # a fault after the answer, while it was looked at
            return
        self._is_over = True
        status = None if error is None else _status(error)
        if self.hides_usage:
            if error is None:
                self._server.took(self._model)
            elif _is_broken(error) if status is None else status not in (*_REFUSALS, *_NOT_OF_THE_SERVER):
                self._server.broke_down(self._model)
        # Sent again by us, or tried again by the client, or not asked because the last one broke down.
        elif error is None:
            self._server.answered_unasked(self._model, said_so=self._is_again)
        else:
            self._server.failed_unasked(self._model, is_refusal=status in _REFUSALS)


def asking(
    client: Any, endpoint: Endpoint, server: Server, options: Any, body: Mapping[str, Any], model: str | None
) -> Asking | None:
    """How the usage of a stream is asked for; None where nothing is asked, and nothing learned.

    The caller's objects are never changed. `body` is what is sent.
    """
    mode = settings().stream_usage
    if mode == "never" or not endpoint.usage_on_request or body.get("stream") is not True or server.tells_unasked:
        return None
    asked = body.get(_OPTION)
    if asked is not None and not (isinstance(asked, Mapping) and asked.keys() <= {"include_obfuscation"}):
        return None
    raw, is_repeatable = _headers(options)
    if raw not in (None, "true"):  # `with_streaming_response`: there the app reads every line
        return None
    version = sent_query(client, options).get("api-version")
    version = version if isinstance(version, str) else ""
    if _is_known_to_refuse(server, version, body):
        return None
    name = server.address or "unknown"
    known = stream_usage.server(
        f"{server.base} {options.url.partition('?')[0]} {version}",
        name if server.port in (None, 443) else f"{name}:{server.port}",
        is_documented=server.takes_usage,
    )
    model = (model or "")[:_LONGEST_MODEL]
    if known.is_suspected(model):
        return Asking(known, model, None, None)
    if known.refuses(model, here=mode == "always") or not (is_repeatable or known.is_sure):
        return None
    copied = options.model_copy() if hasattr(options, "model_copy") else options.copy()
    part = "json_data" if options.extra_json is None else "extra_json"  # of the two the second is what is sent
    ours = AskedBody(getattr(options, part), asked or {}, known)
    setattr(copied, part, ours)
    if raw is not None:
        copied.post_parser = _hiding(options.post_parser, ours)
    return Asking(known, model, copied, ours)


def before_retry(options: Any, response: Any) -> None:
    """The client is about to send a request once more. `response`: what it got, where it says so."""
    for body in (getattr(options, "extra_json", None), getattr(options, "json_data", None)):
        if not isinstance(body, AskedBody) or body.server.is_sure:
            continue
        if getattr(response, "status_code", None) not in _NOT_OF_THE_SERVER:
            body.take_back()


def _is_known_to_refuse(server: Server, version: str, body: Mapping[str, Any]) -> bool:
    if "data_sources" in body or "dataSources" in body:  # Azure OpenAI "on your data", through whatever gateway
        return True
    if not version[:4].isdecimal() or not server.is_azure_openai:
        return False
    return version[: len(_FIRST_AZURE)] < _FIRST_AZURE


def _headers(options: Any) -> tuple[str | None, bool]:
    """How the client is to return the answer, and whether the request may be sent twice with different bodies."""
    raw, is_repeatable = None, options.idempotency_key is None
    headers = options.headers
    for name in headers if isinstance(headers, Mapping) else ():
        match str(name).lower():
            case "x-stainless-raw-response":
                raw = str(headers[name])
            case "idempotency-key":
                is_repeatable = False
    return raw, is_repeatable


def _hiding(theirs: Any, body: AskedBody) -> Callable[[Any], Any]:
    """What the client calls with the stream that it makes of a raw response: it is the app's, and the usage is not."""

    def parsed(stream: Any) -> Any:
        try:
            if body.is_asked:
                hide_usage_of(stream)
        except Exception as fault:
            faults.report("hide the usage of a stream", fault)
        return theirs(stream) if callable(theirs) else stream

    return parsed


def _status(error: BaseException) -> int | None:
    """The status that an error is about: the client's own, or a refusal that a hook of the app's HTTP client made one of."""
    status = getattr(error, "status_code", None)
    if type(status) is int:
        return status
    return next((status for status in statuses_before(error) if status in _REFUSALS), None)


def _is_broken(error: BaseException) -> bool:
    """Whether the server let go of the connection; one that takes its time, or cannot be reached, does so for other reasons."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "APIConnectionError" not in kinds or "APITimeoutError" in kinds:
        return False
    return "ConnectError" not in {kind.__name__ for kind in type(error.__cause__).__mro__}


def _names_it(error: BaseException) -> bool:
    """Whether a refusal speaks of what we asked."""
    return names_usage_question(getattr(error, "body", ""), error)
