"""What instrumentations of other languages send, as their own tests have it (`languages/`: each names its source), becomes rows.

Names and types of attributes are theirs; models are such as have a price, and what was said is called SECRET.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.fleet.serve.conftest import NOON, Server
from tests.store.conftest import query

PAYLOADS = {
    file.stem: json.loads(file.read_text()) for file in sorted(Path(__file__).with_name("languages").glob("*.json"))
}
MS = 10**6


def write(value: AnyValue, given: Any) -> None:
    """A value of JSON as OTLP has it."""
    if isinstance(given, bool):
        value.bool_value = given
    elif isinstance(given, int):
        value.int_value = given
    elif isinstance(given, float):
        value.double_value = given
    elif isinstance(given, list):
        for item in given:
            write(value.array_value.values.add(), item)
    else:
        value.string_value = given


def request(payload: dict[str, Any]) -> ExportTraceServiceRequest:
    """As an exporter sends it: what has ended first comes first."""
    found = ExportTraceServiceRequest()
    of_resource = found.resource_spans.add()
    for name, given in payload["resource"].items():
        write(of_resource.resource.attributes.add(key=name).value, given)
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = payload["scope"]
    for number, told in reversed([*enumerate(payload["spans"], 1)]):
        start = NOON + number * 1000 * MS
        span = of_scope.spans.add(
            trace_id=b"t" * 16,
            span_id=number.to_bytes(8, "big"),
            name=told["name"],
            kind=told.get("kind", 1),
            start_time_unix_nano=start,
            end_time_unix_nano=start + 500 * MS,
        )
        if "parent" in told:
            span.parent_span_id = (told["parent"] + 1).to_bytes(8, "big")
        for name, given in told["attributes"].items():
            write(span.attributes.add(key=name).value, given)
        for event in told.get("events", ()):
            added = span.events.add(name=event["name"], time_unix_nano=start + event["after_ms"] * MS)
            for name, given in event["attributes"].items():
                write(added.attributes.add(key=name).value, given)
    return found


def as_json(value: Any) -> Any:
    """A decimal with all its digits."""
    return format(value, "f") if isinstance(value, Decimal) else value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Has one receiver take a payload into a store of its own; returns that."""
    started: list[Server] = []

    def receive(name: str) -> Path:
        store = tmp_path_factory.mktemp(name) / "usage.duckdb"
        started.append(Server(store))
        headers = {"Content-Type": "application/x-protobuf"}
        body = request(PAYLOADS[name]).SerializeToString()
        answer = httpx.post(started[-1].url("/v1/traces"), content=body, headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")
        return store

    yield receive
    for each in started:
        each.kill()


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_language(name: str, server: Callable[[str], Path]) -> None:
    payload = PAYLOADS[name]
    store = server(name)
    columns = sorted({column for row in payload["rows"] for column in row})
    rows = query(store, f"SELECT {', '.join(columns)} FROM llm_usage ORDER BY started_at")
    found = [dict(zip(columns, map(as_json, row), strict=True)) for row in rows]
    assert found == [dict.fromkeys(columns) | row for row in payload["rows"]]
    assert query(store, "SELECT DISTINCT service_name, instrumentation FROM llm_usage") == [
        (payload["resource"]["service.name"], payload["scope"])
    ]
    assert [one for (one,) in query(store, "SELECT operation FROM spans ORDER BY start_ns")] == payload["operations"]
    assert query(store, "SELECT name FROM spans WHERE contains(attributes::VARCHAR || events::VARCHAR, 'SECRET')") == []
