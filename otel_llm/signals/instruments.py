"""The instruments of the GenAI conventions, today's and the former ones, and what each records of a model call."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from opentelemetry import context as otel
from opentelemetry.metrics import Counter, Histogram, Meter

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import Usage

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_AGENT_SECONDS: Final = tuple(0.1 * 2**power for power in range(13))
_WORKFLOW_SECONDS: Final = (1, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200)
TOKENS: Final = tuple(4**power for power in range(14))

_UNTIMED: Final = frozenset({semconv.BATCH, semconv.LIVE_SESSION})
"""Operations whose length says nothing of how fast a model is."""


class CallFacts(NamedTuple):
    """A model call that has ended, as every set of instruments records it."""

    attributes: dict[str, Any]
    timed: dict[str, Any]
    """The attributes of its duration: those, and how it failed."""
    seconds: float | None
    """None for what is not timed."""
    first_chunk: float | None
    usage: Usage
    failed: bool
    at: otel.Context

    @classmethod
    def of(
        cls,
        attributes: dict[str, Any],
        seconds: float,
        first_chunk: float | None,
        usage: Usage,
        error_type: str | None,
        at: otel.Context,
    ) -> CallFacts:
        """From what is known at the end of a call; see `otel_llm.signals.metrics.record`."""
        failed = error_type is not None
        timed = {**attributes, semconv.ERROR_TYPE: error_type} if failed else attributes
        is_timed = attributes[semconv.OPERATION] not in _UNTIMED
        return cls(attributes, timed, seconds if is_timed else None, first_chunk, usage, failed, at)


class Current:
    """The instruments of today's conventions."""

    def __init__(self, meter: Meter) -> None:
        self._duration = _seconds(meter, semconv.METRIC_DURATION, "GenAI client inference operation duration.")
        self._embeddings = _seconds(
            meter, semconv.METRIC_EMBEDDINGS_DURATION, "GenAI client embeddings operation duration."
        )
        self._first_chunk = _seconds(
            meter,
            semconv.METRIC_TIME_TO_FIRST_CHUNK,
            "Time to receive the first chunk of a stream, from when the client issues the request.",
        )
        self.chunk = _chunks(meter, semconv.METRIC_TIME_PER_CHUNK)
        self._input = _counter(meter, semconv.METRIC_INPUT_TOKENS, "Input (prompt) tokens used, cached ones included.")
        self._output = _counter(
            meter, semconv.METRIC_OUTPUT_TOKENS, "Output (completion) tokens used, reasoning tokens included."
        )
        self._cache_read = _counter(
            meter, semconv.METRIC_CACHE_READ_TOKENS, "Input tokens served from a provider-managed cache."
        )
        self._cache_write = _counter(
            meter, semconv.METRIC_CACHE_WRITE_TOKENS, "Input tokens written to a provider-managed cache."
        )
        self._reasoning = _counter(meter, semconv.METRIC_REASONING_TOKENS, "Output tokens used for reasoning.")
        self._input_each = _tokens(
            meter, semconv.METRIC_OPERATION_INPUT_TOKENS, "Input tokens used by one inference operation."
        )
        self._output_each = _tokens(
            meter, semconv.METRIC_OPERATION_OUTPUT_TOKENS, "Output tokens used by one inference operation."
        )
        self._embedded_each = _tokens(
            meter, semconv.METRIC_EMBEDDINGS_INPUT_TOKENS, "Input tokens used by one embeddings operation."
        )
        self.parts: dict[str, Histogram] = {
            semconv.INVOKE_AGENT: _seconds(
                meter, semconv.METRIC_AGENT_DURATION, "Duration of one invocation of an agent.", _AGENT_SECONDS
            ),
            semconv.INVOKE_WORKFLOW: _seconds(
                meter, semconv.METRIC_WORKFLOW_DURATION, "Duration of one run of a workflow.", _WORKFLOW_SECONDS
            ),
            semconv.EXECUTE_TOOL: _seconds(meter, semconv.METRIC_TOOL_DURATION, "Duration of one execution of a tool."),
        }
        """The durations of the parts of a run, by their operation."""

    def record(self, call: CallFacts) -> None:
        attributes, usage, at = call.attributes, call.usage, call.at
        is_embeddings = attributes[semconv.OPERATION] == semconv.EMBEDDINGS
        if call.seconds is not None:
            (self._embeddings if is_embeddings else self._duration).record(call.seconds, call.timed, at)
        if is_embeddings:
            if usage.input is not None and not call.failed:
                self._embedded_each.record(usage.input, attributes, at)
            return
        if call.first_chunk is not None:
            self._first_chunk.record(call.first_chunk, attributes, at)
        _add(
            self._input,
            usage.input,
            usage.audio_input,
            usage.image_input,
            usage.image_input is not None,
            attributes,
            at,
        )
        text_told = usage.audio_output is not None or usage.image_output is not None
        _add(self._output, usage.output, usage.audio_output, usage.image_output, text_told, attributes, at)
        for counter, count in (
            (self._cache_read, usage.cache_read),
            (self._cache_write, usage.cache_write),
            (self._reasoning, usage.reasoning),
        ):
            if count:
                counter.add(count, {**attributes, semconv.TOKEN_MODALITY: "unknown"}, at)
        if not call.failed:
            if usage.input is not None:
                self._input_each.record(usage.input, attributes, at)
            if usage.output is not None:
                self._output_each.record(usage.output, attributes, at)


def _add(
    counter: Counter,
    total: int | None,
    audio: int | None,
    image: int | None,
    text_told: bool,
    attributes: dict[str, Any],
    at: otel.Context,
) -> None:
    """Counts tokens by modality. What is left of the total is text only where the provider tells it from the others."""
    rest = total or 0
    for modality, count in (("audio", audio), ("image", image)):
        if count and count <= rest:
            counter.add(count, {**attributes, semconv.TOKEN_MODALITY: modality}, at)
            rest -= count
    if rest or not total:  # the convention counts 0 where no usage was reported
        known = "text" if text_told and total else "unknown"
        counter.add(rest, {**attributes, semconv.TOKEN_MODALITY: known}, at)


class Legacy:
    """The instruments of the conventions before October 2026, which dashboards may still be built on."""

    def __init__(self, meter: Meter) -> None:
        self._duration = _seconds(meter, semconv.METRIC_LEGACY_DURATION, "GenAI operation duration.")
        self._tokens = _tokens(meter, semconv.METRIC_LEGACY_TOKENS, "Number of input and output tokens used.")
        self._first_chunk = _seconds(
            meter, semconv.METRIC_LEGACY_TIME_TO_FIRST_CHUNK, "Time to receive the first chunk of a stream."
        )
        self.chunk = _chunks(meter, semconv.METRIC_LEGACY_TIME_PER_CHUNK)
        self.parts: dict[str, Histogram] = {}

    def record(self, call: CallFacts) -> None:
        if call.seconds is not None:
            self._duration.record(call.seconds, call.timed, call.at)
        if call.first_chunk is not None:
            self._first_chunk.record(call.first_chunk, call.attributes, call.at)
        for kind, count in (("input", call.usage.input), ("output", call.usage.output)):
            if count is not None:
                self._tokens.record(count, {**call.attributes, semconv.TOKEN_TYPE: kind}, call.at)


def _seconds(meter: Meter, name: str, description: str, bounds: tuple[float, ...] = SECONDS) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=bounds)


def _chunks(meter: Meter, name: str) -> Histogram:
    return _seconds(meter, name, "Time between one chunk of a stream and the next, for each after the first.")


def _tokens(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "{token}", description, explicit_bucket_boundaries_advisory=TOKENS)


def _counter(meter: Meter, name: str, description: str) -> Counter:
    return meter.create_counter(name, "{token}", description)
