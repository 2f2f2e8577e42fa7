"""Two instrumentations that report one model call: it is counted once, whichever of them is outside."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_llm.store import Store, connect
from otel_llm.store.ingest import merge
from otel_llm.store.journal import Journal
from otel_llm.store.processor import UsageSpanProcessor
from tests.store.conftest import count, identity, query, start

OURS, OFFICIAL, OPENINFERENCE = "otel_llm.instrumentation.openai", "opentelemetry.x.openai", "openinference.x.openai"
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o-mini"}
LLM = {"openinference.span.kind": "LLM", "llm.model_name": "gpt-4o-mini"}
TOOL = {"gen_ai.operation.name": "execute_tool"}
CHAIN = {"openinference.span.kind": "CHAIN"}


@pytest.mark.parametrize(
    ("nested", "counted"),
    [
        ([(OFFICIAL, CHAT), (OURS, CHAT)], [OURS]),
        ([(OURS, CHAT), (OPENINFERENCE, LLM)], [OURS]),
        ([(OPENINFERENCE, LLM), (OFFICIAL, CHAT)], [OFFICIAL]),
        ([(OPENINFERENCE, LLM), ("http", {}), (OURS, CHAT)], [OURS]),
        ([(OPENINFERENCE, CHAIN), (OFFICIAL, TOOL), (OURS, CHAT)], [OURS]),
        ([(OURS, CHAT), (OURS, CHAT)], [OURS, OURS]),
        ([(OFFICIAL, CHAT)], [OFFICIAL]),
    ],
)
def test_nested_calls(nested: list[tuple[str, dict[str, str]]], counted: list[str], store_path: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(UsageSpanProcessor(Store.open(store_path)))
    with contextlib.ExitStack() as stack:
        for scope, attributes in nested:
            stack.enter_context(provider.get_tracer(scope).start_as_current_span("x", attributes=attributes))
    provider.shutdown()
    with connect(store_path) as connection:
        assert [row[0] for row in connection.execute("select instrumentation from llm_usage").fetchall()] == counted
        assert connection.execute("select count(*) from spans").fetchone() == (len(nested),)


@pytest.mark.parametrize(
    ("outer", "counted"), [(OFFICIAL, [OURS]), (OURS, [OURS, OURS])], ids=["two layers", "a call in a signal handler"]
)
def test_the_process_died_inside(outer: str, counted: list[str], journal: Journal, store_path: Path) -> None:
    above = start(sc=outer)
    below = start(sc=OURS, t=above["t"], p=above["s"])
    for begin in (above, below):
        journal.append(begin, start_of=identity(begin))
    journal.close()
    merge(store_path)
    assert query(store_path, "select instrumentation, status from llm_usage") == [(c, "interrupted") for c in counted]
    assert count(store_path, "spans") == 2
