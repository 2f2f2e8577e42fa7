"""Calls on the page as they end: each once, in every tab, however long it took and however much one has scrolled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from otel_llm.ui.live import Arrivals
from tests.ui.conftest import Ui

browser_test = pytest.mark.xdist_group("browser")
"""One after the other in one process: see `browser`."""


def test_each_call_comes_once_whatever_its_times_are() -> None:
    arrivals = Arrivals()
    came, number = arrivals.after(None, lambda: {"a": 1})
    assert came == []
    came, number = arrivals.after(number, lambda: {"b": 2, "a": 1})
    assert came == [2]
    came, number = arrivals.after(number, lambda: {"earlier": 0, "b": 2, "a": 1})
    assert came == [0]
    assert arrivals.after(number, lambda: {"earlier": 0}) == ([], number)


def test_what_another_page_has_seen_first_comes_all_the_same() -> None:
    arrivals = Arrivals()
    _, mine = arrivals.after(None, dict)

    def slowly() -> dict[str, int]:
        """Looks before the call is there, and is answered after another has seen it."""
        arrivals.after(mine, lambda: {"call": 1})
        return {}

    came, mine = arrivals.after(mine, slowly)
    assert came == []
    came, mine = arrivals.after(mine, lambda: {"call": 1})
    assert came == [1]


def test_a_page_from_before_a_restart_gets_what_came_lately() -> None:
    _, number = Arrivals().after(None, dict)
    came, _ = Arrivals().after(number, lambda: {"call": 1})
    assert came == [1]


@browser_test
def test_twenty_tabs_are_live_at_once(ui: Ui, open_page: Callable[..., Any]) -> None:
    """A browser has six connections to a host, and none of them may be taken for ever by each tab."""
    pages = [open_page("/calls?user=tabs")]
    pages += [_another_tab(pages[0], ui) for _ in range(19)]
    for page in pages:
        page.locator("#live-state[data-state=live]").wait_for()
    script = """
import otel_llm
from openai import OpenAI
with otel_llm.llm_context(user_id="tabs"):
    OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
"""
    subprocess.run(["opentelemetry-instrument", sys.executable, "-c", script], env=ui.environment, check=True)
    for page in pages:
        page.locator("#rows tr[data-row]").first.wait_for()


def _another_tab(page: Any, ui: Ui) -> Any:
    tab = page.context.new_page()
    tab.goto(f"{ui.base}/calls?user=tabs", wait_until="commit")
    return tab


@browser_test
def test_a_long_table_is_cut_and_goes_on_where_it_was_cut(
    start_ui: Callable[..., Ui], tmp_path: Path, browser: Any
) -> None:
    """Of 1,600 calls, each is there once when one has scrolled to the end; those of the same moment, too."""
    store = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(
            """INSERT INTO llm_usage (started_at, duration_ms, trace_id, span_id, operation, status, request_model)
            SELECT now() - to_seconds(3600 + n // 7), 10, printf('%032x', n), printf('%016x', n), 'chat', 'ok', 'm'
            FROM range(1600) AS numbers (n)"""
        )
    running = start_ui(store)
    page = browser.new_page()
    page.goto(running.url)
    page.goto(f"{running.base}/calls")
    page.locator("#live-state[data-state=live]").wait_for()
    rows = page.locator("#rows [data-call]")
    _scroll_until(page, "document.querySelectorAll('#rows [data-call]').length >= 1200")
    page.evaluate("scrollTo(0, 0)")
    running.traffic(1)
    page.wait_for_function("document.querySelectorAll('#rows [data-call]').length < 1100")
    _scroll_until(page, "!document.querySelector('#rows [hx-get]')")
    calls = rows.evaluate_all("rows => rows.map(row => row.dataset.call)")
    assert len(calls) == len(set(calls)) == 1600 + _traffic(running)
    page.close()


def _scroll_until(page: Any, condition: str) -> None:
    page.wait_for_function(f"""() => {{
        if ({condition}) return true;
        document.querySelector("#rows tr:last-child").scrollIntoView();
    }}""")


def _traffic(running: Ui) -> int:
    """How many calls there are that were not put there by SQL."""
    sql = "SELECT count(*) FROM llm_usage WHERE request_model <> 'm'"
    found = subprocess.run(
        ["otel-llm", "sql", sql, "--format", "csv"], env=running.environment, capture_output=True, text=True, check=True
    )
    return int(found.stdout.split()[-1])
