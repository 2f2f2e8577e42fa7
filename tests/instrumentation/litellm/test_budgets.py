"""A spent budget on every way of asking a model through LiteLLM: nothing is sent, and the app gets what it says."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("litellm", reason="LiteLLM is not installed: `.ci/beside` has it")

import litellm

import otel_llm
from otel_llm.budgets.rules import Unit
from otel_llm.budgets.stop.call_costs import Cost
from otel_llm.conventions import semconv
from tests.conftest import LocalOpenAI
from tests.instrumentation.litellm.conftest import Account
from tests.instrumentation.litellm.test_ways import MESSAGES, ask, base, billed, ways
from tests.instrumentation.litellm.wires import Wires


def spent() -> otel_llm.budget:
    budget = otel_llm.budget("spent", limit_calls=1)
    budget.settle({}, Cost(0, 0))
    return budget


@pytest.mark.parametrize(("name", "server", "provider", "arguments"), ways())
def test_nothing_is_sent(
    name: str,
    server: str,
    provider: str | None,
    arguments: dict[str, Any],
    openai_server: LocalOpenAI,
    wires: Wires,
    account: Account,
) -> None:
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        ask(name, {**arguments, **base(arguments["model"], openai_server, wires, server)})
    assert billed(openai_server, wires) == []
    (row,) = account()
    assert row["status"] == semconv.REFUSED
    assert row["request_model"] == arguments["model"].partition("/")[2]
    assert row["cost_usd"] is None and row["price_source"] == "refused, not billed"


@pytest.mark.parametrize(("name", "server", "provider", "arguments"), ways())
def test_with_room_each_call_counts_once(
    name: str,
    server: str,
    provider: str | None,
    arguments: dict[str, Any],
    openai_server: LocalOpenAI,
    wires: Wires,
    account: Account,
) -> None:
    with otel_llm.budget("enough", limit_calls=10) as run:
        ask(name, {**arguments, **base(arguments["model"], openai_server, wires, server)})
        account()
        assert run.spent_calls == 1
        assert run._reserved[Unit.calls] == 0


def test_a_mocked_answer_costs_nothing(account: Account) -> None:
    with spent():
        answer = litellm.completion(model="openai/gpt-4o-mini", messages=MESSAGES, mock_response="hi")
    assert answer.choices[0].message.content == "hi"


def test_the_router_does_not_get_round_it(openai_server: LocalOpenAI, account: Account) -> None:
    deployment = {"model": "openai/gpt-4o-mini", "api_base": openai_server.base_url, "api_key": "x"}
    router = litellm.Router(
        model_list=[
            {"model_name": "a", "litellm_params": deployment},
            {"model_name": "b", "litellm_params": deployment},
        ],
        fallbacks=[{"a": ["b"]}],
        num_retries=1,
        retry_after=0,
    )
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        router.completion(model="a", messages=MESSAGES)
    assert openai_server.ledger == []
