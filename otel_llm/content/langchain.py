"""What LangChain's messages, runs and results say, as messages of the GenAI conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from otel_llm.content import capture
from otel_llm.content.openai import Message, chat_message, definitions
from otel_llm.content.parts import SLACK, TRUNCATED, Part, parts_of, plain, tool_call, tool_call_response
from otel_llm.content.secrets import is_secret, scrub
from otel_llm.conventions import semconv
from otel_llm.conventions.finish_reasons import reason_in
from otel_llm.settings import settings
from otel_llm.support import faults

_ROLES: Final = {"human": "user", "ai": "assistant"}
_CHUNKS: Final = {f"{kind}MessageChunk": kind.lower() for kind in ("AI", "Human", "System", "Tool", "Function", "Chat")}
"""The types of messages that were put together from the chunks of a stream, and of the same messages made at once."""


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
    kind = _CHUNKS.get(kind, kind)
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
                _add_reason(told, message, getattr(generation, "generation_info", None))
                if told["parts"]:
                    found.append(told)
    except Exception as fault:
        faults.report("read what a LangChain model says", fault)
    return found


def _add_reason(told: Message, message: object, *holders: object) -> None:
    asks = bool(getattr(message, "tool_calls", None))
    reason = reason_in(*holders, getattr(message, "response_metadata", None), asks_for_tools=asks)
    if reason is not None:
        told["finish_reason"] = reason


# --- the runs of agents and workflows ---------------------------------------------------------------------------------
def run_input(inputs: object) -> list[Message]:
    """The messages that a run is given; what is none is text from the user. Raises nothing."""
    try:
        return _given(inputs, "user")
    except Exception as fault:
        faults.report("read what a LangChain run is asked", fault)
        return []


def run_output(outputs: Any) -> list[Message]:
    """What a run answers: of a state that holds the whole conversation, its last message. Raises nothing."""
    try:
        state = outputs if issubclass(type(outputs), Mapping) else {}
        if "output" in state:  # of an `AgentExecutor`, beside its input
            return _given(state["output"], "assistant")
        history = state.get("messages")
        if type(history) in (list, tuple) and history:
            outputs = history[-1]
        found = _given(outputs, "assistant")
        if len(found) == 1 and _is_message(outputs):
            _add_reason(found[0], outputs)
        return found
    except Exception as fault:
        faults.report("read what a LangChain run answers", fault)
        return []


def _given(value: Any, role: str) -> list[Message]:
    """The messages in what a run takes or gives: text, messages in any of LangChain's forms, or a state that holds some."""
    is_state = issubclass(type(value), Mapping)
    held = value.get("messages") if is_state else None
    if (known := _messages(value)) is not None or (held is not None and (known := _messages(held)) is not None):
        return [message for message in known if message["parts"]]
    if not is_state:
        return [] if value is None else [_text_message(value, role)]
    found: list[Message] = []
    rest: dict[str, Any] = {}
    for name, item in dict.items(value) if issubclass(type(value), dict) else value.items():
        if those := _messages(item):
            found += those  # a history
        elif item is not None and not (type(item) is str and not item):
            rest[str(name)] = item
    if rest:
        name, item = next(iter(rest.items()))
        is_text = len(rest) == 1 and issubclass(type(item), str) and not is_secret(name)
        found.append(_text_message(item if is_text else rest, role))
    return found


def _text_message(value: object, role: str) -> Message:
    """A text; values of any other kind as JSON, without what stands in fields of secrets."""
    if not issubclass(type(value), str):
        longest = settings().content_limit + SLACK
        value = capture.as_json(scrub(plain(value, longest), longest, TRUNCATED))
    return {"role": role, "parts": parts_of(value)}


def _messages(value: Any) -> list[Message] | None:
    """The messages that `value` is; None where it is none.

    By `type`, here and below: an object of the app's may say that it is anything, and be asked nothing.
    """
    if issubclass(type(value), str):
        return None
    if _is_prompt(value):
        value = value.to_messages()
    if _is_message(value):
        return [_message(value)]
    if issubclass(type(value), Mapping):
        said: Mapping[str, Any] = value
        return [chat_message(said)] if isinstance(said.get("role"), str) and "content" in said else None
    if type(value) is tuple and len(value) == 2 and all(type(one) is str for one in value):
        role, text = value
        return [{"role": _ROLES.get(role, role), "parts": parts_of(text)}]
    if type(value) in (list, tuple):
        found: list[Message] = []
        for one in value:
            if (those := _messages(one)) is None:
                return None
            found += those
        return found
    return None


def _is_message(value: object) -> bool:
    from langchain_core.messages import BaseMessage  # it is there: this is called by LangChain

    return issubclass(type(value), BaseMessage)


def _is_prompt(value: object) -> bool:
    from langchain_core.prompt_values import PromptValue

    return issubclass(type(value), PromptValue)


def documents(found: Any) -> list[dict[str, Any]]:
    """What a retriever found, in the form of the conventions. Raises nothing."""
    from langchain_core.documents.base import BaseMedia

    told: list[dict[str, Any]] = []
    try:
        for one in found if type(found) in (list, tuple) else ():
            if not issubclass(type(one), BaseMedia):
                told.append({"content": one})
                continue
            metadata = getattr(one, "metadata", None)
            metadata = metadata if isinstance(metadata, Mapping) else {}
            document: dict[str, Any] = {}
            identity = getattr(one, "id", None) or metadata.get("id")
            if identity is not None:
                document["id"] = str(identity)
            score = metadata.get("score", metadata.get("relevance_score"))
            if isinstance(score, int | float):
                document["score"] = float(score)
            document["content"] = getattr(one, "page_content", None) or ""
            if metadata:
                document["metadata"] = metadata
            told.append(document)
    except Exception as fault:
        faults.report("read what a LangChain retriever found", fault)
    return told


def tool_output(output: object) -> object:
    """What a tool returned: the content of a `ToolMessage`, else the value itself."""
    if _is_message(output):
        return tool_call_response(None, getattr(output, "content", None))["response"]
    return output
