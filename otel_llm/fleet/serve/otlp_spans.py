"""OTLP spans, of whatever language, as journal records: the same as a span of this process makes (`store/span_record.py`)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from otel_llm.conventions.dialects import is_genai
from otel_llm.settings import settings
from otel_llm.store.span_record import recorded, recorded_message

_KINDS: Final = ("INTERNAL", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES: Final = ("UNSET", "OK", "ERROR")
_MAX_DEPTH: Final = 32
"""Of values in values."""
_TRACE_ID: Final = 16
_SPAN_ID: Final = 8
_FLAGS: Final = 0xFF
"""Of a span's flags: those of the trace."""


class NotASpan(ValueError):
    """It has no identity: why, in a few words."""


def records(of_resource: ResourceSpans, *, only_genai: bool, refused: list[str]) -> Iterator[dict[str, Any]]:
    """The records of spans of one resource.

    With `only_genai` others are left out, but those above one in here. What is no span is named in `refused`.
    """
    resource = orjson.Fragment(orjson.dumps(_attributes(of_resource.resource.attributes)))
    found: dict[bytes, tuple[Span, InstrumentationScope, dict[str, Any], bool]] = {}
    for of_scope in of_resource.scope_spans:
        for span in of_scope.spans:
            try:
                _require_identity(span)
            except NotASpan as error:
                refused.append(str(error))
                continue
            attributes = _attributes(span.attributes)
            found[span.trace_id + span.span_id] = span, of_scope.scope, attributes, is_genai(attributes)
    wanted = _with_those_above(found) if only_genai else found.keys()
    for identity in found:
        if identity in wanted:
            span, scope, attributes, _ = found[identity]
            yield _record(span, scope, attributes, resource)


def _with_those_above(found: Mapping[bytes, tuple[Span, InstrumentationScope, dict[str, Any], bool]]) -> set[bytes]:
    wanted: set[bytes] = set()
    for identity, (_, _, _, genai) in found.items():
        step = identity
        while genai and step not in wanted and step in found:
            wanted.add(step)
            step = step[:_TRACE_ID] + found[step][0].parent_span_id
    return wanted


def _require_identity(span: Span) -> None:
    """Raises NotASpan."""
    if len(span.trace_id) != _TRACE_ID or not any(span.trace_id):
        raise NotASpan("it has no trace id of 16 bytes")
    if len(span.span_id) != _SPAN_ID or not any(span.span_id):
        raise NotASpan("it has no span id of 8 bytes")
    if not (span.start_time_unix_nano or span.end_time_unix_nano):
        raise NotASpan("it has no time")


def _record(span: Span, scope: InstrumentationScope, attributes: dict[str, Any], resource: object) -> dict[str, Any]:
    end_ns = span.end_time_unix_nano or span.start_time_unix_nano
    name = scope.name
    record: dict[str, Any] = {
        "k": "e",
        "t": span.trace_id.hex(),
        "s": span.span_id.hex(),
        "n": span.name,
        "kd": _KINDS[span.kind] if 0 <= span.kind < len(_KINDS) else _KINDS[0],
        "st": span.start_time_unix_nano or end_ns,
        "et": end_ns,
        "a": recorded(attributes, name),
        "f": span.flags & _FLAGS if span.flags else 1,
        "r": resource,
    }
    if span.parent_span_id:
        record["p"] = span.parent_span_id.hex()
    if name:
        record["sc"] = name
        if scope.version:
            record["scv"] = scope.version
    code = span.status.code
    record["sts"] = _STATUSES[code] if 0 <= code < len(_STATUSES) else _STATUSES[0]
    if code == len(_STATUSES) - 1 and (said := recorded_message(span.status.message, name)) is not None:
        record["std"] = said
    # What the app itself adds to a span of ours is not ours: as `store/span_record.py` has it.
    own = name if settings().capture.in_span else ""
    if span.events:
        record["e"] = [
            {
                "name": event.name,
                "time_unix_nano": event.time_unix_nano,
                "attributes": dict(recorded(_attributes(event.attributes), own)),
            }
            for event in span.events
        ]
    if span.links:
        record["l"] = [
            {
                "trace_id": link.trace_id.hex(),
                "span_id": link.span_id.hex(),
                "attributes": dict(recorded(_attributes(link.attributes), own)),
            }
            for link in span.links
        ]
    return record


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        value = pair.value
        which = value.WhichOneof("value")
        if which == "string_value":
            found[pair.key] = value.string_value
        elif which == "int_value":
            found[pair.key] = value.int_value
        elif which is not None:
            found[pair.key] = _value(value, which, 0)
    return found


def _value(value: AnyValue, which: str | None, depth: int) -> Any:
    if which is None:
        return None
    if which == "array_value":
        return [_inner(item, depth + 1) for item in value.array_value.values]
    if which == "kvlist_value":
        return {pair.key: _inner(pair.value, depth + 1) for pair in value.kvlist_value.values}
    if which == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    return getattr(value, which)


def _inner(value: AnyValue, depth: int) -> Any:
    return "…" if depth > _MAX_DEPTH else _value(value, value.WhichOneof("value"), depth)
