"""The cost of a call with its terms: they add up to what the account has, or the page says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from otel_llm.cli import main
from otel_llm.cli.services.page_backend import backend_at
from otel_llm.settings import reload
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from otel_llm.ui.views.site import create_app
from tests.ui.conftest import Ui
from tests.ui.test_browser import _a_trace

TRACE = "a" * 32

CALLS = {
    "plain": {"input_tokens": 1234, "output_tokens": 77},
    "cached": {"input_tokens": 1234, "output_tokens": 77, "cache_read_tokens": 1024, "reasoning_tokens": 64},
    "audio": {
        "request_model": "gpt-realtime", "input_tokens": 900, "output_tokens": 500, "audio_input_tokens": 700,
        "audio_output_tokens": 333, "cache_read_tokens": 800, "audio_cache_read_tokens": 650,
    },
    "written to a cache": {
        "provider": "anthropic", "request_model": "claude-sonnet-4-5", "input_tokens": 9000, "output_tokens": 11,
        "cache_read_tokens": 4000, "cache_write_tokens": 3000, "cache_write_1h_tokens": 1000,
    },
    "long": {
        "provider": "gcp.gemini", "request_model": "gemini-2.5-pro", "input_tokens": 250_001, "output_tokens": 3,
        "cache_read_tokens": 1,
    },
    "images": {
        "operation": "image_generation", "request_model": "gpt-image-1", "input_tokens": 50, "output_tokens": 4000,
    },
    "searches": {"input_tokens": 100, "output_tokens": 10, "units": "MAP {'web_search_calls': 3.0}"},
    "seconds": {
        "provider": "groq", "request_model": "whisper-large-v3", "operation": "transcription",
        "units": "MAP {'audio_seconds': 2.5}",
    },
}  # fmt: skip


def _row(number: int, more: dict[str, Any]) -> str:
    """An INSERT of a call without a cost."""
    values = {
        "started_at": "now()", "trace_id": f"'{TRACE}'", "span_id": f"'{number:016x}'", "operation": "'chat'", "status": "'ok'",
        "provider": "'openai'", "request_model": "'gpt-5-mini'", "usage_source": "'reported'",
    }  # fmt: skip
    for name, value in more.items():
        is_text = isinstance(value, str) and not value.startswith("MAP")
        values[name] = f"'{value}'" if is_text else str(value)
    return f"INSERT INTO llm_usage ({', '.join(values)}) VALUES ({', '.join(values.values())})"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("OTEL_LLM_PRICES", raising=False)
    monkeypatch.setenv("OTEL_LLM_STORE", str(tmp_path / "usage.duckdb"))
    reload()
    path = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(path)) as connection:
        for number, more in enumerate(CALLS.values()):
            connection.execute(_row(number, more))
    assert main(["reprice", "--all"]) == 0
    yield path
    monkeypatch.undo()
    reload()


@pytest.fixture
def page(store: Path) -> Iterator[TestClient]:
    backend, close = backend_at(store, None)
    yield TestClient(create_app(backend))
    close()


def _cost(page: TestClient, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = page.get(f"/traces/{TRACE}/spans/{number:016x}.json").json()["cost"]
    return found


def test_the_terms_add_up_to_what_the_account_has(page: TestClient) -> None:
    for number, name in enumerate(CALLS):
        cost = _cost(page, number)
        assert cost["usd"] is not None, (name, cost)
        assert cost["sum_usd"] == cost["usd"], (name, cost)
        assert sum(one["number"] for one in cost["terms"] if one["kind"].endswith("_tokens")) == sum(
            CALLS[name].get(side, 0)  # type: ignore[attr-defined]
            for side in ("input_tokens", "output_tokens")
        ), name


def test_what_is_cached_is_not_in_the_input_once_more(page: TestClient) -> None:
    numbers = {one["kind"]: one["number"] for one in _cost(page, 1)["terms"]}
    assert numbers == {"input_tokens": 210, "output_tokens": 13, "cache_read_tokens": 1024, "reasoning_tokens": 64}
    assert "changed since" not in _said(page)
    assert "input from the cache" in page.get(f"/traces/{TRACE}/spans/{1:016x}").text


def _set(store: Path, assignments: str) -> None:
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(f"UPDATE llm_usage SET {assignments}")


def _said(page: TestClient) -> str:
    return " ".join(page.get(f"/traces/{TRACE}/spans/{0:016x}").text.split())


def test_a_price_that_has_changed_since_is_said(page: TestClient, store: Path) -> None:
    _set(store, "cost_usd = cost_usd + 0.000000001")
    assert "a price has changed since" in _said(page)


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        ("cost_usd = 5, price_source = 'reported'", "reported by the provider"),
        ("cost_usd = 5, price_source = 'litellm'", "computed by LiteLLM"),
        ("cost_usd = 0, price_source = 'cache hit, not billed'", "cache hit, not billed"),
        ("cost_usd = NULL, price_source = 'refused, not billed'", "refused, not billed"),
        ("cost_usd = NULL, price_source = 'no price for x'", "otel-llm prices update"),
        ("cost_usd = NULL, price_source = NULL", "an older version left none"),
        ("request_model = 'forgotten'", "not known here any more: no price for openai/forgotten"),
    ],
)
def test_a_cost_without_terms_says_where_it_comes_from(
    assignments: str, said: str, page: TestClient, store: Path
) -> None:
    _set(store, assignments)
    assert said in _said(page)
    assert _cost(page)["terms"] == []


def test_a_price_of_ones_own_is_a_term(
    page: TestClient, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('[[price]]\nmodel = "gpt-5-mini"\ninput = 1\noutput = 2\ncall = 0.5\n')
    monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
    reload()
    assert main(["reprice", "--all"]) == 0
    backend, close = backend_at(store, None)
    cost = _cost(TestClient(create_app(backend)))
    close()
    assert (cost["sum_usd"], cost["usd"], cost["source"]) == (0.501388, 0.501388, "override")
    assert [(one["kind"], one["usd"]) for one in cost["terms"]] == [
        ("call", 0.5), ("input_tokens", 0.001234), ("output_tokens", 0.000154),
    ]  # fmt: skip


@pytest.mark.xdist_group("browser")
def test_the_terms_are_on_the_page(ui: Ui, open_page: Callable[..., Any]) -> None:
    page = open_page(_a_trace(ui))
    page.locator(".spans a", has_text="chat gpt-4o-mini").click()
    page.locator(".terms .sum").wait_for()
    amounts = [
        text.replace("$", "").replace(",", "") for text in page.locator(".terms td:last-child").all_inner_texts()
    ]
    assert round(sum(map(float, amounts[:-1])), 9) == float(amounts[-1]) > 0
    axe_core = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    results = axe_core.Axe().run(page.page)
    assert results.violations_count == 0, results.generate_report()
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
