"""Profiles whose deployments are the local server in its moods, and a clock that stands still."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_llm import LLMProvider
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import spans as spans
from tests.instrumentation.conftest import traced as traced

MODEL = "gpt-4o-mini"
KEY = "TEST_PROFILES_KEY"
HELLO = [{"role": "user", "content": "Hello"}]


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections: it is taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


Make = Callable[..., LLMProvider]


@pytest.fixture
def provider(openai_server: LocalOpenAI, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A provider with one profile, `fast`. Each argument is a deployment: its model, or a table that says more.

    Weights fall from the first to the last so steeply that they are asked in this order.
    """
    monkeypatch.setenv(KEY, "sk-local")

    def make(**deployments: Any) -> LLMProvider:
        tables = {}
        for number, (name, given) in enumerate(deployments.items()):
            table = {"model": given} if isinstance(given, str) else given
            common = {"model": MODEL, "base_url": openai_server.base_url, "api_key_env": KEY, "max_retries": 0}
            tables[name] = {**common, "weight": 10.0 ** -(9 * number), **table}
        document = {"profiles": {"fast": {"deployments": tables}}}
        return LLMProvider.from_dict(document, clock=clock, chance=random.Random(7))

    return make


@pytest.fixture(autouse=True)
def _own_connections() -> None:
    """langchain-openai keeps one asynchronous HTTP client for all event loops, and each test has its own loop."""
    module = sys.modules.get("langchain_openai.chat_models._client_utils")
    cached = getattr(module, "_cached_async_httpx_client", None)
    if cached is not None:
        cached.cache_clear()
