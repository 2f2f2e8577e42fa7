"""What `make demo` runs, without the installing (`.ci/run` runs `make demo` itself)."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import EXAMPLES, Run


def test_the_demo_shows_the_account_and_it_agrees(run_instrumented: Run, tmp_path: Path) -> None:
    # Its own server, its own store: what this process has set in the environment counts for nothing.
    process = run_instrumented(EXAMPLES / "demo.py", instrument=False, cwd=tmp_path)
    output = process.stdout
    for word in ("alice", "bob", "carol", "dora", "support", "search", "live-chat", "travel", "weather-agent"):
        assert word in output, output
    assert "execute_tool weather" in output
    assert "Every token agrees." in output
    assert (tmp_path / ".demo" / "usage.duckdb").is_file()
