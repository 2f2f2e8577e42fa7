"""The queries of the dashboard of the account, in ClickHouse's own engine over rows that were shipped there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from otel_llm.account.clickhouse_engine import ClickHouseEngine
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.ship.clickhouse import ClickHouseDestination
from otel_llm.fleet.ship.destination import Block
from tests.conftest import ROOT
from tests.fleet import clickhouse_server
from tests.fleet.rows import bare_call

DASHBOARD = json.loads((ROOT / "collector-config/grafana/dashboards/account.json").read_text("utf-8"))
PANELS = {panel["title"]: panel["targets"][0]["rawSql"] for panel in DASHBOARD["panels"] if "targets" in panel}
MACROS = {
    "timeFilter": r"\1 >= toDateTime('2026-01-01 00:00:00') AND \1 <= toDateTime('2026-12-31 00:00:00')",
    "timeInterval": r"toStartOfInterval(toDateTime(\1), INTERVAL 60 second)",
}
"""Grafana's ClickHouse plugin writes these in their places (its documentation, "Macros")."""


def filled(sql: str, services: tuple[str, ...] = (), models: tuple[str, ...] = ()) -> str:
    """The query as Grafana sends it; with no service or model chosen, all of them."""
    for name, replacement in MACROS.items():
        sql = re.sub(rf"\$__{name}\(([^)]*)\)", replacement, sql)
    for variable, chosen in (("service", services), ("model", models)):
        values = ", ".join(f"'{value}'" for value in chosen)
        pattern = rf"\$__conditionalAll\((.*?) IN \(\${{{variable}:singlequote}}\), \${variable}\)"
        sql = re.sub(pattern, rf"\1 IN ({values})" if chosen else "1=1", sql)
    assert "$" not in sql
    return sql


@pytest.fixture
def account(clickhouse: str) -> Iterator[ClickHouseEngine]:
    clickhouse_server.empty(clickhouse)
    url = ClickHouseURL.parse(clickhouse)
    calls = [
        bare_call(1, service_name="shop", request_model="a", cost_usd="0.5", tags={"customer": "acme"}, status="ok"),
        bare_call(2, service_name="shop", request_model="b", cost_usd="0.25", user_id="dora", status="error", module="search"),
        bare_call(3, cost_usd=None, status="ok"),
    ]  # fmt: skip
    destination = ClickHouseDestination(url)
    destination.send(Block("llm_usage", calls))
    destination.send(Block("llm_usage", calls))  # sent again
    destination.close()
    yield ClickHouseEngine(ClickHouseClient(url))


def test_every_panel_and_every_variable_can_be_asked(account: ClickHouseEngine) -> None:
    assert len(PANELS) == 11
    for title, sql in PANELS.items():
        assert [*account.ask(filled(sql))], title
    for variable in DASHBOARD["templating"]["list"]:
        assert [*account.ask(variable["query"])], variable["name"]


def test_the_sums_count_each_call_once(account: ClickHouseEngine) -> None:
    def ask(title: str, services: tuple[str, ...] = (), models: tuple[str, ...] = ()) -> list[tuple[object, ...]]:
        return [*account.ask(filled(PANELS[title], services, models))]

    assert ask("Cost") == [(0.75,)]
    assert ask("Cost", ("shop",), ("b",)) == [(0.25,)]
    assert ask("Calls without a price") == [(1,)]
    assert ask("Not ok") == [(1 / 3,)]
    assert {row[0]: row[-1] for row in ask("Users")} == {"dora": 0.25, "?": 0.5}
    assert {row[0]: row[-1] for row in ask("Customers")} == {"acme": 0.5, "?": 0.25}
    assert sum(row[2] for row in ask("Cost by module")) == 0.75  # type: ignore[misc]
