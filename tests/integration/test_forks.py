"""What happens at a fork, under gevent too: nothing of ours runs in a child that is about to be another program."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from otel_llm.store.store import Store

needs_gevent = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="gevent is not installed: `.ci/beside` has it"
)

CALLS = """
import os, openai, otel_llm
from openai import _base_client
http = getattr(_base_client, "httpx2", None) or _base_client.httpx
ME = os.getpid()
ANSWER = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [],
          "usage": {"prompt_tokens": 5, "completion_tokens": 5}}
def serve(request):
    if os.getpid() != ME:
        os.write(2, b"the child runs the app\\n")
    pause()
    return http.Response(200, json=ANSWER)
client = openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(serve)))
def call(n):
    for _ in range(n):
        client.chat.completions.create(model="gpt-4o-mini", messages=[])
def statuses():
    assert otel_llm.flush(30)
    with otel_llm.connect() as store:
        return store.execute("select status, count(*) from llm_usage group by 1 order by 1").fetchall()
"""
GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent
def pause():
    gevent.sleep(0.005)
def together(*jobs):
    gevent.joinall([gevent.spawn(*job) for job in jobs], raise_error=True, timeout=30)
"""


def run(script: str, tmp_path: Path, **environment: str) -> str:
    """The script's standard error; it has to succeed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, "OTEL_LLM_STORE": str(tmp_path / "usage.duckdb"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_no_hook_starts_a_thread_and_what_is_needed_starts_later(tmp_path: Path) -> None:
    script = f"""
import threading
def pause(): pass
{CALLS}
otel_llm.instrument()
told = []
subscription = otel_llm.subscribe(told.append)
call(1)
subscription.close(30)
told.clear()
subscription = otel_llm.subscribe(told.append)
child = os.fork()
if not child:
    os.register_at_fork  # the hooks have run
    ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("otel-llm")]
    ME = os.getpid()
    call(1)
    closed = subscription.close(30)
    os._exit(0 if not ours and closed and len(told) == 2 and otel_llm.flush(30) else 1)
assert os.waitpid(child, 0)[1] == 0
assert statuses() == [("ok", 2)], statuses()
"""
    run(script, tmp_path)


def test_a_fork_in_the_midst_of_a_start_releases_no_lock_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under gevent another greenlet goes on in the child, in the middle of any line."""
    background = Store(tmp_path / "usage.duckdb")._thread
    held: list[Any] = []

    class Forking(threading.Thread):
        def start(self) -> None:
            held.append(background._lock)
            background.start_afresh()

    monkeypatch.setattr(threading, "Thread", Forking)
    background.start()
    (before,) = held
    assert background._lock is not before
    assert not before.locked() and not background._lock.locked()


@needs_gevent
@pytest.mark.parametrize("imported", ["first", "later"])
def test_calls_made_at_once_in_a_fresh_process(imported: str, tmp_path: Path) -> None:
    """openai's first request needs a subprocess, which is a fork in Python once gevent has patched it."""
    set_up = "import otel_llm\notel_llm.instrument()\n"
    script = f"""
{set_up if imported == "later" else ""}
{GEVENT}
{CALLS}
{set_up}
together(*[(call, 3)] * 3)
assert statuses() == [("ok", 9)], statuses()
"""
    said = run(script, tmp_path)
    # (Of threads that ran before it was patched gevent itself may complain at the end.)
    assert not [word for word in ("the child runs", "otel-llm", "gevent's subprocesses") if word in said], said


@needs_gevent
def test_a_subprocess_beside_calls_is_said_once_with_the_remedy(tmp_path: Path) -> None:
    script = f"""
{GEVENT}
{CALLS}
import subprocess
otel_llm.instrument()
call(1)
for _ in range(3):
    subprocess.run(["true"])
assert statuses() == [("ok", 1)], statuses()
"""
    said = run(script, tmp_path)
    assert said.count("gevent's subprocesses are forks in Python") == 1
    assert said.count("start programs with os.posix_spawn") == 1
