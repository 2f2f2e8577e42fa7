"""How long LangChain's agents, workflows and tools take, as metrics: once for each, failed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_llm.conventions import semconv as s
from otel_llm.signals import metrics
from tests.instrumentation.langchain.conftest import Traced, create_agent, needs_agents


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    metrics.use(provider)
    yield reader
    metrics.use(None)
    provider.shutdown()


def points(reader: InMemoryMetricReader) -> dict[str, list[tuple[int, float, dict[str, Any]]]]:
    """Count, sum and attributes of every point of the durations of parts, by the name of the metric."""
    data = reader.get_metrics_data()
    return {
        metric.name: [(point.count, point.sum, dict(point.attributes)) for point in metric.data.data_points]
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if not metric.name.startswith("gen_ai.client.")
    }


@tool
def weather(city: str) -> str:
    """Tells the weather."""
    return f"sunny in {city}"


@needs_agents
def test_an_agent(traced: Traced, reader: InMemoryMetricReader, chat_model: Callable[..., ChatOpenAI]) -> None:
    agent = create_agent(chat_model(), [weather], name="helper")
    (RunnableLambda(lambda given: given) | agent).with_config(run_name="ask").invoke(
        {"messages": [HumanMessage("Weather in Rome?")]}
    )
    told = points(reader)
    spans = {str(span.attributes[s.OPERATION]): span for span in traced.all() if span.attributes}
    for name, operation, expected in (
        (s.METRIC_AGENT_DURATION, s.INVOKE_AGENT, {s.AGENT_NAME: "helper"}),
        (s.METRIC_WORKFLOW_DURATION, s.INVOKE_WORKFLOW, {s.WORKFLOW_NAME: "ask"}),
        (
            s.METRIC_TOOL_DURATION,
            s.EXECUTE_TOOL,
            {s.TOOL_NAME: "weather", s.TOOL_TYPE: "function", s.AGENT_NAME: "helper"},
        ),
    ):
        ((count, seconds, attributes),) = told.pop(name)
        assert (count, attributes) == (1, expected)
        span = spans[operation]
        assert seconds == pytest.approx((span.end_time - span.start_time) / 1e9, abs=0.05)
    assert told == {}


def test_what_fails(traced: Traced, reader: InMemoryMetricReader) -> None:
    def fail(_: Any) -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            RunnableLambda(fail).with_config(run_name="ask").invoke("x")
    ((count, _, attributes),) = points(reader)[s.METRIC_WORKFLOW_DURATION]
    assert (count, attributes) == (2, {s.WORKFLOW_NAME: "ask", s.ERROR_TYPE: "ValueError"})
