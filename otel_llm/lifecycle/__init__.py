"""The life of a run: `chain`, `step` and `tool` draw its tree; `subscribe` and `events` tell of it as it happens.

Runs of LangChain and LangGraph, and direct model calls, tell of themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_llm.support import lazy

if TYPE_CHECKING:
    from otel_llm.lifecycle.event import (
        ChainCompleted,
        ChainError,
        ChainStarted,
        Ended,
        Event,
        ProviderCompleted,
        ProviderDelta,
        ProviderStarted,
        StepCompleted,
        StepStarted,
        ToolCall,
        ToolCompleted,
        ToolsRequested,
        ToolsStarted,
    )
    from otel_llm.lifecycle.scopes import Scope, chain, step, tool
    from otel_llm.lifecycle.subscriptions import EventStream, Subscription, events, subscribe

__all__ = [
    "ChainCompleted",
    "ChainError",
    "ChainStarted",
    "Ended",
    "Event",
    "EventStream",
    "ProviderCompleted",
    "ProviderDelta",
    "ProviderStarted",
    "Scope",
    "StepCompleted",
    "StepStarted",
    "Subscription",
    "ToolCall",
    "ToolCompleted",
    "ToolsRequested",
    "ToolsStarted",
    "chain",
    "events",
    "step",
    "subscribe",
    "tool",
]

_HOMES = {
    "ChainCompleted": "event",
    "ChainError": "event",
    "ChainStarted": "event",
    "Ended": "event",
    "Event": "event",
    "EventStream": "subscriptions",
    "ProviderCompleted": "event",
    "ProviderDelta": "event",
    "ProviderStarted": "event",
    "Scope": "scopes",
    "StepCompleted": "event",
    "StepStarted": "event",
    "Subscription": "subscriptions",
    "ToolCall": "event",
    "ToolCompleted": "event",
    "ToolsRequested": "event",
    "ToolsStarted": "event",
    "chain": "scopes",
    "events": "subscriptions",
    "step": "scopes",
    "subscribe": "subscriptions",
    "tool": "scopes",
}


# The names of the events are needed where nothing is instrumented.
__getattr__ = lazy.attributes(__name__, _HOMES)
