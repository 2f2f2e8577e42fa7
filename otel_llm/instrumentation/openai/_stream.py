"""Follows an answer that arrives in pieces: the client's stream objects, and the body under a raw response.

A stream keeps its object; only its class becomes a subclass of its own class with the same name, so `isinstance`, `repr` and every
attribute stay what they were. A stream that is dropped ends its call too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import orjson

from otel_llm import call as calls
from otel_llm import faults
from otel_llm.call import ModelCall
from otel_llm.instrumentation.openai._answer import Answer
from otel_llm.instrumentation.openai._ending import conclude, fail
from otel_llm.instrumentation.openai._observe import Observer

_T = TypeVar("_T")
_FOLLOWER = "_otel_llm_follower"
_BODY = "_otel_llm_body"
_SSE = "text/event-stream"


class Follower:
    """Ties a stream to its call."""

    __slots__ = ("answer", "call", "hides_usage")

    def __init__(self, call: ModelCall | Observer, *, hides_usage: bool = False) -> None:
        """`hides_usage`: the usage chunk was asked for by us, so the app must not see it."""
        self.call = call
        self.answer = call.answer() if isinstance(call, Observer) else Answer()
        self.hides_usage = hides_usage

    def see(self, chunk: object) -> bool:
        """Takes note of a chunk. Returns whether the app may see it."""
        try:
            self.call.chunk(self.answer.model)
            self.answer.see(chunk)
            if self.hides_usage:
                return not _hide_usage(chunk)
        except Exception as fault:
            faults.report("read a chunk", fault)
        return True

    def complete(self) -> None:
        """The stream has come to its end."""
        conclude(self.call, self.answer, self.answer.status)

    def leave(self) -> None:
        """The app has closed the stream, perhaps early."""
        conclude(self.call, self.answer, self.answer.status if self.answer.final else calls.PARTIAL)

    def fail(self, error: BaseException) -> None:
        fail(self.call, error, self.answer)

    def drop(self) -> None:
        """The stream is gone; called by finalizers, so it ends on another stack."""
        if not self.call.finished:
            status = self.answer.status if self.answer.final else calls.PARTIAL
            calls.later(partial(conclude, self.call, self.answer, status))


def _hide_usage(chunk: Any) -> bool:
    """Removes the traces of the usage that we asked for; True where the whole chunk is ours."""
    if isinstance(chunk, dict):  # of a stream that the app has parsed to a type of its own
        return chunk.get("usage") is not None and not chunk.get("choices")
    usage = getattr(chunk, "usage", None)
    if usage is not None:
        return not getattr(chunk, "choices", None)
    getattr(chunk, "__pydantic_fields_set__", set()).discard("usage")
    return False


class _Veil(Follower):
    """Hides the usage from whoever iterates the stream made of a raw response, whose body is followed already."""

    def __init__(self) -> None:
        """It has no call: the one that follows the body has."""

    def see(self, chunk: object) -> bool:
        try:
            return not _hide_usage(chunk)
        except Exception as fault:
            faults.report("hide the usage of a stream", fault)
            return True

    def complete(self) -> None:
        """The body tells."""

    def fail(self, error: BaseException) -> None:
        """The body tells."""

    def drop(self) -> None:
        """The body tells."""


def hide_usage_of(stream: Any) -> None:
    """Takes the usage that we asked for out of an `openai.Stream` or `openai.AsyncStream`, in place."""
    iterator = stream.__dict__.get("_iterator")
    if iterator is not None and _FOLLOWER not in stream.__dict__:
        veil = _Veil()
        stream._iterator = _watch_async(iterator, veil) if hasattr(stream, "__anext__") else _watch(iterator, veil)


def follow_stream(stream: Any, follower: Follower) -> None:
    """Follows an `openai.Stream` or `openai.AsyncStream`, in place."""
    if _FOLLOWER in stream.__dict__:
        return
    cls = type(stream)
    is_async = hasattr(cls, "__anext__")
    stream.__dict__[_FOLLOWER] = follower
    stream.__class__ = _followed_class(cls, _ASYNC_STREAM if is_async else _SYNC_STREAM)
    iterator = stream._iterator
    stream._iterator = _watch_async(iterator, follower) if is_async else _watch(iterator, follower)
    follower.call.is_followed = True


def _watch(chunks: Iterator[_T], follower: Follower) -> Iterator[_T]:
    try:
        for chunk in chunks:
            if follower.see(chunk):
                yield chunk
    except GeneratorExit:
        follower.drop()
        raise
    except BaseException as error:
        follower.fail(error)
        raise
    follower.complete()


async def _watch_async(chunks: AsyncIterator[_T], follower: Follower) -> AsyncIterator[_T]:
    try:
        async for chunk in chunks:
            if follower.see(chunk):
                yield chunk
    except GeneratorExit:
        follower.drop()
        raise
    except BaseException as error:
        follower.fail(error)
        raise
    follower.complete()


# --- the body under `with_raw_response` and `with_streaming_response` ------------------------------------------------
class _Body:
    """Reads the decoded body as it passes: events of a stream one by one, a plain JSON answer at its end."""

    __slots__ = ("_content_type", "_follower", "_is_sse", "_keep", "_pending", "pulling")

    LONGEST = 32 * 2**20
    """Bytes of a JSON body that are kept to read its usage; a longer one is recorded without."""

    def __init__(self, follower: Follower, content_type: str) -> None:
        self._follower = follower
        self._content_type = content_type
        self._is_sse = content_type.startswith(_SSE)
        self._keep = is_readable(follower.answer, content_type)
        self._pending = bytearray()
        self.pulling = False
        """Whether `httpx` is at work: it closes the response itself at the end of the body, which is no early leave."""

    def feed(self, data: bytes) -> None:
        try:
            if not self._keep:
                return
            self._pending += data
            if self._is_sse:
                self._follower.call.chunk(self._follower.answer.model)
                if b"\n" in data:
                    *lines, rest = bytes(self._pending).split(b"\n")
                    self._pending[:] = rest
                    see_events(self._follower.answer, lines)
            if len(self._pending) > self.LONGEST:
                self._pending.clear()
                self._keep = self._is_sse
        except Exception as fault:
            faults.report("read a raw body", fault)

    def end(self) -> None:
        try:
            if self._keep and self._pending:
                see_body(self._follower.answer, self._content_type, self._pending)
        except Exception as fault:
            faults.report("read a raw body", fault)
        self._pending.clear()
        self._follower.complete()


def is_readable(answer: Answer, content_type: str) -> bool:
    """Whether a body tells anything: text that is neither an event stream nor JSON is a transcript, and content."""
    return "json" in content_type or content_type.startswith(_SSE if answer.content is None else "text/")


def see_body(answer: Answer, content_type: str, body: bytes | bytearray) -> None:
    """Takes what is new from a body, or the rest of one."""
    if not is_readable(answer, content_type):
        return
    if "json" in content_type:
        answer.see(loads(body))
    elif content_type.startswith(_SSE):
        see_events(answer, bytes(body).split(b"\n"))
    else:
        answer.see(body.decode("utf-8", "replace"))


def see_events(answer: Answer, lines: Iterable[bytes]) -> None:
    """Takes what is new from the events on these lines of a stream."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data.startswith(b"{"):
            answer.see(loads(data))
        elif data == b"[DONE]":
            answer.final = True


def loads(data: bytes | bytearray) -> Any:
    """The JSON value of a body or an event; None where it is none. The app gets to see that, we record a call without usage."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data)  # what the client itself reads it with takes NaN and lone surrogates
    except (ValueError, RecursionError):
        return None


def follow_body(response: Any, follower: Follower) -> None:
    """Follows the body of an `httpx` response that has not been read yet, in place, however the app reads it."""
    if _FOLLOWER in response.__dict__:
        return
    body = _Body(follower, response.headers.get("content-type", ""))
    response.__dict__[_FOLLOWER] = follower
    response.__dict__[_BODY] = body
    response.__class__ = _followed_class(type(response), _RESPONSE)
    follower.call.is_followed = True


def _iter_bytes(base: type) -> Any:
    def iter_bytes(self: Any, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        return _watch_body(base.iter_bytes(self, *args, **kwargs), self._otel_llm_body, self._otel_llm_follower)  # type: ignore[attr-defined]

    return iter_bytes


def _aiter_bytes(base: type) -> Any:
    def aiter_bytes(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        return _watch_body_async(base.aiter_bytes(self, *args, **kwargs), self._otel_llm_body, self._otel_llm_follower)  # type: ignore[attr-defined]

    return aiter_bytes


def _watch_body(chunks: Iterator[bytes], body: _Body, follower: Follower) -> Iterator[bytes]:
    try:
        body.pulling = True
        for data in chunks:
            body.pulling = False
            body.feed(data)
            yield data
            body.pulling = True
    except GeneratorExit:
        raise  # not the end yet: the rest may be read by another iterator; closing or dropping the response tells
    except BaseException as error:
        follower.fail(error)
        raise
    body.end()


async def _watch_body_async(chunks: AsyncIterator[bytes], body: _Body, follower: Follower) -> AsyncIterator[bytes]:
    try:
        body.pulling = True
        async for data in chunks:
            body.pulling = False
            body.feed(data)
            yield data
            body.pulling = True
    except GeneratorExit:
        raise
    except BaseException as error:
        follower.fail(error)
        raise
    body.end()


# --- subclasses, one per class followed ------------------------------------------------------------------------------
def _leave(followed: Any) -> None:
    body = followed.__dict__.get(_BODY)
    if body is None or not body.pulling:
        followed.__dict__[_FOLLOWER].leave()


def _close(base: type) -> Any:
    def close(self: Any) -> Any:
        try:
            return base.close(self)  # type: ignore[attr-defined]
        finally:
            _leave(self)

    return close


def _async_close(name: str) -> Any:
    def method(base: type) -> Any:
        async def close(self: Any) -> Any:
            try:
                return await getattr(base, name)(self)
            finally:
                _leave(self)

        return close

    return method


def _del(base: type) -> Any:
    def __del__(self: Any) -> None:
        self.__dict__[_FOLLOWER].drop()
        if hasattr(base, "__del__"):
            base.__del__(self)

    return __del__


_SYNC_STREAM = {"close": _close, "__del__": _del}
_ASYNC_STREAM = {"close": _async_close("close"), "__del__": _del}
_RESPONSE = {
    "iter_bytes": _iter_bytes,
    "aiter_bytes": _aiter_bytes,
    "close": _close,
    "aclose": _async_close("aclose"),
    "__del__": _del,
}

_classes: dict[type, type] = {}


def _followed_class(cls: type, methods: dict[str, Any]) -> type:
    followed = _classes.get(cls)
    if followed is None:
        namespace = {name: make(cls) for name, make in methods.items()}
        for name, method in namespace.items():
            method.__name__ = name
            method.__qualname__ = f"{cls.__qualname__}.{name}"
        namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        followed = _classes[cls] = type(cls.__name__, (cls,), namespace)
    return followed
