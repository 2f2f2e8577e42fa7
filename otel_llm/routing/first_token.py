"""A stream before its first token: until then another deployment can still be asked, as after a 503.

Some providers answer 200 and say in the first event of the stream that they are overloaded. The openai client raises that as its
plain `APIError`; what stands before it (a chunk with the role alone) is held back until something is said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any

_BEGINNINGS = frozenset({"response.created", "response.queued", "response.in_progress"})


@cache
def error_in_stream() -> type[Exception]:
    """What is raised where a stream begins with an error event: a subclass of `openai.APIError`."""
    import openai

    class ErrorInStream(openai.APIError):  # type: ignore[misc]
        """The provider answered 200, and with an error event before any token."""

    return ErrorInStream


@contextmanager
def _told_apart() -> Iterator[None]:
    """Around the waiting for the first token: an error event is no mistake of the caller's, who would be told by the status."""
    import openai

    try:
        yield
    except openai.APIError as error:
        if type(error) is not openai.APIError:
            raise
        raise error_in_stream()(error.message, error.request, body=error.body) from error  # type: ignore[call-arg]


def begun(chunks: Iterator[Any]) -> Iterator[Any]:
    """The same chunks, read up to the first token. Raises what the stream raises until then."""
    held: list[Any] = []
    with _told_apart():
        for chunk in chunks:
            held.append(chunk)
            if _says_something(chunk):
                break
    return chain(held, chunks)


async def begun_async(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same for `async for`."""
    held: list[Any] = []
    with _told_apart():
        async for chunk in chunks:
            held.append(chunk)
            if _says_something(chunk):
                break
    return _chained(held, chunks)


async def _chained(held: list[Any], chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for chunk in held:
        yield chunk
    async for chunk in chunks:
        yield chunk


def _says_something(chunk: Any) -> bool:
    """False for what comes before an answer: a role, an announcement. Of other streams the first chunk counts."""
    if isinstance(choices := getattr(chunk, "choices", None), list):  # chat completions
        return any(_has_content(choice) for choice in choices)
    if hasattr(chunk, "tool_call_chunks"):  # LangChain
        return bool(chunk.content or chunk.tool_call_chunks or chunk.additional_kwargs)
    return getattr(chunk, "type", None) not in _BEGINNINGS  # responses


def _has_content(choice: Any) -> bool:
    delta = getattr(choice, "delta", None)
    if delta is None:
        return True
    return choice.finish_reason is not None or any(value for name, value in delta if name != "role")
