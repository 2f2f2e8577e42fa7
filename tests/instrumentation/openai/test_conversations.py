"""A conversation that the provider keeps is the call's, unless the app calls it something else."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from otel_llm import llm_context
from otel_llm.conventions import semconv
from otel_llm.instrumentation.openai._answer import Answer
from tests.instrumentation.conftest import Spans
from tests.instrumentation.openai.clients import needs

pytestmark = needs("responses")
MODEL = "gpt-5-mini"


def by_client(base_url: str, **more: Any) -> None:
    openai.OpenAI(base_url=base_url, api_key="local").responses.create(model=MODEL, input="hi", **more)


def by_async_stream(base_url: str, **more: Any) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="local") as client:
            async for _ in await client.responses.create(model=MODEL, input="hi", stream=True, **more):
                pass

    asyncio.run(run())


def by_langchain(base_url: str, **more: Any) -> None:
    model = ChatOpenAI(model=MODEL, base_url=base_url, api_key="local", use_responses_api=True, model_kwargs=more)
    model.invoke("hi")


@pytest.mark.parametrize("way", [by_client, by_async_stream, by_langchain])
@pytest.mark.parametrize("asked", ["conv_1", {"id": "conv_1"}], ids=["id", "object"])
@pytest.mark.parametrize("said", [None, "ours"])
def test_what_the_request_says(way: Any, asked: Any, said: str | None, traced: Spans, openai_server: Any) -> None:
    with llm_context(conversation_id=said):
        way(openai_server.base_url, conversation=asked)
    assert [span.attributes[semconv.CONVERSATION_ID] for span in traced.all()] == [said or "conv_1"]


@pytest.mark.parametrize("said", [None, "ours"])
def test_what_the_answer_alone_says(
    said: str | None, instrumented: Spans, client: openai.OpenAI, monkeypatch: Any
) -> None:
    """As where a server keeps one that nobody asked for."""
    see = Answer._see_response
    monkeypatch.setattr(
        Answer, "_see_response", lambda answer, found: see(answer, {**found, "conversation": {"id": "conv_2"}})
    )
    with llm_context(conversation_id=said):
        client.responses.create(model=MODEL, input="hi")
    assert instrumented.attributes()[semconv.CONVERSATION_ID] == (said or "conv_2")


@pytest.mark.parametrize("told", [None, "", 7, [], {}, {"id": None}, {"id": 7}, {"id": ""}, {"id": {"id": "x"}}])
def test_what_is_no_conversation(told: Any, instrumented: Spans, client: openai.OpenAI) -> None:
    answer = Answer()
    answer.see({"object": "response", "id": "resp_1", "conversation": told})
    assert semconv.CONVERSATION_ID not in answer.attributes()
