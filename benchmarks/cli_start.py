"""How long `otel-llm` takes to its first byte: each command beside a Python that only imports DuckDB, in one run.

    python benchmarks/cli_start.py                  # the table
    python benchmarks/cli_start.py --rounds 30 --rows 1000000

A figure is the wall time of a process from its start to the first byte on its stdout, the median over the rounds; the commands
take turns within a round, so that a busy machine is busy for all of them. Ratios are what to compare between machines:
`import duckdb` is what no command that reads the store can do without. The store is made for the run, with
100,000 calls that have been merged. Modules are compiled before, as pip leaves them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "otel-llm --help": ["--help"],
    "otel-llm usage --help": ["usage", "--help"],
    "otel-llm path": ["path"],
    "otel-llm ps": ["ps"],
    "otel-llm usage": ["usage"],
    "otel-llm usage --by day,user --json": ["usage", "--by", "day,user", "--json"],
    "otel-llm logs": ["logs"],
    "otel-llm show": ["show"],
    "otel-llm sql": ["sql", "select model, sum(cost_usd) from llm_daily group by 1"],
    "otel-llm sql --json, all rows": ["sql", "from llm_usage", "--json"],
}

_FILL = """
INSERT INTO {table} BY NAME
SELECT now() - to_seconds(i * 26) AS started_at, printf('%032x', i) AS trace_id, printf('%016x', i) AS span_id, {columns}
FROM range({rows}) AS calls(i)
"""
_CALLS = """
    'chat' AS operation, 'openai' AS provider, ['gpt-5-mini', 'gpt-4o-mini', 'o4-mini'][1 + i % 3] AS request_model, 'ok' AS status,
    200 + i % 1000 AS duration_ms, i % 5000 AS input_tokens, i % 700 AS output_tokens, 0.000001 * (i % 5000) AS cost_usd,
    'user-' || (i % 50) AS user_id, 'module-' || (i % 7) AS module, MAP {'team': 'core'} AS tags
"""
_SPANS = """
    'chat' AS name, 'chat' AS operation, 'ok' AS status, 200 + i % 1000 AS duration_ms,
    epoch_ns(started_at::TIMESTAMP) AS start_ns, start_ns + 1000000 AS end_ns, '{"gen_ai.operation.name": "chat"}' AS attributes
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "usage.duckdb"
        _make(store, options.rows)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
        environment |= {"OTEL_LLM_STORE": str(store), "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        script = Path(sys.executable).with_name("otel-llm")
        start = (
            "import sys; from otel_llm.cli import main; sys.exit(main())"  # what the script does, where there is none
        )
        otel_llm = [str(script)] if script.exists() else [sys.executable, "-c", start]
        commands = {
            "python -c pass": [sys.executable, "-c", "print()"],
            "python -c 'import duckdb'": [sys.executable, "-c", "import duckdb; print()"],
        } | {name: [*otel_llm, *arguments] for name, arguments in COMMANDS.items()}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for command in commands.values():  # compiles, and warms the caches
            _first_byte(command, environment)
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(_first_byte(command, environment))
    base = statistics.median(times["python -c 'import duckdb'"])
    print(
        f"{'to the first byte, store of ' + format(options.rows, ',') + ' calls':44}{'median':>9}{'least':>9}  / import duckdb"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:44}{median * 1000:6.0f} ms{min(seconds) * 1000:6.0f} ms{median / base:10.2f}")


def _make(path: Path, rows: int) -> None:
    from otel_llm.store.jobs import exclusive
    from otel_llm.store.paths import StorePaths

    with exclusive.alone(StorePaths.of(path)) as connection:
        for table, columns in (("llm_usage", _CALLS), ("spans", _SPANS)):
            connection.execute(_FILL.format(table=table, columns=columns, rows=rows))
        connection.execute("CHECKPOINT")


def _first_byte(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit(f"{command} printed nothing")
        taken = time.perf_counter() - began
        process.stdout.close()
    return taken


if __name__ == "__main__":
    main()
