"""A spent budget where another library is at work: models that LangChain asks by itself, retries, fallbacks, profiles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_openai import ChatOpenAI
from pydantic import Field

import otel_llm
from otel_llm.budgets.stop.call_costs import Cost
from otel_llm.conventions import semconv
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans
from tests.instrumentation.conftest import spans as spans
from tests.instrumentation.conftest import traced as traced
from tests.routing.conftest import HELLO, Make
from tests.routing.conftest import clock as clock
from tests.routing.conftest import provider as provider

Ask = Callable[[Any], Any]


class Asked(FakeListChatModel):
    """A model that LangChain asks by itself, and how often."""

    asked: list[str] = Field(default_factory=list)

    def _call(self, *args: Any, **kwargs: Any) -> str:
        self.asked.append("call")
        return super()._call(*args, **kwargs)

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.append("stream")
        return super()._stream(*args, **kwargs)

    def _astream(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.append("astream")
        return super()._astream(*args, **kwargs)


class AskedText(FakeListLLM):
    """The same for text."""

    asked: list[str] = Field(default_factory=list)

    def _call(self, *args: Any, **kwargs: Any) -> str:
        self.asked.append("call")
        return super()._call(*args, **kwargs)


async def _read(stream: Any) -> None:
    async for _ in stream:
        pass


WAYS: dict[str, Ask] = {
    "invoke": lambda model: model.invoke("Hello"),
    "ainvoke": lambda model: asyncio.run(model.ainvoke("Hello")),
    "stream": lambda model: list(model.stream("Hello")),
    "astream": lambda model: asyncio.run(_read(model.astream("Hello"))),
    "batch": lambda model: model.batch(["Hello", "again"]),
    "abatch": lambda model: asyncio.run(model.abatch(["Hello", "again"])),
}


def statuses(spans: Spans) -> list[Any]:
    calls = [dict(span.attributes or {}) for span in spans.all()]
    return [call[semconv.STATUS] for call in calls if call[semconv.OPERATION] in ("chat", "text_completion")]


def spent() -> otel_llm.budget:
    budget = otel_llm.budget("spent", limit_calls=1)
    budget.settle({}, Cost(0, 0))
    return budget


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Asked, AskedText])
def test_a_model_that_langchain_asks_by_itself(traced: Spans, kind: type, way: str) -> None:
    model = kind(responses=["hi"], asked=[])
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        WAYS[way](model)
    assert model.asked == []
    assert set(statuses(traced)) == {semconv.REFUSED}
    assert WAYS["invoke"](model)  # outside of the block


@pytest.mark.parametrize("name", ["generate", "agenerate"])
def test_several_prompts_at_once(traced: Spans, name: str) -> None:
    model = AskedText(responses=["hi"], asked=[])
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        asked = getattr(model, name)(["one", "two"])
        asyncio.run(asked) if name == "agenerate" else None
    assert model.asked == []
    assert set(statuses(traced)) == {semconv.REFUSED}


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_the_apps_handlers_hear_of_the_refusal(traced: Spans, way: str) -> None:
    told: list[str] = []

    class Handler(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            told.append("start")

        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            told.append(type(error).__name__)

    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        WAYS[way](Asked(responses=["hi"], callbacks=[Handler()]))
    assert told == ["start", "BudgetExceeded"]


def test_asynchronous_handlers_hear_of_it_too(traced: Spans) -> None:
    told: list[str] = []

    class Handler(AsyncCallbackHandler):
        async def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            told.append(type(error).__name__)

    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        WAYS["ainvoke"](Asked(responses=["hi"], callbacks=[Handler()]))
    assert told == ["BudgetExceeded"]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_fallbacks_do_not_get_round_it(traced: Spans, openai_server: LocalOpenAI, way: str) -> None:
    model = ChatOpenAI(model="gpt-4o-mini", base_url=openai_server.base_url, api_key="x", max_retries=2)
    other = Asked(responses=["hi"], asked=[])
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        WAYS[way](model.with_fallbacks([other]))
    assert openai_server.ledger == []
    assert other.asked == []


def test_retries_of_langchain_do_not_get_round_it(traced: Spans, openai_server: LocalOpenAI) -> None:
    model = ChatOpenAI(model="gpt-4o-mini", base_url=openai_server.base_url, api_key="x")
    retrying = model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        retrying.invoke("Hello")
    assert openai_server.ledger == []
    assert statuses(traced) == [semconv.REFUSED] * 3


def test_a_retry_that_names_what_it_is_for_leaves_it(traced: Spans, openai_server: LocalOpenAI) -> None:
    import openai

    model = ChatOpenAI(model="gpt-4o-mini", base_url=openai_server.base_url, api_key="x")
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        model.with_retry(retry_if_exception_type=(openai.APIError,), stop_after_attempt=3).invoke("Hello")
    assert statuses(traced) == [semconv.REFUSED]


def test_a_profile_does_not_ask_its_next_deployment(provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    made = provider(first="gpt-4o-mini", second="gpt-4o")
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        made.create_invoker("fast").invoke("Hello")
    with spent(), pytest.raises(otel_llm.BudgetExceeded):
        made.client("fast").chat.completions.create(model="fast", messages=HELLO)
    assert openai_server.ledger == []
    assert statuses(traced) == [semconv.REFUSED] * 2
    made.create_invoker("fast").invoke("Hello")  # the first one is not taken for one that fails
    assert [call.model for call in openai_server.ledger] == ["gpt-4o-mini"]
