"""How long the pages of `otel-llm ui` take over many calls: the first content of each view, and of each kind of filter.

    python benchmarks/pages.py [--calls 1000000] [--rounds 5] [--store FILE]

A store is filled by SQL (a span for each call, 50 users, 5 models, tags, conversations of 20 calls, 90 days), the real command is
started on it, and each page is asked for over HTTP as a browser does. With --store the calls that are in that one are looked at.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

_FILL = """
INSERT INTO llm_usage (started_at, duration_ms, time_to_first_chunk_ms, trace_id, span_id, service_name, operation, provider,
    request_model, response_model, stream, status, error_type, input_tokens, output_tokens, cache_read_tokens, usage_source,
    cost_usd, price_source, module, user_id, conversation_id, tags, server_address, instrumentation, attempts)
SELECT make_timestamptz(epoch_us(now()) - n * (7776000000000 // {calls})), 200 + n % 3000, 50 + n % 400,
    md5((n // 4)::VARCHAR), printf('%016x', n), 'shop', 'chat', 'openai', model, model, n % 2 = 0,
    CASE WHEN n % 97 = 0 THEN 'error' ELSE 'ok' END, CASE WHEN n % 97 = 0 THEN '429' END,
    500 + n % 977, n % 511, n % 128, 'reported',
    CASE WHEN n % 50 <> 7 THEN (500 + n % 977) * 0.00000015 END,
    CASE WHEN n % 50 <> 7 THEN 'genai-prices' ELSE 'no price for x' END,
    ['chat', 'search', 'summaries'][1 + n % 3], printf('user-%d', n % 50), printf('talk-%d', n // 20),
    MAP {{'team': ['core', 'growth'][1 + n % 2], 'prompt': ['v1', 'v2', 'v3'][1 + n % 3]}}, 'api.openai.com', 'otel_llm', 1
FROM (SELECT range AS n, ['gpt-4o', 'gpt-4o-mini', 'gpt-4.1', 'o3', 'gpt-5'][1 + range % 5] AS model FROM range({calls}))
"""
"""Spread over 90 days."""
_FILL_SPANS = """
INSERT INTO spans (trace_id, span_id, name, kind, start_ns, end_ns, started_at, duration_ms, status_code, status, operation,
    service_name, attributes)
SELECT trace_id, span_id, 'chat ' || request_model, 'CLIENT', epoch_us(started_at) * 1000,
    epoch_us(started_at) * 1000 + (duration_ms * 1000000)::BIGINT, started_at, duration_ms, 'OK', status, operation, service_name,
    json_object('gen_ai.operation.name', 'chat', 'gen_ai.request.model', request_model, 'user.id', user_id)
FROM llm_usage
"""


def fill(store: Path, calls: int) -> None:
    """Writes a store of so many calls."""
    from otel_llm.store.jobs import exclusive
    from otel_llm.store.paths import StorePaths

    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(_FILL.format(calls=calls))
        connection.execute(_FILL_SPANS)


class Server:
    """A running `otel-llm ui`."""

    def __init__(self, store: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from otel_llm.cli import main; sys.exit(main())", "ui", "--port", "0", "--no-open",
             "--store", str(store)],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        found = re.search(r"http://\S+", self.process.stdout.readline())
        assert found is not None
        url = urlsplit(found[0])
        assert url.hostname is not None and url.port is not None
        self.connection = http.client.HTTPConnection(url.hostname, url.port)
        self.connection.request("GET", f"/?{url.query}")
        answer = self.connection.getresponse()
        answer.read()
        self.cookie = (answer.getheader("set-cookie") or "").partition(";")[0]

    def get(self, path: str) -> tuple[float, bytes, int]:
        """Seconds to the whole answer, its body, and its bytes on the wire."""
        begun = time.perf_counter()
        self.connection.request("GET", path, headers={"cookie": self.cookie, "accept-encoding": "gzip"})
        answer = self.connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - begun
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:300]!r}")
        wire = len(body)
        return took, gzip.decompress(body) if answer.getheader("content-encoding") == "gzip" else body, wire

    def rss(self) -> int:
        """MB of the server."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return 0
        found = re.search(r"VmRSS:\s+(\d+)", status.read_text())
        return int(found[1]) // 1024 if found else 0

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder) / "usage.duckdb"
        if options.store is None:
            fill(store, options.calls)
        server = Server(store)
        try:
            measure(server, options.rounds)
        finally:
            server.close()


def measure(server: Server, rounds: int) -> None:
    _, body, _ = server.get("/calls.json?period=all")
    found = re.search(rb'"trace_id":"([0-9a-f]{32})"', body)
    assert found is not None
    trace = found[1].decode()
    pages = {
        "overview, 7 days": "/",
        "overview, all time": "/?period=all",
        "overview, all time, by user, one model": "/?period=all&by=user&model=gpt-5",
        "overview, all time, by a tag": "/?period=all&by=tag:team",
        "calls, all time": "/calls?period=all",
        "calls, all time, one user and one model": "/calls?period=all&user=user-7&model=gpt-5",
        "calls, all time, one tag": "/calls?period=all&tag:team=core",
        "calls, all time, by cost": "/calls?period=all&sort=cost_usd",
        "calls: what to filter by, all time": "/calls/facets?period=all",
        "calls: what is said (no content here), all time": "/calls?period=all&q=tyres",
        "a trace": f"/traces/{trace}",
        "conversations, 7 days": "/conversations",
        "conversations, all time": "/conversations?period=all",
        "users, all time": "/conversations?by=user&period=all",
        "a conversation": "/conversations/talk-7",
        "compare two models, all time": "/compare?a=period%3Dall%26model%3Dgpt-5&b=period%3Dall%26model%3Dgpt-4o",
        "SQL: cost by model": "/sql?query=SELECT+request_model%2C+sum(cost_usd)+FROM+llm_usage+GROUP+BY+ALL",
    }
    print(f"{'page':<50} {'median ms':>10} {'slowest':>8} {'kB sent':>8}")
    for name, path in pages.items():
        taken = [server.get(path) for _ in range(rounds)]
        times = [1000 * took for took, _, _ in taken]
        print(f"{name:<50} {statistics.median(times):>10.0f} {max(times):>8.0f} {taken[0][2] / 1000:>8.1f}", flush=True)
    print(f"memory of the server after that: {server.rss()} MB")
    static = sum(
        server.get(f"/static/{name}")[2] for name in ("page.css", "page.js", "theme.js", "htmx.min.js", "icon.svg")
    )
    print(f"scripts and styles, once: {static / 1000:.0f} kB sent")


if __name__ == "__main__":
    main()
