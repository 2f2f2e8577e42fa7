"""GenAI client metrics: how long model calls and the parts of a run take and what they use, by the names of the conventions.

Recorded at the end of every call, whatever a trace sampler made of its span. The attributes have few values: operation, provider,
models, server, error class, kind of token; names of agents, workflows and tools; never who asked. Where no MeterProvider with a
reader is set, a call costs one look.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import context as otel
from opentelemetry.environment_variables import OTEL_PYTHON_METER_PROVIDER
from opentelemetry.metrics import Histogram, MeterProvider, get_meter_provider
from opentelemetry.trace import Span, set_span_in_context

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import Usage
from otel_llm.settings import MetricNames, settings
from otel_llm.signals.instruments import CallFacts, Current, Legacy
from otel_llm.support import faults, otel_private
from otel_llm.version import __version__

_COMMON: Final = (
    semconv.OPERATION,
    semconv.PROVIDER,
    semconv.REQUEST_MODEL,
    semconv.RESPONSE_MODEL,
    semconv.SERVER_ADDRESS,
    semconv.SERVER_PORT,
)
_OF_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    semconv.INVOKE_AGENT: (semconv.AGENT_NAME,),
    semconv.INVOKE_WORKFLOW: (semconv.WORKFLOW_NAME,),
    semconv.EXECUTE_TOOL: (semconv.TOOL_NAME, semconv.TOOL_TYPE, semconv.AGENT_NAME),
}
"""The parts of a run that are timed, by their operation, and the attributes of their durations."""

_LOOKS: Final = OTEL_PYTHON_METER_PROVIDER in os.environ
"""Whether the global provider must be asked for. Where the app has set none, the API looks into the environment every time it is
asked, which takes longer than all the rest of `wanted`."""
_given: MeterProvider | None = None
_made: tuple[MeterProvider, MetricNames, list[Current | Legacy]] | None = None
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
    provider = _given
    if provider is None:
        if not _LOOKS and otel_private.is_meter_provider_unset():
            return False
        provider = get_meter_provider()
    # The SDK sets up a provider without readers where no exporter is configured.
    is_read = otel_private.has_metric_reader(provider)
    return provider is _given or _is_foreign(provider) if is_read is None else is_read


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
        if error_type is not None:
            error_type = _bounded(semconv.ERROR_TYPE, error_type)
        call = CallFacts.of(_common(facts), seconds, first_chunk, usage or _NO_USAGE, error_type, at)
        for instruments in _instruments():
            instruments.record(call)
    except Exception as fault:
        faults.report("record metrics", fault)


class ChunkTimes:
    """Records the time between the chunks of one stream."""

    __slots__ = ("_at", "_attributes", "_histograms")

    def __init__(self, histograms: list[Histogram], facts: Mapping[str, Any], span: Span) -> None:
        self._histograms = histograms
        self._attributes = _common(facts)
        self._at = set_span_in_context(span)

    def record(self, seconds: float, response_model: str | None) -> None:
        """Records the time that has passed since the chunk before. Raises nothing."""
        try:
            if response_model is not None:  # the first chunk tells it, which is before the first time is recorded
                self._attributes[semconv.RESPONSE_MODEL] = _bounded(semconv.RESPONSE_MODEL, response_model)
            for histogram in self._histograms:
                histogram.record(seconds, self._attributes, self._at)
        except Exception as fault:
            faults.report("record metrics", fault)


def chunk_times(facts: Mapping[str, Any], span: Span) -> ChunkTimes | None:
    """What records the chunks of a stream; None where nobody reads. Raises nothing."""
    try:
        if wanted():
            return ChunkTimes([instruments.chunk for instruments in _instruments()], facts, span)
    except Exception as fault:
        faults.report("record metrics", fault)
    return None


class Stopwatch:
    """Times one agent, workflow or tool."""

    __slots__ = ("_attributes", "_begun_ns", "_ended_ns", "_operation")

    def __init__(self, operation: str, attributes: dict[str, Any]) -> None:
        self._operation = operation
        self._attributes = attributes
        self._begun_ns = time.perf_counter_ns()
        self._ended_ns: int | None = None

    def halt(self) -> None:
        """Takes the time, where a finalizer leaves it to another stack to `stop`."""
        self._ended_ns = time.perf_counter_ns()

    def stop(self, error_type: str | None, span: Span) -> None:
        """Records its duration. Raises nothing.

        Args:
            error_type: class of what it failed with.
            span: its own, for exemplars.
        """
        try:
            seconds = ((self._ended_ns or time.perf_counter_ns()) - self._begun_ns) / 1e9
            if error_type is not None:
                self._attributes[semconv.ERROR_TYPE] = error_type
            for instruments in _instruments():
                if (histogram := instruments.parts.get(self._operation)) is not None:
                    histogram.record(seconds, self._attributes, set_span_in_context(span))
        except Exception as fault:
            faults.report("record metrics", fault)


def stopwatch(operation: str, attributes: Mapping[str, Any]) -> Stopwatch | None:
    """Begins to time a part of a run; None where nobody reads, or it is a part that the conventions do not time. Raises nothing.

    Args:
        operation: `gen_ai.operation.name`.
        attributes: of its span.
    """
    try:
        if (names := _OF_PARTS.get(operation)) is not None and wanted():
            return Stopwatch(
                operation, {name: _bounded(name, attributes[name]) for name in names if name in attributes}
            )
    except Exception as fault:
        faults.report("record metrics", fault)
    return None


MOST_NAMES: Final = 500
_OPEN: Final = frozenset({semconv.REQUEST_MODEL, semconv.RESPONSE_MODEL, semconv.SERVER_ADDRESS})
"""The attributes of a call whose values come from outside."""
_names: defaultdict[str, set[str]] = defaultdict(set)
"""By attribute: the values so far."""


def _bounded(attribute: str, value: str) -> str:
    """`value`, or `_OTHER` once there are too many: an app may make up a name for every run, or ask for what its users type."""
    seen = _names[attribute]
    if value not in seen:
        if len(seen) >= MOST_NAMES:
            return "_OTHER"
        seen.add(value)
    return value


def _common(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that every metric of a call has."""
    return {name: _bounded(name, facts[name]) if name in _OPEN else facts[name] for name in _COMMON if name in facts}


def _instruments() -> list[Current | Legacy]:
    global _made
    provider = _given if _given is not None else get_meter_provider()
    names = settings().metrics
    made = _made
    if made is None or made[0] is not provider or made[1] != names:
        meter = provider.get_meter(semconv.SCOPE, __version__, semconv.SCHEMA_URL)
        instruments: list[Current | Legacy] = []
        if names in ("current", "both"):
            instruments.append(Current(meter))
        if names in ("legacy", "both"):
            instruments.append(Legacy(meter))
        made = _made = provider, names, instruments
    return made[2]
