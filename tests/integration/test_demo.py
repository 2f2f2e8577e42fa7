"""What `make demo` runs, without the installing (`.ci/run` runs `make demo` itself, and `tests/packaging` the demo of a wheel)."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Run


def test_the_demo_shows_the_account_and_it_agrees(run_instrumented: Run, tmp_path: Path) -> None:
    # Its own server, its own store: what this process has set in the environment counts for nothing.
    process = run_instrumented(["otel-llm", "demo", "tour"], instrument=False, cwd=tmp_path)
    output = process.stdout
    for word in ("alice", "bob", "carol", "dora", "support", "search", "live-chat", "travel", "weather-agent"):
        assert word in output, output
    assert "execute_tool weather" in output
    assert "Every token agrees." in output
    assert {file.name for file in (tmp_path / "tour").glob("*.*")} > {"usage.duckdb", "chat.py", "agent.py"}


def test_the_demo_writes_over_nothing(run_instrumented: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    process = run_instrumented(
        ["otel-llm", "demo", "."], instrument=False, cwd=tmp_path, code=2, stderr="is there already; name"
    )
    assert process.stdout == ""
