"""What budgets take, in short form. Its figures are never tested: they are of the machine as much as of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "budgets.py"


def test_there_is_a_figure_for_each_case() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "5"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = dict(re.findall(r"^(.+?) +(\d+\.\d\d) µs$", done.stdout, re.M))
    assert figures.keys() >= {"no budget", "one", "one for each user of a module", "otel_llm.budget() around it"}
