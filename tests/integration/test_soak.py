"""The short form of `make soak`: it prints its figures, and finds no fault. What a figure is is never tested."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize("scenario", ["kill", "many", "rows", "costs", "calls", "serve"])
def test_no_fault_is_found(scenario: str) -> None:
    done = run("--short", "--only", scenario, "--json")
    assert done.stderr == ""
    report = json.loads(done.stdout)[scenario]
    print(json.dumps(report["figures"], indent=4, ensure_ascii=False))
    assert report["faults"] == []
    assert done.returncode == 0
    if scenario == "kill":
        # The kills met calls, or they have shown nothing.
        assert report["figures"]["calls in flight at a kill"] > 0
        assert report["figures"]["calls that ended"] > 0
    if scenario == "serve":
        assert report["figures"]["calls in them"] > 0


def test_a_fault_is_the_exit_code_and_is_printed() -> None:
    code = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import soak
report = soak.Report({"rows": 1})
report.none_of("  lost", {"a call"})
soak.SCENARIOS = {"kill": (lambda directory: report, {}, {})}
soak.main()
"""
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert "FAULT: lost: 1, for example a call" in done.stdout


def test_an_unknown_scenario_is_an_error() -> None:
    done = run("--only", "nothing")
    assert done.returncode == 2
    assert "nothing" in done.stderr and "kill" in done.stderr
