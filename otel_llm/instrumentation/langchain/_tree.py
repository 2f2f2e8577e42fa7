"""Which runs become spans.

LangChain reports every part of every chain as a run; most of them are plumbing. The tree shows what the author of an app would
draw:

- a model call, a tool and a retriever: always;
- the outermost run: `invoke_workflow {name}`, or `invoke_agent {name}` for an agent. A prompt template or a parser that is
  invoked on its own is neither. Where its author gave it no name the span has that of its class (`RunnableSequence`,
  `LangGraph`), and `gen_ai.workflow.name` is not set;
- an agent anywhere (`create_agent`, `create_react_agent`, `AgentExecutor`): `invoke_agent {name}`. Its own nodes for the model and
  the tools are not shown: the calls and tools in them are;
- a node of a LangGraph graph: `step {name}`;
- a run with a name of its own (a function, `run_name`, a named sub-graph): `step {name}`, but only once something is recorded
  under it, so that `format_docs` and the like stay out;
- everything else passes through: what is under it hangs on the nearest of the above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

from otel_llm.context import clean
from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import private
from otel_llm.support import faults


class Shown(Enum):
    """Whether a run gets a span."""

    ALWAYS = "always"
    WITH_CONTENT = "once something is recorded under it"
    NEVER = "never"


class Part(NamedTuple):
    """What a chain run is in the tree."""

    shown: Shown
    operation: str = ""
    name: str | None = None
    hidden_nodes: frozenset[str] = frozenset()
    """The nodes of its own that are plumbing."""


class Graph(NamedTuple):
    """What a graph of LangGraph's knows of itself."""

    is_agent: bool
    name: str | None = None
    """An agent's; None where its author gave it none."""
    hidden_nodes: frozenset[str] = frozenset()
    thread_id: str | None = None
    """The conversation that it runs in."""


_NOTHING = Part(Shown.NEVER)
_UNNAMED_GRAPH = "LangGraph"
_AGENT_INTEGRATIONS = frozenset({"langchain_create_agent", "deepagents"})
_NODES_OF_AGENTS = frozenset({"model", "tools"})
_NODES_OF_REACT_AGENTS = frozenset({"agent", "tools"})
_CLASSES_OF = ("langchain", "langchain_core", "langchain_classic", "langchain_community", "langgraph")
CONVERSATIONS = ("thread_id", "session_id", "conversation_id")
"""Where a run's metadata names the conversation; LangGraph's own name for it first."""
_PLUMBING_TYPES = frozenset({"prompt", "parser"})


def graph_of(graph: Any, config: Any) -> Graph:
    """What is known of a graph that is about to run, and of the thread that it runs in."""
    thread_id = conversation_of((config or {}).get("configurable"), CONVERSATIONS[:1])
    metadata = (getattr(graph, "config", None) or {}).get("metadata") or {}
    if metadata.get("ls_integration") in _AGENT_INTEGRATIONS:
        return Graph(True, metadata.get("lc_agent_name") or _own_name(graph), _NODES_OF_AGENTS, thread_id)
    if private.is_react_agent(graph):
        return Graph(True, _own_name(graph), _NODES_OF_REACT_AGENTS, thread_id)
    return Graph(False, thread_id=thread_id)


def _own_name(graph: Any) -> str | None:
    name = getattr(graph, "name", None)
    return name if isinstance(name, str) and name != _UNNAMED_GRAPH else None


def conversation_of(metadata: Mapping[str, Any] | None, keys: Sequence[str] = CONVERSATIONS) -> str | None:
    """What LangChain's app calls the conversation that a run belongs to."""
    if metadata:
        for key in keys:
            value = metadata.get(key)
            try:
                if isinstance(value, str | int | UUID) and not isinstance(value, bool) and (text := clean(value)):
                    return text
            except Exception as error:  # an integer of too many digits, a text that is not what it seems
                faults.pass_on(error)
    return None


def is_unnamed(name: str | None, class_path: Sequence[Any] | None) -> bool:
    """Whether a run's name is what LangChain calls it for want of one: the class of its runnable.

    `class_path`: where that is, as `serialized` has it.
    """
    head = (name or "").partition("<")[0]
    if head == _UNNAMED_GRAPH or (head.startswith("Runnable") and head.isidentifier()):
        return True
    return class_path is not None and len(class_path) > 1 and class_path[-1] == head and class_path[0] in _CLASSES_OF


def part_of(
    name: str,
    run_type: str | None,
    tags: Sequence[str] | None,
    metadata: Mapping[str, Any] | None,
    *,
    outermost: bool,
    in_agent: bool = False,
    enclosing_agent: str | None = None,
    graph: Graph | None = None,
    hidden_nodes: frozenset[str] = frozenset(),
) -> Part:
    """What becomes of a chain run.

    Args:
        name: of the run: its `run_name`, else the runnable's name.
        run_type: as given to `on_chain_start`.
        tags, metadata: of the run; both are inherited from the runs above, save for a node's `graph:step:` tag.
        outermost: nothing that encloses it is in the tree.
        in_agent: an agent encloses it.
        enclosing_agent: its name, if it has one.
        graph: what is known of the graph whose run this is.
        hidden_nodes: those of the agent whose node this may be.
    """
    metadata = metadata or {}
    is_agents = metadata.get("ls_integration") in _AGENT_INTEGRATIONS
    if metadata.get("langgraph_node") == name and tags and any(tag.startswith("graph:step:") for tag in tags):
        if (is_agents and name in _NODES_OF_AGENTS) or name in hidden_nodes or name.startswith("__"):
            return _NOTHING
        return Part(Shown.ALWAYS, semconv.STEP, name)
    if graph is not None:
        if graph.is_agent:
            return Part(Shown.ALWAYS, semconv.INVOKE_AGENT, graph.name, graph.hidden_nodes)
        is_agents = False  # by inheritance, for a graph that an agent's tool runs
    agent = None if graph is not None else metadata.get("lc_agent_name")
    is_new_agent = agent and agent != enclosing_agent  # what is under an agent inherits its `lc_agent_name`
    if is_new_agent or name in (agent, "AgentExecutor") or (is_agents and (name == _UNNAMED_GRAPH or not in_agent)):
        if is_new_agent:
            name = str(agent)  # rather than a `run_name`, which may be another for every run
        return Part(Shown.ALWAYS, semconv.INVOKE_AGENT, None if name == _UNNAMED_GRAPH else name)
    if run_type in _PLUMBING_TYPES:
        return _NOTHING
    if outermost:
        return Part(Shown.ALWAYS, semconv.INVOKE_WORKFLOW, name)
    if name == _UNNAMED_GRAPH or name.startswith("Runnable") or name.endswith(">"):
        return _NOTHING
    return Part(Shown.WITH_CONTENT, semconv.STEP, name)
