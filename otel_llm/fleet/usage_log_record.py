"""A row of `llm_usage` as an OTLP log record, and back.

`event_name` is `otel_llm.usage`. The trace and the span are in the record's own fields, its time is the end of the call.
Every other column that is not NULL is an attribute of the same name, as `wire_row` has its value. Of two records with one
identity (trace and span) the one with the higher `row_version` counts; with equal ones they are the same. Where `retracted`
is true, the row counts no more.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME

from otel_llm.fleet.wire_row import RETRACTED, USAGE_COLUMNS, Kind, Row
from otel_llm.version import __version__

EVENT_NAME: Final = "otel_llm.usage"
SCOPE: Final = "otel_llm"
_IDENTITY: Final = ("trace_id", "span_id")
_ATTRIBUTES: Final = {name: kind for name, kind in USAGE_COLUMNS.items() if name not in _IDENTITY}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_DECIMAL: Final = re.compile(r"-?\d{1,9}(\.\d{1,9})?")
_RANGES: Final = {Kind.BIG_INTEGER: 2**63, Kind.INTEGER: 2**31, Kind.SMALL_INTEGER: 2**8}


class NotARecord(ValueError):
    """It is not the record of a row: why, in one line."""


# --- there ------------------------------------------------------------------------------------------------------------


def log_record(row: Row) -> LogRecord:
    """The record of a row."""
    record = LogRecord(
        event_name=EVENT_NAME,
        time_unix_nano=_end_of(row),
        trace_id=bytes.fromhex(row["trace_id"]),
        span_id=bytes.fromhex(row["span_id"]),
    )
    attributes = record.attributes
    for name, kind in _ATTRIBUTES.items():
        if (value := row[name]) is not None:
            _write(attributes.add(key=name).value, kind, value)
    if row[RETRACTED]:
        attributes.add(key=RETRACTED).value.bool_value = True
    return record


def request(rows: Iterable[Row]) -> ExportLogsServiceRequest:
    """What an OTLP receiver is sent for rows: their records, by service."""
    records: dict[str | None, list[LogRecord]] = defaultdict(list)
    for row in rows:
        records[row["service_name"]].append(log_record(row))
    export = ExportLogsServiceRequest()
    for service, of_service in records.items():
        resource = export.resource_logs.add()
        if service is not None:
            resource.resource.attributes.add(key=SERVICE_NAME).value.string_value = service
        scope = resource.scope_logs.add()
        scope.scope.name, scope.scope.version = SCOPE, __version__
        scope.log_records.extend(of_service)
    return export


def _end_of(row: Row) -> int:
    """Nanoseconds since 1970; where a call has no end, its start."""
    start = (datetime.fromisoformat(row["started_at"]) - _EPOCH) // _MICROSECOND
    return min(max(start * 1000 + round((row["duration_ms"] or 0) * 1e6), 0), 2**64 - 1)


def _write(value: AnyValue, kind: Kind, given: Any) -> None:
    match kind:
        case Kind.BIG_INTEGER | Kind.INTEGER | Kind.SMALL_INTEGER:
            value.int_value = given
        case Kind.NUMBER:
            value.double_value = given
        case Kind.BOOLEAN:
            value.bool_value = given
        case Kind.TEXTS:
            value.array_value.SetInParent()
            for item in given:
                _write_item(value.array_value.values.add(), Kind.TEXT, item)
        case Kind.TEXT_MAP | Kind.NUMBER_MAP:
            value.kvlist_value.SetInParent()
            item_kind = Kind.TEXT if kind is Kind.TEXT_MAP else Kind.NUMBER
            for key, item in given.items():
                _write_item(value.kvlist_value.values.add(key=key).value, item_kind, item)
        case _:
            value.string_value = given


def _write_item(value: AnyValue, kind: Kind, given: Any) -> None:
    if given is not None:  # a value that is not set is OTLP's null
        _write(value, kind, given)


# --- back -------------------------------------------------------------------------------------------------------------


def is_usage(record: LogRecord) -> bool:
    """Whether it is to be the record of a row."""
    return record.event_name == EVENT_NAME


def row_of(record: LogRecord) -> Row:
    """The row that a record tells. What it has beside the columns of this version is left out. Raises NotARecord."""
    row: Row = dict.fromkeys(USAGE_COLUMNS)
    row["trace_id"], row["span_id"] = _id(record.trace_id, 16, "trace"), _id(record.span_id, 8, "span")
    row[RETRACTED] = False
    for attribute in record.attributes:
        name = attribute.key
        kind = Kind.BOOLEAN if name == RETRACTED else _ATTRIBUTES.get(name)
        if kind is not None:
            row[name] = _read(attribute.value, kind, name)
    if row["started_at"] is None:
        raise NotARecord("it has no started_at")
    if row["row_version"] is None:
        row["row_version"] = 1
    return row


def _id(given: bytes, length: int, what: str) -> str:
    if len(given) != length or not any(given):
        raise NotARecord(f"it has no {what} id")
    return given.hex()


_STRINGS: Final = (Kind.TEXT, Kind.JSON)


def _read(value: AnyValue, kind: Kind, name: str) -> Any:
    """The value of a column; None where it is not set."""
    which = value.WhichOneof("value")
    if which is None:
        return None
    given = getattr(value, which)
    if which == "string_value":
        if kind in _STRINGS:
            return given
        if kind is Kind.TIME and _TIME.fullmatch(given) and _is_time(given):
            return given
        if kind is Kind.DECIMAL and _DECIMAL.fullmatch(given):
            return given
    elif which == "int_value":
        limit = _RANGES.get(kind, 0)
        if (0 if kind is Kind.SMALL_INTEGER else -limit) <= given < limit:
            return given
        if kind is Kind.NUMBER:  # a Collector that has been through JSON may tell 2.0 so
            return float(given)
    elif which == "double_value":
        if kind is Kind.NUMBER:
            return given
    elif which == "bool_value":
        if kind is Kind.BOOLEAN:
            return given
    elif which == "array_value":
        if kind is Kind.TEXTS:
            return [_read(item, Kind.TEXT, name) for item in given.values]
    elif which == "kvlist_value" and kind in (Kind.TEXT_MAP, Kind.NUMBER_MAP):
        item_kind = Kind.TEXT if kind is Kind.TEXT_MAP else Kind.NUMBER
        return {key: _read(item, item_kind, name) for key, item in _items(given.values)}
    raise NotARecord(f"its {name} is not {kind.value}")


def _items(pairs: Iterable[KeyValue]) -> Iterator[tuple[str, AnyValue]]:
    for pair in pairs:
        yield pair.key, pair.value


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
