"""OpenTelemetry spans as journal records, and which of them are about generative AI.

This is the work that the app's thread does at the start and the end of every model call. Where the SDK's public properties
copy, the plain field behind them is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode

from otel_llm.calls.tracing import Given
from otel_llm.conventions import semconv
from otel_llm.settings import settings

_LEGACY_MARK: Final = "gen_ai.system"
_FOREIGN_MARKS: Final = frozenset((*semconv.FOREIGN_KINDS, _LEGACY_MARK))
_STATUS_NAMES: Final = {code.value: code.name for code in StatusCode}

Attributes = Mapping[str, Any]

_CONTENT: Final = re.compile(
    r"gen_ai\.(prompt|completion)(\.\d.*)?|gen_ai\.(input|output)\.messages|gen_ai\.system_instructions"
    r"|gen_ai\.tool\.(definitions|call\.(arguments|result))|gen_ai\.retrieval\.(documents|query\.text)"
    r"|gen_ai\.(user|system|assistant|tool|choice)\.message.*|content|message"
    r"|(input|output)\.value|llm\.(input_messages|output_messages|prompts|completions|tools|prompt_template|function_call)(\..*)?"
    r"|traceloop\.entity\.(input|output)|gen_ai\.task\.(input|output)|retrieval\.documents(\..*)?|(embedding\.(text|embeddings).*)|tool\.parameters"
    r"|exception\.(message|stacktrace)"
)
"""Attributes, ours and others', that hold what was said. An exception's text can quote the prompt."""
_SECRET: Final = re.compile(r"url\.query|http\.(request|response)\.(header|body)\..*")
"""Attributes that can hold keys. Kept by no mode of content capture."""
_DROPPED: Final = re.compile(f"{_CONTENT.pattern}|{_SECRET.pattern}")
_URLS: Final = ("url.full", "http.url", "http.target")
"""Attributes whose query can hold what a user asked."""
_INVOCATION: Final = (semconv.INVOCATION_PARAMETERS, *semconv.ALIASES[semconv.INVOCATION_PARAMETERS])
_NAMES: Final = frozenset(("model", "service_tier"))
_IN_THE_ANSWER: Final = {
    semconv.RESPONSE_ID: re.compile(r'"id": ?"((?:chatcmpl|cmpl|resp)[-_][\w-]{1,200})"'),
    semconv.OPENAI_RESPONSE_SERVICE_TIER: re.compile(r'"service_tier": ?"(\w{1,20})"'),
}
"""Facts that OpenInference has nowhere but in the answer, which is content. Quoted in a text, they would be escaped."""
_THEIR_TOKENS: Final = "llm.token_count."


def attributes_of(span: ReadableSpan, given: Given | None = None) -> Attributes:
    """The span's attributes, without a copy where the SDK is as we know it.

    Where its limits have cut them, what a span of ours was `given` is whole again.
    """
    held = span._attributes
    plain: Attributes = getattr(held, "_dict", None)  # type: ignore[assignment]
    if type(plain) is not dict:
        plain = span.attributes or {}
    if given is None:
        return plain
    longest = getattr(held, "max_value_len", None)
    if longest is None and not getattr(held, "dropped", 0) and len(plain) >= len(given.attributes):
        return plain
    whole = dict(BoundedAttributes(attributes=given.attributes))
    for name, value in plain.items():
        # What differs and was not cut is what the app has set there since.
        if name not in whole or not _is_cut(value, longest):
            whole[name] = value
    return whole


def _is_cut(value: Any, longest: int | None) -> bool:
    """Whether a value may be the beginning of a longer one. Those in a list are cut one by one."""
    if isinstance(value, str | bytes):
        return len(value) == longest
    return isinstance(value, Sequence | Mapping) and longest is not None


def is_genai(attributes: Attributes) -> bool:
    """Whether attributes are those of a model, agent, tool, retriever or workflow span, in any dialect that we read."""
    found = semconv.OPERATION in attributes or not _FOREIGN_MARKS.isdisjoint(attributes)
    return found and attributes.get(_LOGFIRE_KIND) != _LOGFIRE_LOG


_LOGFIRE_KIND: Final = "logfire.span_type"
_LOGFIRE_LOG: Final = "log"
"""Logfire's message that a stream has ended is a span, beside the one of the call itself."""


def operation_of(attributes: Attributes) -> str | None:
    """What a GenAI span does, as far as its start tells; None where nobody says."""
    operation: str | None = attributes.get(semconv.OPERATION)
    operation = semconv.FOREIGN_OPERATIONS.get(str(operation), operation)
    if operation is None:
        for kind, operations in semconv.FOREIGN_KINDS.items():
            if kind in attributes:
                return operations.get(str(attributes[kind]), semconv.STEP)
    return operation


def is_model_call(attributes: Attributes) -> bool:
    """Whether the attributes of a GenAI span say that it runs a model, as far as the start of a span tells."""
    return operation_of(attributes) not in semconv.TREE_OPERATIONS


def recorded(attributes: Attributes, scope: str = "") -> Attributes:
    """The attributes as the store keeps them: without prompts, answers, tool arguments, headers and error texts.

    Our own instrumentors (`scope`) put nothing there that was not asked for; others capture content by default. Where it is asked
    for, theirs is redacted like ours.
    """
    if scope.startswith("otel_llm."):
        return attributes
    if not settings().capture.in_span:
        kept = {name: value for name, value in attributes.items() if not _DROPPED.fullmatch(name)}
    else:
        kept = {}
        for name, value in attributes.items():
            if not _CONTENT.fullmatch(name):
                if not _SECRET.fullmatch(name):
                    kept[name] = value
            elif (told := _redacted(value)) is not None:
                kept[name] = told
    for name in _URLS:
        if isinstance(url := kept.get(name), str):
            kept[name] = url.partition("?")[0]
    for name in _INVOCATION:
        if name in kept:
            kept[name] = _without_texts(kept[name])
    if isinstance(answer := attributes.get(semconv.OUTPUT_VALUE), str):
        for name, pattern in _IN_THE_ANSWER.items():
            if name not in kept and (found := pattern.search(answer)) is not None:
                kept[name] = found[1]
        if _is_cache_hit(answer):
            # The tokens are those of the day it was paid for.
            kept = {name: value for name, value in kept.items() if not name.startswith(_THEIR_TOKENS)}
            kept[semconv.CACHE_HIT] = True
    return kept


def _is_cache_hit(answer: str) -> bool:
    """Whether an answer, as OpenInference tells it of LangChain, came out of LangChain's cache.

    LangChain marks it with a cost of nought; what a provider says of a cost comes with the model's own output.
    """
    if '"total_cost"' not in answer:
        return False
    try:
        told = orjson.loads(answer)
        if told["llm_output"] is not None:
            return False
        messages = [generation["message"] for run in told["generations"] for generation in run]
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


def start_record(span: ReadableSpan, context: SpanContext, attributes: Attributes) -> dict[str, Any]:
    """The record of a span that has begun."""
    scope = span.instrumentation_scope
    parent = span.parent
    record: dict[str, Any] = {
        "k": "s",
        "t": f"{context.trace_id:032x}",
        "s": f"{context.span_id:016x}",
        "n": span.name,
        "kd": span.kind.name,
        "st": span.start_time,
        "a": recorded(attributes, "" if scope is None else scope.name),
        "f": int(context.trace_flags),
    }
    if parent is not None:
        record["p"] = f"{parent.span_id:016x}"
    if scope is not None:
        record["sc"] = scope.name
        if scope.version:
            record["scv"] = scope.version
    return record


def end_record(
    span: ReadableSpan,
    context: SpanContext,
    attributes: Attributes,
    started: Mapping[str, Any] | None = None,
    given: Given | None = None,
) -> dict[str, Any]:
    """The record of a span that has ended. `started`, its start record, saves saying again what has not changed."""
    if started is None:
        record = start_record(span, context, attributes)
    else:
        record = dict(started)
        record["n"] = span.name
        record["a"] = recorded(attributes, record.get("sc", ""))
    record["k"] = "e"
    record["et"] = span.end_time
    status = span.status
    record["sts"] = _STATUS_NAMES[status.status_code.value]
    # What the app itself adds to a span of ours is not ours: it counts as ours only where content is captured.
    own = record.get("sc", "") if settings().capture.in_span else ""
    if status.description and settings().capture.in_span:
        told = status.description if own.startswith("otel_llm.") else _redacted(status.description)
        if told is not None:
            record["std"] = told
    if span._events:
        record["e"] = [
            {
                "name": event.name,
                "time_unix_nano": event.timestamp,
                "attributes": dict(recorded(event.attributes or {}, own)),
            }
            for event in span.events
        ]
    links = span.links if span._links else ()
    if given is not None and len(links) < len(given.links):
        links = given.links
    if links:
        record["l"] = [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                "attributes": dict(recorded(link.attributes or {}, own)),
            }
            for link in links
        ]
    return record
