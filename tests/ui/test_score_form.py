"""Scores in the page: the one thing that it writes, and what it says of them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from otel_llm.cli.services.page_backend import backend_at
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from otel_llm.store.reader import connect
from otel_llm.ui.gate import form_token
from otel_llm.ui.views.site import create_app
from tests.ui.conftest import HOSTILE, Ui
from tests.ui.test_browser import _a_trace

TRACE, SPAN, OTHER = "a" * 32, "b" * 16, "c" * 16
TOKEN = "a token of some length"

_FILL = f"""
INSERT INTO llm_usage (started_at, trace_id, span_id, operation, status, request_model, request_id, usage_source, cost_usd)
SELECT now(), printf('%032x', n), printf('%016x', n), 'chat', 'ok', ['v1', 'v2'][1 + n % 2], printf('r%d', n), 'reported', 0.001
FROM range(100) AS numbers (n)
UNION ALL SELECT now(), '{TRACE}', '{SPAN}', 'chat', 'ok', 'v0', 'r', 'reported', 0.003
UNION ALL SELECT now(), '{TRACE}', '{OTHER}', 'chat', 'ok', 'v0', 'r', 'reported', 0.004
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(path)) as connection:
        connection.execute(_FILL)
    return path


@pytest.fixture
def page(store: Path) -> Iterator[TestClient]:
    backend, close = backend_at(store, TOKEN)
    client = TestClient(create_app(backend), base_url="http://127.0.0.1:8765", follow_redirects=False)
    client.get(f"/?token={TOKEN}")
    yield client
    close()


def stored(store: Path) -> list[tuple[Any, ...]]:
    with connect(store) as connection:
        return connection.execute(
            "SELECT trace_id, span_id, name, value, label, comment, source FROM llm_scores ORDER BY ALL"
        ).fetchall()


def form(**fields: str) -> dict[str, str]:
    return {"csrf": form_token(TOKEN), "trace_id": TRACE, "span_id": SPAN, **fields}


def test_a_thumb_is_kept_and_shown(page: TestClient, store: Path) -> None:
    answer = page.post("/scores", data=form(thumb="up"))
    assert (answer.status_code, answer.headers["location"]) == (303, f"/traces/{TRACE}?span={SPAN}")
    assert stored(store) == [(TRACE, SPAN, "thumb", 1.0, "good", None, "ui")]
    answer = page.post("/scores", data=form(thumb="down"), headers={"hx-request": "true"})
    assert answer.status_code == 200 and f'<span id="marks-{SPAN}" class="marks" hx-swap-oob="true">' in answer.text
    assert stored(store) == [(TRACE, SPAN, "thumb", 0.0, "bad", None, "ui")], "a change of mind"
    (one,) = [span for span in page.get(f"/traces/{TRACE}.json").json() if span["span_id"] == SPAN]
    assert [(score["name"], score["value"], score["good"]) for score in one["scores"]] == [("thumb", 0.0, False)]


def test_what_is_typed_is_kept_as_text_and_shown_as_text(page: TestClient, store: Path) -> None:
    assert page.post("/scores", data=form(name=HOSTILE, value="0.5", label=HOSTILE, comment=HOSTILE)).status_code == 303
    assert stored(store) == [(TRACE, SPAN, HOSTILE, 0.5, HOSTILE, HOSTILE, "ui")]
    for path in (f"/traces/{TRACE}", f"/traces/{TRACE}/spans/{SPAN}", "/compare?a=model%3Dv0&b=model%3Dv1"):
        shown = page.get(path).text
        assert HOSTILE not in shown and html.escape(HOSTILE, quote=False).replace("'", "&#39;") in shown


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"csrf": "", "thumb": "up"}, "not of this page"),
        ({"csrf": form_token("another"), "thumb": "up"}, "not of this page"),
        ({"csrf": "é", "thumb": "up"}, "not of this page"),
        ({"trace_id": "f" * 32, "thumb": "up"}, "there is no span"),
        ({"span_id": "", "thumb": "up"}, "there is no span"),
        ({"thumb": "sideways"}, "name is empty"),
        ({"name": "n"}, "neither a value nor a label"),
        ({"name": "n", "value": "nan"}, "is no number"),
        ({"name": "n", "value": "five"}, "is no number"),
        ({"name": "n" * 257, "value": "1"}, "257 characters"),
    ],
)
def test_what_is_no_score_is_refused(fields: dict[str, str], said: str, page: TestClient, store: Path) -> None:
    answer = page.post("/scores", data=form(**fields))
    assert answer.status_code == 400 and said in answer.text
    assert stored(store) == []


def test_nobody_else_scores(page: TestClient, store: Path) -> None:
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}):
        assert page.post("/scores", data=form(thumb="up"), headers=headers).status_code == 403
    page.cookies.clear()
    assert page.post("/scores", data=form(thumb="up")).status_code == 401
    page.get(f"/?token={TOKEN}")
    assert page.get("/scores").status_code in (404, 405)
    assert page.post("/scores", content=b"x" * 2**19).status_code == 413
    assert stored(store) == []


def test_what_a_good_answer_costs(page: TestClient, store: Path) -> None:
    """Of 50 calls of v1 all are scored and 10 are good; of 50 of v2 all and 40. A call costs 0.001."""
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(
            """INSERT INTO llm_scores (trace_id, span_id, request_id, name, value, label, source, scored_at)
            SELECT CASE WHEN n % 3 < 2 THEN printf('%032x', n) END, CASE WHEN n % 3 = 0 THEN printf('%016x', n) END,
                CASE WHEN n % 3 = 2 THEN printf('r%d', n) END, 'helpful',
                CASE WHEN n % 2 = 0 THEN (n < 20)::INT ELSE (n < 80)::INT END, NULL, 'app', now()
            FROM range(100) AS numbers (n)"""
        )
        connection.execute(
            f"""INSERT INTO llm_scores (trace_id, span_id, name, label, source, scored_at)
            VALUES ('{TRACE}', '{"d" * 16}', 'tone', 'Good', 'app', now()), ('{TRACE}', '{SPAN}', 'tone', 'bad', 'ui', now())"""
        )
    rows = {row["name"]: row for row in page.get("/compare.json?a=model%3Dv1&b=model%3Dv2").json()}
    mean, cost = rows["score_mean:helpful"], rows["score_cost_per_good:helpful"]
    assert (mean["a"], mean["b"], mean["verdict"]) == (0.2, 0.8, "more than noise")
    assert rows["score_share:helpful"]["a"] == 0.2
    assert (round(cost["a"], 9), round(cost["b"], 9)) == (0.005, 0.00125)
    rows = {row["name"]: row for row in page.get("/compare.json?a=model%3Dv0&b=model%3Dv1").json()}
    assert rows["score_share:tone"]["verdict"] == ""
    # That of a span which is no call is about all the trace's calls: 0.007, and one of two is good.
    assert (rows["score_share:tone"]["a"], rows["score_cost_per_good:tone"]["a"]) == (0.5, 0.007)
    assert "score_mean:tone" not in rows
    shown = page.get("/compare?a=model%3Dv1&b=model%3Dv2").text
    assert "cost per good answer, by helpful" in shown and "$0.005" in shown


def test_the_scores_of_a_request_are_on_the_page_of_its_trace(page: TestClient, store: Path) -> None:
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(
            "INSERT INTO llm_scores (request_id, name, value, source, scored_at) VALUES ('r', 'whole', 1, 'app', now())"
        )
    assert re.search(r'<p class="marks"><span class="mark good"[^>]*>whole 1</span>', page.get(f"/traces/{TRACE}").text)


def test_without_the_table_the_pages_do_without(store: Path) -> None:
    """As in a ClickHouse, and in a backup of an earlier version."""
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute("DROP TABLE llm_scores")
    backend, close = backend_at(store, None)
    page = TestClient(create_app(backend))
    for path in (f"/traces/{TRACE}", f"/traces/{TRACE}.json", "/compare?a=model%3Dv0&b=model%3Dv1"):
        assert page.get(path).status_code == 200
    close()


def test_a_thumb_and_a_number_in_a_browser(ui: Ui, open_page: Callable[..., Any]) -> None:
    page = open_page(_a_trace(ui))
    page.locator(".spans a", has_text="chat gpt-4o-mini").click()
    page.locator("#detail h2", has_text="chat gpt-4o-mini").wait_for()
    page.get_by_role("button", name="Good answer").click()
    row = page.locator(".spans tr", has_text="chat gpt-4o-mini")
    row.locator(".mark.good", has_text="thumb 1 good").wait_for()
    page.get_by_role("button", name="Bad answer").click()
    row.locator(".mark", has_text="thumb 0 bad").wait_for()
    page.locator("summary", has_text="Another score").click()
    page.get_by_label("name").fill(HOSTILE)
    page.get_by_label("number").fill("0.75")
    page.get_by_label("comment").fill(HOSTILE)
    page.get_by_label("comment").press("Enter")
    row.locator(".mark", has_text="0.75").wait_for()
    assert page.locator("#detail .facts", has_text="0.75").locator("td", has_text=HOSTILE).count() == 1
    page.reload()
    assert page.locator(".spans .mark").count() == 2
    axe_core = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    results = axe_core.Axe().run(page.page)
    assert results.violations_count == 0, results.generate_report()
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
