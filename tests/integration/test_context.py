"""The context under the launcher and from code: in every thread and process that real scripts start, or in none by setting."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conftest import Rows, Run
from tests.integration.test_processes import ASK, FORK_WARNING

EVERYWHERE = """
from concurrent.futures import ProcessPoolExecutor
from otel_llm import llm_context


def work(method):
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(ask).result()
    process = context.Process(target=ask)
    process.start()
    process.join()


def here():
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask).result()


if __name__ == "__main__":
    for method in sys.argv[1:]:
        with llm_context("m", user_id=method):
            here() if method == "threads" else work(method)
"""


@pytest.mark.parametrize(
    ("setting", "users"),
    [("on", {"threads": 2, "fork": 2, "spawn": 2}), ("off", {None: 2, "fork": 2})],
    ids=["on", "off"],
)
def test_threads_and_processes(setting: str, users: dict[str | None, int], run_instrumented: Run, rows: Rows) -> None:
    """Off, a forked child still stands in the context of its parent: it is its parent's copy."""
    methods = [user or "threads" for user in users]
    run_instrumented(ASK + EVERYWHERE, *methods, env={"OTEL_LLM_THREAD_CONTEXT": setting}, stderr=FORK_WARNING)
    found = rows()
    assert Counter(row["user_id"] for row in found) == users
    assert len({row["request_id"] for row in found if row["user_id"]}) == len(users.keys() - {None})


FROM_CODE = """
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import Pool
from multiprocessing.process import BaseProcess

patched = [(threading.Thread, "start"), (ThreadPoolExecutor, "submit"), (ProcessPoolExecutor, "submit")]
patched += [(BaseProcess, "start"), (Pool, "apply_async"), (Pool, "_map_async"), (Pool, "imap"), (Pool, "imap_unordered")]
before = [vars(owner)[name] for owner, name in patched]

import otel_llm

otel_llm.instrument()
otel_llm.instrument()
assert not any(vars(owner)[name] is was for (owner, name), was in zip(patched, before))
otel_llm.uninstrument()
assert all(vars(owner)[name] is was for (owner, name), was in zip(patched, before))
"""


def test_uninstrument_puts_every_object_back(run_instrumented: Run) -> None:
    run_instrumented(FROM_CODE, instrument=False)
