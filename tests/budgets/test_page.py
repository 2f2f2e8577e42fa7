"""The page of budgets, and the line on the overview."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from otel_llm.budgets.alerts.crossings import LOG, Crossing, CrossingLog
from otel_llm.budgets.periods import period
from otel_llm.budgets.rules import Budget, Per, Unit
from otel_llm.budgets.spending import Spending
from otel_llm.cli.services.page_backend import backend_at
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.settings import reload
from otel_llm.store.paths import StorePaths
from otel_llm.ui.views.site import create_app
from tests.budgets.conftest import Write, both_engines
from tests.budgets.test_command import CALLS, TWO, call
from tests.cli.conftest import Fill, Run

HOSTILE = "<script>alert(1)</script>"
Pages = Callable[..., TestClient]


@pytest.fixture
def pages(fill: Fill, store_path: Path, request: pytest.FixtureRequest) -> Pages:
    """The page on a store with calls."""

    def open_pages(*calls: object) -> TestClient:
        place = fill(*calls)
        reload()
        backend, close = backend_at(place if isinstance(place, Path) else ClickHouseURL.parse(place), None)
        request.addfinalizer(close)
        return TestClient(create_app(backend))

    return open_pages


@both_engines
def test_it_says_what_the_command_says(budgets: Write, pages: Pages, run: Run) -> None:
    import json

    budgets(TWO)
    client = pages(*CALLS)
    shown = client.get("/budgets.json").json()
    said = json.loads(run("budget", "--json").out)
    assert [{**row, "forecast": None, "start": None, "end": None} for row in shown["budgets"]] == [
        {**row, "forecast": None, "start": None, "end": None} for row in said
    ]
    html = client.get("/budgets").text
    assert "per day, each user_id; stops calls" in html and 'status bad">stopped' in html and "$7.50" in html


@both_engines
def test_the_overview_has_a_line_when_one_is_crossed(budgets: Write, pages: Pages) -> None:
    budgets(TWO)
    client = pages(*CALLS)
    html = re.sub(r"<[^>]+>", "", client.get("/").text)
    assert "Budget users, user_id = alice: 100 % is spent, and 2 more above a threshold" in html
    assert [row["value"] for row in client.get("/overview.json").json()["crossed_budgets"]] == ["alice", None, "bob"]


def test_nothing_is_crossed(budgets: Write, pages: Pages) -> None:
    budgets(TWO)
    client = pages(call("alice", "0.1"))
    assert "above a threshold" not in client.get("/").text and "is spent</a>" not in client.get("/").text


def test_without_budgets_the_page_names_the_command(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_LLM_BUDGETS", raising=False)
    client = pages(*CALLS)
    html = client.get("/budgets").text
    assert "No budgets are set" in html and "OTEL_LLM_BUDGETS=budgets.toml otel-llm budget" in html
    assert client.get("/budgets.json").json() == {"mistakes": [], "budgets": [], "crossings": []}
    assert "Budget" not in re.sub(r"<nav.*?</nav>", "", client.get("/").text, flags=re.DOTALL)


def test_the_file_is_read_again(budgets: Write, pages: Pages) -> None:
    file = budgets(TWO)
    client = pages(*CALLS)
    file.write_text(f"{TWO}[[budget]]\nname = 'wrong'\nlimit_usd = 1\n")
    shown = client.get("/budgets.json").json()
    assert len(shown["budgets"]) == 4
    assert shown["mistakes"] == [f"{file}, budget 'wrong': no per; add per = \"month\""]
    assert "budget &#39;wrong&#39;: no per" in client.get("/budgets").text
    file.unlink()
    assert "No budget is right in the file" in client.get("/budgets").text


def test_what_was_crossed(budgets: Write, pages: Pages, store_path: Path) -> None:
    budgets(TWO)
    client = pages(*CALLS)
    now = datetime.now(UTC)
    budget = Budget("b", Unit.usd, Decimal(1), Per.day, each="user_id", time_zone="UTC")
    spending = Spending(budget, HOSTILE, None, period(Per.day, now, UTC), Decimal("0.9"), 3, 0, 0)
    told, below = Crossing.of(spending, 0.8, now), Crossing.of(spending, 0.5, now)
    log = CrossingLog(StorePaths.of(store_path))
    log.add([(below, []), (told, [LOG, "hook"])])
    log.told(told, LOG)
    html = client.get("/budgets").text
    assert HOSTILE not in html and "80 % is spent, 0.9 of 1 USD" in html and "the log, hook (waiting)" in html
    (one,) = client.get("/budgets.json").json()["crossings"]
    assert (one["id"], one["text"]) == (told.id, told.text)


def test_runs_are_links(budgets: Write, pages: Pages) -> None:
    budgets(
        '[[budget]]\nname = "run"\nlimit_usd = 1\nper = "trace"\n'
        '[[budget]]\nname = "talk"\nlimit_usd = 1\nper = "conversation"\nwhere = { module = ["a", "b"] }\n'
    )
    html = pages(call("alice", conversation_id="talk/1 &", module="a")).get("/budgets").text
    assert f'href="/traces/{0:032x}"' in html and 'href="/conversations/talk/1%20%26"' in html
    assert "per conversation, module = a or b" in html


def test_many_values(budgets: Write, pages: Pages) -> None:
    budgets(TWO)
    client = pages(*[call(f"user {number}") for number in range(15)])
    assert len([row for row in client.get("/budgets.json").json()["budgets"] if row["budget"] == "users"]) == 10
    assert "otel-llm budget --top 100" in client.get("/budgets").text
