"""How long agents, workflows and tools take, whatever a sampler makes of their spans; nothing where nobody reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_llm import chain, step, tool
from otel_llm.calls import abandoned
from otel_llm.conventions import semconv
from otel_llm.lifecycle.scopes import tracer
from otel_llm.signals import metrics

DURATIONS = {semconv.METRIC_AGENT_DURATION, semconv.METRIC_WORKFLOW_DURATION, semconv.METRIC_TOOL_DURATION}


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    metrics.use(provider)
    tracer.use(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    yield reader
    tracer.use(None)
    metrics.use(None)
    provider.shutdown()


def points(reader: InMemoryMetricReader) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Count and attributes of every point, by the name of its metric."""
    data = reader.get_metrics_data()
    return {
        metric.name: [(point.count, dict(point.attributes)) for point in metric.data.data_points]
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_each_part_once(reader: InMemoryMetricReader) -> None:
    @chain("weather-agent", agent=True)
    def agent() -> None:
        with step("search"), tool("look", call_id="call_1"):
            pass
        with pytest.raises(ValueError, match="no"), tool("look"):
            raise ValueError("no")

    with chain("ask"):
        agent()
        agent()
    look = {semconv.TOOL_NAME: "look", semconv.TOOL_TYPE: "function"}
    assert points(reader) == {
        semconv.METRIC_AGENT_DURATION: [(2, {semconv.AGENT_NAME: "weather-agent"})],
        semconv.METRIC_WORKFLOW_DURATION: [(1, {semconv.WORKFLOW_NAME: "ask"})],
        semconv.METRIC_TOOL_DURATION: [(2, look), (2, {**look, semconv.ERROR_TYPE: "ValueError"})],
    }


def test_units_and_buckets(reader: InMemoryMetricReader) -> None:
    with chain("ask"), chain("agent", agent=True), tool("look"):
        pass
    data = reader.get_metrics_data()
    assert data is not None
    bounds: dict[str, tuple[float, ...]] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        assert metric.unit == "s"
        bounds[metric.name] = metric.data.data_points[0].explicit_bounds  # type: ignore[union-attr]
    assert bounds[semconv.METRIC_AGENT_DURATION] == pytest.approx(
        (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)
    )
    assert bounds[semconv.METRIC_WORKFLOW_DURATION] == (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
    assert bounds[semconv.METRIC_TOOL_DURATION][-1] == 81.92


def test_a_generator_that_is_left_is_as_long_as_it_ran(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its span is ended later, on another stack; nobody waited for that."""
    now = 0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter_ns=lambda: now))

    @chain("count")
    def count() -> Iterator[int]:
        yield 1
        yield 2

    numbers = count()
    next(numbers)
    now = 5 * 10**9
    numbers.close()
    now = 1_000 * 10**9
    abandoned.finish_abandoned()
    data = reader.get_metrics_data()
    assert data is not None
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert point.sum == 5  # type: ignore[union-attr]


def test_names_that_an_app_makes_up_are_bounded(reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_NAMES", 3)
    monkeypatch.setattr(metrics, "_names", defaultdict(set))
    for number in range(5):
        with chain(f"job-{number}"):
            pass
    names = {
        attributes[semconv.WORKFLOW_NAME]: count
        for count, attributes in points(reader)[semconv.METRIC_WORKFLOW_DURATION]
    }
    assert names == {"job-0": 1, "job-1": 1, "job-2": 1, "_OTHER": 2}


def test_nothing_is_made_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_made", None)
    with chain("ask"), tool("look"):
        pass
    assert metrics._made is None
