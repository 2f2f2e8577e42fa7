"""Each example, started under `opentelemetry-instrument`: it prints what it prints without, and the account is the ledger."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from local_openai import Call, LocalOpenAI

from tests.conftest import EXAMPLES, Rows, Run

OPERATIONS = {
    "chat.completions": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}

COLUMNS = """
    select operation, request_model, response_model, response_id, stream, input_tokens, output_tokens,
           cache_read_tokens, reasoning_tokens, usage_source
    from llm_usage
"""


def as_account(calls: Iterable[Call], rows: Rows) -> Counter[tuple[Any, ...]]:
    """What the columns of `COLUMNS` have to hold for these calls.

    How far the server had come when the app left a stream is a matter of chance: its usage was not heard in either case.
    """
    left_early = {row["response_id"] for row in rows("from llm_usage where status = 'partial'")}
    account: Counter[tuple[Any, ...]] = Counter()
    for call in calls:
        said = call if call.reported and call.response_id not in left_early else None
        account[
            (
                OPERATIONS[call.endpoint],
                call.model,
                call.response_model,
                call.response_id,
                call.stream,
                said and said.input_tokens,
                said and said.output_tokens,
                said and said.cached_tokens,
                said and said.reasoning_tokens,
                said and "reported",
            )
        ] += 1
    return account


def recorded(rows: Rows) -> Counter[tuple[Any, ...]]:
    """The same from the store."""
    return Counter(tuple(row.values()) for row in rows(COLUMNS))


@pytest.mark.parametrize("example", ["chat.py", "streaming.py", "agent.py", "shop.py"])
def test_the_account_is_the_ledger_and_the_output_is_unchanged(
    example: str, run_instrumented: Run, openai_server: LocalOpenAI, rows: Rows
) -> None:
    bare = run_instrumented(EXAMPLES / example, instrument=False)
    openai_server.reset()
    instrumented = run_instrumented(EXAMPLES / example)

    assert instrumented.stdout == bare.stdout
    ledger = openai_server.ledger
    assert ledger
    assert recorded(rows) == as_account(ledger, rows)
    # Nothing of ours goes to the provider.
    for call in ledger:
        assert not {"traceparent", "tracestate", "baggage"} & call.headers.keys()


def test_chat_names_modules_users_and_prices(run_instrumented: Run, rows: Rows) -> None:
    run_instrumented(EXAMPLES / "chat.py")
    found = rows(
        """select module, user_id, conversation_id, tags['team'] as team, operation, status, provider, finish_reasons,
                  server_address, error_type, stream, cost_usd > 0 as priced, request_id is not null as has_request_id
           from llm_usage order by started_at"""
    )
    support = {"module": "support", "user_id": "alice", "conversation_id": "c-1", "team": None}
    search = {"module": "search", "user_id": "bob", "conversation_id": None, "team": "catalogue"}
    always = {
        "status": "ok",
        "server_address": "127.0.0.1",
        "error_type": None,
        "stream": False,
        "has_request_id": True,
    }
    assert [{key: row[key] for key in (*support, *always)} for row in found] == [
        {**support, **always},
        {**support, **always},
        {**search, **always},
        {**search, **always},
    ]
    assert [row["operation"] for row in found] == ["chat", "chat", "embeddings", "chat"]


def test_streaming_has_the_early_close_as_partial(run_instrumented: Run, rows: Rows) -> None:
    run_instrumented(EXAMPLES / "streaming.py")
    found = rows(
        """select user_id, status, stream, time_to_first_chunk_ms between 0 and duration_ms as first_in_time,
                  input_tokens is null as unknown
           from llm_usage order by started_at"""
    )
    assert [row["user_id"] for row in found] in (["alice", "alice", "bob", "carol"], ["alice", "bob", "alice", "carol"])
    assert [row["status"] for row in found] == ["ok", "ok", "ok", "partial"]
    assert [row["unknown"] for row in found] == [False, False, False, True]
    assert all(row["stream"] and row["first_in_time"] for row in found)


def test_the_agent_is_one_tree(run_instrumented: Run, rows: Rows) -> None:
    run_instrumented(EXAMPLES / "agent.py")
    calls = rows()
    assert [(row["agent_name"], row["module"], row["user_id"]) for row in calls] == [
        ("weather-agent", "travel", "dora")
    ] * 2

    spans = {row["span_id"]: row for row in rows("from spans")}
    assert len({span["trace_id"] for span in spans.values()}) == 1
    (root,) = [span for span in spans.values() if span["parent_span_id"] not in spans]
    assert root["parent_span_id"] is None

    def above(span: dict[str, Any]) -> list[str]:
        parent = spans.get(span["parent_span_id"])
        return [] if parent is None else [parent["operation"], *above(parent)]

    by_operation = Counter(span["operation"] for span in spans.values())
    assert (by_operation["chat"], by_operation["execute_tool"], by_operation["invoke_agent"]) == (2, 1, 1)
    for span in spans.values():
        if span["operation"] in ("chat", "execute_tool"):
            assert "invoke_agent" in above(span)
            assert "execute_tool" not in above(span)
    (tool,) = [span for span in spans.values() if span["operation"] == "execute_tool"]
    assert tool["name"] == "execute_tool weather"


def test_the_shop_is_accounted_by_module_and_user(
    run_instrumented: Run, openai_server: LocalOpenAI, rows: Rows
) -> None:
    run_instrumented(EXAMPLES / "shop.py")
    shown = run_instrumented(["otel-llm", "usage", "--by", "module,user", "--format", "json"], instrument=False)
    calls = {(row["module"], row["user"]): row["calls"] for row in json.loads(shown.stdout)}
    assert calls == {
        ("intent", "alice"): 2,
        ("intent", "bob"): 1,
        ("intent", "carol"): 1,
        ("orders", "alice"): 2,
        ("orders", "carol"): 2,
        ("advice", "alice"): 1,
        ("advice", "bob"): 1,
    }
    found = rows(
        """select module, profile, tags['deployment'] as deployment, stream, input_tokens > 0 as counted
           from llm_usage"""
    )
    assert Counter(tuple(row.values()) for row in found) == {
        ("intent", "fast", "mini", False, True): 4,
        ("orders", "fast", "mini", False, True): 4,
        ("advice", "normal", "main", True, True): 2,
    }
    tools = rows(
        """select attributes->>'otel_llm.module', attributes->>'user.id' as user_id, status from spans
           where operation = 'execute_tool' order by user_id"""
    )
    assert [tuple(row.values()) for row in tools] == [("orders", "alice", "ok"), ("orders", "carol", "error")]


def test_each_request_of_the_web_app_has_its_user(
    start_instrumented: Callable[..., subprocess.Popen[str]], openai_server: LocalOpenAI, rows: Rows
) -> None:
    process = start_instrumented(EXAMPLES / "web.py", env={"PORT": "0"})
    assert process.stderr is not None
    log = []
    while not (found := re.search(r"running on (http://[\d.:]+)", log[-1] if log else "")):
        log.append(process.stderr.readline())
        assert log[-1], "".join(log)
    users = [f"user-{number % 5}" for number in range(40)]

    def ask(user: str) -> str:
        query = urllib.parse.urlencode({"user": user, "q": f"Hello from {user}"})
        with urllib.request.urlopen(f"{found[1]}/ask?{query}", timeout=30) as answer:
            return str(json.load(answer)["answer"])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, users))
    assert all(user in answer for user, answer in zip(users, answers, strict=True))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)

    assert recorded(rows) == as_account(openai_server.ledger, rows)
    asked_by = {call.response_id: call.body["messages"][0]["content"].split()[-1] for call in openai_server.ledger}
    assert {row["response_id"]: row["user_id"] for row in rows()} == asked_by
    assert {row["module"] for row in rows()} == {"web"}
    request_ids = [row["request_id"] for row in rows()]
    assert len(set(request_ids)) == len(users) and None not in request_ids
