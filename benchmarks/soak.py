"""Whether the account can be trusted: what is lost when processes die, what many of them do to one store, what a million rows cost.

    python benchmarks/soak.py                     # everything at full size: `make soak`, some ten minutes
    python benchmarks/soak.py --short             # the same in little, as `make test` runs it
    python benchmarks/soak.py --only kill,many --json

Scenarios:

    kill    processes that make calls all the while are killed with `kill -9` at random moments, time and again
    many    many processes write one store at once, while a plain DuckDB client and `otel-llm usage` read it in a loop
    rows    one process writes very many rows: its memory, the size of a row, the time of a query
    costs   what a record costs the app's thread, what a row costs the merge, beside the OTLP exporter with the same spans

Each prints its figures, and its *faults*: what must never be. The exit code is 1 where there is one. Figures of time and size are
of the machine as much as of the code; no fault depends on them.

How `kill` knows the truth. Every process writes a ledger of its own, one unbuffered append per line: `begin` before the call,
`end` after it has returned to the app. The provider (`examples/local_openai.py`) keeps a ledger too. So:

- A call with an `end` must be there once, with the status that it ended with and the tokens that the provider billed.
- A call with a `begin` only was in flight when its process died. It must be there once as `interrupted`, with two exceptions, for
  the ledger's lines and ours are not one write. Its process may have died before the call got as far as our hook: then there is no
  row, which is believed only where the provider never saw the request. Or after the call had ended for us and before the app
  could write its `end`: then the row says how it ended, which is believed only where the answer had been given in full (or
  the app was about to leave the stream). Both are counted.
- A row that no ledger knows is a fault, and so is anything that a process printed to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from otel_llm.store import Store


@dataclass
class Report:
    """What a scenario found."""

    figures: dict[str, float | str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """What must never be; each with an example."""

    def must_be_empty(self, what: str, found: Mapping[str, Any] | set[str] | list[str]) -> None:
        """Notes how many were found under the name `what`, and as a fault where there is any."""
        self.figures[what] = len(found)
        if found:
            example = next(iter(found.items() if isinstance(found, Mapping) else found))
            self.faults.append(f"{what}: {len(found)}, for example {example}")


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


class _Worker:
    """This file in a process of its own, at one of the `_WORKERS`; ends when its standard input does."""

    def __init__(self, directory: Path, store: Path, name: str, *arguments: object, **variables: str) -> None:
        self._stderr = (directory / "stderr.log").open("a+b")
        foreign = ("OTEL_", "OPENAI_", "PYTHONWARNINGS")
        mine = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, *map(str, arguments)],
            env={**mine, "OTEL_LLM_STORE": str(store), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints; raises with its stderr where it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._stderr.seek(0)
            raise RuntimeError(f"a worker ended early: {self._stderr.read().decode()[-2000:]}")
        return line.strip()

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.wait()

    def finish(self) -> str:
        """Lets it come to its end; returns what it had still to say."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        return self._process.stdout.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()
        self._stderr.close()


def _stderr_of(directory: Path) -> list[str]:
    return (directory / "stderr.log").read_text(errors="replace").splitlines()


def _until_told() -> threading.Event:
    """Is set when the standard input ends."""
    told = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        told.set()

    threading.Thread(target=wait, daemon=True).start()
    return told


def _rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    from otel_llm.store.reader import connect

    with connect(store) as connection:
        return list(connection.execute(query).fetchall())


# ---------------------------------------------------------------------------------------------------------------------
# kill
# ---------------------------------------------------------------------------------------------------------------------

_THREADS = 3
"""Threads of each process that call, so that a kill finds several calls in flight."""

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    # How a call of this kind ends, and what makes it one.
    "stream": ("ok", {"stream": True, "extra_headers": {"x-local-behaviour": "stream-pause"}}),
    "whole": ("ok", {}),
    "left": ("partial", {"stream": True, "extra_headers": {"x-local-behaviour": "stream-pause"}}),
    "refused": ("error", {"extra_headers": {"x-local-behaviour": "error-404"}}),
}
_CALL_HEADER = "x-soak-call"


def kill(directory: Path, *, kills: int, processes: int = 4, seed: int = 0) -> Report:
    """Kills processes at random moments while they make calls. The moments are random; `seed` chooses the victims."""
    chance = random.Random(seed)
    store = directory / "usage.duckdb"
    names = (f"{number:04d}" for number in itertools.count())
    began = time.monotonic()
    with _local_openai() as server, contextlib.ExitStack() as stack:

        def start() -> tuple[_Worker, Path]:
            ledger = directory / f"ledger-{next(names)}"
            worker = _Worker(
                directory, store, "kill", ledger, OTEL_LLM_FLUSH_INTERVAL="50ms", OTEL_LLM_STREAM_USAGE="always",
                **server.environment,
            )  # fmt: skip
            return stack.enter_context(worker), ledger

        running = [start() for _ in range(processes)]
        for _ in range(kills):
            # The one that has run longest has had the time to begin; the moment is random all the same.
            worker, _ledger = running.pop(0)
            worker.line()
            time.sleep(chance.uniform(0, 0.5))
            worker.kill()
            running.append(start())
        for worker, _ledger in running:
            worker.line()
        for worker, _ledger in running:
            worker.finish()
        took = time.monotonic() - began
        provider = {call.headers[_CALL_HEADER]: call for call in server.requests}
    report = Report({"processes": processes, "kills": kills, "seconds": round(took, 1)})
    _judge_kills(report, directory, store, provider)
    return report


def _judge_kills(report: Report, directory: Path, store: Path, provider: Mapping[str, Any]) -> None:
    begun: set[str] = set()
    ended: set[str] = set()
    for ledger in directory.glob("ledger-*"):
        for line in ledger.read_text().splitlines():
            event, _, call = line.partition(" ")
            (begun if event == "begin" else ended).add(call)
    rows = _rows(store, "SELECT request_id, status, input_tokens, output_tokens FROM llm_usage")
    found = {row[0]: row[1:] for row in rows}
    in_flight = begun - ended

    def expected(call: str) -> str:
        return _KINDS[call.split("-")[1]][0]

    def billed(call: str) -> bool:
        """Whether the row has the tokens of the bill. A stream that was left has none: its usage comes at the end."""
        if expected(call) != "ok":
            return True
        said = provider[call]
        return bool(found[call][1:] == (said.input_tokens, said.output_tokens))

    figures = report.figures
    figures["calls that ended"] = len(ended)
    report.must_be_empty("  lost", ended - found.keys())
    report.must_be_empty("  recorded twice", {call: n for call, n in Counter(row[0] for row in rows).items() if n > 1})
    report.must_be_empty(
        "  with a wrong status", {c: found[c] for c in ended & found.keys() if found[c][0] != expected(c)}
    )
    report.must_be_empty("  with wrong tokens", {c: found[c] for c in ended & found.keys() if not billed(c)})
    figures["calls in flight at a kill"] = len(in_flight)
    statuses = {call: found[call][0] if call in found else None for call in in_flight}
    figures["  recorded as interrupted"] = sum(status == "interrupted" for status in statuses.values())
    unseen = {call for call, status in statuses.items() if status is None and call not in provider}
    figures["  not begun for us yet (the provider never saw it)"] = len(unseen)
    over = {
        call
        for call, status in statuses.items()
        if status == expected(call) and call in provider and (status == "partial" or _was_answered(provider[call]))
    }
    figures["  just over for us (answered in full)"] = len(over)
    wrong = {call: status for call, status in statuses.items() if status != "interrupted"}
    report.must_be_empty(
        "  recorded otherwise, or lost", {c: s for c, s in wrong.items() if c not in unseen and c not in over}
    )
    report.must_be_empty("rows of no known call", found.keys() - begun)
    report.must_be_empty("lines on stderr", _stderr_of(directory))


def _was_answered(call: Any) -> bool:
    return bool(call.outcome != "disconnected")


def _kill_worker(path: str) -> None:
    """Calls, in several threads, until its standard input ends (or the process does)."""
    import otel_llm

    otel_llm.instrument()
    import openai

    told = _until_told()
    client = openai.OpenAI(max_retries=0)
    ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    process = path.rpartition("-")[2]
    numbers = itertools.count()

    def call(kind: str) -> None:
        name = f"{process}-{kind}-{next(numbers)}"
        given = dict(_KINDS[kind][1])
        given["extra_headers"] = {**given.get("extra_headers", {}), _CALL_HEADER: name}
        question = [{"role": "user", "content": f"Hello from {name}"}]
        with otel_llm.llm_context("soak", request_id=name):
            os.write(ledger, f"begin {name}\n".encode())
            with contextlib.suppress(openai.NotFoundError):
                answer = client.chat.completions.create(model="gpt-4o-mini", messages=question, **given)
                if kind == "stream":
                    for _ in answer:
                        pass
                elif kind == "left":
                    next(answer)
                    answer.close()
            os.write(ledger, f"end {name}\n".encode())

    def work(offset: int) -> None:
        for kind in itertools.islice(itertools.cycle(_KINDS), offset, None):
            if told.is_set():
                return
            call(kind)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(_THREADS)]
    for thread in threads:
        thread.start()
    print("calling", flush=True)
    for thread in threads:
        thread.join()


def _local_openai() -> Any:
    """The local server of the examples, which are no package."""
    spec = importlib.util.spec_from_file_location("local_openai", ROOT / "examples" / "local_openai.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["local_openai"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LocalOpenAI()


# ---------------------------------------------------------------------------------------------------------------------
# many
# ---------------------------------------------------------------------------------------------------------------------


def many(directory: Path, *, processes: int, calls: int) -> Report:
    """Many processes write one store at once, and others read it."""
    store = directory / "usage.duckdb"
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(_Worker(directory, store, "many", calls, OPENAI_API_KEY="none"))
            for _ in range(processes)
        ]
        for writer in writers:
            writer.line()
        reader = stack.enter_context(_Worker(directory, store, "plain_reader"))
        usage = stack.enter_context(_Worker(directory, store, "usage"))
        began = time.monotonic()
        for writer in writers:
            writer.say("go")
        for writer in writers:
            writer.line()
        took = time.monotonic() - began
        for writer in writers:
            writer.finish()
        plain, command = json.loads(reader.finish()), json.loads(usage.finish())
    total = processes * calls
    rows, distinct, spans = _rows(
        store, "SELECT count(*), count(DISTINCT (trace_id, span_id)), (SELECT count(*) FROM spans) FROM llm_usage"
    )[0]
    report = Report(
        {
            "processes": processes,
            "calls of each": calls,
            "rows": rows,
            "calls a second, all together": round(total / took),
            "looks of the plain reader": plain["looks"],
            "  that met a merge and were refused the file": plain["refused"],
            "runs of `otel-llm usage`": command["looks"],
        }
    )
    if not rows == distinct == spans == total:
        report.faults.append(f"{total} calls, {rows} rows, {distinct} of them different, {spans} spans")
    report.must_be_empty("errors of the plain reader", plain["errors"])
    report.must_be_empty("errors of `otel-llm usage`", command["errors"])
    report.must_be_empty("lines on stderr", _stderr_of(directory))
    return report


def _many_worker(calls: str) -> None:
    """Makes that many calls of the OpenAI client, whose HTTP transport is a mock."""
    import otel_llm

    otel_llm.instrument()
    import openai

    client = openai.OpenAI(http_client=openai.DefaultHttpxClient(transport=_mock_transport()))
    question: Any = [{"role": "user", "content": "Why is the sky blue?"}]
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(calls)):
        client.chat.completions.create(model="gpt-4o-mini", messages=question)
    print("done", flush=True)
    sys.stdin.read()


def _mock_transport() -> Any:
    """A provider inside the process, of the HTTP library that the installed openai stands on."""
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx  # type: ignore[no-redef]

    message = {"role": "assistant", "content": "It scatters."}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }
    return httpx.MockTransport(lambda _: httpx.Response(200, json=answer))


@dataclass
class _Looks:
    """What a reader in a loop has seen."""

    looks: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    most: int = 0

    def saw(self, calls: int) -> None:
        """A look at the store; what was there once must stay."""
        self.looks += 1
        if calls < self.most:
            self.errors.append(f"{calls} calls after {self.most}")
        self.most = max(self.most, calls)


def _plain_reader_worker() -> None:
    """Reads with DuckDB alone, as any client would, until told to end."""
    import duckdb

    store = Path(os.environ["OTEL_LLM_STORE"])
    told, looks = _until_told(), _Looks()
    while not told.wait(0.02):
        if not store.exists():
            continue
        try:
            with duckdb.connect(str(store), read_only=True) as connection:
                looks.saw(connection.execute("SELECT count(*) FROM llm_usage").fetchall()[0][0])
        except duckdb.Error as error:
            if "Could not set lock" in str(error):
                looks.refused += 1
            else:
                looks.errors.append(str(error))
    print(json.dumps(asdict(looks)))


def _usage_worker() -> None:
    """Runs `otel-llm usage` until told to end."""
    told, looks = _until_told(), _Looks()
    while not told.is_set():
        done, _ = _usage()
        if done.returncode or done.stderr:
            looks.errors.append(f"exit code {done.returncode}: {done.stderr}")
        else:
            looks.saw(sum(row["calls"] for row in json.loads(done.stdout)))
    print(json.dumps(asdict(looks)))


def _usage(*arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs `otel-llm usage`; returns what it said and the seconds it took."""
    command = [str(Path(sysconfig.get_path("scripts")) / "otel-llm"), "usage", "--format", "json", *arguments]
    began = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done, time.monotonic() - began


# ---------------------------------------------------------------------------------------------------------------------
# rows
# ---------------------------------------------------------------------------------------------------------------------

_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "o3", "gpt-5")
_DAYS = 30
_DAY_NS = 86_400 * 10**9


def rows(directory: Path, *, size: int) -> Report:
    """One process writes `size` rows of some models, users and days."""
    store = directory / "usage.duckdb"
    with _Worker(directory, store, "rows", size) as writer:
        peaks = [int(writer.line()) for _ in range(10)]
        seconds = float(writer.line())
        writer.finish()
    stored, calls, used, file = _rows(
        store,
        """SELECT (SELECT count(*) FROM llm_usage), (SELECT count(DISTINCT span_id) FROM llm_usage),
            used_blocks * block_size, total_blocks * block_size FROM pragma_database_size()
            WHERE database_name = current_database()""",
    )[0]
    runs = [_usage("--by", "model,day", OTEL_LLM_STORE=str(store)) for _ in range(5)]
    report = Report(
        {
            "rows": stored,
            "rows a second, written and merged": round(size / seconds),
            "bytes a row, in use (spans and llm_usage)": round(used / max(stored, 1)),
            "bytes a row, in the file": round(file / max(stored, 1)),
            "`usage --by model,day`, ms": round(statistics.median(took for _, took in runs) * 1000),
            "peak RSS of the writer after a tenth of the rows, MB": round(peaks[0] / 2**20),
            "  after half of them": round(peaks[4] / 2**20),
            "  after all": round(peaks[-1] / 2**20),
        }
    )
    if not stored == calls == size:
        report.faults.append(f"{size} calls, {stored} rows, {calls} of them different")
    said = sum(row["calls"] for row in json.loads(runs[-1][0].stdout or "[]"))
    if said != size:
        report.faults.append(f"`otel-llm usage` counts {said} of {size}: {runs[-1][0].stderr}")
    report.must_be_empty("lines on stderr", _stderr_of(directory))
    return report


def _rows_worker(size: str) -> None:
    """Writes the rows, as fast as it can; prints its peak RSS after each tenth, and how long all took."""
    import otel_llm

    began = time.monotonic()
    calls = _calls(_sdk(), int(size))
    for tenth in range(1, 11):
        for _ in itertools.islice(calls, tenth * int(size) // 10 - (tenth - 1) * int(size) // 10):
            pass
        if tenth == 10 and not otel_llm.flush(600):
            raise RuntimeError("the rows could not be merged")
        print(_peak_rss(), flush=True)
    print(time.monotonic() - began, flush=True)
    sys.stdin.read()


def _sdk() -> Any:
    """A TracerProvider that keeps the account in the store of the settings, and nothing else."""
    from opentelemetry.sdk.trace import TracerProvider

    from otel_llm import wiring

    provider = TracerProvider()
    wiring.wire(provider, Path(os.environ["OTEL_LLM_STORE"]))
    return provider


def _calls(provider: Any, number: int) -> Iterator[None]:
    """Makes `number` model calls, as an instrumentation does that talks to nobody; yields after each."""
    from otel_llm import call as life
    from otel_llm import llm_context, semconv
    from otel_llm.usage import Usage

    tracer = provider.get_tracer("otel_llm.soak")
    first = time.time_ns() - _DAYS * _DAY_NS
    for index in range(number):
        model = _MODELS[index % len(_MODELS)]
        with llm_context("soak", user_id=f"user-{index % 50}"):
            call = life.ModelCall(
                tracer,
                semconv.CHAT,
                model,
                {semconv.PROVIDER: "openai", semconv.SERVER_ADDRESS: "api.openai.com"},
                started_ns=first + index * _DAYS * _DAY_NS // number,
            )
        call.finish(
            life.OK,
            usage=Usage(input_tokens=1000 + index % 977, output_tokens=index % 511, cache_read_tokens=index % 128),
            attributes={
                semconv.RESPONSE_ID: f"chatcmpl-{index:08x}",
                semconv.RESPONSE_MODEL: model,
                semconv.FINISH_REASONS: ("stop",),
            },
        )
        yield


def _peak_rss() -> int:
    """Bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---------------------------------------------------------------------------------------------------------------------
# costs
# ---------------------------------------------------------------------------------------------------------------------


def costs(directory: Path, *, size: int) -> Report:
    """What `size` spans cost: on their way into the journal, from there into the store, and over OTLP."""
    store = directory / "usage.duckdb"
    with _Worker(directory, store, "otlp_receiver") as receiver, _Worker(directory, store, "costs", size) as measured:
        measured.say(receiver.line())
        costs = json.loads(measured.line())
    report = Report(
        {
            "spans": size,
            "CPU of a journal record, in the app's thread, µs": costs["journal_us"],
            "rows a second, merged": costs["merge_rows_s"],
            "CPU of a row merged, µs": costs["merge_us"],
            "CPU of a span exported by OTLP/HTTP, µs": costs["otlp_us"],
        }
    )
    if costs["merged"] != size:
        report.faults.append(f"{size} spans, {costs['merged']} rows merged")
    report.must_be_empty("lines on stderr", _stderr_of(directory))
    return report


def _costs_worker(size: str) -> None:
    from otel_llm.store import ingest
    from otel_llm.store.journal import Journal
    from otel_llm.store.paths import StorePaths

    endpoint = sys.stdin.readline().strip()
    paths = StorePaths.of(os.environ["OTEL_LLM_STORE"])
    spans, records = _record(int(size))
    journal = Journal(paths.journal)

    def write(some: list[tuple[Any, dict[str, Any]]]) -> float:
        began = time.thread_time()
        for record, ids in some:
            journal.append(record, **ids)
        return time.thread_time() - began

    # The first rows pay for what is loaded once: DuckDB, the prices, the schema.
    warm, measured = records[:20], records[20:]
    write(warm)
    ingest.merge(paths.database)
    # Of many short measurements the median: interruptions by others only ever add.
    portions = [measured[at : at + 200] for at in range(0, len(measured), 200)]
    journal_us = statistics.median(write(portion) / len(portion) * 1e6 for portion in portions)
    journal.close()
    wall, cpu = time.monotonic(), time.process_time()
    merged = ingest.merge(paths.database, timeout=60).rows
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    figures = {
        "journal_us": round(journal_us, 2),
        "merge_rows_s": round(merged / wall),
        "merge_us": round(cpu / merged * 1e6, 1),
        "merged": merged + len(warm) // 2,
        "otlp_us": round(_export(spans, endpoint), 1),
    }
    print(json.dumps(figures), flush=True)
    sys.stdin.read()


def _record(number: int) -> tuple[list[ReadableSpan], list[tuple[Any, dict[str, Any]]]]:
    """That many ended spans, and what the account's processor would write of them to the journal."""
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from otel_llm.store.processor import UsageSpanProcessor

    spans: list[ReadableSpan] = []
    records: list[tuple[Any, dict[str, Any]]] = []

    class Collector(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            spans.append(span)

    class Notes:
        """Stands for a store."""

        def write(self, record: Any, **ids: Any) -> None:
            records.append((record, ids))

        def resource_for(self, resource: object) -> None:
            return None

    notes: Store | Any = Notes()
    provider = TracerProvider()
    provider.add_span_processor(UsageSpanProcessor(notes))
    provider.add_span_processor(Collector())
    for _ in _calls(provider, number):
        pass
    return spans, records


def _export(spans: list[ReadableSpan], endpoint: str) -> float:
    """µs of CPU for each span, exported in batches as the SDK's processor makes them."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
    exporter.export(spans[:1])  # opens the connection
    began = time.process_time()
    for at in range(0, len(spans), 512):
        if exporter.export(spans[at : at + 512]) is not SpanExportResult.SUCCESS:
            raise RuntimeError("the receiver did not take the spans")
    cpu = time.process_time() - began
    exporter.shutdown()
    return cpu / len(spans) * 1e6


def _otlp_receiver_worker() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.integration.otlp_receiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        print(receiver.endpoint("http/protobuf"), flush=True)
        sys.stdin.read()


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, tuple[Callable[..., Report], dict[str, int], dict[str, int]]] = {
    # Each with its sizes in the full form and in the short one.
    "kill": (kill, {"kills": 200}, {"kills": 12}),
    "many": (many, {"processes": 8, "calls": 5000}, {"processes": 4, "calls": 150}),
    "rows": (rows, {"size": 1_000_000}, {"size": 20_000}),
    "costs": (costs, {"size": 50_000}, {"size": 2_000}),
}

_WORKERS: dict[str, Callable[..., None]] = {
    "kill": _kill_worker,
    "many": _many_worker,
    "plain_reader": _plain_reader_worker,
    "usage": _usage_worker,
    "rows": _rows_worker,
    "costs": _costs_worker,
    "otlp_receiver": _otlp_receiver_worker,
}


def table(reports: Mapping[str, Report]) -> str:
    """The reports for a reader."""
    lines = []
    for name, report in reports.items():
        lines += ["", name, ""]
        for what, figure in report.figures.items():
            lines.append(f"    {what:56}{figure:>12,}" if not isinstance(figure, str) else f"    {what:56}{figure:>12}")
        lines += [f"    FAULT: {fault}" for fault in report.faults]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small sizes, for the test suite")
    parser.add_argument("--only", help="these scenarios, with commas")
    parser.add_argument("--json", action="store_true", help="figures and faults as JSON")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, *rest = arguments.worker
        _WORKERS[name](*rest)
        return
    chosen = arguments.only.split(",") if arguments.only else list(SCENARIOS)
    if unknown := sorted(set(chosen) - set(SCENARIOS)):
        parser.error(f"no such scenario: {', '.join(unknown)} (there are {', '.join(SCENARIOS)})")
    reports = {}
    for name in chosen:
        scenario, full, short = SCENARIOS[name]
        with tempfile.TemporaryDirectory() as directory:
            reports[name] = scenario(Path(directory), **(short if arguments.short else full))
        if not arguments.json:
            print(table({name: reports[name]}), flush=True)
    if arguments.json:
        print(json.dumps({name: asdict(report) for name, report in reports.items()}, indent=2))
    sys.exit(any(report.faults for report in reports.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    main()
