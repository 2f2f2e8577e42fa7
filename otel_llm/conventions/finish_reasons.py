"""How an answer ended, in the provider's own word, wherever it stands.

The conventions name a few words (`stop`, `length`, `content_filter`, `tool_call`, `error`) and allow any other. What is recorded is
the provider's, the same in `gen_ai.response.finish_reasons`, in the table and in the messages: `end_turn` and `stop_sequence`, say,
are not the same. Only the Responses API, which has a state in place of a word, is given that of the chat API.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from otel_llm.conventions.token_usage import fields

INCOMPLETE: Final = {"max_output_tokens": "length", "max_tokens": "length"}
"""What limits a Responses answer -> the word of the chat API."""
_NAMES: Final = ("finish_reason", "stop_reason", "done_reason", "stopReason", "finishReason")
"""OpenAI and Google, Anthropic, Ollama, Bedrock, the JSON of Google's API."""
_NAME_SET: Final = frozenset(_NAMES)


def reason_in(*holders: object, asks_for_tools: bool = False) -> str | None:
    """The reason that the first of the `holders` gives which gives one: metadata in any provider's form.

    `asks_for_tools`: whether the answer asks for tools, which the state of a Responses answer does not tell.
    """
    for holder in holders:
        if holder and issubclass(type(holder), Mapping) and (reason := _reason(holder, asks_for_tools)):  # type: ignore[arg-type]
            return reason
    return None


def _reason(found: Mapping[str, Any], asks_for_tools: bool) -> str | None:
    for name in () if _NAME_SET.isdisjoint(found) else _NAMES:
        value = found.get(name)
        if value is None:
            continue
        if isinstance(value, Enum):
            value = value.name
        if isinstance(value, str) and value:
            return str(value)
    match found.get("status"):
        case "completed":
            return "tool_calls" if asks_for_tools else "stop"
        case "incomplete":
            limit = fields(found.get("incomplete_details")).get("reason")
            return INCOMPLETE.get(limit, limit) if isinstance(limit, str) else "incomplete"
        case "failed":
            return "error"
    return None
