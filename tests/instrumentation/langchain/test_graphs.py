"""LangGraph: every node that ran is a step, sub-graphs and agents nest, an interrupt is no error."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt

from otel_llm.conventions import semconv
from tests.instrumentation.langchain.conftest import MODEL, Traced, create_agent, needs_agents

QUESTION: Any = {"messages": [("user", "hi")]}


def _graph(name: str | None = None, checkpointer: Any = None, **nodes: Any) -> Any:
    """The nodes one after another."""
    graph = StateGraph(MessagesState)
    graph.add_sequence(list(nodes.items()))
    graph.add_edge(START, next(iter(nodes)))
    return graph.compile(name=name, checkpointer=checkpointer)


async def _run(graph: Any, way: str) -> None:
    match way:
        case "invoke":
            graph.invoke(QUESTION)
        case "ainvoke":
            await graph.ainvoke(QUESTION)
        case "stream":
            list(graph.stream(QUESTION, stream_mode="messages"))
        case "astream":
            _ = [part async for part in graph.astream(QUESTION, stream_mode=["messages", "updates"])]


WAYS = pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])


@needs_agents
@WAYS
async def test_nodes_and_sub_graphs(way: str, traced: Traced, model: ChatOpenAI) -> None:
    def call(state: Any) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    @tool
    def look_up(city: str) -> str:
        """Looks up the weather."""
        return "sunny"

    def route(state: Any) -> str:
        return END

    def turn(state: Any) -> Any:
        return QUESTION

    inner, named = _graph(inner=call), _graph("named", inner=call)
    chain = ChatPromptTemplate.from_template("hi") | model | (lambda message: {"messages": [message]})
    graph = StateGraph(MessagesState)
    graph.add_sequence(
        [
            ("quiet", lambda state: {}),
            ("calls_a_graph", lambda state: {"messages": inner.invoke(state)["messages"][-1:]}),
            ("is_a_graph", inner),
            ("is_a_named_graph", named),
            ("is_a_chain", chain),
            ("turn", turn),
            ("is_an_agent", create_agent(model, [look_up], name="helper")),
        ]
    )
    graph.add_edge(START, "quiet")
    graph.add_conditional_edges("is_an_agent", route)
    await _run(graph.compile(name="everything"), way)
    assert traced.tree() == "\n".join(
        [
            "invoke_workflow everything",
            "  step quiet",
            "  step calls_a_graph",
            "    step inner",
            f"      chat {MODEL}",
            "  step is_a_graph",
            "    step inner",
            f"      chat {MODEL}",
            "  step is_a_named_graph",
            "    step named",
            "      step inner",
            f"        chat {MODEL}",
            "  step is_a_chain",
            f"    chat {MODEL}",
            "  step turn",
            "  step is_an_agent",
            "    invoke_agent helper",
            f"      chat {MODEL}",
            "      execute_tool look_up",
            f"      chat {MODEL}",
        ]
    )
    traced.check_account()
    assert {span.attributes[semconv.WORKFLOW_NAME] for span in traced.all()} == {"everything"}
    agents = [span.attributes.get(semconv.AGENT_NAME) for span in traced.models()]
    assert agents.count("helper") == 2
    assert agents.count(None) == 4


@WAYS
async def test_a_direct_call_in_a_node(way: str, traced: Traced, client: openai.OpenAI) -> None:
    def call(state: Any) -> Any:
        answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
        return {"messages": [("assistant", answer.choices[0].message.content)]}

    await _run(_graph("direct", call=call), way)
    assert traced.tree() == f"invoke_workflow direct\n  step call\n    chat {MODEL}"
    traced.check_account()


async def test_nodes_side_by_side(traced: Traced, model: ChatOpenAI) -> None:
    async def work(state: Any) -> Any:
        return {"messages": [await model.ainvoke(str(state))]}

    graph = StateGraph(MessagesState)
    graph.add_node("work", work)
    graph.add_conditional_edges(START, lambda state: [Send("work", {"number": n}) for n in range(5)])
    await graph.compile(name="fan").ainvoke(QUESTION)
    assert traced.tree() == "invoke_workflow fan\n" + "\n".join([f"  step work\n    chat {MODEL}"] * 5)
    traced.check_account()


def test_an_interrupt_is_no_error(traced: Traced, model: ChatOpenAI) -> None:
    def ask(state: Any) -> Any:
        model.invoke("before")
        return {"messages": [("user", interrupt("really?"))]}

    graph = _graph("asks", InMemorySaver(), ask=ask)
    config = {"configurable": {"thread_id": "1"}}
    graph.invoke(QUESTION, config)
    graph.invoke(Command(resume="yes"), config)
    assert traced.tree() == "\n".join([f"invoke_workflow asks\n  step ask\n    chat {MODEL}"] * 2)
    assert {span.attributes[semconv.STATUS] for span in traced.all()} == {"ok"}
    assert not any(semconv.ERROR_TYPE in span.attributes for span in traced.all())
    traced.check_account()


async def test_the_functional_api(traced: Traced, model: ChatOpenAI) -> None:
    @task
    async def part(number: int) -> Any:
        return (await model.ainvoke(f"part {number}")).content

    @entrypoint()
    async def whole(value: Any) -> Any:
        return [await part(1), await part(2)]

    await whole.ainvoke("x")
    assert traced.tree() == "\n".join(
        ["invoke_workflow LangGraph", "  step whole"] + ["    step part", f"      chat {MODEL}"] * 2
    )
    traced.check_account()


def test_a_failing_node(traced: Traced, model: ChatOpenAI) -> None:
    def fails(state: Any) -> Any:
        model.invoke("x")
        raise LookupError("SECRET")

    with pytest.raises(LookupError):
        _graph("fragile", fails=fails).invoke(QUESTION)
    statuses = {span.name: span.attributes.get(semconv.ERROR_TYPE) for span in traced.all()}
    assert statuses == {
        "invoke_workflow fragile": "LookupError",
        "step fails": "LookupError",
        f"chat {MODEL}": None,
    }
    traced.check_account()
