"""What we rely on that nobody promises is there in the installed LiteLLM: a new version that has it no more fails here first."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest

pytest.importorskip("litellm", reason="LiteLLM is not installed: `.ci/beside` has it")

import litellm

from otel_llm.instrumentation.litellm import private
from tests.conftest import LocalOpenAI

INSTALLED = f"litellm {version('litellm')}"


def test_every_function_keeps_what_it_is_around() -> None:
    for module, operations in private.FUNCTIONS.items():
        for name in operations:
            for function in (name, f"a{name}"):
                found = getattr(import_module(module), function)
                assert private.INNER in found.__code__.co_freevars, (INSTALLED, function)


def test_there_is_one_place_before_the_request_one_for_the_cost_and_one_for_failures() -> None:
    logging = import_module(private.LOGGING).Logging
    before = list(inspect.signature(getattr(logging, private.BEFORE_REQUEST)).parameters)
    assert before == ["self", "input", "api_key", "model", "additional_args"], INSTALLED
    assert callable(getattr(logging, private.cost_calculator(logging), None)), INSTALLED
    assert callable(getattr(logging, private.AFTER_FAILURE, None)), INSTALLED
    handler = import_module(private.CACHE).LLMCachingHandler
    assert [inspect.iscoroutinefunction(getattr(handler, name)) for name in private.cache_lookups(handler)] == [
        False,
        True,
    ], INSTALLED


def test_a_stream_is_made_of_pieces(openai_server: LocalOpenAI) -> None:
    stream = litellm.completion(
        model="groq/m",
        messages=[{"role": "user", "content": "hi"}],
        api_base=openai_server.base_url,
        api_key="x",
        stream=True,
    )
    module, name = private.CHUNKS
    assert type(stream) is getattr(import_module(module), name) and private.is_stream(stream), INSTALLED
    assert private.call_id(private.logging_of_stream(stream)), INSTALLED
    assert callable(getattr(stream, private.CHUNK_READER)), INSTALLED
    seen: list[Any] = []
    private.watch_pieces(private.pieces_of(stream), seen.append)
    list(stream)
    assert seen and all(isinstance(piece, dict) and "choices" in piece for piece in seen), INSTALLED


def test_the_logging_object_tells_the_call(openai_server: LocalOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    logging = import_module(private.LOGGING).Logging
    before, seen = getattr(logging, private.BEFORE_REQUEST), []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((private.call_id(self), private.told(self), private.request(kwargs)))
        return before(self, *args, **kwargs)

    monkeypatch.setattr(logging, private.BEFORE_REQUEST, watched)
    messages = [{"role": "user", "content": "hi"}]
    litellm.completion(model="groq/m", messages=messages, api_base=openai_server.base_url, api_key="x")
    ((identity, told, (url, body)),) = seen
    assert identity and told == ("groq", "m"), INSTALLED
    assert url == f"{openai_server.base_url}/chat/completions" and body["messages"] == messages, INSTALLED
