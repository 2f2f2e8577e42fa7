"""What OTLP has not got is sent by `otel-llm replay --missing`, or by the next process as it begins: each span once over all."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Rows, Run
from tests.integration.otlp_receiver import PROTOCOLS, OtlpReceiver, Protocol
from tests.integration.test_otlp import OURS, SPANS, assert_same
from tests.integration.test_replay import Replay, replay

__all__ = ["replay"]

LATE = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
"""No batch goes out by itself."""
ALONE = {"OTEL_LLM_REPLAY_MISSING": "off"}

CALL = """
    import os
    import sys

    import openai
    from opentelemetry import trace

    client = openai.OpenAI(max_retries=0)
    provider = trace.get_tracer_provider()

    def call(text="How many sheep are there?"):
        with trace.get_tracer("the.app").start_as_current_span("request"):
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])

"""
KILLED = """
    call()
    call()
    provider.force_flush()
    call()
    if "running" in sys.argv:
        trace.get_tracer("the.app").start_span("chat never-ends", attributes={"gen_ai.operation.name": "chat"})
    os.kill(os.getpid(), 9)
"""
WAITS = """
    call()
    print("called", flush=True)
    input()
    provider.force_flush()
    print("sent", flush=True)
    input()
"""
IDLE = """
    print("up", flush=True)
    input()
"""


def script(body: str) -> str:
    return textwrap.dedent(CALL) + textwrap.dedent(body)


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


def times(receiver: OtlpReceiver) -> set[int]:
    """How often spans have arrived."""
    return set(Counter(span.span_id for span in receiver.spans).values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_killed_process_has_its_rest_sent_by_hand(
    protocol: Protocol, receiver: OtlpReceiver, run_instrumented: Run, replay: Replay, rows: Rows
) -> None:
    to = {**OURS, **receiver.environment(protocol)}
    run_instrumented(script(KILLED), "running", env={**to, **LATE}, code=-9)
    assert len(receiver.spans) == 4

    done = replay("--missing", **to)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Sent 3 spans to http://127.0.0.1:")
    assert times(receiver) == {1}
    assert_same(
        [span for span in receiver.spans if span.name != "chat never-ends"], rows(f"{SPANS} where end_ns is not null")
    )
    assert [span.name for span in receiver.spans if span.end_ns == span.start_ns] == ["chat never-ends"]

    done = replay("--missing", **to)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Nothing is missing at http://127.0.0.1:")
    assert len(receiver.spans) == 7
    assert rows("from pending_exports") == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_next_process_sends_the_rest(
    protocol: Protocol, receiver: OtlpReceiver, run_instrumented: Run, start_instrumented: Any, rows: Rows
) -> None:
    to = {**OURS, **receiver.environment(protocol)}
    run_instrumented(script(KILLED), env={**to, **LATE}, code=-9)
    assert len(receiver.spans) == 4
    workers = [start_instrumented(script(IDLE), env=to) for _ in range(4)]
    for worker in workers:
        assert worker.stdout.readline() == "up\n"
    until(lambda: len(receiver.spans) >= 6)
    for worker in workers:
        _, said = worker.communicate("\n", timeout=60)
        assert (worker.returncode, said) == (0, "")
    assert_same(receiver.spans, rows(SPANS))
    assert times(receiver) == {1}
    assert rows("from pending_exports") == []
    run_instrumented(script("call()"), env=to)
    assert len(receiver.spans) == 8
    assert rows("from pending_exports") == []


def test_a_process_that_ends_well_leaves_nothing(
    receiver: OtlpReceiver, run_instrumented: Run, replay: Replay, rows: Rows
) -> None:
    """What it has sent at its very end is noted too."""
    to = {**OURS, **receiver.environment("grpc")}
    run_instrumented(script("call()"), env={**to, **LATE})
    assert rows("from pending_exports") == []
    assert replay("--missing", **to).stdout.startswith("Nothing is missing")
    assert len(receiver.spans) == 2


def test_a_process_lives_until_its_last_batch_is_out(
    receiver: OtlpReceiver, start_instrumented: Any, replay: Replay, rows: Rows
) -> None:
    to = {**OURS, **receiver.environment("http/protobuf")}
    receiver.answers.clear()
    process = start_instrumented(script("call()"), env={**to, **LATE})
    assert receiver.asked.wait(60)
    assert replay("--missing", **to).stdout.startswith("Nothing is missing")
    assert len(rows("from pending_exports")) == 2
    receiver.answers.set()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert times(receiver) == {1}
    assert rows("from pending_exports") == []


def test_what_lives_is_left_alone(receiver: OtlpReceiver, start_instrumented: Any, replay: Replay, rows: Rows) -> None:
    to = {**OURS, **receiver.environment("grpc")}
    process = start_instrumented(script(WAITS), env={**to, **LATE})
    assert process.stdout.readline() == "called\n"
    assert replay("--missing", **to).stdout.startswith("Nothing is missing")
    assert (receiver.spans, len(rows("from pending_exports"))) == ([], 2)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "sent\n"
    process.kill()
    process.wait()
    assert replay("--missing", **to).stdout.startswith("Nothing is missing")
    assert times(receiver) == {1}
    assert_same(receiver.spans, rows(SPANS))


def test_an_outage_is_made_up_for(receiver: OtlpReceiver, run_instrumented: Run, replay: Replay, rows: Rows) -> None:
    """What an exporter gave up is missing like what it never tried, at that endpoint and no other."""
    to = {**OURS, **receiver.environment("http/protobuf")}
    receiver.refuses = True
    run_instrumented(script("call()"), env=to, stderr="Failed to export")
    receiver.refuses = False
    assert receiver.spans == []
    assert replay("--missing", **OURS, **receiver.environment("grpc")).stdout.startswith("Nothing is missing")
    assert replay("--missing", **to).stdout.startswith("Sent 2 spans")
    assert_same(receiver.spans, rows(SPANS))


def test_only_where_otlp_was_to_get_it(
    receiver: OtlpReceiver, run_instrumented: Run, replay: Replay, rows: Rows
) -> None:
    """Not of a process without an exporter, not what a sampler kept back, not what instrumentation was suppressed for."""
    to = {**OURS, **receiver.environment("grpc")}
    run_instrumented(script("call()"), env=OURS)
    run_instrumented(script("call()"), env={**to, "OTEL_TRACES_SAMPLER": "always_off"})
    run_instrumented(
        script("""
            from opentelemetry.instrumentation.utils import suppress_instrumentation

            with suppress_instrumentation():
                client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "?"}])
            os.kill(os.getpid(), 9)
        """),
        env={**to, **LATE},
        code=-9,
    )
    assert replay("--missing", **to).stdout.startswith("Nothing is missing")
    assert receiver.spans == []
    assert len(rows("from llm_usage")) == 3


def test_another_service_is_not_its_business(
    receiver: OtlpReceiver, run_instrumented: Run, start_instrumented: Any, rows: Rows
) -> None:
    to = receiver.environment("grpc")
    run_instrumented(script(KILLED), env={**OURS, **to, **LATE}, code=-9)
    run_instrumented(script(KILLED), env={**OURS, **to, **LATE, "OTEL_SERVICE_NAME": "another"}, code=-9)
    process = start_instrumented(script(IDLE), env={**OURS, **to, "OTEL_SERVICE_NAME": "another"})
    until(lambda: len(receiver.spans) >= 10)
    process.communicate("\n", timeout=60)
    names = Counter(span.resource["service.name"] for span in receiver.spans)
    assert names == {"another": 6, OURS["OTEL_SERVICE_NAME"]: 4}


def test_a_process_without_content_sends_none_of_anothers(
    receiver: OtlpReceiver, run_instrumented: Run, start_instrumented: Any
) -> None:
    to = {**OURS, **receiver.environment("http/protobuf")}
    captured = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY"}
    body = 'call("seven sleepers")\nos.kill(os.getpid(), 9)'
    run_instrumented(script(body), env={**to, **LATE, **captured}, code=-9)
    process = start_instrumented(script(IDLE), env=to)
    until(lambda: len(receiver.spans) >= 2)
    process.communicate("\n", timeout=60)
    assert not any(b"seven sleepers" in body for body in receiver.bodies())

    run_instrumented(script(body), env={**to, **LATE, **captured}, code=-9)
    process = start_instrumented(script(IDLE), env={**to, **captured})
    until(lambda: len(receiver.spans) >= 4)
    process.communicate("\n", timeout=60)
    assert any(b"seven sleepers" in body for body in receiver.bodies())


def test_it_can_be_turned_off(receiver: OtlpReceiver, run_instrumented: Run, replay: Replay) -> None:
    to = {**OURS, **receiver.environment("grpc")}
    run_instrumented(script(KILLED), env={**to, **LATE}, code=-9)
    run_instrumented(script("call()"), env={**to, **ALONE})
    assert len(receiver.spans) == 6
    assert replay("--missing", **to).stdout.startswith("Sent 2 spans")
    assert times(receiver) == {1}
