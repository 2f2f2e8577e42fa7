"""Which events a span tells of at its start and at its end: for `subscribe`, as it happens, and for `otel-llm tail`.

The view `llm_events` (`store/file/schema/views.sql`) says the same in SQL, for those who read the file without us; a test holds
the two together.

A span comes as its record in the journal has it: ids in `t`, `s` and `p`, name in `n`, times in `st` and `et`, the status code
of OpenTelemetry in `sts` and what it says in `std`, attributes in `a`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from otel_llm.conventions import semconv
from otel_llm.conventions.dialects import operation_of, provider_of, read
from otel_llm.conventions.token_usage import Usage
from otel_llm.lifecycle.event import (
    ChainCompleted,
    ChainError,
    ChainStarted,
    Ended,
    Event,
    ProviderCompleted,
    ProviderStarted,
    StepCompleted,
    StepStarted,
    ToolCall,
    ToolCompleted,
    ToolsRequested,
    ToolsStarted,
)

UNKNOWN: Final = "unknown"
"""The operation of a GenAI span that does not say what it does."""

Record = Mapping[str, Any]


class Derived(NamedTuple):
    """An event as far as its span tells: without `run`, `sequence` and `context`, and what a chain has summed up."""

    type: type[Event]
    fields: dict[str, Any]


def started(operation: str) -> type[Event]:
    """What the start of an operation is."""
    if operation in semconv.CHAIN_OPERATIONS:
        return ChainStarted
    if operation in semconv.STEP_OPERATIONS:
        return StepStarted
    return ToolsStarted if operation == semconv.EXECUTE_TOOL else ProviderStarted


def at_start(record: Record) -> Derived:
    """The event that the start of a GenAI span is."""
    attributes = record["a"]
    operation = event_operation(attributes)
    kind = started(operation)
    details: dict[str, Any] = {}
    if kind is ToolsStarted:
        details = {"calls": (_tool(record),)}
    else:
        details = {"input_messages": _text(attributes, semconv.INPUT_MESSAGES)}
        if kind is ProviderStarted:
            details |= _asked(attributes) | {"stream": read(attributes, semconv.REQUEST_STREAM) is True}
    return _derived(kind, record, operation, record["st"], details)


def at_end(record: Record) -> list[Derived]:
    """The events that the end of a GenAI span is: one, and another where an answer asks for tools."""
    attributes, ended_ns = record["a"], record["et"]
    operation = event_operation(attributes)
    status = _status(record)
    ended: dict[str, Any] = {
        "status": status,
        "error_type": _text(attributes, semconv.ERROR_TYPE),
        "error_message": record.get("std") if status in semconv.FAILED else None,
        "duration_ms": (ended_ns - record["st"]) / 1e6,
    }
    kind: type[Ended]
    if operation in semconv.CHAIN_OPERATIONS:
        kind = ChainError if status in semconv.FAILED else ChainCompleted
    elif operation in semconv.STEP_OPERATIONS:
        kind = StepCompleted
    elif operation == semconv.EXECUTE_TOOL:
        kind = ToolCompleted
        ended["call"] = _tool(record)
    else:
        kind = ProviderCompleted
        ended |= _answered(attributes)
    if kind is not ToolCompleted:
        ended["output_messages"] = _text(attributes, semconv.OUTPUT_MESSAGES)
    if kind is ChainCompleted:
        ended["waiting"] = attributes.get(semconv.RUN_WAITING) is True
    events = [_derived(kind, record, operation, ended_ns, ended)]
    if kind is ProviderCompleted and (calls := _requested(attributes)):
        events.append(_derived(ToolsRequested, record, operation, ended_ns, {"calls": calls}))
    return events


def event_operation(attributes: Mapping[str, Any]) -> str:
    """The operation of a GenAI span, as events have it."""
    operation = operation_of(attributes)
    return UNKNOWN if operation is None else operation


def _derived(kind: type[Event], record: Record, operation: str, time_ns: int, details: Mapping[str, Any]) -> Derived:
    fields = {
        "id": f"{record['t']}-{record['s']}-{kind.__name__}",
        "time_ns": time_ns,
        "trace_id": record["t"],
        "span_id": record["s"],
        "parent_span_id": record.get("p"),
        "name": _name(operation, record),
        "operation": operation,
    }
    return Derived(kind, {**fields, **details})


def _status(record: Record) -> str:
    """How a span ended, as the column `status` has it."""
    attributes = record["a"]
    status: str | None = attributes.get(semconv.STATUS)
    if status in semconv.STATUSES:
        return status
    failed = semconv.ERROR_TYPE in attributes or record.get("sts") == "ERROR"
    return semconv.ERROR if failed else semconv.OK


def _name(operation: str, record: Record) -> str:
    """The name of a part: that of its span, without the operation before it."""
    return str(record.get("n") or "").removeprefix(f"{operation} ")


def _tool(record: Record) -> ToolCall:
    attributes = record["a"]
    name = _text(attributes, semconv.TOOL_NAME) or _name(semconv.EXECUTE_TOOL, record)
    return ToolCall(
        name,
        _text(attributes, semconv.TOOL_CALL_ID),
        _text(attributes, semconv.TOOL_CALL_ARGUMENTS),
        _text(attributes, semconv.TOOL_CALL_RESULT),
    )


def _asked(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Who is asked for what model."""
    return {"provider": provider_of(attributes), "model": _text(attributes, semconv.REQUEST_MODEL)}


def _answered(attributes: Mapping[str, Any]) -> dict[str, Any]:
    reasons = read(attributes, semconv.FINISH_REASONS) or ()
    return _asked(attributes) | {
        "response_model": _text(attributes, semconv.RESPONSE_MODEL),
        "response_id": _text(attributes, semconv.RESPONSE_ID),
        "finish_reasons": tuple(reasons) if isinstance(reasons, list | tuple) else (str(reasons),),
        "usage": Usage.from_attributes(attributes) or None,
    }


def _requested(attributes: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The tool calls that an answer asks for, from the two attributes that say so."""
    ids, names = attributes.get(semconv.REQUESTED_TOOL_IDS), attributes.get(semconv.REQUESTED_TOOL_NAMES)
    if not isinstance(ids, list | tuple) or not isinstance(names, list | tuple):
        return ()
    arguments = _arguments(_text(attributes, semconv.OUTPUT_MESSAGES))
    return tuple(
        ToolCall(name or None, identity or None, arguments.get(identity))
        for identity, name in zip(ids, names, strict=False)
    )


def _arguments(output_messages: str | None) -> dict[str, str]:
    """The arguments of the tool calls in an answer, by the id of the call; none where the answer was not captured."""
    if output_messages is None:
        return {}
    try:
        messages = json.loads(output_messages)
        parts = [part for message in messages for part in message["parts"] if part.get("type") == "tool_call"]
        return {
            part["id"]: given if isinstance(given := part["arguments"], str) else json.dumps(given, ensure_ascii=False)
            for part in parts
            if part.get("id") and part.get("arguments") is not None
        }
    except (ValueError, TypeError, KeyError, AttributeError):  # another instrumentation's, in a form of its own
        return {}


def _text(attributes: Mapping[str, Any], name: str) -> str | None:
    value = read(attributes, name)
    return None if value is None else str(value)
