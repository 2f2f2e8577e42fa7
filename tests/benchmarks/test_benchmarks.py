"""The benchmarks run and print their rows. Their figures are never tested: they are of the machine as much as of the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "openai_calls.py"
CASES = ["chat", "chat async", "responses", "embeddings", "chunk", "chunk async"]
OURS = ["otel-llm", "otel-llm+store"]
PEERS = ["official", "openinference", "openllmetry", "logfire"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), "--rounds", "1", "--calls", "1", "--chunks", "2", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_the_table_has_a_row_for_each_candidate() -> None:
    process = run()
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.split() == " ".join(CASES).split())
    rows = {line.split()[0]: line for line in lines[heading + 1 :] if line and ": " not in line}
    names = [line.split()[0] for line in lines[heading + 1 : heading + 2 + len(OURS) + len(PEERS)]]
    assert names == ["bare", *OURS, *PEERS]
    for name in OURS:
        # A span for each case, compared with the bare client.
        assert "no span" not in rows[name]
        assert rows[name].count("+") + rows[name].count("-") >= len(CASES)


def test_json_has_every_figure() -> None:
    process = run("--json", "--only", "otel-llm+store,logfire")
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    assert list(results) == ["bare", "otel-llm+store", "logfire"]
    for name in ("bare", "otel-llm+store"):
        assert list(results[name]["cases"]) == CASES
        for figures in results[name]["cases"].values():
            assert {"us", "added_us", "added_us_q1", "added_us_q3", "ratio"} == set(figures)
    # A peer takes part, or the output says why it does not.
    assert results["logfire"].keys() & {"cases", "cannot"}


def test_an_unknown_candidate_is_an_error() -> None:
    process = run("--only", "nobody")
    assert process.returncode == 2
    assert "nobody" in process.stderr
    assert "official" in process.stderr


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark sets its own; a proxy of the machine must not matter either."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
