"""`otel_llm.budget()`: what one run may spend."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from contextvars import copy_context
from decimal import Decimal
from typing import Any

import openai
import pytest

import otel_llm
from otel_llm.budgets.rules import Unit
from otel_llm.calls import admittance
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans
from tests.instrumentation.conftest import spans as spans
from tests.instrumentation.conftest import traced as traced

ASKED: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}


@pytest.fixture
def client(traced: Spans, openai_server: LocalOpenAI) -> openai.OpenAI:
    return openai.OpenAI(base_url=openai_server.base_url, api_key="x", max_retries=0)


@pytest.fixture
def async_client(traced: Spans, openai_server: LocalOpenAI) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="x", max_retries=0)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**ASKED | more)


def test_it_counts_what_the_server_has_billed(client: openai.OpenAI, openai_server: LocalOpenAI) -> None:
    with otel_llm.budget("run", limit_usd=1, limit_tokens=10_000, limit_calls=10) as run:
        ask(client)
        for _ in ask(client, stream=True):
            pass
    billed = sum((call.input_tokens or 0) + (call.output_tokens or 0) for call in openai_server.ledger)
    assert (run.spent_calls, run.spent_tokens) == (2, billed)
    assert 0 < run.spent_usd < Decimal("0.001")
    assert not any(run._reserved.values())


def test_the_call_after_the_last_one_says_what_was_spent(client: openai.OpenAI, openai_server: LocalOpenAI) -> None:
    with otel_llm.budget("run", limit_calls=2), pytest.raises(otel_llm.BudgetExceeded) as raised:
        for _ in range(3):
            ask(client)
    error = raised.value
    told = error.budget, error.spent, error.reserved, error.limit, error.unit, error.key, error.resets_at
    assert told == ("run", 2, 0, 2, "calls", None, None)
    assert str(error) == "budget 'run': 2 of 2 calls spent. Nothing was sent."
    assert len(openai_server.ledger) == 2


def test_a_call_that_might_cost_more_than_is_left_is_refused(client: openai.OpenAI) -> None:
    with otel_llm.budget("run", limit_tokens=500) as run:
        ask(client)
        with pytest.raises(otel_llm.BudgetExceeded, match="no room for this call"):
            ask(client, max_tokens=500)
        ask(client)
    assert run.spent_calls == 2


def test_nested_ones_all_count(client: openai.OpenAI) -> None:
    with otel_llm.budget("outer", limit_calls=3) as outer:
        with otel_llm.budget("inner", limit_calls=1) as inner:
            ask(client)
            with pytest.raises(otel_llm.BudgetExceeded, match="'inner'"):
                ask(client)
        ask(client)
        with otel_llm.budget("wide", limit_calls=100) as wide:
            ask(client)
            with pytest.raises(otel_llm.BudgetExceeded, match="'outer'"):
                ask(client)
    assert (outer.spent_calls, inner.spent_calls, wide.spent_calls) == (3, 1, 1)
    assert not any(wide._reserved.values())
    ask(client)


def test_tasks_of_a_run_share_it(async_client: openai.AsyncOpenAI, openai_server: LocalOpenAI) -> None:
    async def one() -> bool:
        try:
            await async_client.chat.completions.create(**ASKED)
        except otel_llm.BudgetExceeded:
            return False
        return True

    async def main() -> int:
        async with otel_llm.budget("run", limit_calls=7):
            return sum(await asyncio.gather(*(one() for _ in range(20))))

    assert asyncio.run(main()) == len(openai_server.ledger) == 7


def test_threads_of_a_run_share_it(client: openai.OpenAI, openai_server: LocalOpenAI) -> None:
    refused: list[Exception] = []

    def work() -> None:
        try:
            ask(client)
        except otel_llm.BudgetExceeded as error:
            refused.append(error)

    with otel_llm.budget("run", limit_calls=3):
        threads = [threading.Thread(target=copy_context().run, args=(work,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(openai_server.ledger) == 3
    assert len(refused) == 5


def test_a_stream_that_is_dropped_gives_back_what_was_set_aside(client: openai.OpenAI) -> None:
    with otel_llm.budget("run", limit_calls=5) as run:
        stream = ask(client, stream=True)
        next(iter(stream))
        assert run._reserved[Unit.calls] == 1
        del stream
        gc.collect()
        ask(client)  # ends what was abandoned
    assert run._reserved[Unit.calls] == 0
    assert run.spent_calls == 2


def test_a_call_that_fails_on_the_way_costs_nothing_but_counts(traced: Spans) -> None:
    nowhere = openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="x", max_retries=0)
    with otel_llm.budget("run", limit_usd=1, limit_calls=5) as run, pytest.raises(openai.APIConnectionError):
        ask(nowhere)
    assert (run.spent_usd, run.spent_calls) == (0, 1)
    assert not any(run._reserved.values())


def test_a_context_that_was_left_elsewhere_takes_only_its_own_with_it(client: openai.OpenAI) -> None:
    first, second = otel_llm.budget("first", limit_calls=9), otel_llm.budget("second", limit_calls=1)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    ask(client)
    with pytest.raises(otel_llm.BudgetExceeded, match="'second'"):
        ask(client)
    second.__exit__(None, None, None)
    ask(client)
    assert (first.spent_calls, second.spent_calls) == (0, 1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "has no limit"),
        ({"limit_usd": 0}, "limit_usd is not more than 0"),
        ({"limit_calls": -1}, "limit_calls is not"),
    ],
)
def test_a_budget_without_a_limit_is_none(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        otel_llm.budget("run", **limits)


@pytest.mark.parametrize(("unpriced", "is_sent"), [("ignore", True), ("block", False), (10.0, True), (10**6, False)])
def test_a_model_without_a_price(client: openai.OpenAI, unpriced: Any, is_sent: bool) -> None:
    with otel_llm.budget("run", limit_usd=1, unpriced=unpriced) as run:
        if is_sent:
            ask(client, model="nobody-knows-it")
        else:
            with pytest.raises(otel_llm.BudgetExceeded):
                ask(client, model="nobody-knows-it")
    assert (run.spent_usd > 0) == (unpriced == 10.0)


def test_the_exception_goes_to_another_process_and_back(client: openai.OpenAI) -> None:
    with otel_llm.budget("run", limit_calls=1), pytest.raises(otel_llm.BudgetExceeded) as raised:
        ask(client)
        ask(client)
    again = pickle.loads(pickle.dumps(raised.value))
    assert isinstance(again, otel_llm.BudgetExceeded)
    assert isinstance(again, openai.OpenAIError)
    assert vars(again) == vars(raised.value)
    assert str(again) == str(raised.value)


def test_there_is_no_gate_before_somebody_has_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admittance, "gate", None)
    with otel_llm.budget("run", limit_calls=1):
        assert admittance.gate is not None
