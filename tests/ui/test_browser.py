"""Every page as somebody uses it, in a real Chromium. Nothing leaves the machine, nothing in the store runs."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import HOSTILE, Ui

Open = Callable[..., Any]

pytestmark = pytest.mark.xdist_group("browser")
"""One after the other in one process: see `browser`."""

PATHS = {
    "overview": "/",
    "overview by user": "/?by=user&measure=tokens",
    "calls": "/calls",
    "conversations": "/conversations",
    "users": "/conversations?by=user",
    "a conversation": "/conversations/talk-0",
    "a session": "/sessions/session/0",
    "a user": "/users/alice",
    "compare by a tag": "/compare?by=tag%3Ateam",
    "compare": "/compare?a=model%3Dgpt-4o-mini&b=model%3Dgpt-5-mini",
    "sql": "/sql?query=SELECT+request_model%2C+count(*)+AS+calls+FROM+llm_usage+GROUP+BY+ALL",
    "budgets": "/budgets",
    "health": "/health",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*PATHS, "a trace"])
def test_a_page_is_accessible_and_fits_a_phone(name: str, scheme: str, ui: Ui, open_page: Open) -> None:
    axe_core = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    page = open_page(PATHS.get(name) or _a_trace(ui), color_scheme=scheme)
    page.wait_for_load_state("load")
    page.locator("main").wait_for()
    results = axe_core.Axe().run(page.page)
    assert results.violations_count == 0, results.generate_report()
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def _a_trace(ui: Ui) -> str:
    """The page of the trace with a tree in it."""
    found = subprocess.run(
        ["otel-llm", "sql", "SELECT trace_id FROM spans WHERE name = 'invoke_workflow tyres' LIMIT 1", "--format", "csv"],
        env=ui.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return f"/traces/{found.stdout.split()[-1]}"


def test_every_name_and_every_bar_is_a_filter(open_page: Open) -> None:
    page = open_page("/")
    page.get_by_role("link", name="gpt-5-mini", exact=True).click()
    assert page.locator(".chip").inner_text().split() == ["model", "gpt-5-mini", "×"]
    page.locator(".chip").click()
    page.locator(".chip").wait_for(state="detached")
    page.locator(".chart a").first.click()
    page.wait_for_url("**/calls?**")
    assert "since=" in page.url and "model=" in page.url
    page.go_back()
    page.get_by_role("link", name="user", exact=True).click()
    page.get_by_role("link", name="Calls of alice").click()
    page.locator("#rows tr").first.wait_for()
    assert set(page.locator("#rows tr[data-row] td:nth-child(4)").all_inner_texts()) == {"alice"}


def test_the_period_is_picked(open_page: Open) -> None:
    page = open_page("/")
    page.locator(".menu summary").first.click()
    page.get_by_role("link", name="last 15 minutes").click()
    page.wait_for_url("**period=15m**")
    page.locator(".menu summary").first.click()
    page.locator("input[name=since]").fill("2020-01-01T00:00")
    page.locator("input[name=until]").fill("2020-01-02T00:00")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**since=2020**")
    assert "Nothing was called" in page.locator("main").inner_text()
    page.get_by_role("link", name="calls of all time").click()
    page.locator("tbody th a").first.wait_for()


def test_calls_are_filtered_searched_and_sorted(open_page: Open) -> None:
    page = open_page("/calls")
    page.locator(".facet").first.wait_for()
    page.locator(".facet a", has_text="growth").click()
    page.locator(".facet a[aria-checked=true]").wait_for()
    assert "tag%3Ateam=growth" in page.url
    assert page.locator(".facet a[aria-checked=true]").inner_text().split()[0] == "growth"
    page.goto(page.url.partition("?")[0])
    page.keyboard.press("/")
    page.keyboard.type("winter")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=winter**")
    assert page.locator("#rows tr[data-row]").count() == 1
    page.locator(".chip").click()
    page.locator(".chip").wait_for(state="detached")
    page.locator("thead a", has_text="cost").click()
    page.locator("th[aria-sort]", has_text="cost").wait_for()
    costs = [float(text.replace("$", "").replace(",", "")) for text in _column(page, "cost") if text.startswith("$")]
    assert costs == sorted(costs, reverse=True) and costs


def _column(page: Any, name: str) -> list[str]:
    names = [text.split(" ")[0].strip() for text in page.locator("thead th").all_inner_texts()]
    place = names.index(name) + 1
    found: list[str] = page.locator(f"#rows tr[data-row] td:nth-child({place})").all_inner_texts()
    return found


def test_columns_are_chosen(open_page: Open) -> None:
    page = open_page("/calls?columns=model,cost_usd")
    page.locator("summary", has_text="Columns").click()
    page.get_by_role("checkbox", name="provider").check()
    page.get_by_role("button", name="Show").last.click()
    page.wait_for_url("**provider**")
    assert "provider" in page.locator("thead").inner_text()


def test_the_table_goes_on_while_one_scrolls(open_page: Open) -> None:
    page = open_page("/calls")
    assert page.locator("#rows tr[data-row]").count() == 100
    page.mouse.wheel(0, 20_000)
    page.locator("#rows tr[data-row]").nth(120).wait_for()
    traces = page.locator("#rows tr[data-row] .time a").evaluate_all("links => links.map(link => link.href)")
    assert len(traces) == len(set(traces))


def test_a_call_arrives_while_one_looks(ui: Ui, open_page: Open) -> None:
    page = open_page("/calls?user=live")
    page.locator("#live-state[data-state=live]").wait_for()
    assert page.locator("#rows tr[data-row]").count() == 0
    script = """
import otel_llm, threading, urllib.request
from openai import OpenAI
client = OpenAI()
def wait():
    with otel_llm.llm_context(user_id="live"):
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Wait"}],
            extra_headers={"x-local-behaviour": "slow"})
waiting = threading.Thread(target=wait)
waiting.start()
urllib.request.urlopen(str(client.base_url).replace("v1/", "_waiting?n=1")).read()
with otel_llm.llm_context(user_id="live"):  # begins later, and ends before
    list(client.chat.completions.create(model="gpt-4o-mini", stream=True, messages=[{"role": "user", "content": "Hello"}]))
waiting.join()
"""
    process = subprocess.Popen(["opentelemetry-instrument", sys.executable, "-c", script], env=ui.environment)
    try:
        page.locator("#rows tr[data-row]").first.wait_for()
        page.locator("#running tr", has_text="gpt-5-mini").wait_for()
        with urllib.request.urlopen(ui.environment["OPENAI_BASE_URL"].replace("v1", "_release")):
            pass
        page.locator("#rows tr[data-row]").nth(1).wait_for()
        page.locator("#running tr").wait_for(state="detached")
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_a_trace_by_keys(ui: Ui, open_page: Open) -> None:
    page = open_page(_a_trace(ui))
    assert [text.split("\n")[0] for text in page.locator(".spans .name").all_inner_texts()] == [
        "invoke_workflow tyres", "step plan", "chat gpt-4o-mini", "execute_tool search", "chat gpt-5-mini",
    ]  # fmt: skip
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.locator("#detail h2", has_text="chat gpt-4o-mini").wait_for()
    assert "span=" in page.url
    message = page.locator("#detail .r-user")
    assert message.locator("li").all_inner_texts() == ["winter", "summer"]
    page.keyboard.press("k")
    page.locator("#detail h2", has_text="step plan").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("search")
    assert page.locator(".spans tr.faint").count() == 4
    page.go_back()
    page.locator("#detail h2", has_text="chat gpt-4o-mini").wait_for()


def test_what_a_tool_answered_is_text(ui: Ui, open_page: Open) -> None:
    page = open_page(_a_trace(ui))
    page.locator(".spans a", has_text="execute_tool").click()
    page.locator("#detail h3", has_text="Result").wait_for()
    assert HOSTILE in page.locator("#detail").inner_text()


def test_a_conversation_is_a_talk(open_page: Open) -> None:
    page = open_page("/conversations")
    page.get_by_role("link", name="talk/with a slash").click()
    assert page.locator("h1").inner_text() == "talk/with a slash"
    assert page.locator(".r-user .h").inner_text() == "Which tyres?"
    assert page.locator(".turns > li").count() == 4
    assert "so far $" in page.locator(".turns").inner_text()


def test_a_session_is_its_conversations_in_their_order(open_page: Open) -> None:
    page = open_page("/conversations?by=session")
    page.get_by_role("link", name="session/0").click()
    page.locator(".turns .of").first.wait_for()
    assert page.locator(".turns .of").all_inner_texts()[:3] == ["talk-0", "talk-2", "talk-0"]
    spent = [float(text.rpartition("$")[2]) for text in page.locator(".turns .meta").all_inner_texts()]
    assert spent == sorted(spent) and spent[0] > 0
    page.locator(".turns .of a").first.click()
    page.wait_for_url("**/conversations/talk-0")
    assert page.locator(".turns .of").count() == 0


def test_a_user_is_replayed(open_page: Open) -> None:
    page = open_page("/conversations?by=user")
    page.get_by_role("link", name="bob", exact=True).click()
    page.locator(".turns > li").first.wait_for()
    assert page.locator("h1").inner_text() == "bob"
    assert page.locator(".turns > li").count() == page.locator(".r-user").count() > 10


def test_sql_is_completed_run_and_drawn(open_page: Open) -> None:
    page = open_page("/sql")
    editor = page.locator("#query")
    editor.fill("SELECT request_model, count(*) AS calls FROM llm_us")
    editor.press("Control+Space")
    page.locator("#completions li", has_text="llm_usage").wait_for()
    editor.press("Tab")
    editor.press_sequentially(" GROUP BY ALL")
    editor.press("Escape")
    editor.press("Control+Enter")
    page.wait_for_url("**/sql?query=**")
    assert "gpt-4o-mini" in page.locator("#result table").inner_text()
    assert page.locator("#result .chart rect").count() > 1
    page.locator("#query").fill("SELECT * FROM read_text('/etc/hostname')")
    page.get_by_role("button", name="Run").click()
    assert "disabled by configuration" in page.get_by_role("alert").inner_text()


def test_light_and_dark_are_chosen(open_page: Open) -> None:
    page = open_page("/", color_scheme="light")
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(colour) != light
    page.reload()
    assert page.evaluate(colour) != light


def test_an_empty_store_says_what_to_do(start_ui: Callable[..., Ui], tmp_path: Path, browser: Any) -> None:
    running = start_ui(tmp_path / "empty.duckdb")
    page = browser.new_page()
    page.goto(running.url)
    assert "opentelemetry-instrument python app.py" in page.locator("main").inner_text()
    done = threading.Thread(target=running.traffic, args=(1,))
    done.start()
    page.locator(".tile").first.wait_for()  # by itself, as soon as there is a call
    done.join()
    page.close()
