"""A context for each request of a web app, from what the app knows of it. For ASGI and WSGI, without a framework.

app.add_middleware(LLMContextMiddleware, module="api", user_id=lambda request: request.headers.get("x-user"))
application = LLMContextWSGIMiddleware(application, module="api", user_id=lambda request: ...)
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cached_property
from typing import Any, cast
from urllib.parse import parse_qsl

from opentelemetry import context as otel

from otel_llm.context import llm_context
from otel_llm.support import faults

__all__ = ["LLMContextMiddleware", "LLMContextWSGIMiddleware", "Request"]

_NO_STATE: Mapping[str, Any] = {}


class Request:
    """What the functions of a middleware get: a request, read-only, the same for ASGI and WSGI."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        """The ASGI scope or the WSGI environ: whatever else the server and other middleware put there."""

    @property
    def _is_asgi(self) -> bool:
        return "type" in self.raw

    @property
    def method(self) -> str:
        """`GET` and so on; empty for a websocket."""
        return str(self.raw.get("method" if self._is_asgi else "REQUEST_METHOD", ""))

    @property
    def path(self) -> str:
        """The path of the URL, percent-decoded."""
        if self._is_asgi:
            return str(self.raw.get("path", ""))
        return str(self.raw.get("PATH_INFO", "")).encode("latin-1", "replace").decode("utf-8", "replace")

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """By their names in lower case; of a header that came several times, the last."""
        if self._is_asgi:
            return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.raw["headers"]}
        return {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in self.raw.items()
            if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        }

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The parameters of the query; of one that came several times, the last."""
        query = self.raw.get("query_string" if self._is_asgi else "QUERY_STRING", "")
        return dict(parse_qsl(query.decode("latin-1") if isinstance(query, bytes) else query, keep_blank_values=True))

    @property
    def state(self) -> Mapping[str, Any]:
        """What other middleware noted in Starlette's `request.state`; empty elsewhere."""
        state = self.raw.get("state")
        return state if isinstance(state, Mapping) else _NO_STATE


_Value = Callable[[Request], object] | object


class _Middleware:
    def __init__(
        self,
        app: Callable[..., Any] | None = None,
        /,  # by name it could be a tag's: type checkers would not let Starlette's `add_middleware` take the class
        module: _Value = None,
        *,
        user_id: _Value = None,
        session_id: _Value = None,
        conversation_id: _Value = None,
        request_id: _Value = None,
        **tags: _Value,
    ) -> None:
        if app is None:
            app = cast("Callable[..., Any]", tags.pop("app", None))  # as older versions of Starlette give it
        if not callable(app):
            raise TypeError(f"the app is missing: {type(self).__name__}(app, module=...)")
        self.app = app
        self._asked: dict[str, _Value] = {
            "module": module,
            "user_id": user_id,
            "session_id": session_id,
            "conversation_id": conversation_id,
            "request_id": request_id,
            **tags,
        }
        for name, value in self._asked.items():
            if inspect.iscoroutinefunction(value):
                raise TypeError(
                    f"{name}={getattr(value, '__qualname__', value)} is an async function; give a plain one, and have what it "
                    "awaits done by a middleware that runs before this one"
                )

    def _context(self, raw: Mapping[str, Any]) -> llm_context:
        """The context of a request. A function that raises is reported once, and says nothing."""
        request = Request(raw)
        said: dict[str, Any] = {}
        for name, value in self._asked.items():
            if callable(value):
                try:
                    value = value(request)
                except BaseException as error:
                    if faults.is_passing_by(error):
                        raise
                    faults.report(f"ask {name}= of a request", error)
                    continue
            said[name] = value
        return llm_context(**said)


_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LLMContextMiddleware(_Middleware):
    """ASGI middleware (FastAPI, Starlette, Django, …): each request and websocket runs in an `llm_context`, streaming included.

    Args:
        app: the ASGI application.
        module, user_id, session_id, conversation_id, request_id, tags: as for `llm_context`; a function is called with the
            `Request` for each request, before the app sees it.

    Raises TypeError for an async function.
    """

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] not in ("http", "websocket"):  # lifespan is nobody's request
            await self.app(scope, receive, send)
            return
        with self._context(scope):
            await self.app(scope, receive, send)


class LLMContextWSGIMiddleware(_Middleware):
    """WSGI middleware (Flask, Django, …): each request runs in an `llm_context`, until the last of its response is sent.

    Args:
        app: the WSGI application.
        module, user_id, session_id, conversation_id, request_id, tags: as for `LLMContextMiddleware`.

    Raises TypeError for an async function.
    """

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._context(environ):
            response: Iterable[bytes] = self.app(environ, start_response)
            # Nothing runs while a list is sent, and servers look for these: a list of one tells the length, a file is sent by
            # the kernel.
            if isinstance(response, (list, tuple, _file_wrapper(environ))):
                return response
            return _Response(response, otel.get_current())


def _file_wrapper(environ: Mapping[str, Any]) -> type:
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper if isinstance(wrapper, type) else list


class _Response:
    """The response of a WSGI app, made in the context of its request."""

    __slots__ = ("_iterator", "_response", "_room")

    def __init__(self, response: Iterable[bytes], inside: otel.Context) -> None:
        from otel_llm.context.generators import StepContext

        self._response = response
        self._room = StepContext(inside)
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._iterator = self._room.run(iter, self._response)
        chunk: bytes = self._room.run(next, self._iterator)
        return chunk

    def close(self) -> None:
        """Closes the app's response; servers call it however the request ended."""
        close = getattr(self._response, "close", None)
        if close is not None:
            self._room.run(close)
