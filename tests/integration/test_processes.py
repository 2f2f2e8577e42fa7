"""Real processes of every kind, ended in every way: each call is in the account once, with the status that it ended with.

The truth is the ledger of the local server. Nothing here handles signals for the app: every record is in the journal before the app
gets to see what it is about, so whoever reads next finds it, however the process ended.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import textwrap
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from local_openai import LocalOpenAI

from tests.conftest import Rows, Run
from tests.integration.otlp_receiver import OtlpReceiver
from tests.store.conftest import until

Start = Callable[..., subprocess.Popen[str]]

# What every script begins with. A process has a client of its own: connections must not be shared with a forked child.
ASK = """
import asyncio, multiprocessing, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from openai import AsyncOpenAI, OpenAI

QUESTION = [{"role": "user", "content": "Hello"}]
client_of = cache(lambda pid: OpenAI())


def ask(model="gpt-4o-mini"):
    return client_of(os.getpid()).chat.completions.create(model=model, messages=QUESTION).id


def stream(model="stream-slow"):
    for _ in client_of(os.getpid()).chat.completions.create(model=model, messages=QUESTION, stream=True):
        pass
"""


@pytest.fixture
def check(openai_server: LocalOpenAI, rows: Rows) -> Callable[..., None]:
    """Compares the account with the ledger: `check(interrupted=1)` where one call had no end, `check()` where all had.

    `check(cancelled=1, or_else={"partial": 1})` where it is chance which of the two it is.
    """

    def compare(*, or_else: dict[str, int] | None = None, **others: int) -> None:
        found = rows()
        answered = Counter(call.response_id for call in openai_server.ledger if call.outcome == "ok")
        assert answered
        assert Counter(row["response_id"] for row in found if row["status"] == "ok") == answered
        assert Counter(row["status"] for row in found if row["status"] != "ok") in (others, or_else or others)
        assert len({(row["trace_id"], row["span_id"]) for row in found}) == len(found)

    return compare


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    """Returns when `process` has printed `line`; fails with its stderr where it ends before."""
    assert process.stdout is not None and process.stderr is not None
    while (said := process.stdout.readline().strip()) != line:
        assert said or process.poll() is None, process.stderr.read()


# --- stopped by a signal ----------------------------------------------------------------------------------------------

TWO_CALLS_AND_A_STREAM = """
ask()
ask()
stream()
"""


def test_sigterm_ends_a_script_as_it_always_does(
    start_instrumented: Start, openai_server: LocalOpenAI, rows: Rows, check: Callable[..., None]
) -> None:
    script = f"{ASK}\nassert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n{TWO_CALLS_AND_A_STREAM}"
    process = start_instrumented(script)
    openai_server.wait_for(1)
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    assert process.communicate()[1] == ""
    check(interrupted=1)
    (interrupted,) = rows("from llm_usage where status = 'interrupted'")
    assert (interrupted["request_model"], interrupted["stream"]) == ("stream-slow", True)
    assert interrupted["input_tokens"] is interrupted["output_tokens"] is interrupted["cost_usd"] is None


@pytest.mark.parametrize(
    ("handler", "code", "statuses"),
    [
        # Where the client is not waiting yet, it may be the app's own loop that the exit leaves.
        ("sys.exit(3)", 3, {"cancelled": 1, "or_else": {"partial": 1}}),
        # As uvicorn does: atexit never runs.
        (
            "signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)",
            -15,
            {"interrupted": 1},
        ),
        ("os._exit(4)", 4, {"interrupted": 1}),
    ],
    ids=["exit", "raised again", "os._exit"],
)
def test_the_app_s_own_handler_of_sigterm_runs(
    handler: str,
    code: int,
    statuses: dict[str, Any],
    start_instrumented: Start,
    openai_server: LocalOpenAI,
    check: Callable[..., None],
) -> None:
    """The handler makes a call of its own, in the middle of whatever it interrupted."""
    script = f"""
def stop(number, frame):
    ask()
    print("mine", flush=True)
    {handler}


signal.signal(signal.SIGTERM, stop)
{TWO_CALLS_AND_A_STREAM}
"""
    process = start_instrumented(ASK + script)
    openai_server.wait_for(1)
    process.terminate()
    wait_for_line(process, "mine")
    assert process.wait(120) == code, process.stderr.read()
    check(**statuses)
    assert len(openai_server.ledger) == 4


NOTEBOOK = """
main = threading.get_ident()


def tell():
    while sys._current_frames()[main].f_code.co_name not in ("read", "recv"):
        time.sleep(0.001)
    print("streaming", flush=True)


try:
    for number, _ in enumerate(client_of(0).chat.completions.create(model="stream-slow", messages=QUESTION, stream=True)):
        number == 1 and threading.Thread(target=tell).start()
except KeyboardInterrupt:
    print("interrupted", flush=True)
ask()
"""
ASYNC_NOTEBOOK = """
async def stream_async():
    async with AsyncOpenAI() as client:
        number = 0
        async for _ in await client.chat.completions.create(model="stream-slow", messages=QUESTION, stream=True):
            number += 1
            number == 2 and print("streaming", flush=True)


try:
    asyncio.run(stream_async())
except KeyboardInterrupt:
    print("interrupted", flush=True)
ask()
"""


@pytest.mark.parametrize("script", [NOTEBOOK, ASYNC_NOTEBOOK], ids=["sync", "async"])
def test_a_kernel_that_is_interrupted_in_mid_stream(
    script: str, start_instrumented: Start, openai_server: LocalOpenAI, check: Callable[..., None]
) -> None:
    """A notebook's stop button is a SIGINT; the process lives on."""
    process = start_instrumented(ASK + script)
    # Between two chunks: at the first, pydantic makes another exception of it; in the app's own loop the answer is left,
    # which is `partial`.
    wait_for_line(process, "streaming")
    process.send_signal(signal.SIGINT)
    wait_for_line(process, "interrupted")
    assert process.wait(120) == 0
    check(cancelled=1)


# --- one process, or several ------------------------------------------------------------------------------------------

THREADS = """
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: ask(), range(40)))
"""
TASKS = """
async def main():
    async with AsyncOpenAI() as client:
        async def ask_async(model="gpt-4o-mini"):
            await client.chat.completions.create(model=model, messages=QUESTION)

        slow = [asyncio.create_task(ask_async("slow")) for _ in range(3)]
        await asyncio.gather(*(ask_async() for _ in range(20)))
        await asyncio.to_thread(sys.stdin.readline)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


asyncio.run(main())
"""
FORKS = """
def child():
    ask()
    ask()
    os._exit(0)


ask()
pids = []
for _ in range(3):
    if not (pid := os.fork()):
        child()
    pids.append(pid)
ask()
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
ask()
"""
PROCESSES = """
if __name__ == "__main__":
    ask()
    context = multiprocessing.get_context(METHOD)
    processes = [context.Process(target=ask) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    ask()
"""


FORK_WARNING = r"multi-threaded, use of fork|os\.fork\(\)"
"""Python 3.12 and newer say so of any process that forks with a thread, and the SDK's batch processor has one, as we have."""


@pytest.mark.parametrize(
    ("script", "calls", "sampler"),
    [
        (THREADS, 40, "parentbased_always_on"),
        (FORKS, 9, "always_off"),
        (PROCESSES.replace("METHOD", "'fork'"), 4, "parentbased_always_on"),
        (PROCESSES.replace("METHOD", "'spawn'"), 4, "always_off"),
    ],
    ids=["threads", "os.fork and os._exit", "fork", "spawn"],
)
def test_calls_in_many_places(
    script: str,
    calls: int,
    sampler: str,
    run_instrumented: Run,
    openai_server: LocalOpenAI,
    check: Callable[..., None],
) -> None:
    run_instrumented(ASK + script, env={"OTEL_TRACES_SAMPLER": sampler}, stderr=FORK_WARNING)
    assert len(openai_server.ledger) == calls
    check()


def test_tasks_that_are_cancelled(
    start_instrumented: Start, openai_server: LocalOpenAI, check: Callable[..., None]
) -> None:
    process = start_instrumented(ASK + TASKS)
    openai_server.wait_for(3)
    assert process.communicate("go on\n", timeout=120) == ("", "")
    check(cancelled=3)


POOL = """
if __name__ == "__main__":
    ask()
    pool = multiprocessing.get_context("fork").Pool(2, maxtasksperchild=3)
    pool.map(ask, ["gpt-4o-mini"] * 10, chunksize=1)
    hanging = [pool.apply_async(ask, ["slow"]) for _ in range(2)]
    os.read(0, 1)  # sys.stdin has a lock, which a worker that is forked meanwhile would find taken for ever
    pool.terminate()
    pool.join()
    ask()
"""


def test_a_prefork_pool_that_is_terminated(
    start_instrumented: Start, openai_server: LocalOpenAI, check: Callable[..., None]
) -> None:
    """As Celery's: workers that live for some tasks and are stopped by SIGTERM, some in the middle of one."""
    process = start_instrumented(ASK + POOL)
    openai_server.wait_for(2)
    assert process.communicate("go on\n", timeout=120)[1] == ""
    assert process.returncode == 0
    check(interrupted=2)


def test_a_sampler_takes_its_tenth_and_the_account_all(
    run_instrumented: Run, rows: Rows, check: Callable[..., None]
) -> None:
    with OtlpReceiver() as receiver:
        env = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
        run_instrumented(ASK + THREADS, env={**env, **receiver.environment("http/protobuf")})
        sent = {span.trace_id for span in receiver.spans if span.name.startswith("chat")}
    check()
    # The sampler decides by the lower half of the trace id alone.
    assert sent == {row["trace_id"] for row in rows() if int(row["trace_id"][16:], 16) < 0.1 * 2**64}


# --- servers ----------------------------------------------------------------------------------------------------------

APP = """
ask()  # in the process that loads the app: with --preload the one that the workers are forked from


def answer():
    stream("stream-pause")  # takes a while, in which this worker can take no other request
    return str(os.getpid()).encode()


def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer()]


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer()})


async def asgi_slow(scope, receive, send):
    if scope["type"] == "http":
        async with AsyncOpenAI() as client:
            await client.chat.completions.create(model="slow", messages=QUESTION)
"""


@pytest.fixture
def app_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "app"
    directory.mkdir()
    (directory / "served.py").write_text(textwrap.dedent(ASK + APP))
    return directory


def url_of(process: subprocess.Popen[str]) -> str:
    """Where the server listens, by what it logs."""
    assert process.stderr is not None
    log: list[str] = []
    while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log[-1] if log else "")):
        log.append(process.stderr.readline())
        assert log[-1], "".join(log)

    def listens() -> bool:
        # The parent of several workers knows the port before a worker listens there.
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(found[1]))) == 0

    until(listens, "the server to listen", 60)
    return found[0]


def workers_that_answer(url: str, pool: ThreadPoolExecutor) -> Iterator[set[str]]:
    """Sends four requests at once, time and again; yields the workers that have answered so far."""
    workers: set[str] = set()
    while True:
        for answer in pool.map(lambda _: urllib.request.urlopen(url, timeout=60).read().decode(), range(4)):
            workers.add(answer)
        yield workers


@pytest.mark.parametrize(
    ("command", "loads"),
    [
        (["gunicorn", "--workers", "2", "--bind", "127.0.0.1:0", "served:wsgi"], 2),
        (["gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:0", "served:wsgi"], 1),
        (["uvicorn", "--workers", "2", "--port", "0", "served:asgi"], 2),
    ],
    ids=["gunicorn", "gunicorn --preload", "uvicorn --workers"],
)
def test_a_server_with_workers(
    command: list[str],
    loads: int,
    app_directory: Path,
    start_instrumented: Start,
    openai_server: LocalOpenAI,
    rows: Rows,
    check: Callable[..., None],
) -> None:
    where = "--chdir" if command[0] == "gunicorn" else "--app-dir"
    process = start_instrumented([command[0], where, str(app_directory), *command[1:]])
    url = url_of(process)
    with ThreadPoolExecutor(4) as pool:
        for workers in workers_that_answer(url, pool):
            if len(workers) == 2:
                break
    process.terminate()
    process.communicate(timeout=120)
    assert sum(not call.stream for call in openai_server.ledger) == loads
    check()


def test_uvicorn_stopped_with_a_call_under_way(
    app_directory: Path, start_instrumented: Start, openai_server: LocalOpenAI, rows: Rows, check: Callable[..., None]
) -> None:
    """Its task is cancelled after the grace period; whether it gets to notice before the process ends is a matter of luck."""
    options = ["--port", "0", "--timeout-graceful-shutdown", "1"]
    process = start_instrumented(["uvicorn", "--app-dir", str(app_directory), *options, "served:asgi_slow"])
    url = url_of(process)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(urllib.request.urlopen, url, timeout=60)
        openai_server.wait_for(1)
        process.terminate()
        process.communicate(timeout=120)
        assert request.exception(timeout=60) is not None
    assert process.returncode == -signal.SIGTERM
    (status,) = [row["status"] for row in rows() if row["status"] != "ok"]
    assert status in ("cancelled", "interrupted")
    check(**{status: 1})


def test_the_next_process_knows_which_server_does_not_tell_the_usage_of_streams(
    run_instrumented: Run, rows: Rows, openai_server: LocalOpenAI, store_path: Path
) -> None:
    script = """
from openai import OpenAI
messages = [{"role": "user", "content": "Hello"}]
print(len(list(OpenAI().chat.completions.create(model="no-stream-options", messages=messages, stream=True))) > 1)
"""
    for _ in range(2):
        assert run_instrumented(script).stdout == "True\n"
    # Refused, sent again as the app made it, and from then on not asked.
    assert [(call.status, "stream_options" in call.body) for call in openai_server.requests] == [
        (400, True),
        (200, False),
        (200, False),
    ]
    assert [(row["status"], row["attempts"]) for row in rows()] == [("ok", 2), ("ok", 1)]
    memory = store_path.with_name("usage.duckdb.journal") / "stream-usage.json"
    assert memory.stat().st_mode & 0o777 == 0o600
