"""How servers say what an answer used: one table for each accent of the OpenAI API, and one for LangChain's.

The reader (`usage_reading`) takes all of them at once, because the payload tells more of who speaks than the host does: a
gateway, a relay or localhost may send any of them. What a name means is therefore the same in every accent, and a test sees to
it. `docs/providers.md` is made from the same table. A new accent is one more entry here, with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from otel_llm.conventions.token_usage import Usage

_MORE: Final = (
    "total",
    "cache_write_5m",
    "reasoning_apart",
    "cache_read_apart",
    "cache_write_apart",
    "tool_input",
    "citations",
)
SLOTS: Final[Mapping[str, int]] = {name: number for number, name in enumerate((*Usage._fields, *_MORE))}
"""What is counted in tokens: the fields of `Usage`, and what only the sum is explained with. `_apart`: a name that is used by
those who count it beside its whole, unless the sum says otherwise."""
MONEY: Final = ("$cost", "$details", "$byok", "$ticks", "$estimate")
"""What is said of the cost, in whichever unit."""


@dataclass(frozen=True, eq=False)
class Accent:
    """The names in a usage object, as paths: `outer.inner` for a field of an object in it."""

    name: str
    source: str
    """Where it is written or was seen."""
    counts: Mapping[str, str] = field(default_factory=dict)
    """Path -> the slot that it is counted in."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Path -> what else is billed, as it is called in `units`."""
    money: Mapping[str, str] = field(default_factory=dict)
    """Path -> one of `MONEY`."""
    place: str = "`usage`"
    """Where the object stands, beside `usage`."""
    beside: str = ""
    """Which parts stand beside their whole, as the documentation or a recording has it; the sum decides."""


def _in(outer: tuple[str, ...], inner: Mapping[str, str]) -> dict[str, str]:
    return {f"{one}.{name}": slot for one in outer for name, slot in inner.items()}


_INPUT: Final = ("prompt_tokens_details", "input_tokens_details", "input_token_details", "prompt_token_details")
_DETAILS: Final = _INPUT[:2]
"""Of chat and of Responses, as others have taken them over."""
_OUTPUT: Final = ("completion_tokens_details", "output_tokens_details", "output_token_details")
_EPHEMERAL: Final = {"ephemeral_5m_input_tokens": "cache_write_5m", "ephemeral_1h_input_tokens": "cache_write_1h"}

OPENAI: Final = Accent(
    "openai",
    "https://platform.openai.com/docs/api-reference: chat, Responses, images, audio, Realtime, runs; types of openai 3.57",
    {
        "prompt_tokens": "input",
        "input_tokens": "input",
        "completion_tokens": "output",
        "output_tokens": "output",
        "total_tokens": "total",
        **_in(
            _INPUT,
            {
                "cached_tokens": "cache_read",
                "cache_write_tokens": "cache_write",
                "audio_tokens": "audio_input",
                "image_tokens": "image_input",
                "cached_tokens_details.audio_tokens": "audio_cache_read",
                "cached_tokens_details.image_tokens": "image_cache_read",
            },
        ),
        **_in(
            _OUTPUT,
            {"reasoning_tokens": "reasoning", "audio_tokens": "audio_output", "image_tokens": "image_output"},
        ),
    },
    {"seconds": "audio_seconds"},
)
XAI: Final = Accent(
    "xai",
    "https://docs.x.ai/developers/cost-tracking.md (the cost: 10**10 ticks a USD); answers with tools in public repositories",
    units={
        "num_sources_used": "search_sources",
        **{
            f"server_side_tool_usage_details.{name}": name
            for name in (
                *("web_search_calls", "x_search_calls", "file_search_calls", "document_search_calls"),
                *("code_interpreter_calls", "image_generation_calls", "mcp_calls", "x_posts_fetched"),
                "x_users_fetched",
            )
        },
    },
    money={"cost_in_usd_ticks": "$ticks"},
    beside="reasoning, in chat completions; not in Responses",
)
GEMINI: Final = Accent(
    "gemini",
    "https://ai.google.dev/api/generate-content#UsageMetadata; recording vertex_gemini_langchain_stream.yaml",
    {
        **dict.fromkeys(("promptTokenCount", "prompt_token_count"), "input"),
        **dict.fromkeys(("candidatesTokenCount", "candidates_token_count"), "output"),
        **dict.fromkeys(("totalTokenCount", "total_token_count"), "total"),
        **dict.fromkeys(("cachedContentTokenCount", "cached_content_token_count"), "cache_read"),
        **dict.fromkeys(("thoughtsTokenCount", "thoughts_token_count"), "reasoning_apart"),
        **dict.fromkeys(("toolUsePromptTokenCount", "tool_use_prompt_token_count"), "tool_input"),
    },
    place="`usage`, in every chunk; `usageMetadata` in its own API",
    beside="reasoning, which the OpenAI endpoint does not even name: what is missing in the sum; what tools put into the prompt",
)
ANTHROPIC: Final = Accent(
    "anthropic",
    "https://docs.claude.com/en/docs/build-with-claude/prompt-caching (input_tokens is without what is cached)",
    {
        "cache_read_input_tokens": "cache_read_apart",
        "cache_creation_input_tokens": "cache_write_apart",
        **_in(("cache_creation",), _EPHEMERAL),
        **_in(_OUTPUT, {"thinking_tokens": "reasoning"}),
    },
    {
        "server_tool_use.web_search_requests": "web_search_calls",
        "server_tool_use.web_fetch_requests": "web_fetch_calls",
        "server_tool_use.code_execution_requests": "code_execution_calls",
    },
    beside="what is read from the cache and written to it; not where a gateway has added it up already",
)
BEDROCK: Final = Accent(
    "bedrock",
    "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html; langchain-aws 1.9.1",
    {
        "inputTokens": "input",
        "outputTokens": "output",
        "totalTokens": "total",
        "cacheReadInputTokens": "cache_read_apart",
        "cacheWriteInputTokens": "cache_write_apart",
        "inputTokenCount": "input",
        "outputTokenCount": "output",
    },
    beside="what is read from the cache and written to it; `totalTokens` has it or has it not",
)
DEEPSEEK: Final = Accent(
    "deepseek",
    "https://api-docs.deepseek.com/guides/kv_cache; recording deepseek_stream.yaml",
    {"prompt_cache_hit_tokens": "cache_read"},
)
GROQ: Final = Accent(
    "groq",
    "recordings groq_chat.yaml and groq_stream.yaml; https://console.groq.com/docs/prompt-caching",
    place="`usage`; of a stream `x_groq.usage` in the last chunk, without being asked",
)
MOONSHOT: Final = Accent(
    "moonshot",
    "https://platform.moonshot.ai/docs/api/chat (cached_tokens; usage in the choice of a stream's last chunk)",
    {"cached_tokens": "cache_read"},
    place="`usage`; of a stream `choices[0].usage` in the chunk with the finish reason",
)
PERPLEXITY: Final = Accent(
    "perplexity",
    "https://docs.perplexity.ai/getting-started/pricing (an answer of sonar-deep-research with its cost)",
    {
        "reasoning_tokens": "reasoning_apart",
        "citation_tokens": "citations",
        **_in(_OUTPUT, {"citation_tokens": "citations"}),
    },
    {"num_search_queries": "search_queries"},
    {"cost": "$cost"},
    place="`usage`, in every chunk",
    beside="reasoning, of sonar-deep-research: neither in `completion_tokens` nor in the sum",
)
OPENROUTER: Final = Accent(
    "openrouter",
    "https://openrouter.ai/docs/use-cases/usage-accounting; recording openrouter_stream_reasoning.yaml",
    money={"cost": "$cost", "cost_details": "$details", "is_byok": "$byok"},
    place="`usage`; of a stream in the last chunk, without being asked",
)
DEEPINFRA: Final = Accent(
    "deepinfra", "https://deepinfra.com/docs/openai_api (estimated_cost)", money={"estimated_cost": "$estimate"}
)
DASHSCOPE: Final = Accent(
    "dashscope",
    "https://www.alibabacloud.com/help/en/model-studio/context-cache",
    {
        **_in(_DETAILS, {"cache_creation_input_tokens": "cache_write"}),
        **_in(tuple(f"{outer}.cache_creation" for outer in _DETAILS), _EPHEMERAL),
    },
)
MISTRAL: Final = Accent(
    "mistral",
    "https://docs.mistral.ai/capabilities/audio (prompt_audio_seconds)",
    {"num_cached_tokens": "cache_read"},
    {"prompt_audio_seconds": "audio_seconds"},
)
LITELLM: Final = Accent(
    "litellm",
    "https://docs.litellm.ai/docs/completion/prompt_caching; litellm's types.utils.Usage",
    {
        **_in(_DETAILS, {"cache_creation_tokens": "cache_write"}),
        **_in(tuple(f"{outer}.cache_creation_token_details" for outer in _DETAILS), _EPHEMERAL),
    },
)
OLLAMA: Final = Accent(
    "ollama",
    "https://github.com/ollama/ollama/blob/main/docs/api.md (its own API, through LangChain)",
    {"prompt_eval_count": "input", "eval_count": "output"},
    place="`usage`; in its own API the answer itself",
)
LLAMA_CPP: Final = Accent(
    "llama.cpp",
    "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (timings: prompt_n without cache_n)",
    {"prompt_n": "input", "cache_n": "cache_read_apart", "predicted_n": "output"},
    place="`usage`; of a stream that was not asked for it `timings` in the last chunk",
    beside="what is read from the cache, in `timings`",
)
WATSONX: Final = Accent(
    "watsonx",
    "https://cloud.ibm.com/apidocs/watsonx-ai (text generation)",
    {"input_token_count": "input", "generated_token_count": "output"},
)
COHERE: Final = Accent(
    "cohere",
    "https://docs.cohere.com/reference/chat (meta.tokens, billed_units); langchain-cohere 0.6.0",
    units={"billed_units.search_units": "search_units", "search_units": "search_units"},
)
LANGCHAIN: Final = Accent(
    "langchain",
    "langchain-core 1.8.3 UsageMetadata; langchain-openai 1.7.4 (flex_, priority_), langchain-anthropic 1.7.10 (ephemeral_)",
    {
        **_in(
            ("input_token_details",),
            {
                "audio": "audio_input",
                "image": "image_input",
                **{f"{tier}cache_read": "cache_read" for tier in ("", "flex_", "priority_")},
                **{f"{tier}cache_creation": "cache_write" for tier in ("", "flex_", "priority_")},
                **_EPHEMERAL,
            },
        ),
        **_in(
            ("output_token_details",),
            {
                "audio": "audio_output",
                "image": "image_output",
                **{f"{tier}reasoning": "reasoning" for tier in ("", "flex_", "priority_")},
            },
        ),
    },
    place="`usage_metadata` of the message",
    beside="reasoning, in langchain-google-vertexai",
)

ACCENTS: Final = (
    *(OPENAI, LANGCHAIN, ANTHROPIC, GEMINI, BEDROCK, XAI, OPENROUTER, DEEPSEEK, GROQ, MOONSHOT, PERPLEXITY, DEEPINFRA),
    *(DASHSCOPE, MISTRAL, LITELLM, OLLAMA, LLAMA_CPP, WATSONX, COHERE),
)

_ASKED: Final = {"audio": SLOTS["audio_input"], "image": SLOTS["image_input"]}
_ANSWERED: Final = {"audio": SLOTS["audio_output"], "image": SLOTS["image_output"]}
_CACHED: Final = {"audio": SLOTS["audio_cache_read"], "image": SLOTS["image_cache_read"]}
MODALITY_LISTS: Final[Mapping[str, Mapping[str, int]]] = {
    "promptTokensDetails": _ASKED,
    "prompt_tokens_details": _ASKED,
    "candidatesTokensDetails": _ANSWERED,
    "candidates_tokens_details": _ANSWERED,
    "cacheTokensDetails": _CACHED,
    "cache_tokens_details": _CACHED,
    "cacheDetails": {"5m": SLOTS["cache_write_5m"], "1h": SLOTS["cache_write_1h"]},
}
"""Lists of counts, each with the word that says of what: the modality (Gemini), the time to live (Bedrock)."""


def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = {name: name for name in MODALITY_LISTS}
    for accent in ACCENTS:
        leaves: dict[str, Any] = {path: SLOTS[slot] for path, slot in accent.counts.items()}
        for path, leaf in (leaves | dict(accent.units) | dict(accent.money)).items():
            *outer, name = path.split(".")
            node = tree
            for one in outer:
                below = node.get(one)
                if not isinstance(below, dict):
                    below = node[one] = {}
                node = below
            node[name] = leaf
    return tree


TREE: Final = _tree()
"""All names of all accents: name -> number of a slot, or the tree of an object, or what else it tells of, as text."""
