"""What providers, gateways and servers say of a call, as their documentation or a recording has it, and what is to be read in it.

The numbers to be read were worked out by hand from what the source says, not by the reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from otel_llm.conventions import semconv as s

INPUT, OUTPUT, CACHED, WRITTEN = s.INPUT_TOKENS, s.OUTPUT_TOKENS, s.CACHE_READ_TOKENS, s.CACHE_WRITE_TOKENS
HOUR, REASONING, COST, SOURCE = s.CACHE_WRITE_1H_TOKENS, s.REASONING_TOKENS, s.REPORTED_COST_USD, s.USAGE_SOURCE
AUDIO_IN, AUDIO_OUT, IMAGE_IN, IMAGE_OUT = (
    s.AUDIO_INPUT_TOKENS,
    s.AUDIO_OUTPUT_TOKENS,
    s.IMAGE_INPUT_TOKENS,
    s.IMAGE_OUTPUT_TOKENS,
)


@dataclass(frozen=True)
class Said:
    """A call and what was said of it."""

    provider: str
    base_url: str
    usage: Mapping[str, Any] | None
    told: Mapping[str, Any]
    """The attributes that are to be read, all of them; what is not here is not known."""
    model: str = "m"
    place: str = "trailing"
    """Where a stream has it: in a `trailing` chunk without choices, in the `last` with them, in `every` chunk as far as it went,
    in `x_groq`, in the `choice`, as `timings`, or `nowhere`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else stands in the answer."""


def plain(asked: int, answered: int, **details: Any) -> dict[str, Any]:
    """The usage object of most."""
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered, **details}


def known(
    asked: int, answered: int, cached: int | None = None, reasoning: int | None = None, **more: Any
) -> dict[str, Any]:
    """What is to be read of most."""
    told = {INPUT: asked, OUTPUT: answered, CACHED: cached, REASONING: reasoning, SOURCE: "reported"}
    return {name: value for name, value in told.items() if value is not None} | more


_CACHED = {"prompt_tokens_details": {"cached_tokens": 64}}
_THOUGHT = {"completion_tokens_details": {"reasoning_tokens": 40}}
_OPENAI = plain(
    120,
    60,
    prompt_tokens_details={"cached_tokens": 64, "audio_tokens": 0},
    completion_tokens_details={
        "reasoning_tokens": 40,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
)
_OPENAI_TOLD = known(120, 60, 64, 40, **{AUDIO_IN: 0, AUDIO_OUT: 0})
_ANTHROPIC = {"cache_read_input_tokens": 64, "cache_creation_input_tokens": 30}
"""Beside OpenAI's names, in a prompt that has been added up: what gateways leave of Anthropic's own."""
_OPENROUTER = plain(
    194,
    2,
    cost=0.95,
    is_byok=False,
    cost_details={"upstream_inference_cost": 0.95},
    prompt_tokens_details={"cached_tokens": 0, "cache_write_tokens": 100, "audio_tokens": 0},
    completion_tokens_details={"reasoning_tokens": 0},
)

SAID = (
    Said("openai", "https://api.openai.com/v1", _OPENAI, _OPENAI_TOLD),
    Said("openai", "https://eu.api.openai.com/v1", _OPENAI, _OPENAI_TOLD),
    # A dev container, an own load balancer, a relay: nobody knows who, and what it says is read all the same.
    Said("openai", "http://127.0.0.1:8000/v1", _OPENAI, _OPENAI_TOLD),
    Said(
        "openai",
        "http://ec2-198-51-100-7.compute-1.amazonaws.com:8000/v1",
        plain(32, 9) | {"total_tokens": 135} | {"completion_tokens_details": {"reasoning_tokens": 94}},
        known(32, 103, None, 94),
    ),
    Said(
        "openai",
        "https://relay.example/v1",
        plain(20, 198) | {"total_tokens": 623},
        {**known(20, 198), SOURCE: "inconsistent"},
    ),
    Said(
        "openai",
        "https://relay.example/v1",
        _OPENROUTER,
        known(194, 2, 0, 0, **{WRITTEN: 100, AUDIO_IN: 0, COST: 0.95}),
    ),
    Said("openai", "https://mute.example/v1", None, {}, place="nowhere"),
    # Azure. Recording azure_chat_reasoning.yaml.
    Said(
        "azure.ai.openai",
        "https://mine.openai.azure.com/openai/v1",
        plain(
            11,
            203,
            completion_tokens_details={"audio_tokens": 0, "reasoning_tokens": 192},
            prompt_tokens_details={"audio_tokens": 0, "cached_tokens": 0},
        ),
        known(11, 203, 0, 192, **{AUDIO_IN: 0, AUDIO_OUT: 0}),
    ),
    Said("azure.ai.openai", "https://mine.openai.azure.us/openai/v1", _OPENAI, _OPENAI_TOLD),
    Said("azure.ai.openai", "https://mine.openai.azure.cn/openai/v1", _OPENAI, _OPENAI_TOLD),
    Said("azure.ai.openai", "https://mine.cognitiveservices.azure.com/openai/v1", _OPENAI, _OPENAI_TOLD),
    Said("azure.ai.inference", "https://mine.services.ai.azure.com/openai/v1", _OPENAI, _OPENAI_TOLD),
    # The compatibility layer says no more (docs.claude.com/en/api/openai-sdk); and its own names, as relays have them.
    Said("anthropic", "https://api.anthropic.com/v1", plain(120, 60), known(120, 60)),
    Said(
        "anthropic",
        "https://api.anthropic.com/v1",
        {
            "input_tokens": 26,
            "output_tokens": 60,
            "cache_read_input_tokens": 64,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            "server_tool_use": {"web_search_requests": 2},
        },
        known(120, 60, 64, **{WRITTEN: 30, HOUR: 20, s.WEB_SEARCHES: 2.0}),
    ),
    # ai.google.dev/gemini-api/docs/openai: thoughts are in the total alone.
    Said(
        "gcp.gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        plain(20, 198) | {"total_tokens": 623},
        known(20, 603, None, 405),
        place="every",
    ),
    Said(
        "gcp.vertex_ai",
        "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1/endpoints/openapi",
        plain(20, 198) | {"total_tokens": 623} | {"completion_tokens_details": {"reasoning_tokens": 405}},
        known(20, 603, None, 405),
        place="every",
    ),
    Said(
        "gcp.vertex_ai",
        "https://aiplatform.googleapis.com/v1/projects/p/locations/global/endpoints/openapi",
        plain(120, 60, **_CACHED),
        known(120, 60, 64),
        place="every",
    ),
    Said("aws.bedrock", "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1", plain(120, 60), known(120, 60)),
    Said("aws.bedrock", "https://bedrock-mantle.us-east-1.api.aws/v1", _OPENAI, _OPENAI_TOLD),
    Said("cohere", "https://api.cohere.ai/compatibility/v1", plain(120, 60), known(120, 60)),
    # api-docs.deepseek.com/guides/kv_cache. Recording deepseek_stream.yaml has it in the last chunk.
    Said(
        "deepseek",
        "https://api.deepseek.com/v1",
        plain(120, 60, prompt_cache_hit_tokens=64, prompt_cache_miss_tokens=56, **_THOUGHT),
        known(120, 60, 64, 40),
        place="last",
    ),
    # Recordings groq_chat.yaml, groq_stream.yaml.
    Said(
        "groq",
        "https://api.groq.com/openai/v1",
        plain(12, 26, queue_time=0.018, prompt_time=0.0018, completion_time=0.02, total_time=0.023),
        known(12, 26),
        place="x_groq",
    ),
    Said("groq", "https://api.groq.com/openai/v1", plain(120, 60, **_CACHED), known(120, 60, 64), place="x_groq"),
    Said(
        "mistral_ai",
        "https://api.mistral.ai/v1",
        plain(120, 60, prompt_audio_seconds=3, **_CACHED),
        known(120, 60, 64, **{s.AUDIO_SECONDS: 3.0}),
        place="last",
    ),
    # docs.perplexity.ai/getting-started/pricing: sonar-deep-research, and sonar.
    Said(
        "perplexity",
        "https://api.perplexity.ai",
        plain(
            33,
            11395,
            citation_tokens=19028,
            num_search_queries=21,
            reasoning_tokens=193947,
            cost={
                "input_tokens_cost": 0.0,
                "output_tokens_cost": 0.091,
                "search_queries_cost": 0.105,
                "total_cost": 0.816,
            },
        ),
        known(33, 205342, None, 193947, **{COST: 0.816, s.UNIT_PREFIX + "search_queries": 21.0}),
        place="every",
    ),
    Said(
        "perplexity",
        "https://api.perplexity.ai",
        plain(
            24,
            2681,
            search_context_size="low",
            citation_tokens=None,
            cost={"request_cost": 0.006, "total_cost": 0.04629},
        ),
        known(24, 2681, **{COST: 0.04629}),
        place="every",
    ),
    # docs.x.ai/developers/cost-tracking.md, and the figures of the field notes.
    Said(
        "x_ai",
        "https://api.x.ai/v1",
        {
            "prompt_tokens": 10120,
            "completion_tokens": 1499,
            "total_tokens": 12819,
            "num_sources_used": 3,
            "prompt_tokens_details": {"text_tokens": 10120, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 128},
            "completion_tokens_details": {"reasoning_tokens": 1200, "audio_tokens": 0},
            "cost_in_usd_ticks": 37756000,
        },
        known(
            10120,
            2699,
            128,
            1200,
            **{AUDIO_IN: 0, AUDIO_OUT: 0, IMAGE_IN: 0, COST: 0.0037756, s.UNIT_PREFIX + "search_sources": 3.0},
        ),
        place="every",
    ),
    # openrouter.ai/docs/use-cases/usage-accounting; a free model; a key of one's own.
    Said(
        "openrouter",
        "https://openrouter.ai/api/v1",
        _OPENROUTER,
        known(194, 2, 0, 0, **{WRITTEN: 100, AUDIO_IN: 0, COST: 0.95}),
    ),
    Said("openrouter", "https://openrouter.ai/api/v1", plain(194, 2, cost=0), known(194, 2, **{COST: 0.0})),
    Said(
        "openrouter",
        "https://openrouter.ai/api/v1",
        plain(194, 2, cost=0, is_byok=True, cost_details={"upstream_inference_cost": 0.21976}),
        known(194, 2, **{COST: 0.21976}),
    ),
    # Recording together_chat.yaml.
    Said("together_ai", "https://api.together.xyz/v1", plain(46, 42, cached_tokens=0), known(46, 42, 0)),
    Said(
        "fireworks_ai",
        "https://api.fireworks.ai/inference/v1",
        plain(120, 60, **_CACHED),
        known(120, 60, 64),
        place="last",
    ),
    Said(
        "cerebras",
        "https://api.cerebras.ai/v1",
        plain(120, 60, prompt_tokens_details={"cached_tokens": 64}, completion_tokens_details={"reasoning_tokens": 40}),
        known(120, 60, 64, 40),
        place="last",
    ),
    Said("huggingface", "https://router.huggingface.co/v1", plain(120, 60), known(120, 60)),
    # platform.moonshot.ai: in the choice of the last chunk, and once more in a trailing one where it is asked for.
    Said(
        "moonshot_ai",
        "https://api.moonshot.ai/v1",
        plain(120, 60, cached_tokens=64),
        known(120, 60, 64),
        place="choice",
    ),
    Said("ibm.watsonx.ai", "https://us-south.ml.cloud.ibm.com/ml/v1", plain(120, 60), known(120, 60)),
    Said(
        "sambanova",
        "https://api.sambanova.ai/v1",
        plain(120, 60, completion_tokens_per_sec=400.1, is_last_response=True, total_latency=0.3, acceptance_rate=3.8),
        known(120, 60),
        place="last",
    ),
    Said("nebius", "https://api.studio.nebius.com/v1", plain(120, 60, prompt_tokens_details=None), known(120, 60)),
    Said("nebius", "https://api.tokenfactory.nebius.com/v1", plain(120, 60), known(120, 60)),
    Said(
        "zhipu",
        "https://api.z.ai/api/paas/v4",
        plain(120, 60, **_CACHED, **_THOUGHT),
        known(120, 60, 64, 40),
        place="last",
    ),
    Said("zhipu", "https://open.bigmodel.cn/api/paas/v4", plain(120, 60, **_CACHED), known(120, 60, 64), place="last"),
    # alibabacloud.com/help/en/model-studio/context-cache: an explicit cache.
    Said(
        "dashscope",
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        plain(
            1605,
            187,
            prompt_tokens_details={
                "cached_tokens": 0,
                "cache_creation_input_tokens": 1494,
                "cache_type": "ephemeral",
                "cache_creation": {"ephemeral_5m_input_tokens": 1494},
            },
        ),
        known(1605, 187, 0, **{WRITTEN: 1494}),
    ),
    Said(
        "minimax",
        "https://api.minimax.io/v1",
        plain(120, 60, total_characters=0, completion_tokens_details={"reasoning_tokens": 40}),
        known(120, 60, None, 40),
        extra={"base_resp": {"status_code": 0, "status_msg": ""}},
        place="last",
    ),
    Said("nvidia", "https://integrate.api.nvidia.com/v1", plain(120, 60, reasoning_tokens=0), known(120, 60, None, 0)),
    Said(
        "databricks",
        "https://adb-1234567890123456.7.azuredatabricks.net/serving-endpoints",
        plain(120, 60, **_ANTHROPIC),
        known(120, 60, 64, **{WRITTEN: 30}),
    ),
    Said(
        "deepinfra",
        "https://api.deepinfra.com/v1/openai",
        plain(120, 60, estimated_cost=1.7e-05),
        known(120, 60, **{COST: 1.7e-05}),
    ),
    Said("hyperbolic", "https://api.hyperbolic.xyz/v1", plain(120, 60), known(120, 60)),
    Said("novita", "https://api.novita.ai/v3/openai", plain(120, 60, prompt_tokens_details=None), known(120, 60)),
    Said(
        "siliconflow",
        "https://api.siliconflow.cn/v1",
        plain(120, 60, **_THOUGHT),
        known(120, 60, None, 40),
        place="every",
    ),
    Said("volcengine", "https://ark.cn-beijing.volces.com/api/v3", _OPENAI, _OPENAI_TOLD),
    Said("baidu", "https://qianfan.baidubce.com/v2", plain(120, 60), known(120, 60), place="last"),
    Said("tencent", "https://api.hunyuan.cloud.tencent.com/v1", plain(120, 60), known(120, 60), place="every"),
    Said("stepfun", "https://api.stepfun.com/v1", plain(120, 60, cached_tokens=64), known(120, 60, 64), place="last"),
    Said("ai21", "https://api.ai21.com/studio/v1", plain(120, 60), known(120, 60), place="last"),
    Said("upstage", "https://api.upstage.ai/v1", plain(120, 60), known(120, 60), place="last"),
    Said("friendli", "https://api.friendli.ai/serverless/v1", plain(120, 60), known(120, 60)),
    Said("baseten", "https://inference.baseten.co/v1", plain(120, 60, **_CACHED), known(120, 60, 64)),
    Said("lambda", "https://api.lambda.ai/v1", plain(120, 60), known(120, 60)),
    Said("scaleway", "https://api.scaleway.ai/v1", plain(120, 60), known(120, 60)),
    Said("ovhcloud", "https://oai.endpoints.kepler.ai.cloud.ovh.net/v1", plain(120, 60), known(120, 60)),
    Said("meta", "https://api.llama.com/compat/v1", plain(120, 60), known(120, 60)),
    Said("inception", "https://api.inceptionlabs.ai/v1", plain(120, 60), known(120, 60)),
    Said("snowflake", "https://org-account.snowflakecomputing.com/api/v2/cortex/v1", plain(120, 60), known(120, 60)),
    # Gateways. What a cost is in that they do not name is not known.
    Said(
        "vercel", "https://ai-gateway.vercel.sh/v1", plain(120, 60, **_CACHED), known(120, 60, 64), model="openai/gpt-5"
    ),
    Said("github", "https://models.github.ai/inference", plain(120, 60), known(120, 60), model="openai/gpt-4o-mini"),
    Said("cloudflare", "https://api.cloudflare.com/client/v4/accounts/a/ai/v1", plain(120, 60), known(120, 60)),
    Said("cloudflare", "https://gateway.ai.cloudflare.com/v1/a/g/compat", _OPENAI, _OPENAI_TOLD),
    # Recording portkey_chat.yaml.
    Said("portkey", "https://api.portkey.ai/v1", _OPENAI, _OPENAI_TOLD),
    Said("helicone", "https://ai-gateway.helicone.ai/v1", _OPENAI, _OPENAI_TOLD),
    # LiteLLM's proxy, wherever it runs: Anthropic behind it, and a cost in units that it does not name.
    Said(
        "openai",
        "http://litellm.internal:4000/v1",
        plain(
            120,
            60,
            prompt_tokens_details={
                "cached_tokens": 64,
                "cache_creation_tokens": 30,
                "audio_tokens": None,
                "cache_creation_token_details": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            },
            cost=0.01,
            **_ANTHROPIC,
        ),
        known(120, 60, 64, **{WRITTEN: 30, HOUR: 20}),
    ),
    # Servers of one's own: vLLM, SGLang, Ollama, LM Studio, llama.cpp.
    Said("openai", "http://vllm.internal:8000/v1", plain(120, 60, prompt_tokens_details=None), known(120, 60)),
    Said("openai", "http://vllm.internal:8000/v1", plain(120, 60, **_CACHED), known(120, 60, 64), place="every"),
    Said(
        "openai",
        "http://sglang.internal:30000/v1",
        plain(120, 60, reasoning_tokens=40, **_CACHED),
        known(120, 60, 64, 40),
    ),
    Said("openai", "http://localhost:11434/v1", plain(120, 60), known(120, 60), model="gpt-oss:20b"),
    Said(
        "openai", "http://localhost:1234/v1", plain(120, 60, **_THOUGHT), known(120, 60, None, 40), extra={"stats": {}}
    ),
    Said(
        "openai",
        "http://localhost:8080/v1",
        plain(120, 60),
        known(120, 60),
        extra={"timings": {"prompt_n": 1, "predicted_n": 60}},
    ),
    Said(
        "openai",
        "http://localhost:8080/v1",
        {"prompt_n": 56, "cache_n": 64, "predicted_n": 60, "prompt_ms": 30.9},
        known(120, 60, 64),
        place="timings",
    ),
)

PARTNERS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "openai": (_OPENAI_TOLD, {}),  # asks for no usage of a stream behind a base_url of one's own
    "openai flex": (_OPENAI_TOLD | {s.OPENAI_RESPONSE_SERVICE_TIER: "flex"},) * 2,
    "openai responses": (known(120, 60, 64, 40, **{s.OPENAI_RESPONSE_SERVICE_TIER: "flex"}), {}),
    # 10 + 64 read + 300 written, 200 of them for an hour; a stream leaves out what the server's tools did.
    "anthropic": (
        known(374, 60, 64, **{WRITTEN: 300, HOUR: 200, s.WEB_SEARCHES: 2.0}),
        known(374, 60, 64, **{WRITTEN: 300, HOUR: 200}),
    ),
    # 120 + 7 of tools, 20 + 40 thought.
    "google-genai": (known(127, 60, 64, 40),) * 2,
    "google-vertexai": (known(120, 60, 64, 40),) * 2,
    "aws": (known(374, 60, 64, **{WRITTEN: 300, HOUR: 200}),) * 2,
    "mistralai": (known(120, 60, 64), known(120, 60)),  # its stream leaves out what is cached
    "groq": (_OPENAI_TOLD, known(120, 60, 64, 40)),
    "deepseek": (known(120, 60, 64, 40),) * 2,
    "xai": (
        known(120, 60, 64, 40, **{AUDIO_IN: 0, AUDIO_OUT: 0, IMAGE_IN: 0, COST: 0.0037756}),
        known(120, 60, 64, 40, **{AUDIO_IN: 0, AUDIO_OUT: 0}),
    ),
    "ollama": (known(120, 60),) * 2,
    "fireworks": (_OPENAI_TOLD, known(120, 60, 64, 40)),
    "together": (known(120, 60), {}),
    "cohere": (known(120, 60), known(100, 60)),  # its stream tells what was billed, the other what was read
    "huggingface": (known(120, 60), {}),
    "openrouter": (known(120, 60, 64, 40, **{WRITTEN: 10, COST: 0.00095}),) * 2,
    "perplexity": (known(33, 204, None, 193, **{s.UNIT_PREFIX + "search_queries": 21.0}),) * 2,
}
"""What is to be read of an answer through each partner package, and of a stream; `partner_packages.json` has what they say."""
