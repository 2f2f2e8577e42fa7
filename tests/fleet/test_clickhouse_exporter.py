"""A real Collector's exporter for ClickHouse, with clickhouse.yaml, and ClickHouse's engine: the tables take what it writes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from otel_llm.fleet.usage_log_record import request
from tests.fleet.native_clickhouse import native_clickhouse
from tests.fleet.rows import bare_call, full_call
from tests.fleet.ship.test_clickhouse import as_there
from tests.integration.collector import Collector, eventually, needs_collector
from tests.integration.ports import free_ports
from tests.integration.test_collector import EMAIL, record, records_of, send, span, spans_of

pytestmark = needs_collector

SOON = (
    "exporters::clickhouse::compress: none",
    "exporters::clickhouse::sending_queue::batch::flush_timeout: 50ms",
    "exporters::clickhouse::retry_on_failure: {initial_interval: 20ms, max_interval: 200ms}",
)


@pytest.mark.parametrize("there_first", [True, False], ids=["ClickHouse is there", "ClickHouse comes later"])
def test_spans_and_records_arrive_and_a_call_counts_once(there_first: bool, tmp_path: Path) -> None:
    pytest.importorskip("chdb", reason="ClickHouse is NOT TESTED here: pip install chdb")
    calls = [full_call(1, tags={"customer": EMAIL}), bare_call(2)]
    port, nobody = free_ports(2)
    environment = {"CLICKHOUSE_ENDPOINT": f"http://127.0.0.1:{port}", "JAEGER_ENDPOINT": f"localhost:{nobody}"}
    gateway = Collector(tmp_path, "gateway.yaml", "clickhouse.yaml", changes=SOON, **environment)
    with ExitStack() as running:
        if not there_first:
            running.enter_context(gateway)
        clickhouse = running.enter_context(native_clickhouse(port))
        if there_first:
            running.enter_context(gateway)
        url = gateway.endpoint("http/protobuf")
        send(url, spans_of(span({"gen_ai.input.messages": f"I am {EMAIL}", "user.id": EMAIL}, failed=False)))
        send(url, records_of(record({"note": EMAIL}, event="app.note")))
        for _ in range(2):
            send(url, request(calls))
        eventually(lambda: clickhouse.rows("SELECT count() FROM otel.otel_logs") == [[5]], "not every record arrives")
        eventually(lambda: clickhouse.rows("SELECT count() FROM otel.otel_traces") == [[1]], "no span arrives")
        named = clickhouse.rows("SELECT EventName <> '', count() FROM otel.otel_logs GROUP BY ALL")
        assert named == [[int(there_first), 5]]  # as this version of the exporter has it
        assert clickhouse.rows(
            "SELECT SpanAttributes['gen_ai.input.messages'], SpanAttributes['user.id'], ServiceName FROM otel.otel_traces"
        ) == [["I am ****", EMAIL, "shop"]]
        assert clickhouse.rows(
            "SELECT LogAttributes['note'] FROM otel.otel_logs WHERE mapContains(LogAttributes, 'note')"
        ) == [["****"]]
        exact = (
            "trace_id",
            "span_id",
            "tags",
            "units",
            "finish_reasons",
            "stream",
            "duration_ms",
            "input_tokens",
            "row_version",
        )
        found = clickhouse.rows(f"SELECT {', '.join(exact)} FROM otel.llm_usage_final ORDER BY trace_id")
        assert found == [[as_there(call)[column] for column in exact] for call in calls]
        assert found[0][2] == {"customer": EMAIL}
        ((costs, times),) = clickhouse.rows(
            "SELECT groupArray(toString(cost_usd)), groupArray(formatDateTime(started_at, '%Y-%m-%dT%H:%i:%S.%fZ'))"
            " FROM (SELECT * FROM otel.llm_usage_final ORDER BY trace_id)"
        )
        assert costs == [call["cost_usd"] for call in calls if call["cost_usd"] is not None]
        assert times == [call["started_at"] for call in calls]
