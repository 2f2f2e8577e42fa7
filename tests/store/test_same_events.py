"""The same spans give the same events to `subscribe`, to `otel-llm tail` and in the view `llm_events`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import StatusCode, set_span_in_context

from otel_llm.cli.read import chain_sums, tail
from otel_llm.conventions import dialects, semconv
from otel_llm.lifecycle import ChainCompleted, ChainError, Ended, ToolsRequested, ToolsStarted, subscribe
from otel_llm.lifecycle.event_processor import LifecycleProcessor
from otel_llm.store.journal.follow import JournalFollower
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from otel_llm.store.store import Store
from otel_llm.store.usage_processor import UsageSpanProcessor
from tests.store.conftest import NOON, query

Attributes = dict[str, Any]


class Case(NamedTuple):
    """A span: what is known at its start, what at its end (None where it never ends), and its status code."""

    at_start: Attributes
    at_end: Mapping[str, Any] | None = MappingProxyType({})
    code: StatusCode = StatusCode.UNSET
    name: str = ""


TOKENS: Attributes = {semconv.INPUT_TOKENS: 10, semconv.OUTPUT_TOKENS: 0}
WHO: Attributes = {semconv.USER_ID: "ada", semconv.MODULE: "travel", semconv.CONVERSATION_ID: "c"}
PARTS: tuple[Attributes, ...] = (
    {semconv.OPERATION: "chat", semconv.REQUEST_MODEL: "m"},
    {semconv.OPERATION: "retrieval"},
    {semconv.OPERATION: "execute_tool", semconv.TOOL_NAME: "look-up", semconv.TOOL_CALL_ID: "call_1"},
    {semconv.OPERATION: "invoke_agent"},
    {"gen_ai.system": "openai", "gen_ai.request.model": "m"},
    {"openinference.span.kind": "LLM", "llm.model_name": "m"},
)
OPERATIONS = (
    *sorted(semconv.TREE_OPERATIONS | semconv.PERHAPS_CALLS | dialects.CALLS),
    "of tomorrow",
    *dialects.OPERATIONS,
)
CHECKS = semconv.PERHAPS_CALLS & semconv.STEP_OPERATIONS
"""Steps, also where they are model calls as well: the view then has their tokens, which the end of a step does not tell."""
ASKED = {semconv.REQUESTED_TOOL_IDS: ["a", ""], semconv.REQUESTED_TOOL_NAMES: ["f", ""]}
runs = itertools.count(1)
CASES: dict[str, list[Case]] = {
    "ours": [
        Case({semconv.OPERATION: name} | WHO, TOKENS, name=f"{name} one") for name in OPERATIONS if name not in CHECKS
    ],
    "checks": [Case({semconv.OPERATION: name} | WHO, name=f"{name} one") for name in CHECKS],
    "interrupted": [Case(part | WHO, None) for part in PARTS],
    "how they ended": [
        Case(part, {semconv.STATUS: status} | error, code)
        for part in PARTS
        for status in (*semconv.STATUSES, "of tomorrow")
        for error in ({}, {semconv.ERROR_TYPE: "KeyError"})
        for code in (StatusCode.UNSET, StatusCode.ERROR)
    ],
    "how others ended": [
        Case(part, error, code)
        for part in PARTS
        for error in ({}, {semconv.ERROR_TYPE: "KeyError"})
        for code in (StatusCode.UNSET, StatusCode.OK, StatusCode.ERROR)
    ],
    "tools": [Case(part, ASKED) for part in PARTS] + [Case({semconv.OPERATION: "execute_tool"}, name="execute_tool f")],
    "foreign kinds": [
        Case({kind: spelled}, name="x")
        for kind, values in dialects.KINDS.items()
        for value in (*values, "of tomorrow")
        for spelled in (value.upper(), value.lower())
    ],
    "foreign tokens": [
        Case({"openinference.span.kind": "LLM"}, {name: 7} | other)
        for ours in (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS)
        for name in dialects.names(ours)
        for other in ({}, TOKENS)
    ],
    "runs that wait": [
        Case({semconv.OPERATION: operation}, {semconv.RUN_WAITING: waits, semconv.STATUS: status})
        for operation in ("invoke_agent", "invoke_workflow", "step")
        for waits in (True, False)
        for status in (semconv.OK, semconv.ERROR, semconv.PARTIAL)
    ],
    "runs that go on": [
        Case({semconv.OPERATION: operation, semconv.RUN_CONTINUES: run})
        for operation in ("invoke_agent", "create_agent", "step", "chat")
        for run in (
            f"{next(runs):016x}",
            f"{'12' * 16}-{next(runs):016x}",
            "0" * 16,
            f"{'12' * 16}-{'0' * 16}",
            "trip",
            "",
            "AB" * 8,
        )
    ],
    "no spans of GenAI": [
        Case({}),
        Case({"http.request.method": "GET"}, None),
        *(Case({semconv.OPERATION: "chat", name: value}) for name, value in dialects.NO_SPANS),
    ],
}

_COLUMNS = """trace_id || '-' || span_id || '-' || event, epoch_us(occurred_at), event, operation, name, parent_span_id,
    user_id, module, conversation_id, CASE WHEN duration_ms IS NOT NULL THEN status END, error_type, duration_ms, input_tokens,
    output_tokens, attributes, run, sequence"""


class Told(NamedTuple):
    """What each of them tells of the same spans. Tools are left out of the view but where they are asked for."""

    live: list[tuple[Any, ...]]
    followed: list[tuple[Any, ...]]
    read_back: list[tuple[Any, ...]]
    view: list[tuple[Any, ...]]
    order_live: list[tuple[Any, ...]]
    order_view: list[tuple[Any, ...]]


def live_row(event: Any) -> tuple[Any, ...]:
    usage = getattr(event, "usage", None)
    calls = event.calls if isinstance(event, ToolsRequested | ToolsStarted) else ()
    ended = isinstance(event, Ended)
    return (
        *(event.id, event.time_ns // 1000, event.type, event.operation, event.name, event.parent_span_id),
        *(event.context.get(name) for name in (semconv.USER_ID, semconv.MODULE, semconv.CONVERSATION_ID)),
        *((event.status, event.error_type, event.duration_ms) if ended else (None, None, None)),
        *((usage.input, usage.output) if usage else (None, None)),
        [{"id": call.id, "name": call.name} for call in calls] or sums(event),
    )


def sums(event: Any) -> dict[str, Any] | None:
    """What the end of a chain tells of what was in it."""
    if not isinstance(event, ChainCompleted | ChainError):
        return None
    told: dict[str, Any] = {"model_calls": event.model_calls}
    if isinstance(event, ChainError):
        told |= {"where": event.where, "where_span_id": event.where_span_id, "completed": list(event.completed)}
    return told | ({"waiting": True} if getattr(event, "waiting", False) else {})


def tail_row(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("event", "operation", "name", "parent_span_id", "user_id", "module", "conversation_id")
    status = row.get("status") if "duration_ms" in row else None
    values = (row.get(name) for name in ("error_type", "duration_ms", "input_tokens", "output_tokens"))
    more = row.get("tool_calls")
    if row["event"] in chain_sums.CHAIN_ENDS:
        more = {"model_calls": row["model_calls"]} | ({"waiting": True} if row.get("waiting") else {})
        assert row["cost_usd"] is None  # there is no such model
    return (row["id"], row["time_ns"] // 1000, *(row[name] for name in names), status, *values, more)


def without_executions(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The view names the tools that were asked for, not the one that runs: `llm_tool_calls` does."""
    return [(*row[:-1], None) if row[2] == "ToolsStarted" else row for row in rows]


def without_where(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """`tail` adds up the calls of a chain; where it failed is in the lines before."""
    told = ("model_calls", "waiting")
    return [
        (*row[:-1], {name: row[-1][name] for name in told if name in row[-1]}) if isinstance(row[-1], dict) else row
        for row in rows
    ]


def tell(path: Path, cases: list[Case], nested: bool = False) -> Told:
    store = Store.open(path)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(LifecycleProcessor())
    provider.add_span_processor(UsageSpanProcessor(store))
    start_span = provider.get_tracer("otel_llm.instrumentation.tests").start_span
    clock = itertools.count(NOON, 1_000_000)
    live: list[Any] = []
    with JournalFollower(StorePaths.of(path)) as follower, subscribe(live.append):
        running = []
        context = None
        for case in cases:
            span = start_span(case.name or "x", context, attributes=case.at_start, start_time=next(clock))
            running.append((span, case))
            if nested:
                context = set_span_in_context(span)
        for span, case in reversed(running):
            if case.at_end is not None:
                span.set_attributes(case.at_end)
                span.set_status(case.code)
                span.end(next(clock))
        heard = [(record, list(tail.events_of(record))) for record in follower.poll()]
        chain_sums.ChainSums(StorePaths.of(path)).add(heard)
        followed = [row for _, rows in heard for row in rows]
        store.close()
        assert merge(path).complete
    view = query(path, f"SELECT {_COLUMNS} FROM llm_events") if path.exists() else []
    order = sorted((event.run, event.sequence, event.id) for event in live)
    rows = [(*row[:14], json.loads(row[14]) if row[14] else None) for row in view]
    read_back = tail._last(path, 100_000, tail._Filter((), None, None)) if path.exists() else []
    return Told(
        sorted(map(live_row, live), key=str),
        sorted(map(tail_row, followed), key=str),
        sorted(map(tail_row, read_back), key=str),
        sorted(rows, key=str),
        order,
        sorted((run, sequence, identity) for identity, *_, run, sequence in view),
    )


@pytest.mark.parametrize("name", CASES)
def test_spans_of_all_kinds(store_path: Path, name: str) -> None:
    told = tell(store_path, CASES[name])
    assert told.followed == without_where(told.live)
    assert told.read_back == without_where(told.live)
    assert told.view == without_executions(told.live)
    assert told.order_view == told.order_live
    assert bool(told.live) == (name != "no spans of GenAI")


def test_a_run(store_path: Path) -> None:
    """What is inside ends before what it is in; what has nothing to do with GenAI is passed over, not its place in the tree."""
    cases = [
        Case({"http.request.method": "GET"}),
        Case({semconv.OPERATION: "invoke_agent"} | WHO, {semconv.STATUS: "cancelled"}, name="invoke_agent a"),
        Case({semconv.OPERATION: "invoke_workflow", semconv.RUN_CONTINUES: "ab" * 8}, {semconv.RUN_WAITING: True}),
        Case({"openinference.span.kind": "guardrail"}, code=StatusCode.ERROR),
        Case({"db.system": "redis"}),
        Case({"gen_ai.system": "openai"}, TOKENS | ASKED | {semconv.REQUEST_MODEL: "m"}),
    ]
    told = tell(store_path, cases, nested=True)
    assert [row[2] for row in sorted(told.live, key=lambda row: row[1])] == [
        "ChainStarted", "ChainStarted", "StepStarted", "ProviderStarted", "ProviderCompleted", "ToolsRequested", "StepCompleted",
        "ChainCompleted", "ChainError",
    ]  # fmt: skip
    assert told.followed == told.read_back == without_where(told.live)
    assert told.view == told.live
    assert told.order_view == told.order_live
