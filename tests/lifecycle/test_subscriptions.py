"""Listeners: what reaches them, and that nothing they do reaches the app."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

from otel_llm import chain, events, step, subscribe
from otel_llm.lifecycle import ChainCompleted, Ended, Event, StepCompleted, StepStarted, subscriptions
from otel_llm.lifecycle.hub import hub
from otel_llm.support import faults


class Clock:
    """The time of the monotonic clock, as the test says: the event loop's timers and the subscriptions go by it."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._monotonic = time.monotonic

    def __call__(self) -> float:
        return self._monotonic() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(subscriptions, "monotonic", clock)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock


def run_once(name: str = "c") -> None:
    with chain(name), step("s"):
        pass


ALL = ["ChainStarted", "StepStarted", "StepCompleted", "ChainCompleted"]


def test_a_handler_gets_every_event_in_order_on_a_thread_of_its_own() -> None:
    found: list[Event] = []
    threads = set()

    def handler(event: Event) -> None:
        threads.add(threading.get_ident())
        found.append(event)

    with subscribe(handler) as subscription:
        for _ in range(100):
            run_once()
    assert [event.type for event in found] == ALL * 100
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert (subscription.dropped, subscription.closed) == (0, True)
    run_once()
    assert len(found) == 400


def test_types() -> None:
    found: list[str] = []
    with subscribe(lambda event: found.append(event.type), types=[StepStarted, ChainCompleted]):
        run_once()
    assert found == ["StepStarted", "ChainCompleted"]
    with subscribe(lambda event: found.append(event.type), types=Ended):
        run_once()
    assert found[2:] == ["StepCompleted", "ChainCompleted"]


@pytest.mark.parametrize("entered", [False, True], ids=["before it is entered", "while it is open"])
def test_one_run(entered: bool) -> None:
    found: list[str] = []
    run = chain("mine")

    def listen() -> Any:
        return subscribe(lambda event: found.append(f"{event.type} {event.name}"), run=run)

    subscription = None if entered else listen()
    run_once("other")
    with run:
        subscription = subscription or listen()
        with step("in it"):
            worker = threading.Thread(target=run_once, args=("elsewhere",))
            worker.start()
            worker.join()
    run_once("after")
    assert subscription.closed
    subscription.close()
    inside = ["StepStarted in it", "StepCompleted in it", "ChainCompleted mine"]
    assert found == (inside if entered else ["ChainStarted mine", *inside])


def test_by_the_id_of_a_run() -> None:
    found: list[str] = []
    with chain("c") as run, subscribe(lambda event: found.append(event.type), run=run.span_id), step("s"):
        pass
    assert found == ["StepStarted", "StepCompleted"]


def test_a_slow_handler_delays_nobody_and_what_it_misses_is_counted() -> None:
    proceed = threading.Event()
    found: list[Event] = []

    def slow(event: Event) -> None:
        proceed.wait(60)
        found.append(event)

    subscription = subscribe(slow, max_queue_size=10)
    for _ in range(10):
        run_once()  # would wait for ever if anything did
    assert not subscription.close(0.01)
    proceed.set()
    assert subscription.close(60)
    assert len(found) in (10, 11)  # one may be in hand
    assert subscription.dropped == 40 - len(found)


def test_a_handler_that_raises_is_reported_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    found: list[str] = []

    def raising_handler(event: Event) -> None:
        found.append(event.type)
        raise SystemExit if len(found) == 2 else ValueError("mine")

    with subscribe(raising_handler), subscribe(lambda event: found.append("other")):
        run_once()
    assert [kind for kind in found if kind != "other"] == ALL
    assert found.count("other") == 4
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if "raising_handler" in line and "ValueError" in line]) == 1
    for kind in [kind for kind in faults.counts if "raising_handler" in kind]:
        del faults.counts[kind]


def test_a_handler_may_close_its_own_subscription() -> None:
    found: list[str] = []
    closed = threading.Event()

    def once(event: Event) -> None:
        found.append(event.type)
        subscription.close()
        closed.set()

    subscription = subscribe(once, types=ChainCompleted)
    run_once()
    assert closed.wait(30)
    assert subscription.close(30)
    assert found == ["ChainCompleted"]


async def test_an_async_handler_runs_on_the_loop_it_was_subscribed_from() -> None:
    found: list[str] = []
    loop = asyncio.get_running_loop()

    async def handler(event: Event) -> None:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        found.append(event.type)
        if event.type == "StepStarted":
            raise ValueError("mine")

    async with subscribe(handler) as subscription:
        await asyncio.to_thread(run_once)
        run_once()
    assert found == ALL * 2
    assert subscription.closed
    for kind in [kind for kind in faults.counts if "handler" in kind]:
        del faults.counts[kind]


def test_an_async_handler_needs_a_loop() -> None:
    async def handler(event: Event) -> None: ...

    with pytest.raises(RuntimeError, match="call subscribe\\(\\) inside a coroutine"):
        subscribe(handler)


def test_a_loop_that_is_gone() -> None:
    async def handler(event: Event) -> None: ...

    async def listen() -> None:
        subscribe(handler)
        await asyncio.sleep(0)

    asyncio.run(listen())
    run_once()
    assert not hub.subscribers


async def test_events_end_with_the_run() -> None:
    run = chain("mine")

    async def work() -> None:
        with run:
            for _ in range(3):
                await asyncio.sleep(0)
                with step("s"):
                    pass

    stream = events(run)
    task = asyncio.create_task(work())
    found = [event.type async for event in stream]
    await task
    assert found == ["ChainStarted", *["StepStarted", "StepCompleted"] * 3, "ChainCompleted"]
    assert not hub.subscribers


async def test_events_from_another_thread() -> None:
    run = chain("mine")

    def work() -> None:
        with run, step("s"):
            pass

    stream = events(run, types=StepCompleted)
    task = asyncio.create_task(asyncio.to_thread(work))
    assert [event.name async for event in stream] == ["s"]
    await task


async def test_events_end_with_a_run_that_nobody_records(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.trace import NoOpTracerProvider

    from otel_llm.lifecycle.scopes import tracer

    tracer.use(NoOpTracerProvider())
    run = chain("mine")
    stream = events(run)
    with run:
        pass
    assert [event async for event in stream] == []


async def test_a_stream_that_is_dropped_listens_no_more() -> None:
    stream = events()
    run_once()
    async for event in stream:
        assert event.type == "ChainStarted"
        break
    del stream
    assert not hub.subscribers


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="handler must be a function of one event, not 3"):
        subscribe(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="types takes event classes"):
        subscribe(print, types="ChainStarted")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="run takes a chain, a step, a tool, its run_id, or the hex id"):
        subscribe(print, run="mine")


def test_a_forked_child_tells_its_own_handler() -> None:
    read, write = os.pipe()
    with subscribe(lambda event: os.write(write, f"{os.getpid()} {event.type}\n".encode())):
        child = os.fork()
        if not child:
            code = 1
            try:
                run_once()
                for subscriber in hub.subscribers:
                    subscriber.close()
                    subscriber.join(30)  # type: ignore[attr-defined]
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read().splitlines() == [f"{child} {kind}" for kind in ALL]


async def test_a_run_that_never_begins_ends_the_events() -> None:
    """A chain that is not entered, and ids of which nothing is heard; another's events are no beginning."""
    for run in (chain("never"), "ab" * 8, "12" * 16 + "-" + "ab" * 8):
        stream = events(run, begins_within=0)
        run_once("another")
        assert [event async for event in stream] == []
    assert not hub.subscribers


async def test_what_has_begun_is_waited_for(clock: Clock) -> None:
    run, entered, by_id = chain("later"), chain("entered"), chain("by id")
    outer = events()
    with entered, by_id:
        streams = [events(one, types=ChainCompleted) for one in (run, entered, by_id.span_id)]
        readers = [asyncio.ensure_future(anext(stream)) for stream in streams]
        with run:
            await asyncio.sleep(0)
            clock.advance(3600)
            await asyncio.sleep(0)
            assert not any(reader.done() for reader in readers)
    assert [(await reader).name for reader in readers] == ["later"] * 3  # it is inside the others
    for stream in (outer, *streams):
        stream.close()


async def test_it_waits_as_long_as_it_is_said(clock: Clock) -> None:
    streams = [
        events(chain("never")),
        events(chain("never"), begins_within=90),
        events(chain("never"), begins_within=None),
    ]
    readers = [asyncio.ensure_future(anext(stream, None)) for stream in streams]
    for done in ([False, False, False], [True, False, False], [True, True, False]):
        for _ in range(5):
            await asyncio.sleep(0)
        assert [reader.done() for reader in readers] == done
        clock.advance(61)
    streams[-1].close()
    assert [await reader for reader in readers] == [None] * 3


async def test_a_chain_that_has_ended_ends_the_events_at_once() -> None:
    run = chain("over")
    with run:
        pass
    assert [event async for event in events(run, begins_within=None)] == []


@pytest.mark.parametrize("bad", [-1, "60", float("nan")])
def test_a_time_that_is_none(bad: Any) -> None:
    with pytest.raises(ValueError, match="begins_within takes a number of seconds"):
        events(chain("c"), begins_within=bad)
