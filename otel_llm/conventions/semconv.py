"""Every attribute name that otel-llm writes, once, and the operations.

The GenAI names follow the OpenTelemetry semantic conventions for generative AI (`semantic-conventions-genai`,
status Development). The constants of `opentelemetry-semantic-conventions` are marked deprecated and lag behind, so the
project keeps its own. Names that only others write are in `dialects`.
"""

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"
"""The version of the conventions that our spans, metrics and events follow."""
SCOPE: Final = "otel_llm"
"""The instrumentation scope of our metrics and events."""
SPAN_SCOPES: Final = SCOPE + "."
"""What the scopes of our spans begin with: `otel_llm.instrumentation.openai`, say."""

# --- what is called --------------------------------------------------------------------------------------------------
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
REQUEST_ENCODING_FORMATS: Final = "gen_ai.request.encoding_formats"
REQUEST_REASONING_LEVEL: Final = "gen_ai.request.reasoning.level"
REQUEST_PREVIOUS_RESPONSE: Final = "gen_ai.request.previous_response.id"
EMBEDDINGS_DIMENSIONS: Final = "gen_ai.embeddings.dimension.count"
OUTPUT_TYPE: Final = "gen_ai.output.type"
OPENAI_API_TYPE: Final = "openai.api.type"
OPENAI_REQUEST_SERVICE_TIER: Final = "openai.request.service_tier"
OPENAI_RESPONSE_SERVICE_TIER: Final = "openai.response.service_tier"
OPENAI_SYSTEM_FINGERPRINT: Final = "openai.response.system_fingerprint"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
SERVICE_NAME: Final = "service.name"

# --- what came back --------------------------------------------------------------------------------------------------
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds, as the convention has it; the table's column is in milliseconds."""

INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
AUDIO_INPUT_TOKENS: Final = "gen_ai.usage.audio.input_tokens"
AUDIO_OUTPUT_TOKENS: Final = "gen_ai.usage.audio.output_tokens"
IMAGE_INPUT_TOKENS: Final = "gen_ai.usage.image.input_tokens"
IMAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.image.output_tokens"
CACHE_WRITE_1H_TOKENS: Final = "otel_llm.tokens.cache_write_1h.input_tokens"
"""Of what was written to the cache, what is kept for an hour."""
AUDIO_CACHE_READ_TOKENS: Final = "otel_llm.tokens.audio_cache_read.input_tokens"
IMAGE_CACHE_READ_TOKENS: Final = "otel_llm.tokens.image_cache_read.input_tokens"
"""Cached and audio, cached and image: part of both."""

# --- how long it is: fields of a journal record, which no span has ----------------------------------------------------
INPUT_CHARACTERS: Final = "ci"
OUTPUT_CHARACTERS: Final = "co"
REASONING_CHARACTERS: Final = "cr"
LENGTHS: Final = (INPUT_CHARACTERS, OUTPUT_CHARACTERS, REASONING_CHARACTERS)

# --- content, only with capture --------------------------------------------------------------------------------------
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
RETRIEVAL_QUERY: Final = "gen_ai.retrieval.query.text"
RETRIEVAL_DOCUMENTS: Final = "gen_ai.retrieval.documents"

EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"

EVENT_DETAILS: Final = "gen_ai.client.inference.operation.details"
EVENT_EXCEPTION: Final = "gen_ai.client.operation.exception"
EVENT_EVALUATION: Final = "gen_ai.evaluation.result"

EVALUATION_NAME: Final = "gen_ai.evaluation.name"
EVALUATION_VALUE: Final = "gen_ai.evaluation.score.value"
EVALUATION_LABEL: Final = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION: Final = "gen_ai.evaluation.explanation"

# --- the tree --------------------------------------------------------------------------------------------------------
AGENT_NAME: Final = "gen_ai.agent.name"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_DESCRIPTION: Final = "gen_ai.tool.description"

# --- context: who asked ----------------------------------------------------------------------------------------------
USER_ID: Final = "user.id"
SESSION_ID: Final = "session.id"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
MODULE: Final = "otel_llm.module"
REQUEST_ID: Final = "otel_llm.request.id"
TAG_PREFIX: Final = "otel_llm.tag."

# --- our own, where the conventions have no name ---------------------------------------------------------------------
STATUS: Final = "otel_llm.status"
"""One of `STATUSES`."""
USAGE_SOURCE: Final = "otel_llm.usage_source"
REPORTED_COST_USD: Final = "otel_llm.reported_cost_usd"
"""What the provider itself says that the call cost him who pays for it, where the answer carries it in USD."""
UNIT_PREFIX: Final = "otel_llm.usage."
"""Before the name of what is billed by other things than tokens: a number of it."""
AUDIO_SECONDS: Final = UNIT_PREFIX + "audio_seconds"
"""What is billed by the length of audio, in place of tokens."""
IMAGES: Final = UNIT_PREFIX + "images"
"""The images of an answer of the images API."""
IMAGE_CALLS: Final = UNIT_PREFIX + "image_generation_calls"
"""Images that a tool of the provider's made within a response, whose tokens are not in the usage of that."""
VIDEO_SECONDS: Final = UNIT_PREFIX + "video_seconds"
"""Of a video that is being made: the answer is a job, which is billed when it has gone well."""
CHARACTERS: Final = UNIT_PREFIX + "characters"
"""What is to be spoken."""
WEB_SEARCHES: Final = UNIT_PREFIX + "web_search_calls"
GROUNDING_QUERIES: Final = UNIT_PREFIX + "grounding_queries"
"""What Google looked up for an answer of Gemini's."""
WEB_SEARCH_PREVIEWS: Final = UNIT_PREFIX + "web_search_preview_calls"
FILE_SEARCHES: Final = UNIT_PREFIX + "file_search_calls"
CODE_SESSIONS: Final = UNIT_PREFIX + "code_interpreter_sessions"
IMAGE_SIZE: Final = "otel_llm.image.size"
IMAGE_QUALITY: Final = "otel_llm.image.quality"
"""What an image costs depends on, where it is not billed by tokens."""
LITELLM_COST_USD: Final = "otel_llm.litellm_cost_usd"
"""What LiteLLM computed that the call costs, by the prices that it knows or was given."""
ATTEMPTS: Final = "otel_llm.attempts"
PROFILE: Final = "otel_llm.profile"
DEPLOYMENT: Final = TAG_PREFIX + "deployment"
"""The deployment of the profile that was asked: `tags['deployment']`."""
CACHE_HIT: Final = "otel_llm.cache_hit"
"""True where a client-side cache answered and the provider was not asked: nothing was billed."""
NOT_SENT: Final = "otel_llm.not_sent"
"""True where the request never reached anybody: no connection was made."""
RECORDED_BY: Final = "otel_llm.recorded_by"
"""Scope of the instrumentor that finished the call, where it is not the span's own scope."""
REQUESTED_TOOL_IDS: Final = "otel_llm.response.tool_call_ids"
"""Ids of the tool calls that the answer asks the client to carry out; empty where a call has no id."""
REQUESTED_TOOL_NAMES: Final = "otel_llm.response.tool_call_names"
"""Their tools' names, in the same order."""
RUN_CONTINUES: Final = "otel_llm.run.continues"
"""Of a chain: the run that it continues, by the ids of its trace and its root, or of its root alone."""
RUN_WAITING: Final = "otel_llm.run.waiting"
"""True of a chain that has ended and waits for its client to go on."""
RETURNED_TOOL_IDS: Final = "otel_llm.request.tool_call_ids"
"""Ids of the tool calls whose results the request brings, since the model last spoke."""

# --- budgets ----------------------------------------------------------------------------------------------------------
EVENT_BUDGET_THRESHOLD: Final = "otel_llm.budget.threshold"
"""A threshold of a budget is crossed."""
BUDGET_PREFIX: Final = "otel_llm.budget."
"""Before the names of what that event says."""

# --- metrics ----------------------------------------------------------------------------------------------------------
METRIC_DURATION: Final = "gen_ai.client.inference.duration"
METRIC_TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.inference.time_to_first_chunk"
METRIC_TIME_PER_CHUNK: Final = "gen_ai.client.inference.time_per_output_chunk"
METRIC_INPUT_TOKENS: Final = "gen_ai.client.inference.usage.input_tokens"
METRIC_OUTPUT_TOKENS: Final = "gen_ai.client.inference.usage.output_tokens"
METRIC_CACHE_READ_TOKENS: Final = "gen_ai.client.inference.usage.cache_read.input_tokens"
METRIC_CACHE_WRITE_TOKENS: Final = "gen_ai.client.inference.usage.cache_write.input_tokens"
METRIC_REASONING_TOKENS: Final = "gen_ai.client.inference.usage.reasoning.output_tokens"
METRIC_OPERATION_INPUT_TOKENS: Final = "gen_ai.client.inference.operation.input_tokens"
METRIC_OPERATION_OUTPUT_TOKENS: Final = "gen_ai.client.inference.operation.output_tokens"
METRIC_EMBEDDINGS_DURATION: Final = "gen_ai.client.embeddings.duration"
METRIC_EMBEDDINGS_INPUT_TOKENS: Final = "gen_ai.client.embeddings.operation.input_tokens"
METRIC_AGENT_DURATION: Final = "gen_ai.invoke_agent.duration"
METRIC_WORKFLOW_DURATION: Final = "gen_ai.invoke_workflow.duration"
METRIC_TOOL_DURATION: Final = "gen_ai.execute_tool.duration"
METRIC_LEGACY_DURATION: Final = "gen_ai.client.operation.duration"
METRIC_LEGACY_TOKENS: Final = "gen_ai.client.token.usage"
METRIC_LEGACY_TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
METRIC_LEGACY_TIME_PER_CHUNK: Final = "gen_ai.client.operation.time_per_output_chunk"
TOKEN_MODALITY: Final = "gen_ai.token.modality"
TOKEN_TYPE: Final = "gen_ai.token.type"

# --- how something ended ---------------------------------------------------------------------------------------------
OK: Final = "ok"
ERROR: Final = "error"
CANCELLED: Final = "cancelled"
PARTIAL: Final = "partial"
INTERRUPTED: Final = "interrupted"
"""Its process died, and nobody knows."""
REFUSED: Final = "refused"
"""A budget is spent: nothing was sent."""
STATUSES: Final = (OK, ERROR, CANCELLED, PARTIAL, INTERRUPTED, REFUSED)
FAILED: Final = (ERROR, CANCELLED, REFUSED)

# --- operations ------------------------------------------------------------------------------------------------------
CHAT: Final = "chat"
TEXT_COMPLETION: Final = "text_completion"
EMBEDDINGS: Final = "embeddings"
GENERATE_CONTENT: Final = "generate_content"
EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"
CREATE_AGENT: Final = "create_agent"
INVOKE_WORKFLOW: Final = "invoke_workflow"
RETRIEVAL: Final = "retrieval"
STEP: Final = "step"
RERANKER: Final = "reranker"
GUARDRAIL: Final = "guardrail"
EVALUATOR: Final = "evaluator"
IMAGE_GENERATION: Final = "image_generation"
TRANSCRIPTION: Final = "transcription"
TRANSLATION: Final = "translation"
SPEECH: Final = "speech"
VIDEO_GENERATION: Final = "video_generation"
COMPACT: Final = "compact"
DECISION: Final = "decision"
BATCH: Final = "batch"
LIVE_SESSION: Final = "live_session"
RETRIEVE: Final = "retrieve"
"""The result of a background response, asked for by another process than the one that created it."""

CONTENT: Final = frozenset(
    {
        SYSTEM_INSTRUCTIONS,
        INPUT_MESSAGES,
        OUTPUT_MESSAGES,
        TOOL_DEFINITIONS,
        TOOL_CALL_ARGUMENTS,
        TOOL_CALL_RESULT,
        RETRIEVAL_QUERY,
        RETRIEVAL_DOCUMENTS,
    }
)
"""The attributes of ours that hold content."""

CHAIN_OPERATIONS: Final = frozenset({INVOKE_WORKFLOW, INVOKE_AGENT, CREATE_AGENT})
"""Operations that are a run of several others."""

STEP_OPERATIONS: Final = frozenset({STEP, RETRIEVAL, GUARDRAIL, EVALUATOR})
"""Operations that are a step of a run: neither a run, nor a tool, nor a model call as such."""

TREE_OPERATIONS: Final = frozenset({EXECUTE_TOOL, INVOKE_AGENT, CREATE_AGENT, INVOKE_WORKFLOW, RETRIEVAL, STEP})
"""Operations that run no model themselves: they are in `spans`, never in `llm_usage`. Any other operation is a model call."""

PERHAPS_CALLS: Final = frozenset({RERANKER, GUARDRAIL, EVALUATOR})
"""Operations that are model calls only where they name a model or count tokens."""
