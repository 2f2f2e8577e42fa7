"""The views: the events of a run as rows, tool calls across requests and processes, conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from otel_llm.conventions import semconv
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from tests.store.conftest import CHAT, NOON, end, query, start

MS = 10**6


class Trace:
    """Spans written by hand: ids by number, times in milliseconds."""

    def __init__(self, journal: Journal, number: int = 1) -> None:
        self._journal = journal
        self._trace = f"{number:032x}"

    def span(
        self,
        number: int,
        parent: int | None,
        begin: int,
        finish: int | None,
        attributes: dict[str, Any],
        name: str = "x",
    ) -> None:
        operation = attributes.get(semconv.OPERATION)
        record = start(
            t=self._trace,
            s=f"{number:016x}",
            p=None if parent is None else f"{parent:016x}",
            n=f"{operation} {name}" if operation else name,
            st=NOON + begin * MS,
            a=attributes,
        )
        if finish is None:
            self._journal.append(record, start_of=number)
        else:
            self._journal.append(end(record, {}, et=NOON + finish * MS))


def events(path: Path, columns: str = "sequence, event, name") -> list[tuple[Any, ...]]:
    return query(path, f"SELECT {columns} FROM llm_events")


def test_a_run_as_rows(journal: Journal, store_path: Path) -> None:
    """Children end first, so they are stored before what they belong to."""
    trace = Trace(journal)
    usage = {semconv.INPUT_TOKENS: 10, semconv.OUTPUT_TOKENS: 5, semconv.USER_ID: "ada"}
    asked = {semconv.REQUESTED_TOOL_IDS: ["call_1"], semconv.REQUESTED_TOOL_NAMES: ["weather"]}
    trace.span(4, 3, 20, 30, CHAT | usage | asked, "m")
    trace.span(5, 3, 40, 50, {semconv.OPERATION: "execute_tool"}, "weather")
    trace.span(3, 2, 10, 60, {semconv.OPERATION: "step"}, "ask")
    trace.span(
        2, 1, 5, 70, {semconv.OPERATION: "invoke_agent", semconv.STATUS: "error", semconv.ERROR_TYPE: "KeyError"}, "a"
    )
    trace.span(1, None, 0, 80, {}, "GET /")
    assert events(store_path) == [
        (1, "ChainStarted", "a"),
        (2, "StepStarted", "ask"),
        (3, "ProviderStarted", "m"),
        (4, "ProviderCompleted", "m"),
        (5, "ToolsRequested", "m"),
        (6, "ToolsStarted", "weather"),
        (7, "ToolCompleted", "weather"),
        (8, "StepCompleted", "ask"),
        (9, "ChainError", "a"),
    ]
    assert set(events(store_path, "run, trace_id")) == {(f"{2:016x}", f"{1:032x}")}
    completed = "event, error_type, duration_ms, input_tokens, output_tokens, cost_usd IS NOT NULL, user_id"
    found = query(
        store_path,
        f"SELECT {completed} FROM llm_events WHERE duration_ms IS NOT NULL AND span_id LIKE '%2' OR event LIKE 'Provider%'",
    )
    assert found == [
        ("ProviderStarted", None, None, None, None, False, "ada"),
        ("ProviderCompleted", None, 10, 10, 5, True, "ada"),
        ("ChainError", "KeyError", 65, 10, 5, True, None),
    ]
    (attributes,) = query(store_path, "SELECT attributes FROM llm_events WHERE event = 'ChainError'")
    assert json.loads(attributes[0]) == {
        "model_calls": 1, "where": "invoke_agent a", "where_span_id": f"{2:016x}",
        "completed": ["chat m", "execute_tool weather", "step ask"],
    }  # fmt: skip
    (attributes,) = query(store_path, "SELECT attributes FROM llm_events WHERE event = 'ToolsRequested'")
    assert attributes == ('[{"id":"call_1","name":"weather"}]',)


def test_two_runs_of_one_trace_and_spans_without_their_parents(journal: Journal, store_path: Path) -> None:
    trace = Trace(journal)
    trace.span(2, 1, 0, 9, {semconv.OPERATION: "invoke_workflow"})
    trace.span(3, 1, 1, 8, CHAT)
    trace.span(4, 99, 2, 7, CHAT)
    trace.span(5, 5, 3, 6, CHAT)  # its own parent: whoever wrote that
    trace.span(1, None, 0, 10, {}, "GET /")
    assert set(events(store_path, "span_id, run")) == {(f"{n:016x}", f"{n:016x}") for n in (2, 3, 4, 5)}


def test_what_never_ended_has_only_begun(journal: Journal, store_path: Path) -> None:
    trace = Trace(journal)
    trace.span(1, None, 0, None, {semconv.OPERATION: "invoke_agent"}, "a")
    trace.span(2, 1, 1, None, CHAT, "m")
    journal.close()
    merge(store_path)
    assert events(store_path, "event, status") == [
        ("ChainStarted", "interrupted"),
        ("ProviderStarted", "interrupted"),
    ]


def test_a_tool_call_from_its_request_to_its_result(journal: Journal, store_path: Path) -> None:
    """Asked for in one trace, run in another, its result brought back in a third: by its id."""
    Trace(journal, 1).span(
        1,
        None,
        0,
        10,
        CHAT | {semconv.REQUESTED_TOOL_IDS: ["a", "b", ""], semconv.REQUESTED_TOOL_NAMES: ["f", "g", "h"]},
    )
    Trace(journal, 2).span(
        2, None, 20, 30, {semconv.OPERATION: "execute_tool", semconv.TOOL_NAME: "f", semconv.TOOL_CALL_ID: "a"}
    )
    Trace(journal, 3).span(3, None, 40, 50, CHAT | {semconv.RETURNED_TOOL_IDS: ["a", "b"]})
    Trace(journal, 4).span(4, None, 60, 70, CHAT | {semconv.RETURNED_TOOL_IDS: ["a"]})
    Trace(journal, 5).span(5, None, 80, 90, {semconv.OPERATION: "execute_tool", semconv.TOOL_NAME: "own"})
    columns = "tool_call_id, tool_name, requested_by_span_id[-1:], span_id[-1:], returned_to_span_id[-1:]"
    assert query(store_path, f"SELECT {columns} FROM llm_tool_calls ORDER BY tool_name") == [
        ("a", "f", "1", "2", "3"),
        ("b", "g", "1", None, "3"),
        (None, "h", "1", None, None),
        (None, "own", None, "5", None),
    ]


def test_a_tool_that_the_client_runs_is_told_by_the_calls_around_it(journal: Journal, store_path: Path) -> None:
    """With what was captured of them, over requests and processes."""
    calls = [
        {"type": "text", "content": "a"},
        {"type": "tool_call", "id": "a", "name": "f", "arguments": {"city": "Lisbon"}},
        {"type": "tool_call", "id": "b", "name": "g", "arguments": "not JSON"},
    ]
    returned = [{"type": "tool_call_response", "id": "a", "response": "sunny"}]
    asked = {semconv.REQUESTED_TOOL_IDS: ["a", "b"], semconv.REQUESTED_TOOL_NAMES: ["f", "g"]}
    asked |= {semconv.OUTPUT_MESSAGES: json.dumps([{"role": "assistant", "parts": calls}])}
    brought = {semconv.INPUT_MESSAGES: json.dumps([{"role": "user"}, {"role": "tool", "parts": returned}])}
    Trace(journal, 1).span(1, None, 0, 10, CHAT | asked)
    Trace(journal, 2).span(2, None, 20, 30, CHAT | brought | {semconv.RETURNED_TOOL_IDS: ["a"]})
    broken = {
        semconv.REQUESTED_TOOL_IDS: ["c"],
        semconv.REQUESTED_TOOL_NAMES: ["h"],
        semconv.OUTPUT_MESSAGES: "{broken",
    }
    Trace(journal, 3).span(3, None, 40, 50, CHAT | broken)
    assert query(store_path, "SELECT tool_call_id, arguments, result FROM llm_tool_calls ORDER BY tool_call_id") == [
        ("a", '{"city":"Lisbon"}', "sunny"),
        ("b", "not JSON", None),
        ("c", None, None),
    ]


def test_an_id_that_is_used_again_belongs_to_who_asked_last(journal: Journal, store_path: Path) -> None:
    """Some servers count their tool calls from nought in each answer."""
    asked = CHAT | {semconv.REQUESTED_TOOL_IDS: ["call_0"], semconv.REQUESTED_TOOL_NAMES: ["f"]}
    tool = {semconv.OPERATION: "execute_tool", semconv.TOOL_NAME: "f", semconv.TOOL_CALL_ID: "call_0"}
    back = CHAT | {semconv.RETURNED_TOOL_IDS: ["call_0"]}
    for number in (0, 1):
        trace = Trace(journal, number + 1)
        trace.span(10 * number + 1, None, 100 * number, 100 * number + 10, asked)
        trace.span(10 * number + 2, None, 100 * number + 20, 100 * number + 30, tool)
        trace.span(10 * number + 3, None, 100 * number + 40, 100 * number + 50, back)
    columns = "('0x' || requested_by_span_id)::INT, ('0x' || span_id)::INT, ('0x' || returned_to_span_id)::INT"
    assert query(store_path, f"SELECT {columns} FROM llm_tool_calls") == [(1, 2, 3), (11, 12, 13)]


def test_conversations(journal: Journal, store_path: Path) -> None:
    for number in range(3):
        Trace(journal, number // 2 + 1).span(
            number + 1,
            None,
            number,
            number + 1,
            CHAT
            | {
                semconv.CONVERSATION_ID: "c",
                semconv.INPUT_TOKENS: 10,
                semconv.OUTPUT_TOKENS: 1,
                semconv.CACHE_READ_TOKENS: 4,
                semconv.MODULE: f"m{number % 2}",
            },
        )
    columns = "calls, traces, input_tokens, cache_read_tokens, modules, unpriced"
    assert query(store_path, f"SELECT {columns} FROM llm_conversations") == [(3, 2, 30, 12, ["m0", "m1"], 0)]


def test_a_run_goes_on_in_other_traces(journal: Journal, store_path: Path) -> None:
    """Each part names the run, or another part of it; what it names may come from the outside, and may not be there."""
    usage = {semconv.INPUT_TOKENS: 10, semconv.OUTPUT_TOKENS: 5, semconv.USER_ID: "ada"}
    agent, waits = {semconv.OPERATION: "invoke_agent"}, {semconv.RUN_WAITING: True}

    def part(trace: int, first: int, begin: int, attributes: dict[str, Any]) -> None:
        one = Trace(journal, trace)
        one.span(first + 1, first, begin + 1, begin + 2, CHAT | usage, "m")
        one.span(first, None, begin, begin + 9, agent | attributes, "trip")

    part(1, 0xA1, 0, waits)
    by_trace = f"{1:032x}-{0xA1:016x}"
    part(2, 0xB1, 10, waits | {semconv.RUN_CONTINUES: by_trace})
    part(3, 0xC1, 20, {semconv.RUN_CONTINUES: f"{0xB1:016x}"})  # by another part, without its trace
    part(4, 0xA1, 30, waits)  # of the same span id, in another trace
    part(5, 0xD1, 40, waits | {semconv.RUN_CONTINUES: f"{7:032x}-{0xEE:016x}"})  # not there
    part(6, 0xF1, 50, {semconv.RUN_CONTINUES: f"{0xF2:016x}"})  # what is in it
    within = Trace(journal, 8)  # inside a chain of another run
    within.span(0xE0, None, 60, 69, agent, "request")
    within.span(0xE1, 0xE0, 61, 68, agent | {semconv.RUN_CONTINUES: f"{4:032x}-{0xA1:016x}"}, "trip")
    within.span(0xE2, 0xE1, 62, 63, CHAT | usage, "m")
    assert merge(store_path).complete

    columns = (
        "ltrim(run, '0'), name, status, waiting, parts, len(traces), model_calls, input_tokens, output_tokens, user_id"
    )
    assert query(store_path, f"SELECT {columns} FROM llm_runs ORDER BY first_at") == [
        ("a1", "trip", "ok", False, 3, 3, 3, 30, 15, "ada"),
        ("a1", "trip", "ok", False, 2, 2, 2, 20, 10, "ada"),
        ("ee", "trip", "ok", True, 1, 1, 1, 10, 5, "ada"),
        ("f2", "trip", "ok", False, 1, 1, 1, 10, 5, "ada"),
        ("e0", "request", "ok", False, 1, 1, 0, None, None, None),
    ]
    rows = query(
        store_path, f"SELECT sequence, event, ltrim(root, '0') FROM llm_events WHERE run_trace_id = '{1:032x}'"
    )
    each = ["ChainStarted", "ProviderStarted", "ProviderCompleted", "ChainCompleted"]
    assert rows == [(number, event, root) for root in ("a1", "b1", "c1") for number, event in enumerate(each, 1)]
    # The end of a chain has the sums of its own part, and of what goes on inside it.
    ends = query(
        store_path,
        "SELECT ltrim(span_id, '0'), input_tokens, attributes FROM llm_events WHERE event = 'ChainCompleted'",
    )
    assert [(one, tokens, json.loads(told)) for one, tokens, told in ends] == [
        ("a1", 10, {"model_calls": 1, "waiting": True}),
        ("b1", 10, {"model_calls": 1, "waiting": True}),
        ("c1", 10, {"model_calls": 1}),
        ("a1", 10, {"model_calls": 1, "waiting": True}),
        ("d1", 10, {"model_calls": 1, "waiting": True}),
        ("f1", 10, {"model_calls": 1}),
        ("e1", 10, {"model_calls": 1}),
        ("e0", 10, {"model_calls": 1}),
    ]


def test_runs_that_continue_each_other_end(journal: Journal, store_path: Path) -> None:
    """No app of ours says so, but somebody can."""
    for one, other in ((1, 2), (2, 1)):
        Trace(journal, one).span(
            one, None, one, one + 1, {semconv.OPERATION: "invoke_agent", semconv.RUN_CONTINUES: f"{other:016x}"}
        )
    assert merge(store_path).complete
    assert query(store_path, "SELECT sum(parts) FROM llm_runs") == [(2,)]
