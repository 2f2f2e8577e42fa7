"""How long `otel-llm logs --search` takes over many calls that say something, and what other ways of looking would take.

    python benchmarks/search.py [--calls 1000000] [--rounds 3] [--store FILE]

A store is filled by SQL: each call has some 1.4 kB of messages, 150 words of 5,000 different ones. A figure is the time of the
query alone, and the CPU that all threads took for it: the least of the rounds. With --store the calls that are in that one are
looked at; a file that is not there yet is made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILL = """
INSERT INTO llm_usage
    (started_at, duration_ms, trace_id, span_id, operation, request_model, status, input_messages, output_messages)
SELECT make_timestamptz(epoch_us(now()) - ({calls} - n) * (7776000000000 // {calls})), 100, md5((n // 4)::VARCHAR),
    printf('%016x', n), 'chat', 'gpt-5', 'ok',
    '[{{"role":"user","parts":[{{"type":"text","content":"Please help. ' || {asked} ||
        CASE WHEN n = 17 THEN ' Grüße an O''Neil, 50% off 195/65' ELSE '' END || '"}}]}}]',
    '[{{"role":"assistant","parts":[{{"type":"text","content":"' || {answered} || '"}}],"finish_reason":"stop"}}]'
FROM (SELECT range AS n FROM range({calls})) AS call,
    (SELECT list(md5(range::VARCHAR)[1:4 + range % 7]) AS w FROM range(5000)) AS known
"""
_WORDS = "list_aggregate(list_transform(range({number}), lambda i: w[1 + (hash(n * {factor} + i) % 5000)::INT]), 'string_agg', ' ')"
WORDS = {
    "in every call": "please",
    "in none": "deadbeefcafe",
    "in the oldest alone": "o'neil",
    "not ASCII, in the oldest": "grüße",
}


def fill(store: Path, calls: int) -> None:
    """Writes a store of so many calls, the oldest first."""
    from otel_llm.store.jobs import exclusive
    from otel_llm.store.paths import StorePaths

    with exclusive.alone(StorePaths.of(store)) as connection:
        asked, answered = (_WORDS.format(number=number, factor=factor) for number, factor in ((90, 131), (60, 137)))
        connection.execute(_FILL.format(calls=calls, asked=asked, answered=answered))


def least(ask: Callable[[], Any], rounds: int) -> str:
    """Seconds, and those of CPU."""
    took = []
    for _ in range(rounds):
        begun, cpu = time.perf_counter(), time.process_time()
        ask()
        took.append((time.perf_counter() - begun, time.process_time() - cpu))
    return f"{min(each for each, _ in took):8.3f} {min(each for _, each in took):8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder) / "usage.duckdb"
        if not store.exists():
            fill(store, options.calls)
        sys.stdout.write(f"{'the newest 10 with':44} {'s':>8} {'CPU-s':>8}\n")
        measure(store, options.rounds)


def measure(store: Path, rounds: int) -> None:
    from otel_llm.account.call_filter import CallFilter
    from otel_llm.account.in_duckdb.duckdb_engine import DuckDBEngine
    from otel_llm.account.opening import open_store

    joined = "contains(lower(concat_ws(' ', input_messages, output_messages, to_json(error_message))), lower($1))"
    with open_store(store) as account:
        for what, word in WORDS.items():
            took = least(lambda word=word: account.latest(("span_id",), CallFilter(search=word), 10), rounds)  # type: ignore[misc]
            sys.stdout.write(f"{f'a word {what}':44} {took}\n")
        assert isinstance(account.engine, DuckDBEngine)
        connection = account.engine.connection
        for name, where in (
            ("texts joined, in small letters", joined),
            ("reading the texts alone", "strlen(input_messages) + strlen(output_messages) < length($1)"),
        ):
            sql = f"SELECT span_id FROM llm_usage WHERE {where} ORDER BY started_at DESC, span_id DESC LIMIT 10"
            took = least(lambda sql=sql: connection.execute(sql, [WORDS["in none"]]).fetchall(), rounds)  # type: ignore[misc]
            sys.stdout.write(f"{f'for comparison: {name}':44} {took}\n")


if __name__ == "__main__":
    main()
