"""What is held back before a stream's first token: the chunks that say nothing yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest
from langchain_core.messages import AIMessageChunk
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseTextDeltaEvent

from otel_llm.routing import first_token


def chunk(*, finish: str | None = None, **delta: Any) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return ChatCompletionChunk.model_validate(
        {"id": "c", "created": 1, "model": "m", "object": "chat.completion.chunk", "choices": [choice]}
    )


ROLE = chunk(role="assistant", content="")
BEFORE = (
    ROLE,
    chunk().model_copy(update={"choices": []}),
    AIMessageChunk(content=""),
    openai.types.responses.ResponseQueuedEvent.model_construct(type="response.queued"),
)
TOKENS = (
    chunk(content="a"),
    chunk(reasoning_content="a"),  # an extra field of DeepSeek's
    chunk(tool_calls=[{"index": 0}]),
    chunk(finish="stop"),
    AIMessageChunk(content="a"),
    ResponseTextDeltaEvent.model_construct(type="response.output_text.delta", delta="a"),
    object(),
)


def source(chunks: list[Any], seen: list[Any]) -> Iterator[Any]:
    for each in chunks:
        seen.append(each)
        if isinstance(each, Exception):
            raise each
        yield each


async def source_async(chunks: list[Any], seen: list[Any]) -> AsyncIterator[Any]:
    for each in source(chunks, seen):
        yield each


@pytest.mark.parametrize("token", TOKENS, ids=range(len(TOKENS)))
async def test_it_is_read_up_to_the_first_token_and_nothing_is_lost(token: Any) -> None:
    chunks = [*BEFORE, token, ROLE, token]
    for is_async in (False, True):
        seen: list[Any] = []
        if is_async:
            begun_async = await first_token.begun_async(source_async(chunks, seen))
            assert seen == [*BEFORE, token]
            assert [each async for each in begun_async] == chunks
        else:
            begun = first_token.begun(source(chunks, seen))
            assert seen == [*BEFORE, token]
            assert list(begun) == chunks


def test_a_stream_without_a_token() -> None:
    assert list(first_token.begun(iter([ROLE]))) == [ROLE]
    assert list(first_token.begun(iter([]))) == []


def test_only_an_error_event_is_another_error() -> None:
    request = httpx2.Request("POST", "http://127.0.0.1")
    event = openai.APIError("overloaded", request, body={"code": "overloaded"})
    with pytest.raises(first_token.error_in_stream(), match="overloaded") as caught:
        first_token.begun(source([ROLE, event], []))
    assert isinstance(caught.value, openai.APIError) and caught.value.__cause__ is event
    lost = openai.APIConnectionError(request=request)
    with pytest.raises(openai.APIConnectionError) as other:
        first_token.begun(source([ROLE, lost], []))
    assert other.value is lost
    with pytest.raises(openai.APIError) as later:  # the app has read a token
        list(first_token.begun(source([TOKENS[0], event], [])))
    assert later.value is event
