"""The conversation as LangGraph and LangChain keep it, and interrupts, which pause one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import openai
import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models import FakeListChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableFieldSpec, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from otel_llm import llm_context, step
from otel_llm.conventions import semconv
from otel_llm.lifecycle import scopes
from tests.instrumentation.langchain.conftest import MODEL, Traced

QUESTION: Any = {"messages": [("user", "hi")]}
FAKE = FakeListChatModel(responses=["hello"])


@pytest.fixture(autouse=True)
def _steps_by_hand(traced: Traced) -> Iterator[None]:
    scopes.tracer.use(traced.provider)
    yield
    scopes.tracer.use(None)


WAYS = pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])


def _graph(*nodes: Any, **options: Any) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_sequence(nodes)
    graph.add_edge(START, nodes[0].__name__)
    return graph.compile(checkpointer=InMemorySaver(), **options)


async def _run(graph: Any, way: str, given: Any, config: Any) -> None:
    match way:
        case "invoke":
            graph.invoke(given, config)
        case "ainvoke":
            await graph.ainvoke(given, config)
        case "stream":
            list(graph.stream(given, config, stream_mode="messages"))
        case "astream":
            _ = [part async for part in graph.astream(given, config, stream_mode=["messages", "updates"])]


def _conversations(traced: Traced) -> dict[str, Any]:
    return {span.name: span.attributes.get(semconv.CONVERSATION_ID) for span in traced.all()}


@WAYS
async def test_the_thread_of_a_graph(way: str, traced: Traced, client: openai.OpenAI) -> None:
    @tool
    def look_up(city: str) -> str:
        """Looks up the weather."""
        return "sunny"

    class Found(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> Any:
            client.embeddings.create(model="text-embedding-3-small", input=query)
            return []

    def talk(state: Any) -> Any:
        answer = FAKE.invoke("hi")
        look_up.invoke({"city": "Oslo"})
        Found().invoke("tides")
        with step("by hand"):
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        return {"messages": [answer]}

    await _run(_graph(talk, name="talks"), way, QUESTION, {"configurable": {"thread_id": "thread-42"}})
    names = ["invoke_workflow talks", "step talk", "chat", "execute_tool look_up", "retrieval Found", "step by hand"]
    requests = ["embeddings text-embedding-3-small", f"chat {MODEL}"]
    assert _conversations(traced) == dict.fromkeys(names + requests, "thread-42")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"configurable": {"thread_id": 7}}, "7"),
        ({"configurable": {"thread_id": UUID(int=7)}}, str(UUID(int=7))),
        ({"configurable": {"thread_id": "a\nb" + 300 * "c"}}, "ab" + 254 * "c"),
        ({"configurable": {"thread_id": "t"}, "metadata": {"session_id": "s"}}, "t"),
    ],
)
def test_ids_of_any_kind(traced: Traced, config: Any, expected: str) -> None:
    def talk(state: Any) -> Any:
        return {"messages": [FAKE.invoke("hi")]}

    _graph(talk).invoke(QUESTION, config)
    assert set(_conversations(traced).values()) == {expected}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"session_id": "s"}, "s"),
        ({"conversation_id": "c"}, "c"),
        ({"conversation_id": "c", "session_id": "s", "thread_id": "t"}, "t"),
        ({"thread_id": "", "session_id": None, "conversation_id": "c"}, "c"),
        ({"thread_id": ["no", "id"]}, None),
        ({"thread_id": True}, None),
        ({"thread_id": 10**5000, "session_id": "s"}, "s"),
        ({}, None),
    ],
)
async def test_metadata_of_a_run(traced: Traced, metadata: dict[str, Any], expected: str | None) -> None:
    config: Any = {"metadata": metadata}
    FAKE.invoke("hi", config)
    await FAKE.ainvoke("hi", config)
    RunnableLambda(lambda value: FAKE.invoke("hi"), name="part").invoke(1, config)
    assert [span.attributes.get(semconv.CONVERSATION_ID) for span in traced.all()] == [expected] * 4


def _with_history(**options: Any) -> Any:
    kept: dict[Any, InMemoryChatMessageHistory] = {}

    def history(**names: str) -> InMemoryChatMessageHistory:
        return kept.setdefault(tuple(names.items()), InMemoryChatMessageHistory())

    def of_session(session_id: str) -> InMemoryChatMessageHistory:
        return history(session_id=session_id)

    def of_user(user: str, conversation_id: str) -> InMemoryChatMessageHistory:
        return history(user=user, conversation_id=conversation_id)

    asking = RunnableLambda(lambda messages: messages) | FAKE
    return RunnableWithMessageHistory(asking, of_user if options else of_session, **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_the_session_of_a_chain_with_history(way: str, traced: Traced) -> None:
    chain, given = _with_history(), [("user", "hi")]
    for session in ("one", "two"):
        config: Any = {"configurable": {"session_id": session}}
        match way:
            case "batch":
                chain.batch([given, given], [config, config])
            case "abatch":
                await chain.abatch([given, given], [config, config])
            case "stream":
                list(chain.stream(given, config))
            case "astream":
                _ = [part async for part in chain.astream(given, config)]
            case _:
                told = getattr(chain, way)(given, config)
                _ = await told if way == "ainvoke" else told
    models = [span.attributes.get(semconv.CONVERSATION_ID) for span in traced.models()]
    times = 2 if "batch" in way else 1
    assert sorted(map(str, models)) == ["one"] * times + ["two"] * times
    assert {span.attributes.get(semconv.CONVERSATION_ID) for span in traced.all()} == {"one", "two"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_session_by_another_name_and_inside_a_thread(traced: Traced) -> None:
    fields = [ConfigurableFieldSpec(id=name, annotation=str) for name in ("user", "conversation_id")]
    config: Any = {"configurable": {"user": "u", "conversation_id": "c"}}
    _with_history(history_factory_config=fields).invoke([("user", "hi")], config)
    assert {span.attributes.get(semconv.CONVERSATION_ID) for span in traced.all()} == {"c"}
    traced.clear()

    def talk(state: Any) -> Any:
        session: Any = {"configurable": {"session_id": "inner"}}
        return {"messages": [_with_history().invoke([("user", "hi")], session)]}

    _graph(talk).invoke(QUESTION, {"configurable": {"thread_id": "t"}})
    assert {span.attributes.get(semconv.CONVERSATION_ID) for span in traced.all()} == {"t"}


def test_the_app_knows_better(traced: Traced) -> None:
    def talk(state: Any) -> Any:
        FAKE.invoke("hi")
        with llm_context(conversation_id="inside"):
            return {"messages": [RunnableLambda(lambda value: FAKE.invoke("hi"), name="part").invoke(1)]}

    with llm_context("chat", user_id="u"):  # says nothing of the conversation
        _graph(talk).invoke(QUESTION, {"configurable": {"thread_id": "t"}})
    assert sorted(str(span.attributes.get(semconv.CONVERSATION_ID)) for span in traced.models()) == ["inside", "t"]
    traced.clear()
    with llm_context(conversation_id="outside"):
        _graph(talk).invoke(QUESTION, {"configurable": {"thread_id": "t"}})
    assert sorted(str(span.attributes.get(semconv.CONVERSATION_ID)) for span in traced.models()) == [
        "inside",
        "outside",
    ]


def test_a_thread_ends_with_its_graph(traced: Traced, client: openai.OpenAI) -> None:
    def talk(state: Any) -> Any:
        inner = _graph(part)
        inner.invoke(QUESTION, {"configurable": {"thread_id": "inner"}})
        return {"messages": [FAKE.invoke("hi")]}

    def part(state: Any) -> Any:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        return {}

    _graph(talk).invoke(QUESTION, {"configurable": {"thread_id": "outer"}})
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    told = {span.name: span.attributes.get(semconv.CONVERSATION_ID) for span in traced.models()}
    assert told == {f"chat {MODEL}": "inner", "chat": "outer", "chat gpt-4o": None}


# --- interrupts ------------------------------------------------------------------------------------------------------
@WAYS
async def test_an_interrupt_is_no_failure(way: str, traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    @tool
    def approve(what: str) -> str:
        """Asks somebody."""
        return str(interrupt(what))

    def ask(state: Any) -> Any:
        with step("by hand"):
            approve.invoke({"what": "this"})
        return {}

    graph, config = _graph(ask), {"configurable": {"thread_id": "t"}}
    with caplog.at_level(logging.INFO):
        await _run(graph, way, QUESTION, config)
        await _run(graph, way, Command(resume="yes"), config)
    assert caplog.records == []
    assert len(traced.all()) == 8
    for span in traced.all():
        assert span.attributes[semconv.STATUS] == "ok"
        assert semconv.ERROR_TYPE not in span.attributes
        assert span.status.is_unset
        assert span.attributes[semconv.CONVERSATION_ID] == "t"


def test_a_hand_over_to_the_parent_is_no_failure(traced: Traced) -> None:
    def hand_over(state: Any) -> Any:
        return Command(goto="after", graph=Command.PARENT)

    def after(state: Any) -> Any:
        return {}

    inner = _graph(hand_over)
    graph = StateGraph(MessagesState)
    graph.add_node("inner", inner)
    graph.add_node("after", after)
    graph.add_edge(START, "inner")
    graph.compile().invoke(QUESTION)
    assert {span.name: span.attributes[semconv.STATUS] for span in traced.all()} == {
        "invoke_workflow LangGraph": "ok",
        "step inner": "ok",
        "step hand_over": "ok",
        "step after": "ok",
    }
