"""The benchmark of the command line runs and has a row for each command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "cli_start.py"


def test_a_row_for_each_command() -> None:
    command = [sys.executable, str(BENCHMARK), "--rounds", "1", "--rows", "100"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()
    assert heading.startswith("to the first byte, store of 100 calls")
    assert [row for row in rows if " ms" not in row] == []
    for name in ("otel-llm --help", "otel-llm path", "otel-llm usage", "otel-llm logs", "otel-llm sql"):
        assert any(row.startswith(f"{name} ") for row in rows)
