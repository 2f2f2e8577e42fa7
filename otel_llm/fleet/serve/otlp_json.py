"""OTLP's JSON: that of protobuf, but for ids, which are hexadecimal in it and not base64."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson
from google.protobuf import json_format

_IDS: Final = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")
_PARTS: Final = (
    ("resourceSpans", "resource_spans", "resourceLogs", "resource_logs"),
    ("scopeSpans", "scope_spans", "scopeLogs", "scope_logs"),
    ("spans", "logRecords", "log_records"),
)


def read(body: bytes, message: Any) -> None:
    """Fills `message` with what the text says; fields that it does not know are left out. Raises ValueError."""
    said = orjson.loads(body)
    if not isinstance(said, dict):
        raise ValueError("it is no JSON object")
    for part in _each([said], _PARTS):
        _read_ids(part)
        for link in _of(part, ("links",)):
            _read_ids(link)
    try:
        json_format.ParseDict(said, message, ignore_unknown_fields=True)
    except (json_format.ParseError, RecursionError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error


def write(message: Any) -> bytes:
    """An answer, in which there are no ids."""
    text: str = json_format.MessageToJson(message, indent=None)
    return text.encode()


def _each(parts: Iterable[dict[str, Any]], levels: tuple[tuple[str, ...], ...]) -> Iterator[dict[str, Any]]:
    for names in levels:
        parts = [inner for part in parts for inner in _of(part, names)]
    yield from parts


def _of(part: dict[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    for name in names:
        if isinstance(found := part.get(name), list):
            return [one for one in found if isinstance(one, dict)]
    return []


def _read_ids(part: dict[str, Any]) -> None:
    for name in _IDS:
        if isinstance(text := part.get(name), str):
            try:
                part[name] = base64.b64encode(bytes.fromhex(text)).decode("ascii")
            except ValueError:
                raise ValueError(f"{name} is not hexadecimal") from None
