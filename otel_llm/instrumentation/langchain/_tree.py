"""Which runs become spans.

LangChain reports every part of every chain as a run; most of them are plumbing. The tree shows what the author of an app would
draw:

- a model call, a tool and a retriever: always;
- the outermost run: `invoke_workflow {name}`, or `invoke_agent {name}` for an agent. A prompt template or a parser that is
  invoked on its own is neither;
- an agent anywhere (`create_agent`, `AgentExecutor`): `invoke_agent {name}`. Its own `model` and `tools` nodes are not shown: the
  calls and tools in them are;
- a node of a LangGraph graph: `step {name}`;
- a run with a name of its own (a function, `run_name`, a named sub-graph): `step {name}`, but only once something is recorded
  under it, so that `format_docs` and the like stay out;
- everything else passes through: what is under it hangs on the nearest of the above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from otel_llm import semconv


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


_NOTHING = Part(Shown.NEVER)
_UNNAMED_GRAPH = "LangGraph"
_AGENT_INTEGRATIONS = frozenset({"langchain_create_agent", "deepagents"})
_NODES_OF_AGENTS = frozenset({"model", "tools"})
_PLUMBING_TYPES = frozenset({"prompt", "parser"})


def part_of(
    name: str,
    run_type: str | None,
    tags: Sequence[str] | None,
    metadata: Mapping[str, Any] | None,
    *,
    outermost: bool,
    in_agent: bool = False,
    enclosing_agent: str | None = None,
) -> Part:
    """What becomes of a chain run.

    Args:
        name: of the run: its `run_name`, else the runnable's name.
        run_type: as given to `on_chain_start`.
        tags, metadata: of the run; both are inherited from the runs above, save for a node's `graph:step:` tag.
        outermost: nothing that encloses it is in the tree.
        in_agent: an agent encloses it.
        enclosing_agent: its name, if it has one.
    """
    metadata = metadata or {}
    is_agents = metadata.get("ls_integration") in _AGENT_INTEGRATIONS
    if metadata.get("langgraph_node") == name and tags and any(tag.startswith("graph:step:") for tag in tags):
        if (is_agents and name in _NODES_OF_AGENTS) or name.startswith("__"):
            return _NOTHING
        return Part(Shown.ALWAYS, semconv.STEP, name)
    agent = metadata.get("lc_agent_name")
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
