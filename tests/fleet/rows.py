"""Rows as they travel, for tests of what carries them."""

from __future__ import annotations

from typing import Any

from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS, Kind, Row

_FULL: dict[Kind, Any] = {
    Kind.TEXT: 'it\'s "ü"\\\n\t\x00 end',
    Kind.JSON: '[{"role": "user", "parts": [{"content": "a/b\\n\\"ü\\""}]}]',
    Kind.BIG_INTEGER: 2**63 - 1,
    Kind.INTEGER: -(2**31),
    Kind.SMALL_INTEGER: 255,
    Kind.NUMBER: 12.125,
    Kind.DECIMAL: "123456789.000000001",
    Kind.BOOLEAN: True,
    Kind.TIME: "2026-11-20T12:00:00.000001Z",
    Kind.TEXTS: ["stop", 'tool "calls"', ""],
    Kind.TEXT_MAP: {"team": "core", "it's": ""},
    Kind.NUMBER_MAP: {"images": 2.5, "unknown": None},
}


def full_call(number: int = 0, **columns: Any) -> Row:
    """A row of `llm_usage` with something in each column."""
    row: Row = {name: _FULL[kind] for name, kind in USAGE_COLUMNS.items()}
    return (
        row | {"trace_id": f"{number:032x}", "span_id": f"{number:016x}", "row_version": 1, RETRACTED: False} | columns
    )


def bare_call(number: int = 0, **columns: Any) -> Row:
    """One with nothing but what every row has."""
    row: Row = dict.fromkeys(USAGE_COLUMNS)
    row |= {"trace_id": f"{number:032x}", "span_id": f"{number:016x}", "row_version": 1, RETRACTED: False}
    return row | {"started_at": "2026-11-20T12:00:00.000000Z", **columns}


def full_span(number: int = 0, **columns: Any) -> Row:
    """A row of `spans` with something in each column."""
    row: Row = {name: _FULL[kind] for name, kind in SPAN_COLUMNS.items()}
    return row | {"trace_id": f"{number:032x}", "span_id": f"{number:016x}", **columns}
