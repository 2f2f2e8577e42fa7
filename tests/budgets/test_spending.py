"""What was spent of a budget, by the account, in both engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.account.opening import open_clickhouse, open_store
from otel_llm.account.questions import Account
from otel_llm.budgets.rules import Budget, Cover, Per, Unit, Unpriced
from otel_llm.budgets.spending import Spending, spent
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.store.journal import locks
from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.budgets.conftest import both_engines
from tests.cli.conftest import Fill

NOW = datetime(2026, 11, 20, 18, tzinfo=UTC)
Ask = Callable[..., list[Spending]]


@contextmanager
def opened(place: Any) -> Iterator[Account]:
    with open_store(place) if isinstance(place, Path) else open_clickhouse(ClickHouseURL.parse(place)) as account:
        yield account


@pytest.fixture
def ask(fill: Fill) -> Ask:
    """Fills a store with calls, and asks what is spent of a budget."""

    def answer(calls: list[Mapping[str, Any]], budget: Budget, now: datetime = NOW, **how: Any) -> list[Spending]:
        with opened(fill(*calls)) as account:
            return spent(account, budget, now, **how)

    return answer


def budget(unit: Unit = Unit.usd, limit: str = "1", per: Per = Per.day, **more: Any) -> Budget:
    return Budget("b", unit, Decimal(limit), per, time_zone="UTC", **more)


def call(cost: str | None = "0.1", **more: Any) -> dict[str, Any]:
    priced = {"cost_usd": cost, "price_source": "genai-prices" if cost else "no price for x"}
    return {"input_tokens": 70, "output_tokens": 30, "request_model": "gpt-4o", **priced, **more}


@both_engines
def test_each_unit(ask: Ask) -> None:
    calls = [
        call("0.1"),
        call("0.2"),
        call("0.4", usage_source="estimated"),  # was billed as well
        call(None),
        call(None, input_tokens=None, output_tokens=None),
        call(None, price_source="refused, not billed", status="error", input_tokens=None, output_tokens=None),
        call(None, price_source="refused, not billed", status="refused", input_tokens=None, output_tokens=None),
        call("0", price_source="cache hit, not billed"),
    ]
    (usd,) = ask(calls, budget())
    assert (usd.amount, usd.calls, usd.unpriced, usd.untold) == (Decimal("0.7"), 6, 2, 1)
    assert not usd.is_spent and usd.crossed == (0.5,) and usd.share == pytest.approx(0.7)


@both_engines
@pytest.mark.parametrize(("unit", "amount"), [(Unit.tokens, 300), (Unit.calls, 4)])
def test_tokens_and_calls(ask: Ask, unit: Unit, amount: int) -> None:
    calls = [call(), call(usage_source="estimated"), call(None), call(None, input_tokens=None, output_tokens=None)]
    (found,) = ask(calls, budget(unit, "1000"))
    assert found.amount == amount


@both_engines
@pytest.mark.parametrize(
    ("unpriced", "amount", "crossed"),
    [
        (Unpriced.ignore, "0.1", ()),
        (Unpriced.block, "0.1", (0.5, 0.8, 1.0)),
        (Decimal("4000"), "0.9", (0.5, 0.8)),  # 200 tokens at 4000 USD a million
    ],
)
def test_calls_without_a_price(ask: Ask, unpriced: Any, amount: str, crossed: tuple[float, ...]) -> None:
    (found,) = ask([call(), call(None), call(None)], budget(unpriced=unpriced))
    assert (found.amount, found.unpriced, found.crossed) == (Decimal(amount), 2, crossed)
    assert found.is_spent is (unpriced is Unpriced.block)
    assert found.uncounted == (0 if isinstance(unpriced, Decimal) else 2)
    (stopping,) = ask([], budget(unpriced=unpriced, action="stop"))
    assert (stopping.amount, stopping.is_spent) == (Decimal(amount), False)  # which has refused what it blocks


@both_engines
def test_a_value_of_each_for_itself_and_whose_calls_count(ask: Ask) -> None:
    calls = [
        call("0.1", user_id="alice", module="search", tags={"team": "core"}),
        call("0.2", user_id="alice", module="search", tags={"team": "core"}, request_model="gpt-4o-mini"),
        call("0.5", user_id="bob", module="search", tags={"team": "core"}),
        call("0.6", module="search", tags={"team": "core"}),
        call("9", user_id="bob", module="chat", tags={"team": "core"}),
        call("9", user_id="bob", module="search", tags={"team": "other"}),
        call("9", user_id="bob", module="search"),
        call("9", user_id="bob", module="search", tags={"team": "core"}, request_model="o3"),
    ]
    where = (Cover("module", ("search",)), Cover("tags.team", ("c?re",)), Cover("model", ("gpt-4o", "gpt-4o-*")))
    found = ask(calls, budget(each="user_id", where=where))
    assert [(one.value, one.amount) for one in found] == [
        (None, Decimal("0.6")),
        ("bob", Decimal("0.5")),
        ("alice", Decimal("0.3")),
    ]


@both_engines
def test_only_what_is_near_the_limit(ask: Ask) -> None:
    calls = [call(f"0.{cents}", user_id=f"u{cents}") for cents in range(1, 10)]
    rule = budget(each="user_id")
    assert [one.value for one in ask(calls, rule, least=0.5)] == ["u9", "u8", "u7", "u6", "u5"]
    assert [one.value for one in ask([], rule, most=2)] == ["u9", "u8"]
    dear = budget(each="user_id", unpriced=Decimal(4000))
    assert [one.value for one in ask([], dear, least=0.5)] == ["u9", "u8", "u7", "u6", "u5"]


@both_engines
def test_a_tag_for_itself(ask: Ask) -> None:
    calls = [call(tags={"team": "a"}), call(tags={"team": "b"}), call("0.2", tags={"team": "b"})]
    found = ask(calls, budget(each="tags.team"))
    assert [(one.value, one.amount) for one in found] == [("b", Decimal("0.3")), ("a", Decimal("0.1"))]


@both_engines
def test_the_period_is_that_of_the_calendar(ask: Ask) -> None:
    calls = [
        call("0.1", started_at="2026-11-19T22:59:59Z"),
        call("0.2", started_at="2026-11-19T23:00:00Z"),  # midnight in Berlin
        call("0.3", started_at="2026-11-20T22:59:59Z"),
        call("0.4", started_at="2026-11-20T23:00:00Z"),
    ]
    day = Budget("b", Unit.usd, Decimal(1), Per.day, time_zone="Europe/Berlin")
    (found,) = ask(calls, day)
    assert found.amount == Decimal("0.5")
    assert found.period is not None and found.period.start == datetime(2026, 11, 19, 23, tzinfo=UTC)


@both_engines
def test_a_run_counts_whole_while_it_goes_on(ask: Ask) -> None:
    calls = [
        call("0.1", trace_id="a" * 32, span_id="1" * 16, started_at="2026-11-01T12:00:00Z", conversation_id="c"),
        call("0.2", trace_id="a" * 32, span_id="2" * 16, conversation_id="c"),
        call("0.4", trace_id="b" * 32),
        call("9", trace_id="c" * 32, started_at="2026-11-01T12:00:00Z", conversation_id="d"),
    ]
    found = ask(calls, budget(per=Per.trace))
    assert [(one.run, one.amount, one.period) for one in found] == [
        ("b" * 32, Decimal("0.4"), None),
        ("a" * 32, Decimal("0.3"), None),
    ]
    found = ask([], budget(per=Per.conversation, each="model"))
    assert [(one.value, one.run, one.amount) for one in found] == [("gpt-4o", "c", Decimal("0.3"))]


@both_engines
def test_nothing_is_nothing(ask: Ask) -> None:
    (found,) = ask([call(started_at="2025-01-01T00:00:00Z")], budget())
    assert (found.amount, found.calls, found.crossed, found.is_spent) == (0, 0, (), False)
    assert ask([], budget(each="user_id")) == ask([], budget(per=Per.trace)) == []


@both_engines
def test_exactly_the_limit_is_spent(ask: Ask) -> None:
    (found,) = ask(
        [call(f"0.{one}") for one in range(1, 5)], budget()
    )  # floats make 0.1 + 0.2 + 0.3 + 0.4 more, or less
    assert found.is_spent and found.crossed == (0.5, 0.8, 1.0)
    assert [one.amount for one in ask([], budget(each="operation"), least=1)] == [1]


@both_engines
def test_what_a_user_types_is_no_sql(ask: Ask) -> None:
    mark = "x' OR 1 = 1 --"
    rule = budget(where=(Cover("module", (mark, f"{mark}*")), Cover(f"tags.{mark}", (mark,))), each=f"tags.{mark}")
    assert ask([call()], rule) == []


def test_what_waits_in_the_journals_is_spent(store_path: Path, fill: Fill) -> None:
    fill(call("0.1", started_at=NOW.isoformat()))
    journal = Journal(StorePaths.of(store_path).journal)
    began = int(NOW.timestamp() * 10**9)
    record = {
        "k": "e", "t": "e" * 32, "s": "e" * 16, "p": None, "n": "chat", "kd": "CLIENT", "st": began, "et": began + 10**9,
        "a": {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o", "gen_ai.usage.input_tokens": 5,
              "otel_llm.reported_cost_usd": 0.25},
    }  # fmt: skip
    journal.append(record)
    try:
        merging = locks.exclusive(StorePaths.of(store_path).lock, time.monotonic() + 5)
        with merging, open_store(store_path) as account:  # nobody else can merge it
            (found,) = spent(account, budget(), NOW)
    finally:
        journal.close()
    assert (found.amount, found.calls) == (Decimal("0.35"), 2)


@pytest.mark.parametrize(
    ("hours", "forecast"),
    [(0, None), (0.25, None), (6, "2"), (12, "1"), (24, "0.5"), (25, None)],
)
def test_the_forecast_goes_on_as_it_was(hours: float, forecast: str | None) -> None:
    from otel_llm.budgets.periods import period

    start = datetime(2026, 11, 20, tzinfo=UTC)
    rule = budget()
    found = Spending(rule, None, None, period(Per.day, start, UTC), Decimal("0.5"), 1, 0, 0)
    at = found.forecast(start + timedelta(hours=hours))
    assert (at if at is None else round(at, 9)) == (None if forecast is None else Decimal(forecast))
    assert Spending(rule, None, "run", None, Decimal("0.5"), 1, 0, 0).forecast(start) is None
