"""What is told of an answer, by LiteLLM's objects: as of the OpenAI client's, but for what LiteLLM fills in itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import fields
from otel_llm.instrumentation.litellm._usage import later, price, usage_told
from otel_llm.instrumentation.openai._answer import Answer

_WITH_OUTPUT: Final = (semconv.CHAT, semconv.TEXT_COMPLETION, semconv.IMAGE_GENERATION, semconv.TRANSCRIPTION)


class KnownToLiteLLM:
    """What LiteLLM knows of a call."""

    __slots__ = ("cost", "is_asked", "model", "operation", "provider")

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.is_asked = False
        """Whether a stream of OpenAI's chunks is asked for its usage, by whomever."""
        self.provider: str | None = None
        self.model: str | None = None
        self.cost: float | None = None
        """What LiteLLM has computed, in USD."""

    def take_cost(self, cost: object) -> None:
        """It has computed again what the call costs, once more is known of the answer."""
        self.cost = price(cost) or self.cost


class ToldAnswer(Answer):
    """The facts of an answer, or of the chunks of a stream."""

    __slots__ = ("_cost", "_known")

    def __init__(self, known: KnownToLiteLLM, asked: Mapping[str, Any]) -> None:
        super().__init__(asked)
        self._known = known
        self._cost: float | None = None
        """What the provider himself says, in USD."""

    def see_whole(self, result: object) -> None:
        """Takes what an answer tells that is no stream."""
        self.see(result)
        self.usage = None
        self.see_usage(fields(result).get("usage"))

    def see_usage(self, usage: object) -> None:
        """Takes a usage object, the whole one or that of a piece."""
        found, cost = usage_told(usage, self._known.provider, self._known.model)
        self._cost = cost or self._cost
        if found is not None and not found.output and self._known.operation not in _WITH_OUTPUT:
            found = found._replace(output=None)
        self.usage = later(self.usage, found)

    def _see_response(self, found: Mapping[str, Any]) -> None:
        super()._see_response(found)
        self.see_usage(found.get("usage"))

    def _see_usage(self, usage: object, *, embeds: bool = False) -> None:
        """Not from what the app gets: where a stream tells none, LiteLLM counts itself."""

    def attributes(self) -> dict[str, Any]:
        found = super().attributes()
        if self._cost is not None:
            found[semconv.REPORTED_COST_USD] = self._cost
        if self._known.cost is not None:
            found[semconv.LITELLM_COST_USD] = self._known.cost
        return found
