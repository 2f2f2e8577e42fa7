"""How far one store goes: calls a second, processes, rows. Prints the tables of docs/limits.md.

    python benchmarks/cost/scale.py                         # some twelve minutes; 64 processes want 8 GB of memory
    python benchmarks/cost/scale.py --rows 100000000        # a row more, for which it fills a store of 6 GB

The calls are made by real clients of a provider inside their process, as in `app.py`; while they are, another process opens the
store as any DuckDB client does, again and again, and sees how old the newest call in it is.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import environments
import processes
from figures import record, spread
from processes import Apps
from subjects import STORE, SUBJECTS

_MOST_OF_ONE = 125.0
"""Calls a second that one process makes at most here: the client itself takes most of a millisecond for each."""
_LOOK = """
import json, sys, time
import duckdb
store, begin, end = sys.argv[1], time.monotonic() + float(sys.argv[2]), time.monotonic() + float(sys.argv[3])
ages = []
while time.monotonic() < end:
    time.sleep(0.25)
    try:
        with duckdb.connect(store, read_only=True) as connection:
            (age,), = connection.execute("SELECT epoch(now()) - epoch(max(started_at)) FROM llm_usage").fetchall()
    except duckdb.IOException:
        continue
    if time.monotonic() >= begin and age is not None:
        ages.append(age)
print(json.dumps(ages))
"""


def together(python: Path, number: int, rate: float, *, settle: float, seconds: float) -> dict[str, Any]:
    """What so many apps cost that make so many calls a second each, and how old the newest call is that others see."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "apps"
        running = processes.start(
            Apps(STORE, number, rate), {SUBJECTS[STORE].environment: python}, folder, settle, seconds
        )
        look = [str(python), "-c", _LOOK, str(folder / "usage.duckdb"), str(settle), str(settle + seconds)]
        ages = json.loads(subprocess.run(look, env=processes.surroundings(), capture_output=True, text=True).stdout)
        results = [*processes.results(running)]
    return {
        "calls": sum(one["calls_a_second"] for one in results),
        "percent": sum(one["background_percent"] for one in results),
        "ages": ages,
        "merging": sum(one["merges"] for one in results),
    }


def load_table(python: Path, loads: Sequence[tuple[int, float]], *, settle: float, seconds: float) -> Iterator[str]:
    seen = "newest call that a plain client sees, median and most"
    yield f"| calls a second | processes | in the background, of a core | {seen} | merging |"
    yield "|---|---|---|---|---|"
    for number, rate in loads:
        _say(f"{number} processes, {rate:g} calls a second each")
        got = together(python, number, rate, settle=settle, seconds=seconds)
        ages = f"{spread(got['ages']).median:.1f} s, {max(got['ages']):.1f} s" if got["ages"] else "–"
        yield f"| {got['calls']:.0f} | {number} | {got['percent']:.1f} % | {ages} | {got['merging']} |"


def rows_table(python: Path, sizes: Sequence[int]) -> Iterator[str]:
    yield "| calls in the store | `usage --by model,day` | of a processor | size of `llm_usage` |"
    yield "|---|---|---|---|"
    for rows in sizes:
        _say(f"{rows:,} rows")
        wall, cpu, size = processes.usage(python, rows, 5)
        yield f"| {rows:,} | {wall.written(' s', sign=False)} | {cpu.written(' s', sign=False)} | {size:,.0f} MB |"


def _say(line: str) -> None:
    print(f"\r{line}   ", end="", file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settle", type=float, default=30, help="seconds that apps run before it counts")
    parser.add_argument("--seconds", type=float, default=45, help="seconds that apps run while it counts")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[1, 10, 100, 1000], help="calls a second, of all processes"
    )
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 8, 64], help="that make a call a second each")
    parser.add_argument("--rows", type=int, nargs="*", default=[10**5, 10**6, 10**7])
    parser.add_argument("--here", action="store_true", help="no environment: this Python")
    parser.add_argument("--record", type=Path, help="a document to put it into, as docs/limits.md")
    options = parser.parse_args()
    python = Path(sys.executable) if options.here else environments.python_of(SUBJECTS[STORE].environment)
    loads = [(number := math.ceil(rate / _MOST_OF_ONE), rate / number) for rate in options.rates]
    loads += [(number, 1.0) for number in options.processes if (number, 1.0) not in loads]
    lines = [f"{processes.machine()}.", ""]
    lines += [*load_table(python, loads, settle=options.settle, seconds=options.seconds), ""]
    lines += rows_table(python, options.rows)
    _say("")
    print("\n".join(lines))
    if options.record:
        record(options.record, "scale.py", lines)


if __name__ == "__main__":
    main()
