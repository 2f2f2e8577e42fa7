"""What happens in a run, one immutable object for each thing that begins or ends, and for what a model says in between.

A run is everything under one root: a chain, an agent, or a model call of its own. Which events a span tells of is said in
`from_record`, for `subscribe` and for `otel-llm tail`, and once more in the view `llm_events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from otel_llm.conventions.token_usage import Usage


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its name, and the id that the model gave it, where there is one."""

    name: str | None
    id: str | None = None
    arguments: str | None = None
    """What it is called with, as JSON or as the model wrote it; only with content capture."""
    result: str | None = None
    """What it gave; only with content capture, and once it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event says. Ids are lower-case hex, as in the tables."""

    id: str
    """The same in the view `llm_events`: trace id, span id and type."""
    time_ns: int
    """Nanoseconds since 1970."""
    trace_id: str
    span_id: str
    parent_span_id: str | None
    run: str
    """Span id of the root of the run; where a chain continues one, of that."""
    sequence: int
    """Counts the events of a run from 1, and those of each part anew where it is continued. A subscription that dropped some, or
    left some out, sees gaps."""
    name: str
    """Of the chain, step or tool; of a model call its model. As it was called, without the operation."""
    operation: str
    """`gen_ai.operation.name`."""
    context: Mapping[str, str] = field(default_factory=dict)
    """What `llm_context` said, by attribute name: `user.id`, `otel_llm.module` and so on."""

    @property
    def type(self) -> str:
        """The name of the event's class."""
        return type(self).__name__

    @property
    def time(self) -> datetime:
        """When it happened, in UTC, to the microsecond."""
        return datetime.fromtimestamp(self.time_ns // 10**9, UTC).replace(microsecond=self.time_ns % 10**9 // 1000)

    def to_dict(self) -> dict[str, Any]:
        """All of it in values that JSON has: beside the fields `type` and `time`; in `usage` what was reported, by its names."""
        said = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        return {"type": self.type, "time": self.time.isoformat(timespec="microseconds"), **said}


def _plain(value: Any) -> Any:
    match value:
        case Usage():
            return {name: count for name, count in value._asdict().items() if count is not None}
        case ToolCall():
            return asdict(value)
        case Decimal():
            return float(value)
        case tuple():
            return [_plain(one) for one in value]
        case Mapping():
            return dict(value)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Event):
    """What every event says that ends something."""

    status: str
    """`ok`, `error`, `cancelled` or `partial`, as in the tables."""
    duration_ms: float
    error_type: str | None = None
    """Class name or HTTP status of what went wrong; never its message."""
    error_message: str | None = None
    """What it said; only with content capture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStarted(Event):
    """A chain, a workflow or an agent has begun."""

    input_messages: str | None = None
    """JSON; only with content capture, where it takes messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event):
    """A step has begun: a node of a graph, a retriever, a guardrail, an evaluator, a `step`."""

    input_messages: str | None = None
    """JSON; only with content capture, where it takes messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStarted(Event):
    """A model is being called."""

    provider: str | None
    model: str | None
    stream: bool = False
    input_messages: str | None = None
    """JSON; only with content capture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDelta(Event):
    """A model's answer has grown, while it is being streamed.

    Only with content capture, and only for a subscription that names this class in its `types`. It has the `sequence` of the
    `ProviderStarted` that it belongs to, so that the others count alike whoever listens.
    """

    number: int
    """Counts the increments of a call from 1."""
    kind: str
    """`text`, `reasoning`, `refusal` or `tool_call`."""
    text: str
    """What has come, redacted. Of a tool call a piece of its arguments; empty as it begins."""
    call: ToolCall | None = None
    """Name and id of a tool call, on each of its pieces."""
    choice: int = 0
    """Which answer, where several were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCompleted(Ended):
    """A model call has ended, well or not; a stream with its last chunk."""

    provider: str | None
    model: str | None
    response_model: str | None
    response_id: str | None
    finish_reasons: tuple[str, ...] = ()
    usage: Usage | None = None
    """Tokens as the provider reported them; None where it reported nothing."""
    cost_usd: Decimal | None = None
    """None while it is not known, and so always in a live event: a price is looked up when the call is merged into the store. The
    column `cost_usd` of `llm_events` has it."""
    output_messages: str | None = None
    """JSON; only with content capture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsRequested(Event):
    """The answer of a model asks for tools that the client must run."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsStarted(Event):
    """A tool is being run. Tools that run side by side give an event each."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCompleted(Ended):
    """A tool has ended, well or not."""

    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompleted(Ended):
    """A step has ended, well or not."""

    output_messages: str | None = None
    """JSON; only with content capture, where it gives messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCompleted(Ended):
    """A chain has come to its end; status `partial` where its caller left it early."""

    model_calls: int
    """Model calls in it that have ended."""
    usage: Usage
    """The sum over them, of what was reported. Of a run that is continued, those of this part."""
    waiting: bool = False
    """Whether the run waits for its client, to be continued, and is not done."""
    output_messages: str | None = None
    """JSON; only with content capture, where it gives messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainError(Ended):
    """A chain has failed or was cancelled."""

    where: str
    """Name of the innermost part that it failed in."""
    where_span_id: str
    completed: tuple[str, ...]
    """Names of the parts that had ended well by then, in order; the last hundred."""
    model_calls: int
    usage: Usage
    output_messages: str | None = None


TYPES: Final[Mapping[str, type[Event]]] = {
    kind.__name__: kind
    for kind in (
        ChainStarted,
        StepStarted,
        ProviderStarted,
        ProviderCompleted,
        ToolsRequested,
        ToolsStarted,
        ToolCompleted,
        StepCompleted,
        ChainCompleted,
        ChainError,
    )
}
"""Every event that begins or ends something, by its name."""
