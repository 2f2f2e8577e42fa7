"""Tool calls by their ids: which answer asked for one, and which request brings its result.

Ids and names are not content. Arguments and results are, and are not looked at here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final, TypeGuard

from opentelemetry.trace import Link, SpanContext

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import fields

MAX_CALLS: Final = 128
"""Tool calls of one answer, or results in one request, that are recorded."""
_MAX_ASKED: Final = 10_000
_LONGEST_ID: Final = 256


class ToolRequests:
    """The tools that an answer asks the client to run."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[str, str] = {}

    def add(self, identity: str | None, name: str | None) -> None:
        """Notes a call; one that comes again counts once."""
        if len(self._calls) < MAX_CALLS:
            # Not every server gives ids; each call still counts.
            self._calls.setdefault(identity or f"#{len(self._calls)}", name or "")

    def attributes(self) -> dict[str, Any]:
        """The span attributes."""
        return {
            semconv.REQUESTED_TOOL_IDS: ["" if identity.startswith("#") else identity for identity in self._calls],
            semconv.REQUESTED_TOOL_NAMES: list(self._calls.values()),
        }


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value can be the id of a call, and no text that somebody put there."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_ID and value.isprintable()


def returned_in_chat(
    messages: object,
    speaker: str = "role",
    models: Container[object] = ("assistant",),
    tools: Container[object] = ("tool",),
) -> list[str]:
    """Ids of the calls whose results end the messages of a chat request: since the model last spoke.

    Args:
        messages: mappings or objects.
        speaker: the field that says whose a message is; other frameworks than OpenAI's have other names for it.
        models: what it says in the model's own messages.
        tools: what it says in the results of tools.
    """
    found: list[str] = []
    if not isinstance(messages, list | tuple):
        return found
    for message in reversed(messages):
        said = fields(message)
        role = said.get(speaker)
        if role in models or len(found) >= MAX_CALLS:
            break
        if role in tools and is_id(identity := said.get("tool_call_id")):
            found.append(identity)
    return found[::-1]


def returned_in_input(items: object) -> list[str]:
    """The same for the input of a Responses request.

    Calls and their results may take turns there, so the calls are passed over.
    """
    found: list[str] = []
    if not isinstance(items, list | tuple):
        return found
    for item in reversed(items):
        said = fields(item)
        kind = said.get("type")
        if said.get("role") is not None or kind == "reasoning" or len(found) >= MAX_CALLS:
            break
        if isinstance(kind, str) and kind.endswith("_call_output") and is_id(identity := said.get("call_id")):
            found.append(identity)
    return found[::-1]


def returned_by_tool(output: object) -> tuple[str | None, bool]:
    """The id of the call that a tool of LangChain's answers, and whether it answers that it failed.

    It may return a message, a `Command` of LangGraph's that holds some, or several. By the names of their types: nothing else that
    a tool returns is asked for anything.
    """
    kind = _names(output)
    if "ToolMessage" in kind:
        identity = getattr(output, "tool_call_id", None)
        return identity if is_id(identity) else None, getattr(output, "status", None) == "error"
    if "Command" in kind:
        update = getattr(output, "update", None)
        output = update.get("messages") if type(update) is dict else None
    if type(output) in (list, tuple):
        for one in reversed(output):  # type: ignore[call-overload]
            if _names(one) & {"ToolMessage", "Command"}:
                return returned_by_tool(one)[0], False
    return None, False


def _names(value: object) -> set[str]:
    return {cls.__name__ for cls in type(value).__mro__ if cls.__module__.startswith(("langchain_core.", "langgraph."))}


_asked: OrderedDict[str, SpanContext] = OrderedDict()
"""By id of a tool call: the span whose answer asked for it. The last ten thousand."""


def remember(attributes: Mapping[str, Any], span: SpanContext) -> None:
    """Notes which tool calls an answer asks for."""
    for identity in attributes.get(semconv.REQUESTED_TOOL_IDS, ()):
        if identity:
            _asked[identity] = span
            if len(_asked) > _MAX_ASKED:
                try:
                    _asked.popitem(last=False)
                except KeyError:  # another thread was quicker
                    pass


def links(identities: Iterable[str]) -> list[Link]:
    """Links from a request to the spans of this process whose answers asked for the results that it brings."""
    return [
        Link(span, {semconv.TOOL_CALL_ID: identity})
        for identity in identities
        if (span := _asked.get(identity)) is not None
    ]
