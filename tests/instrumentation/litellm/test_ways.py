"""Every way of asking a model through LiteLLM: one row a call, with the tokens that the server billed."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

pytest.importorskip("litellm", reason="LiteLLM is not installed: `.ci/beside` has it")

import litellm

from otel_llm.conventions import semconv
from tests.conftest import LocalOpenAI
from tests.instrumentation.litellm.conftest import Account
from tests.instrumentation.litellm.wires import Wires

MESSAGES = [{"role": "user", "content": "Say hello to the world, please."}]
OPENAI, WIRES = "openai", "wires"
"""Who answers."""
Way = tuple[str, str, str, dict[str, Any]]
"""The function, who answers, the provider in the account, and the arguments."""

_CHATS = {
    "openai/gpt-4o-mini": (OPENAI, "openai"),
    "azure/gpt-4o-mini": (OPENAI, "azure.ai.openai"),
    "groq/llama-3.3-70b-versatile": (OPENAI, "groq"),
    "deepseek/deepseek-chat": (OPENAI, "deepseek"),
    "openrouter/openai/gpt-4o-mini": (OPENAI, "openrouter"),
    "hosted_vllm/my-model": (OPENAI, None),
    "anthropic/claude-sonnet-4-5": (WIRES, "anthropic"),
    "gemini/gemini-2.5-flash": (WIRES, "gcp.gemini"),
    "ollama/llama3": (WIRES, "ollama"),
    "ollama_chat/llama3": (WIRES, "ollama"),
}
_RESPONSES = {"openai/gpt-4o-mini": (OPENAI, "openai"), "deepseek/deepseek-chat": (OPENAI, "deepseek")}
_TEXTS = {
    "text-completion-openai/gpt-3.5-turbo-instruct": (OPENAI, "openai"),
    "groq/llama-3.3-70b-versatile": (OPENAI, "groq"),
}
_OTHERS: tuple[tuple[str, str, str, str | None, dict[str, Any]], ...] = (
    ("embedding", "openai/text-embedding-3-small", OPENAI, "openai", {"input": ["a b c"]}),
    ("embedding", "hosted_vllm/bge", OPENAI, None, {"input": ["a b c"]}),
    ("image_generation", "openai/gpt-image-1", WIRES, "openai", {"prompt": "a cat"}),
    ("transcription", "openai/gpt-4o-transcribe", WIRES, "openai", {}),
    ("transcription", "groq/whisper-large-v3", WIRES, None, {}),
    ("speech", "openai/tts-1", WIRES, "openai", {"input": "hi", "voice": "alloy"}),
    ("rerank", "cohere/rerank-v3.5", WIRES, "cohere", {"query": "a", "documents": ["a"]}),
)


def ways() -> list[Any]:
    found: list[Any] = []

    def add(function: str, model: str, server: str, provider: str | None, **arguments: Any) -> None:
        for name in (function, f"a{function}"):
            told = {"model": model, **arguments}
            identity = f"{name}{'-stream' * ('stream' in arguments)}-{model}"
            found.append(pytest.param(name, server, provider, told, id=identity))

    for streamed in ({}, {"stream": True}):
        for model, (server, provider) in _CHATS.items():
            add("completion", model, server, provider, messages=MESSAGES, **streamed)
        for model, (server, provider) in _RESPONSES.items():
            add("responses", model, server, provider, input="Say hello", **streamed)
        for model, (server, provider) in _TEXTS.items():
            add("text_completion", model, server, provider, prompt="hi", **streamed)
    for function, model, server, provider, arguments in _OTHERS:
        add(function, model, server, provider, **arguments)
    return found


def base(model: str, openai_server: LocalOpenAI, wires: Wires, server: str) -> dict[str, Any]:
    url = openai_server.base_url if server == OPENAI else wires.url
    if model.startswith("azure/"):
        return {"api_base": url.removesuffix("/v1"), "api_key": "x", "api_version": "2024-10-21"}
    if model.startswith("gemini/"):
        url += "/v1beta/models/gemini-2.5-flash"
    return {"api_base": url + "/v2/rerank" * model.startswith("cohere/"), "api_key": "x"}


async def _ask_async(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    result = await function(**arguments)
    if arguments.get("stream"):
        async for _ in result:
            pass


def _ask(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    result = function(**arguments)
    if arguments.get("stream"):
        for _ in result:
            pass


def ask(name: str, arguments: dict[str, Any]) -> None:
    """Calls a function of LiteLLM's, and reads the answer to its end."""
    if "transcription" in name:
        file = io.BytesIO(b"RIFF0000WAVE")
        file.name = "a.wav"
        arguments = {**arguments, "file": file}
    function = getattr(litellm, name)
    if name.startswith("a"):
        asyncio.run(_ask_async(function, arguments))
    else:
        _ask(function, arguments)


def billed(openai_server: LocalOpenAI, wires: Wires) -> list[tuple[int | None, int | None]]:
    return [(call.input_tokens, call.output_tokens) for call in openai_server.ledger] + wires.billed


@pytest.mark.parametrize(("name", "server", "provider", "arguments"), ways())
def test_one_row_with_what_was_billed(
    name: str,
    server: str,
    provider: str | None,
    arguments: dict[str, Any],
    openai_server: LocalOpenAI,
    wires: Wires,
    account: Account,
) -> None:
    ask(name, {**arguments, **base(arguments["model"], openai_server, wires, server)})
    (row,) = account()
    assert [(row["input_tokens"], row["output_tokens"])] == billed(openai_server, wires)
    assert row["status"] == semconv.OK
    assert row["request_model"] == arguments["model"].partition("/")[2]
    if provider is not None:
        assert row["provider"] == provider
    assert (row["time_to_first_chunk_ms"] is not None) == bool(arguments.get("stream"))


@pytest.mark.parametrize("name", ["completion", "acompletion"])
@pytest.mark.parametrize("stream", [False, True])
def test_cached_and_written_tokens_of_anthropic(name: str, stream: bool, wires: Wires, account: Account) -> None:
    arguments = {"model": "anthropic/claude-sonnet-4-5", "messages": MESSAGES, "api_base": wires.url, "api_key": "x"}
    ask(name, {**arguments, "stream": stream})
    (row,) = account()
    assert (row["input_tokens"], row["cache_read_tokens"], row["cache_write_tokens"]) == (33, 7, 5)


def test_the_same_ways_as_the_ledger_over_all(openai_server: LocalOpenAI, wires: Wires, account: Account) -> None:
    """Everything in one store and at once: no call takes over another's."""
    asked = [param.values for param in ways() if not param.values[0].startswith("a")]

    async def all_at_once() -> None:
        steps = (
            partial(ask, name, {**arguments, **base(arguments["model"], openai_server, wires, server)})
            for name, server, _, arguments in asked
        )
        await asyncio.gather(*(asyncio.to_thread(step) for step in steps))

    asyncio.run(all_at_once())
    rows = account()
    assert len(rows) == len(asked)
    told = [(row["input_tokens"], row["output_tokens"]) for row in rows]
    assert sorted(told, key=str) == sorted(billed(openai_server, wires), key=str)
