"""The account in ClickHouse beside the same in DuckDB: equal to the last digit, and how long a question takes.

    python benchmarks/clickhouse.py                        # 1,000,000 calls
    python benchmarks/clickhouse.py --calls 100000 --json

A DuckDB store gets the calls as they are in the end. ClickHouse gets them as machines send them: in blocks, 20 % of the calls twice
or three times, 10 % first without a price and later with one, of those some in the wrong order. Then both are asked the same, and
each row of each answer must be the same. ClickHouse is the one of CLICKHOUSE_URL, which must be for tests alone, as its tables are
emptied; or chdb behind the few lines of HTTP that the tests have. Without either there is nothing to measure.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = 50_000
_QUESTIONS = (("model",), ("model", "day"), ("user",), ("day", "module", "status"), ("tag:team",), ("price_source",))
_TIMED = ("model", "day")
_RUNS = 5
_COMMAND = "import sys; from otel_llm.cli import main; sys.exit(main())"
_CALLS = """INSERT INTO llm_usage BY NAME
    SELECT make_timestamptz(1790000000000000 + i * 7776000000000 // {calls}) AS started_at,
        md5(i::VARCHAR) AS trace_id, left(md5('s' || i), 16) AS span_id, 'chat' AS operation, 'openai' AS provider,
        'model-' || (hash(i) % 12) AS request_model, 'user-' || (hash(i, 1) % 5000) AS user_id,
        'module-' || (hash(i, 2) % 20) AS module,
        CASE WHEN hash(i, 3) % 50 = 0 THEN 'error' ELSE 'ok' END AS status, (hash(i, 4) % 20000)::BIGINT AS input_tokens,
        (hash(i, 5) % 2000)::BIGINT AS output_tokens, (hash(i, 6) % 900)::BIGINT AS cache_read_tokens,
        CASE WHEN hash(i, 7) % 20 > 0 THEN ((hash(i, 8) % 900000000)::DECIMAL(18, 0) * 0.000000001)::DECIMAL(18, 9) END AS cost_usd,
        CASE WHEN hash(i, 7) % 20 > 0 THEN 'genai-prices 1' ELSE 'no price' END AS price_source,
        CASE WHEN hash(i, 9) % 30 = 0 THEN 'estimated' END AS usage_source, (hash(i, 10) % 30000) / 8.0 AS duration_ms,
        MAP {{'team': 'team-' || (hash(i, 11) % 40)}} AS tags, CASE WHEN hash(i, 12) % 10 = 0 THEN 2 ELSE 1 END AS row_version
    FROM range({calls}) AS numbers(i)"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000, help="how many (default: 1,000,000)")
    parser.add_argument("--json", action="store_true", help="the figures as a JSON object")
    options = parser.parse_args(arguments)
    if "CLICKHOUSE_URL" not in os.environ and importlib.util.find_spec("chdb") is None:
        print("ClickHouse is not measured: pip install chdb, or set CLICKHOUSE_URL")
        return 0
    with tempfile.TemporaryDirectory() as directory, _clickhouse() as url:
        figures = measure(Path(directory) / "usage.duckdb", url, options.calls)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, figure in figures.items():
            print(f"{name:<40} {figure:>14,}" if isinstance(figure, int) else f"{name:<40} {figure:>14}")
    return 1 if figures["answers that differ"] else 0


def measure(store: Path, url: str, calls: int) -> dict[str, Any]:
    """The figures, by what they are of."""
    from otel_llm.account.opening import open_clickhouse, open_store
    from otel_llm.account.sums import Dimension
    from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
    from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
    from otel_llm.store.jobs import exclusive
    from otel_llm.store.paths import StorePaths

    where = ClickHouseURL.parse(url)
    client = ClickHouseClient(where)
    client.execute("TRUNCATE TABLE llm_usage")
    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(_CALLS.format(calls=calls))
    sent, seconds = _send(store, where)
    *_, (stored,) = client.rows("SELECT count() FROM llm_usage SETTINGS final = 0")
    differing, rows, times = 0, 0, {}
    with open_store(store) as duckdb, open_clickhouse(where) as clickhouse:
        for names in _QUESTIONS:
            by = [Dimension(name) for name in names]
            one, other = duckdb.sums(by), clickhouse.sums(by)
            rows += len(one)
            differing += sum(here != there for here, there in itertools.zip_longest(one, other))
        for name, account in (("DuckDB", duckdb), ("ClickHouse", clickhouse)):
            times[name] = _fastest(lambda account=account: account.sums([Dimension(one) for one in _TIMED]))
        differing += duckdb.contents()._replace(spans=0) != clickhouse.contents()._replace(spans=0)
    return {
        "calls": calls,
        "rows sent": sent,
        "rows there until they are merged": int(stored),
        "rows sent a second": round(sent / seconds),
        "groups compared": rows,
        "answers that differ": differing,
        "usage --by model,day: DuckDB, ms": round(times["DuckDB"] * 1000),
        "usage --by model,day: ClickHouse, ms": round(times["ClickHouse"] * 1000),
        "the command, DuckDB, ms": round(_fastest(lambda: _usage(str(store))) * 1000),
        "the command, ClickHouse, ms": round(_fastest(lambda: _usage(url)) * 1000),
    }


def _send(store: Path, url: Any) -> tuple[int, float]:
    """Sends the calls as machines would; returns how many rows, and the seconds that it took."""
    import duckdb

    from otel_llm.fleet.ship.clickhouse import ClickHouseDestination
    from otel_llm.fleet.ship.destination import Block
    from otel_llm.fleet.wire_row import RETRACTED, USAGE_COLUMNS, select_list

    # A call of two versions first had no price; by its hash it is sent once, twice or three times, and the old one last at times.
    versions = f"""WITH calls AS (SELECT *, hash(span_id) AS dice FROM llm_usage), sent AS (
            SELECT * REPLACE (NULL AS cost_usd, 'no price' AS price_source, 1 AS row_version), dice % 3 AS place FROM calls
                WHERE row_version = 2
            UNION ALL SELECT *, 1 AS place FROM calls
            UNION ALL SELECT *, 2 AS place FROM calls WHERE dice % 10 < 2
            UNION ALL SELECT *, 3 AS place FROM calls WHERE dice % 10 < 1)
        SELECT {select_list(USAGE_COLUMNS)} FROM sent ORDER BY place, epoch_us(started_at) // 86400000000, dice"""
    destination, sent, began = ClickHouseDestination(url), 0, time.perf_counter()
    with duckdb.connect(str(store), read_only=True) as connection:
        cursor = connection.execute(versions)
        while rows := cursor.fetchmany(_BLOCK):
            destination.send(
                Block("llm_usage", [{**dict(zip(USAGE_COLUMNS, row, strict=True)), RETRACTED: False} for row in rows])
            )
            sent += len(rows)
    destination.close()
    return sent, time.perf_counter() - began


def _usage(store: str) -> None:
    subprocess.run(
        [sys.executable, "-c", _COMMAND, "usage", "--by", ",".join(_TIMED), "--store", store, "--json"],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _fastest(work: Any) -> float:
    times = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def _clickhouse() -> Iterator[str]:
    if url := os.environ.get("CLICKHOUSE_URL"):
        yield url
        return
    program = ROOT / "tests" / "fleet" / "clickhouse_server.py"
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"clickhouse://default@127.0.0.1:{process.stdout.readline().strip()}/otel"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
