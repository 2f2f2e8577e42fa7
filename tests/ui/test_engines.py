"""The pages say the same of a DuckDB store and of a ClickHouse that was sent what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from otel_llm.cli.services.page_backend import backend_at
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from otel_llm.ui.views.site import create_app
from tests.cli.conftest import send
from tests.fleet import clickhouse_server

_FILL = """
INSERT INTO llm_usage (started_at, duration_ms, time_to_first_chunk_ms, trace_id, span_id, service_name, operation, provider,
    request_model, response_model, status, error_type, input_tokens, output_tokens, cache_read_tokens, usage_source, cost_usd,
    price_source, module, user_id, conversation_id, session_id, tags, input_messages, output_messages)
SELECT now() - to_minutes(n * 37), 100 + n * 7 % 300, CASE WHEN n % 2 = 0 THEN 50 + n % 40 END, printf('%032x', n // 3),
    printf('%016x', n), 'shop', 'chat', 'openai', ['gpt-5', 'gpt-4o', NULL][1 + n % 3], ['gpt-5', 'gpt-4o', 'x'][1 + n % 3],
    CASE WHEN n % 7 = 0 THEN 'error' ELSE 'ok' END, CASE WHEN n % 7 = 0 THEN '429' END, 10 + n, CASE WHEN n % 5 <> 0 THEN n END,
    n % 4, CASE WHEN n % 11 = 0 THEN 'estimated' ELSE 'reported' END, CASE WHEN n % 6 <> 0 THEN n * 0.000000123 END,
    CASE WHEN n % 6 <> 0 THEN 'genai-prices' ELSE 'no price for x' END, ['chat', 'search'][1 + n % 2],
    ['alice', 'bob', NULL][1 + n % 3], printf('talk-%d', n // 4), printf('session-%d', n // 12),
    MAP {'team': ['core', 'it''s'][1 + n % 2]},
    CASE WHEN n % 4 = 0 THEN '[{"role": "user", "parts": [{"type": "text", "content": "Winter tyres?"}]}]' END,
    CASE WHEN n % 4 = 0 THEN '[{"role": "assistant", "parts": [{"type": "text", "content": "Yes"}]}]' END
FROM (SELECT range AS n FROM range(150))
"""
_SPANS = """
INSERT INTO spans (trace_id, span_id, parent_span_id, name, kind, start_ns, end_ns, started_at, duration_ms, status_code, status,
    operation, service_name, attributes)
SELECT trace_id, span_id, NULL, 'chat', 'CLIENT', epoch_us(started_at) * 1000, epoch_us(started_at) * 1000 + 5000000, started_at,
    5.0, 'OK', status, operation, service_name, json_object('gen_ai.operation.name', 'chat', 'error.type', error_type)
FROM llm_usage WHERE trace_id < printf('%032x', 20)
"""

PATHS = [
    "/overview.json?period=all",
    "/overview.json?period=24h&by=user",
    "/overview.json?period=30d&by=tag:team&measure=calls",
    "/calls.json?period=all",
    "/calls.json?period=all&user=&tag%3Ateam=it%27s",
    "/calls.json?period=all&sort=cost_usd&model=gpt-5&model=x",
    "/calls.json?period=all&q=winter",
    "/calls/facets.json?period=all&user=alice",
    "/conversations.json?period=all",
    "/conversations.json?period=all&by=user",
    "/conversations/talk-3.json",
    "/sessions/session-2.json",
    "/users/alice.json",
    "/traces/00000000000000000000000000000003.json",
    "/traces/00000000000000000000000000000030.json",
    "/traces/00000000000000000000000000000003/spans/0000000000000009.json",
    "/compare.json?by=tag%3Ateam&period=all",
    "/compare.json?a=period%3Dall%26model%3Dgpt-5&b=period%3Dall%26model%3Dgpt-4o",
    "/sql.json?query=SELECT+user_id,+count(*)+AS+calls+FROM+llm_usage+GROUP+BY+user_id+ORDER+BY+calls,user_id",
]
HTML = ["/", "/?period=all", "/calls?period=all", "/conversations", "/sql", "/traces/00000000000000000000000000000003"]


@pytest.fixture
def pages(tmp_path: Path, clickhouse: str) -> Iterator[tuple[TestClient, TestClient]]:
    """The page on a store, and on a ClickHouse."""
    store = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(_FILL)
        connection.execute(_SPANS)
    clickhouse_server.empty(clickhouse)
    send(store, clickhouse)
    opened = [backend_at(place, None) for place in (store, ClickHouseURL.parse(clickhouse))]
    yield tuple(TestClient(create_app(backend)) for backend, _ in opened)  # type: ignore[misc]
    for _, close in opened:
        close()


def test_every_page_says_the_same(pages: tuple[TestClient, TestClient]) -> None:
    for path in PATHS:
        one, other = (client.get(path) for client in pages)
        assert (one.status_code, other.status_code) == (200, 200), (path, one.text[:500], other.text[:500])
        assert _rounded(one.json()) == _rounded(other.json()), path
    for path in HTML:
        assert [client.get(path).status_code for client in pages] == [200, 200], path


def _rounded(value: Any) -> Any:
    """Fractions to twelve digits: each engine adds them up in an order of its own. Text that is JSON as what it says."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items() if key not in ("since", "end", "begin")}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, str) and value[:1] in "[{" and value:
        return json.loads(value)
    return value
