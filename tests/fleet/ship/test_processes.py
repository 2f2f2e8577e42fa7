"""Shipping by real processes: killed at any moment, with a destination that goes and comes. Nothing is lost, all counts once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from otel_llm.fleet.usage_log_record import row_of
from otel_llm.store.paths import StorePaths
from tests.conftest import SCRIPTS, Rows, Run
from tests.fleet.ship.conftest import account, stored, url_of
from tests.integration.otlp_receiver import OtlpReceiver, Protocol
from tests.store.conftest import query, until

WRITER = """
    import os, sys, time
    from pathlib import Path
    from otel_llm.store.journal.writer import Journal
    from tests.store.conftest import write_call

    journal = Journal(Path(sys.argv[1]), segment_size=20_000)
    journal.resource = {"service.name": "shop"}
    print("up", flush=True)
    while not os.path.exists(sys.argv[2]):
        write_call(journal)
        time.sleep(0.002)
    journal.close()
"""
ROOT = Path(__file__).parents[3]


def environment(store: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return clean | {"OTEL_LLM_STORE": str(store), "PYTHONPATH": str(ROOT)}


@contextmanager
def process(*command: str, store: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed in the end."""
    with subprocess.Popen(
        command,
        env=environment(store) | more,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def ship(*arguments: str, store: Path) -> Any:
    return process(str(SCRIPTS / "otel-llm"), "ship", *arguments, store=store)


def drained(url: str, store: Path) -> None:
    with ship("--to", url, "--once", store=store) as once:
        out, err = once.communicate(timeout=300)
        assert once.returncode == 0, out + err


def assert_counted_once(receivers: list[OtlpReceiver], paths: StorePaths) -> None:
    """All receivers together have every row of the store, and no other."""
    everything = [record for receiver in receivers for record in receiver.logs]
    with OtlpReceiver(all_signals=True) as whole:
        for body in (body for receiver in receivers for body in receiver.bodies("/v1/logs")):
            whole.keep("/v1/logs", body)
        assert len(whole.logs) == len(everything)
        assert account(whole) == stored(paths)


def has(receiver: OtlpReceiver, number: int) -> bool:
    return len(receiver.logs) >= number


def test_kills_and_outages(tmp_path: Path, paths: StorePaths, protocol: Protocol) -> None:
    """Two programs write, the shipper is killed again and again, the receiver goes twice and comes back empty-handed."""
    done, chance = tmp_path / "done", random.Random(7)
    script = tmp_path / "writer.py"
    script.write_text(textwrap.dedent(WRITER))
    receiver = OtlpReceiver(all_signals=True)
    receiver.__enter__()
    receivers = [receiver]
    url = url_of(receiver, protocol)
    with (
        process(sys.executable, str(script), str(paths.journal), str(done), store=paths.database) as one,
        process(sys.executable, str(script), str(paths.journal), str(done), store=paths.database) as other,
    ):
        assert one.stdout and other.stdout
        assert one.stdout.readline() == other.stdout.readline() == "up\n"
        for turn in range(6):
            enough = len(receivers[-1].logs) + chance.randrange(1, 400)
            with ship("--to", url, store=paths.database) as shipper:
                until(partial(has, receivers[-1], enough), "rows to arrive")
                if turn in (1, 3):  # an outage, in the midst of it
                    receivers[-1].__exit__(None, None, None)
                shipper.send_signal(signal.SIGKILL)
            if turn in (1, 3):
                with ship("--to", url, store=paths.database) as shipper:
                    assert shipper.stderr
                    assert "does not take what is shipped" in shipper.stderr.readline()
                receivers.append(OtlpReceiver(all_signals=True, ports=receivers[-1].ports))
                receivers[-1].__enter__()
        done.touch()
        assert (one.wait(60), other.wait(60)) == (0, 0)
    drained(url, paths.database)
    receivers[-1].__exit__(None, None, None)
    assert len(stored(paths)) > 500
    assert_counted_once(receivers, paths)
    assert query(paths.database, "SELECT refused, removed FROM shipments") == [(0, 0)]


def write_calls(paths: StorePaths, number: int) -> None:
    from otel_llm.store.journal.writer import Journal
    from tests.store.conftest import write_call

    journal = Journal(paths.journal)
    for _ in range(number):
        write_call(journal)
    journal.close()


def test_sigterm_sends_what_is_left(paths: StorePaths, receiver: OtlpReceiver) -> None:
    """Also what nobody has merged yet."""
    write_calls(paths, 3)
    with ship("--to", receiver.endpoint("http/protobuf"), store=paths.database) as shipper:
        until(lambda: len(receiver.logs) == 3, "the first rows")
        write_calls(paths, 5)
        shipper.send_signal(signal.SIGTERM)
        out, err = shipper.communicate(timeout=120)
    assert (shipper.returncode, err) == (0, "")
    assert "Shipped 8 rows" in out
    assert account(receiver) == stored(paths)
    assert query(paths.database, "SELECT sent FROM shipments") == [(8,)]


def test_sigterm_waits_no_longer_than_it_may(paths: StorePaths, receiver: OtlpReceiver) -> None:
    write_calls(paths, 3)
    receiver.answers.clear()  # it hangs
    with ship("--to", receiver.endpoint("http/protobuf"), "--grace", "0.5", store=paths.database) as shipper:
        until(receiver.asked.is_set, "the first request")
        shipper.send_signal(signal.SIGTERM)
        out, _ = shipper.communicate(timeout=120)
    assert shipper.returncode == 0
    assert "Shipped 0 rows" in out
    receiver.answers.set()
    drained(receiver.endpoint("http/protobuf"), paths.database)
    assert account(receiver) == stored(paths)


def test_it_waits_for_the_first_program(paths: StorePaths, receiver: OtlpReceiver) -> None:
    """A sidecar may be there before the app; it makes nothing that would not be the app's own."""
    with ship("--to", receiver.endpoint("http/protobuf"), store=paths.database) as shipper:
        assert shipper.stdout and "Shipping" in shipper.stdout.readline()
        assert list(paths.database.parent.iterdir()) == []
        write_calls(paths, 2)
        until(lambda: len(receiver.logs) == 2, "the rows")


def test_once_says_what_is_wrong(paths: StorePaths, receiver: OtlpReceiver) -> None:
    write_calls(paths, 1)
    url = receiver.endpoint("http/protobuf")
    with ship("--to", url, store=paths.database):
        until(lambda: receiver.logs, "the rows")
        with ship("--to", url, "--once", store=paths.database) as once:
            _, err = once.communicate(timeout=120)
        assert (once.returncode, err) == (2, f"otel-llm: another process ships to {url}\n")
    for arguments, said in (
        ((), "say where to: --to URL, or set OTEL_LLM_SHIP_TO"),
        (("--to", "ftp://x"), "ftp://x is not an endpoint like http://localhost:4318 or grpc://localhost:4317"),
    ):
        with ship(*arguments, "--once", store=paths.database) as once:
            out, err = once.communicate(timeout=120)
        assert (once.returncode, out, err) == (2, "", f"otel-llm: {said}\n")


def test_what_is_forgotten_keeps_nothing(paths: StorePaths, receiver: OtlpReceiver) -> None:
    write_calls(paths, 1)
    url = receiver.endpoint("http/protobuf")
    drained(url, paths.database)
    with ship("--to", url, "--forget", store=paths.database) as forget:
        out, _ = forget.communicate(timeout=120)
    assert out == f"Forgot {url}.\n"
    assert query(paths.database, "FROM shipments") == []


# --- from an app's own process ----------------------------------------------------------------------------------------

CALLS = """
    import sys
    import openai

    client = openai.OpenAI(max_retries=0)
    def call():
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "How many sheep are there?"}])
"""


def app(body: str) -> str:
    return textwrap.dedent(CALLS) + textwrap.dedent(body)


@pytest.fixture
def shipping(receiver: OtlpReceiver, protocol: Protocol) -> dict[str, str | None]:
    return {"OTEL_LLM_SHIP_TO": url_of(receiver, protocol)}


def same(receiver: OtlpReceiver, rows: Rows) -> bool:
    found = {record.span_id.hex() for record in receiver.logs}
    return found == {row["span_id"] for row in rows()}


def test_a_program_ships_as_it_ends(
    run_instrumented: Run, shipping: dict[str, str | None], receiver: OtlpReceiver, rows: Rows
) -> None:
    run_instrumented(app("for _ in range(3): call()"), env=shipping)
    assert len(receiver.logs) == 3
    assert same(receiver, rows)
    assert {row_of(record)["input_tokens"] for record in receiver.logs} == {row["input_tokens"] for row in rows()}


def test_a_program_ships_as_it_goes(
    start_instrumented: Any, shipping: dict[str, str | None], receiver: OtlpReceiver, rows: Rows
) -> None:
    """And what one that is killed has left, the next one ships."""
    running = start_instrumented(app("call(); print('called', flush=True); input()"), env=shipping)
    assert running.stdout.readline() == "called\n"
    until(lambda: len(receiver.logs) == 1, "the call to arrive")
    running.kill()
    run_instrumented_again = start_instrumented(app("call()"), env=shipping)
    assert run_instrumented_again.wait(240) == 0
    assert len(rows()) == 2 and same(receiver, rows)


def test_it_ends_where_nobody_takes_it(
    run_instrumented: Run, receiver: OtlpReceiver, rows: Rows, protocol: Protocol
) -> None:
    with OtlpReceiver() as gone:
        url = url_of(gone, protocol)
    run_instrumented(app("call()"), env={"OTEL_LLM_SHIP_TO": url}, stderr="does not take what is shipped")
    assert len(rows()) == 1
    run_instrumented(app("call()"), env={"OTEL_LLM_SHIP_TO": url_of(receiver, protocol)})
    assert len(receiver.logs) == 2 and same(receiver, rows)


def test_a_wrong_url_gets_one_line(run_instrumented: Run, rows: Rows) -> None:
    run_instrumented(
        app("call()"),
        env={"OTEL_LLM_SHIP_TO": "nonsense://x"},
        stderr="^OTEL_LLM_SHIP_TO: nonsense://x is not an endpoint.*nothing is shipped there$",
    )
    assert len(rows()) == 1


OTHER = """
    call()
    print("called", flush=True)
    input()
    print(sorted({"duckdb", "grpc", "requests", "otel_llm.fleet.ship.shipper"} & {*sys.modules}), flush=True)
    input()
"""


def test_only_the_one_that_merges_imports_anything_for_it(
    start_instrumented: Any, receiver: OtlpReceiver, rows: Rows
) -> None:
    shipping = {"OTEL_LLM_SHIP_TO": url_of(receiver, "grpc")}
    one = start_instrumented(app(OTHER), env=shipping)
    assert one.stdout.readline() == "called\n"
    until(lambda: len(receiver.logs) == 1, "the first call")
    other = start_instrumented(app(OTHER), env=shipping)
    assert other.stdout.readline() == "called\n"
    until(lambda: len(receiver.logs) == 2, "the call of the other")
    for process_, imported in ((one, "['duckdb', 'grpc', 'otel_llm.fleet.ship.shipper']"), (other, "[]")):
        process_.stdin.write("\n")
        process_.stdin.flush()
        assert process_.stdout.readline() == f"{imported}\n"
    for process_ in (other, one):
        process_.communicate("\n", timeout=240)
    assert len(receiver.logs) == 2 and same(receiver, rows)


FORKS = """
    import os
    call()
    print("called", flush=True)
    input()
    for _ in range(2):
        if not (child := os.fork()):
            call()
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0  # one after the other: they have the client's connection in common
    call()
"""


def test_forks(start_instrumented: Any, shipping: dict[str, str | None], receiver: OtlpReceiver, rows: Rows) -> None:
    running = start_instrumented(app(FORKS), env=shipping)
    assert running.stdout.readline() == "called\n"
    until(lambda: receiver.logs, "the first call")
    _, err = running.communicate("\n", timeout=240)
    assert running.returncode == 0, err
    assert len(receiver.logs) == 4 and same(receiver, rows)
