"""The rule that makes a tree of LangChain's runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from otel_llm.instrumentation.langchain._tree import Graph, Part, Shown, graph_of, part_of

CREATED: dict[str, Any] = {"ls_integration": "langchain_create_agent"}
NOT_SHOWN = Part(Shown.NEVER)


def _node(name: str, **metadata: Any) -> dict[str, Any]:
    return {"tags": ["graph:step:1"], "metadata": {"langgraph_node": name, **metadata}}


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        # the outermost run
        ("RunnableSequence", {"outermost": True}, Part(Shown.ALWAYS, "invoke_workflow", "RunnableSequence")),
        ("LangGraph", {"outermost": True}, Part(Shown.ALWAYS, "invoke_workflow", "LangGraph")),
        ("ChatPromptTemplate", {"outermost": True, "run_type": "prompt"}, NOT_SHOWN),
        ("StrOutputParser", {"outermost": True, "run_type": "parser"}, NOT_SHOWN),
        # agents
        ("LangGraph", {"metadata": CREATED, "outermost": True}, Part(Shown.ALWAYS, "invoke_agent", None)),
        ("bob", {"metadata": {**CREATED, "lc_agent_name": "bob"}}, Part(Shown.ALWAYS, "invoke_agent", "bob")),
        ("turn 3", {"metadata": {**CREATED, "lc_agent_name": "bob"}}, Part(Shown.ALWAYS, "invoke_agent", "bob")),
        ("AgentExecutor", {}, Part(Shown.ALWAYS, "invoke_agent", "AgentExecutor")),
        (
            "ann",
            {"metadata": {**CREATED, "lc_agent_name": "ann"}, "in_agent": True, "enclosing_agent": "bob"},
            Part(Shown.ALWAYS, "invoke_agent", "ann"),
        ),
        # what an agent's runs inherit makes none of them an agent
        (
            "RunnableSequence",
            {"metadata": {**CREATED, "lc_agent_name": "bob"}, "in_agent": True, "enclosing_agent": "bob"},
            NOT_SHOWN,
        ),
        (
            "summarise",
            {"metadata": {**CREATED, "lc_agent_name": "bob"}, "in_agent": True, "enclosing_agent": "bob"},
            Part(Shown.WITH_CONTENT, "step", "summarise"),
        ),
        ("RunnableSequence", {"metadata": CREATED, "in_agent": True}, NOT_SHOWN),
        # nodes
        ("plan", _node("plan"), Part(Shown.ALWAYS, "step", "plan")),
        ("model", _node("model"), Part(Shown.ALWAYS, "step", "model")),
        ("model", _node("model", **CREATED), NOT_SHOWN),
        ("tools", _node("tools", **CREATED), NOT_SHOWN),
        (
            "Guard.before_model",
            _node("Guard.before_model", **CREATED),
            Part(Shown.ALWAYS, "step", "Guard.before_model"),
        ),
        ("__start__", _node("__start__"), NOT_SHOWN),
        # in a node, where its metadata is inherited
        ("route", {"metadata": {"langgraph_node": "plan"}}, Part(Shown.WITH_CONTENT, "step", "route")),
        ("plan", {"metadata": {"langgraph_node": "plan"}}, Part(Shown.WITH_CONTENT, "step", "plan")),
        # plumbing
        ("RunnableSequence", {}, NOT_SHOWN),
        ("RunnableParallel<a,b>", {}, NOT_SHOWN),
        ("ChannelWrite<messages>", {}, NOT_SHOWN),
        ("LangGraph", {}, NOT_SHOWN),
        ("ChatPromptTemplate", {"run_type": "prompt"}, NOT_SHOWN),
        # functions and named parts
        ("format_docs", {}, Part(Shown.WITH_CONTENT, "step", "format_docs")),
    ],
)
def test_part_of(name: str, known: dict[str, Any], expected: Part) -> None:
    given = {"run_type": None, "tags": None, "metadata": None, "outermost": False, **known}
    assert part_of(name, **given) == expected


def _graph(nodes: Any = None, config: Any = None, name: Any = None) -> Any:
    return SimpleNamespace(nodes=nodes, config=config, name=name)


def _asked_by(module: str) -> Any:
    return SimpleNamespace(bound=SimpleNamespace(func=SimpleNamespace(__module__=module)))


@pytest.mark.parametrize(
    ("graph", "config", "expected"),
    [
        (_graph(), None, Graph(False)),
        (_graph(name="team"), {"configurable": {"thread_id": 3}}, Graph(False, thread_id="3")),
        (_graph({"agent": _asked_by("my.own")}), {}, Graph(False)),
        (_graph(config={"metadata": CREATED}, name="LangGraph"), {}, Graph(True, None, frozenset({"model", "tools"}))),
        (
            _graph(config={"metadata": {**CREATED, "lc_agent_name": "bob"}}),
            {},
            Graph(True, "bob", frozenset({"model", "tools"})),
        ),
        (
            _graph({"agent": _asked_by("langgraph.prebuilt.chat_agent_executor")}, name="bob"),
            {"configurable": {"thread_id": "t"}},
            Graph(True, "bob", frozenset({"agent", "tools"}), "t"),
        ),
    ],
)
def test_graph_of(graph: Any, config: Any, expected: Graph) -> None:
    assert graph_of(graph, config) == expected


def test_a_graph_knows_better_than_what_it_inherits() -> None:
    inherited: dict[str, Any] = {"metadata": {**CREATED, "lc_agent_name": "bob"}, "in_agent": True}
    known: Any = {"run_type": None, "tags": None, "outermost": False, **inherited}
    assert part_of("LangGraph", **known, graph=Graph(False)) == NOT_SHOWN
    assert part_of("plan", **known, graph=Graph(False)) == Part(Shown.WITH_CONTENT, "step", "plan")
    assert part_of("LangGraph", **known, graph=Graph(True)) == Part(Shown.ALWAYS, "invoke_agent", None)
