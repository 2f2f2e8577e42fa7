"""What a model answered, read from LangChain's `LLMResult`, whatever model it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_llm.conventions import characters, semconv
from otel_llm.conventions.finish_reasons import reason_in
from otel_llm.conventions.server_tools import server_tools
from otel_llm.conventions.token_usage import Usage
from otel_llm.conventions.tool_calls import ToolRequests
from otel_llm.conventions.usage_reading import NO_UNITS, Reading, read_usage
from otel_llm.settings import settings

_NOTHING: Mapping[str, Any] = {}
_LANGCHAIN_IDS = ("lc_run-", "run-")
_MODEL_KEYS = ("model_name", "model", "model_id")
_USAGE_KEYS = ("token_usage", "usage", "usage_metadata", "token_count")
"""Where a partner package leaves what the provider said, beside LangChain's own reading of it."""
_BESIDE = ("cost", "cost_details", "num_search_queries", "prompt_eval_count", "eval_count")
"""What some leave in the metadata themselves: of OpenRouter, Perplexity, Ollama."""
_SOLD_IN_TIERS = ("openai", "azure.ai.openai")


class ModelResult:
    """The facts of one or more results that are recorded. Keeps no reference to the results."""

    __slots__ = (
        "_asked",
        "_finish_reasons",
        "_messages",
        "_readings",
        "_requested",
        "_tier",
        "cache_hit",
        "characters",
        "id",
        "model",
        "reasoning_characters",
        "usage",
    )

    def __init__(self, asked: Mapping[str, Any] = _NOTHING) -> None:
        """`asked`: what is known of the call, as the attributes of its span."""
        self._asked = asked
        self._readings: list[Reading] = []
        self._tier: str | None = None
        self.id: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.characters = 0
        """How long it is by now, with the arguments of tool calls and its reasoning."""
        self.reasoning_characters = 0
        self.cache_hit = False
        self._finish_reasons: list[str] = []
        self._requested: ToolRequests | None = None
        self._messages: list[dict[str, Any]] = []
        """The messages of the results, where content is captured."""

    def see_piece(self, piece: object) -> None:
        """Measures a piece of a stream: a message, a text, or an event of a block of content."""
        if isinstance(piece, Mapping):
            if not (piece := _mapping(piece.get("delta"))):
                return
            text = piece.get("text") or piece.get("args")
            thought = piece.get("reasoning")
            written, reasoned = (len(each) if isinstance(each, str) else 0 for each in (text, thought))
            self._measure(written + reasoned, reasoned)
        elif isinstance(piece, str):
            self._measure(len(piece), 0)
        else:
            self._measure(*characters.of_answer(piece))

    def _measure(self, written: int, reasoned: int) -> None:
        self.characters += written
        self.reasoning_characters += reasoned

    def see(self, result: object) -> None:
        """Takes what an `LLMResult` tells; the usage of several adds up."""
        came_in_pieces = self.characters > 0
        if settings().captures_content:
            from otel_llm.content.langchain import output as messages

            self._messages += messages(result)
        output = _mapping(getattr(result, "llm_output", None))
        reading: Reading | None = None
        for candidates in getattr(result, "generations", None) or ():
            for generation in candidates if isinstance(candidates, list) else (candidates,):
                found = self._see_generation(generation, bool(output))
                reading = reading or found  # every candidate carries the usage of them all
                if not came_in_pieces and settings().estimate:
                    self._measure(*_length_of(generation))
        if output:
            self.model = self.model or _text(output, _MODEL_KEYS)
            self.id = self.id or _text(output, ("id",))
            if not reading and not self.cache_hit:
                reading = self._read(output)
        if reading:
            self._readings.append(reading)
            if (usage := reading.usage) is not None:
                self.usage = usage if self.usage is None else self.usage.plus(usage)

    def _see_generation(self, generation: object, has_output: bool) -> Reading | None:
        message = getattr(generation, "message", None)
        told = _mapping(getattr(message, "response_metadata", None))
        info = _mapping(getattr(generation, "generation_info", None))
        if told or info:
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
        if self._asked.get(semconv.PROVIDER) in _SOLD_IN_TIERS:
            self._tier = _text(told, ("service_tier",)) or self._tier
        elif "usage" in told and (tier := _anthropic_tier(_mapping(told["usage"]))) is not None:
            self._tier = tier
        reading = _NOTHING_READ if reported is None else self._read_one(reported)
        for source in (told, info):
            if source:
                reading = reading.completed_by(self._read(source))
        if not reading.units and (units := _units(message, told, info)):
            reading = reading._replace(units=units)
        return reading

    def _read(self, source: Mapping[str, Any]) -> Reading:
        """What a provider's own words say, where a package has left them."""
        reading = _NOTHING_READ
        for key in () if _USAGE_SET.isdisjoint(source) else _USAGE_KEYS:
            if told := source.get(key):
                reading = reading.completed_by(self._read_one(told))
        if not _BESIDE_SET.isdisjoint(source):
            reading = reading.completed_by(self._read_one({key: source[key] for key in _BESIDE if key in source}))
        return reading

    def _read_one(self, usage: object) -> Reading:
        return read_usage(
            usage, self._asked.get(semconv.PROVIDER), self.model or self._asked.get(semconv.REQUEST_MODEL)
        )

    def attributes(self) -> dict[str, Any]:
        """The span attributes, usage apart."""
        found: dict[str, Any] = {}
        if self.id is not None:
            found[semconv.RESPONSE_ID] = self.id
        if self.model is not None:
            found[semconv.RESPONSE_MODEL] = self.model
        if self._finish_reasons:
            found[semconv.FINISH_REASONS] = tuple(self._finish_reasons)  # as the SDK keeps it
        if self.cache_hit:
            found[semconv.CACHE_HIT] = True
        for reading in self._readings:
            for name, value in reading.attributes().items():
                is_sum = name in found and type(value) is float
                found[name] = found[name] + value if is_sum else value
        if self._tier is not None:
            found[semconv.OPENAI_RESPONSE_SERVICE_TIER] = self._tier
        if self._requested is not None:
            found |= self._requested.attributes()
        if self._messages:
            found[semconv.OUTPUT_MESSAGES] = self._messages
        return found


def _length_of(generation: object) -> tuple[int, int]:
    message = getattr(generation, "message", None)
    if message is None:
        return len(text) if isinstance(text := getattr(generation, "text", None), str) else 0, 0
    return characters.of_answer(message)


def _is_cache_hit(usage: object) -> bool:
    # BaseChatModel marks an answer out of its cache by a cost of nought beside the usage of the day it was paid for.
    return isinstance(usage, Mapping) and usage.get("total_cost", 1) == 0


_BESIDE_SET = frozenset(_BESIDE)
_USAGE_SET = frozenset(_USAGE_KEYS)
_NOTHING_READ = Reading(None)


def _units(message: object, told: Mapping[str, Any], info: Mapping[str, Any]) -> Mapping[str, float]:
    """What the provider's own tools did, where no usage says so: Anthropic's blocks, Google's searches."""
    content = getattr(message, "content", None)
    if type(content) is list and (found := server_tools(map(_mapping, content))):
        return found
    if not (grounding := _mapping(told.get("grounding_metadata") or info.get("grounding_metadata"))):
        return NO_UNITS
    queries = grounding.get("web_search_queries")
    return {semconv.GROUNDING_QUERIES: float(len(queries))} if isinstance(queries, list) and queries else NO_UNITS


def _anthropic_tier(usage: Mapping[str, Any]) -> str | None:
    """What Anthropic bills at another price, as its usage says it: `speed` fast, or a batch."""
    if usage.get("speed") == "fast":
        return "fast"
    return "batch" if usage.get("service_tier") == "batch" else None


def _text(source: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = source.get(key)
        if isinstance(value, str) and value:
            return value
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    # Before the class is asked for in Python.
    return value if type(value) is dict or isinstance(value, Mapping) else _NOTHING
