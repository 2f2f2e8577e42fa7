"""What was said: messages, tool arguments and results, in the form of the GenAI conventions, where capture asks for them.

    a client's payload ─ openai, langchain ─► messages ─ redaction, limit ─► JSON on the span, structure in the event

Hooks hand content over in structured form, under its attribute name; this package alone decides what becomes of it. Nothing here is
imported unless capture is on.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.trace import Span, Status, StatusCode

from otel_llm.content.parts import ALL_TEXTS, COST, SLACK, TRUNCATED, Allowance, plain
from otel_llm.content.redaction import Message, RedactionFailed, current, fail, redact
from otel_llm.content.secrets import scrub
from otel_llm.conventions import semconv
from otel_llm.settings import settings
from otel_llm.support import fast_json, faults


def wanted() -> bool:
    """Whether content has somewhere to go: the span, or events that a LoggerProvider takes."""
    capture = settings().capture
    return capture.in_span or (capture.in_event and _events_wanted())


def _events_wanted() -> bool:
    from otel_llm.signals import events  # brings the logs API with it

    return events.wanted()


def split(attributes: Mapping[str, Any], *, has_event: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes the content out of `attributes`: what is set on the span, and what goes into the event, redacted and bounded.

    Raises nothing; what cannot be redacted is in neither. `has_event`: whether the conventions have an event for the operation.
    """
    on_span: dict[str, Any] = {}
    in_event: dict[str, Any] = {}
    capture = settings().capture
    tells = has_event and capture.in_event and _events_wanted()
    for name, value in attributes.items():
        if name not in semconv.CONTENT:
            on_span[name] = value
            continue
        try:
            if not (capture.in_span or tells) or (cleaned := _cleaned(name, value)) is None:
                continue
            if capture.in_span:
                # A tool's text, or a query, is the text: a viewer shows what is no object as it stands, the quotes of JSON too.
                on_span[name] = cleaned if isinstance(cleaned, str) else as_json(cleaned)
            if tells:
                in_event[name] = cleaned
        except RedactionFailed as failure:
            fail(failure)
        except Exception as fault:
            faults.report("record what was said", fault)
    return on_span, in_event


def on_span(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes as a span takes them that has no event beside it: content as JSON, or not at all."""
    return split(attributes, has_event=False)[0]


def as_json(value: Any) -> str:
    """`value` as a span attribute holds it."""
    try:
        return fast_json.dumps(value).decode()
    except (TypeError, ValueError):  # what a redactor may return
        return json.dumps(plain(value, 2**20), default=str)


def clean_text(text: str) -> str | None:
    """A text that is no message (an error's, another instrumentation's), redacted like one; None where it is not to be recorded."""
    messages = clean_messages([{"role": "other", "parts": [{"type": "text", "content": text}]}])
    content = messages[0]["parts"][0].get("content") if messages and messages[0]["parts"] else None
    return content if isinstance(content, str) else None


def foreign(value: Any) -> Any:
    """Content of another instrumentation's, redacted: a text, or texts; None where it is not to be recorded. Raises nothing.

    Attributes may be structured, too: those become JSON text.
    """
    try:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return clean_text(value)
        if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
            return [told for one in value if (told := clean_text(one)) is not None]
        longest = settings().content_limit + SLACK
        return clean_text(as_json(scrub(plain(value, longest), longest, TRUNCATED)))
    except RedactionFailed as failure:
        fail(failure)
    except Exception as fault:
        faults.report("redact what another instrumentation captured", fault)
    return None


def clean_messages(messages: list[Message]) -> list[Message]:
    """The messages redacted and bounded: where they are too long together, the oldest are left out, and said to be.

    Raises RedactionFailed.
    """
    limit = settings().content_limit
    longest = limit + SLACK
    left = limit * ALL_TEXTS
    redactor = current()
    kept: list[Message] = []
    for number in range(len(messages) - 1, -1, -1):
        if left <= 0:
            kept.append({"role": "system", "parts": [{"type": "omitted", "messages": number + 1}]})
            break
        if redactor is None and (text := _only_text(messages[number])) is not None:
            text = scrub(plain(text, longest, Allowance(left + SLACK)), limit, TRUNCATED)
            kept.append({**messages[number], "parts": [{"type": "text", "content": text}]})
            left -= _length(kept[-1])
            continue
        message = plain(messages[number], longest, Allowance(left + SLACK))
        if redactor is not None:
            message = redact(redactor, message)
            if message is None:
                continue
            message = plain(message, longest, Allowance(left + SLACK))
        message = scrub(message, limit, TRUNCATED)
        left -= _length(message)
        kept.append(message)
    kept.reverse()
    return kept


_ROLES: Final = frozenset(("system", "developer", "user", "assistant"))
_REASONS: Final = frozenset(("stop", "length", "content_filter"))


def _only_text(message: Message) -> str | None:
    """The text of a message that has nothing else in it which could need a look, as most; None of any other."""
    parts, role, reason = message.get("parts"), message.get("role"), message.get("finish_reason", "stop")
    if type(parts) is not list or len(parts) != 1 or len(message) != 2 + ("finish_reason" in message):
        return None
    (part,) = parts
    if type(part) is not dict or part.keys() != _OF_TEXT or part["type"] != "text":
        return None
    if not (type(role) is type(reason) is type(part["content"]) is str and role in _ROLES and reason in _REASONS):
        return None
    return str(part["content"])


_OF_TEXT: Final = {"type", "content"}


def _cleaned(name: str, value: Any) -> Any:
    """The value of a content attribute as it may be recorded; None where nothing is left of it."""
    if name in (semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES):
        return clean_messages(value) or None
    if name in (semconv.SYSTEM_INSTRUCTIONS, semconv.TOOL_DEFINITIONS):
        cleaned = clean_messages([{"role": "system", "parts": value}])
        return cleaned[0]["parts"] or None if cleaned else None
    if name == semconv.TOOL_CALL_ARGUMENTS:
        return _one(
            clean_messages([{"role": "assistant", "parts": [{"type": "tool_call", "arguments": value}]}]), "arguments"
        )
    if name == semconv.RETRIEVAL_QUERY:
        return _one(clean_messages([{"role": "user", "parts": [{"type": "text", "content": value}]}]), "content")
    if name == semconv.RETRIEVAL_DOCUMENTS:
        return _documents(value)
    part = {"type": "tool_call_response", "response": value}
    return _one(clean_messages([{"role": "tool", "parts": [part]}]), "response")


def _documents(found: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Retrieved documents, each redacted as a message of its own. The best come first, so it is the last that are left out."""
    asked = [{"role": "tool", "parts": [{**one, "type": "text"}]} for one in reversed(found)]
    parts = [part for message in reversed(clean_messages(asked)) for part in message["parts"]]
    return [
        {"omitted": part.get("messages", part.get("items"))}
        if part.get("type") == "omitted"
        else {k: v for k, v in part.items() if k != "type"}
        for part in parts
    ] or None


def _one(messages: list[Message], field: str) -> Any:
    return messages[0]["parts"][0].get(field) if messages and messages[0]["parts"] else None


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return COST + sum(map(_length, value.values()))
    if isinstance(value, list):
        return sum(map(_length, value))
    return COST // 8


def failed(span: Span, error: BaseException) -> Status:
    """Records an error's text on the span, as an exception event. Returns the status to give the span."""
    told: Mapping[str, str] = {}
    try:
        if settings().capture.in_span and (told := error_attributes(error)):
            span.add_event("exception", told)
    except Exception as fault:
        faults.report("record an error's text", fault)
    return Status(StatusCode.ERROR, told.get(semconv.EXCEPTION_MESSAGE))


def error_attributes(error: BaseException) -> dict[str, str]:
    """Class, text and stack trace of an error, redacted; nothing where that fails. Raises nothing."""
    cls = type(error)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    found = {semconv.EXCEPTION_TYPE: f"{module}{cls.__qualname__}"}
    try:
        texts = {
            semconv.EXCEPTION_MESSAGE: str(error),
            semconv.EXCEPTION_STACKTRACE: "".join(traceback.format_exception(error)),
        }
        for name, text in texts.items():
            if (cleaned := clean_text(text)) is not None:
                found[name] = cleaned
    except RedactionFailed as failure:
        fail(failure)
        return {}
    except Exception as fault:
        faults.report("record an error's text", fault)
        return {}
    return found
