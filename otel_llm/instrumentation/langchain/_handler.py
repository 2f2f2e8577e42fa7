"""LangChain's events, turned into the beginning and end of runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, TypeVar
from uuid import UUID

from otel_llm.calls import abandoned, ending, tracing
from otel_llm.conventions import semconv
from otel_llm.conventions.tool_calls import returned_by_tool, returned_in_chat
from otel_llm.instrumentation.langchain._models import ModelRequest
from otel_llm.instrumentation.langchain._runs import Runs
from otel_llm.instrumentation.langchain._tree import Graph, conversation_of, is_unnamed, part_of
from otel_llm.settings import settings
from otel_llm.support import faults

_Hook = TypeVar("_Hook", bound=Callable[..., None])
_ReadContent = Callable[[], dict[str, Any]]

_MODELS = ("ai", "AIMessageChunk")
_TOOLS = ("tool", "ToolMessageChunk")
"""The types of LangChain's messages; those of a stream that was put together are chunks still."""


def _safe(hook: _Hook) -> _Hook:
    """No exception of ours reaches LangChain, which would log it as the app's."""

    @wraps(hook)
    def safe(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception as fault:
            faults.report(f"take LangChain's {hook.__name__}", fault)

    return safe  # type: ignore[return-value]


class Handler:
    """Keeps the runs. Told of every event in order, in its context; no handler of LangChain's (see `_callbacks`)."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    # --- chains ------------------------------------------------------------------------------------------------------
    @_safe
    def on_chain_start(
        self,
        serialized: Mapping[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_type: str | None = None,
        name: str | None = None,
        graph: Graph | None = None,
        configured: str | None = None,
        **kwargs: Any,
    ) -> None:
        runs = self._runs
        if not _is_wanted(runs) or runs.get(run_id) is not None:  # LangGraph may tell its tracers in a second round
            return
        parent = runs.parent(parent_run_id)
        part = part_of(
            name or _name_of(serialized, "chain"),
            run_type,
            tags,
            metadata,
            outermost=parent is None or not parent.in_tree,
            in_agent=parent is not None and parent.in_agent,
            enclosing_agent=None if parent is None else parent.agent_name,
            graph=graph,
            hidden_nodes=frozenset() if parent is None else parent.hidden_nodes,
        )
        said = {}
        if part.operation in semconv.CHAIN_OPERATIONS and settings().captures_content:
            said = _run_content(inputs=inputs)
        run = runs.begin(run_id, parent, part.name, conversation_of(metadata))
        if graph is not None and graph.thread_id is not None:
            run.conversation_id = run.conversation_configured = graph.thread_id
        elif configured is not None and configured != run.conversation_configured:
            run.conversation_id = run.conversation_configured = configured
        if part.operation == semconv.INVOKE_WORKFLOW and not is_unnamed(part.name, (serialized or {}).get("id")):
            run.workflow_name = part.name
        runs.begin_chain(run, parent, part, said)

    @_safe
    def on_chain_end(self, outputs: Any, *, run_id: UUID, inputs: Any = None, **kwargs: Any) -> None:
        said = self._content_at_end(run_id, inputs, outputs)
        self._runs.end(run_id, semconv.OK, attributes=None if said is None else said())

    @_safe
    def on_chain_error(self, error: BaseException, *, run_id: UUID, inputs: Any = None, **kwargs: Any) -> None:
        self._fail(run_id, error, self._content_at_end(run_id, inputs))

    def _content_at_end(self, run_id: UUID, inputs: Any, outputs: Any = None) -> _ReadContent | None:
        """Reads what is known at the end alone: the answer, and what a stream was given, which LangChain tells then.

        None where there is nothing to read.
        """
        if not settings().captures_content or (run := self._runs.get(run_id)) is None:
            return None
        return partial(_run_content, inputs, outputs) if run.operation in semconv.CHAIN_OPERATIONS else None

    # --- tools -------------------------------------------------------------------------------------------------------
    @_safe
    def on_tool_start(
        self,
        serialized: Mapping[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tool_call_id: str | None = None,
        name: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        runs = self._runs
        if not _is_wanted(runs):
            return
        tool = _name_of(serialized, name or "tool")
        attributes = {semconv.TOOL_NAME: tool, semconv.TOOL_TYPE: "function"}
        if description := (serialized or {}).get("description"):
            attributes[semconv.TOOL_DESCRIPTION] = str(description)
        if tool_call_id:
            attributes[semconv.TOOL_CALL_ID] = str(tool_call_id)
        if settings().captures_content:
            attributes |= _content(semconv.TOOL_CALL_ARGUMENTS, input_str if inputs is None else inputs)
        run = runs.begin(run_id, runs.parent(parent_run_id), tool, conversation_of(metadata))
        runs.open_span(run, semconv.EXECUTE_TOOL, tool, attributes)

    @_safe
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        said = _content(semconv.TOOL_CALL_RESULT, output) if settings().captures_content else {}
        identity, has_failed = returned_by_tool(output)
        if identity is not None:
            said[semconv.TOOL_CALL_ID] = identity  # older LangChains do not tell it at the start
        if has_failed:  # a tool that handles its own errors says so
            self._runs.end(run_id, semconv.ERROR, "tool_error", attributes=said)
        else:
            self._runs.end(run_id, semconv.OK, attributes=said)

    @_safe
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._fail(run_id, error)

    # --- retrievers --------------------------------------------------------------------------------------------------
    @_safe
    def on_retriever_start(
        self,
        serialized: Mapping[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        name: str | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        runs = self._runs
        if not _is_wanted(runs):
            return
        said = _content(semconv.RETRIEVAL_QUERY, query) if settings().captures_content else {}
        name = name or _name_of(serialized, "retriever")
        runs.begin_retriever(run_id, runs.parent(parent_run_id), name, said, conversation_of(metadata))

    @_safe
    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        said = _content(semconv.RETRIEVAL_DOCUMENTS, documents) if settings().captures_content else None
        self._runs.end(run_id, semconv.OK, attributes=said)

    @_safe
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._fail(run_id, error)

    # --- models ------------------------------------------------------------------------------------------------------
    @_safe
    def on_chat_model_start(
        self,
        serialized: Mapping[str, Any] | None,
        messages: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        runs = self._runs
        if not _is_wanted(runs):
            return
        run = runs.begin(run_id, runs.parent(parent_run_id), _name_of(serialized, ""), conversation_of(metadata))
        run.request = ModelRequest(semconv.CHAT, serialized, metadata, invocation_params, messages)
        last = messages[0] if messages else ()
        if returned := returned_in_chat(last, "type", _MODELS, _TOOLS):
            run.request.attributes[semconv.RETURNED_TOOL_IDS] = returned
        runs.begin_call(run, may_adopt=batch_size == 1)

    @_safe
    def on_llm_start(
        self,
        serialized: Mapping[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        runs = self._runs
        if not _is_wanted(runs):
            return
        run = runs.begin(run_id, runs.parent(parent_run_id), _name_of(serialized, ""), conversation_of(metadata))
        run.request = ModelRequest(semconv.TEXT_COMPLETION, serialized, metadata, invocation_params, prompts)
        run.started_ns = time.time_ns()
        if batch_size <= 1:
            runs.begin_call(run)
        # Else `CallbackHooks.generate_many` is next, and knows whether the prompts share a request.

    @_safe
    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        run = self._runs.get(run_id)
        if run is not None and run.model is not None:
            run.model.chunk(token, kwargs.get("chunk"))

    @_safe
    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        run = self._runs.get(run_id)
        if run is not None and run.model is not None:
            run.model.chunk(event)

    @_safe
    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        run = self._runs.end(run_id, semconv.OK)
        if run is not None and (model := self._runs.model_of(run)) is not None:
            model.end(response)

    @_safe
    def on_llm_error(self, error: BaseException, *, run_id: UUID, response: Any = None, **kwargs: Any) -> None:
        run = self._runs.end(run_id, semconv.ERROR)
        if run is not None and (model := self._runs.model_of(run)) is not None:
            model.fail(error, response)

    # --- ends --------------------------------------------------------------------------------------------------------
    def _fail(self, run_id: UUID, error: BaseException, said: _ReadContent | None = None) -> None:
        runs = self._runs
        status, error_type = ending.status_of(error), ending.error_type_of(error)
        if (
            status == semconv.PARTIAL
        ):  # a generator that is closed, perhaps by the garbage collector: no place for a redactor
            runs.end_later(run_id, status, None)
            return
        attributes = None if said is None else said()
        if ending.is_control_flow(error):
            runs.end(run_id, semconv.OK, attributes=attributes)
            return
        run = runs.end(run_id, status, error_type, error=error, attributes=attributes)
        if run is not None and status == semconv.CANCELLED:
            runs.end_under(run, error_type)


def tell_to_the_end(runs: Runs, handler: Handler) -> None:
    """Has LangChain itself tell `handler` how the runs under way end, for when nothing of it is wrapped any more."""
    managers = runs.managers()
    if not managers:
        return
    from langchain_core.callbacks.base import BaseCallbackHandler

    ends = {
        name: getattr(handler, name) for name in dir(handler) if name.endswith(("_end", "_error", "_token", "_event"))
    }
    teller = type("OtelLLM", (BaseCallbackHandler,), {"run_inline": True})()
    vars(teller).update(ends)
    for manager in managers:
        manager.handlers = [*manager.handlers, teller]  # a new list: others have the one that it was


def _content(name: str, value: Any) -> dict[str, Any]:
    """What a tool or a retriever is asked or answers, as its span takes it."""
    from otel_llm.content import capture  # only with capture
    from otel_llm.content.langchain import documents, tool_output

    try:
        return capture.on_span({name: documents(value) if name == semconv.RETRIEVAL_DOCUMENTS else tool_output(value)})
    except Exception as fault:  # an object of the app's that is not what it seems
        faults.report("read what a tool or a retriever is asked or answers", fault)
        return {}


def _run_content(inputs: Any = None, outputs: Any = None) -> dict[str, Any]:
    """What an agent or a workflow is asked and answers, as its span takes it."""
    from otel_llm.content import capture  # only with capture
    from otel_llm.content.langchain import run_input, run_output

    if not settings().capture.in_span:
        return {}  # the conventions have no event for them
    said = {semconv.INPUT_MESSAGES: run_input(inputs), semconv.OUTPUT_MESSAGES: run_output(outputs)}
    return capture.on_span({name: messages for name, messages in said.items() if messages})


def _is_wanted(runs: Runs) -> bool:
    abandoned.finish_abandoned()
    return runs.active and not tracing.is_off()


def _name_of(serialized: Mapping[str, Any] | None, default: str) -> str:
    told = serialized or {}
    name = told.get("name") or (told.get("id") or (None,))[-1]
    return str(name) if name else default
