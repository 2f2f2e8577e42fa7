"""What LangChain's messages and results say, as messages of the GenAI conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from otel_llm import faults, semconv
from otel_llm.content.openai import Message, definitions
from otel_llm.content.parts import Part, parts_of, tool_call, tool_call_response

_ROLES: Final = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "HumanMessageChunk": "user"}


def request(asked: Sequence[object], parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The content of a model run, by attribute name. Raises nothing.

    Args:
        asked: messages, lists of messages, or prompts.
        parameters: the run's `invocation_params`, which name the tools.
    """
    found: dict[str, Any] = {}
    try:
        if messages := [message for one in asked for message in _asked(one)]:
            found[semconv.INPUT_MESSAGES] = messages
        if tools := definitions((parameters or {}).get("tools")):
            found[semconv.TOOL_DEFINITIONS] = tools
    except Exception as fault:
        faults.report("read what a LangChain model is asked", fault)
    return found


def _asked(one: object) -> list[Message]:
    if isinstance(one, str):
        return [{"role": "user", "parts": parts_of(one)}]
    if isinstance(one, list | tuple):
        return [message for each in one for message in _asked(each)]
    return [_message(one)]


def _message(message: object) -> Message:
    kind = str(getattr(message, "type", "user"))
    role = getattr(message, "role", None) or _ROLES.get(kind, kind)
    content = getattr(message, "content", None)
    found: Message = {"role": str(role), "parts": []}
    if isinstance(name := getattr(message, "name", None), str):
        found["name"] = name
    if kind in ("tool", "function"):
        found["parts"].append(tool_call_response(getattr(message, "tool_call_id", None), content))
        return found
    calls = getattr(message, "tool_calls", None) or ()
    parts: list[Part] = parts_of(content)
    if calls:  # Anthropic's content repeats them
        parts = [part for part in parts if part["type"] != "tool_call"]
    for call in calls:
        if isinstance(call, Mapping):
            parts.append(tool_call(call.get("id"), call.get("name"), call.get("args")))
    found["parts"] = parts
    return found


def output(result: object) -> list[Message]:
    """The messages of an `LLMResult`, one for each candidate. Raises nothing."""
    found: list[Message] = []
    try:
        for candidates in getattr(result, "generations", None) or ():
            for generation in candidates if isinstance(candidates, list) else (candidates,):
                message = getattr(generation, "message", None)
                told = _message(message) if message is not None else None
                if told is None:
                    told = {"role": "assistant", "parts": parts_of(getattr(generation, "text", None))}
                for holder in (
                    getattr(generation, "generation_info", None),
                    getattr(message, "response_metadata", None),
                ):
                    reason = holder.get("finish_reason") if isinstance(holder, Mapping) else None
                    if isinstance(reason, str):
                        told["finish_reason"] = reason
                        break
                if told["parts"]:
                    found.append(told)
    except Exception as fault:
        faults.report("read what a LangChain model says", fault)
    return found


def tool_output(output: object) -> object:
    """What a tool returned: the content of a `ToolMessage`, else the value itself."""
    if hasattr(output, "tool_call_id"):
        return tool_call_response(None, getattr(output, "content", None))["response"]
    return output
