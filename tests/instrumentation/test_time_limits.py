"""A signal handler of the app's may raise at any line, in ours too, and but once: the app gets that, and the call its row.

As the time limits of RQ and Celery do, and anything on SIGALRM. These raise an `Exception`; what is no `Exception` passes
through any `except Exception` by itself: `openai/test_stopped_anywhere.py`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import openai
import pytest
from langchain_core.language_models import FakeListChatModel
from opentelemetry import context as otel
from opentelemetry.sdk.trace import TracerProvider

from otel_llm.calls import abandoned
from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import LangChainInstrumentor
from otel_llm.instrumentation.langchain._runs import Runs
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from otel_llm.setup import wiring
from otel_llm.support import faults, fork_guard
from tests.instrumentation.openai.clients import http
from tests.stopping import OURS, Stop

HELLO: Any = [{"role": "user", "content": "Say hello."}]


class TimeLimit(Exception):
    """The app's."""


class Tried(TimeoutError):
    """Also the app's: an `OSError` to whoever writes a file."""


# --- at each line ------------------------------------------------------------------------------------------------------
def in_finalizer(frame: FrameType | None, _: str) -> bool:
    """Those of generators too: Python prints what is raised there, whoever's it is."""
    if isinstance(sys.exc_info()[1], GeneratorExit):
        return True
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class Pieces(http.SyncByteStream):  # type: ignore[misc,name-defined]
    """Counted once it has been read to its usage."""

    def __init__(self, provider: Provider, body: bytes) -> None:
        self._provider = provider
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for event in self._body.splitlines(keepends=True):
            self._provider.billed += b"usage" in event
            yield event


class Provider:
    """Answers, and counts what it bills."""

    def __init__(self) -> None:
        self.billed = 0

    def client(self) -> openai.OpenAI:
        whole = b'{"id": "1", "model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}'
        last = b'data: {"id": "1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\n'
        chunks = b'data: {"id": "1", "choices": []}\n\n' + last + b"data: [DONE]\n\n"

        def answer(request: Any) -> Any:
            if b'"stream":true' in request.content:
                return http.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(self, chunks))
            self.billed += 1
            return http.Response(200, headers={"content-type": "application/json"}, content=whole)

        return openai.OpenAI(
            api_key="x", base_url="http://local/v1", http_client=http.Client(transport=http.MockTransport(answer))
        )


WAYS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "plain": lambda c: c.chat.completions.create(model="m", messages=HELLO),
    "stream": lambda c: list(
        c.chat.completions.create(model="m", messages=HELLO, stream=True, stream_options={"include_usage": True})
    ),
}
STRIDE = 7
"""Not every line, for a traced call is slow."""


@pytest.fixture
def raises() -> Iterator[Callable[[type[Exception]], None]]:
    """Has SIGALRM raise an exception, whichever way `handler` is given."""
    before = signal.getsignal(signal.SIGALRM)

    def use(error: type[Exception]) -> None:
        def handler(*_: object) -> None:
            raise error

        signal.signal(signal.SIGALRM, handler)

    yield use
    signal.signal(signal.SIGALRM, before)


def ended(journal: Path) -> dict[str, dict[str, Any]]:
    """The calls whose end is in the journal, by span id."""
    found = {}
    for segment in journal.glob("*.jsonl"):
        for line in segment.read_text().splitlines():
            record = json.loads(line[line.index("{") : line.rindex("}") + 1])
            if record.get("k") == "e":
                found[record["s"]] = record["a"]
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of an alarm within a finalizer
@pytest.mark.parametrize("error", [TimeLimit, Tried])
@pytest.mark.parametrize("way", WAYS)
def test_the_app_gets_its_time_limit_and_the_call_its_row(way, error, raises, tmp_path):
    raises(error)
    provider = TracerProvider(shutdown_on_exit=False)
    store = wiring.wire(provider, tmp_path / "u.duckdb")
    store._thread.stopping.set()  # what is in the journal stays there to be read
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    server, outside = Provider(), otel.get_current()
    api = server.client()
    seen: dict[str, dict[str, Any]] = {}
    try:
        WAYS[way](api)  # what is done once is done
        for at in range(1, 100_000, STRIDE):
            server.billed, came = 0, False
            alarm = Stop(at, partial(signal.raise_signal, signal.SIGALRM), spared=in_finalizer)
            try:
                with alarm:
                    WAYS[way](api)
            except error:
                came = True
            gc.collect()
            abandoned.finish_abandoned()
            if not alarm.where:
                break
            assert came, alarm.where
            assert otel.get_current() == outside, alarm.where
            # A trace function also raises between an `__enter__` and its body, where the interpreter looks for no signal.
            for lock in (store.journal._lock, fork_guard.mutex):
                while lock._is_owned():
                    lock.release()
            assert store.journal.sync(), alarm.where
            now = ended(store.paths.journal)
            new = [attributes for span, attributes in now.items() if span not in seen]
            seen = now
            if server.billed:
                assert [one.get(semconv.OUTPUT_TOKENS) for one in new] == [2], alarm.where
        assert at > 100
    finally:
        instrumentor.uninstrument()
        wiring.unwire()


def test_langchain_lets_it_through_too(raises, monkeypatch):
    """It takes what comes out of a handler for the handler's, and only logs it."""
    raises(TimeLimit)
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False))
    try:
        model = FakeListChatModel(responses=["a"])
        monkeypatch.setattr(Runs, "begin_call", lambda *_, **__: signal.raise_signal(signal.SIGALRM))
        with pytest.raises(TimeLimit):
            model.invoke("hi")
        monkeypatch.setattr(Runs, "begin_call", lambda *_, **__: 1 / 0)
        assert model.invoke("hi").content == "a"
    finally:
        instrumentor.uninstrument()


# --- whose exception it is ---------------------------------------------------------------------------------------------
def plain(number: int, frame: FrameType | None) -> None:
    raise TimeLimit


def any_arguments(*given: object) -> None:
    plain(*given)  # type: ignore[arg-type]


class Penalty:
    """As RQ has it."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        raise TimeLimit

    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TimeLimit


def with_name(name: str, number: int, frame: FrameType | None) -> None:
    raise TimeLimit


def once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    raise TimeLimit


@pytest.mark.parametrize("handler", [plain, any_arguments, once, Penalty().handle, Penalty(), partial(with_name, "x")])
@pytest.mark.usefixtures("raises")
def test_what_a_signal_handler_raises_is_the_apps(handler):
    signal.signal(signal.SIGALRM, handler)
    with pytest.raises(TimeLimit):
        try:
            signal.raise_signal(signal.SIGALRM)
        except Exception as fault:
            faults.report("do something", fault)


def test_what_another_thread_raises_is_the_apps():
    """As RQ's timer and `stopit` do."""
    me, going = threading.get_ident(), threading.Event()

    def stop() -> None:
        going.wait()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(me), ctypes.py_object(TimeLimit))

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(TimeLimit):
        try:
            going.set()
            while True:
                pass
        except Exception as fault:
            faults.report("do something", fault)
    thread.join()


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise TimeLimit

    def __len__(self) -> int:
        return json.loads("{")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "fault",
    [
        lambda: Hostile().x,
        lambda: len(Hostile()),
        lambda: {}["x"],
        lambda: int("x"),
        lambda: next(iter(())),
        lambda: Path("/none/x").read_text(),
    ],
)
def test_a_fault_of_ours_never_reaches_the_app(fault, caplog):
    before = faults.counts.total()
    try:
        fault()
    except Exception as error:
        faults.report("do something", error)
    assert faults.counts.total() == before + 1


@pytest.mark.parametrize("error", [TimeoutError, SystemExit, KeyboardInterrupt])
def test_a_time_limit_while_setting_up(error: type[BaseException]) -> None:
    """It is the app's, and no fault of the step it came up in."""
    from otel_llm.setup.distro import _Steps

    def too_long(*_: object) -> None:
        raise error("too long")

    before = signal.signal(signal.SIGALRM, too_long)
    try:
        with pytest.raises(error, match="too long"):
            _Steps().take("set up", lambda: signal.raise_signal(signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [SystemExit, RuntimeError])
def test_what_a_step_raises_ends_there(error: type[BaseException]) -> None:
    from otel_llm.setup.distro import _Steps

    def broken() -> None:
        raise error("broken")

    assert _Steps().take("set up", broken) is None


# --- in finalizers -----------------------------------------------------------------------------------------------------
def test_nothing_of_ours_runs_when_an_ended_call_goes():
    """What a handler raises there is printed by Python, and lost to the app."""
    OpenAIInstrumentor().instrument(tracer_provider=TracerProvider())
    LangChainInstrumentor().instrument(tracer_provider=TracerProvider())
    seen: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS) and code.co_name in ("__del__", "_abandon"):
            seen.append(f"{code.co_filename}:{code.co_firstlineno}")

    try:
        client, model = Provider().client(), FakeListChatModel(responses=["hi"])
        gc.collect()
        sys.setprofile(profile)
        client.chat.completions.create(model="m", messages=HELLO)
        model.invoke("hi")
        gc.collect()
    finally:
        sys.setprofile(None)
        LangChainInstrumentor().uninstrument()
        OpenAIInstrumentor().uninstrument()
    assert seen == []
