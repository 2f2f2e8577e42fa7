"""OpenTelemetry spans as journal records: what of them is kept, and in which fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import orjson
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanKind, StatusCode

from otel_llm.calls.tracing import Given
from otel_llm.conventions import dialects, semconv
from otel_llm.conventions.spans import Attributes, is_ours
from otel_llm.settings import settings
from otel_llm.support import otel_private
from otel_llm.support.otel_private import SpanFacts

_CONTENT: Final = re.compile(dialects.CONTENT_PATTERN)
_SECRET: Final = re.compile(r"url\.query|ai\.request\.headers\..*|http\.(request|response)\.(header|body)\..*")
"""Attributes that can hold keys. Kept by no mode of content capture."""
_DROPPED: Final = re.compile(f"{_CONTENT.pattern}|{_SECRET.pattern}")
_URLS: Final = ("url.full", "http.url", "http.target")
"""Attributes whose query can hold what a user asked."""
_INVOCATION: Final = dialects.names(dialects.INVOCATION_PARAMETERS)
_NAMES: Final = frozenset(("model", "service_tier"))
_IN_THE_ANSWER: Final = {
    semconv.RESPONSE_ID: re.compile(r'"id": ?"((?:chatcmpl|cmpl|resp)[-_][\w-]{1,200})"'),
    semconv.OPENAI_RESPONSE_SERVICE_TIER: re.compile(r'"service_tier": ?"(\w{1,20})"'),
}
"""Facts that OpenInference has nowhere but in the answer, which is content. Quoted in a text, they would be escaped."""
_THEIR_TOKENS: Final = "llm.token_count."


def recorded(attributes: Attributes, scope: str = "") -> Attributes:
    """The attributes as the store keeps them: without prompts, answers, tool arguments, headers and error texts.

    Our own instrumentors (`scope`) put nothing there that was not asked for; others capture content by default. Where it is asked
    for, theirs is redacted like ours.
    """
    if is_ours(scope):
        return attributes
    if not settings().capture.in_span:
        kept = {name: value for name, value in attributes.items() if not _is_dropped(name)}
    else:
        kept = {}
        for name, value in attributes.items():
            if not _CONTENT.fullmatch(name):
                if not _SECRET.fullmatch(name):
                    kept[name] = value
            elif (redacted := _redacted(value)) is not None:
                kept[name] = redacted
    for name in _URLS:
        if isinstance(url := kept.get(name), str):
            kept[name] = url.partition("?")[0]
    for name in _INVOCATION:
        if name in kept:
            kept[name] = _without_texts(kept[name])
    if isinstance(answer := attributes.get(dialects.OUTPUT_VALUE), str):
        for name, pattern in _IN_THE_ANSWER.items():
            if name not in kept and (found := pattern.search(answer)) is not None:
                kept[name] = found[1]
        if _is_cache_hit(answer):
            # The tokens are those of the day it was paid for.
            kept = {name: value for name, value in kept.items() if not name.startswith(_THEIR_TOKENS)}
            kept[semconv.CACHE_HIT] = True
    return kept


@lru_cache(4096)  # few names, again and again
def _is_dropped(name: str) -> bool:
    return _DROPPED.fullmatch(name) is not None


def _is_cache_hit(answer: str) -> bool:
    """Whether an answer, as OpenInference tells it of LangChain, came out of LangChain's cache.

    LangChain marks it with a cost of nought; what a provider says of a cost comes with the model's own output.
    """
    if '"total_cost"' not in answer:
        return False
    try:
        parsed = orjson.loads(answer)
        if parsed["llm_output"] is not None:
            return False
        messages = [generation["message"] for run in parsed["generations"] for generation in run]
        return any(message["kwargs"]["usage_metadata"]["total_cost"] == 0 for message in messages)
    except (ValueError, LookupError, TypeError):  # another JSON, or one that was cut
        return False


def _without_texts(parameters: object) -> str:
    """Invocation parameters (JSON) as JSON, with numbers, flags and names alone: texts and tools are content."""
    try:
        asked = orjson.loads(str(parameters))
    except ValueError:
        return "{}"
    kept = {
        name: value
        for name, value in (asked.items() if isinstance(asked, dict) else ())
        if isinstance(value, int | float) or name in _NAMES
    }
    return orjson.dumps(kept).decode()


def _redacted(value: Any) -> Any:
    from otel_llm.content import capture  # only with capture

    return capture.foreign(value)


def start_record(facts: SpanFacts, attributes: Attributes) -> dict[str, Any]:
    """The record of a span that has begun."""
    trace_id, span_id, flags, parent_id, name, kind, start_time, scope, scope_version, _ = facts
    record: dict[str, Any] = {
        "k": "s",
        "t": f"{trace_id:032x}",
        "s": f"{span_id:016x}",
        "n": name,
        "kd": "CLIENT" if kind is SpanKind.CLIENT else kind.name,  # every call of ours: an enum's `name` is Python's
        "st": start_time,
        "a": attributes if is_ours(scope) else recorded(attributes, scope or ""),
        "f": flags,
    }
    if parent_id is not None:
        record["p"] = f"{parent_id:016x}"
    if scope is not None:
        record["sc"] = scope
        if scope_version:
            record["scv"] = scope_version
    return record


def error_message(span: ReadableSpan) -> str | None:
    """What the status of an ended span says, as `recorded_message` has it."""
    scope = span.instrumentation_scope
    return recorded_message(span.status.description, "" if scope is None else scope.name)


def recorded_message(said: str | None, scope: str) -> str | None:
    """What is kept of the text of an error, which may quote a prompt: None where content is not captured."""
    if not said or not settings().capture.in_span:
        return None
    return said if is_ours(scope) else _redacted(said)


def end_record(
    span: ReadableSpan,
    attributes: Attributes,
    started: Mapping[str, Any] | None = None,
    given: Given | None = None,
) -> dict[str, Any]:
    """The record of a span that has ended. `started`, its start record, saves saying again what has not changed."""
    name, end_time, code, has_events, has_links = otel_private.end_of(span)
    if started is None:
        record = start_record(otel_private.facts_of(span), attributes)
    else:
        scope = started.get("sc")
        kept = attributes if is_ours(scope) else recorded(attributes, scope or "")
        record = {**started, "n": name, "a": kept}
    if given is not None and given.aside:
        record |= given.aside
    record["k"] = "e"
    record["et"] = end_time
    if code is StatusCode.UNSET:
        record["sts"] = "UNSET"
    else:
        record["sts"] = code.name
        if (said := error_message(span)) is not None:
            record["std"] = said
    if has_events:
        record["e"] = [
            {
                "name": event.name,
                "time_unix_nano": event.timestamp,
                "attributes": _of_part(event, record),
            }
            for event in span.events
        ]
    links: Sequence[Link] = span.links if has_links else ()
    if given is not None and len(links) < len(given.links):
        links = given.links
    if links:
        record["l"] = [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                "attributes": _of_part(link, record),
            }
            for link in links
        ]
    return record


def _of_part(part: Event | Link, record: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the attributes of an event or a link.

    What the app itself adds to a span of ours is not ours: it counts as ours only where content is captured.
    """
    own = record.get("sc", "") if settings().capture.in_span else ""
    return dict(recorded(part.attributes or {}, own))
