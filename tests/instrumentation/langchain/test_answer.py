"""What is read from an `LLMResult`, of whatever model."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import Usage
from otel_llm.instrumentation.langchain._models import ModelRequest
from otel_llm.instrumentation.langchain._result import ModelResult

_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "google_genai": "gcp.gemini",
    "google": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "vertexai": "gcp.vertex_ai",
    "amazon_bedrock": "aws.bedrock",
    "aws_bedrock": "aws.bedrock",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
    "together": "together_ai",
    "fireworks": "fireworks_ai",
    "ibm": "ibm.watsonx.ai",
    "watsonx": "ibm.watsonx.ai",
    "moonshot": "moonshot_ai",
}
"""LangChain's `ls_provider`, and what the conventions call it where the two differ."""


def _seen(*results: object) -> ModelResult:
    answer = ModelResult()
    for result in results:
        answer.see(result)
    return answer


def _message(usage: Any = None, told: Any = None, **fields: Any) -> ChatGeneration:
    message = AIMessage("text", response_metadata=told or {}, **fields)
    message.usage_metadata = usage
    return ChatGeneration(message=message)


USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


def test_several_candidates_share_one_usage() -> None:
    answer = _seen(LLMResult(generations=[[_message(USAGE), _message(USAGE)]]))
    assert answer.usage == Usage(3, 2)


def test_the_usage_of_several_results_adds_up() -> None:
    one = LLMResult(generations=[[Generation(text="a")]], llm_output={"token_usage": {"prompt_tokens": 7}})
    other = LLMResult(
        generations=[[Generation(text="b")]], llm_output={"token_usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    )
    rest = LLMResult(generations=[[Generation(text="c")]], llm_output={"token_usage": {}, "model_name": "m"})
    answer = _seen(one, other, rest)
    assert answer.usage == Usage(8, 2)
    assert answer.model == "m"


@pytest.mark.parametrize(
    "result",
    [
        None,
        object(),
        LLMResult(generations=[]),
        LLMResult(generations=[[]], llm_output={}),
        LLMResult(generations=[[Generation(text="a", generation_info={"finish_reason": 3})]]),
        LLMResult(generations=[[_message({"input_tokens": -1, "output_tokens": "many"})]]),
        LLMResult(generations=[[Generation(text="a")]], llm_output={"token_usage": "none"}),
    ],
)
def test_what_tells_nothing_is_nothing(result: Any) -> None:
    answer = _seen(result)
    assert answer.usage is None
    assert answer.attributes() == {}


def test_ollama() -> None:
    told = {"prompt_eval_count": 4, "eval_count": 6, "done_reason": "stop", "model": "llama"}
    answer = _seen(LLMResult(generations=[[Generation(text="a", generation_info=told)]]))
    assert answer.usage == Usage(4, 6)
    assert answer.attributes() == {semconv.RESPONSE_MODEL: "llama", semconv.FINISH_REASONS: ("stop",)}


@pytest.mark.parametrize(
    ("identity", "expected"), [("msg_1", "msg_1"), ("lc_run--1", None), ("run-1-0", None), (None, None)]
)
def test_ids_of_langchains_own_making_are_no_response_ids(identity: Any, expected: Any) -> None:
    assert _seen(LLMResult(generations=[[_message(USAGE, id=identity)]])).id == expected


def test_a_cache_hit_has_no_usage() -> None:
    cached = {**USAGE, "total_cost": 0}
    answer = _seen(LLMResult(generations=[[_message(cached)]]))
    assert answer.usage is None
    assert answer.attributes()[semconv.CACHE_HIT] is True


def test_a_cost_of_nought_from_the_provider_is_no_cache_hit() -> None:
    free = {**USAGE, "total_cost": 0}
    answer = _seen(LLMResult(generations=[[_message(free)]], llm_output={"model_name": "free"}))
    assert answer.usage == Usage(3, 2)


@pytest.mark.parametrize(
    ("metadata", "serialized", "provider"),
    [
        *(({"ls_provider": name}, None, value) for name, value in _PROVIDERS.items()),
        ({"ls_provider": "groq"}, None, "groq"),
        ({"ls_provider": ""}, {"id": ["pkg", "ChatWidget"]}, "widget"),
        ({}, {"id": ["pkg", "ChatWidget"]}, "widget"),
        (None, None, "unknown"),
    ],
)
def test_providers(metadata: Any, serialized: Any, provider: str) -> None:
    assert ModelRequest("chat", serialized, metadata, None).attributes[semconv.PROVIDER] == provider


def test_the_model_that_is_sent_goes_before_the_one_that_is_shown() -> None:
    assert ModelRequest("chat", None, {"ls_model_name": "gpt-4o-2024"}, {"model": "gpt-4o"}).model == "gpt-4o"
    assert ModelRequest("chat", None, {"ls_model_name": "dep"}, {"model": None, "model_name": None}).model == "dep"
    assert ModelRequest("chat", None, None, None).model is None


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"top_k": 40, "top_p": 1, "seed": 7}, {semconv.REQUEST_TOP_K: 40, semconv.REQUEST_TOP_P: 1.0, semconv.REQUEST_SEED: 7}),
        ({"frequency_penalty": 0.5}, {semconv.REQUEST_FREQUENCY_PENALTY: 0.5}),
        ({"presence_penalty": 1}, {semconv.REQUEST_PRESENCE_PENALTY: 1.0}),
        ({"n": 3}, {semconv.REQUEST_CHOICE_COUNT: 3}),
        ({"n": 1, "top_k": True, "top_p": "much", "seed": 2**70}, {}),
    ],
)  # fmt: skip
def test_parameters_of_a_request(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    attributes = ModelRequest(semconv.CHAT, None, {"ls_provider": "ollama"}, parameters).attributes
    assert attributes == {semconv.PROVIDER: "ollama", **expected}
    assert {type(value) for value in expected.values()} <= {type(attributes[name]) for name in expected}


@pytest.mark.parametrize(
    ("said", "tier"),
    [
        ({"speed": "fast", "service_tier": "standard"}, "fast"),
        ({"speed": "standard", "service_tier": "batch"}, "batch"),
        ({"speed": None, "service_tier": "standard"}, None),
        ({"speed": ["fast"]}, None),
    ],
)
def test_what_anthropic_bills_at_another_price(said: dict[str, Any], tier: str | None) -> None:
    answer = _seen(LLMResult(generations=[[_message(USAGE, {"usage": said})]]))
    assert answer.attributes().get(semconv.OPENAI_RESPONSE_SERVICE_TIER) == tier


SEARCHED: list[str | dict[Any, Any]] = [{"type": "server_tool_use", "name": "web_search", "id": "s", "input": {}}]


@pytest.mark.parametrize(
    ("message", "units"),
    [
        # A stream of langchain-anthropic leaves out what its usage said of tools: the blocks tell.
        (AIMessage(SEARCHED), {semconv.WEB_SEARCHES: 1.0}),
        (
            AIMessage(SEARCHED, response_metadata={"usage": {"server_tool_use": {"web_search_requests": 2}}}),
            {semconv.WEB_SEARCHES: 2.0},
        ),
        (
            AIMessage("", response_metadata={"grounding_metadata": {"web_search_queries": ["a", "b"]}}),
            {semconv.GROUNDING_QUERIES: 2.0},
        ),
        (AIMessage("", response_metadata={"grounding_metadata": {"web_search_queries": []}}), {}),
        (AIMessage(["text"]), {}),
    ],
)
def test_what_the_providers_tools_did(message: AIMessage, units: dict[str, float]) -> None:
    told = _seen(LLMResult(generations=[[ChatGeneration(message=message)]])).attributes()
    assert {name: number for name, number in told.items() if name.startswith(semconv.UNIT_PREFIX)} == units
