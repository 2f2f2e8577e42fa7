"""`otel-llm replay` against a real OTLP receiver: what arrives is what the store keeps, however it came to be missing there."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.cli.conftest import otel_llm_command
from tests.conftest import Rows, Run
from tests.integration.otlp_receiver import PROTOCOLS, OtlpReceiver, Protocol
from tests.integration.test_otlp import AGENT, CALLS, OURS, SPANS, assert_same

Replay = Callable[..., "subprocess.CompletedProcess[str]"]

DOWN = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # "discard": nobody listens there
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
}
LOST = "Failed to export|Transient error|Export|Connection refused|Traceback|^ |^$|Error"
"""What the SDK has to say about an outage, over many lines."""


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def replay(environment: dict[str, str]) -> Replay:
    """Runs `otel-llm replay` as its own process."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*otel_llm_command(), "replay", *arguments],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_after_an_outage_everything_arrives_as_it_was(
    protocol: Protocol, receiver: OtlpReceiver, run_instrumented: Run, replay: Replay, rows: Rows
) -> None:
    run_instrumented(textwrap.dedent(CALLS), env={**OURS, **DOWN, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}, stderr=LOST)
    assert receiver.spans == []

    done = replay("--endpoint", receiver.endpoint(protocol), "--protocol", protocol)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Sent 6 spans to http://127.0.0.1:")
    assert done.stdout.count("\n") == 1
    assert {span.protocol for span in receiver.spans} == {protocol}
    assert_same(receiver.spans, rows(SPANS))

    # Nothing twice, unless it is asked for.
    done = replay("--endpoint", receiver.endpoint(protocol), "--protocol", protocol)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Nothing new to send to")
    assert "6 sent there before (--all sends them again)" in done.stdout
    assert len(receiver.spans) == 6
    replay("--endpoint", receiver.endpoint(protocol), "--protocol", protocol, "--all")
    assert len(receiver.spans) == 12
    assert_same(receiver.spans[6:], rows(SPANS))


def test_what_arrives_again_is_what_arrived_the_first_time(
    receiver: OtlpReceiver, run_instrumented: Run, replay: Replay, environment: dict[str, str]
) -> None:
    """Byte for byte of what the receiver decodes, resource, scope and order of attributes included."""
    pytest.importorskip("langchain_openai")
    run_instrumented(textwrap.dedent(AGENT), env={**OURS, **receiver.environment("grpc")})
    live = sorted(receiver.spans, key=lambda span: span.span_id)
    assert replay(**receiver.environment("grpc")).returncode == 0
    again = sorted(receiver.spans[len(live) :], key=lambda span: span.span_id)
    assert again == live
    assert [list(span.attributes.items()) for span in again] == [list(span.attributes.items()) for span in live]
