"""How many spans a second `otel-llm serve` takes, and what that costs; beside a Collector that writes them to a file.

    python benchmarks/serve.py                      # `make bench` runs it too
    OTELCOL_BIN=./otelcol python benchmarks/serve.py --spans 200000 --json

Senders are processes of their own that have their requests ready before the clock starts: batches of 512 spans as OpenTelemetry's
exporters send them, over gRPC, a request after the other. On a machine with two cores they share these with the receiver, as they
do with the Collector. What is measured is how long it takes until all is answered, until all is in the database (the Collector has
none), and what of the processor's time the receiver has taken for it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

BATCH: Final = 512
SENDERS: Final = 2
_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_NOON: Final = 1_795_953_600 * 10**9

_CHAT: Final[Mapping[str, str | int]] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.request.temperature": 1,
    "gen_ai.request.max_tokens": 100,
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18",
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 500,
    "gen_ai.usage.cache_read.input_tokens": 0,
    "server.address": "api.openai.com",
    "server.port": 443,
}


def requests(first: int, count: int) -> list[bytes]:
    """Export requests with `count` spans of model calls in all; `first` makes the first one's ids."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for start in range(first, first + count, BATCH):
        request = ExportTraceServiceRequest()
        of_resource = request.resource_spans.add()
        for name, text in {"service.name": "shop", "telemetry.sdk.language": "java", "host.name": "pod-1"}.items():
            of_resource.resource.attributes.add(key=name).value.string_value = text
        of_scope = of_resource.scope_spans.add()
        of_scope.scope.name, of_scope.scope.version = "io.opentelemetry.openai-java-1.1", "2.20.0"
        for number in range(start, min(start + BATCH, first + count)):
            span = of_scope.spans.add(
                trace_id=number.to_bytes(16, "big"),
                span_id=number.to_bytes(8, "big"),
                name="chat gpt-4o-mini",
                kind=3,
                start_time_unix_nano=_NOON + number * 10**6,
                end_time_unix_nano=_NOON + number * 10**6 + 250 * 10**6,
                flags=1,
            )
            for name, value in {**_CHAT, "gen_ai.response.id": f"chatcmpl-{number}"}.items():
                told = span.attributes.add(key=name).value
                if isinstance(value, int):
                    told.int_value = value
                else:
                    told.string_value = value
        found.append(request.SerializeToString())
    return found


def _send(port: int, first: int, count: int, ready: Any, go: Any, done: Any) -> None:
    import grpc

    ready_made = requests(first, count)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        export = channel.unary_unary(_METHOD)
        ready.release()
        go.wait()
        for body in ready_made:
            while True:
                try:
                    export(body, timeout=60)
                    break
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
                        raise
                    time.sleep(0.1)
    done.put(time.monotonic())


def send(port: int, spans: int) -> float:
    """Sends them, by `SENDERS` processes; returns the seconds until all were answered."""
    context = multiprocessing.get_context("spawn")
    ready, go, done = context.Semaphore(0), context.Event(), context.Queue()
    each = spans // SENDERS
    senders = [
        context.Process(target=_send, args=(port, 1 + number * each, each, ready, go, done))
        for number in range(SENDERS)
    ]
    for sender in senders:
        sender.start()
    for _ in senders:
        ready.acquire()
    began = time.monotonic()
    go.set()
    last: float = max(done.get(timeout=600) for _ in senders)
    for sender in senders:
        sender.join()
    return last - began


def processor_seconds(pid: int) -> float:
    """What a process has taken of the processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    (kib,) = re.findall(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(kib) * 1024


@contextmanager
def otel_llm_serve(folder: Path, fsync: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`otel-llm serve` on a store of its own, and its port."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [str(Path(sys.executable).with_name("otel-llm")), "serve", "--grpc", "127.0.0.1:0", "--http", "none"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**clean, "OTEL_LLM_STORE": str(folder / "usage.duckdb"), "OTEL_LLM_FSYNC": fsync},
    ) as process:
        assert process.stdout is not None
        (port,) = re.findall(r"gRPC at \S*:(\d+)", process.stdout.readline())
        try:
            yield process, int(port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(600)


def measure_serve(spans: int, fsync: str) -> dict[str, float]:
    """Figures of `otel-llm serve`."""
    from otel_llm.store import connect
    from otel_llm.store.merge import ingest
    from otel_llm.store.paths import StorePaths

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "usage.duckdb"
        with otel_llm_serve(Path(folder), fsync) as (process, port):
            answered = send(port, spans)
            taken = processor_seconds(process.pid)
            began = time.monotonic()
            while ingest.waiting(StorePaths.of(store)):
                time.sleep(0.05)
            merged = answered + time.monotonic() - began
            figures = {
                "spans a second, answered": spans / answered,
                "spans a second, in the database": spans / merged,
                "microseconds of a core a span, answered": taken / spans * 1e6,
                "microseconds of a core a span, in all": processor_seconds(process.pid) / spans * 1e6,
                "peak memory, MB": peak_memory(process.pid) / 2**20,
            }
        with connect(store) as connection:
            ((rows,),) = connection.execute("SELECT count(*) FROM llm_usage").fetchall()
        if rows != spans:
            raise SystemExit(f"{rows} rows of {spans} spans")
        return figures


_COLLECTOR: Final = """
receivers: {{otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{file: {{path: {file}}}}}
service:
  telemetry: {{metrics: {{level: none}}, logs: {{level: error}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [file]}}}}
"""


def measure_collector(binary: str, spans: int) -> dict[str, float]:
    """Figures of a Collector that writes what comes to a file, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config, file = Path(folder) / "config.yaml", Path(folder) / "spans.json"
        config.write_text(_COLLECTOR.format(port=port, file=file))
        with subprocess.Popen([binary, "--config", str(config)]) as process:
            try:
                _until_it_listens(port, process)
                answered = send(port, spans)
                return {
                    "spans a second, answered": spans / answered,
                    "microseconds of a core a span, answered": processor_seconds(process.pid) / spans * 1e6,
                    "peak memory, MB": peak_memory(process.pid) / 2**20,
                }
            finally:
                process.terminate()


def _until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the Collector does not listen")


def run(spans: int) -> dict[str, dict[str, float]]:
    """All figures, by what they are of."""
    found = {f"otel-llm serve, OTEL_LLM_FSYNC={fsync}": measure_serve(spans, fsync) for fsync in ("none", "always")}
    if binary := os.environ.get("OTELCOL_BIN"):
        found["Collector, file exporter"] = measure_collector(binary, spans)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--spans", type=int, default=100 * BATCH * SENDERS, help="how many to send")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    found = run(options.spans // SENDERS * SENDERS)
    if options.json:
        print(json.dumps(found))
        return
    for of, figures in found.items():
        print(of)
        for name, value in figures.items():
            print(f"  {value:>10,.0f}  {name}")
    if "OTELCOL_BIN" not in os.environ:
        print("OTELCOL_BIN names no Collector: nothing to compare with")


if __name__ == "__main__":
    main()
