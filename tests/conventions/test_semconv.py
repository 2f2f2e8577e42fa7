"""Our spans against the OpenTelemetry GenAI conventions, attribute by attribute: name, type, requirement level.

The tables are those of https://github.com/open-telemetry/semantic-conventions-genai (status Development, no releases), as of
October 2026: docs/gen-ai/client-inference.md at ac48b1f9, docs/gen-ai/client-embeddings.md at 88eccb15, model/gen-ai/spans.yaml at
002c8a6e for tools, agents, workflows and retrieval, its `openai.inference.client` for what is OpenAI's own; and what was merged
since: no provider, id or version on the spans of agents that run in the process (289), `gen_ai.retrieval.top_k` (217), documents
without an id or a score (395). The metrics are those of the first two documents, and of model/gen-ai/metrics.yaml at 004902b8 for
agents, workflows and tools, `gen_ai.invoke_workflow.duration` by its name of today (341).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from otel_llm import llm_context
from otel_llm.conventions.token_usage import Usage
from otel_llm.signals import metrics
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Capture, Spans, capture, spans, traced  # noqa: F401
from tests.instrumentation.langchain.conftest import create_agent, needs_agents

STRING, INT, DOUBLE, BOOLEAN, STRINGS, ANY = "string", "int", "double", "boolean", "string[]", "any"
REQUIRED, CONDITIONAL, RECOMMENDED, OPT_IN = "required", "conditionally required", "recommended", "opt-in"
Table = dict[str, tuple[str, str]]

CALL: Table = {
    "gen_ai.operation.name": (STRING, REQUIRED),
    "gen_ai.provider.name": (STRING, REQUIRED),
    "gen_ai.request.model": (STRING, CONDITIONAL),
    "error.type": (STRING, CONDITIONAL),
    "server.address": (STRING, RECOMMENDED),
    "server.port": (INT, CONDITIONAL),
    "gen_ai.response.model": (STRING, RECOMMENDED),
    "gen_ai.usage.input_tokens": (INT, RECOMMENDED),
}
INFERENCE: Table = CALL | {
    "gen_ai.conversation.id": (STRING, CONDITIONAL),
    "gen_ai.output.type": (STRING, CONDITIONAL),
    "gen_ai.prompt.name": (STRING, CONDITIONAL),
    "gen_ai.prompt.version": (STRING, CONDITIONAL),
    "gen_ai.request.choice.count": (INT, CONDITIONAL),
    "gen_ai.request.seed": (INT, CONDITIONAL),
    "gen_ai.request.stream": (BOOLEAN, CONDITIONAL),
    "gen_ai.request.top_k": (INT, CONDITIONAL),
    "gen_ai.conversation.compacted": (BOOLEAN, RECOMMENDED),
    "gen_ai.request.frequency_penalty": (DOUBLE, RECOMMENDED),
    "gen_ai.request.max_tokens": (INT, RECOMMENDED),
    "gen_ai.request.presence_penalty": (DOUBLE, RECOMMENDED),
    "gen_ai.request.previous_response.id": (STRING, RECOMMENDED),
    "gen_ai.request.reasoning.level": (STRING, RECOMMENDED),
    "gen_ai.request.stop_sequences": (STRINGS, RECOMMENDED),
    "gen_ai.request.temperature": (DOUBLE, RECOMMENDED),
    "gen_ai.request.top_p": (DOUBLE, RECOMMENDED),
    "gen_ai.response.finish_reasons": (STRINGS, RECOMMENDED),
    "gen_ai.response.id": (STRING, RECOMMENDED),
    "gen_ai.response.time_to_first_chunk": (DOUBLE, RECOMMENDED),
    "gen_ai.usage.audio.input_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.audio.output_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.cache_read.input_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.cache_write.input_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.image.input_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.image.output_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.output_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.reasoning.output_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.text.input_tokens": (INT, RECOMMENDED),
    "gen_ai.usage.text.output_tokens": (INT, RECOMMENDED),
    "gen_ai.input.messages": (ANY, OPT_IN),
    "gen_ai.output.messages": (ANY, OPT_IN),
    "gen_ai.system_instructions": (ANY, OPT_IN),
    "gen_ai.tool.definitions": (ANY, OPT_IN),
    "openai.request.service_tier": (STRING, CONDITIONAL),
    "openai.response.service_tier": (STRING, CONDITIONAL),
    "openai.response.system_fingerprint": (STRING, RECOMMENDED),
    "openai.api.type": (STRING, RECOMMENDED),
}
EMBEDDINGS: Table = CALL | {
    "gen_ai.embeddings.dimension.count": (INT, RECOMMENDED),
    "gen_ai.request.encoding_formats": (STRINGS, RECOMMENDED),
}
TOOL: Table = {
    "gen_ai.operation.name": (STRING, REQUIRED),
    "gen_ai.tool.name": (STRING, REQUIRED),
    "error.type": (STRING, CONDITIONAL),
    "gen_ai.agent.name": (STRING, CONDITIONAL),
    "gen_ai.conversation.id": (STRING, CONDITIONAL),
    "gen_ai.tool.call.id": (STRING, RECOMMENDED),
    "gen_ai.tool.description": (STRING, RECOMMENDED),
    "gen_ai.tool.type": (STRING, RECOMMENDED),
    "gen_ai.tool.call.arguments": (ANY, OPT_IN),
    "gen_ai.tool.call.result": (ANY, OPT_IN),
}
AGENT: Table = {
    "gen_ai.operation.name": (STRING, REQUIRED),
    "error.type": (STRING, CONDITIONAL),
    "gen_ai.agent.name": (STRING, CONDITIONAL),
    "gen_ai.conversation.id": (STRING, CONDITIONAL),
    "gen_ai.input.messages": (ANY, OPT_IN),
    "gen_ai.output.messages": (ANY, OPT_IN),
}
WORKFLOW: Table = {
    "gen_ai.operation.name": (STRING, REQUIRED),
    "error.type": (STRING, CONDITIONAL),
    "gen_ai.workflow.name": (STRING, CONDITIONAL),
    "gen_ai.conversation.id": (STRING, CONDITIONAL),
    "gen_ai.input.messages": (ANY, OPT_IN),
    "gen_ai.output.messages": (ANY, OPT_IN),
}
RETRIEVAL: Table = {
    "gen_ai.operation.name": (STRING, REQUIRED),
    "error.type": (STRING, CONDITIONAL),
    "gen_ai.data_source.id": (STRING, CONDITIONAL),
    "gen_ai.provider.name": (STRING, CONDITIONAL),
    "gen_ai.retrieval.top_k": (INT, RECOMMENDED),
    "gen_ai.retrieval.query.text": (STRING, OPT_IN),
    "gen_ai.retrieval.documents": (ANY, OPT_IN),
}

OF_CALLS = frozenset(
    {
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "server.address",
        "server.port",
    }
)
BY_MODALITY = OF_CALLS | {"gen_ai.token.modality"}
TIMED = OF_CALLS | {"error.type"}
METRICS: dict[str, tuple[str, str, frozenset[str]]] = {
    # name -> kind, unit, the attributes that it may have
    "gen_ai.client.inference.duration": ("Histogram", "s", TIMED),
    "gen_ai.client.inference.time_to_first_chunk": ("Histogram", "s", OF_CALLS),
    "gen_ai.client.inference.time_per_output_chunk": ("Histogram", "s", OF_CALLS),
    "gen_ai.client.inference.usage.input_tokens": ("Sum", "{token}", BY_MODALITY),
    "gen_ai.client.inference.usage.output_tokens": ("Sum", "{token}", BY_MODALITY),
    "gen_ai.client.inference.usage.cache_read.input_tokens": ("Sum", "{token}", BY_MODALITY),
    "gen_ai.client.inference.usage.cache_write.input_tokens": ("Sum", "{token}", BY_MODALITY),
    "gen_ai.client.inference.usage.reasoning.output_tokens": ("Sum", "{token}", BY_MODALITY),
    "gen_ai.client.inference.operation.input_tokens": ("Histogram", "{token}", OF_CALLS),
    "gen_ai.client.inference.operation.output_tokens": ("Histogram", "{token}", OF_CALLS),
    "gen_ai.client.embeddings.duration": ("Histogram", "s", TIMED),
    "gen_ai.client.embeddings.operation.input_tokens": ("Histogram", "{token}", OF_CALLS),
    "gen_ai.invoke_agent.duration": ("Histogram", "s", frozenset({"gen_ai.agent.name", "error.type"})),
    "gen_ai.invoke_workflow.duration": ("Histogram", "s", frozenset({"gen_ai.workflow.name", "error.type"})),
    "gen_ai.execute_tool.duration": (
        "Histogram",
        "s",
        frozenset({"gen_ai.tool.name", "gen_ai.tool.type", "gen_ai.agent.name", "error.type"}),
    ),
}

ATTRIBUTION = {"gen_ai.agent.name", "gen_ai.workflow.name", "gen_ai.conversation.id"}
"""What we put on every span, beyond its table: whom it runs for. `llm_usage` has columns for it."""


def check(span: ReadableSpan, table: Table, kind: SpanKind) -> None:
    attributes = dict(span.attributes or {})
    wrong = []
    for name, (_, level) in table.items():
        if level == REQUIRED and name not in attributes:
            wrong.append(f"{name} is required")
    for name, value in attributes.items():
        if not name.startswith(("gen_ai.", "openai.", "server.", "error.")) or name in ATTRIBUTION - set(table):
            continue
        if name not in table:
            wrong.append(f"{name} is not in the table")
        elif not _has_type(name, value, table[name][0]):
            wrong.append(f"{name}={value!r} is no {table[name][0]}")
    assert not wrong, (span.name, wrong)
    assert span.kind is kind


def _has_type(name: str, value: Any, kind: str) -> bool:
    match kind:
        case "string[]":
            return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        case "any":  # structure as JSON, where the SDK has no structured attributes on spans; a tool's text is the text
            is_text = name == "gen_ai.tool.call.result" and not str(value).startswith(("{", "[", '"'))
            return isinstance(value, str) and (is_text or json.loads(value) is not None)
    return type(value) is {"string": str, "int": int, "double": float, "boolean": bool}[kind]


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def meter_provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


@pytest.fixture
def told(capture: Capture, traced: Spans, meter_provider: MeterProvider) -> Iterator[Spans]:  # noqa: F811
    capture()
    metrics.use(meter_provider)
    yield traced
    metrics.use(None)


@pytest.fixture
def client(openai_server: LocalOpenAI) -> openai.OpenAI:
    return openai.OpenAI(base_url=openai_server.base_url, api_key="x", max_retries=0)


@pytest.fixture
def model(openai_server: LocalOpenAI) -> ChatOpenAI:
    return ChatOpenAI(base_url=openai_server.base_url, api_key="x", model="gpt-4o-mini", temperature=0)


HELLO: Any = [{"role": "user", "content": "Say hello."}]
FUNCTION: Any = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
EVERYTHING: Any = {
    "model": "gpt-4o-mini",
    "messages": HELLO,
    "temperature": 0,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 1,
    "max_tokens": 100,
    "seed": 7,
    "n": 2,
    "stop": "never",
    "service_tier": "default",
    "tools": [{"type": "function", "function": FUNCTION}],
    "response_format": {"type": "text"},
}


def test_chat(told: Spans, client: openai.OpenAI) -> None:
    with llm_context("shop", user_id="ann", conversation_id="c-1"):
        client.chat.completions.create(**EVERYTHING)
    span = told.one()
    check(span, INFERENCE, SpanKind.CLIENT)
    assert span.name == "chat gpt-4o-mini"
    attributes = dict(span.attributes or {})
    here = {
        *(name for name, (_, level) in INFERENCE.items() if level == REQUIRED),
        "gen_ai.request.model", "server.address", "server.port", "gen_ai.conversation.id", "gen_ai.output.type",
        "gen_ai.request.choice.count", "gen_ai.request.seed", "gen_ai.request.temperature", "gen_ai.request.top_p",
        "gen_ai.request.frequency_penalty", "gen_ai.request.presence_penalty", "gen_ai.request.max_tokens",
        "gen_ai.request.stop_sequences", "gen_ai.response.id", "gen_ai.response.model", "gen_ai.response.finish_reasons",
        "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.reasoning.output_tokens", "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions",
        "openai.api.type", "openai.request.service_tier", "openai.response.service_tier",
        "openai.response.system_fingerprint",
    }  # fmt: skip
    assert here - set(attributes) == set()
    assert "gen_ai.request.stream" not in attributes


def test_a_stream(told: Spans, client: openai.OpenAI) -> None:
    for _ in client.chat.completions.create(**EVERYTHING, stream=True, stream_options={"include_usage": True}):
        pass
    span = told.one()
    check(span, INFERENCE, SpanKind.CLIENT)
    assert {"gen_ai.request.stream", "gen_ai.response.time_to_first_chunk"} <= set(span.attributes or {})


def test_responses(told: Spans, client: openai.OpenAI) -> None:
    client.responses.create(
        model="gpt-4o-mini", input="hello", instructions="Be brief.", temperature=1, reasoning={"effort": "low"},
        previous_response_id="resp_1", max_output_tokens=50, tools=[{"type": "function", "strict": None, **FUNCTION}],
    )  # fmt: skip
    span = told.one()
    check(span, INFERENCE, SpanKind.CLIENT)
    assert {
        "gen_ai.system_instructions",
        "gen_ai.request.reasoning.level",
        "gen_ai.request.previous_response.id",
    } <= set(span.attributes or {})


def test_a_failed_chat(told: Spans, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model="error-429", messages=HELLO)
    span = told.one()
    check(span, INFERENCE, SpanKind.CLIENT)
    assert (span.attributes or {})["error.type"] == "429"
    assert span.status.status_code.name == "ERROR"


def test_text_completion(told: Spans, client: openai.OpenAI) -> None:
    client.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello", temperature=0)
    check(told.one(), INFERENCE, SpanKind.CLIENT)


def test_embeddings(told: Spans, client: openai.OpenAI) -> None:
    client.embeddings.create(model="text-embedding-3-small", input="hello", dimensions=8, encoding_format="float")
    span = told.one()
    check(span, EMBEDDINGS, SpanKind.CLIENT)
    assert {*EMBEDDINGS} - {"error.type"} <= set(span.attributes or {})


@tool
def look(at: str) -> str:
    """Looks."""
    return "seen"


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [Document("a page")]


@needs_agents
def test_agent_and_tool(told: Spans, model: ChatOpenAI) -> None:
    agent = create_agent(model, [look], name="helper")
    with llm_context("shop", conversation_id="c-1"):
        agent.invoke({"messages": [HumanMessage("hello")]})
    by_operation = {str((span.attributes or {})["gen_ai.operation.name"]): span for span in told.all()}
    check(by_operation["chat"], INFERENCE, SpanKind.CLIENT)
    check(by_operation["execute_tool"], TOOL, SpanKind.INTERNAL)
    check(by_operation["invoke_agent"], AGENT, SpanKind.INTERNAL)
    assert by_operation["invoke_agent"].name == "invoke_agent helper"
    assert by_operation["execute_tool"].name == "execute_tool look"
    assert set(AGENT) - {"error.type"} <= set(by_operation["invoke_agent"].attributes or {})
    assert set(TOOL) - {"error.type"} <= set(by_operation["execute_tool"].attributes or {})


def test_workflow_and_retrieval(told: Spans, model: ChatOpenAI) -> None:
    chain = Shelf() | RunnableLambda(lambda found: found[0].page_content) | model
    chain.with_config(run_name="ask").invoke("hello")
    by_operation = {str((span.attributes or {})["gen_ai.operation.name"]): span for span in told.all()}
    check(by_operation["invoke_workflow"], WORKFLOW, SpanKind.INTERNAL)
    check(by_operation["retrieval"], RETRIEVAL, SpanKind.INTERNAL)
    check(by_operation["chat"], INFERENCE, SpanKind.CLIENT)
    assert by_operation["invoke_workflow"].name == "invoke_workflow ask"
    assert set(WORKFLOW) - {"error.type", "gen_ai.conversation.id"} <= set(
        by_operation["invoke_workflow"].attributes or {}
    )
    assert {"gen_ai.retrieval.query.text", "gen_ai.retrieval.documents"} <= set(
        by_operation["retrieval"].attributes or {}
    )


@needs_agents
def test_metrics(told: Spans, reader: InMemoryMetricReader, client: openai.OpenAI, model: ChatOpenAI) -> None:
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model="error-429", messages=HELLO)
    for _ in client.chat.completions.create(**EVERYTHING, stream=True, stream_options={"include_usage": True}):
        pass
    client.embeddings.create(model="text-embedding-3-small", input="hello")
    with llm_context("shop", user_id="ann", conversation_id="c-1"):
        agent = create_agent(model, [look], name="helper")
        (RunnableLambda(lambda given: given) | agent).invoke({"messages": [HumanMessage("hello")]})
    usage = Usage(input=9, output=3, cache_write=5, reasoning=2)
    metrics.record({"gen_ai.operation.name": "chat"}, usage, None, 1.0, None, Context())
    data = reader.get_metrics_data()
    assert data is not None
    found = {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert set(found) == set(METRICS)
    for name, (kind, unit, may_have) in METRICS.items():
        metric = found[name]
        assert (type(metric.data).__name__, metric.unit) == (kind, unit), name
        assert {key for point in metric.data.data_points for key in point.attributes or {}} <= may_have, name
