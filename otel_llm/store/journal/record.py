"""One journal line: JSON with a checksum in its first field.

    {"c":"<crc32 of what follows this field, 8 hex digits>","k":"e",...}\\n

The line is ordinary newline-delimited JSON, so DuckDB reads an intact segment as it is.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from zlib import crc32

import orjson

from otel_llm.support import faults

Record = Mapping[str, Any]

_PREFIX: Final = b'{"c":"'
_BODY: Final = 16  # length of `{"c":"xxxxxxxx",`
_MAX_DEPTH: Final = 32
_LONG: Final = 512
"""Characters of a text that is not said twice."""
_LEFT_OUT: Final = b',"m":['


def encode(record: Record) -> bytes:
    """The journal line of `record`, newline included. Never raises: what JSON cannot say is written as text."""
    try:
        body = orjson.dumps(record, default=_plain)
    except (TypeError, ValueError, RecursionError):
        body = orjson.dumps(_sanitised(record, 0))
    body = body[1:]
    return b"".join((_PREFIX, b"%08x" % crc32(body), b'",', body, b"\n"))  # `%b` takes longer than all of this


def is_intact(line: bytes) -> bool:
    """Whether `line` (without its newline) is one whole record."""
    if len(line) <= _BODY or line[:6] != _PREFIX or line[14:16] != b'",':
        return False
    try:
        return int(line[6:14], 16) == crc32(line[_BODY:])
    except ValueError:
        return False


def kind(line: bytes) -> bytes:
    """The one-letter kind of an intact line, such as `h`, `s` or `e`; empty where the line does not begin with it."""
    return line[21:22] if line[_BODY:21] == b'"k":"' else b""


def decode(line: bytes) -> dict[str, Any]:
    """The record of an intact line. Raises ValueError."""
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError("a journal line is a JSON object")
    return record


# --- texts that are said once -----------------------------------------------------------------------------------------


def long_texts(record: Record) -> dict[str, str]:
    """The attributes of a record that later ones of the same span leave out while they stay the same."""
    whole = record.get("a") or {}
    return {name: value for name, value in whole.items() if type(value) is str and len(value) >= _LONG}


def shortened(record: Record, texts: Mapping[str, str]) -> Record:
    """`record` without those of its attributes that are in `texts`, by name and to the letter; itself where there are none."""
    whole = record.get("a") or {}
    names = [name for name, text in texts.items() if type(own := whole.get(name)) is str and own == text]
    if not names:
        return record
    return {**record, "a": {name: whole[name] for name in whole if name not in names}, "m": names}


def is_shortened(line: bytes) -> bool:
    """Whether an intact line leaves something out. (One that does not may look like it; `completed` tells.)"""
    return _LEFT_OUT in line


def left_out(record: Record) -> list[str]:
    """The names of the attributes that it leaves out."""
    names = record.get("m")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def attributes(line: bytes) -> dict[str, Any]:
    """Those in an intact line; none where it is not as we write it."""
    try:
        found = decode(line).get("a")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def completed(record: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with what it leaves out, from the attributes of `earlier` records of its span."""
    names, own = left_out(record), record.get("a") or {}
    if names and isinstance(own, dict):
        record["a"] = {name: earlier[name] for name in names if name in earlier} | own
    record.pop("m", None)
    return record


# --- what has arrived elsewhere -----------------------------------------------------------------------------------------


def acknowledgement(endpoint: str, spans: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """The record that says which spans, by trace id and span id, an OTLP endpoint has taken."""
    return {"k": "a", "o": endpoint, "i": "".join([f"{trace_id:032x}{span_id:016x}" for trace_id, span_id in spans])}


def acknowledged(line: bytes) -> tuple[str, list[tuple[str, str]]]:
    """The endpoint and the ids in the line of an acknowledgement."""
    record = decode(line)
    ids = str(record.get("i"))
    places = range(0, len(ids) - 47, 48)
    return str(record.get("o")), [(ids[at : at + 32], ids[at + 32 : at + 48]) for at in places]


# --- what somebody thought of an answer ---------------------------------------------------------------------------------

Score: TypeAlias = tuple[str | None, str | None, str | None, str, float | None, str | None, str | None, str, int]
"""A row of `llm_scores`, with its moment in microseconds since 1970."""

_OF_SCORE: Final = ("t", "s", "ri", "n", "v", "l", "d", "o")
_MOST_US: Final = 253_402_300_799 * 10**6
"""The last second of the year 9999."""


def score_record(score: Score) -> dict[str, Any]:
    """The record of a score."""
    *told, at_us = score
    return {
        "k": "g",
        **{name: value for name, value in zip(_OF_SCORE, told, strict=True) if value is not None},
        "at": at_us,
    }


def score(line: bytes) -> Score:
    """The score in an intact line. Raises ValueError where it is not as we write it."""
    found = decode(line)
    trace, span, request, name, value, label, comment, source = (found.get(field) for field in _OF_SCORE)
    at_us = found.get("at")
    texts = all(one is None or isinstance(one, str) for one in (trace, span, request, label, comment))
    if not (
        texts
        and isinstance(name, str)
        and isinstance(source, str)
        and isinstance(at_us, int)
        and abs(at_us) <= _MOST_US
    ):
        raise ValueError("no score")
    if value is not None and not isinstance(value, int | float):
        raise ValueError("a score's value is a number")
    return trace, span, request, name, None if value is None else float(value), label, comment, source, at_us


def _plain(value: object) -> object:
    """orjson's fallback: bytes as base64 (as OTLP JSON has it), other mappings and sequences as what they are."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return str(value)


def _sanitised(value: object, depth: int) -> object:
    """`value` with everything replaced that strict JSON has no word for. The slow path, taken once orjson refused."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {str(_sanitised(str(key), depth)): _sanitised(item, depth + 1) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return _plain(value)
    if isinstance(value, Sequence | set | frozenset):
        return [_sanitised(item, depth + 1) for item in value]
    try:
        return _sanitised(str(value), depth)
    except Exception as error:
        faults.pass_on(error)
        return f"<{type(value).__name__}>"
