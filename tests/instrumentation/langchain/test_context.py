"""Model calls that tools, callbacks and their threads make carry the context, and hang in their place in the tree."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry import propagate

from otel_llm import llm_context
from otel_llm.calls import withholding
from otel_llm.conventions import semconv
from otel_llm.instrumentation import concurrency
from tests.instrumentation.langchain.conftest import MODEL, Traced

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    concurrency.install()
    yield
    concurrency.remove()


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    return lambda *_: client.chat.completions.create(model=MODEL, messages=HELLO).id


def users(traced: Traced) -> list[Any]:
    return [span.attributes.get(semconv.USER_ID) for span in traced.models()]


def in_thread(ask: Callable[..., Any]) -> None:
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()


def in_pool(ask: Callable[..., Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask).result()


@pytest.mark.parametrize("where", [lambda ask: ask(), in_thread, in_pool], ids=["here", "thread", "pool"])
async def test_a_tool_and_the_threads_it_starts(
    where: Callable[..., None], traced: Traced, ask: Callable[..., Any]
) -> None:
    @tool
    def look_up(word: str) -> str:
        """Looks a word up."""
        where(ask)
        return word

    async def invoke() -> None:
        await look_up.ainvoke({"word": "tide"})

    with llm_context("m", user_id="u"):
        RunnableLambda(lambda word: look_up.invoke({"word": word})).invoke("tide")
        await asyncio.create_task(invoke())
    one = f"execute_tool look_up\n  chat {MODEL}"
    assert traced.tree() == "invoke_workflow RunnableLambda\n  " + one.replace("\n", "\n  ") + "\n" + one
    assert users(traced) == ["u", "u"]
    traced.check_account()


def test_threads_that_make_no_call_show_nothing(traced: Traced, model: ChatOpenAI) -> None:
    """Whether a function of a chain is shown depends on what is recorded in it, not on what it starts."""

    def format_docs(text: str) -> str:
        in_thread(str)
        in_pool(str)
        return text

    (RunnableLambda(format_docs) | model).invoke("Hello")
    assert "format_docs" not in traced.tree()
    traced.check_account()


async def test_callbacks(traced: Traced, model: ChatOpenAI, ask: Callable[..., Any]) -> None:
    class Asks(BaseCallbackHandler):
        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            ask()

    class AsksToo(AsyncCallbackHandler):
        async def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            await asyncio.to_thread(ask)

    with llm_context("m", user_id="u"):
        RunnableLambda(str).invoke("x", {"callbacks": [Asks()]})
        await RunnableLambda(str).ainvoke("x", {"callbacks": [AsksToo()]})
    assert users(traced) == ["u", "u"]
    traced.check_account()


class Handmade(BaseChatModel):
    """A chat model of somebody's own, with whatever `answer` does as its request."""

    answer: Callable[..., Any]

    @property
    def _llm_type(self) -> str:
        return "handmade"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.answer()
        return ChatResult(generations=[ChatGeneration(message=AIMessage("yes"))])


@pytest.mark.parametrize("where", [in_thread, in_pool], ids=["thread", "pool"])
def test_a_model_whose_request_is_made_in_a_thread_is_one_call(
    where: Callable[..., None], traced: Traced, ask: Callable[..., Any]
) -> None:
    with llm_context("m", user_id="u"):
        Handmade(answer=lambda: where(ask)).invoke("Hello")
    assert users(traced) == ["u"]
    traced.check_account()


def test_a_model_that_another_client_carries_out_sends_nothing_of_ours(traced: Traced) -> None:
    before = propagate.get_global_textmap()
    withholding.withhold()
    during: dict[str, str] = {}
    in_a_thread: dict[str, str] = {}
    after: dict[str, str] = {}

    def answer() -> None:
        propagate.inject(during)  # as an instrumented HTTP client does
        in_thread(lambda: propagate.inject(in_a_thread))

    try:
        with traced.provider.get_tracer("app").start_as_current_span("app"), llm_context("m", user_id="u"):
            Handmade(answer=answer).invoke("Hello")
            propagate.inject(after)
    finally:
        propagate.set_global_textmap(before)
    assert during == in_a_thread == {}
    assert set(after) == {"traceparent", "baggage"}
