"""LiteLLM with everything instrumented, and an account of its own for each test."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_llm.calls import stream_usage
from otel_llm.setup import distro
from otel_llm.store.reader import connect
from otel_llm.store.store import Store
from tests.instrumentation.litellm.wires import Wires

# Read when it is imported: it would fetch its prices, and tokenizers for what tells no usage.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Account = Callable[[], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def _wires_of_session() -> Iterator[Wires]:
    with Wires() as server:
        yield server


@pytest.fixture
def wires(_wires_of_session: Wires) -> Wires:
    """The server of what is not OpenAI's chat, with nothing billed yet."""
    _wires_of_session.billed.clear()
    return _wires_of_session


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """What was recorded since the test began."""
    path = tmp_path / "usage.duckdb"
    stream_usage.forget()
    distro.instrument(tracer_provider=TracerProvider(), store=path)

    def rows() -> list[dict[str, Any]]:
        gc.collect()  # streams that were dropped
        distro.flush()
        with connect(path) as connection:
            relation = connection.execute("from llm_usage order by started_at, span_id")
            names = [column[0] for column in relation.description or ()]
            return [dict(zip(names, values, strict=True)) for values in relation.fetchall()]

    yield rows
    distro.uninstrument()
    Store.open(path).close()  # its thread would go on beside all the tests that follow
    if (litellm := sys.modules.get("litellm")) is not None:
        litellm.api_base = None  # 1.80 keeps that of a call for the next one
    stream_usage.forget()
