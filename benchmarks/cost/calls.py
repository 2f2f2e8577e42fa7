"""The calls that are measured: of the OpenAI client and of LangChain, each as a function that makes it so many times."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import provider

Measure = Callable[[], Awaitable[float]]
"""Nanoseconds of this thread's CPU time per call (or per chunk)."""

_now = time.thread_time_ns
_REPEATS = 3


async def _best(call: Callable[[], Awaitable[object]], calls: int) -> float:
    """Nanoseconds per call: of `_REPEATS` measurements in a row, the one that was disturbed least."""
    spent = []
    for _ in range(_REPEATS):
        begin = _now()
        for _ in range(calls):
            await call()
        spent.append(_now() - begin)
    return min(spent) / calls


def cases(names: list[str], calls: int, chunks: int) -> dict[str, tuple[Callable[[], Awaitable[object]], Measure]]:
    """Of each name one call, and how it is measured."""
    transport = provider.transport(provider.Answers(chunks))
    of_openai = _openai(transport)
    of_langchain = _langchain(transport) if any(name in LANGCHAIN for name in names) else {}
    made: dict[str, tuple[Callable[[], Awaitable[object]], Measure]] = {}
    for name in names:
        if name in STREAMS:
            made[name] = _chunk(of_openai[name], chunks)
        else:
            made[name] = _plain({**of_openai, **of_langchain}[name], max(1, calls // FEWER.get(name, 1)))
    return made


CHAT, ASYNC, RESPONSES, EMBEDDINGS, LONG = "chat", "chat, async", "Responses", "embeddings", "chat of 14 kB"
CHUNK, CHUNK_ASYNC = "a streamed chunk", "a streamed chunk, async"
FAKE, CHAIN, AGENT = "LangChain: fake model", "LangChain: chain of three", "LangChain: agent with a tool"
STREAMS = (CHUNK, CHUNK_ASYNC)
LANGCHAIN = (FAKE, CHAIN, AGENT)
CASES = (CHAT, ASYNC, RESPONSES, EMBEDDINGS, *STREAMS, *LANGCHAIN)
FEWER = {AGENT: 5, CHAIN: 2}
"""What takes so long that fewer calls do."""


def _plain(call: Callable[..., Awaitable[object]], calls: int) -> tuple[Callable[[], Awaitable[object]], Measure]:
    return call, lambda: _best(call, calls)


def _chunk(drain: Callable[[str], Awaitable[object]], chunks: int) -> tuple[Callable[[], Awaitable[object]], Measure]:
    async def measure() -> float:
        # The slope between a short stream and a long one, so that what a stream costs once is not in it.
        long, short = [await _best(lambda kind=kind: drain(kind), 1) for kind in (provider.LONG, provider.SHORT)]  # type: ignore[misc]
        return (long - short) / chunks

    return (lambda: drain(provider.SHORT)), measure


def _openai(transport: Any) -> dict[str, Callable[..., Awaitable[object]]]:
    import openai

    # Without the environment's proxies: they would take precedence over the transport.
    settings: dict[str, Any] = {"api_key": "none", "base_url": "https://api.openai.com/v1", "max_retries": 0}
    client = openai.OpenAI(**settings, http_client=openai.DefaultHttpxClient(transport=transport, trust_env=False))
    client_async = openai.AsyncOpenAI(
        **settings, http_client=openai.DefaultAsyncHttpxClient(transport=transport, trust_env=False)
    )
    chat: dict[str, Any] = {"model": provider.MODEL, "messages": provider.MESSAGES, "temperature": 0.2}
    stream = {**chat, "stream": True, "stream_options": {"include_usage": True}}
    response: dict[str, Any] = {"model": provider.MODEL, "input": "Why is the sky blue?"}
    embedding: dict[str, Any] = {"model": "text-embedding-3-small", "input": "sky", "encoding_format": "float"}

    # The methods are looked up at each call: they are what is switched.
    async def chat_call() -> None:
        client.chat.completions.create(**chat)

    asked = itertools.count()

    async def long_call() -> None:
        # Another text each time: one that was captured before costs less.
        content = f"{next(asked)}. {provider.LONG_PROMPT}"
        client.chat.completions.create(**{**chat, "messages": [{"role": "user", "content": content}]})

    async def response_call() -> None:
        client.responses.create(**response)

    async def embedding_call() -> None:
        client.embeddings.create(**embedding)

    async def async_call() -> None:
        await client_async.chat.completions.create(**chat)

    async def drain(kind: str) -> None:
        for _ in client.chat.completions.create(**stream, user=kind):
            pass

    async def drain_async(kind: str) -> None:
        async for _ in await client_async.chat.completions.create(**stream, user=kind):
            pass

    return {
        CHAT: chat_call,
        ASYNC: async_call,
        RESPONSES: response_call,
        EMBEDDINGS: embedding_call,
        LONG: long_call,
        CHUNK: drain,
        CHUNK_ASYNC: drain_async,
    }


def _langchain(transport: Any) -> dict[str, Callable[..., Awaitable[object]]]:
    import openai
    from langchain.agents import create_agent
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_openai import ChatOpenAI

    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    model = ChatOpenAI(
        model=provider.MODEL,
        temperature=0.2,
        api_key="none",
        base_url="https://api.openai.com/v1",
        http_client=openai.DefaultHttpxClient(transport=transport, trust_env=False),
    )
    fake = FakeListChatModel(responses=[provider.ANSWER])
    chain = ChatPromptTemplate.from_messages([("user", "Why is the {what} blue?")]) | model | StrOutputParser()
    agent = create_agent(model, tools=[weather])

    async def fake_call() -> None:
        fake.invoke("Why is the sky blue?")

    async def chain_call() -> None:
        chain.invoke({"what": "sky"})

    async def agent_call() -> None:
        agent.invoke({"messages": [("user", "How is the weather in Oslo?")]})

    return {FAKE: fake_call, CHAIN: chain_call, AGENT: agent_call}
