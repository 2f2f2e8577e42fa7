"""OTLP requests of a size that receivers take: over gRPC they refuse what is larger than 4 MiB, and all of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan

from otel_llm.conventions import semconv

_logger = logging.getLogger("otel_llm")

LARGEST: Final = 3 * 2**20
"""Bytes of a request as they are reckoned here; what receivers take is 4 MiB, the rest is for what the encoding adds."""
_OF_ITEM: Final = 256
_OF_VALUE: Final = 16
"""Bytes beside the texts: of a span or a log record with its ids and times, of an attribute or a part of one."""
_DEEPEST: Final = 32


def parts_of(batch: Sequence[Any]) -> Iterator[list[Any]]:
    """The spans, or log records, in order, in parts of `LARGEST` bytes at most; a span too large for one goes without content."""
    part: list[Any] = []
    filled = 0
    for item in batch:
        size = size_of(item)
        if size > LARGEST:
            item, size = _lighter(item, size)
        if part and filled + size > LARGEST:
            yield part
            part, filled = [], 0
        part.append(item)
        filled += size
    if part:
        yield part


def size_of(item: Any) -> int:
    """About how many bytes a span, or a log record, takes in a request."""
    if isinstance(item, ReadableSpan):
        size = _OF_ITEM + _measure(item.name) + _measure(item.attributes) + _measure(item.status.description)
        size += sum(_OF_ITEM + _measure(event.name) + _measure(event.attributes) for event in item.events)
        return size + sum(_OF_ITEM + _measure(link.attributes) for link in item.links)
    record = getattr(item, "log_record", item)
    return _OF_ITEM + _measure(getattr(record, "body", None)) + _measure(getattr(record, "attributes", None))


def _measure(value: Any, depth: int = 0) -> int:
    if isinstance(value, str):
        return _OF_VALUE + (len(value) if value.isascii() else len(value.encode("utf-8", "replace")))
    if isinstance(value, bytes):
        return _OF_VALUE + len(value)
    if depth > _DEEPEST:
        return _OF_VALUE
    if isinstance(value, Mapping):
        return _OF_VALUE + sum(_measure(key) + _measure(item, depth + 1) for key, item in value.items())
    if isinstance(value, Sequence):
        return _OF_VALUE + sum(_measure(item, depth + 1) for item in value)
    return _OF_VALUE


def name_of(span: ReadableSpan) -> str:
    """What to call a span in a line for people."""
    return f"the span {span.name}" + (f" of trace {span.context.trace_id:032x}" if span.context else "")


def _lighter(item: Any, size: int) -> tuple[Any, int]:
    """A span that no request has room for, without what was said. Anything else is sent as it is: it may be taken."""
    if not isinstance(item, ReadableSpan) or not semconv.CONTENT & (item.attributes or {}).keys():
        return item, size
    _say_too_large(name_of(item))
    lighter = ReadableSpan(
        name=item.name,
        context=item.context,
        parent=item.parent,
        resource=item.resource,
        attributes={name: value for name, value in (item.attributes or {}).items() if name not in semconv.CONTENT},
        events=item.events,
        links=item.links,
        kind=item.kind,
        status=item.status,
        start_time=item.start_time,
        end_time=item.end_time,
        instrumentation_scope=item.instrumentation_scope,
    )
    return lighter, size_of(lighter)


_was_said = False


def _say_too_large(which: str) -> None:
    global _was_said
    if not _was_said:
        _was_said = True
        _logger.warning(
            "%s, and perhaps others, is larger than the %d MiB that OTLP receivers take: what was said in it is not sent, the "
            "store has it. OTEL_LLM_CONTENT_LIMIT makes it smaller. Said once.",
            which,
            LARGEST // 2**20 + 1,
        )
