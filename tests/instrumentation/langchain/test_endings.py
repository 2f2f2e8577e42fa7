"""Errors, cancellation, and runs that nobody ends: each ends once, and nothing stays open."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableGenerator, RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from otel_llm.calls import ending
from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import LangChainInstrumentor
from tests.conftest import LocalOpenAI
from tests.instrumentation.langchain.conftest import MODEL, Traced, create_agent, needs_agents, open_runs
from tests.matrix.cell import timed_out_when

Model = Callable[..., ChatOpenAI]
PROMPT = ChatPromptTemplate.from_template("{x}")
CANCELLED = "asyncio.exceptions.CancelledError"


def _outcomes(traced: Traced) -> dict[str, tuple[Any, Any]]:
    return {
        span.name: (span.attributes[semconv.STATUS], span.attributes.get(semconv.ERROR_TYPE)) for span in traced.all()
    }


async def _let_go() -> None:
    """Lets the event loop drop the exception it has just delivered, and with it LangChain's frames."""
    await asyncio.sleep(0)
    gc.collect()


async def _invoke(runnable: Any) -> None:
    runnable.invoke({"x": "hi"})


async def _ainvoke(runnable: Any) -> None:
    await runnable.ainvoke({"x": "hi"})


async def _stream(runnable: Any) -> None:
    list(runnable.stream({"x": "hi"}))


async def _astream(runnable: Any) -> None:
    _ = [chunk async for chunk in runnable.astream({"x": "hi"})]


WAYS = pytest.mark.parametrize("way", [_invoke, _ainvoke, _stream, _astream])


# --- errors -----------------------------------------------------------------------------------------------------------
@WAYS
@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_errors(way: Any, status: int, traced: Traced, chat_model: Model) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        await way(PROMPT | chat_model(f"error-{status}-echo"))
    assert _outcomes(traced) == {
        "invoke_workflow RunnableSequence": ("error", ending.error_type_of(raised.value)),
        f"chat error-{status}-echo": ("error", str(status)),
    }
    assert all(span.status.description is None and not span.events for span in traced.all())


async def test_a_broken_stream(traced: Traced, chat_model: Model) -> None:
    with pytest.raises(Exception) as raised:
        list((PROMPT | chat_model("stream-broken")).stream({"x": "hi"}))
    outcomes = _outcomes(traced)
    assert outcomes["invoke_workflow RunnableSequence"] == ("error", ending.error_type_of(raised.value))
    assert outcomes["chat stream-broken"][0] == "error"


# --- cancellation -----------------------------------------------------------------------------------------------------
async def _cancel(server: LocalOpenAI, work: Any) -> None:
    running = asyncio.ensure_future(work)
    await asyncio.to_thread(server.wait_for, 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_cancelled_call(traced: Traced, chat_model: Model, openai_server: LocalOpenAI) -> None:
    await _cancel(openai_server, chat_model("slow").ainvoke("hi"))
    assert _outcomes(traced) == {"chat slow": ("cancelled", CANCELLED)}


async def test_a_cancelled_chain(traced: Traced, chat_model: Model, openai_server: LocalOpenAI) -> None:
    await _cancel(openai_server, (PROMPT | chat_model("slow")).ainvoke({"x": "hi"}))
    assert set(_outcomes(traced).values()) == {("cancelled", CANCELLED)}
    assert len(traced.all()) == 2


@needs_agents
async def test_a_cancelled_agent(
    traced: Traced, model: ChatOpenAI, async_client: openai.AsyncOpenAI, openai_server: LocalOpenAI
) -> None:
    @tool
    async def ask(city: str) -> str:
        """Asks a slow model."""
        await async_client.chat.completions.create(model="slow", messages=[{"role": "user", "content": city}])
        return "never"

    await _cancel(openai_server, create_agent(model, [ask], name="a").ainvoke({"messages": [("user", "hi")]}))
    assert _outcomes(traced) == {
        "invoke_agent a": ("cancelled", CANCELLED),
        f"chat {MODEL}": ("ok", None),
        "execute_tool ask": ("cancelled", CANCELLED),
        "chat slow": ("cancelled", CANCELLED),
    }


async def test_the_task_goes_on_after_a_timeout(
    traced: Traced, chat_model: Model, async_client: openai.AsyncOpenAI, openai_server: LocalOpenAI
) -> None:
    """The next call of the task is not taken for the one that was cancelled."""
    with pytest.raises(TimeoutError):
        async with timed_out_when(asyncio.to_thread(openai_server.wait_for)):
            await chat_model("slow").ainvoke("hi")
    await async_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "direct"}])
    assert _outcomes(traced) == {"chat slow": ("cancelled", CANCELLED), f"chat {MODEL}": ("ok", None)}


class Waiting(GenericFakeChatModel):
    """A model of another provider that answers when it is told to."""

    messages: Iterator[Any] = iter(())
    gate: Any
    waits: Any

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.waits.set()
        await self.gate.wait()
        raise AssertionError


@pytest.fixture
async def waiting() -> Waiting:
    return Waiting(gate=asyncio.Event(), waits=asyncio.Event())


async def test_a_cancelled_call_of_another_provider(traced: Traced, waiting: Waiting) -> None:
    running = asyncio.ensure_future(waiting.ainvoke("hi"))
    await waiting.waits.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert _outcomes(traced) == {"chat": ("cancelled", CANCELLED)}


async def test_a_timeout_of_another_provider(
    traced: Traced, waiting: Waiting, async_client: openai.AsyncOpenAI
) -> None:
    with pytest.raises(TimeoutError):
        async with timed_out_when(waiting.waits.wait()):
            await waiting.ainvoke("hi")
    await async_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "direct"}])
    assert _outcomes(traced) == {"chat": ("cancelled", CANCELLED), f"chat {MODEL}": ("ok", None)}
    assert traced.tree() == f"chat\nchat {MODEL}"


async def test_a_call_cancelled_before_it_began(traced: Traced, waiting: Waiting) -> None:
    running = asyncio.ensure_future(waiting.ainvoke("hi"))
    await asyncio.sleep(0)  # far enough for the run to start, not for its request
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    del running
    await _let_go()
    assert set(_outcomes(traced).values()) <= {("cancelled", None), ("cancelled", CANCELLED)}
    traced.check_closed()


async def test_a_cancelled_completion_model(traced: Traced) -> None:
    class Slow(LLM):
        waits: Any

        async def _acall(self, *args: Any, **kwargs: Any) -> str:
            self.waits.set()
            await asyncio.Event().wait()
            return ""

        def _call(self, *args: Any, **kwargs: Any) -> str:
            return ""

        @property
        def _llm_type(self) -> str:
            return "slow"

    model = Slow(waits=asyncio.Event())
    running = asyncio.ensure_future(model.agenerate(["one", "two"]))
    await model.waits.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [span.attributes[semconv.STATUS] for span in traced.models()] == ["cancelled", "cancelled"]


class _ToldOfErrors(BaseCallbackHandler):
    """A handler of the app: which of its runs LangChain says to have failed, and with what."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told["execute_tool wait"] = ending.error_type_of(error)

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told["retrieval Retriever"] = ending.error_type_of(error)


async def test_a_cancelled_tool_or_retriever_on_its_own(traced: Traced) -> None:
    """Who is told of them depends on LangChain: of neither before langchain-core 1.8, of a tool since.

    A run that nobody is told of ends when LangChain lets go of it, and then nobody knows with what error. So the test
    asks the installed LangChain, by a handler that has nothing to do with ours.
    """
    waits = asyncio.Event()
    beside = _ToldOfErrors()

    @tool
    async def wait(city: str) -> str:
        """Waits."""
        waits.set()
        await asyncio.Event().wait()
        return ""

    class Retriever(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
            return []

        async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> Any:
            waits.set()
            await asyncio.Event().wait()

    config: Any = {"callbacks": [beside]}
    for work in (wait.ainvoke({"city": "Oslo"}, config), Retriever().ainvoke("hi", config)):
        waits.clear()
        running = asyncio.ensure_future(work)
        await waits.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        del running
    await _let_go()
    assert set(beside.told.values()) <= {CANCELLED}
    assert _outcomes(traced) == {
        name: ("cancelled", beside.told.get(name)) for name in ("execute_tool wait", "retrieval Retriever")
    }


# --- streams that are left --------------------------------------------------------------------------------------------
def test_a_stream_left_early(traced: Traced, model: ChatOpenAI) -> None:
    for _ in (PROMPT | model).stream({"x": "hi"}):
        break
    assert _outcomes(traced) == {
        "invoke_workflow RunnableSequence": ("ok", None),  # LangChain says no more of a chain whose stream is closed
        f"chat {MODEL}": ("partial", None),
    }
    assert all(span.status.is_unset for span in traced.all())


async def test_an_async_stream_left_early(traced: Traced, model: ChatOpenAI) -> None:
    stream: Any = (PROMPT | model).astream({"x": "hi"})
    async for _ in stream:
        break
    await stream.aclose()
    del stream
    gc.collect()
    await asyncio.get_running_loop().shutdown_asyncgens()
    assert _outcomes(traced) == {
        "invoke_workflow RunnableSequence": ("partial", None),
        f"chat {MODEL}": ("partial", None),
    }


def test_a_stream_of_another_provider_left_early(traced: Traced) -> None:
    class Talking(GenericFakeChatModel):
        messages: Iterator[Any] = iter(())

        def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
            usage: Any = {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
            yield ChatGenerationChunk(message=AIMessageChunk("a", usage_metadata=usage))
            yield ChatGenerationChunk(message=AIMessageChunk("b"))

    for _ in Talking().stream("hi"):
        break
    (span,) = traced.models()
    assert span.attributes[semconv.STATUS] == "partial"
    assert span.attributes[semconv.INPUT_TOKENS] == 3
    assert span.attributes[semconv.REQUEST_STREAM] is True


async def test_a_stream_read_by_other_tasks(traced: Traced, model: ChatOpenAI) -> None:
    """`asyncio.wait_for` reads each chunk in a task of its own (Python 3.11): the first of them ends, the run does not."""
    stream = (PROMPT | model).astream({"x": "hi"}).__aiter__()
    while True:
        try:
            await asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        except StopAsyncIteration:
            break
    assert {status for status, _ in _outcomes(traced).values()} == {"ok"}
    traced.check_account()


def test_a_stream_that_is_kept_stays_open_until_it_is_dropped(traced: Traced) -> None:
    def numbers(_: Any) -> Iterator[int]:
        yield from range(3)

    stream = RunnableGenerator(numbers).stream(0)
    next(stream)
    assert open_runs() == 1
    del stream
    assert open_runs() == 0
    assert _outcomes(traced) == {"invoke_workflow numbers": ("ok", None)}


# --- one part ends, another goes on -----------------------------------------------------------------------------------
async def test_a_branch_that_outlives_its_failed_sibling(
    traced: Traced, chat_model: Model, openai_server: LocalOpenAI
) -> None:
    slow = chat_model("slow")
    asked: list[asyncio.Task[Any]] = []

    async def keeps_going(value: Any) -> Any:
        asked.append(asyncio.ensure_future(slow.ainvoke("hi")))
        return await asyncio.shield(asked[0])

    async def fails(value: Any) -> Any:
        await asyncio.to_thread(openai_server.wait_for, 1)
        raise LookupError

    with pytest.raises(LookupError):
        await RunnableParallel(a=keeps_going, b=fails).ainvoke(1)
    openai_server.release()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
    assert _outcomes(traced)["chat slow"] == ("ok", None)
    traced.check_account()


async def test_a_task_in_the_background_outlives_its_chain(
    traced: Traced, chat_model: Model, openai_server: LocalOpenAI
) -> None:
    started: list[asyncio.Task[Any]] = []

    async def start(value: Any) -> str:
        started.append(asyncio.ensure_future((PROMPT | chat_model("slow")).ainvoke({"x": "hi"})))
        await asyncio.to_thread(openai_server.wait_for, 1)
        return "done"

    await (RunnableLambda(lambda value: value) | start).ainvoke(1)
    openai_server.release()
    await started[0]
    assert traced.tree() == "invoke_workflow RunnableSequence\n  step start\n    chat slow"
    assert {status for status, _ in _outcomes(traced).values()} == {"ok"}
    traced.check_account()


def test_many_threads(traced: Traced, model: ChatOpenAI) -> None:
    chain = PROMPT | model
    threads = [threading.Thread(target=chain.batch, args=([{"x": str(n)} for n in range(4)],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traced.tree() == "\n".join([f"invoke_workflow RunnableSequence\n  chat {MODEL}"] * 16)
    traced.check_account()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_leaves_the_parents_runs_to_the_parent(traced: Traced) -> None:
    model = FakeListChatModel(responses=["x"])

    def in_child() -> bool:
        model.invoke("hi")
        runs = LangChainInstrumentor()._installed[0]
        for run_id in list(runs._runs):
            runs.end(run_id, "ok")
        (call,) = traced.all()
        return call.name == "chat" and call.parent.span_id in traced.open.spans

    def fork(value: Any) -> Any:
        if (child := os.fork()) == 0:
            code = 1
            try:
                code = 0 if in_child() else 1
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1]

    assert (RunnableLambda(lambda value: value) | fork).invoke(1) == 0
    assert _outcomes(traced) == {"invoke_workflow RunnableSequence": ("ok", None)}


async def test_a_generator_of_an_app(traced: Traced, model: ChatOpenAI) -> None:
    async def talk(value: Any) -> AsyncIterator[Any]:
        async for chunk in model.astream("hi"):
            yield chunk

    _ = [part async for part in RunnableGenerator(talk).astream(1)]
    assert traced.tree() == f"invoke_workflow talk\n  chat {MODEL}"
    traced.check_account()
