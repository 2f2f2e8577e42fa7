"""Calls that go on from a response of another are one conversation, in whatever order, from whichever process they arrive."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from otel_llm.conventions import semconv
from otel_llm.store.jobs import exclusive
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import end, identity, merging, query, start


@dataclass(frozen=True)
class Call:
    response: str | None
    previous: str | None = None
    conversation: str | None = None
    expected: str | None = None
    number: int = 0
    """Its ids and its time."""


def calls(*each: Call) -> list[Call]:
    return [Call(one.response, one.previous, one.conversation, one.expected, n) for n, one in enumerate(each, 1)]


KINDS = {
    "nobody says": calls(Call("a", expected="a"), Call("b", "a", expected="a"), Call("c", "b", expected="a")),
    "the first says": calls(
        Call("a", conversation="C", expected="C"), Call("b", "a", expected="C"), Call("c", "b", expected="C")
    ),
    "one in the middle says": calls(
        Call("a", expected="a"), Call("b", "a", expected="a"), Call("c", "b", "C", "C"), Call("d", "c", expected="C")
    ),
    "it forks": calls(
        Call("a", expected="a"), Call("b", "a", expected="a"), Call("c", "a", expected="a"), Call("d", "c", expected="a")
    ),
    "the first is not known": calls(Call("b", "a", expected="a"), Call("c", "b", expected="a")),
    "one without an answer": calls(Call("a", expected="a"), Call(None, "a", expected="a"), Call("b", "a", expected="a")),
    "no chain": calls(Call("a"), Call("b", conversation="C", expected="C"), Call(None), Call("c", "")),
    "two beside each other": calls(
        Call("a", expected="a"), Call("x", conversation="X", expected="X"),
        Call("b", "a", expected="a"), Call("y", "x", expected="X"),
    ),
    "it goes on from itself": calls(Call("a", "a", expected="a")),
    "a long one": calls(Call("r0", expected="r0"), *(Call(f"r{n + 1}", f"r{n}", expected="r0") for n in range(9))),
}  # fmt: skip


def write(journal: Journal, call: Call, *, ends: bool = True) -> None:
    """The start tells what was asked, the end what was answered."""
    asked = {semconv.REQUEST_PREVIOUS_RESPONSE: call.previous, semconv.CONVERSATION_ID: call.conversation}
    begin = start({name: value for name, value in asked.items() if value is not None}, number=call.number)
    journal.append(begin, start_of=identity(begin))
    if ends:
        told = {} if call.response is None else {semconv.RESPONSE_ID: call.response}
        journal.append(end(begin, told), end_of=identity(begin))


def seen(path: Path) -> dict[int, str | None]:
    """The conversation of each call, by its number; where it is derived that is said."""
    rows = query(path, "SELECT span_id, conversation_id, conversation_source FROM llm_usage")
    assert len({span for span, *_ in rows}) == len(rows)
    return {int(span, 16) & 0xFFFFFFFF: conversation for span, conversation, _ in rows}


def expected(kind: list[Call]) -> dict[int, str | None]:
    return {call.number: call.expected for call in kind}


def orders(kind: list[Call]) -> Iterator[list[list[Call]]]:
    """All at once, backwards, and in parts without any order."""
    yield [kind]
    if len(kind) < 5:
        yield [[call] for call in reversed(kind)]
    chance = random.Random(1)
    shuffled = chance.sample(kind, len(kind))
    cuts = sorted(chance.sample(range(len(kind) + 1), min(2, len(kind))))
    yield [part for low, high in itertools.pairwise([0, *cuts, len(kind)]) if (part := shuffled[low:high])]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_conversation_does_not_depend_on_how_calls_arrive(kind: list[Call], paths: StorePaths) -> None:
    """Each part is written by a process of its own; before it is merged, what is laid over the store says the same."""
    for position, parts in enumerate(orders(kind)):
        store = StorePaths.of(paths.database.with_name(f"{position}.duckdb"))
        with exclusive.alone(store):
            pass  # has made it
        for part in parts:
            journal = Journal(store.journal)
            for call in part:
                write(journal, call)
            with merging(store):
                laid_over = seen(store.database)
            assert merge(store.database).complete
            assert seen(store.database) == laid_over
            journal.close()
        assert laid_over == expected(kind), parts
        derived = "conversation_source = 'previous_response_id'"
        stated = {call.number for call in kind if call.conversation is not None or call.expected is None}
        rows = query(store.database, f"SELECT span_id FROM llm_usage WHERE ({derived}) IS NOT TRUE")
        assert {int(span, 16) & 0xFFFFFFFF for (span,) in rows} == stated


def test_the_end_of_a_call_that_was_given_up_counts(paths: StorePaths) -> None:
    """It was interrupted as far as anybody knew; what went on from it was called by its response."""
    first, second = Call("a", conversation="C", expected="C", number=1), Call("b", "a", expected="C", number=2)
    dead, living = Journal(paths.journal), Journal(paths.journal)
    write(dead, first, ends=False)
    dead.close()
    assert merge(paths.database).interrupted == 1
    write(living, second)
    assert seen(paths.database) == {1: "C", 2: "a"}
    write(living, first)
    assert seen(paths.database) == {1: "C", 2: "C"}
    assert query(paths.database, "SELECT row_version FROM llm_usage") == [(2,), (2,)]
    living.close()


def test_responses_in_a_circle_have_an_end(paths: StorePaths) -> None:
    journal = Journal(paths.journal)
    for call in calls(Call("a", "b"), Call("b", "a"), Call("c", "a")):
        write(journal, call)
    assert set(seen(paths.database).values()) <= {"a", "b"}
    journal.close()


def test_the_first_call_may_be_of_any_age(paths: StorePaths) -> None:
    journal = Journal(paths.journal)
    for number, call in enumerate(KINDS["nobody says"]):
        write(journal, Call(call.response, call.previous, number=1 + number * 400 * 86_400 * 1000))
        assert merge(paths.database).complete
    assert set(seen(paths.database).values()) == {"a"}
    journal.close()
