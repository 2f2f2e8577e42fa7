"""Follows an answer that arrives in pieces: the client's stream objects, and the body under a raw response.

A stream keeps its object; only its class becomes a subclass of its own class with the same name, so `isinstance`, `repr` and every
attribute stay what they were. A stream that is dropped ends its call too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from types import FrameType
from typing import Any, TypeVar

from otel_llm.calls import abandoned
from otel_llm.calls.listeners import stream_listeners, teller
from otel_llm.calls.model_call import ModelCall
from otel_llm.conventions import semconv
from otel_llm.instrumentation.openai import private
from otel_llm.instrumentation.openai._answer import Answer
from otel_llm.instrumentation.openai._ending import conclude, fail
from otel_llm.instrumentation.openai._observe import Observer
from otel_llm.support import fast_json, faults

_T = TypeVar("_T")
RECORDER = "_otel_llm_recorder"
_BODY = "_otel_llm_body"
_SSE = "text/event-stream"


class StreamRecorder:
    """Ties a stream to its call."""

    __slots__ = ("_reads_text", "_refused", "answer", "call", "hides_usage", "pulling")

    def __init__(
        self, call: ModelCall | Observer, *, hides_usage: bool = False, refused: Callable[..., None] | None = None
    ) -> None:
        """`hides_usage`: the usage chunk was asked for by us, so the app must not see it. `refused` is told of an error."""
        self._refused = refused
        self.call = call
        if isinstance(call, Observer):
            self.answer = call.answer()
        else:
            self.answer = call.answer = Answer(call.attributes)
        if stream_listeners and self.answer.content is not None and isinstance(call, ModelCall):
            self.answer.content = _told_output(call)
        self.hides_usage = hides_usage
        self._reads_text = False
        self.pulling = False
        """Whether the client is at work on the next piece: it closes the response itself at the end, which is no early leave."""

    def see(self, chunk: object) -> bool:
        """Takes note of a chunk. Returns whether the app may see it."""
        try:
            call, answer = self.call, self.answer
            now = time.perf_counter_ns()
            if now < call.quiet_until_ns:
                call.last_chunk_ns = now
            else:
                call.chunk(answer.model)
            # Nearly all of a stream is text, piece by piece.
            if not (self._reads_text and answer.see_mere_text(chunk)):
                answer.see(chunk)
                self._reads_text = answer.is_begun
            if self.hides_usage:
                return not _hide_usage(chunk)
        except Exception as fault:
            faults.report("read a chunk", fault)
        return True

    def complete(self) -> None:
        """The stream has come to its end, and that with its last chunk: the app may have been slow to ask for more."""
        self._learn()
        conclude(self.call, self.answer, self.answer.status, ended_perf_ns=self.call.last_chunk_ns)

    def leave(self) -> None:
        """The app has closed the stream, perhaps early."""
        if self.answer.final:
            self.complete()
        else:
            conclude(self.call, self.answer, self._status_if_left)

    def fail(self, error: BaseException, chunk: object = None) -> None:
        """The app got an exception in place of the next chunk; until then it has waited.

        `chunk`: one that has come and was kept from the app, by a signal handler that raised. It may be the one with the usage.
        """
        if chunk is not None:
            try:
                self.answer.see(chunk)
            except Exception as fault:
                faults.report("read a chunk", fault)
        self._learn(error)
        fail(self.call, error, self.answer)

    def _learn(self, error: BaseException | None = None) -> None:
        """Tells of an error in an answer that began well."""
        refused, self._refused = self._refused, None
        if refused is not None and (error is not None or self.answer.error_type is not None):
            try:
                refused(error, in_answer=self.answer.refuses_usage)
            except Exception as fault:
                faults.report("learn what a server takes", fault)

    def drop(self) -> None:
        """The stream is gone; called by finalizers, so it ends on another stack. It was not wanted after its last chunk."""
        if not self.call.finished:
            status = self.answer.status if self.answer.final else self._status_if_left
            ended = self.call.last_chunk_ns or time.perf_counter_ns()
            abandoned.later(partial(conclude, self.call, self.answer, status, ended_perf_ns=ended))

    @property
    def _status_if_left(self) -> str:
        """An answer that told of its failure has failed, however it is left."""
        return semconv.PARTIAL if self.answer.error_type is None else semconv.ERROR


def _told_output(call: ModelCall) -> Any:
    """What gathers the words of an answer, and tells of them as they come."""
    from otel_llm.content.increments import ToldOutput  # only with capture

    return ToldOutput(teller(call.span))


def _hide_usage(chunk: Any) -> bool:
    """Removes the traces of the usage that we asked for; True where the whole chunk is ours."""
    if isinstance(chunk, dict):  # of a stream that the app has parsed to a type of its own
        return chunk.get("usage") is not None and not chunk.get("choices")
    if getattr(chunk, "usage", None) is not None:
        return not getattr(chunk, "choices", None)
    if (told := getattr(chunk, "__pydantic_fields_set__", None)) is not None:
        told.discard("usage")
    return False


class _Veil(StreamRecorder):
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

    def fail(self, error: BaseException, chunk: object = None) -> None:
        """The body tells."""

    def drop(self) -> None:
        """The body tells."""


def hide_usage_of(stream: Any) -> None:
    """Takes the usage that we asked for out of an `openai.Stream` or `openai.AsyncStream`, in place."""
    iterator = private.iterator(stream)
    if iterator is not None and RECORDER not in stream.__dict__:
        veil = _Veil()
        watch = _watch_async if hasattr(stream, "__anext__") else _watch
        private.replace_iterator(stream, watch(iterator, veil))


def follow_stream(stream: Any, recorder: StreamRecorder) -> None:
    """Follows an `openai.Stream` or `openai.AsyncStream`, in place."""
    is_async = hasattr(type(stream), "__anext__")
    if not follow(stream, recorder, _ASYNC_STREAM if is_async else _SYNC_STREAM):
        return
    watch = _watch_async if is_async else _watch
    private.replace_iterator(stream, watch(private.iterator(stream), recorder))
    # The client's helpers (`.stream()`) close the response beneath. What is no event stream gives no chunk: its body tells.
    response = getattr(stream, "response", None)
    headers = getattr(response, "headers", None)
    if headers is None:
        return
    if "json" in headers.get("content-type", ""):
        follow_body(response, recorder)
    else:
        follow(response, recorder, _CLOSED)


def _watch(chunks: Iterator[_T], recorder: StreamRecorder) -> Iterator[_T]:
    chunk: _T | None = None
    try:
        recorder.pulling = True
        for chunk in chunks:
            recorder.pulling = False
            if recorder.see(chunk):
                yield chunk
            chunk = None
            recorder.pulling = True
    except GeneratorExit:
        recorder.drop()
        raise
    except BaseException as error:
        recorder.fail(error, chunk)
        raise
    recorder.complete()


async def _watch_async(chunks: AsyncIterator[_T], recorder: StreamRecorder) -> AsyncIterator[_T]:
    chunk: _T | None = None
    try:
        recorder.pulling = True
        async for chunk in chunks:
            recorder.pulling = False
            if recorder.see(chunk):
                yield chunk
            chunk = None
            recorder.pulling = True
    except GeneratorExit:
        recorder.drop()
        raise
    except BaseException as error:
        recorder.fail(error, chunk)
        raise
    recorder.complete()


# --- the body under `with_raw_response` and `with_streaming_response` ------------------------------------------------
class _BodyReader:
    """Reads the decoded body as it passes: events of a stream one by one, a plain JSON answer at its end."""

    __slots__ = ("_content_type", "_is_sse", "_keep", "_pending", "_recorder")

    LONGEST = 32 * 2**20
    """Bytes of a JSON body that are kept to read its usage; a longer one is recorded without."""

    def __init__(self, recorder: StreamRecorder, content_type: str) -> None:
        self._recorder = recorder
        self._content_type = content_type
        self._is_sse = content_type.startswith(_SSE)
        self._keep = is_readable(recorder.answer, content_type)
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        try:
            if not self._keep:
                return
            self._pending += data
            if self._is_sse:
                self._recorder.call.chunk(self._recorder.answer.model)
                if b"\n" in data:
                    *lines, rest = bytes(self._pending).split(b"\n")
                    self._pending[:] = rest
                    see_events(self._recorder.answer, lines)
            if len(self._pending) > self.LONGEST:
                self._pending.clear()
                self._keep = self._is_sse
        except Exception as fault:
            faults.report("read a raw body", fault)

    def end(self) -> None:
        try:
            if self._keep and self._pending:
                see_body(self._recorder.answer, self._content_type, self._pending)
        except Exception as fault:
            faults.report("read a raw body", fault)
        self._pending.clear()
        self._recorder.complete()


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
        if data == b"[DONE]":
            answer.final = True
        elif data.startswith((b"{", b"[")):
            answer.see(loads(data))


def loads(data: bytes | bytearray) -> Any:
    """The JSON value of a body or an event; None where it is none. The app gets to see that, we record a call without usage."""
    try:
        return fast_json.loads(data)
    except ValueError:
        pass
    try:
        return json.loads(data)  # what the client itself reads it with takes NaN and lone surrogates
    except (ValueError, RecursionError):
        return None


def follow_body(response: Any, recorder: StreamRecorder) -> None:
    """Follows the body of an `httpx` response that has not been read yet, in place, however the app reads it."""
    if follow(response, recorder, _RESPONSE):
        response.__dict__[_BODY] = _BodyReader(recorder, response.headers.get("content-type", ""))


def follow(followed: Any, recorder: StreamRecorder, methods: dict[str, Any]) -> bool:
    """Gives an object these methods and the recorder that they tell; False where it has one."""
    if RECORDER in followed.__dict__:
        return False
    cls = _followed_class(type(followed), methods)
    followed.__dict__[RECORDER] = recorder
    followed.__class__ = cls
    recorder.call.is_followed = True
    return True


def _iter_bytes(base: type) -> Any:
    def iter_bytes(self: Any, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        return _watch_body(base.iter_bytes(self, *args, **kwargs), self._otel_llm_body, self._otel_llm_recorder)  # type: ignore[attr-defined]

    return iter_bytes


def _aiter_bytes(base: type) -> Any:
    def aiter_bytes(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        return _watch_body_async(base.aiter_bytes(self, *args, **kwargs), self._otel_llm_body, self._otel_llm_recorder)  # type: ignore[attr-defined]

    return aiter_bytes


def _watch_body(chunks: Iterator[bytes], body: _BodyReader, recorder: StreamRecorder) -> Iterator[bytes]:
    try:
        recorder.pulling = True
        for data in chunks:
            recorder.pulling = False
            body.feed(data)
            yield data
            recorder.pulling = True
    except GeneratorExit:
        raise  # not the end yet: the rest may be read by another iterator; closing or dropping the response tells
    except BaseException as error:
        recorder.fail(error)
        raise
    body.end()


async def _watch_body_async(
    chunks: AsyncIterator[bytes], body: _BodyReader, recorder: StreamRecorder
) -> AsyncIterator[bytes]:
    try:
        recorder.pulling = True
        async for data in chunks:
            recorder.pulling = False
            body.feed(data)
            yield data
            recorder.pulling = True
    except GeneratorExit:
        raise
    except BaseException as error:
        recorder.fail(error)
        raise
    body.end()


# --- subclasses, one per class followed ------------------------------------------------------------------------------
def _leave(followed: Any) -> None:
    followed.__dict__[RECORDER].leave()


def _leave_response(response: Any) -> None:
    recorder = response.__dict__[RECORDER]
    if not (recorder.pulling or _is_disposed_of()):
        recorder.leave()


def _is_disposed_of() -> bool:
    """Whether a generator of the client's closes what it reads because it is garbage itself: then what is dropped tells the end."""
    if not isinstance(sys.exc_info()[1], GeneratorExit):
        return False
    frame: FrameType | None = sys._getframe(3)  # who called `close`
    for _ in range(_CALLERS_LOOKED_AT):
        if frame is None:
            break
        if frame.f_code.co_flags & _GENERATOR and frame.f_globals.get("__name__", "").startswith(_CLIENT):
            return True
        frame = frame.f_back
    return False


_GENERATOR = CO_GENERATOR | CO_ASYNC_GENERATOR
_CLIENT = ("openai.", "httpx")
_CALLERS_LOOKED_AT = 4
"""Some clients close it in a function of their own."""


def _close(leave: Callable[[Any], None]) -> Any:
    def method(base: type) -> Any:
        def close(self: Any) -> Any:
            try:
                return base.close(self)  # type: ignore[attr-defined]
            finally:
                leave(self)

        return close

    return method


def _async_close(name: str, leave: Callable[[Any], None]) -> Any:
    def method(base: type) -> Any:
        async def close(self: Any) -> Any:
            try:
                return await getattr(base, name)(self)
            finally:
                leave(self)

        return close

    return method


def _del(base: type) -> Any:
    def __del__(self: Any) -> None:
        self.__dict__[RECORDER].drop()
        if hasattr(base, "__del__"):
            base.__del__(self)

    return __del__


_SYNC_STREAM = {"close": _close(_leave), "__del__": _del}
_ASYNC_STREAM = {"close": _async_close("close", _leave), "__del__": _del}
_CLOSED = {"close": _close(_leave_response), "aclose": _async_close("aclose", _leave_response)}
_RESPONSE = {**_CLOSED, "iter_bytes": _iter_bytes, "aiter_bytes": _aiter_bytes, "__del__": _del}

_classes: dict[tuple[type, int], type] = {}


def _followed_class(cls: type, methods: dict[str, Any]) -> type:
    followed = _classes.get((cls, id(methods)))
    if followed is None:
        namespace = {name: make(cls) for name, make in methods.items()}
        for name, method in namespace.items():
            method.__name__ = name
            method.__qualname__ = f"{cls.__qualname__}.{name}"
        namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        followed = _classes[cls, id(methods)] = type(cls.__name__, (cls,), namespace)
    return followed
