"""`otel-llm replay`: what it says. What arrives is for tests/integration/test_replay.py."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Run, otel_llm_command
from tests.integration.otlp_receiver import PROTOCOLS, OtlpReceiver, Protocol
from tests.store.conftest import write_call

NOWHERE = "http://127.0.0.1:9"
"""Port "discard": nobody listens there."""


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def journal(store_path: Path) -> Iterator[Journal]:
    journal = Journal(StorePaths.of(store_path).journal)
    yield journal
    journal.close()


def ids(receiver: OtlpReceiver) -> list[str]:
    return [span.span_id for span in receiver.spans]


def test_sent_once_unless_asked_for_again(journal: Journal, receiver: OtlpReceiver, run: Run) -> None:
    calls = [write_call(journal)["s"] for _ in range(3)]
    to = ("replay", "--endpoint", receiver.endpoint("http/protobuf"), "--protocol", "http/protobuf")
    name = f"{receiver.endpoint('http/protobuf')}/v1/traces"
    first, second, third = run(*to), run(*to), run(*to, "--all")
    assert (first.code, first.out, first.err) == (0, f"Sent 3 spans to {name}.\n", "")
    assert second.out == f"Nothing new to send to {name}; 3 sent there before (--all sends them again).\n"
    assert third.out == first.out
    assert ids(receiver) == calls * 2


def test_the_environment_names_the_backend(
    journal: Journal, receiver: OtlpReceiver, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    for name, value in receiver.environment("http/protobuf").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    assert run("replay").code == 0
    assert receiver.content_encodings == ["gzip"]


def test_selected_by_trace_and_time(
    journal: Journal, receiver: OtlpReceiver, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in receiver.environment("http/protobuf").items():
        monkeypatch.setenv(name, value)
    old = write_call(journal, t="ab" * 16)
    new = write_call(journal, t="cd" * 16, st=time.time_ns() - 10**9)
    assert run("replay", "--since", "1h", "--until", "1h").out.startswith("Nothing new")
    assert run("replay", "--since", "1h").out.startswith("Sent 1 span ")
    assert run("replay", "--trace", "abab").out.startswith("Sent 1 span ")
    assert ids(receiver) == [new["s"], old["s"]]


def test_what_the_sampler_left_out(
    journal: Journal, receiver: OtlpReceiver, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in receiver.environment("http/protobuf").items():
        monkeypatch.setenv(name, value)
    write_call(journal, f=0)
    assert "; 1 not sampled (--unsampled sends them too)." in run("replay").out
    assert run("replay", "--unsampled").out.startswith("Sent 1 span ")


def test_what_is_missing(journal: Journal, receiver: OtlpReceiver, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in receiver.environment("grpc").items():
        monkeypatch.setenv(name, value)
    name = receiver.endpoint("grpc")
    write_call(journal)
    calls = [write_call(journal, t=trace, o=name)["s"] for trace in ("ab" * 16, "cd" * 16)]
    assert run("replay", "--missing").out == f"Nothing is missing at {name}.\n"  # whoever writes there lives
    journal.close()
    assert run("replay", "--missing", "--trace", "abab").out == f"Sent 1 span to {name}.\n"
    assert run("replay", "--missing").out == f"Sent 1 span to {name}.\n"
    assert run("replay", "--missing").out == f"Nothing is missing at {name}.\n"
    assert ids(receiver) == calls
    for senseless in ("--all", "--unsampled"):
        result = run("replay", "--missing", senseless)
        assert (result.code, result.out) == (2, "")
        assert senseless in result.err


def test_what_is_too_large_for_the_backend_is_named(journal: Journal, run: Run, receiver: OtlpReceiver) -> None:
    """The rest goes out."""
    calls = [write_call(journal, {"theirs": "x" * size}) for size in (1, 5_000_000, 1)]
    result = run("replay", "--endpoint", receiver.endpoint("grpc"), "--protocol", "grpc")
    assert (result.code, result.out) == (2, f"Sent 2 spans to {receiver.endpoint('grpc')}.\n")
    assert result.err.count("\n") == 1 and calls[1]["t"] in result.err
    assert ids(receiver) == [calls[0]["s"], calls[2]["s"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_backend_that_is_down_is_one_line(
    protocol: Protocol, journal: Journal, store_path: Path, execute: Run
) -> None:
    write_call(journal)
    result = execute("replay", "--endpoint", NOWHERE, "--protocol", protocol, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"otel-llm: {NOWHERE}")
    assert "0 of 1 spans were sent" in result.err
    assert result.err.count("\n") == 1
    with duckdb.connect(str(store_path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM replayed").fetchall() == [(0,)]


@pytest.mark.parametrize("way", ["option", "environment"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_password_is_printed(protocol: Protocol, way: str, journal: Journal, execute: Run) -> None:
    write_call(journal)
    endpoint = NOWHERE.replace("//", "//joe:S3CRET@") + "/?key=S3CRET"
    option = ("--endpoint", endpoint) if way == "option" else ()
    variables = {} if way == "option" else {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    result = execute("replay", *option, "--protocol", protocol, OTEL_EXPORTER_OTLP_TIMEOUT="1", **variables)
    assert (result.code, result.out) == (2, "")
    assert "127.0.0.1:9" in result.err and "S3CRET" not in result.err


def test_a_bar_on_a_terminal(journal: Journal, receiver: OtlpReceiver) -> None:
    for _ in range(3):
        write_call(journal)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*otel_llm_command(), "replay"],
        env={**os.environ, **receiver.environment("grpc"), "TERM": "xterm-256color", "COLUMNS": "100"},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    drawn = b""
    try:
        while block := os.read(ours, 65536):
            drawn += block
    except OSError:  # how Linux says that the other side of a terminal was closed
        pass
    out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert (process.returncode, out.split(" to ")[0]) == (0, "Sent 3 spans")
    assert b"3/3" in drawn
