"""The context follows work into threads, pools and processes, and stays with nobody who was not given it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import multiprocessing
import multiprocessing.pool
import multiprocessing.process
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from otel_llm import llm_context
from otel_llm.calls import carrying
from otel_llm.context import attributes
from otel_llm.conventions import semconv
from otel_llm.instrumentation import concurrency
from tests.instrumentation.conftest import Spans

Seen = tuple[str | None, int]


def seen(*_: Any, **__: Any) -> Seen:
    """The user here, and the span that a call would be under."""
    return attributes().get(semconv.USER_ID), trace.get_current_span().get_span_context().span_id


NOBODY: Seen = (None, 0)

PATCHED = [
    (threading.Thread, "start"),
    (ThreadPoolExecutor, "submit"),
    (ProcessPoolExecutor, "submit"),
    (multiprocessing.process.BaseProcess, "start"),
    (multiprocessing.pool.Pool, "apply_async"),
    (multiprocessing.pool.Pool, "_map_async"),
    (multiprocessing.pool.Pool, "imap"),
    (multiprocessing.pool.Pool, "imap_unordered"),
]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    before = [vars(owner)[name] for owner, name in PATCHED]
    concurrency.install()
    concurrency.install()
    assert all(vars(owner)[name] is not was for (owner, name), was in zip(PATCHED, before, strict=True))
    yield
    concurrency.remove()
    concurrency.remove()
    assert all(vars(owner)[name] is was for (owner, name), was in zip(PATCHED, before, strict=True))


@pytest.fixture
def inside(spans: Spans) -> Iterator[Seen]:
    """A user and a span, and what is to be seen of them elsewhere."""
    with spans.provider.get_tracer("app").start_as_current_span("app") as span, llm_context("m", user_id="u"):
        yield "u", span.get_span_context().span_id


# --- threads ----------------------------------------------------------------------------------------------------------
def in_thread(make: Callable[[Callable[[], None]], threading.Thread]) -> Seen:
    found: list[Seen] = []
    thread = make(lambda: found.append(seen()))
    before = dict(vars(thread))
    thread.start()
    thread.join()
    assert vars(thread).keys() <= before.keys()
    return found[0]


class Own(threading.Thread):
    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def run(self) -> None:
        self._tell()


def with_run_of_its_own(tell: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread()
    thread.run = tell  # type: ignore[method-assign]
    return thread


MAKERS = {
    "target": lambda tell: threading.Thread(target=tell),
    "subclass": Own,
    "timer": lambda tell: threading.Timer(0, tell),
    "run replaced": with_run_of_its_own,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_thread(make, inside):
    assert in_thread(make) == inside
    assert contextvars.Context().run(in_thread, make) == NOBODY


def test_a_thread_keeps_what_was_current_at_its_start(inside):
    go, found = threading.Event(), []
    thread = threading.Thread(target=lambda: (go.wait(), found.append(seen())))
    with llm_context(user_id="starter"):
        thread.start()
    go.set()
    thread.join()
    assert found[0][0] == "starter"


def test_starting_twice_fails_as_it_does(inside):
    thread = threading.Thread(target=seen)
    thread.start()
    with pytest.raises(RuntimeError, match="threads can only be started once"):
        thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="threads can only be started once"):
        thread.start()
    assert "run" not in vars(thread)


def test_threads_of_infrastructure_stay_outside(inside):
    """They serve whoever comes, and would keep the context of the one who came first."""
    with ThreadPoolExecutor(1, initializer=lambda: found.append(seen())) as pool:
        found: list[Seen] = []
        pool.submit(int).result()
    assert found == [NOBODY]


def in_pool() -> Seen:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(seen).result()


def test_a_pool_carries_each_task_s_own_context(spans):
    """One worker for all, so what one task leaves behind would be seen by the next."""
    tracer = spans.provider.get_tracer("app")
    with ThreadPoolExecutor(1) as pool:
        for name in ("a", "b"):
            with llm_context(user_id=name), tracer.start_as_current_span(name) as span:
                expected = (name, span.get_span_context().span_id)
                assert pool.submit(seen).result() == expected
                assert list(pool.map(seen, range(3))) == [expected] * 3
            assert pool.submit(seen).result() == NOBODY


def test_arguments_results_and_exceptions_of_a_pool_are_the_app_s(inside):
    def task(*args: Any, **kwargs: Any) -> Any:
        if not args:
            raise KeyError("task")
        return args, kwargs

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task, 1, function=2, inside=3).result() == ((1,), {"function": 2, "inside": 3})
        with pytest.raises(KeyError, match="task"):
            pool.submit(task).result()
        with pytest.raises(TypeError):
            pool.submit()
        leaking = pool.submit(lambda: llm_context(user_id="leaked").__enter__())
        assert leaking.result() and pool.submit(seen).result() == inside
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(task)


def test_afterwards_the_thread_is_as_it_was(inside):
    """Whatever the task has left open, and however it ends."""
    carried = otel.get_current()
    for task in (lambda: llm_context(user_id="left open").__enter__(), lambda: 1 / 0):
        with llm_context(user_id="worker"):
            before = otel.get_current()
            try:
                carrying.run_here(carried, carrying.Carried(lambda: None, ()), task)
            except ZeroDivisionError:
                pass
            assert otel.get_current() is before
            assert carrying.carried() is None


def test_only_our_context_is_carried(inside):
    """The app's own variables are its business: in a thread they have their defaults, as without us."""
    mine = contextvars.ContextVar("mine", default="default")
    mine.set("set")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(mine.get).result() == "default"


async def test_asyncio(spans):
    async def child() -> Seen:
        await asyncio.sleep(0)
        return seen()

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        with llm_context(user_id="u"):
            assert await asyncio.create_task(child()) == ("u", 0)
            assert await asyncio.gather(child(), child()) == [("u", 0)] * 2
            assert await asyncio.to_thread(seen) == ("u", 0)
            assert await loop.run_in_executor(None, seen) == ("u", 0)
            assert await loop.run_in_executor(pool, seen) == ("u", 0)
        assert await loop.run_in_executor(None, seen) == NOBODY
        assert await loop.run_in_executor(pool, seen) == NOBODY


def test_a_thread_pool_of_multiprocessing(inside):
    with multiprocessing.pool.ThreadPool(1) as pool:
        assert through(pool) == [inside] * 14
        assert contextvars.Context().run(through, pool) == [NOBODY] * 14


def through(pool: multiprocessing.pool.Pool) -> list[Seen]:
    """Every way to hand work to a pool."""
    return [
        pool.apply(seen),
        pool.apply_async(seen).get(),
        pool.apply_async(func=seen, kwds={"a": 1}).get(),
        *pool.map(seen, range(2)),
        *pool.map_async(seen, range(2)).get(),
        *pool.starmap(seen, [(1, 2)]),
        *pool.imap(seen, range(2)),
        *pool.imap(seen, range(2), chunksize=2),
        *pool.imap_unordered(seen, range(2)),
    ]


class Official(BaseInstrumentor):  # type: ignore[misc]
    """Stands in for OpenTelemetry's ThreadingInstrumentor, which is no dependency of the tests."""

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        return ()

    def _instrument(self, **_: Any) -> None:
        pass

    _uninstrument = _instrument


def test_with_the_official_instrumentation_of_threads_on_it_is_left_to_it(inside, monkeypatch):
    module = type(sys)("opentelemetry.instrumentation.threading")
    module.ThreadingInstrumentor = Official  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert in_thread(MAKERS["target"]) == in_pool() == inside
    Official().instrument()
    try:
        assert in_thread(MAKERS["target"]) == in_pool() == NOBODY  # the stand-in carries nothing
    finally:
        Official().uninstrument()
    assert in_thread(MAKERS["target"]) == inside


# --- processes --------------------------------------------------------------------------------------------------------
def tell(queue: Any) -> None:
    queue.put(seen())


class OwnProcess(multiprocessing.get_context("spawn").Process):  # type: ignore[misc, name-defined]
    def __init__(self, queue: Any) -> None:
        super().__init__()
        self.queue = queue

    def run(self) -> None:
        tell(self.queue)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes(method, inside):
    """Each task in the context of who submitted it; a forked worker stands in that of the first."""
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(seen).result() == inside
        assert list(pool.map(seen, range(3), chunksize=2)) == [inside] * 3
        assert contextvars.Context().run(pool.submit, seen).result() == NOBODY
        with pytest.raises((pickle.PicklingError, AttributeError), match="local object"):
            pool.submit(lambda: None).result()
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
    with context.Pool(1) as pool:
        assert through(pool) == [inside] * 14
        assert contextvars.Context().run(through, pool) == [NOBODY] * 14


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process(method, inside):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    processes = [context.Process(target=tell, args=(queue,))] + ([OwnProcess(queue)] if method == "spawn" else [])
    for process in processes:
        process.start()
        assert "run" not in vars(process)
        assert queue.get(timeout=60) == inside
        process.join()
        assert process.exitcode == 0


def test_what_is_sent_to_another_process(inside):
    """Baggage that is not believed here is not believed there; what `llm_context` says is."""
    token = otel.attach(baggage.set_baggage("otel_llm.tag.a", "stranger", baggage.set_baggage("app", "1 ü")))
    try:
        sent = pickle.loads(pickle.dumps(carrying.message()))
    finally:
        otel.detach(token)
    there = contextvars.Context().run(
        carrying.run_there, sent, lambda: (seen(), dict(attributes()), dict(baggage.get_all()))
    )
    assert there[0] == inside
    assert semconv.TAG_PREFIX + "a" not in there[1] and there[1] == dict(attributes())
    assert there[2]["app"] == "1 ü"
    assert contextvars.Context().run(carrying.run_there, carrying.Message({}, {}), seen) == NOBODY


def test_a_fault_of_ours_leaves_the_work_alone(inside, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(carrying, "message", broken)
    monkeypatch.setattr(concurrency, "_current", broken)
    monkeypatch.setattr(carrying.Message, "unpack", broken)
    assert in_thread(MAKERS["target"]) == in_pool() == NOBODY
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(divmod, (7, 2)) == (3, 1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
    assert carrying.run_there(carrying.Message({}, {}), seen) == NOBODY


def test_futures_of_a_pool_are_the_standard_ones(inside):
    with ThreadPoolExecutor(1) as pool:
        assert type(pool.submit(seen)) is concurrent.futures.Future
