"""What we touch of LangChain and LangGraph that nobody promises to keep: all of it, and nothing of it elsewhere.

Seen in langchain-core 0.3.74 to 1.8 and langgraph 0.6 to 1.2. What is installed is asked for each by
`tests/instrumentation/langchain/test_private.py`.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Final
from uuid import UUID

MANAGERS: Final = "langchain_core.callbacks.manager"
STARTS: Final = {
    "on_chain_start": "inputs",
    "on_tool_start": "input_str",
    "on_retriever_start": "query",
    "on_chat_model_start": "messages",
    "on_llm_start": "prompts",
}
"""What the callback managers are told of runs that begin, and what the second argument of it is called."""
STARTS_OF_SEVERAL: Final = frozenset({"on_chat_model_start", "on_llm_start"})
"""Starts of several runs at once: one for each of what the second argument holds."""
OF_RUNS: Final = {
    "ChainRun": ("on_chain_end", "on_chain_error"),
    "ToolRun": ("on_tool_end", "on_tool_error"),
    "RetrieverRun": ("on_retriever_end", "on_retriever_error"),
    "LLMRun": ("on_llm_new_token", "on_llm_end", "on_llm_error", "on_stream_event"),
}
"""What the manager of one run is told of it, by the kind of the run."""
CHUNKS: Final = frozenset({"on_llm_new_token", "on_stream_event"})
NEW: Final = frozenset({"on_stream_event"})
"""Not in langchain-core 0.3."""

CHAT_MODELS: Final = ("langchain_core.language_models.chat_models", "BaseChatModel")
CHAT_REQUEST: Final = ("_generate_with_cache", "_agenerate_with_cache")
TEXT_MODELS: Final = ("langchain_core.language_models.llms", "BaseLLM")
TEXT_REQUEST: Final = ("_generate_helper", "_agenerate_helper")
"""The one place each where a request is known to belong to a run: sync and async."""

_CONFIG: Final = "langchain_core.runnables.config"
_REACT_AGENT: Final = "langgraph.prebuilt.chat_agent_executor"


def enclosing_run_id() -> UUID | None:
    """The run that goes on in this context, by LangChain's own context variable; None where it is not imported."""
    module = sys.modules.get(_CONFIG)
    config = None if module is None else module.var_child_runnable_config.get()
    return None if config is None else getattr(config.get("callbacks"), "parent_run_id", None)


def starting_graph(frame: FrameType) -> tuple[Any, Any] | None:
    """The graph of LangGraph's that is started in a frame, and its configuration; None where the frame is another."""
    home = str(frame.f_globals.get("__name__"))
    if home.startswith("langgraph.") and frame.f_code.co_name in ("stream", "astream"):
        return frame.f_locals.get("self"), frame.f_locals.get("config")
    return None


def configuration(frame: FrameType) -> dict[str, Any] | None:
    """The configuration of a runnable that is started in a frame."""
    if not str(frame.f_globals.get("__name__")).startswith("langchain_core.runnables."):
        return None
    config = frame.f_locals.get("config")
    return config if isinstance(config, dict) else None


def is_react_agent(graph: Any) -> bool:
    """Whether a graph is what `create_react_agent` makes, which leaves no other mark on it."""
    node = (getattr(graph, "nodes", None) or {}).get("agent")
    return getattr(getattr(getattr(node, "bound", None), "func", None), "__module__", None) == _REACT_AGENT
