"""What a model answered, read from LangChain's `LLMResult`, whatever model it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_llm.conventions import semconv
from otel_llm.conventions.finish_reasons import reason_in
from otel_llm.conventions.token_usage import Usage, count, from_langchain, from_openai
from otel_llm.conventions.tool_calls import ToolRequests
from otel_llm.settings import settings

_NOTHING: Mapping[str, Any] = {}
_LANGCHAIN_IDS = ("lc_run-", "run-")
_MODEL_KEYS = ("model_name", "model", "model_id")
_USAGE_KEYS = ("token_usage", "usage")


class ModelResult:
    """The facts of one or more results that are recorded. Keeps no reference to the results."""

    __slots__ = ("_finish_reasons", "_messages", "_requested", "cache_hit", "id", "model", "usage")

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.cache_hit = False
        self._finish_reasons: list[str] = []
        self._requested: ToolRequests | None = None
        self._messages: list[dict[str, Any]] = []
        """The messages of the results, where content is captured."""

    def see(self, result: object) -> None:
        """Takes what an `LLMResult` tells; the usage of several adds up."""
        if settings().captures_content:
            from otel_llm.content.langchain import output as messages

            self._messages += messages(result)
        output = _mapping(getattr(result, "llm_output", None))
        usage = None
        for candidates in getattr(result, "generations", None) or ():
            for generation in candidates if isinstance(candidates, list) else (candidates,):
                found = self._see_generation(generation, bool(output))
                usage = usage or found  # every candidate carries the usage of them all
        self.model = self.model or _text(output, _MODEL_KEYS)
        self.id = self.id or _text(output, ("id",))
        if usage is None and not self.cache_hit:
            usage = _usage(output)
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage.plus(usage)

    def _see_generation(self, generation: object, has_output: bool) -> Usage | None:
        message = getattr(generation, "message", None)
        told = _mapping(getattr(message, "response_metadata", None))
        info = _mapping(getattr(generation, "generation_info", None))
        self.model = self.model or _text(told, _MODEL_KEYS) or _text(info, _MODEL_KEYS)
        identity = _text(told, ("id",)) or getattr(message, "id", None)
        if self.id is None and isinstance(identity, str) and not identity.startswith(_LANGCHAIN_IDS):
            self.id = identity
        asked = getattr(message, "tool_calls", None) or ()
        if reason := reason_in(info, told, asks_for_tools=bool(asked)):
            self._finish_reasons.append(reason)
        for call in asked:
            told_of = _mapping(call)
            self._requested = self._requested or ToolRequests()
            self._requested.add(_text(told_of, ("id",)), _text(told_of, ("name",)))
        reported = getattr(message, "usage_metadata", None)
        if not has_output and _is_cache_hit(reported):
            self.cache_hit = True
            return None
        return from_langchain(reported) or _usage(info) or _usage(told)

    def attributes(self) -> dict[str, Any]:
        """The span attributes, usage apart."""
        found: dict[str, Any] = {}
        if self.id is not None:
            found[semconv.RESPONSE_ID] = self.id
        if self.model is not None:
            found[semconv.RESPONSE_MODEL] = self.model
        if self._finish_reasons:
            found[semconv.FINISH_REASONS] = self._finish_reasons
        if self.cache_hit:
            found[semconv.CACHE_HIT] = True
        if self._requested is not None:
            found |= self._requested.attributes()
        if self._messages:
            found[semconv.OUTPUT_MESSAGES] = self._messages
        return found


def _is_cache_hit(usage: object) -> bool:
    # BaseChatModel marks an answer out of its cache by a cost of nought beside the usage of the day it was paid for.
    return isinstance(usage, Mapping) and usage.get("total_cost", 1) == 0


def _usage(source: Mapping[str, Any]) -> Usage | None:
    for key in _USAGE_KEYS:
        if found := from_openai(source.get(key)):
            return found
    # Ollama
    return Usage(count(source.get("prompt_eval_count")), count(source.get("eval_count"))) or None


def _text(source: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = source.get(key)
        if isinstance(value, str) and value:
            return value
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else _NOTHING
