"""Whole processes: how long they take, how much of a processor, and what apps that go on for a while cost behind their backs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import provider
from figures import Spread, spread
from subjects import BARE, OFFICIAL, OFFICIAL_OPENAI, STORE, SUBJECTS

HERE = Path(__file__).resolve().parent
_FOREIGN = ("OTEL_", "OPENAI_", "AZURE_", "TRACELOOP_", "LANGSMITH_", "LANGCHAIN_", "PYTHON")
Pythons = Mapping[str, Path]
"""The interpreter of each environment."""


class Failed(Exception):
    """A process that did not end well, and what it said."""


def surroundings(**settings: str) -> dict[str, str]:
    """Environment variables without those that would change what is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return kept | {"OTEL_LLM_STORE": "none", "TRACELOOP_TELEMETRY": "false", "NO_PROXY": "127.0.0.1"} | settings


# --- one call, and none --------------------------------------------------------------------------------------------------
_CALL = """
from openai import OpenAI
OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Why is the sky blue?"}])
"""
_OFFICIAL_SET_UP = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
class NullExporter(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(NullExporter()))
trace.set_tracer_provider(provider)
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
OpenAIInstrumentor().instrument(tracer_provider=provider)
"""
_OUR_SET_UP = """
import otel_llm
otel_llm.instrument()
"""
_NO_EXPORTER = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


def scripts(pythons: Pythons, pairs: int) -> dict[str, dict[str, Spread]]:
    """Seconds that a script with one call takes more than the bare one, and one that only imports openai, by subject."""
    with tempfile.TemporaryDirectory() as folder, provider.server() as url:
        asking = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
        store = {"OTEL_LLM_STORE": f"{folder}/usage.duckdb"}
        python = {name: str(pythons[SUBJECTS[name].environment]) for name in (BARE, OFFICIAL, STORE)}
        launch = {
            name: [path] if name == BARE else [str(Path(path).with_name("opentelemetry-instrument")), path]
            for name, path in python.items()
        }
        calls = {
            BARE: ([python[BARE], "-c", _CALL], asking),
            OFFICIAL: ([python[OFFICIAL], "-c", _OFFICIAL_SET_UP + _CALL], asking),
            STORE: ([python[STORE], "-c", _OUR_SET_UP + _CALL], asking | store),
        }
        starts = {
            BARE: ([*launch[BARE], "-c", "import openai"], {}),
            # The pair without an exporter: less it cannot do.
            OFFICIAL: ([*launch[OFFICIAL], "-c", "import openai"], _NO_EXPORTER),
            STORE: ([*launch[STORE], "-c", "import openai"], store),
        }
        return {"one call": _compare(calls, pairs), "start": _compare(starts, pairs)}


def _compare(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], pairs: int) -> dict[str, Spread]:
    walls: dict[str, list[float]] = {name: [] for name in commands}
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(pairs + 1):  # the first compiles, and warms the caches
        for name, (command, settings) in commands.items():
            if name not in walls:
                continue
            try:
                wall, cpu = timed(command, surroundings(**settings))
            except Failed as failure:
                print(failure, file=sys.stderr)
                del walls[name]
                continue
            if number:
                walls[name].append(wall)
                spent[name].append(cpu)
    found = {BARE: spread(walls[BARE])}
    for name in walls:
        if name != BARE:
            found[name] = spread([own - bare for own, bare in zip(walls[name], walls[BARE], strict=True)])
            found[f"{name}, CPU"] = spread([own - bare for own, bare in zip(spent[name], spent[BARE], strict=True)])
    return found


def timed(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds by the clock, and of a processor, that a process takes. Raises Failed."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise Failed(f"{command[0]} failed:\n{said.decode(errors='replace')}")
    return taken, usage.ru_utime + usage.ru_stime


# --- apps ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Apps:
    """Processes of one subject that run at once, sharing a store where they have one."""

    subject: str
    number: int
    rate: float


ALONE, TOGETHER = 45.0, 10.0
"""Calls a second: of a process alone, and of each of several."""


def apps(pythons: Pythons, number: int, *, settle: float, seconds: float) -> dict[str, Any]:
    """What one app and `number` of them cost in the background, and take of memory, by subject. All run at once."""
    groups = [
        Apps(BARE, 1, TOGETHER),
        *(Apps(subject, 1, ALONE) for subject in (OFFICIAL_OPENAI, STORE)),
        *(Apps(subject, number, TOGETHER) for subject in (OFFICIAL_OPENAI, STORE)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        running = [
            (group, start(group, pythons, Path(folder) / str(at), settle, seconds)) for at, group in enumerate(groups)
        ]
        said = [(group, [*results(processes)]) for group, processes in running]
    bare = next(results[0]["megabytes"] for group, results in said if group.subject == BARE)
    return {
        f"{group.subject} × {group.number}": {
            "background_percent": [one["background_percent"] for one in results],
            "calls_a_second": [one["calls_a_second"] for one in results],
            "megabytes": [one["megabytes"] - bare for one in results],
            "merges": [one["merges"] for one in results],
        }
        for group, results in said
        if group.subject != BARE and results
    }


def start(group: Apps, pythons: Pythons, folder: Path, settle: float, seconds: float) -> list[subprocess.Popen[str]]:
    folder.mkdir()
    command = [str(pythons[SUBJECTS[group.subject].environment]), str(HERE / "app.py"), group.subject, str(folder)]
    timing = ["--rate", str(group.rate), "--settle", str(settle), "--seconds", str(seconds)]
    environment = surroundings(**SUBJECTS[group.subject].settings)
    return [
        subprocess.Popen([*command, *timing], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(group.number)
    ]


def results(running: Sequence[subprocess.Popen[str]]) -> Iterator[dict[str, Any]]:
    """What each has said; nothing of those that could not run, whose own words are on stderr."""
    for process in running:
        said, _ = process.communicate()
        if not process.returncode:
            yield json.loads(said.splitlines()[-1])


# --- reading ---------------------------------------------------------------------------------------------------------
_FILL = """
import sys
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
with exclusive.alone(StorePaths.of(sys.argv[1])) as connection:
    connection.execute('''
        INSERT INTO llm_usage BY NAME
        SELECT now() - to_seconds(i * 31536000 // {rows}) AS started_at, md5(i::VARCHAR) AS trace_id,
            printf('%016x', i) AS span_id, 'chat' AS operation, 'openai' AS provider,
            ['gpt-5-mini', 'gpt-4o-mini', 'o4-mini', 'gpt-4.1'][1 + (hash(i) % 4)::BIGINT] AS request_model,
            request_model || '-2026-07-18' AS response_model, 'chatcmpl-' || hash(i * 7) AS response_id,
            CASE WHEN hash(i) % 100 = 0 THEN 'error' ELSE 'ok' END AS status,
            200 + hash(i) % 1000 AS duration_ms, hash(i * 3) % 5000 AS input_tokens, hash(i * 5) % 700 AS output_tokens,
            hash(i) % 2 * 100 AS cache_read_tokens, 0.000001 * (hash(i * 3) % 5000) AS cost_usd,
            'genai-prices 0.2.3' AS price_source,
            'user-' || (hash(i) % 500) AS user_id, 'module-' || (i % 7) AS module, MAP {{'team': 'core'}} AS tags
        FROM range({rows}) AS calls(i)
    ''')
    connection.execute('CHECKPOINT')
"""


def usage(python: Path, rows: int, rounds: int) -> tuple[Spread, Spread, float]:
    """Seconds by the clock, and of a processor, of `usage --by model,day` over a year of so many calls; MB of the store."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "usage.duckdb"
        subprocess.run([python, "-c", _FILL.format(rows=rows), store], env=surroundings(), check=True)
        start = "import sys; from otel_llm.cli import main; sys.exit(main())"  # what the script `otel-llm` does
        command = [str(python), "-c", start, "usage", "--by", "model,day"]
        environment = surroundings(OTEL_LLM_STORE=str(store))
        timed(command, environment)
        runs = [timed(command, environment) for _ in range(rounds)]
        return spread([wall for wall, _ in runs]), spread([cpu for _, cpu in runs]), store.stat().st_size / 1e6


def machine() -> str:
    """What this is, for whoever compares."""
    model = "unknown processor"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    system = os.uname()
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system.sysname} {system.release.partition('-')[0]}, "
        f"Python {sys.version.split()[0]}; load {load:.1f} at the start"
    )
