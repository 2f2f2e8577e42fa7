"""A run that waits for its client, and goes on in another chain, trace or process."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from otel_llm import chain, events, step, subscribe
from otel_llm.conventions import semconv
from otel_llm.lifecycle import ChainCompleted, ChainError, Event
from tests.instrumentation.conftest import Spans
from tests.lifecycle.conftest import Recorder


def test_a_run_that_waits_and_goes_on(spans: Spans, recorder: Recorder) -> None:
    with chain("trip", agent=True) as run:
        assert run.waiting is False
        run.waiting = True
        assert run.waiting is True
    told = run.run_id
    assert told == f"{run.trace_id}-{run.span_id}"
    with chain("trip", agent=True, continues=told) as again, step("s") as part:
        assert (again.run_id, part.run_id) == (told, told)
    with chain("trip", agent=True, continues=again) as third:  # a chain does as well
        assert third.run_id == told
    first, _, second, last = spans.all()
    attributes = [dict(span.attributes or {}) for span in (first, second, last)]
    assert [one.get(semconv.RUN_WAITING) for one in attributes] == [True, None, None]
    assert [one.get(semconv.RUN_CONTINUES) for one in attributes] == [None, told, told]
    assert first.context is not None
    for span in (second, last):  # in a trace of its own, with a link to the first
        assert span.context is not None
        assert span.context.trace_id != first.context.trace_id
        (link,) = span.links
        assert (link.context.trace_id, link.context.span_id) == (first.context.trace_id, first.context.span_id)
    found: list[Any] = recorder.all()
    assert {event.run for event in found} == {run.span_id}
    assert [event.sequence for event in found] == [1, 2, 1, 2, 3, 4, 1, 2]
    assert [event.waiting for event in found if isinstance(event, ChainCompleted)] == [True, False, False]


def test_the_sums_are_those_of_each_part(traced: Spans, client: openai.OpenAI, recorder: Recorder) -> None:
    run: Any = None
    for calls in (1, 2):
        with chain("trip", continues=run) as run:
            for _ in range(calls):
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    ends = [event for event in recorder.all() if isinstance(event, ChainCompleted)]
    assert [event.model_calls for event in ends] == [1, 2]
    assert ends[1].usage.input == 2 * (ends[0].usage.input or 0) > 0


def test_what_failed_does_not_wait(recorder: Recorder) -> None:
    with pytest.raises(LookupError), chain("trip") as run:
        run.waiting = True
        raise LookupError
    (error,) = [event for event in recorder.all() if not event.type.endswith("Started")]
    assert isinstance(error, ChainError)


def test_said_before_it_begins_and_taken_back(recorder: Recorder) -> None:
    run = chain("trip")
    run.waiting = True
    for waits in (True, False, True):
        with run:
            assert run.waiting is True
            run.waiting = waits
    assert [event.waiting for event in recorder.all() if isinstance(event, ChainCompleted)] == [True, False, True]


def test_the_id_is_that_of_the_root(recorder: Recorder) -> None:
    assert chain("not entered").run_id is None
    with chain("outer") as outer, step("s"), chain("inner") as inner:
        assert inner.run_id == outer.run_id == f"{outer.trace_id}-{outer.span_id}"
        with chain("other", continues="00000000000000ab"), chain("in it") as nested:
            assert nested.run_id == "00000000000000ab"
    found = {event.name: event.run for event in recorder.all()}
    assert found == dict.fromkeys(("outer", "s", "inner"), outer.span_id) | dict.fromkeys(
        ("other", "in it"), "00000000000000ab"
    )


def test_by_the_id_in_events(spans: Spans, recorder: Recorder) -> None:
    """It has no trace id: the run is the same, and there is no link."""
    with chain("trip") as run:
        pass
    with chain("trip", continues=run.span_id) as again:
        assert again.run_id == run.span_id
    assert not spans.all()[-1].links
    assert {event.run for event in recorder.all()} == {run.span_id}


@pytest.mark.parametrize("bad", ["", "trip", "0" * 16, "g" * 16, "a" * 49, "a" * 15 + "\n", 7, b"a" * 16, object()])
def test_what_is_no_run_is_said_and_begins_one(
    bad: Any, spans: Spans, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    with chain("trip", continues=bad) as run:
        assert run.run_id == f"{run.trace_id}-{run.span_id}"
    assert semconv.RUN_CONTINUES not in (spans.one().attributes or {})
    assert {event.run for event in recorder.all()} == {run.span_id}
    (record,) = caplog.records
    assert record.getMessage().startswith("chain(continues=")
    assert "run_id" in record.getMessage()


def test_no_run_is_none(caplog: pytest.LogCaptureFixture, recorder: Recorder) -> None:
    with chain("trip", continues=None), chain("trip", continues=chain("never entered")):
        pass
    assert not caplog.records
    assert len({event.run for event in recorder.all()}) == 1


async def test_listening_to_what_goes_on(spans: Spans) -> None:
    """By the id of the run: what continues it, until that has ended. By the chain: itself."""
    with chain("trip") as run:
        run.waiting = True
    by_id = events(run.run_id)
    short = events(run.span_id)
    again = chain("trip", continues=run.run_id)
    own = events(again)
    outer: list[Event] = []
    with chain("request") as request, subscribe(outer.append, run=request), again, step("s"):
        pass
    expected = ["ChainStarted", "StepStarted", "StepCompleted", "ChainCompleted"]
    for stream in (by_id, short, own):
        assert [event.type async for event in stream] == expected
    assert [event.type for event in outer][:4] == expected


def test_a_decorated_chain_goes_on_as_well(recorder: Recorder) -> None:
    @chain("trip", continues="00000000000000ab")
    def answer() -> int:
        return 1

    @chain("told", continues="00000000000000ab")
    def stream() -> Any:
        yield answer()

    assert (answer(), list(stream())) == (1, [1])
    assert {event.run for event in recorder.all()} == {"00000000000000ab"}
