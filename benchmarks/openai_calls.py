"""What instrumentation costs a call of the OpenAI client: ours beside its peers', in one run.

    python benchmarks/openai_calls.py                  # the table
    python benchmarks/openai_calls.py --json           # every figure, with the quartiles of the rounds
    python benchmarks/openai_calls.py --only otel-llm,official --rounds 100

A figure is the CPU time of the calling thread that a candidate adds to the bare client: per call, and per chunk of a stream.
The provider is a mock transport inside the process, so that no network is in it. Every candidate has a BatchSpanProcessor with
an exporter that drops what it gets, and captures no message content where it can be told not to.

How the figures are kept honest on a busy machine:

- Each candidate is a process of its own (patches of two do not meet), and all of them live through the whole run.
- The run is many short rounds. In each, every candidate in turn measures the same few calls, in an order that rotates.
- A measurement is the best of three in a row, each of a few milliseconds: cold caches and interruptions only ever add.
- A candidate's figure is compared with the bare client's of the same round only; the median over the rounds is shown.
- CPU time, not wall time: what other processes do is in it only as far as they take caches and a core's other half (or, on a
  virtual machine, the core). On a busy machine the figures grow all the same; the ratios are what to compare.

What a candidate does on other threads (export, and for us the merge into DuckDB) is not in these figures.

Peers that are not installed are named and left out: `pip install logfire` adds it to what `pip install .[bench]` has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# ---------------------------------------------------------------------------------------------------------------------
# The provider
# ---------------------------------------------------------------------------------------------------------------------

MODEL = "gpt-4o-mini"
MESSAGES = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "Why is the sky blue?"},
]
ANSWER = "Because air scatters short waves of light more than long ones."
LONG, SHORT = "long", "short"
"""Sent as `user`: which of its two streams the provider is to answer with."""

_CHAT_USAGE = {
    "prompt_tokens": 24,
    "completion_tokens": 13,
    "total_tokens": 37,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "gpt-4o-mini-2024-07-18",
    "service_tier": "default",
    "system_fingerprint": "fp_1",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": None,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None, "annotations": []},
        }
    ],
    "usage": _CHAT_USAGE,
}
_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_760_000_000,
    "status": "completed",
    "model": "gpt-4o-mini-2024-07-18",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 24,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 13,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 37,
    },
}
_EMBEDDING = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0123] * 64}],
    "usage": {"prompt_tokens": 6, "total_tokens": 6},
}


def _stream(chunks: int) -> bytes:
    """A chat stream of `chunks` chunks with content, and those that OpenAI sends round them."""
    common = {**_CHAT, "object": "chat.completion.chunk"}
    del common["choices"], common["usage"]

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**common, "choices": [choice], "usage": None}

    events = [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": " word"}) for _ in range(chunks)),
        chunk({}, "stop"),
        {**common, "choices": [], "usage": _CHAT_USAGE},
    ]
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def _transport(chunks: int) -> Any:
    """The provider as a transport of the HTTP library that the installed openai stands on."""
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx  # type: ignore[no-redef]

    answers = {
        path: json.dumps(body).encode()
        for path, body in (
            ("/v1/chat/completions", _CHAT),
            ("/v1/responses", _RESPONSE),
            ("/v1/embeddings", _EMBEDDING),
        )
    }
    streams = {f'"user":"{kind}"'.encode(): _stream(length) for kind, length in ((LONG, chunks), (SHORT, 0))}
    as_json, as_events = {"content-type": "application/json"}, {"content-type": "text/event-stream"}

    def answer(request: Any) -> Any:
        body = request.content
        if b'"stream":true' in body:
            return httpx.Response(200, headers=as_events, content=next(streams[key] for key in streams if key in body))
        return httpx.Response(200, headers=as_json, content=answers[request.url.path])

    return httpx.MockTransport(answer)


# ---------------------------------------------------------------------------------------------------------------------
# The candidates: what each installs in its process
# ---------------------------------------------------------------------------------------------------------------------


class _Spans:
    """A TracerProvider as an app has it: a batch processor, and an exporter that counts and drops."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

        spans = self

        class NullExporter(SpanExporter):
            def export(self, exported: Sequence[ReadableSpan]) -> SpanExportResult:
                spans._count += len(exported)
                return SpanExportResult.SUCCESS

        self._count = 0
        self.processor = BatchSpanProcessor(NullExporter())
        self.provider = TracerProvider()
        self.provider.add_span_processor(self.processor)

    def count(self) -> int:
        """Spans exported so far, those that have ended included."""
        self.processor.force_flush()
        return self._count


def _bare(spans: _Spans, directory: Path) -> None:
    """The client as it is."""


def _otel_llm(spans: _Spans, directory: Path) -> None:
    import otel_llm

    otel_llm.instrument(tracer_provider=spans.provider)


def _otel_llm_store(spans: _Spans, directory: Path) -> None:
    import otel_llm

    otel_llm.instrument(tracer_provider=spans.provider, store=directory / "usage.duckdb")


def _official(spans: _Spans, directory: Path) -> None:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=spans.provider)


def _openinference(spans: _Spans, directory: Path) -> None:
    from openinference.instrumentation import TraceConfig
    from openinference.instrumentation.openai import OpenAIInstrumentor

    config = TraceConfig(hide_inputs=True, hide_outputs=True)
    OpenAIInstrumentor().instrument(tracer_provider=spans.provider, config=config)


def _openllmetry(spans: _Spans, directory: Path) -> None:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=spans.provider)


def _logfire(spans: _Spans, directory: Path) -> None:
    import logfire

    # Its own provider, with our processor; nothing leaves the process.
    logfire.configure(
        send_to_logfire=False,
        console=False,
        metrics=False,
        inspect_arguments=False,
        config_dir=directory,
        data_dir=directory,
        additional_span_processors=[spans.processor],
    )
    logfire.instrument_openai()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to instrument the client."""

    name: str
    install: Callable[[_Spans, Path], None]
    distribution: str | None = None
    """What it needs; None for what is here."""
    note: str | None = None
    """What to know when reading its figures."""

    @property
    def version(self) -> str | None:
        return importlib.metadata.version(self.distribution) if self.distribution else None


BARE, REFERENCE = "bare", "official"
CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate(BARE, _bare),
        Candidate("otel-llm", _otel_llm, note="spans only"),
        Candidate("otel-llm+store", _otel_llm_store, note="and the account: journal, and merges in the background"),
        Candidate(REFERENCE, _official, "opentelemetry-instrumentation-genai-openai"),
        Candidate("openinference", _openinference, "openinference-instrumentation-openai", "content hidden"),
        Candidate("openllmetry", _openllmetry, "opentelemetry-instrumentation-openai", "content off"),
        Candidate("logfire", _logfire, "logfire", "records content; it cannot be told not to"),
    )
}

# ---------------------------------------------------------------------------------------------------------------------
# The measurements: in the candidate's process
# ---------------------------------------------------------------------------------------------------------------------

Case = Callable[[int], Awaitable[float]]
"""Measures with so many calls; returns nanoseconds of this thread's CPU time per call (or chunk)."""

_now = time.thread_time_ns
_REPEATS = 3


async def _best(call: Callable[[], Awaitable[None]], calls: int) -> float:
    """Nanoseconds per call: of `_REPEATS` measurements in a row, the one that was disturbed least."""
    spent = []
    for _ in range(_REPEATS):
        begin = _now()
        for _ in range(calls):
            await call()
        spent.append(_now() - begin)
    return min(spent) / calls


def _cases(chunks: int) -> dict[str, Case]:
    import openai

    transport = _transport(chunks)
    # Without the environment's proxies: they would take precedence over the transport.
    settings: dict[str, Any] = {"api_key": "none", "base_url": "https://api.openai.com/v1", "max_retries": 0}
    client = openai.OpenAI(**settings, http_client=openai.DefaultHttpxClient(transport=transport, trust_env=False))
    client_async = openai.AsyncOpenAI(
        **settings, http_client=openai.DefaultAsyncHttpxClient(transport=transport, trust_env=False)
    )
    chat: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0.2}
    stream = {**chat, "stream": True, "stream_options": {"include_usage": True}}
    response: dict[str, Any] = {"model": MODEL, "input": "Why is the sky blue?"}
    embedding: dict[str, Any] = {"model": "text-embedding-3-small", "input": "sky", "encoding_format": "float"}

    def call(create: Callable[..., Any], arguments: dict[str, Any]) -> Case:
        async def once() -> None:
            create(**arguments)

        return lambda calls: _best(once, calls)

    async def chat_async() -> None:
        await client_async.chat.completions.create(**chat)

    async def drain(kind: str) -> None:
        for _ in client.chat.completions.create(**stream, user=kind):
            pass

    async def drain_async(kind: str) -> None:
        async for _ in await client_async.chat.completions.create(**stream, user=kind):
            pass

    def chunk(drain: Callable[[str], Awaitable[None]]) -> Case:
        async def measure(_: int) -> float:
            # The slope between a short stream and a long one, so that what a stream costs once is not in it.
            long, short = await _best(lambda: drain(LONG), 1), await _best(lambda: drain(SHORT), 1)
            return (long - short) / chunks

        return measure

    return {
        "chat": call(client.chat.completions.create, chat),
        "chat async": lambda calls: _best(chat_async, calls),
        "responses": call(client.responses.create, response),
        "embeddings": call(client.embeddings.create, embedding),
        "chunk": chunk(drain),
        "chunk async": chunk(drain_async),
    }


CASES = ("chat", "chat async", "responses", "embeddings", "chunk", "chunk async")
_WARM_UP = 10


async def _work(candidate: Candidate, directory: Path, chunks: int) -> None:
    """A candidate's process: reads `case calls` from standard input, answers with a figure a line, until it ends."""
    spans = _Spans()
    candidate.install(spans, directory)
    cases = _cases(chunks)
    unrecorded = []
    for name, measure in cases.items():
        before = spans.count()
        await measure(_WARM_UP)
        if spans.count() == before:
            unrecorded.append(name)
    # What importing and warming up has left behind is no garbage of a call's.
    gc.collect()
    gc.freeze()
    _say({"unrecorded": unrecorded})
    for line in sys.stdin:
        name, _, calls = line.strip().rpartition(" ")
        _say(await cases[name](int(calls)))
        # The exporter's thread works between the measurements. A merge of the store comes when it comes.
        spans.processor.force_flush()


def _say(answer: Any) -> None:
    print(json.dumps(answer), file=_answers, flush=True)


_answers = sys.stdout
"""Where a candidate's process answers; what a library prints goes to stderr instead."""


def _worker_main(arguments: argparse.Namespace) -> None:
    global _answers
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.WARNING)
    try:
        asyncio.run(_work(CANDIDATES[arguments.worker], arguments.directory, arguments.chunks))
    except Exception as error:  # whatever a peer raises is its result
        _say({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


# ---------------------------------------------------------------------------------------------------------------------
# The run: in the process that was started
# ---------------------------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """A candidate that cannot take part, and why."""


class _Worker:
    """A candidate's process, as the run sees it."""

    def __init__(self, candidate: Candidate, directory: Path, *, chunks: int) -> None:
        directory.mkdir()
        foreign = ("OTEL_", "OPENAI_", "TRACELOOP_", "LOGFIRE_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environment |= {"OTEL_LLM_STORE": "none", "TRACELOOP_TRACE_CONTENT": "false", "TRACELOOP_TELEMETRY": "false"}
        command = [sys.executable, __file__, "--worker", candidate.name, "--directory", str(directory)]
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [*command, "--chunks", str(chunks)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self.unrecorded: list[str] = []

    def wait_until_ready(self) -> None:
        """Returns when it has warmed up. Raises _Failed."""
        self.unrecorded = self._read()["unrecorded"]

    def measure(self, case: str, calls: int) -> float:
        """Nanoseconds per unit. Raises _Failed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(case, calls, file=self._process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            last = self._stderr.read().strip().splitlines()[-1:]
            raise _Failed(last[0] if last else f"exit code {self._process.returncode}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise _Failed(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()


def run(names: Sequence[str], *, rounds: int, calls: int, chunks: int) -> dict[str, Any]:
    """Measures the candidates and returns every figure, in µs, by candidate."""
    results: dict[str, Any] = {name: {"note": CANDIDATES[name].note} for name in names}
    workers: dict[str, _Worker] = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        for name in names:
            try:
                results[name]["version"] = CANDIDATES[name].version
            except importlib.metadata.PackageNotFoundError:
                results[name]["cannot"] = f"not installed ({CANDIDATES[name].distribution})"
                continue
            # One after the other: seven imports at once would take the machine from whoever else uses it.
            worker = stack.enter_context(_Worker(CANDIDATES[name], Path(directory) / name, chunks=chunks))
            try:
                worker.wait_until_ready()
                workers[name] = worker
            except _Failed as failure:
                openai_version = importlib.metadata.version("openai")
                results[name]["cannot"] = f"does not work with openai {openai_version}: {failure}"
        measured: dict[str, dict[str, list[float]]] = {name: {case: [] for case in CASES} for name in workers}
        order = list(workers)
        for _ in range(rounds):
            for case in CASES:
                for name in order:
                    measured[name][case].append(workers[name].measure(case, calls) / 1000)
            order.append(order.pop(0))
    for name, worker in workers.items():
        results[name]["cases"] = {
            case: None
            if name != BARE and case in worker.unrecorded
            else _summary(figures, measured[BARE][case], measured.get(REFERENCE, {}).get(case))
            for case, figures in measured[name].items()
        }
    return results


def _summary(figures: list[float], bare: list[float], reference: list[float] | None) -> dict[str, float | None]:
    added = [own - of_bare for own, of_bare in zip(figures, bare, strict=True)]
    q1, median, q3 = statistics.quantiles(added, method="inclusive") if len(added) > 1 else added * 3
    ratio = None
    if reference is not None and figures is not bare:
        of_reference = statistics.median(own - of_bare for own, of_bare in zip(reference, bare, strict=True))
        ratio = median / of_reference if of_reference > 0 else None
    return {
        "us": statistics.median(figures),
        "added_us": median,
        "added_us_q1": q1,
        "added_us_q3": q3,
        "ratio": ratio,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """The results for a reader."""
    width = 16
    lines = ["".join([f"{'':16}", *(f"{case:>{width}}" for case in CASES)])]
    remarks = []
    for name, result in results.items():
        remark = " ".join(part for part in (result.get("version"), result.get("note")) if part)
        if "cannot" in result:
            lines.append(f"{name:16}  – {result['cannot']}")
            continue
        cells = [_cell(name, result["cases"][case]) for case in CASES]
        lines.append("".join([f"{name:16}", *(f"{cell:>{width}}" for cell in cells)]))
        if remark:
            remarks.append(f"{name}: {remark}")
    return "\n".join([*lines, "", *remarks])


def _cell(name: str, summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "no span"
    if name == BARE:
        return f"{summary['us']:.1f}"
    ratio = summary["ratio"]
    return f"+{summary['added_us']:.1f}".replace("+-", "-") + (f" ({ratio:.2f}x)" if ratio is not None else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="how often every candidate measures every case")
    parser.add_argument("--calls", type=int, default=5, help="calls in one measurement")
    parser.add_argument("--chunks", type=int, default=50, help="chunks of a long stream")
    parser.add_argument("--only", help="these candidates, with commas, beside the bare client")
    parser.add_argument("--json", action="store_true", help="every figure as JSON")
    parser.add_argument("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _worker_main(arguments)
        return
    chosen = arguments.only.split(",") if arguments.only else list(CANDIDATES)
    if unknown := sorted(set(chosen) - set(CANDIDATES)):
        parser.error(f"no such candidate: {', '.join(unknown)} (there are {', '.join(CANDIDATES)})")
    names = [name for name in CANDIDATES if name in {BARE, *chosen}]
    results = run(names, rounds=arguments.rounds, calls=arguments.calls, chunks=arguments.chunks)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    versions = f"openai {importlib.metadata.version('openai')}, Python {sys.version.split()[0]}"
    print(f"µs of CPU added to the bare client, per call or chunk; {versions}, median of {arguments.rounds} rounds.")
    print(f"In brackets: the ratio to {CANDIDATES[REFERENCE].distribution}.\n")
    print(table(results))


if __name__ == "__main__":
    main()
