from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from otel_llm.instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation.conftest import Spans
from tests.instrumentation.openai.clients import MISSING


@pytest.fixture
def instrumented(spans: Spans) -> Iterator[Spans]:
    """The OpenAI client, instrumented for the length of a test."""
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield spans
    instrumentor.uninstrument()


@pytest.fixture
def client(openai_server) -> openai.OpenAI:
    return openai.OpenAI(base_url=openai_server.base_url, api_key="local")


@pytest.fixture
async def async_client(openai_server):
    async with openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="local") as client:
        yield client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the cases that an old client cannot run."""
    for item in items:
        case = item.name.partition("[")[2]
        for name, reason in MISSING.items():
            if name in case:
                item.add_marker(pytest.mark.skip(reason=reason))
