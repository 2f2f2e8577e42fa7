"""`with llm_context(...)` around a `yield`: what the generator's driver loses, the generator's own calls still have."""

from __future__ import annotations

import contextvars
import gc
import logging
from collections.abc import Callable, Generator, Iterator

import pytest

from otel_llm.context import around_yield, attributes, current_context, llm_context

Seen = tuple[str | None, str | None]


def seen() -> Seen:
    now = current_context()
    return now.module, now.user_id


def elsewhere(function: Callable[[], Seen | None]) -> Seen | None:
    """As Starlette takes a step of a plain generator: in a fresh copy of the context of whoever asks for it."""
    return contextvars.copy_context().run(function)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    around_yield.warn.cache_clear()
    yield
    gc.collect()
    assert not around_yield.by_frame


def answer() -> Generator[Seen]:
    with llm_context("chat"):
        yield seen()
        with llm_context(user_id="inner"):
            yield seen()
        yield seen()


def steps(generator: Generator[Seen]) -> list[Seen | None]:
    return [elsewhere(lambda: next(generator, None)) for _ in range(4)]


def test_each_step_in_a_copy(caplog: pytest.LogCaptureFixture) -> None:
    assert steps(answer()) == [("chat", None), ("chat", "inner"), ("chat", None), None]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "@llm_context(...)" in record.message


def test_in_the_context_of_a_request() -> None:
    with llm_context("api", user_id="u1"):
        assert steps(answer()) == [("chat", "u1"), ("chat", "inner"), ("chat", "u1"), None]
        assert seen() == ("api", "u1")


def test_what_is_entered_inside_goes_before_it() -> None:
    def body() -> Generator[Seen]:
        with llm_context("chat", user_id="u1"):
            yield seen()
            with_own = called()
            yield with_own

    def called() -> Seen:
        with llm_context("search"):
            return seen()

    generator = body()
    assert [elsewhere(lambda: next(generator)) for _ in range(2)] == [("chat", "u1"), ("search", "u1")]
    generator.close()


def test_two_generators_in_turns() -> None:
    def of(user: str) -> Generator[Seen]:
        with llm_context(user_id=user):
            while True:
                yield seen()

    a, b = of("a"), of("b")
    for _ in range(3):
        assert elsewhere(lambda: next(a)) == (None, "a")
        assert elsewhere(lambda: next(b)) == (None, "b")
    assert attributes() == {}


def test_one_driver_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert list(answer()) == [("chat", None), ("chat", "inner"), ("chat", None)]
    dropped = answer()
    elsewhere(dropped.__next__)
    del dropped
    gc.collect()
    assert not caplog.records and seen() == (None, None)
