"""The table of costs, in short form, without environments of its own. Its figures are never tested: they are of the machine as
much as of the code."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "cost"
CASES = [
    "chat", "chat, async", "Responses", "embeddings", "a streamed chunk", "a streamed chunk, async", "LangChain: fake model",
    "LangChain: chain of three", "LangChain: agent with a tool",
]  # fmt: skip
SHORT = ("--here", "--rounds", "1", "--calls", "1", "--chunks", "2", "--pairs", "1", "--settle", "1", "--seconds", "1")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "table.py"), *SHORT, "--processes", "2", "--rows", "1000", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def rows(page: str) -> dict[str, list[str]]:
    """The rows of its tables, by their first cell."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in lines}


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def test_what_calls_cost_has_a_row_for_each_case(tmp_path: Path) -> None:
    subjects = ["bare SDK span", "otel-llm + store", "otel-llm + store, content", "otel-llm + store, metrics"]
    figures = tmp_path / "figures.json"
    done = run("--part", "calls", "--only", ";".join(["official", *subjects]), "--json", str(figures))
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found["µs of CPU"] == ["bare client", "bare SDK span", "otel-llm + store"]
    for case in CASES:
        bare, _, ours = found[case]
        assert not bare.startswith("+")
        # A span for each case, and a figure beside the bare client's.
        assert re.fullmatch(r"[+-][\d.]+ \(-?[\d.]+ to -?[\d.]+\)", ours)
    aims = [line for line in found if line.endswith("in the app's thread")]
    assert len(aims) == 9
    results: dict[str, Any] = json.loads(figures.read_text())["calls"]
    for name in subjects:
        assert results[name]["comes off"], name
    # A peer takes part, or the page says why it does not.
    assert ("official" in results and "cases" in results["official"]) or "official could not take part: " in done.stdout


@pytest.mark.parametrize(
    ("part", "aims"),
    [
        (
            "apps",
            (
                "in the background, 45", "the same, 2 processes on one store at", "memory over a bare client, not merging",
                "the same, the one that merges",
            ),
        ),
        ("scripts", ("a script with one call", "`opentelemetry-instrument`")),
        ("usage", ("`usage --by model,day` over 1,000",)),
    ],
)  # fmt: skip
def test_what_processes_cost_has_a_row_for_each_aim(part: str, aims: tuple[str, ...]) -> None:
    done = run("--part", part)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    for start in aims:
        (own,) = {cells[1] for what, cells in found.items() if what.startswith(start)}
        assert own != "–", start


def test_an_unknown_subject_is_an_error() -> None:
    done = run("--only", "nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr
    assert "official" in done.stderr


@pytest.mark.parametrize(
    ("own", "theirs", "most", "times", "verdict"),
    [
        (0.9, None, 1.0, "", "reached"),
        (1.1, None, 1.0, "", "not reached"),
        (50.0, 100.0, 0.6, "official", "reached: 0.50 ×"),
        (70.0, 100.0, 0.6, "official", "not reached: 0.70 ×"),
        (70.0, None, 0.6, "official", "–"),
        (None, 100.0, 0.6, "official", "–"),
        (70.0, -1.0, 0.6, "official", "–"),
    ],
)
def test_an_aim_says_whether_it_is_reached(
    own: float | None, theirs: float | None, most: float, times: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, table = module("figures", monkeypatch), module("table", monkeypatch)
    spreads = [None if value is None else figures.spread([value]) for value in (theirs, own)]
    assert table._Aim("what", *spreads, " µs", most, times).row().split(" | ")[-1] == f"{verdict} |"


def test_a_run_is_put_into_a_document_in_place_of_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, page = module("figures", monkeypatch), tmp_path / "page.md"
    page.write_text("before\n<!-- other -->\nkept\n<!-- end -->\n<!-- run -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        figures.record(page, "run", ["| a |", "| b |"])
        assert page.read_text() == (
            "before\n<!-- other -->\nkept\n<!-- end -->\n<!-- run -->\n\n| a |\n| b |\n\n<!-- end -->\nafter\n"
        )
    with pytest.raises(SystemExit, match="no <!-- none -->"):
        figures.record(page, "none", [])


@pytest.fixture(autouse=True)
def no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark sets its own; a proxy of the machine must not matter either."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
