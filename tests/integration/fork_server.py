"""Runs an app many times over, each in a process of its own that is forked from this one: what takes time to import is there.

Reads one job a line from stdin, as JSON: `env` (variables to be set, or null to be taken away), `code` (the app), `out` (a path:
what the app writes goes to `<out>.stdout` and `<out>.stderr`). Answers each with a line: the exit code, negative for a signal.

Started with `cold`, it has imported neither OpenTelemetry nor otel-llm, which read some variables as they are imported; else it
has, and its first line names those variables, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_COSTLY = ("openai", "openai.resources.chat.completions", "duckdb", "orjson", "grpc", "requests", "google.protobuf.internal",
           "google.protobuf.message", "genai_prices", "genai_prices.data", "wrapt", "platformdirs", "pytz", "click",
           "httpcore2", "httpcore2._sync", "h11", "anyio.streams.tls", "jiter", "openai.lib.streaming.chat",
           "openai.resources.chat.completions.completions", "openai.types.chat.completions")  # fmt: skip
_WARM = ("opentelemetry.instrumentation.auto_instrumentation", "opentelemetry.distro", "otel_llm.setup.distro",
         "otel_llm.setup.sdk",
         "otel_llm.setup.otlp_batches", "otel_llm.store.exporter", "otel_llm.store.merge.ingest",
         "otel_llm.prices.book", "otel_llm.content.openai",
         "otel_llm.instrumentation.openai", "otel_llm.instrumentation.langchain", "otel_llm.instrumentation.concurrency",
         "otel_llm.signals.events", "otel_llm.lifecycle.event_processor", "opentelemetry.exporter.otlp.proto.http.trace_exporter",
         "opentelemetry.exporter.otlp.proto.http.metric_exporter", "opentelemetry.exporter.otlp.proto.http._log_exporter",
         "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
         "opentelemetry.exporter.otlp.proto.grpc._log_exporter")  # fmt: skip
_SECONDS = 60


def _become(job: dict[str, object]) -> str:
    """Makes this child what the job wants; returns the code to run."""
    signal.alarm(_SECONDS)  # what hangs is killed by it
    directory = Path(f"{job['out']}.cwd")
    directory.mkdir()
    os.chdir(directory)
    for target, name in ((0, os.devnull), (1, f"{job['out']}.stdout"), (2, f"{job['out']}.stderr")):
        fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(fd, target)
        os.close(fd)
    env = job["env"]
    assert isinstance(env, dict)
    for name, value in env.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value  # a lone surrogate stands for a byte that is no UTF-8
    return str(job["code"])


def _warm_up() -> list[str]:
    """Imports what reads variables; returns which it has read."""
    read = set()
    kind: Any = type(os.environ)
    original = kind.__getitem__

    def recorded(self: Any, name: str) -> str:
        read.add(name)
        return str(original(self, name))

    kind.__getitem__ = recorded
    try:
        for name in _WARM:
            importlib.import_module(name)
    finally:
        kind.__getitem__ = original
    return sorted(read)


def main() -> None:
    for name in _COSTLY:
        importlib.import_module(name)
    assert not any(name.startswith(("opentelemetry", "otel_llm")) for name in sys.modules)
    print(json.dumps([] if sys.argv[1:] == ["cold"] else _warm_up()), flush=True)
    code = None
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            code = _become(json.loads(line))
            break
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    if code is not None:
        exec(compile(code, "<app>", "exec"), {"__name__": "__main__"})


main()
