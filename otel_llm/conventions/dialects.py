"""What other instrumentations write: one table for each dialect, and what a span in any of them is.

Python reads spans by these tables as they start and end; the SQL that makes rows of them is generated from the same tables
(`otel_llm/store/merge/rows.py`), and a test holds the two together. A new dialect is one more entry in `DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from otel_llm.conventions import semconv

INVOCATION_PARAMETERS: Final = "llm.invocation_parameters"
"""OpenInference: the request without its messages, as JSON."""
OUTPUT_VALUE: Final = "output.value"
"""OpenInference: the whole answer, as JSON."""


@dataclass(frozen=True)
class Dialect:
    """The words of one family of instrumentations."""

    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Our attribute -> theirs, the one that counts most first."""
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """An attribute that says what a span does -> its values, in any case of letters -> our operation. Another value is an
    operation of its own, in small letters."""
    operations: Mapping[str, str] = field(default_factory=dict)
    """Values of `gen_ai.operation.name` that are none of the convention's -> ours."""
    first_chunk_events: tuple[str, ...] = ()
    """Events, the first of which tells when the first chunk of a stream came."""
    content: tuple[str, ...] = ()
    """Patterns of the attributes that hold what was said."""
    no_spans: Mapping[str, str] = field(default_factory=dict)
    """Attribute and value of what looks like a GenAI span and is none."""
    provider_endings: tuple[str, ...] = ()
    """What stands behind the name of a provider for which of its APIs was asked."""


OPENTELEMETRY: Final = Dialect(
    # What older versions of the conventions said.
    names={
        semconv.PROVIDER: ("gen_ai.system",),
        semconv.INPUT_TOKENS: ("gen_ai.usage.prompt_tokens",),
        semconv.OUTPUT_TOKENS: ("gen_ai.usage.completion_tokens",),
        semconv.OPENAI_RESPONSE_SERVICE_TIER: ("gen_ai.openai.response.service_tier",),
        semconv.CACHE_READ_TOKENS: ("gen_ai.usage.cache_read_input_tokens",),
        semconv.CACHE_WRITE_TOKENS: (
            "gen_ai.usage.cache_creation.input_tokens",
            "gen_ai.usage.cache_creation_input_tokens",
        ),
        semconv.REASONING_TOKENS: ("gen_ai.usage.reasoning_tokens",),
        semconv.USER_ID: ("enduser.id",),
    },
    content=(
        r"gen_ai\.(prompt|completion)(\.\d.*)?",
        r"gen_ai\.(input|output)\.messages",
        r"gen_ai\.system_instructions",
        r"gen_ai\.tool\.(definitions|call\.(arguments|result))",
        r"gen_ai\.retrieval\.(documents|query\.text)",
        r"gen_ai\.(user|system|assistant|tool|choice)\.message.*",
        "content",
        "message",
        r"exception\.(message|stacktrace)",  # they can quote the prompt
    ),
)

OPENINFERENCE: Final = Dialect(
    names={
        semconv.PROVIDER: ("llm.provider", "llm.system"),
        semconv.REQUEST_MODEL: ("llm.model_name", "embedding.model_name"),
        INVOCATION_PARAMETERS: ("embedding.invocation_parameters",),
        semconv.FINISH_REASONS: ("llm.finish_reason",),
        semconv.INPUT_TOKENS: ("llm.token_count.prompt",),
        semconv.OUTPUT_TOKENS: ("llm.token_count.completion",),
        semconv.CACHE_READ_TOKENS: ("llm.token_count.prompt_details.cache_read",),
        semconv.CACHE_WRITE_TOKENS: ("llm.token_count.prompt_details.cache_write",),
        semconv.REASONING_TOKENS: ("llm.token_count.completion_details.reasoning",),
        semconv.AUDIO_INPUT_TOKENS: ("llm.token_count.prompt_details.audio",),
        semconv.AUDIO_OUTPUT_TOKENS: ("llm.token_count.completion_details.audio",),
    },
    kinds={
        "openinference.span.kind": {
            "LLM": semconv.CHAT,
            "EMBEDDING": semconv.EMBEDDINGS,
            "CHAIN": semconv.INVOKE_WORKFLOW,
            "AGENT": semconv.INVOKE_AGENT,
            "TOOL": semconv.EXECUTE_TOOL,
            "RETRIEVER": semconv.RETRIEVAL,
            "PROMPT": semconv.STEP,
            "RERANKER": semconv.RERANKER,
            "GUARDRAIL": semconv.GUARDRAIL,
            "EVALUATOR": semconv.EVALUATOR,
        }
    },
    first_chunk_events=("First Token Stream Event",),
    content=(
        r"(input|output)\.value",
        r"llm\.(input_messages|output_messages|prompts|completions|tools|prompt_template|function_call)(\..*)?",
        r"retrieval\.documents(\..*)?",
        r"embedding\.(text|embeddings).*",
        r"tool\.parameters",
    ),
)

OPENLLMETRY: Final = Dialect(
    names={
        semconv.PROVIDER: ("llm.vendor",),  # go-openllmetry
        semconv.REQUEST_MODEL: ("llm.request.model",),
        semconv.RESPONSE_MODEL: ("llm.response.model",),
        semconv.REQUEST_STREAM: ("llm.is_streaming", "gen_ai.is_streaming"),
        semconv.INPUT_TOKENS: ("llm.usage.prompt_tokens",),
        semconv.OUTPUT_TOKENS: ("llm.usage.completion_tokens",),
        semconv.CACHE_READ_TOKENS: ("llm.usage.cache_read_input_tokens",),
        semconv.CACHE_WRITE_TOKENS: ("llm.usage.cache_creation_input_tokens",),
        semconv.REASONING_TOKENS: ("llm.usage.reasoning_tokens",),
        semconv.CONVERSATION_ID: ("traceloop.association.properties.conversation_id",),
        semconv.USER_ID: ("traceloop.association.properties.user_id",),
        semconv.SESSION_ID: ("traceloop.association.properties.session_id",),
        semconv.WORKFLOW_NAME: ("traceloop.workflow.name",),
    },
    kinds={
        "llm.request.type": {
            "chat": semconv.CHAT,
            "completion": semconv.TEXT_COMPLETION,
            "embedding": semconv.EMBEDDINGS,
        },
        "traceloop.span.kind": {
            "workflow": semconv.INVOKE_WORKFLOW,
            "task": semconv.STEP,
            "agent": semconv.INVOKE_AGENT,
            "tool": semconv.EXECUTE_TOOL,
        },
    },
    operations={"execute_task": semconv.STEP},
    first_chunk_events=("gen_ai.content.completion.chunk", "llm.content.completion.chunk"),
    content=(
        r"traceloop\.entity\.(input|output)",
        r"gen_ai\.task\.(input|output)",
        r"llm\.request\.functions(\..*)?",
        "logprobs",  # which has the tokens of the answer
    ),
)

LOGFIRE: Final = Dialect(
    # Its message that a stream has ended is a span, beside the one of the call itself.
    no_spans={"logfire.span_type": "log"},
)

VERCEL: Final = Dialect(
    # The AI SDK for TypeScript, as the snapshots of its own tests have it (vercel/ai, packages/ai/src/telemetry/__snapshots__). Its
    # spans of requests (`doGenerate`) have names of the conventions too, those of embeddings only its own.
    names={
        semconv.PROVIDER: ("ai.model.provider",),
        semconv.REQUEST_MODEL: ("ai.model.id",),
        semconv.RESPONSE_MODEL: ("ai.response.model",),
        semconv.RESPONSE_ID: ("ai.response.id",),
        semconv.FINISH_REASONS: ("ai.response.finishReason",),
        semconv.INPUT_TOKENS: ("ai.usage.inputTokens", "ai.usage.promptTokens", "ai.usage.tokens"),
        semconv.OUTPUT_TOKENS: ("ai.usage.outputTokens", "ai.usage.completionTokens"),
        semconv.CACHE_READ_TOKENS: ("ai.usage.inputTokenDetails.cacheReadTokens", "ai.usage.cachedInputTokens"),
        semconv.CACHE_WRITE_TOKENS: ("ai.usage.inputTokenDetails.cacheWriteTokens",),
        semconv.REASONING_TOKENS: ("ai.usage.outputTokenDetails.reasoningTokens", "ai.usage.reasoningTokens"),
        semconv.TOOL_NAME: ("ai.toolCall.name",),
        semconv.TOOL_CALL_ID: ("ai.toolCall.id",),
        semconv.USER_ID: ("ai.telemetry.metadata.userId",),
        semconv.SESSION_ID: ("ai.telemetry.metadata.sessionId",),
    },
    kinds={
        "ai.operationId": {
            **dict.fromkeys(
                ("ai.generateText", "ai.streamText", "ai.generateObject", "ai.streamObject"), semconv.INVOKE_AGENT
            ),
            **dict.fromkeys(("ai.embed", "ai.embedMany", "ai.rerank"), semconv.STEP),
            **dict.fromkeys(
                (
                    *("ai.generateText.doGenerate", "ai.streamText.doStream"),
                    *("ai.generateObject.doGenerate", "ai.streamObject.doStream"),
                ),
                semconv.CHAT,
            ),
            **dict.fromkeys(("ai.embed.doEmbed", "ai.embedMany.doEmbed"), semconv.EMBEDDINGS),
            "ai.rerank.doRerank": semconv.RERANKER,
            "ai.toolCall": semconv.EXECUTE_TOOL,
        }
    },
    first_chunk_events=("ai.stream.firstChunk",),
    content=(
        r"ai\.prompt(\..*)?",
        r"ai\.response\.(text|object|reasoning|toolCalls|files|providerMetadata)",
        r"ai\.toolCall\.(args|result|input|output)",
        r"ai\.(value|values|embedding|embeddings|documents|query)",
    ),
    provider_endings=(".chat", ".responses", ".messages", ".completion", ".embedding", ".text-embedding"),
)

SPRING_AI: Final = Dialect(
    # The chat client, around one or several calls of models (docs.spring.io/spring-ai/reference/observability).
    operations={"framework": semconv.STEP},
)

DIALECTS: Final = (OPENTELEMETRY, OPENINFERENCE, OPENLLMETRY, LOGFIRE, VERCEL, SPRING_AI)
"""Where two say the same of one span in words of their own, the first counts."""

# --- the same by what is looked for -----------------------------------------------------------------------------------
ALIASES: Final[dict[str, tuple[str, ...]]] = {}
"""Our attribute -> its other names."""
for _dialect in DIALECTS:
    for _ours, _theirs in _dialect.names.items():
        ALIASES[_ours] = (*ALIASES.get(_ours, ()), *_theirs)

KINDS: Final[Mapping[str, Mapping[str, str]]] = {
    attribute: {value.lower(): operation for value, operation in values.items()}
    for dialect in DIALECTS
    for attribute, values in dialect.kinds.items()
}
"""The attributes that say what a span does, the first of which counts -> their values in small letters -> our operation."""
OPERATIONS: Final = {theirs: ours for dialect in DIALECTS for theirs, ours in dialect.operations.items()}
FIRST_CHUNK_EVENTS: Final = tuple(name for dialect in DIALECTS for name in dialect.first_chunk_events)
CONTENT_PATTERN: Final = "|".join(pattern for dialect in DIALECTS for pattern in dialect.content)
"""The pattern of attributes, ours and others', that hold what was said."""
PROVIDER_ENDINGS: Final = tuple(ending for dialect in DIALECTS for ending in dialect.provider_endings)
NO_SPANS: Final = tuple(pair for dialect in DIALECTS for pair in dialect.no_spans.items())

UNNAMED: Final = "gen_ai.system"
"""Older instrumentations write this, and nothing of what was done: the operation is not known, but that it is GenAI's is."""
MARKS: Final = frozenset((semconv.OPERATION, *KINDS, UNNAMED))
"""A span that has one of these is about generative AI."""
CALLS: Final = frozenset({op for kinds in KINDS.values() for op in kinds.values()}) - (
    semconv.TREE_OPERATIONS | semconv.PERHAPS_CALLS
)
"""Operations that a dialect's kind tells without a doubt to be model calls."""
CALL_MARKS: Final = (semconv.REQUEST_MODEL, semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS)
"""Where there is a doubt, one of these makes a span a model call."""


def names(attribute: str) -> tuple[str, ...]:
    """All names of an attribute, ours first."""
    return (attribute, *ALIASES.get(attribute, ()))


def read(attributes: Mapping[str, Any], attribute: str) -> Any:
    """The value of an attribute, by whichever of its names it is there; None where it is not."""
    value = attributes.get(attribute)
    if value is None:
        for name in ALIASES.get(attribute, ()):
            value = attributes.get(name)
            if value is not None:
                break
    return value


def provider_of(attributes: Mapping[str, Any]) -> str | None:
    """Who is asked, in small letters and without which of its APIs that is."""
    named = read(attributes, semconv.PROVIDER)
    if named is None:
        return None
    provider = str(named).lower()
    for ending in PROVIDER_ENDINGS:
        provider = provider.removesuffix(ending)
    return provider


def is_genai(attributes: Mapping[str, Any]) -> bool:
    """Whether attributes are those of a model, agent, tool, retriever or workflow span, in any dialect that we read."""
    if semconv.OPERATION not in attributes and MARKS.isdisjoint(attributes):
        return False
    for name, value in NO_SPANS:  # noqa: SIM110 - at the start and the end of every model call
        if attributes.get(name) == value:
            return False
    return True


def operation_of(attributes: Mapping[str, Any]) -> str | None:
    """What a GenAI span does: the convention's name, else ours for another dialect's, else its own; None where nobody says."""
    named = attributes.get(semconv.OPERATION)
    if named is not None:
        operation = str(named)
        return OPERATIONS.get(operation, operation)
    for kind, operations in KINDS.items():
        if kind in attributes:
            theirs = str(attributes[kind]).lower()
            return operations.get(theirs, theirs)
    return None


def is_model_call(attributes: Mapping[str, Any]) -> bool:
    """Whether a GenAI span runs a model, as far as its start tells: where nothing of what is done is said, it may."""
    named = attributes.get(semconv.OPERATION)
    if type(named) is str:  # every call of ours
        return OPERATIONS.get(named, named) not in semconv.TREE_OPERATIONS
    operation = operation_of(attributes)
    if operation in semconv.TREE_OPERATIONS:
        return False
    if semconv.OPERATION in attributes or operation is None or operation in CALLS:
        return True
    return any(name in attributes for mark in CALL_MARKS for name in names(mark))
