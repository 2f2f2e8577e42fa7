"""How long a request and an answer are, in characters of text: numbers, never content.

The store learns from them how many tokens a model makes of a character, and estimates the calls that told no usage (see
`otel_llm.store.merge.estimates`). What is counted is text alone, in the same way whether a call reports its usage or not. A
request with anything else in it (an image, audio, a file, a hosted tool, a conversation that the provider keeps) has no length:
None, never a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from otel_llm.conventions.token_usage import fields
from otel_llm.support import fast_json

_ASKED: Final = ("messages", "input", "prompt", "instructions")
_TEXTS: Final = frozenset(
    {"content", "text", "refusal", "arguments", "input", "output", "name", "tool_calls", "function", "custom"}
)
"""Fields of a message, of a part of one and of a tool call that hold text, or hold such again."""
_TEXT_KINDS: Final = frozenset(
    {
        "message", "text", "input_text", "output_text", "refusal", "function", "custom", "function_call",
        "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning", "thinking", "tool_use", "tool_result",
    }
)  # fmt: skip
"""What has a length in characters, by its `type`."""
_LEFT_OUT: Final = frozenset({"reasoning", "thinking", "tool_use"})
"""Of those, what is not billed as input, or what a message of LangChain's has once more as a tool call."""
_CLIENT_TOOLS: Final = ("function", "custom")
"""Tools that bring nothing of their own into the request."""
_MANY: Final = 256
"""Messages that are looked at each; of more, every so many stands for those beside it."""
_MANY_TOOLS: Final = 16
_DEEPEST: Final = 8


class _NotText(Exception):
    """Something is not billed by its characters."""


def of_request(body: Mapping[str, Any]) -> int | None:
    """Characters that the body of a request to OpenAI asks with."""
    try:
        if body.get("previous_response_id") or body.get("conversation"):
            return None  # what was said before is not in it
        total = 0
        for name in _ASKED:
            if (value := body.get(name)) is not None:
                total += _length(value)
        if "tools" in body or "functions" in body:
            total += of_tools(body.get("tools") or body.get("functions"))
        if "response_format" in body or "text" in body:
            total += _schema(body)
    except _NotText:
        return None
    return total


def of_messages(messages: Sequence[Any], parameters: Mapping[str, Any] | None = None) -> int | None:
    """Characters of LangChain's messages or prompts, and of the tools among the parameters of the call."""
    try:
        total = sum([of_message(each) for each in messages])
        if parameters and (tools := parameters.get("tools") or parameters.get("functions")):
            total += of_tools(tools)
    except _NotText:
        return None
    return total


def of_message(message: object) -> int:
    """Characters of one of LangChain's messages, or of a prompt. Raises an exception of its own where there is more than text."""
    if isinstance(message, str):
        return len(message)
    told = fields(message)
    total = _length(told.get("content"))
    for call in told.get("tool_calls") or ():
        total += of_tool_call(fields(call))
    return total


def of_tool_call(call: Mapping[str, Any]) -> int:
    """Characters of the name and the arguments of a tool call, whole or a piece of one."""
    total = len(name) if type(name := call.get("name")) is str else 0
    arguments = call.get("args")
    return total + (len(arguments) if type(arguments) is str else _as_json(arguments))


def of_answer(message: object) -> tuple[int, int]:
    """Characters of a message of LangChain's that a model has written, and how many of them are its reasoning."""
    told = fields(message)
    thought = len(of) if type(of := fields(told.get("additional_kwargs")).get("reasoning_content")) is str else 0
    written = 0
    content = told.get("content")
    if isinstance(content, str):
        written = len(content)
    else:
        for part in content if isinstance(content, list | tuple) else ():
            said = fields(part)
            if type(text := part if isinstance(part, str) else said.get("text")) is str:
                written += len(text)
            elif type(text := said.get("thinking") or said.get("reasoning")) is str:
                thought += len(text)
    for call in told.get("tool_call_chunks") or told.get("tool_calls") or ():
        written += of_tool_call(fields(call))
    return written + thought, thought


def of_tools(tools: object) -> int:
    """Characters of the definitions of the client's own tools, as JSON."""
    if not isinstance(tools, list | tuple):
        return 0
    for tool in tools:
        kind = fields(tool).get("type")
        if kind is not None and (type(kind) is not str or kind not in _CLIENT_TOOLS):
            raise _NotText
    step = _step(len(tools), _MANY_TOOLS)
    return sum([_as_json(tool) for tool in tools[::step]]) * step


def _schema(body: Mapping[str, Any]) -> int:
    """Characters of the JSON schema that the answer is to have."""
    wanted = fields(body.get("response_format")) or fields(fields(body.get("text")).get("format"))
    return _as_json(wanted) if wanted.get("type") == "json_schema" else 0


def _as_json(value: object) -> int:
    if not value:
        return 0
    try:
        return len(fast_json.dumps(value))
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # a tool as a function or a class, which somebody turns into JSON later
        raise _NotText from None


def _step(number: int, many: int) -> int:
    """An odd one: messages of user and model take turns."""
    return 1 if number <= many else number // many | 1


def _length(value: object, depth: int = 0) -> int:
    if type(value) is str:
        return len(value)
    if value is None:
        return 0
    if type(value) is not list and type(value) is not tuple:
        return _length_of_part(fields(value), depth)
    if depth > _DEEPEST:
        raise _NotText
    step = 1 if len(value) <= _MANY else _step(len(value), _MANY)
    total = 0
    for each in value if step == 1 else value[::step]:
        if type(each) is dict and len(each) == 2 and type(text := each.get("content")) is str:
            total += len(text)  # as most messages are
        elif type(each) is str:
            total += len(each)
        else:
            total += _length_of_part(fields(each), depth)
    return total * step


def _length_of_part(part: Mapping[str, Any], depth: int) -> int:
    kind = part.get("type")
    if (type(kind) is not str or kind not in _TEXT_KINDS) if kind is not None else _TEXTS.isdisjoint(part):
        raise _NotText  # nor is the number of a token a part
    if kind in _LEFT_OUT:
        return 0
    total = 0
    for name, value in part.items():
        if name in _TEXTS and value:
            total += len(value) if type(value) is str else _length(value, depth + 1)
    return total
