"""GenAI client metrics: how long model calls take and what they use, by the names of the conventions.

Recorded at the end of every call, whatever a trace sampler made of its span. The attributes have few values: operation, provider,
models, server, error class, kind of token; never who asked. Where no MeterProvider with a reader is set, a call costs one look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import context as otel
from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider, get_meter_provider

from otel_llm import faults, semconv
from otel_llm.settings import MetricNames, settings
from otel_llm.usage import Usage
from otel_llm.version import __version__

SCOPE: Final = "otel_llm"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS: Final = tuple(4**power for power in range(14))

_COMMON: Final = (
    semconv.OPERATION,
    semconv.PROVIDER,
    semconv.REQUEST_MODEL,
    semconv.RESPONSE_MODEL,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
)
_UNTIMED: Final = frozenset({semconv.BATCH, semconv.LIVE_SESSION})
"""Operations whose length says nothing of how fast a model is."""


class _Current:
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

    def record(
        self,
        attributes: dict[str, Any],
        seconds: float | None,
        first_chunk: float | None,
        usage: Usage,
        error_type: str | None,
        at: otel.Context,
    ) -> None:
        is_embeddings = attributes[semconv.OPERATION] == semconv.EMBEDDINGS
        if seconds is not None:
            timed = attributes if error_type is None else {**attributes, semconv.ERROR_TYPE: error_type}
            (self._embeddings if is_embeddings else self._duration).record(seconds, timed, at)
        if is_embeddings:
            if usage.input is not None and error_type is None:
                self._embedded_each.record(usage.input, attributes, at)
            return
        if first_chunk is not None:
            self._first_chunk.record(first_chunk, attributes, at)
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
        if error_type is None:
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


class _Legacy:
    """The instruments of the conventions before October 2026, which dashboards may still be built on."""

    def __init__(self, meter: Meter) -> None:
        self._duration = _seconds(meter, semconv.METRIC_LEGACY_DURATION, "GenAI operation duration.")
        self._tokens = _tokens(meter, semconv.METRIC_LEGACY_TOKENS, "Number of input and output tokens used.")
        self._first_chunk = _seconds(
            meter, semconv.METRIC_LEGACY_TIME_TO_FIRST_CHUNK, "Time to receive the first chunk of a stream."
        )

    def record(
        self,
        attributes: dict[str, Any],
        seconds: float | None,
        first_chunk: float | None,
        usage: Usage,
        error_type: str | None,
        at: otel.Context,
    ) -> None:
        if seconds is not None:
            timed = attributes if error_type is None else {**attributes, semconv.ERROR_TYPE: error_type}
            self._duration.record(seconds, timed, at)
        if first_chunk is not None:
            self._first_chunk.record(first_chunk, attributes, at)
        for kind, count in (("input", usage.input), ("output", usage.output)):
            if count is not None:
                self._tokens.record(count, {**attributes, semconv.TOKEN_TYPE: kind}, at)


_given: MeterProvider | None = None
_made: tuple[MeterProvider, MetricNames, list[_Current | _Legacy]] | None = None
"""The instruments, with the provider and the setting that they were made for."""
_NO_USAGE: Final = Usage()


def use(provider: MeterProvider | None) -> None:
    """Records with `provider`; None: with the global one, once the app has set it."""
    global _given
    _given = provider


def wanted() -> bool:
    """Whether somebody reads the metrics."""
    if settings().metrics == "none":
        return False
    provider = _given if _given is not None else get_meter_provider()
    consumer = getattr(provider, "_measurement_consumer", None)
    # The SDK sets up a provider without readers where no exporter is configured; the API's own providers have no consumer.
    return bool(getattr(consumer, "_reader_storages", provider is _given or _is_foreign(provider)))


def _is_foreign(provider: MeterProvider) -> bool:
    return not type(provider).__module__.startswith("opentelemetry.metrics")


def record(
    facts: Mapping[str, Any],
    usage: Usage | None,
    error_type: str | None,
    seconds: float,
    first_chunk: float | None,
    at: otel.Context,
) -> None:
    """Records one model call that has ended. Raises nothing.

    Args:
        facts: the attributes of its span.
        usage: what the provider reported.
        error_type: class or HTTP status of what it failed with.
        seconds: from the request to the end.
        first_chunk: seconds from the request to the first chunk of a stream.
        at: context with the call's span, for exemplars.
    """
    try:
        if semconv.CACHE_HIT in facts:
            return  # no provider was asked
        attributes = {name: facts[name] for name in _COMMON if name in facts}
        timed = None if attributes[semconv.OPERATION] in _UNTIMED else seconds
        for instruments in _instruments():
            instruments.record(attributes, timed, first_chunk, usage or _NO_USAGE, error_type, at)
    except Exception as fault:
        faults.report("record metrics", fault)


def _instruments() -> list[_Current | _Legacy]:
    global _made
    provider = _given if _given is not None else get_meter_provider()
    names = settings().metrics
    made = _made
    if made is None or made[0] is not provider or made[1] != names:
        meter = provider.get_meter(SCOPE, __version__, SCHEMA_URL)
        instruments: list[_Current | _Legacy] = []
        if names in ("current", "both"):
            instruments.append(_Current(meter))
        if names in ("legacy", "both"):
            instruments.append(_Legacy(meter))
        made = _made = provider, names, instruments
    return made[2]


def _seconds(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=SECONDS)


def _tokens(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "{token}", description, explicit_bucket_boundaries_advisory=TOKENS)


def _counter(meter: Meter, name: str, description: str) -> Counter:
    return meter.create_counter(name, "{token}", description)
