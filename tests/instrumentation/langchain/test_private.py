"""What we rely on that nobody promises is there in the installed LangChain: a new version that has it no more fails here first."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import RunnableConfig

from otel_llm.instrumentation.langchain import private

INSTALLED = f"langchain-core {version('langchain-core')}"


@pytest.mark.parametrize("kind", ["", "Async"])
def test_managers_are_told_of_every_run(kind: str) -> None:
    managers = import_module(private.MANAGERS)
    for event, asked in private.STARTS.items():
        parameters = list(inspect.signature(getattr(getattr(managers, f"{kind}CallbackManager"), event)).parameters)
        assert parameters[1:3] == ["serialized", asked], (INSTALLED, event)
    for run, events in private.OF_RUNS.items():
        manager = getattr(managers, f"{kind}CallbackManagerFor{run}")
        assert not [event for event in events if not hasattr(manager, event) and event not in private.NEW], INSTALLED


def test_a_request_is_made_in_one_place() -> None:
    for (module, model), names in (
        (private.CHAT_MODELS, private.CHAT_REQUEST),
        (private.TEXT_MODELS, private.TEXT_REQUEST),
    ):
        methods = [getattr(getattr(import_module(module), model), name) for name in names]
        assert [inspect.iscoroutinefunction(method) for method in methods] == [False, True], INSTALLED
        for method in methods:
            assert {"run_manager", "run_managers"} & set(inspect.signature(method).parameters), INSTALLED


def test_the_context_names_the_run_and_the_frame_its_configuration() -> None:
    seen: list[Any] = []

    class Handler(BaseCallbackHandler):
        def on_chain_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
            frame = sys._getframe()
            while frame.f_back is not None and private.configuration(frame) is None:
                frame = frame.f_back
            seen.append((run_id, (private.configuration(frame) or {}).get("configurable")))

    config = RunnableConfig(callbacks=[Handler()], configurable={"session_id": "s"})
    inside = RunnableLambda(lambda _: private.enclosing_run_id()).invoke(1, config)
    assert seen == [(inside, {"session_id": "s"})], INSTALLED
    assert private.enclosing_run_id() is None


def test_a_graph_is_known_where_it_starts() -> None:
    pytest.importorskip("langgraph")
    from langgraph.graph import END, START, StateGraph

    found: list[Any] = []

    def node(state: dict[str, Any]) -> dict[str, Any]:
        frame: Any = sys._getframe()
        while frame is not None and not found:
            if (started := private.starting_graph(frame)) is not None:
                found.append(started)
            frame = frame.f_back
        return {}

    graph = StateGraph(dict)
    graph.add_node("only", node)
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    made = graph.compile()
    made.invoke({"x": 1}, {"configurable": {"thread_id": "t"}})
    ((itself, config),) = found
    assert itself is made
    assert config["configurable"]["thread_id"] == "t", version("langgraph")


def test_a_react_agent_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    prebuilt = pytest.importorskip("langgraph.prebuilt")
    from langchain_core.language_models import FakeListChatModel

    class Model(FakeListChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    assert private.is_react_agent(prebuilt.create_react_agent(Model(responses=["x"]), [])), version("langgraph")
    assert not private.is_react_agent(object())
