"""What came back, gathered from one object or from the chunks of a stream, typed or plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_llm import call, semconv
from otel_llm.usage import Usage, fields, from_openai

_INCOMPLETE = {"max_output_tokens": "length", "max_tokens": "length"}
_NOT_TOLD_BY_DELTAS = ("response.created", "response.completed", "response.incomplete", "response.failed")


class Answer:
    """The facts of an answer that are recorded. Never keeps a reference to the answer itself."""

    __slots__ = ("_finish_reasons", "error_type", "final", "fingerprint", "id", "model", "tier", "usage")

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.tier: str | None = None
        self.fingerprint: str | None = None
        self.error_type: str | None = None
        self.final = False
        """Whether the last event of a stream has been seen: leaving after it is not leaving early."""
        self._finish_reasons: dict[object, str] = {}

    def see(self, payload: object) -> None:
        """Takes what is new from an answer, a chunk or an event."""
        found = fields(payload)
        kind = found.get("type")
        if kind is not None and isinstance(kind, str):
            if kind.startswith("response."):
                if kind in _NOT_TOLD_BY_DELTAS:
                    self._see_response(fields(found.get("response")))
                return
            if kind == "error":
                self.error_type = _text(found.get("code")) or "error"
                return
        if found.get("object") == "response":
            self._see_response(found)
            return
        if self.id is None:
            self._see_identity(found)
        for choice in found.get("choices") or ():
            told = fields(choice)
            reason = told.get("finish_reason")
            if reason is not None:
                self._finish_reasons[told.get("index")] = str(reason)
        if (usage := found.get("usage")) is not None:
            self.usage = from_openai(usage) or self.usage
        if (tier := found.get("service_tier")) is not None:
            self.tier = _text(tier)

    def _see_identity(self, found: Mapping[str, Any]) -> None:
        self.id = _text(found.get("id"))
        self.model = _text(found.get("model"))
        self.fingerprint = _text(found.get("system_fingerprint"))

    def _see_response(self, found: Mapping[str, Any]) -> None:
        self._see_identity(found)
        self.tier = _text(found.get("service_tier"))
        self.usage = from_openai(found.get("usage")) or self.usage
        status = found.get("status")
        self.final = status in ("completed", "incomplete", "failed", "cancelled")
        match status:
            case "completed":
                called = any(
                    str(fields(item).get("type", "")).endswith("_call") and "call_id" in fields(item)
                    for item in found.get("output") or ()
                )
                self._finish_reasons[0] = "tool_calls" if called else "stop"
            case "incomplete":
                reason = _text(fields(found.get("incomplete_details")).get("reason")) or "incomplete"
                self._finish_reasons[0] = _INCOMPLETE.get(reason, reason)
            case "failed":
                self._finish_reasons[0] = "error"
                self.error_type = _text(fields(found.get("error")).get("code")) or "failed"

    @property
    def status(self) -> str:
        return call.OK if self.error_type is None else call.ERROR

    def attributes(self) -> dict[str, Any]:
        """The span attributes, usage apart."""
        found: dict[str, Any] = {}
        if self.id is not None:
            found[semconv.RESPONSE_ID] = self.id
        if self.model is not None:
            found[semconv.RESPONSE_MODEL] = self.model
        if self._finish_reasons:
            found[semconv.FINISH_REASONS] = list(self._finish_reasons.values())
        if self.tier is not None:
            found[semconv.OPENAI_RESPONSE_SERVICE_TIER] = self.tier
        if self.fingerprint is not None:
            found[semconv.OPENAI_SYSTEM_FINGERPRINT] = self.fingerprint
        return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
