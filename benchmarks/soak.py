"""Whether the account can be trusted: what is lost when processes die, what many of them do to one store, what a million rows cost.

    python benchmarks/soak.py                     # everything at full size: `make soak`
    python benchmarks/soak.py --short             # the same in little, as `make test` runs it
    python benchmarks/soak.py --only kill,many --json

Scenarios:

    kill    processes that make calls all the while are killed with `kill -9` at random moments, time and again
    many    many processes write one store at once, while a plain DuckDB client and `otel-llm usage` read it in a loop
    rows    one process writes very many rows: its memory, the size of a row, the time of a query
    costs   what a record costs the app's thread, what a row costs the merge, beside the OTLP exporter with the same spans
    calls   one process makes very many calls, sync, async and by LangChain, of which many are refused, lost, left, dropped or
            cancelled: every call has its row, and nothing of it stays in the process
    serve   senders are killed and restarted at random moments while they send spans and account records to `otel-llm serve`, which
            is killed and restarted too: nothing that was answered is lost, and nothing counts twice

Each prints its figures, and its *faults*: what must never be. The exit code is 1 where there is one. Figures of time and size are
of the machine as much as of the code; no fault depends on them.

How `kill` knows the truth. Every process writes a ledger of its own, one append per line: `begin` before the call,
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
import multiprocessing
import os
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


@dataclass
class Report:
    """What a scenario found."""

    figures: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """What must never be; each with an example."""

    def none_of(self, what: str, found: Collection[Any]) -> None:
        """Notes how many were found, as a fault where there is any."""
        self.figures[what] = len(found)
        if found:
            example = next(iter(found.items() if isinstance(found, Mapping) else found))
            self.faults.append(f"{what.strip()}: {len(found)}, for example {example}")


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------

_FRESH = multiprocessing.get_context("spawn")
_FORKED = multiprocessing.get_context("forkserver")
"""Forks of a process that has imported what they need and has done nothing else: most of them live shorter than an import."""
_FORKED.set_forkserver_preload(
    ["__main__", "openai.resources.chat.completions", "otel_llm.setup.distro", "otel_llm.instrumentation.openai"]
)


class _Worker:
    """A function in a process of its own, with a pipe to talk through."""

    def __init__(
        self, context: BaseContext, directory: Path, work: Callable[..., None], *arguments: object, **variables: str
    ) -> None:
        """`work` gets the pipe and `arguments`; `variables` are set in its environment."""
        self._pipe, theirs = context.Pipe()
        self._stderr = _stderr(directory)
        environment = {"OTEL_LLM_STORE": str(_store(directory)), **variables}
        start = (work, theirs, self._stderr, environment, arguments)
        self._process: Any = context.Process(target=_work, args=start)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    def hear(self) -> Any:
        """What it says next; raises with its stderr where it ended instead."""
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"a worker ended early: {self._stderr.read_text(errors='replace')[-2000:]}") from None

    def tell(self, thing: object) -> None:
        self._pipe.send(thing)

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Tells it to end, and waits for that."""
        if kind is not None:
            self._process.kill()
        self._pipe.close()
        self._process.join()


def _work(
    work: Callable[..., None], pipe: Connection, stderr: Path, environment: dict[str, str], arguments: tuple[object]
) -> None:
    """What runs in a worker's process."""
    with stderr.open("ab") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    work(pipe, *arguments)


def _when_told(pipe: Connection) -> threading.Event:
    """Is set once this process is told something, or to end."""
    told = threading.Event()

    def wait() -> None:
        with contextlib.suppress(EOFError):
            pipe.recv()
        told.set()

    threading.Thread(target=wait, daemon=True).start()
    return told


def _store(directory: Path) -> Path:
    return directory / "usage.duckdb"


def _stderr(directory: Path) -> Path:
    return directory / "stderr.log"


_DROPPED: Final = re.compile(
    r"^Exception ignored in: <async_generator object "
    r"(?:Response\.aiter_\w+|(?:BoundAsyncStream|AsyncResponseStream|\w+ByteStream)\.__aiter__) at 0x\w+>\n"
    r"(?:Traceback.*\n(?: .*\n)*\w+.*\n)?",
    re.M,
)
"""What Python says now and then of a generator of the HTTP library that was dropped, with no instrumentation at all as well."""


def _stderr_lines(directory: Path) -> list[str]:
    """What processes have said. The first is all of it: a line alone may not tell whose it is."""
    lines = _DROPPED.sub("", _stderr(directory).read_text(errors="replace")).splitlines()
    return ["\n".join(lines[:20]), *lines[1:]] if lines else []


def _query(directory: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the store, by a connection that sees all that has ended."""
    from otel_llm.store.reader import connect

    with connect(_store(directory)) as connection:
        return list(connection.execute(sql).fetchall())


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


def kill(directory: Path, *, kills: int, processes: int = 4) -> Report:
    """Kills processes at random moments while they make calls."""
    began = time.monotonic()
    ledgers = (directory / f"ledger-{number:04d}" for number in itertools.count())
    with _local_openai() as server, contextlib.ExitStack() as stack:
        settings = {
            **server.environment,
            "OTEL_LLM_FLUSH_INTERVAL": "100ms",  # so that kills meet merges as well
            "OTEL_LLM_STREAM_USAGE": "always",
        }

        def start() -> _Worker:
            return stack.enter_context(_Worker(_FORKED, directory, _keep_calling, next(ledgers), **settings))

        running = [start() for _ in range(processes)]
        for _ in range(kills):
            # The oldest, since the others may not have begun to call yet; the moment is random all the same.
            victim = running.pop(0)
            victim.hear()
            time.sleep(random.uniform(0, 0.5))
            victim.kill()
            running.append(start())
        for worker in running:
            worker.hear()
            worker.tell("enough")
        for worker in running:
            worker.hear()
        took = time.monotonic() - began
        provider = {call.headers[_CALL_HEADER]: call for call in server.requests}
    report = Report({"processes": processes, "kills": kills, "seconds": round(took, 1)})
    _judge_kills(report, directory, provider)
    return report


_REPORTED = "CASE WHEN usage_source = 'reported' THEN {0} END"
_TOLD = f"""SELECT request_id, status, {_REPORTED.format("input_tokens")}, {_REPORTED.format("output_tokens")} FROM llm_usage"""
"""What the account has been told of each call: an estimate is no part of a bill."""


def _judge_kills(report: Report, directory: Path, provider: Mapping[str, Any]) -> None:
    begun: set[str] = set()
    ended: set[str] = set()
    for ledger in directory.glob("ledger-*"):
        for line in ledger.read_text().splitlines():
            event, _, call = line.partition(" ")
            (begun if event == "begin" else ended).add(call)
    rows = _query(directory, _TOLD)
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
    report.none_of("  lost", ended - found.keys())
    report.none_of("  recorded twice", {call: n for call, n in Counter(row[0] for row in rows).items() if n > 1})
    report.none_of("  with a wrong status", {c: found[c] for c in ended & found.keys() if found[c][0] != expected(c)})
    report.none_of("  with wrong tokens", {c: found[c] for c in ended & found.keys() if not billed(c)})
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
    report.none_of(
        "  recorded otherwise, or lost", {c: s for c, s in wrong.items() if c not in unseen and c not in over}
    )
    report.none_of("rows of no known call", found.keys() - begun)
    report.none_of("lines on stderr", _stderr_lines(directory))


def _was_answered(call: Any) -> bool:
    return bool(call.outcome != "disconnected")


def _keep_calling(pipe: Connection, path: Path) -> None:
    """Makes calls in several threads until told to end, or until the process does, and says so in the ledger at `path`."""
    import otel_llm

    otel_llm.instrument()
    import openai

    client = openai.OpenAI(max_retries=0)
    ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    told = _when_told(pipe)
    process = path.name.partition("-")[2]
    numbers = itertools.count()

    def call(kind: str) -> None:
        name = f"{process}-{kind}-{next(numbers)}"
        given = dict(_KINDS[kind][1])
        given["extra_headers"] = {**given.get("extra_headers", {}), _CALL_HEADER: name}
        question: Any = [{"role": "user", "content": f"Hello from {name}"}]
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
    call("whole")  # the first takes long, most of it before it gets to the hook
    for thread in threads:
        thread.start()
    pipe.send("calling")
    for thread in threads:
        thread.join()
    pipe.send("done")


def _local_openai(**options: Any) -> Any:
    """The local server of the examples, which are no package."""
    spec = importlib.util.spec_from_file_location("local_openai", ROOT / "examples" / "local_openai.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["local_openai"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LocalOpenAI(**options)


# ---------------------------------------------------------------------------------------------------------------------
# many
# ---------------------------------------------------------------------------------------------------------------------


def many(directory: Path, *, processes: int, calls: int) -> Report:
    """Many processes write one store at once, and others read it."""
    with contextlib.ExitStack() as stack:

        def start(context: BaseContext, work: Callable[..., None], *arguments: object, **variables: str) -> _Worker:
            return stack.enter_context(_Worker(context, directory, work, *arguments, **variables))

        writers = [start(_FORKED, _make_calls, calls, OPENAI_API_KEY="none") for _ in range(processes)]
        readers = [start(_FRESH, _read_plainly), start(_FRESH, _read_usage)]
        for worker in (*writers, *readers):
            worker.hear()
        began = time.monotonic()
        for writer in writers:
            writer.tell("begin")
        for writer in writers:
            writer.hear()
        took = time.monotonic() - began
        for reader in readers:
            reader.tell("enough")
        plain, usage = (reader.hear() for reader in readers)
    total = processes * calls
    rows, distinct, spans = _query(
        directory, "SELECT count(*), count(DISTINCT (trace_id, span_id)), (SELECT count(*) FROM spans) FROM llm_usage"
    )[0]
    report = Report(
        {
            "processes": processes,
            "calls of each": calls,
            "calls a second, all together": round(total / took),
            "rows": rows,
            "looks of the plain DuckDB reader": plain.looks,
        }
    )
    if not rows == distinct == spans == total:
        report.faults.append(f"{total} calls, {rows} rows, {distinct} of them different, {spans} spans")
    report.none_of("  and errors or refusals of it", plain.errors)
    report.figures["runs of `otel-llm usage`"] = usage.looks
    report.none_of("  and errors", usage.errors)
    report.none_of("lines on stderr", _stderr_lines(directory))
    return report


def _make_calls(pipe: Connection, calls: int) -> None:
    """Makes that many calls of the OpenAI client, whose HTTP transport is a mock."""
    import otel_llm

    otel_llm.instrument()
    import openai

    client = openai.OpenAI(http_client=openai.DefaultHttpxClient(transport=_mock_transport()))
    question: Any = [{"role": "user", "content": "Why is the sky blue?"}]
    pipe.send("ready")
    pipe.recv()
    for _ in range(calls):
        client.chat.completions.create(model="gpt-4o-mini", messages=question)
    pipe.send("done")


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
    errors: list[str] = field(default_factory=list)
    most: int = 0

    def saw(self, calls: int) -> None:
        """A look at the store; what was there once must stay."""
        self.looks += 1
        if calls < self.most:
            self.errors.append(f"{calls} calls after {self.most}")
        self.most = max(self.most, calls)


def _read_plainly(pipe: Connection) -> None:
    """Reads in a loop with DuckDB alone, as any client would."""
    import duckdb

    store = Path(os.environ["OTEL_LLM_STORE"])
    looks = _Looks()
    pipe.send("ready")
    told = _when_told(pipe)
    while not told.wait(0.05) or not looks.looks:
        if not store.exists():
            continue
        try:
            with duckdb.connect(str(store), read_only=True) as connection:
                looks.saw(connection.execute("SELECT count(*) FROM llm_usage").fetchall()[0][0])
        except duckdb.Error as error:
            looks.errors.append(str(error))
    pipe.send(looks)


def _read_usage(pipe: Connection) -> None:
    """Runs `otel-llm usage` in a loop, from when anything is recorded: before, a store named with `--store` is an error."""
    from otel_llm.store.journal.segments import list_segments
    from otel_llm.store.paths import StorePaths

    store = Path(os.environ["OTEL_LLM_STORE"])
    looks = _Looks()
    pipe.send("ready")
    told = _when_told(pipe)
    while not store.exists() and not list_segments(StorePaths.of(store).journal):
        time.sleep(0.01)
    while not told.is_set() or not looks.looks:
        done, _ = _usage(store)
        if done.returncode or done.stderr:
            looks.errors.append(f"exit code {done.returncode}: {done.stderr}")
        else:
            looks.saw(_calls_in(done.stdout))
    pipe.send(looks)


def _usage(store: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs `otel-llm usage`; returns what it said and the seconds it took."""
    command = [
        str(Path(sysconfig.get_path("scripts")) / "otel-llm"),
        "usage",
        "--format",
        "json",
        "--store",
        str(store),
    ]
    began = time.monotonic()
    done = subprocess.run([*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done, time.monotonic() - began


def _calls_in(usage: str) -> int:
    return sum(row["calls"] for row in json.loads(usage or "[]"))


# ---------------------------------------------------------------------------------------------------------------------
# rows
# ---------------------------------------------------------------------------------------------------------------------

_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "o3", "gpt-5")
_DAYS = 30
_DAY_NS = 86_400 * 10**9


def rows(directory: Path, *, size: int) -> Report:
    """One process writes `size` rows of some models, users and days."""
    with _Worker(_FRESH, directory, _write_rows, size) as writer:
        peaks = [writer.hear() for _ in range(10)]
        seconds = writer.hear()
    stored, different, used, file = _query(
        directory,
        """SELECT (SELECT count(*) FROM llm_usage), (SELECT count(DISTINCT span_id) FROM llm_usage),
            used_blocks * block_size, total_blocks * block_size FROM pragma_database_size()
            WHERE database_name = current_database()""",
    )[0]
    runs = [_usage(_store(directory), "--by", "model,day") for _ in range(3)]
    report = Report(
        {
            "rows": stored,
            "rows a second, written and merged": round(size / seconds),
            "bytes a row (of llm_usage and of spans, together)": round(used / max(stored, 1)),
            "  as the file has it, with blocks that are free again": round(file / max(stored, 1)),
            "`usage --by model,day`, ms": round(statistics.median(took for _, took in runs) * 1000),
            "highest RSS of the writer after a tenth of the rows, MB": round(peaks[0] / 2**20),
            "  after half of them": round(peaks[4] / 2**20),
            "  after all": round(peaks[-1] / 2**20),
        }
    )
    if not stored == different == size:
        report.faults.append(f"{size} calls, {stored} rows, {different} of them different")
    if {_calls_in(done.stdout) for done, _ in runs} != {size}:
        report.faults.append(f"`otel-llm usage` does not count {size} calls: {runs[-1][0]}")
    report.none_of("lines on stderr", _stderr_lines(directory))
    return report


def _write_rows(pipe: Connection, size: int) -> None:
    """Writes the rows as fast as it can. Says its highest RSS after each tenth, then how long all took."""
    import otel_llm

    began = time.monotonic()
    calls = _model_calls(_sdk(), size)
    for tenth in range(1, 11):
        for _ in itertools.islice(calls, tenth * size // 10 - (tenth - 1) * size // 10):
            pass
        if tenth == 10 and not otel_llm.flush(600):
            raise RuntimeError("the rows could not be merged")
        pipe.send(_highest_rss())
    pipe.send(time.monotonic() - began)


def _sdk() -> Any:
    """A TracerProvider that keeps the account in the store of the settings, and nothing else."""
    from opentelemetry.sdk.trace import TracerProvider

    from otel_llm.setup import wiring

    provider = TracerProvider()
    wiring.wire(provider, Path(os.environ["OTEL_LLM_STORE"]))
    return provider


def _model_calls(provider: Any, number: int) -> Iterator[None]:
    """Makes `number` model calls, as an instrumentation does that talks to nobody; yields after each."""
    from otel_llm import llm_context
    from otel_llm.calls import model_call
    from otel_llm.calls.tracing import Tracer
    from otel_llm.conventions import semconv
    from otel_llm.conventions.token_usage import Usage

    tracer = Tracer("otel_llm.soak", provider)
    first = time.time_ns() - _DAYS * _DAY_NS
    for index in range(number):
        model = _MODELS[index % len(_MODELS)]
        with llm_context("soak", user_id=f"user-{index % 50}"):
            call = model_call.ModelCall(
                tracer,
                semconv.CHAT,
                model,
                {semconv.PROVIDER: "openai", semconv.SERVER_ADDRESS: "api.openai.com"},
                # Day by day, and each day's within an hour: prices are looked up by the half hour.
                started_ns=first + index * _DAYS // number * _DAY_NS + index * 10**6 % (3600 * 10**9),
            )
        call.finish(
            semconv.OK,
            usage=Usage(input=1000 + index % 977, output=index % 511, cache_read=index % 128),
            attributes={
                semconv.RESPONSE_ID: f"chatcmpl-{index:08x}",
                semconv.RESPONSE_MODEL: model,
                semconv.FINISH_REASONS: ("stop",),
            },
        )
        yield


def _highest_rss() -> int:
    """Bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---------------------------------------------------------------------------------------------------------------------
# costs
# ---------------------------------------------------------------------------------------------------------------------


def costs(directory: Path, *, size: int) -> Report:
    """What `size` spans cost: on their way into the journal, from there into the store, and over OTLP."""
    with (
        _Worker(_FRESH, directory, _receive_otlp) as receiver,
        _Worker(_FRESH, directory, _measure_costs, size, receiver.hear()) as measured,
    ):
        figures = measured.hear()
    merged = figures.pop("rows")
    report = Report({"spans": size, **figures})
    if merged != size:
        report.faults.append(f"{size} spans, {merged} rows")
    report.none_of("lines on stderr", _stderr_lines(directory))
    return report


def _measure_costs(pipe: Connection, size: int, endpoint: str) -> None:
    from otel_llm.store.journal.writer import Journal
    from otel_llm.store.merge import ingest
    from otel_llm.store.paths import StorePaths

    paths = StorePaths.of(os.environ["OTEL_LLM_STORE"])
    spans, records = _record(size)
    journal = Journal(paths.journal)

    def write(some: list[tuple[Any, dict[str, Any]]]) -> float:
        began = time.thread_time()
        for record, ids in some:
            journal.append(record, **ids)
        return time.thread_time() - began

    # The first rows pay for what is loaded once: DuckDB, the prices, the schema.
    write(records[:20])
    first = ingest.merge(paths.database, timeout=60).rows
    # Of many short measurements the median: interruptions by others only ever add.
    portions = [records[at : at + 200] for at in range(20, len(records), 200)]
    journal_cpu = statistics.median(write(portion) / len(portion) for portion in portions)
    journal.close()
    wall, cpu = time.monotonic(), time.process_time()
    rest = ingest.merge(paths.database, timeout=60).rows
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    pipe.send(
        {
            "CPU of a journal record, in the app's thread, µs": round(journal_cpu * 1e6, 2),
            "rows a second, merged": round(rest / wall),
            "CPU of a row merged, µs": round(cpu / rest * 1e6, 1),
            "CPU of a span exported over OTLP/HTTP, µs": round(_export(spans, endpoint) * 1e6, 1),
            "rows": first + rest,
        }
    )


def _record(number: int) -> tuple[list[ReadableSpan], list[tuple[Any, dict[str, Any]]]]:
    """That many ended spans, and what the account's processor would write of them to the journal."""
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from otel_llm.store.usage_processor import UsageSpanProcessor

    spans: list[ReadableSpan] = []
    records: list[tuple[Any, dict[str, Any]]] = []

    class Collector(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            spans.append(span)

    class Notes:
        """Stands for a store."""

        resource = None

        def write(self, record: Any, **ids: Any) -> None:
            records.append((record, ids))

        def resource_for(self, resource: object) -> None:
            return None

        def flush(self, timeout: float) -> bool:
            return True

    notes: Any = Notes()
    provider = TracerProvider()
    provider.add_span_processor(UsageSpanProcessor(notes))
    provider.add_span_processor(Collector())
    for _ in _model_calls(provider, number):
        pass
    return spans, records


def _export(spans: list[ReadableSpan], endpoint: str) -> float:
    """Seconds of CPU for each span, exported in batches as the SDK's processor makes them."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")
    exporter.export(spans[:1])  # opens the connection
    began = time.process_time()
    for at in range(0, len(spans), 512):
        if exporter.export(spans[at : at + 512]) is not SpanExportResult.SUCCESS:
            raise RuntimeError("the receiver did not take the spans")
    cpu = time.process_time() - began
    exporter.shutdown()  # type: ignore[no-untyped-call]
    return cpu / len(spans)


def _receive_otlp(pipe: Connection) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.integration.otlp_receiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        pipe.send(receiver.endpoint("http/protobuf"))
        _when_told(pipe).wait()


# ---------------------------------------------------------------------------------------------------------------------
# calls
# ---------------------------------------------------------------------------------------------------------------------

_OUTCOMES: dict[str, frozenset[str]] = {
    # How a call that the app ended in this way may be recorded. One that was cancelled may have been over before.
    "whole": frozenset({"ok"}),
    "read": frozenset({"ok"}),
    "closed": frozenset({"partial"}),
    "dropped": frozenset({"partial"}),
    "refused": frozenset({"error"}),
    "broken": frozenset({"error"}),
    "cancelled": frozenset({"cancelled", "ok"}),
}
_WEIGHTS = (30, 30, 10, 5, 10, 5, 10)
_ENOUGH_BYTES = 2_000
"""Growth of the process for each call that is taken for a leak; a span with its attributes that nobody frees is more."""
_FEW = 100
"""Objects that may be there or not, by the moment; a leak is one for each call, or each of a kind of calls."""


def calls(directory: Path, *, size: int) -> Report:
    """One process makes calls of every kind, which end in every way, and keeps nothing of them."""
    with _local_openai(keep="brief") as server:
        settings = {**server.environment, "OTEL_LLM_STREAM_USAGE": "always"}
        with _Worker(_FRESH, directory, _call_in_every_way, size, **settings) as worker:
            made, tokens, half, end, seconds = worker.hear()
    rows = _query(directory, _TOLD)
    found = {row[0]: row[1:] for row in rows}
    growth = (end["highest RSS"] - half["highest RSS"]) / max(size // 2, 1)
    report = Report(
        {
            "calls": len(made),
            "rows": len(rows),
            **{f"  recorded as {status}": number for status, number in Counter(row[1] for row in rows).most_common()},
            "calls a second": round(len(made) / seconds),
            "highest RSS after half of the calls, MB": round(half["highest RSS"] / 2**20),
            "  after all": round(end["highest RSS"] / 2**20),
            "objects of ours and of the SDK's spans after half": half["objects"],
            "  after all of them": end["objects"],
        }
    )
    report.none_of("calls lost", set(made) - found.keys())
    report.none_of("calls recorded twice", {c: n for c, n in Counter(row[0] for row in rows).items() if n > 1})
    report.none_of("rows of no known call", found.keys() - set(made))
    known = {call: found[call] for call in made if call in found}
    report.none_of(
        "calls with a wrong status", {c: v for c, v in known.items() if v[0] not in _OUTCOMES[c.split("-")[1]]}
    )
    # Every call asks the same, so every answer costs the same; what was left, refused or lost has told nothing.
    said = {c: v for c, v in known.items() if v[1:] != (tuple(tokens) if v[0] == "ok" else (None, None))}
    report.none_of("calls with wrong tokens", said)
    report.none_of("spans left open", end["open"])
    report.none_of("entries left in maps of ours", {name: n for name, n in end["maps"].items() if n})
    if end["objects"] > half["objects"] + _FEW:
        report.faults.append(f"{end['objects'] - half['objects']} more objects after all calls than after half of them")
    if size >= 50_000 and growth > _ENOUGH_BYTES:  # what a merge takes for once is more than few calls could leak
        report.faults.append(f"{growth:.0f} bytes of memory more for each call")
    report.none_of("lines on stderr", _stderr_lines(directory))
    return report


def _call_in_every_way(pipe: Connection, size: int) -> None:
    # The provider is ours, so that what is open can be counted.
    from opentelemetry.sdk.trace import TracerProvider

    import otel_llm

    provider = TracerProvider()
    spans = _open_spans()
    provider.add_span_processor(spans)
    otel_llm.instrument(tracer_provider=provider, store=Path(os.environ["OTEL_LLM_STORE"]))
    callers = _Callers(spans)
    callers.run(10)  # imports, connections, the first merge
    began = time.monotonic()
    callers.run(size // 2)
    half = callers.left_behind()
    callers.run(size - size // 2)
    seconds = time.monotonic() - began
    end = callers.left_behind()
    pipe.send((callers.made, callers.tokens, half, end, seconds))


def _open_spans() -> Any:
    """A span processor that knows which spans have not ended, and which calls have begun."""
    from opentelemetry.sdk.trace import Span, SpanProcessor

    from otel_llm.conventions import semconv

    class OpenSpans(SpanProcessor):
        def __init__(self) -> None:
            self.open: dict[int, str] = {}
            self.begun: set[str] = set()

        def on_start(self, span: Span, parent_context: object = None) -> None:
            self.open[span.get_span_context().span_id] = span.name
            told = span.attributes or {}
            if told[semconv.OPERATION] == semconv.CHAT:
                self.begun.add(str(told[semconv.REQUEST_ID]))

        def on_end(self, span: ReadableSpan) -> None:
            self.open.pop(span.get_span_context().span_id, None)  # type: ignore[union-attr]

    return OpenSpans()


class _Callers:
    """Threads and tasks that make calls in every way, until there were enough."""

    def __init__(self, spans: Any) -> None:
        import asyncio

        import openai
        from langchain_openai import ChatOpenAI

        self._asyncio = asyncio
        self._spans = spans
        self._numbers = itertools.count()
        self._errors = openai.APIError, *_lost_connection()
        self._runner = asyncio.Runner()
        self._client = openai.OpenAI(max_retries=0)
        self._async_client = openai.AsyncOpenAI(max_retries=0)
        more: dict[str, Any] = {"max_retries": 0, "stream_usage": True}
        self._models = {
            behaviour: ChatOpenAI(model="gpt-4o-mini", default_headers={"x-local-behaviour": behaviour}, **more)
            for behaviour in ("", "error-404", "stream-broken")
        }
        self.made: list[str] = []
        self.tokens: tuple[int, int] = (0, 0)

    def run(self, number: int) -> None:
        """Makes that many calls; waits for all of them."""
        last = len(self.made) + number

        def work() -> None:
            source = random.Random(number)
            while len(self.made) < last:
                self._call(source)

        async def work_async() -> None:
            source = random.Random(number + 1)
            while len(self.made) < last:
                await self._call_async(source)

        async def all_async() -> None:
            await asyncio.gather(*(work_async() for _ in range(4)))

        asyncio = self._asyncio
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        self._runner.run(all_async())
        for thread in threads:
            thread.join()

    def left_behind(self) -> dict[str, Any]:
        """What there still is of the calls, once everything that ends has ended."""
        import gc

        import otel_llm
        from otel_llm.calls import abandoned
        from otel_llm.instrumentation.langchain import LangChainInstrumentor
        from otel_llm.instrumentation.openai._observe import background

        gc.collect()
        self._runner.run(self._asyncio.sleep(0))  # asynchronous generators are closed by the event loop
        gc.collect()
        if not otel_llm.flush(600):
            raise RuntimeError("the rows could not be merged")
        runs = LangChainInstrumentor()._installed[0]
        maps = {
            "runs": len(runs),
            "background responses": len(background._calls),
            "abandoned calls": len(abandoned._abandoned),
        }
        ours = ("otel_llm.", "opentelemetry.sdk.trace")
        objects = sum(str(type(one).__module__).startswith(ours) for one in gc.get_objects())
        return {"open": dict(self._spans.open), "maps": maps, "objects": objects, "highest RSS": _highest_rss()}

    def _next(self, source: random.Random, *, is_async: bool) -> tuple[str, str, dict[str, Any]]:
        """A call's name, the way it is to end, and its arguments."""
        end = source.choices(list(_OUTCOMES), _WEIGHTS)[0]
        if end == "cancelled" and not is_async:
            end = "whole"
        given: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is it blue?"}]}
        if end in ("read", "closed", "dropped", "broken"):
            given["stream"] = True
        if behaviour := {"refused": "error-404", "broken": "stream-broken"}.get(end):
            given["extra_headers"] = {"x-local-behaviour": behaviour}
        name = f"{next(self._numbers)}-{end}"
        self.made.append(name)
        return name, end, given

    def _model(self, given: dict[str, Any]) -> Any:
        return self._models[given.get("extra_headers", {}).get("x-local-behaviour", "")]

    def _call(self, source: random.Random) -> None:
        import otel_llm

        name, end, given = self._next(source, is_async=False)
        with otel_llm.llm_context("soak", request_id=name), contextlib.suppress(*self._errors):
            if source.random() < 0.3:
                self._by_langchain(end, given)
                return
            answer = self._client.chat.completions.create(**given)
            match end:
                case "whole":
                    self.tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
                case "closed":
                    next(answer)
                    answer.close()
                case "dropped":
                    next(answer)
                case _:
                    for _ in answer:
                        pass

    def _by_langchain(self, end: str, given: dict[str, Any]) -> None:
        model, question = self._model(given), given["messages"]
        if "stream" not in given:
            model.invoke(question)
            return
        chunks = model.stream(question)
        if end in ("closed", "dropped"):
            next(chunks)
            if end == "closed":
                chunks.close()
            return
        for _ in chunks:
            pass

    async def _call_async(self, source: random.Random) -> None:
        import otel_llm

        asyncio = self._asyncio
        name, end, given = self._next(source, is_async=True)

        async def call() -> None:
            if source.random() < 0.3:
                await self._by_langchain_async(end, given)
                return
            answer = await self._async_client.chat.completions.create(**given)
            match end:
                case "closed":
                    await anext(answer)
                    await answer.close()
                case "dropped":
                    await anext(answer)
                case "read" | "broken":
                    async for _ in answer:
                        pass

        with otel_llm.llm_context("soak", request_id=name), contextlib.suppress(*self._errors):
            if end != "cancelled":
                await call()
                return
            task = asyncio.ensure_future(call())
            while name not in self._spans.begun:  # earlier, there is no call
                await asyncio.sleep(0)
            await asyncio.wait({task}, timeout=source.uniform(0, 0.003))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _by_langchain_async(self, end: str, given: dict[str, Any]) -> None:
        model, question = self._model(given), given["messages"]
        if "stream" not in given:
            await model.ainvoke(question)
            return
        chunks = model.astream(question)
        if end in ("closed", "dropped"):
            await anext(chunks)
            if end == "closed":
                await chunks.aclose()
            return
        async for _ in chunks:
            pass


def _lost_connection() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises in mid-stream: the HTTP library's own error."""
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx  # type: ignore[no-redef]

    return (httpx.TransportError,)


# ---------------------------------------------------------------------------------------------------------------------
# serve
# ---------------------------------------------------------------------------------------------------------------------

_SENT_AT_ONCE = 20
"""Calls in a request."""


def serve(directory: Path, *, senders: int, kills: int) -> Report:
    """Kills senders and the receiver at random moments, each of which begins again where it was."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        grpc_port, http_port = _free_ports(2)
        server = stack.enter_context(_Receiver(directory, grpc_port, http_port))

        def start(number: int) -> _Worker:
            return stack.enter_context(
                _Worker(_FRESH, directory, _keep_sending, directory, number, grpc_port, http_port)
            )

        running = {number: start(number) for number in range(senders)}
        for worker in running.values():
            worker.hear()
        for kill in range(kills):
            time.sleep(random.uniform(0, 0.5))
            if kill % 4 == 3:
                server.kill()
                server.start()
                continue
            victim = random.choice(list(running))
            running[victim].kill()
            running[victim] = start(victim)
            running[victim].hear()  # it sends by now: else a short life would be spent on imports alone
        for worker in running.values():
            worker.tell("enough")
        for worker in running.values():
            worker.hear()
        took = time.monotonic() - began
        server.stop()
    report = Report({"senders": senders, "kills": kills, "seconds": round(took, 1)})
    _judge_sent(report, directory, senders)
    return report


def _judge_sent(report: Report, directory: Path, senders: int) -> None:
    answered = {number: int((directory / f"answered-{number}").read_text()) for number in range(senders)}
    expected = {}
    for number, requests in answered.items():
        for call in range(requests * _SENT_AT_ONCE):
            expected[f"{number + 1:016x}{call + 1:016x}"] = _sent_as(call)
    tokens = "trace_id, input_tokens, module, row_version"
    rows = _query(directory, f"SELECT {tokens} FROM llm_usage")
    found = {trace: (count, module is not None, version) for trace, count, module, version in rows}
    figures = report.figures
    figures["requests that were answered"] = sum(answered.values())
    figures["calls in them"] = len(expected)
    report.none_of("  lost", expected.keys() - found.keys())
    report.none_of("  recorded twice", {row: n for row, n in Counter(row[0] for row in rows).items() if n > 1})
    wrong = {}
    for trace in expected.keys() & found.keys():
        sent = expected[trace]
        told = found[trace]
        # A span that came first makes a row of its own, which the account record then follows.
        versions = (1, 2) if sent == {"span", "record"} else (2,) if sent == {"record", "again"} else (1,)
        if told[:2] != (int(trace[16:], 16), "record" in sent) or told[2] not in versions:
            wrong[trace] = told
    report.none_of("  with a wrong row", wrong)
    report.none_of("rows of no known call", found.keys() - expected.keys())
    spans = _query(directory, "SELECT count(*), count(DISTINCT trace_id) FROM spans")[0]
    figures["spans"] = spans[0]
    with_span = sum("span" in sent for sent in expected.values())
    report.none_of("  lost or twice", [spans] if spans != (with_span, with_span) else [])
    report.none_of("lines on stderr", _stderr_lines(directory))


def _sent_as(call: int) -> frozenset[str]:
    """How a call is sent: as a span, as an account record (once more in another version), or as both."""
    if call % 5 == 0:
        return frozenset(("span", "record"))
    if call % 5 == 1:
        return frozenset(("record", "again"))
    return frozenset(("span",)) if call % 5 == 2 else frozenset(("record",))


def _keep_sending(pipe: Connection, directory: Path, number: int, grpc_port: int, http_port: int) -> None:
    """Sends requests, over gRPC or HTTP by turns, each until it is answered, and notes how many were; until told to end."""
    told = _when_told(pipe)
    note = directory / f"answered-{number}"
    done = int(note.read_text()) if note.exists() else 0
    pipe.send("sending")
    with _connection(grpc_port, http_port) as send:
        while not told.is_set():
            calls = range(done * _SENT_AT_ONCE, (done + 1) * _SENT_AT_ONCE)
            for method, body in _requests(number, calls):
                while not send(done % 2 == 0, method, body):
                    time.sleep(0.05)
            done += 1
            # By a rename: who is killed in the middle has not noted it, and sends the request again.
            fresh = note.with_suffix(".new")
            fresh.write_text(str(done))
            fresh.rename(note)
    pipe.send("done")


def _requests(number: int, calls: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """The spans and the account records of some calls, as OTLP."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from otel_llm.fleet import usage_log_record
    from otel_llm.fleet.wire_row import RETRACTED, USAGE_COLUMNS

    spans = ExportTraceServiceRequest()
    of_scope = spans.resource_spans.add().scope_spans.add()
    of_scope.scope.name = "soak"
    rows = []
    for call in calls:
        identity = {"trace_id": f"{number + 1:016x}{call + 1:016x}", "span_id": f"{call + 1:016x}"}
        start_ns = 1_795_953_600 * 10**9 + call * 10**9
        sent = _sent_as(call)
        if "span" in sent:
            span = of_scope.spans.add(start_time_unix_nano=start_ns, end_time_unix_nano=start_ns + 10**6, name="chat m")
            span.trace_id, span.span_id = (bytes.fromhex(identity[name]) for name in ("trace_id", "span_id"))
            for name, text in {
                "operation.name": "chat",
                "request.model": "m",
                "response.id": identity["trace_id"],
            }.items():
                span.attributes.add(key=f"gen_ai.{name}").value.string_value = text
            span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = call + 1
        if "record" in sent:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(start_ns // 10**9))
            told = {
                "started_at": moment,
                "input_tokens": call + 1,
                "module": "soak",
                "response_id": identity["trace_id"],
            }
            row = dict.fromkeys(USAGE_COLUMNS) | {RETRACTED: False} | identity | told
            versions = (2, 1, 2) if "again" in sent else (1,)  # the earlier one may come late
            rows += [row | {"row_version": version} for version in versions]
    yield "traces", spans.SerializeToString()
    yield "logs", usage_log_record.request(rows).SerializeToString()


@contextlib.contextmanager
def _connection(grpc_port: int, http_port: int) -> Iterator[Callable[[bool, str, bytes], bool]]:
    """A function that sends a request, over gRPC or else HTTP, and says whether it was answered with a yes."""
    import grpc
    import httpx

    names = {"traces": "trace.v1.TraceService", "logs": "logs.v1.LogsService"}
    headers = {"Content-Type": "application/x-protobuf"}
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, httpx.Client(timeout=60) as client:

        def send(over_grpc: bool, signal: str, body: bytes) -> bool:
            try:
                if over_grpc:
                    method = f"/opentelemetry.proto.collector.{names[signal]}/Export"
                    return not channel.unary_unary(method)(body, timeout=60)
                answer = client.post(f"http://127.0.0.1:{http_port}/v1/{signal}", content=body, headers=headers)
                return answer.status_code == 200 and not answer.content
            except (grpc.RpcError, httpx.HTTPError):
                return False

        yield send


class _Receiver:
    """`otel-llm serve`, at the same ports each time that it starts."""

    def __init__(self, directory: Path, grpc_port: int, http_port: int) -> None:
        self._directory = directory
        at = ["--grpc", f"127.0.0.1:{grpc_port}", "--http", f"127.0.0.1:{http_port}"]
        self._command = [str(Path(sysconfig.get_path("scripts")) / "otel-llm"), "serve", *at]

    def start(self) -> None:
        """Returns when it listens."""
        settings = {"OTEL_LLM_STORE": str(_store(self._directory)), "OTEL_LLM_FLUSH_INTERVAL": "100ms"}
        with _stderr(self._directory).open("ab") as stderr:
            self._process = subprocess.Popen(
                self._command, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(_stderr(self._directory).read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        """As systemd does it."""
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, tuple[Callable[..., Report], dict[str, int], dict[str, int]]] = {
    # Each with its full size and with its short one.
    "kill": (kill, {"kills": 200}, {"kills": 12}),
    "many": (many, {"processes": 8, "calls": 5000}, {"processes": 4, "calls": 150}),
    "rows": (rows, {"size": 1_000_000}, {"size": 5_000}),
    "costs": (costs, {"size": 50_000}, {"size": 2_000}),
    "calls": (calls, {"size": 100_000}, {"size": 2_000}),
    "serve": (serve, {"senders": 20, "kills": 200}, {"senders": 3, "kills": 8}),
}


def table(name: str, report: Report) -> str:
    """A report for a reader."""
    lines = [f"{name}\n"]
    lines += [f"    {what:58}{figure:>12,}" for what, figure in report.figures.items()]
    lines += [f"    FAULT: {fault}" for fault in report.faults]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small sizes, for the test suite")
    parser.add_argument("--only", help="these scenarios, with commas")
    parser.add_argument("--json", action="store_true", help="figures and faults as JSON")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(SCENARIOS)
    if unknown := sorted(set(chosen) - set(SCENARIOS)):
        parser.error(f"no such scenario: {', '.join(unknown)} (there are {', '.join(SCENARIOS)})")
    for name in [name for name in os.environ if name.startswith(("OTEL_", "OPENAI_"))]:
        del os.environ[name]  # a developer's settings are not what is measured
    reports = {}
    for name in chosen:
        scenario, full, short = SCENARIOS[name]
        with tempfile.TemporaryDirectory() as directory:
            reports[name] = scenario(Path(directory), **(short if arguments.short else full))
        if not arguments.json:
            print(table(name, reports[name]), flush=True)
    if arguments.json:
        print(json.dumps({name: asdict(report) for name, report in reports.items()}, indent=2))
    sys.exit(any(report.faults for report in reports.values()))


if __name__ == "__main__":
    main()
