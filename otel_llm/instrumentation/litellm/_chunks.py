"""Follows a stream of LiteLLM's, in place, as the OpenAI client's are followed."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from otel_llm.calls import ending
from otel_llm.calls.model_call import ModelCall
from otel_llm.conventions.token_usage import fields
from otel_llm.instrumentation.litellm import private
from otel_llm.instrumentation.litellm._told import KnownToLiteLLM, ToldAnswer
from otel_llm.instrumentation.openai._asking import Asking
from otel_llm.instrumentation.openai._stream import RECORDER, StreamRecorder, follow
from otel_llm.support import faults


class ChunkRecorder(StreamRecorder):
    """Ties a stream to its call."""

    __slots__ = ("known",)

    answer: ToldAnswer
    call: ModelCall

    def __init__(self, call: ModelCall, known: KnownToLiteLLM, asking: Asking | None) -> None:
        super().__init__(call, refused=None if asking is None else asking.refused_late)
        self.known = known
        self.answer = ToldAnswer(known, call.attributes)

    def see_piece(self, piece: object) -> None:
        """Takes note of a piece as the provider sent it: LiteLLM takes the usage out of what the app gets."""
        try:
            told = fields(piece)
            self.answer.see_usage(told.get("usage") or fields(told.get("x_groq")).get("usage"))
        except Exception as fault:
            faults.report("read a piece of a stream", fault)

    def fail(self, error: BaseException, chunk: object = None) -> None:
        """The app got an exception in place of the next chunk."""
        self._learn(error)
        causes = [one for one in (error, error.__cause__, error.__context__) if one is not None]
        status, answer = ending.status_of(error), self.answer
        self.call.finish(
            status,
            usage=answer.usage,
            error=error,
            error_type=answer.error_type or private.status_code(error, causes),
            attributes=answer.attributes(),
        )

    def rest_of(self, stream: Any) -> Any:
        """The pieces that LiteLLM has left unread, where the usage is to be among them: 1.80 stops at the finish reason."""
        is_missing = self.known.is_asked and self.answer.usage is None
        return private.pieces_of(stream) if is_missing else None


_LONGEST_REST: Final = 8
"""Pieces: the usage, the end, and the empty lines between."""


def _take_rest(recorder: ChunkRecorder, stream: Any) -> None:
    try:
        if (rest := recorder.rest_of(stream)) is not None:
            for _ in zip(range(_LONGEST_REST), rest, strict=False):
                if recorder.answer.usage is not None:
                    break
    except Exception as fault:
        faults.pass_on(fault)  # it is the server's, and the app has its answer


async def _take_rest_async(recorder: ChunkRecorder, stream: Any) -> None:
    try:
        if (rest := recorder.rest_of(stream)) is not None:
            for _ in range(_LONGEST_REST):
                await anext(rest, None)
                if recorder.answer.usage is not None:
                    break
    except Exception as fault:
        faults.pass_on(fault)


def follow_chunks(stream: Any, recorder: ChunkRecorder) -> None:
    """Follows a stream, in place."""
    if recorder.known.is_asked and (pieces := private.pieces_of(stream)) is not None:
        private.watch_pieces(pieces, recorder.see_piece)
    follow(stream, recorder, _methods_for(type(stream)))  # type: ignore[arg-type]


def _recorder(stream: Any) -> ChunkRecorder:
    found: ChunkRecorder = stream.__dict__[RECORDER]
    return found


# --- methods of the subclass, by the class followed -------------------------------------------------------------------
def _next(base: Any) -> Any:
    def __next__(self: Any) -> Any:
        recorder = _recorder(self)
        recorder.pulling = True
        try:
            chunk = base.__next__(self)
        except StopIteration:
            _take_rest(recorder, self)
            recorder.complete()
            raise
        except BaseException as error:
            recorder.fail(error)
            raise
        finally:
            recorder.pulling = False
        recorder.see(chunk)
        return chunk

    return __next__


def _next_async(base: Any) -> Any:
    async def __anext__(self: Any) -> Any:
        recorder = _recorder(self)
        recorder.pulling = True
        try:
            chunk = await base.__anext__(self)
        except StopAsyncIteration:
            try:
                await _take_rest_async(recorder, self)
            finally:
                recorder.complete()
            raise
        except BaseException as error:
            recorder.fail(error)
            raise
        finally:
            recorder.pulling = False
        recorder.see(chunk)
        return chunk

    return __anext__


def _read(base: Any) -> Any:
    def chunk_creator(self: Any, chunk: Any, *args: Any, **kwargs: Any) -> Any:
        _recorder(self).see_piece(chunk)
        return base.chunk_creator(self, chunk, *args, **kwargs)

    return chunk_creator


def _leave(stream: Any) -> None:
    recorder = _recorder(stream)
    if not recorder.pulling:  # LiteLLM closes a stream that is at its end, or has failed, by itself
        recorder.leave()


def _close(base: Any) -> Any:
    def close(self: Any) -> Any:
        try:
            return base.close(self)
        finally:
            _leave(self)

    return close


def _aclose(base: Any) -> Any:
    async def aclose(self: Any) -> Any:
        try:
            return await base.aclose(self)
        finally:
            _leave(self)

    return aclose


def _del(base: Any) -> Any:
    def __del__(self: Any) -> None:
        _recorder(self).drop()
        if hasattr(base, "__del__"):
            base.__del__(self)

    return __del__


_METHODS: Final = {
    "__next__": _next,
    "__anext__": _next_async,
    private.CHUNK_READER: _read,
    "close": _close,
    "aclose": _aclose,
}


@cache
def _methods_for(cls: type) -> dict[str, Any]:
    """What is put around the methods of a class: those that it has."""
    return {**{name: make for name, make in _METHODS.items() if hasattr(cls, name)}, "__del__": _del}
