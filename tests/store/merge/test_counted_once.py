"""Two instrumentations that report one model call: it is counted once, whichever of them is outside."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_llm.conventions import semconv
from otel_llm.store import Store, connect
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from otel_llm.store.usage_processor import UsageSpanProcessor
from tests.store.conftest import NOON, USAGE, count, end, identity, merging, query, start

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
        ([(OFFICIAL, CHAT), (OFFICIAL, CHAT)], [OFFICIAL]),
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


def test_a_request_that_another_instrumentation_takes_for_a_call(store_path: Path) -> None:
    """Such as one for a file: only ours knows what is asked of OpenAI, and says so while the other's span runs."""
    processor = UsageSpanProcessor(Store.open(store_path))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    for scope in (OFFICIAL, "another.x", OURS):
        with provider.get_tracer(scope).start_as_current_span(scope, attributes=CHAT) as span:
            processor.deny(span)
    provider.shutdown()
    assert query(store_path, "select instrumentation from llm_usage order by 1") == [("another.x",), (OURS,)]
    assert count(store_path, "spans") == 3


@pytest.mark.parametrize("died", [False, True])
def test_a_record_that_another_one_stands_for(died: bool, journal: Journal, store_path: Path) -> None:
    begin = start(x=1)
    journal.append(begin, start_of=identity(begin))
    if not died:
        journal.append(end(begin), end_of=identity(begin))
    journal.close()
    assert (count(store_path), count(store_path, "spans")) == (0, 1)


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


# --- in different batches, in different traces -------------------------------------------------------------------------
def ended(scope: str, number: int, *, since_ms: int = 0, length_ms: int = 100, **more: Any) -> dict[str, Any]:
    """A call that has ended. It began `since_ms` after the others of the test."""
    parent = more.pop("inside", None)
    begin = start(number=number, sc=scope, st=NOON + since_ms * 10**6, **more.pop("fields", {}))
    if parent is not None:
        begin |= {"t": parent["t"], "p": parent["s"]}
    return end(begin, {**USAGE, **more}, et=begin["st"] + length_ms * 10**6)


ID = {"gen_ai.response.id": "chatcmpl-1"}
OTHER_ID = {"gen_ai.response.id": "chatcmpl-2"}
LANGCHAIN = "openinference.x.langchain"


@pytest.mark.parametrize(
    ("order", "held"),
    [(1, False), (-1, False), (1, True)],
    ids=["in order", "the other way round", "laid over a store that is held"],
)
@pytest.mark.parametrize(
    ("one", "other", "counted"),
    [
        # The same response, in two traces.
        (ended(OURS, 1, **ID), ended(OFFICIAL, 2, **ID), [OURS]),
        (ended(OPENINFERENCE, 1, **ID), ended(LANGCHAIN, 2, **ID), [OPENINFERENCE]),
        # One that does not name the response.
        (ended(OURS, 1, since_ms=5, **ID), ended(OFFICIAL, 2), [OURS]),
        (ended(OPENINFERENCE, 1, since_ms=5), ended(LANGCHAIN, 2), [OPENINFERENCE]),
        # One inside the other, whatever they say.
        (ended(OURS, 1, **ID), ended(OFFICIAL, 2, inside=ended(OURS, 1), **{"gen_ai.usage.input_tokens": 7}), [OURS]),
        (ended(OPENINFERENCE, 2, inside=ended(OFFICIAL, 1), **ID), ended(OFFICIAL, 1), [OPENINFERENCE]),
        # Two calls: other responses, other times, other tokens, or the same instrumentation.
        (ended(OURS, 1, **ID), ended(OFFICIAL, 2, **OTHER_ID), [OFFICIAL, OURS]),
        (ended(OURS, 1, **ID), ended(OFFICIAL, 2, since_ms=101, **ID), [OFFICIAL, OURS]),
        (ended(OURS, 1), ended(OFFICIAL, 2, **{"gen_ai.usage.input_tokens": 7}), [OFFICIAL, OURS]),
        (ended(OURS, 1), ended(OFFICIAL, 2, **{"gen_ai.request.model": "o3"}), [OFFICIAL, OURS]),
        (ended(OFFICIAL, 1), ended(OFFICIAL, 2, since_ms=5), [OFFICIAL, OFFICIAL]),
        (ended(OURS, 1, **ID), ended(OURS, 2, since_ms=5, **ID), [OURS, OURS]),
    ],
)
def test_reports_of_one_call_in_two_merges(
    one: dict[str, Any],
    other: dict[str, Any],
    counted: list[str],
    order: int,
    held: bool,
    journal: Journal,
    paths: StorePaths,
    store_path: Path,
) -> None:
    first, second = (one, other)[::order]
    journal.append(first)
    merge(store_path)
    with contextlib.ExitStack() as stack:
        if held:
            stack.enter_context(merging(paths))
        journal.append(second)
        assert query(store_path, "select instrumentation from llm_usage order by 1") == [(name,) for name in counted]
        assert count(store_path, "spans") == 2


def cached(number: int, **more: Any) -> dict[str, Any]:
    """Our row of an answer out of LangChain's cache."""
    begin = start(number=number, sc="otel_llm.instrumentation.langchain", st=NOON + 20 * 10**6)
    return end(begin, {semconv.CACHE_HIT: True, **more}, et=begin["st"] + 10**6)


@pytest.mark.parametrize(
    ("scope", "told", "is_of_the_hit"),
    [
        ("opentelemetry.instrumentation.langchain", {}, True),
        ("opentelemetry.instrumentation.langchain", ID, True),
        ("opentelemetry.instrumentation.langchain", OTHER_ID, False),
        ("openinference.instrumentation.crewai", {}, False),  # asks a model past LangChain and its cache
        ("openinference.instrumentation.llama_index", OTHER_ID, False),
    ],
)
def test_what_is_beside_an_answer_out_of_a_cache(
    scope: str, told: dict[str, str], is_of_the_hit: bool, journal: Journal, store_path: Path
) -> None:
    journal.append(cached(1, **ID))
    journal.append(ended(scope, 2, length_ms=3_000, **told))
    merge(store_path)
    billed = query(store_path, "select instrumentation from llm_usage where input_tokens is not null")
    assert billed == ([] if is_of_the_hit else [(scope,)])
    assert count(store_path, "llm_usage") == 2 - is_of_the_hit


def test_many_at_once_are_all_counted(journal: Journal, store_path: Path) -> None:
    """Calls that run side by side and cannot be told apart: each is reported by two, and each is counted once."""
    for number in range(1, 41, 2):
        journal.append(ended(OPENINFERENCE, number, since_ms=number + 1))
        journal.append(ended(LANGCHAIN, number + 1, since_ms=number, length_ms=102))
    merge(store_path)
    assert query(store_path, "select instrumentation, count(*) from llm_usage group by 1") == [(OPENINFERENCE, 20)]
