"""A tracer provider that tells of its spans, and a recorder of what it told."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from otel_llm.lifecycle import Event, subscribe
from otel_llm.lifecycle.hub import hub
from otel_llm.setup import wiring
from otel_llm.support import faults
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans
from tests.instrumentation.conftest import capture as capture
from tests.instrumentation.conftest import spans as spans
from tests.instrumentation.conftest import traced as traced


class Recorder:
    """Keeps the events of a subscription."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._subscription = subscribe(self._events.append)

    def all(self) -> list[Event]:
        """Every event so far. Nothing is recorded after that."""
        assert self._subscription.close(30)
        return self._events

    def names(self) -> list[str]:
        return [f"{event.type} {event.name}" for event in self.all()]

    def types(self) -> list[str]:
        return [event.type for event in self.all()]


@pytest.fixture(autouse=True)
def _observed(spans: Spans) -> Iterator[None]:
    before = faults.counts.copy()
    wiring.observe(spans.provider)
    yield
    assert not hub.subscribers
    wiring.unwire()
    assert faults.counts == before


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def client(openai_server: LocalOpenAI) -> openai.OpenAI:
    return openai.OpenAI(base_url=openai_server.base_url, api_key="local", max_retries=0)
