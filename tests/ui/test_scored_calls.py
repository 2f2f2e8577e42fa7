"""Calls by what was thought of them: a column, a filter, facets, and the values of a tag side by side."""

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
from otel_llm.ui.views.site import create_app
from tests.ui.conftest import HOSTILE, Ui

NAMES = ("helpful", HOSTILE)

_FILL = """
INSERT INTO llm_usage (started_at, trace_id, span_id, operation, status, request_model, request_id, usage_source, cost_usd, tags)
SELECT now() - to_seconds(n), printf('%032x', n // 2), printf('%016x', n), 'chat', 'ok', 'm', printf('r%d', n // 4), 'reported',
    0.001 * (1 + n % 2), MAP {'prompt': ['v1', 'v2'][1 + n % 2]}
FROM range(40) AS numbers (n)
"""
_SCORES = """
INSERT INTO llm_scores (trace_id, span_id, request_id, name, value, label, comment, source, scored_at)
SELECT *, 'because', 'app', now() FROM (VALUES
    (printf('%032x', 0), printf('%016x', 0), NULL, 'helpful', 1.0, NULL),      -- call 0
    (printf('%032x', 0), printf('%016x', 1), NULL, 'helpful', 0.25, NULL),     -- call 1
    (printf('%032x', 1), NULL, NULL, 'helpful', -1.0, NULL),                   -- calls 2 and 3, by their trace
    (printf('%032x', 2), printf('%016x', 999), NULL, 'helpful', 0.75, NULL),   -- calls 4 and 5, by a span that is no call
    (NULL, NULL, 'r2', 'helpful', NULL, 'Good'),                               -- calls 8 to 11, by their request
    (printf('%032x', 0), printf('%016x', 0), NULL, $1, NULL, 'bad')
) AS told (trace_id, span_id, request_id, name, value, label)
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(path)) as connection:
        connection.execute(_FILL)
        connection.execute(_SCORES, [HOSTILE])
    return path


@pytest.fixture
def page(store: Path) -> Iterator[TestClient]:
    backend, close = backend_at(store, None)
    yield TestClient(create_app(backend))
    close()


def _numbers(page: TestClient, *filters: str, name: str = "helpful") -> list[int]:
    """The calls that a filter lets through."""
    query = "&".join(f"score%3A{quote(name)}={quote(text)}" for text in filters)
    answer = page.get(f"/calls.json?{query}")
    assert answer.status_code == 200, answer.text
    return sorted(int(row["span_id"], 16) for row in answer.json())


def test_calls_are_filtered_by_what_was_thought_of_them(page: TestClient) -> None:
    assert _numbers(page, ">0") == [0, 1, 4, 5]
    assert _numbers(page, ">0.25") == [0, 4, 5]
    assert _numbers(page, ">=0.25") == [0, 1, 4, 5]
    assert _numbers(page, " <= 0 ") == [2, 3]
    assert _numbers(page, "<1e0") == [1, 2, 3, 4, 5]
    assert _numbers(page, "good") == [8, 9, 10, 11]
    assert _numbers(page, ">0", "good") == [0, 1, 4, 5, 8, 9, 10, 11]
    assert _numbers(page, "") == [6, 7, *range(12, 40)]
    assert _numbers(page, "", ">0.9") == [0, 6, 7, *range(12, 40)]
    assert _numbers(page, "bad", name=HOSTILE) == [0]
    assert _numbers(page, "x", name="nobody gave it") == []


@pytest.mark.parametrize("text", [">nan", "<inf", ">one", "<= 1; DROP TABLE llm_usage"])
def test_what_is_no_limit_is_a_word_or_refused(text: str, page: TestClient) -> None:
    answer = page.get(f"/calls.json?score%3Ahelpful={quote(text)}")
    assert answer.json() == [] if answer.status_code == 200 else "is no number" in answer.json()["error"]


def test_the_column_has_every_score_of_a_call(page: TestClient) -> None:
    scores = {
        int(row["span_id"], 16): [(s["name"], s["value"]) for s in row["scores"]]
        for row in page.get("/calls.json").json()
    }
    assert sorted(scores[0]) == sorted([("helpful", 1.0), (HOSTILE, None)])
    assert {number for number, found in scores.items() if ("helpful", -1.0) in found} == {2, 3}
    assert {number for number, found in scores.items() if ("helpful", 0.75) in found} == {4, 5}
    assert {number for number, found in scores.items() if ("helpful", None) in found} == {8, 9, 10, 11}
    assert '<span class="mark good" title="because">helpful 1</span>' in page.get("/calls").text
    assert "helpful 1</span>" not in page.get("/calls?columns=model").text


def test_a_filter_and_the_column_say_the_same(page: TestClient) -> None:
    shown = {
        int(row["span_id"], 16)
        for row in page.get("/calls.json").json()
        if any(score["name"] == "helpful" for score in row["scores"])
    }
    assert shown == set(range(40)) - set(_numbers(page, ""))


def test_what_can_be_filtered_by_is_counted(page: TestClient) -> None:
    facets = page.get("/calls/facets.json?score%3Ahelpful=good").json()
    counts = {row["value"]: row["calls"] for row in facets["score:helpful"]}
    assert counts == {">0": 4, "<=0": 2, "Good": 4, None: 30}
    for value, calls in counts.items():
        assert len(_numbers(page, value or "")) == calls
    assert HOSTILE not in page.get("/calls/facets").text


def test_the_values_of_a_tag_are_compared(page: TestClient) -> None:
    """The calls of v1 cost 0.001 and those of v2 0.002. Of v1 the calls 0, 2, 4, 8, 10 are scored, and of v2 1, 3, 5, 9, 11."""
    rows = {row["value"]: row for row in page.get("/compare.json?by=tag%3Aprompt").json()}
    assert {value: row["calls"] for value, row in rows.items()} == {"v1": 20, "v2": 20}
    one, other = (rows[value]["scores"]["helpful"] for value in ("v1", "v2"))
    assert (one["scores"], one["share"], round(one["cost_per_good"], 9)) == (4, 0.75, round(0.005 / 3, 9))
    assert (other["mean"], other["share"], round(other["cost_per_good"], 9)) == (0.0, 0.75, round(0.010 / 3, 9))
    shown = page.get("/compare?by=tag%3Aprompt").text
    assert "cost per good answer" in shown and "against the first" in shown
    assert page.get("/compare.json?by=nothing").status_code == 400


def test_a_clickhouse_says_that_it_has_none(clickhouse: str) -> None:
    backend, close = backend_at(ClickHouseURL.parse(clickhouse), None)
    page = TestClient(create_app(backend))
    answer = page.get("/calls.json?score%3Ahelpful=>0")
    assert answer.status_code == 400 and "scores are kept in the DuckDB store" in answer.json()["error"]
    assert "No scores: they are kept in the DuckDB store" in page.get("/calls/facets").text
    for path in ("/compare?by=model", "/compare.json?by=tag%3Ateam", "/calls.json"):
        assert page.get(path).status_code == 200, path
    close()


@pytest.mark.xdist_group("browser")
def test_a_score_is_a_filter_by_a_click(start_ui: Callable[..., Ui], store: Path, browser: Any) -> None:
    running = start_ui(store)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
    page.goto(running.url)
    page.goto(f"{running.base}/calls")
    page.locator(".facet a", has_text="0 or below").click()
    page.locator(".facet a[aria-checked=true]", has_text="0 or below").wait_for()
    assert page.locator("#rows [data-call]").count() == 2
    assert page.locator(".chip").inner_text().split() == ["score:helpful", "<=0", "×"]
    page.locator(".chip").click()
    page.get_by_label("helpful above or below").fill(">0.5")
    page.get_by_label("helpful above or below").press("Enter")
    page.locator(".chip", has_text=">0.5").wait_for()
    assert page.locator("#rows [data-call]").count() == 3
    axe_core = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    page.locator(".facet form").first.wait_for()
    for path in ("/calls?score%3Ahelpful=%3E0", "/compare?by=tag%3Aprompt"):
        page.goto(running.base + path)
        page.wait_for_load_state("load")
        results = axe_core.Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
    page.get_by_role("link", name="v2 against v1").click()
    page.get_by_text("cost per good answer, by helpful").first.wait_for()
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.evaluate("window.hacked") is None and faults == []
    page.close()
