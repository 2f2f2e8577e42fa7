"""The matrix runs as a command, and prints what it found. What a peer gets right is never tested."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("langchain.agents", reason="the matrix has cells of langchain 1.x")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "matrix.py"), *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_the_table_has_a_column_for_each_candidate() -> None:
    done = run("--only", "otel-llm,official", "--group", "agents")
    assert done.returncode == 0, done.stderr
    heading, _, agents, total, *rest = done.stdout.splitlines()[2:]
    assert heading.startswith("| cells right / all | otel-llm |")
    assert agents.startswith("| agents | 27 / 27 |")
    assert total.startswith("| all | 27 / 27 |")
    # A peer takes part, or the output says why it does not.
    assert any(line.startswith("official: ") for line in rest)


def test_json_has_every_cell() -> None:
    done = run("--only", "otel-llm", "--group", "sync", "--json")
    result = json.loads(done.stdout)["otel-llm"]
    assert result["groups"] == {"sync": {"right": 18, "all": 18}}
    assert len(result["cells"]) == 18
    assert not any(result["cells"].values())


@pytest.mark.parametrize("arguments", [("--only", "nobody"), ("--group", "nobody")])
def test_an_unknown_name_is_an_error(arguments: tuple[str, str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "nobody" in done.stderr and "there are" in done.stderr
