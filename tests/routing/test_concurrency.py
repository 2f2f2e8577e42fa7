"""`max_concurrency`: over real HTTP, where the server counts how many calls of a model it has at once."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from otel_llm import LLMProvider
from otel_llm.routing import slots as slots_module
from otel_llm.routing.deployments import Attempt, Pool, Route
from otel_llm.routing.profiles import Deployment, Profile
from otel_llm.routing.slots import Slot, Slots
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans
from tests.routing.conftest import HELLO, MODEL, Clock, Make
from tests.routing.test_deployments import fail
from tests.store.conftest import until

OTHER = "gpt-4.1-mini"
HELD = {"x-local-behaviour": "slow"}
"""No answer before the server is told to release it."""


def at_most(calls: int, **more: Any) -> dict[str, Any]:
    return {"limits": {"max_concurrency": calls}, **more}


@pytest.fixture(autouse=True)
async def _threads_for_all() -> AsyncIterator[None]:
    """As many as wait here; the event loop's own pool is as small as the machine."""
    with ThreadPoolExecutor(16) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        yield


def waiting(provider: LLMProvider) -> int:
    return len(provider._pools["fast"].slots._waiting)


async def comes_to_wait(provider: LLMProvider, n: int = 1) -> None:
    await asyncio.to_thread(until, lambda: waiting(provider) == n, f"{n} to wait")


def nothing_is_taken(provider: LLMProvider) -> bool:
    slots = provider._pools["fast"].slots
    return not any(slots._taken.values()) and not slots._waiting


# --- each way of calling ----------------------------------------------------------------------------------------------
async def client(provider: LLMProvider) -> None:
    def ask() -> None:
        provider.client("fast").chat.completions.create(model="fast", messages=HELLO, extra_headers=HELD)  # type: ignore[arg-type]

    await asyncio.to_thread(ask)


async def client_streams(provider: LLMProvider) -> None:
    def ask() -> None:
        chat = provider.client("fast").chat.completions
        list(chat.create(model="fast", messages=HELLO, stream=True, extra_headers=HELD))  # type: ignore[arg-type]

    await asyncio.to_thread(ask)


async def client_reads_the_body(provider: LLMProvider) -> None:
    def ask() -> None:
        chat = provider.client("fast").chat.completions.with_streaming_response
        with chat.create(model="fast", messages=HELLO, extra_headers=HELD) as response:  # type: ignore[arg-type]
            response.read()

    await asyncio.to_thread(ask)


async def async_client(provider: LLMProvider) -> None:
    async with provider.async_client("fast") as asking:
        await asking.chat.completions.create(model="fast", messages=HELLO, extra_headers=HELD)  # type: ignore[arg-type]


async def async_client_streams(provider: LLMProvider) -> None:
    async with provider.async_client("fast") as asking:
        stream = await asking.chat.completions.create(
            model="fast",
            messages=HELLO,  # type: ignore[arg-type]
            stream=True,
            extra_headers=HELD,
        )
        async for _ in stream:
            pass


async def invoke(provider: LLMProvider) -> None:
    await asyncio.to_thread(provider.create_invoker("fast").invoke, "Hello", extra_headers=HELD)


async def ainvoke(provider: LLMProvider) -> None:
    await provider.create_invoker("fast").ainvoke("Hello", extra_headers=HELD)


async def stream(provider: LLMProvider) -> None:
    invoker = provider.create_invoker("fast")
    await asyncio.to_thread(lambda: list(invoker.stream("Hello", extra_headers=HELD)))


async def astream(provider: LLMProvider) -> None:
    async for _ in provider.create_invoker("fast").astream("Hello", extra_headers=HELD):
        pass


Way = Callable[[LLMProvider], Awaitable[None]]
WAYS = [
    client,
    client_streams,
    client_reads_the_body,
    async_client,
    async_client_streams,
    invoke,
    ainvoke,
    stream,
    astream,
]


@pytest.mark.parametrize("is_traced", [False, True], ids=["plain", "traced"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_never_more_at_once_than_the_limit(
    way: Way, is_traced: bool, provider: Make, openai_server: LocalOpenAI, request: pytest.FixtureRequest
) -> None:
    spans: Spans | None = request.getfixturevalue("traced") if is_traced else None
    made = provider(first=at_most(2), second=at_most(1, model=OTHER))
    calls = [asyncio.ensure_future(way(made)) for _ in range(8)]
    await asyncio.to_thread(openai_server.wait_for, 3)  # all that may: the first is at its limit, the next is asked
    await comes_to_wait(made, 5)
    openai_server.open()
    await asyncio.gather(*calls)
    requests = openai_server.requests
    assert len(requests) == 8
    assert {name: max(one.at_once for one in requests if one.model == name) for name in (MODEL, OTHER)} == {
        MODEL: 2,
        OTHER: 1,
    }
    assert nothing_is_taken(made)
    assert spans is None or len([span for span in spans.all() if span.kind.name == "CLIENT"]) == 8


async def test_who_came_first_is_served_first(provider: Make, openai_server: LocalOpenAI) -> None:
    made = provider(only=at_most(1))
    asking = made.async_client("fast").chat.completions

    def sync(number: int) -> Any:
        chat = made.client("fast").chat.completions
        messages: Any = [{"role": "user", "content": str(number)}]
        return asyncio.to_thread(chat.create, model="fast", messages=messages, extra_headers=HELD)

    def not_sync(number: int) -> Any:
        messages: Any = [{"role": "user", "content": str(number)}]
        return asking.create(model="fast", messages=messages, extra_headers=HELD)

    calls = []
    for number in range(6):  # tasks and threads wait in one line
        calls.append(asyncio.ensure_future((sync, not_sync)[number % 2](number)))
        if number:
            await comes_to_wait(made, number)
        else:
            await asyncio.to_thread(openai_server.wait_for, 1)
    openai_server.open()
    await asyncio.gather(*calls)
    assert [one.body["messages"][0]["content"] for one in openai_server.requests] == ["0", "1", "2", "3", "4", "5"]
    assert max(one.at_once for one in openai_server.requests) == 1


# --- who waits, and leaves --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", [async_client, async_client_streams, ainvoke, astream], ids=lambda way: way.__name__)
async def test_a_cancelled_waiter_gives_up_its_place(way: Way, provider: Make, openai_server: LocalOpenAI) -> None:
    made = provider(only=at_most(1))
    holder = asyncio.ensure_future(way(made))
    await asyncio.to_thread(openai_server.wait_for, 1)
    impatient, patient = asyncio.ensure_future(way(made)), asyncio.ensure_future(way(made))
    await comes_to_wait(made, 2)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    openai_server.open()
    await asyncio.gather(holder, patient)
    assert len(openai_server.requests) == 2
    assert nothing_is_taken(made)


@pytest.mark.parametrize("way", [async_client, async_client_streams, ainvoke, astream], ids=lambda way: way.__name__)
async def test_a_cancelled_call_gives_its_slot_back(way: Way, provider: Make, openai_server: LocalOpenAI) -> None:
    made = provider(only=at_most(1))
    holder, next_one = asyncio.ensure_future(way(made)), asyncio.ensure_future(way(made))
    await asyncio.to_thread(openai_server.wait_for, 1)
    await comes_to_wait(made)
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
    openai_server.open()
    await next_one
    assert nothing_is_taken(made)


async def test_cancelled_at_the_moment_that_the_slot_comes() -> None:
    slots, state = Slots(), only(1)
    held = slots.ask([state])
    assert isinstance(held, Slot)
    waiter = asyncio.ensure_future(slots.wait_async(slots.ask([state])))
    await asyncio.sleep(0)
    held.give_back()  # it is the waiter's now, who does not know yet
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert isinstance(slots.ask([state]), Slot)


# --- streams ----------------------------------------------------------------------------------------------------------
def opened(provider: LLMProvider, how: str) -> tuple[Any, Callable[[], object]]:
    """A stream of which a chunk has been read, and what closes it."""
    chat = provider.client("fast").chat.completions
    if how == "raw":
        manager = chat.with_streaming_response.create(model="fast", messages=HELLO, stream=True)  # type: ignore[arg-type]
        lines = manager.__enter__().iter_lines()
        next(lines)
        return lines, lambda: manager.__exit__(None, None, None)
    if how == "invoker":
        chunks: Any = provider.create_invoker("fast").stream("Hello")
    else:
        chunks = chat.create(model="fast", messages=HELLO, stream=True)  # type: ignore[arg-type]
    next(chunks)
    return chunks, (lambda: list(chunks)) if how == "read to the end" else chunks.close


@pytest.mark.parametrize("how", ["read to the end", "closed", "raw", "invoker"])
async def test_a_stream_has_its_slot_until_it_is_closed(how: str, provider: Make, openai_server: LocalOpenAI) -> None:
    made = provider(only=at_most(1))
    _begun, close = await asyncio.to_thread(opened, made, how)
    openai_server.open()
    next_one = asyncio.ensure_future(async_client(made))
    await comes_to_wait(made)
    assert len(openai_server.requests) == 1
    await asyncio.to_thread(close)
    await next_one
    assert nothing_is_taken(made)


async def test_a_stream_that_breaks_gives_its_slot_back(provider: Make, openai_server: LocalOpenAI) -> None:
    made = provider(only=at_most(1, model="stream-broken"))
    broken = made.client("fast").chat.completions.create(model="fast", messages=HELLO, stream=True)  # type: ignore[arg-type]
    with pytest.raises(openai.APIConnectionError):
        list(broken)
    assert nothing_is_taken(made)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("read", [False, True], ids=["unread", "begun"])
@pytest.mark.parametrize("is_traced", [False, True], ids=["plain", "traced"])
@pytest.mark.parametrize("way", [client, async_client], ids=lambda way: way.__name__)
async def test_an_abandoned_stream_gives_its_slot_back(
    way: Way,
    is_traced: bool,
    read: bool,
    provider: Make,
    openai_server: LocalOpenAI,
    no_collector: None,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The object refers to itself, and nobody runs the collector but who waits."""
    monkeypatch.setattr(slots_module, "PATIENCE", 0.1)
    if is_traced:
        request.getfixturevalue("traced")
    made = provider(only=at_most(1))
    openai_server.open()
    if way is client:
        dropped: Any = made.client("fast").chat.completions.create(model="fast", messages=HELLO, stream=True)  # type: ignore[arg-type]
        if read:
            next(dropped)
    else:
        dropped = await made.async_client("fast").chat.completions.create(model="fast", messages=HELLO, stream=True)  # type: ignore[arg-type]
        if read:
            await anext(dropped)
    next_one = asyncio.ensure_future(way(made))
    await comes_to_wait(made)
    del dropped
    await next_one
    assert len(openai_server.requests) == 2
    assert nothing_is_taken(made)


async def test_an_invokers_abandoned_stream_gives_its_slot_back(
    provider: Make, openai_server: LocalOpenAI, no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "PATIENCE", 0.1)
    made = provider(only=at_most(1))
    openai_server.open()

    async def begin() -> AsyncIterator[Any]:
        chunks = made.create_invoker("fast").astream("Hello")
        await anext(chunks)
        return chunks

    dropped = await begin()
    next_one = asyncio.ensure_future(ainvoke(made))
    await comes_to_wait(made)
    del dropped
    await next_one
    assert nothing_is_taken(made)


def test_searches_that_find_nothing_come_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one holds the whole process up, an event loop as well."""
    now, searched = 1_000.0, []
    monkeypatch.setattr(slots_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(slots_module, "gc", SimpleNamespace(collect=lambda: searched.append(now)))
    slots, state = Slots(), only(2)
    held: list[Any] = [slots.ask([state]), slots.ask([state])]
    for slot in held:
        slot.lend()
    del slot
    for _ in range(60):  # five minutes, as two wait
        now += slots_module.PATIENCE
        slots._find_dropped()
        slots._find_dropped()
    assert [later - earlier for earlier, later in pairwise(searched)] == [5, 10, 20, 40, 60, 60, 60]
    monkeypatch.setattr(slots_module, "gc", SimpleNamespace(collect=lambda: (searched.append(now), held.pop())))
    searched.clear()
    for _ in range(60):
        now += slots_module.PATIENCE
        slots._find_dropped()
    assert len(searched) == 2 and searched[1] - searched[0] == 5
    assert not held


# --- which deployment -------------------------------------------------------------------------------------------------
async def test_after_a_failure_it_waits_for_one_that_works(provider: Make, openai_server: LocalOpenAI) -> None:
    made = provider(bad="error-500", good=at_most(1))
    holder = asyncio.ensure_future(async_client(made))
    await asyncio.to_thread(openai_server.wait_for, 1)
    next_one = asyncio.ensure_future(async_client(made))
    await comes_to_wait(made)
    openai_server.open()
    await asyncio.gather(holder, next_one)
    # The second did not go to the one that had failed for the first.
    assert [(one.model, one.status) for one in openai_server.requests] == [
        ("error-500", 500),
        (MODEL, 200),
        (MODEL, 200),
    ]


def only(limit: int | None) -> Any:
    return pool(Clock(), Deployment("fast", "only", "m", max_concurrency=limit)).states[0]


def pool(clock: Clock, *deployments: Deployment) -> Pool:
    return Pool(Profile("fast", deployments), clock, random.Random(7))


def test_one_that_cools_down_is_not_asked_instead_of_waiting(clock: Clock) -> None:
    shared = pool(clock, Deployment("fast", "a", "m", max_concurrency=1), Deployment("fast", "b", "m"))
    fail(shared, "b")
    with Route(shared).next() as attempt:
        assert attempt.state.deployment.name == "a"
        asked = shared.slots.ask(Route(shared)._best())
        assert isinstance(asked, Future) and not asked.done()
    assert asked.result(0).state.deployment.name == "a"


def test_what_is_sent_once_goes_to_one_that_is_free(clock: Clock) -> None:
    shared = pool(clock, Deployment("fast", "a", "m", weight=1e9, max_concurrency=1), Deployment("fast", "b", "m"))
    with Route(shared).next():
        route = Route(shared, repeats=False)
        assert route.next().state.deployment.name == "b"
        assert not route.goes_on(openai.APIConnectionError(request=Any))  # type: ignore[arg-type]


def test_a_limit_of_requests_a_minute_takes_no_slot(clock: Clock) -> None:
    shared = pool(clock, Deployment("fast", "a", "m", max_concurrency=1, requests_per_minute=1))
    with Route(shared).next():
        pass
    for _ in range(2):
        with pytest.raises(RuntimeError, match="requests a minute"), Route(shared).next():
            pytest.fail("was sent")


def test_without_limits_nobody_is_counted(clock: Clock) -> None:
    shared = pool(clock, Deployment("fast", "a", "m"))
    with Attempt(shared.states[0]), Route(shared).next(), Route(shared).next():
        assert not shared.slots._taken


# --- the slots ---------------------------------------------------------------------------------------------------------
def test_threads_that_give_back_drop_and_leave() -> None:
    slots, states = Slots(), [only(2), only(1)]
    inside, most = {id(state): 0 for state in states}, {id(state): 0 for state in states}
    lock = threading.Lock()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(200):
            asked = slots.ask(chance.sample(states, chance.randint(1, 2)))
            if isinstance(asked, Future) and chance.random() < 0.3 and asked.cancel():
                slots.tell(asked)
                continue
            slot = slots.wait(asked)
            with lock:
                inside[id(slot.state)] += 1
                most[id(slot.state)] = max(most[id(slot.state)], inside[id(slot.state)])
            time.sleep(0)  # another thread's turn
            with lock:
                inside[id(slot.state)] -= 1
            if chance.random() < 0.5:
                slot.give_back()
                slot.give_back()  # counts once
            del slot, asked

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert most[id(states[0])] <= 2 and most[id(states[1])] == 1
    assert not any(slots._taken.values()) and not slots._waiting


def test_what_a_signals_handler_raises_leaves_the_door_usable() -> None:
    """After each call of a function that giving back a slot makes, as Ctrl-C may."""

    class Interrupt(BaseException):
        pass

    for moment in range(1_000):
        slots, state = Slots(), only(1)
        held, waiter = slots.ask([state]), slots.ask([state])
        assert isinstance(held, Slot) and isinstance(waiter, Future)
        left = moment

        def strike(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal left
            left -= event in ("call", "c_return")
            if left < 0:
                sys.setprofile(None)
                raise Interrupt

        interrupted = False
        sys.setprofile(strike)
        try:
            held.give_back()
        except Interrupt:
            interrupted = True
        finally:
            sys.setprofile(None)
        assert not slots._lock.locked()
        if not interrupted:
            break
    assert moment > 10 and waiter.done()


def test_a_slot_found_by_the_collector_inside_the_door() -> None:
    """What runs there may be anything: it must not wait for the lock that its own thread holds."""
    slots, state = Slots(), only(1)
    held = [slots.ask([state])]
    waiter = slots.ask([state])
    assert isinstance(held[0], Slot) and isinstance(waiter, Future)

    def drop() -> None:
        with slots._lock:
            held.clear()

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and not waiter.done()
    assert isinstance(slots.ask([only(None)]), Slot)
    assert not waiter.done()  # nobody has come by
    later = slots.ask([state])
    assert waiter.done() and isinstance(later, Future)  # and who came first has it
    slots.wait(waiter).give_back()
    assert isinstance(later.result(0), Slot)


def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    state = pool(Clock(), Deployment("fast", "only", "m", requests_per_minute=5)).states[0]
    with state._lock:  # as another thread holds it for a moment
        child = os.fork()
        if not child:
            signal.alarm(30)
            state.take()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_begins_with_free_slots() -> None:
    slots, state = Slots(), only(1)
    held = slots.ask([state])
    child = os.fork()
    if not child:
        code = 1
        try:
            own = slots.ask([state])
            held.give_back()  # type: ignore[union-attr]
            code = 0 if isinstance(own, Slot) and isinstance(slots.ask([state]), Future) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert isinstance(slots.ask([state]), Future)
