"""The loop of a model and its tools: what to run next, apart from how it is run (with `await` or without)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as as_tool


class StepLimitReached(RuntimeError):
    """The model still asks for tools after as many calls as were allowed."""

    __module__ = "otel_llm.routing"


class _ModelCall:
    def __init__(self, model: Any, messages: list[BaseMessage]) -> None:
        self._model = model
        self._messages = messages

    def invoke(self, config: RunnableConfig) -> Any:
        return self._model.invoke(self._messages, config)

    async def ainvoke(self, config: RunnableConfig) -> Any:
        return await self._model.ainvoke(self._messages, config)


class _ToolCall:
    """A call of a tool that the model asked for. It always ends in a ToolMessage: the model is told what went wrong."""

    def __init__(self, tool: Any, call: Mapping[str, Any], problem: str | None = None) -> None:
        self._tool = tool
        self._call = call
        self._problem = problem

    def invoke(self, config: RunnableConfig) -> ToolMessage:
        if self._problem is not None:
            return self._failed(self._problem)
        try:
            return self._message(self._tool.invoke(self._call, config))
        except Exception as error:
            return self._failed(f"{type(error).__name__}: {error}")

    async def ainvoke(self, config: RunnableConfig) -> ToolMessage:
        if self._problem is not None:
            return self._failed(self._problem)
        try:
            return self._message(await self._tool.ainvoke(self._call, config))
        except Exception as error:
            return self._failed(f"{type(error).__name__}: {error}")

    def _message(self, result: Any) -> ToolMessage:
        return result if isinstance(result, ToolMessage) else self._said(str(result), "success")

    def _failed(self, problem: str) -> ToolMessage:
        return self._said(f"Error: {problem}", "error")

    def _said(self, content: str, status: str) -> ToolMessage:
        call = self._call
        return ToolMessage(content, tool_call_id=call.get("id") or "", name=call.get("name"), status=status)


Steps = Generator[Sequence[_ModelCall | _ToolCall], Sequence[Any], AIMessage]


def by_name(tools: Sequence[BaseTool | Callable[..., Any]]) -> dict[str, BaseTool]:
    """The tools as LangChain's, by name. Raises ValueError for two of one name."""
    found: dict[str, BaseTool] = {}
    for each in tools:
        one = each if isinstance(each, BaseTool) else as_tool(each)
        if one.name in found:
            raise ValueError(f"two tools are named {one.name!r}; rename one")
        found[one.name] = one
    return found


def steps(
    model: Any, tools: Mapping[str, BaseTool], input: Any, max_steps: int, transcript: list[BaseMessage] | None
) -> Steps:
    """Yields what to run, is sent the results, returns the answer. Raises StepLimitReached."""
    messages = _messages(input)
    added: list[BaseMessage] = [] if transcript is None else transcript
    for _ in range(max_steps):
        (answer,) = yield [_ModelCall(model, list(messages))]
        messages.append(answer)
        added.append(answer)
        asked = [_asked(tools, call) for call in answer.tool_calls]
        asked += [_ToolCall(None, call, "the arguments are not valid JSON") for call in answer.invalid_tool_calls]
        if not asked:
            return answer
        results = yield asked
        messages.extend(results)
        added.extend(results)
    raise StepLimitReached(f"the model asks for further tools after {max_steps} steps; raise max_steps, or look why")


def run(loop: Steps, config: RunnableConfig) -> AIMessage:
    """Runs the loop, one thing after the other."""
    try:
        todo = next(loop)
        while True:
            todo = loop.send([one.invoke(config) for one in todo])
    except StopIteration as end:
        return end.value


async def arun(loop: Steps, config: RunnableConfig) -> AIMessage:
    """Runs the loop, the tools of one answer at the same time."""
    try:
        todo = next(loop)
        while True:
            todo = loop.send(await asyncio.gather(*(one.ainvoke(config) for one in todo)))
    except StopIteration as end:
        return end.value


def _asked(tools: Mapping[str, BaseTool], call: Mapping[str, Any]) -> _ToolCall:
    tool = tools.get(call["name"])
    if tool is None:
        return _ToolCall(None, call, f"there is no tool {call['name']!r}; there is {', '.join(tools) or 'none'}")
    return _ToolCall(tool, call)


def _messages(input: Any) -> list[BaseMessage]:
    if isinstance(input, PromptValue):
        return list(input.to_messages())
    if isinstance(input, str | BaseMessage):
        input = [input]
    return list(convert_to_messages(input))
