"""GenAI client metrics: every call once, what the provider reported, and attributes that have few values."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_llm import llm_context, tool
from otel_llm.conventions import semconv as s
from otel_llm.conventions.token_usage import Usage
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from otel_llm.settings import reload
from otel_llm.signals import metrics
from tests.conftest import LocalOpenAI

MODEL = "gpt-4o-mini"
HELLO: Any = [{"role": "user", "content": "Say hello."}]


class Read:
    """The metrics so far: name -> [(value or sum, count, attributes)]."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def all(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        found = [] if data is None else [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
        return {metric.name: metric for metric in found}

    def points(self, name: str) -> list[tuple[float, int, dict[str, Any]]]:
        metric = self.all().get(name)
        return [
            (getattr(p, "value", getattr(p, "sum", 0)), getattr(p, "count", 1), dict(p.attributes))
            for p in (metric.data.data_points if metric else ())
        ]

    def one(self, name: str) -> tuple[float, int, dict[str, Any]]:
        (point,) = self.points(name)
        return point


@pytest.fixture
def read() -> Iterator[Read]:
    read = Read()
    yield read
    read.provider.shutdown()


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    reload()


@pytest.fixture
def measured(read: Read) -> Iterator[Read]:
    """The client with metrics, its spans all dropped by a sampler."""
    instrumentor = OpenAIInstrumentor()
    tracer_provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    instrumentor.instrument(tracer_provider=tracer_provider, meter_provider=read.provider)
    yield read
    instrumentor.uninstrument()


def test_a_chat(measured: Read, client: openai.OpenAI, openai_server: LocalOpenAI) -> None:
    begun = time.perf_counter()
    with llm_context("shop", user_id="ann", conversation_id="c-1"):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    took = time.perf_counter() - begun
    (billed,) = openai_server.ledger
    expected = {
        s.OPERATION: "chat",
        s.PROVIDER: "openai",
        s.REQUEST_MODEL: MODEL,
        s.RESPONSE_MODEL: billed.response_model,
        s.SERVER_ADDRESS: "127.0.0.1",
        s.SERVER_PORT: client.base_url.port,
    }
    seconds, count, attributes = measured.one(s.METRIC_DURATION)
    assert 0 < seconds <= took
    assert (count, attributes) == (1, expected)
    assert measured.one(s.METRIC_INPUT_TOKENS) == (billed.input_tokens, 1, {**expected, s.TOKEN_MODALITY: "unknown"})
    assert measured.one(s.METRIC_OUTPUT_TOKENS) == (billed.output_tokens, 1, {**expected, s.TOKEN_MODALITY: "text"})
    assert measured.one(s.METRIC_OPERATION_INPUT_TOKENS) == (billed.input_tokens, 1, expected)
    assert measured.one(s.METRIC_OPERATION_OUTPUT_TOKENS) == (billed.output_tokens, 1, expected)
    assert measured.points(s.METRIC_TIME_TO_FIRST_CHUNK) == []
    assert not {s.METRIC_LEGACY_DURATION, s.METRIC_LEGACY_TOKENS} & set(measured.all())


def test_units_and_buckets(measured: Read, client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=HELLO)
    told = measured.all()
    assert (told[s.METRIC_DURATION].unit, told[s.METRIC_INPUT_TOKENS].unit) == ("s", "{token}")
    assert told[s.METRIC_INPUT_TOKENS].data.is_monotonic
    (timed,) = told[s.METRIC_DURATION].data.data_points
    assert timed.explicit_bounds == (
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    )  # fmt: skip
    (tokens,) = told[s.METRIC_OPERATION_INPUT_TOKENS].data.data_points
    assert tokens.explicit_bounds == (
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    )  # fmt: skip


def test_a_stream(measured: Read, client: openai.OpenAI, openai_server: LocalOpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    for _ in stream:
        pass
    first, count, _ = measured.one(s.METRIC_TIME_TO_FIRST_CHUNK)
    seconds, _, _ = measured.one(s.METRIC_DURATION)
    assert count == 1
    assert 0 < first <= seconds
    assert measured.one(s.METRIC_INPUT_TOKENS)[0] == openai_server.ledger[0].input_tokens


@pytest.mark.parametrize("raw", [False, True])
def test_the_time_between_chunks(raw: bool, measured: Read, client: openai.OpenAI, openai_server: LocalOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    if raw:
        stream: Any = client.chat.completions.with_raw_response.create(**asked).parse()
    else:
        stream = client.chat.completions.create(**asked)
    chunks = sum(1 for _ in stream)
    between, count, attributes = measured.one(s.METRIC_TIME_PER_CHUNK)
    seconds, _, of_the_call = measured.one(s.METRIC_DURATION)
    first, _, _ = measured.one(s.METRIC_TIME_TO_FIRST_CHUNK)
    if not raw:  # whose body comes in pieces that are no chunks
        assert count == chunks - 1
    assert first + between == pytest.approx(seconds)
    assert attributes == of_the_call


def test_a_call_that_is_no_stream_has_no_chunks(measured: Read, client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=HELLO)
    assert measured.points(s.METRIC_TIME_PER_CHUNK) == []


def test_a_failed_call(measured: Read, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="error-400", messages=HELLO)
    assert measured.one(s.METRIC_DURATION)[2][s.ERROR_TYPE] == "400"
    # The convention counts 0 tokens of a call that reported none, and leaves it out of the distributions.
    assert measured.one(s.METRIC_INPUT_TOKENS)[0] == 0
    assert measured.points(s.METRIC_OPERATION_INPUT_TOKENS) == []


def test_embeddings_have_metrics_of_their_own(
    measured: Read, client: openai.OpenAI, openai_server: LocalOpenAI
) -> None:
    client.embeddings.create(model="text-embedding-3-small", input="one two three")
    assert set(measured.all()) == {s.METRIC_EMBEDDINGS_DURATION, s.METRIC_EMBEDDINGS_INPUT_TOKENS}
    assert measured.one(s.METRIC_EMBEDDINGS_INPUT_TOKENS)[0] == openai_server.ledger[0].input_tokens


@pytest.mark.parametrize(
    ("names", "current", "legacy"),
    [("current", True, False), ("legacy", False, True), ("both", True, True), ("none", False, False)],
)
def test_which_names(
    names: str, current: bool, legacy: bool, measured: Read, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LLM_METRICS", names)
    reload()
    for _ in client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ):
        pass
    with tool("look"):
        pass
    told = measured.all()
    of_today = {s.METRIC_DURATION, s.METRIC_INPUT_TOKENS, s.METRIC_TIME_PER_CHUNK, s.METRIC_TOOL_DURATION}
    assert (of_today <= set(told)) is current
    assert ({s.METRIC_LEGACY_DURATION, s.METRIC_LEGACY_TOKENS, s.METRIC_LEGACY_TIME_PER_CHUNK} <= set(told)) is legacy
    assert current or legacy or not told
    if legacy:
        kinds = {attributes[s.TOKEN_TYPE] for _, _, attributes in measured.points(s.METRIC_LEGACY_TOKENS)}
        assert kinds == {"input", "output"}


def test_models_and_errors_without_number(measured: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway passes on what its users ask for, and the SDK keeps a series for each value it has ever seen."""
    monkeypatch.setattr(metrics, "MOST_NAMES", 3)
    monkeypatch.setattr(metrics, "_names", defaultdict(set))
    for number in range(5):
        named = dict.fromkeys((s.REQUEST_MODEL, s.RESPONSE_MODEL, s.SERVER_ADDRESS), f"{number}")
        metrics.record({s.OPERATION: "chat", **named}, None, f"code-{number}", 1.0, None, Context())
    told = [attributes for _, _, attributes in measured.points(s.METRIC_DURATION)]
    assert [attributes[s.REQUEST_MODEL] for attributes in told] == ["0", "1", "2", "_OTHER"]
    assert {tuple(attributes.values())[1:] for attributes in told if attributes[s.REQUEST_MODEL] == "_OTHER"} == {
        ("_OTHER",) * 4
    }


def test_modalities(measured: Read) -> None:
    usage = Usage(input=100, output=50, audio_input=30, image_input=20, audio_output=10, reasoning=5, cache_read=7)
    metrics.record({s.OPERATION: "chat"}, usage, None, 1.0, None, Context())
    told = {
        (name, attributes[s.TOKEN_MODALITY]): value
        for name in (
            s.METRIC_INPUT_TOKENS,
            s.METRIC_OUTPUT_TOKENS,
            s.METRIC_REASONING_TOKENS,
            s.METRIC_CACHE_READ_TOKENS,
        )
        for value, _, attributes in measured.points(name)
    }
    assert told == {
        (s.METRIC_INPUT_TOKENS, "audio"): 30,
        (s.METRIC_INPUT_TOKENS, "image"): 20,
        (s.METRIC_INPUT_TOKENS, "text"): 50,
        (s.METRIC_OUTPUT_TOKENS, "audio"): 10,
        (s.METRIC_OUTPUT_TOKENS, "text"): 40,
        (s.METRIC_REASONING_TOKENS, "unknown"): 5,
        (s.METRIC_CACHE_READ_TOKENS, "unknown"): 7,
    }


def test_nobody_reads(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reader nothing is made or recorded; a provider that gets its reader later is noticed."""
    monkeypatch.setattr(metrics, "_made", None)
    assert not metrics.wanted()  # the API's own provider
    provider = MeterProvider(shutdown_on_exit=False)
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False), meter_provider=provider)
    try:
        client.chat.completions.create(model=MODEL, messages=HELLO)
        assert metrics._made is None
        reader = InMemoryMetricReader()
        provider.add_metric_reader(reader)
        client.chat.completions.create(model=MODEL, messages=HELLO)
        assert reader.get_metrics_data() is not None
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    assert not metrics.wanted()
