"""What was said, in its order: of a conversation, of a session, of a user; and what it had cost by then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.account.in_duckdb.shared import SharedDuckDBEngine
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from otel_llm.ui import page_questions


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SharedDuckDBEngine]:
    """Two conversations of a session, in turns, each call of which is given all that was said in its conversation before."""
    store = tmp_path / "usage.duckdb"
    history: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    with exclusive.alone(StorePaths.of(store)) as connection:
        for number, conversation in enumerate("abab"):
            given = [*history[conversation], _message("user", f"question {number}")]
            taken = [_message("assistant", f"answer {number}")]
            history[conversation] = given + taken
            connection.execute(
                """INSERT INTO llm_usage (started_at, duration_ms, trace_id, span_id, operation, status, cost_usd, usage_source,
                    session_id, user_id, conversation_id, input_messages, output_messages)
                VALUES (TIMESTAMPTZ '2026-11-20 12:00:00+00' + to_seconds($1), 500,
                    printf('%032x', $1), printf('%016x', $1), 'chat', 'ok', 0.01,
                    CASE WHEN $1 = 1 THEN 'estimated' ELSE 'reported' END, 's', 'u', $2, $3, $4)""",
                [number, conversation, json.dumps(given), json.dumps(taken)],
            )
    found = SharedDuckDBEngine(store)
    yield found
    found.close()


def _asked(talk: page_questions.Talk) -> list[list[str]]:
    return [[message["parts"][0]["content"] for message in turn.asked] for turn in talk.turns]


@pytest.mark.parametrize(("by", "key"), [("session", "s"), ("user", "u")])
def test_each_message_is_told_once_in_its_conversation(by: str, key: str, engine: SharedDuckDBEngine) -> None:
    talk = page_questions.talk(engine, by, key)
    assert _asked(talk) == [["question 0"], ["question 1"], ["question 2"], ["question 3"]]
    assert [turn.goes_on for turn in talk.turns] == [False] * 4
    assert (talk.calls, talk.conversations) == (4, 2)
    assert [turn.spent for turn in talk.turns] == [Decimal(text) for text in ("0.01", "0.01", "0.02", "0.03")]
    assert [turn.pause_ms for turn in talk.turns] == [None, 500, 500, 500]


def test_of_many_calls_the_last_are_told_and_all_are_in_the_sum(engine: SharedDuckDBEngine) -> None:
    talk = page_questions.talk(engine, "session", "s", most=2)
    assert _asked(talk)[0][-1] == "question 2"
    assert [turn.spent for turn in talk.turns] == [Decimal("0.02"), Decimal("0.03")]
    assert talk.calls == 4


def test_one_conversation_goes_on(engine: SharedDuckDBEngine) -> None:
    talk = page_questions.talk(engine, "conversation", "a")
    assert [turn.goes_on for turn in talk.turns] == [False, True]
    assert page_questions.talk(engine, "conversation", "none").turns == []
