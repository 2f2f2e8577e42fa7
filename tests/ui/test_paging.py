"""Page after page of a list that goes on growing: each row once, whatever it is sorted by, on both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from otel_llm.cli.services.page_backend import backend_at
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from otel_llm.ui.page_questions import PAGE, SORTS
from otel_llm.ui.views.site import create_app
from tests.cli.conftest import send
from tests.fleet import clickhouse_server

CALLS = 730

_FILL = """
INSERT INTO llm_usage (started_at, duration_ms, time_to_first_chunk_ms, trace_id, span_id, operation, status, request_model,
    input_tokens, output_tokens, cost_usd, usage_source, conversation_id)
SELECT TIMESTAMPTZ '2026-11-20 12:00:00+00' + to_seconds(n // 3 * $2), CASE WHEN n % 9 <> 0 THEN (n * 7919 % 101) / 7 END,
    CASE WHEN n % 2 = 0 THEN (n % 13) / 3 * 1e-7 END, printf('%032x', n), printf('%s%015x', $1, n * 7919 % 1000), 'chat', 'ok', 'm',
    n % 5, CASE WHEN n % 3 <> 0 THEN n % 11 END, CASE WHEN n % 4 <> 0 THEN (n % 23) * 0.000000001 END, 'reported',
    printf('%s-%d', $1, n // 2)
FROM range($3) AS numbers (n)
"""


def _more(store: Path, mark: str, seconds: int, calls: int = CALLS) -> None:
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(_FILL, [mark, seconds, calls])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "usage.duckdb"
    _more(path, "a", 1)
    return path


@pytest.fixture(params=["duckdb", "clickhouse"])
def opened(request: pytest.FixtureRequest, store: Path) -> Iterator[tuple[TestClient, Callable[[], None]]]:
    """The page, and what adds calls to what it shows: as many again, and the highest and the lowest of them alike."""
    place: Any = store
    if request.param == "clickhouse":
        url = request.getfixturevalue("clickhouse")
        clickhouse_server.empty(url)
        send(store, url)
        place = ClickHouseURL.parse(url)
    backend, close = backend_at(place, None)

    def more() -> None:
        _more(store, "b", 2)
        if request.param == "clickhouse":
            send(store, place.text if hasattr(place, "text") else request.getfixturevalue("clickhouse"))
        elif hasattr(backend.engine, "has_news"):
            backend.engine.has_news()

    yield TestClient(create_app(backend)), more
    close()


def _pages(page: TestClient, path: str, identity: str, between: Callable[[], None] | None) -> list[str]:
    """The rows of all pages, in the order in which they come."""
    found: list[str] = []
    after = ""
    while True:
        answer = page.get(f"{path}{after}")
        assert answer.status_code == 200, answer.text
        rows = answer.json()
        found += [row[identity] for row in rows]
        if len(rows) < PAGE:
            return found
        if between is not None and after:
            between()
            between = None
        after = f"&after={quote(rows[-1]['mark'])}"


def test_every_order_has_each_call_once(opened: tuple[TestClient, Callable[[], None]]) -> None:
    page, more = opened
    for sort in SORTS:
        found = _pages(page, f"/calls.json?period=all&sort={sort}", "trace_id", None)
        assert len(found) == len(set(found)) == CALLS, sort
    first = _pages(page, "/calls.json?period=all&sort=cost_usd", "span_id", more)
    known = [span for span in first if span.startswith("a")]
    assert len(known) == len(set(known)) == CALLS and len(first) == len(set(first))


def test_the_list_of_conversations_has_each_once(opened: tuple[TestClient, Callable[[], None]]) -> None:
    page, more = opened
    found = _pages(page, "/conversations.json?period=all", "value", more)
    known = [name for name in found if name.startswith("a")]
    assert len(known) == len(set(known)) == CALLS / 2 and len(found) == len(set(found))


@pytest.mark.parametrize("mark", ["nan~x", "1e999~x", "1; DROP TABLE llm_usage~x", "x"])
def test_what_is_no_place_is_refused(mark: str, store: Path) -> None:
    backend, close = backend_at(store, None)
    answer = TestClient(create_app(backend)).get(f"/calls.json?sort=cost_usd&after={quote(mark)}")
    close()
    assert answer.status_code == 400 and "is no place in the list" in answer.json()["error"]
