"""The benchmark of the search runs, and finds what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "search.py"


def test_a_row_for_each_way(tmp_path: Path) -> None:
    store = tmp_path / "usage.duckdb"
    command = [sys.executable, str(BENCHMARK), "--rounds", "1", "--calls", "100", "--store", str(store)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.rsplit(None, 2)[0].strip() for line in done.stdout.splitlines()]
    assert rows == [
        "the newest 10 with", "a word in every call", "a word in none", "a word in the oldest alone",
        "a word not ASCII, in the oldest", "for comparison: texts joined, in small letters",
        "for comparison: reading the texts alone",
    ]  # fmt: skip
    from otel_llm.account.call_filter import CallFilter
    from otel_llm.account.opening import open_store

    with open_store(store) as account:
        found = [
            len(account.latest(("span_id",), CallFilter(search=word)))
            for word in ("please", "deadbeefcafe", "O'NEIL", "GRÜßE")
        ]
    assert found == [100, 0, 1, 1]
