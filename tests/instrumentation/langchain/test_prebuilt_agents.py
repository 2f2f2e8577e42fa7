"""Agents of `langgraph.prebuilt`, alone, in a team and inside each other."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage, ToolMessageChunk
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph

# This module's own warning, that `create_react_agent` will move, is the app's to read.
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command

from otel_llm.conventions import semconv
from otel_llm.conventions.tool_calls import returned_by_tool
from tests.instrumentation.langchain.conftest import Traced, create_agent, needs_agents

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent")
QUESTION: Any = {"messages": [("user", "hi")]}


class Model(GenericFakeChatModel):
    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def _model(*answers: AIMessage) -> Any:
    return Model(messages=iter(answers), disable_streaming=True)


def _asks_for(name: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": "call-1"}])


@tool
def weather(city: str) -> str:
    """Looks up the weather."""
    return "sunny"


async def _run(agent: Any, way: str) -> None:
    match way:
        case "invoke":
            agent.invoke(QUESTION)
        case "ainvoke":
            await agent.ainvoke(QUESTION)
        case "stream":
            list(agent.stream(QUESTION, stream_mode="messages"))
        case "astream_events":
            _ = [event async for event in agent.astream_events(QUESTION, version="v2")]
        case "thread":
            await asyncio.to_thread(agent.invoke, QUESTION)
        case "renamed":
            agent.invoke(QUESTION, {"run_name": "turn 3"})


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream_events", "thread", "renamed"])
async def test_a_react_agent_is_an_agent(way: str, traced: Traced) -> None:
    agent = create_react_agent(_model(_asks_for("weather", city="Oslo"), AIMessage("sunny")), [weather], name="bob")
    await _run(agent, way)
    assert traced.tree() == "invoke_agent bob\n  chat\n  execute_tool weather\n  chat"
    assert {span.attributes[semconv.AGENT_NAME] for span in traced.all()} == {"bob"}
    assert traced.named("execute_tool weather").attributes[semconv.TOOL_CALL_ID] == "call-1"


def test_an_agent_without_a_name(traced: Traced) -> None:
    create_react_agent(_model(AIMessage("done")), []).invoke(QUESTION)
    assert traced.tree() == "invoke_agent\n  chat"
    assert all(semconv.AGENT_NAME not in span.attributes for span in traced.all())


@needs_agents
def test_a_team(traced: Traced) -> None:
    """As `langgraph-supervisor` builds one: agents are nodes, or are called by one."""
    supervisor = create_react_agent(_model(AIMessage("go")), [], name="supervisor")
    first = create_react_agent(_model(_asks_for("weather", city="Oslo"), AIMessage("sunny")), [weather], name="first")
    second = create_agent(_model(AIMessage("done")), [], name="second")
    graph = StateGraph(MessagesState)
    graph.add_sequence(
        [("supervisor", supervisor), ("first", lambda state, config: first.invoke(state, config)), ("second", second)]
    )
    graph.add_edge(START, "supervisor")
    graph.compile(name="team").invoke(QUESTION)
    assert traced.tree() == (
        "invoke_workflow team\n"
        "  step supervisor\n    invoke_agent supervisor\n      chat\n"
        "  step first\n    invoke_agent first\n      chat\n      execute_tool weather\n      chat\n"
        "  step second\n    invoke_agent second\n      chat"
    )
    agents = [span.attributes[semconv.AGENT_NAME] for span in traced.models()]
    assert agents == ["supervisor", "first", "first", "second"]


@needs_agents
def test_what_an_agents_tool_runs_is_what_it_is(traced: Traced) -> None:
    """LangChain hands the agent's own metadata down to all of it."""

    @tool
    def ask_ann(question: str) -> str:
        """Asks another agent."""
        return str(create_agent(_model(AIMessage("I am Ann")), [], name="ann").invoke(QUESTION))

    @tool
    def look(question: str) -> str:
        """Runs a graph that is no agent."""
        graph = StateGraph(MessagesState)
        graph.add_node("talk", lambda state: {"messages": [_model(AIMessage("x")).invoke("hi")]})
        graph.add_edge(START, "talk")
        return str(graph.compile().invoke(QUESTION))

    answers = _asks_for("ask_ann", question="?"), _asks_for("look", question="?"), AIMessage("done")
    create_agent(_model(*answers), [ask_ann, look], name="bob").invoke(QUESTION)
    assert traced.tree() == (
        "invoke_agent bob\n  chat\n"
        "  execute_tool ask_ann\n    invoke_agent ann\n      chat\n  chat\n"
        "  execute_tool look\n    step talk\n      chat\n  chat"
    )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (ToolMessage("sunny", tool_call_id="c1"), ("c1", False)),
        (ToolMessage("no", tool_call_id="c1", status="error"), ("c1", True)),
        (ToolMessageChunk("sunny", tool_call_id="c1"), ("c1", False)),
        (ToolMessage("sunny", tool_call_id=""), (None, False)),
        (Command(update={"messages": [HumanMessage("x"), ToolMessage("sunny", tool_call_id="c1")]}), ("c1", False)),
        (Command(goto="next"), (None, False)),
        ([Command(goto="next"), ToolMessage("sunny", tool_call_id="c1")], ("c1", False)),
        ([ToolMessage("sunny", tool_call_id="c1")], ("c1", False)),
        ({"tool_call_id": "c1", "status": "error"}, (None, False)),
        (SimpleNamespace(tool_call_id="c1", status="error"), (None, False)),  # of the app's: it is asked nothing
        ("sunny", (None, False)),
        (None, (None, False)),
    ],
)
def test_whose_call_a_tool_of_langchain_answers(output: Any, expected: Any) -> None:
    assert returned_by_tool(output) == expected
