"""An app that makes calls at a steady rate: says what the threads behind it cost, and how much memory it takes."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from calls import CHAT, cases
from subjects import BARE, SUBJECTS, Telemetry

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> float:
    """MB of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rate", type=float, required=True, help="calls a second")
    parser.add_argument("--settle", type=float, required=True, help="seconds before it counts")
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    if arguments.subject != BARE:  # a bare client has no SDK
        SUBJECTS[arguments.subject].install(Telemetry(metrics=False), arguments.directory)
    call, _ = cases([CHAT], 1, 1)[CHAT]
    begin = time.monotonic()
    print(json.dumps(asyncio.run(_run(call, begin, arguments))), flush=True)


async def _run(call: Any, begin: float, arguments: argparse.Namespace) -> dict[str, Any]:
    calls = 0

    async def until(end: float) -> None:
        nonlocal calls
        while time.monotonic() < begin + end:
            await call()
            calls += 1
            time.sleep(max(0.0, begin + calls / arguments.rate - time.monotonic()))

    await until(arguments.settle)
    threads, counted, wall = _other_threads(), calls, time.monotonic()
    await until(arguments.settle + arguments.seconds)
    threads, counted, wall = _other_threads() - threads, calls - counted, time.monotonic() - wall
    gc.collect()
    return {
        "background_percent": 100 * threads / wall,
        "calls_a_second": counted / wall,
        "megabytes": resident(),
        "merges": "duckdb" in sys.modules,
    }


def _other_threads() -> float:
    """Seconds of a processor that all threads but this one have taken."""
    return time.process_time() - time.thread_time()


if __name__ == "__main__":
    main()
