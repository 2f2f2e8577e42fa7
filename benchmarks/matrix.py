"""Which ways to call a model are recorded right: the cells of tests/matrix with otel-llm installed, and with its peers.

    python benchmarks/matrix.py                            # the table: cells right / all, by group and candidate
    python benchmarks/matrix.py --wrong official           # every cell that a candidate gets wrong, and why
    python benchmarks/matrix.py --json                     # the same of all candidates, as JSON
    python benchmarks/matrix.py --only otel-llm,official --group streams,errors
    python benchmarks/matrix.py --limits 8                 # the account, where the SDK keeps 8 attributes a span, of 8 characters
    python benchmarks/matrix.py --beside logfire           # ... beside Logfire (`logfire-later`: set up after otel-llm)

A cell is a way to call a model: a client, an endpoint, a way to read the answer, an end, through LangChain or not. Each runs over
real HTTP against a local server that keeps a ledger of what it billed. A cell is right when

- there are as many spans of model calls as the ledger has calls (retries of the client are one call),
- their input and output tokens are the ledger's, and absent where the provider told none,
- every span has ended, and the app has seen no exception that it would not have seen otherwise.

Nothing is asked about names, status or the tree. Which span is a model call is told by each candidate's own convention:
`gen_ai.operation.name`, `openinference.span.kind`, `llm.request.type`.

Each candidate is a process of its own. A peer has an instrumentor for the OpenAI client and one for LangChain: `official` has both
installed, as `opentelemetry-instrument` would have them; `official-openai` has the former alone. A cell in which a candidate hangs
is wrong. Peers that are not installed are named and left out; `pip install .[bench]` has them all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 60.0
"""Seconds after which a cell hangs. No wait of the server's is as long as a tenth of it."""

# ---------------------------------------------------------------------------------------------------------------------
# The candidates: what each installs in its process
# ---------------------------------------------------------------------------------------------------------------------


def _otel_llm(provider: Any) -> Callable[[], None]:
    import otel_llm
    from otel_llm.calls import abandoned

    otel_llm.instrument(tracer_provider=provider)
    return abandoned.finish_abandoned  # what `otel_llm.flush()` and the store's thread call


def _official(provider: Any) -> None:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=provider)


def _official_langchain(provider: Any) -> None:
    from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor

    _official(provider)
    LangChainInstrumentor().instrument(tracer_provider=provider)


def _openinference(provider: Any) -> None:
    from openinference.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=provider)


def _openinference_langchain(provider: Any) -> None:
    from openinference.instrumentation.langchain import LangChainInstrumentor

    _openinference(provider)
    LangChainInstrumentor().instrument(tracer_provider=provider)


def _openllmetry(provider: Any) -> None:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=provider)


def _openllmetry_langchain(provider: Any) -> None:
    from opentelemetry.instrumentation.langchain import LangchainInstrumentor

    _openllmetry(provider)
    LangchainInstrumentor().instrument(tracer_provider=provider)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to instrument both clients."""

    name: str
    install: Callable[[Any], Callable[[], None] | None]
    distributions: tuple[str, ...] = ()

    @property
    def versions(self) -> str:
        """Raises PackageNotFoundError."""
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.distributions)


_OFFICIAL = ("opentelemetry-instrumentation-genai-openai", "opentelemetry-instrumentation-genai-langchain")
_OPENINFERENCE = ("openinference-instrumentation-openai", "openinference-instrumentation-langchain")
_OPENLLMETRY = ("opentelemetry-instrumentation-openai", "opentelemetry-instrumentation-langchain")
CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("otel-llm", _otel_llm),
        Candidate("official", _official_langchain, _OFFICIAL),
        Candidate("official-openai", _official, _OFFICIAL[:1]),
        Candidate("openinference", _openinference_langchain, _OPENINFERENCE),
        Candidate("openinference-openai", _openinference, _OPENINFERENCE[:1]),
        Candidate("openllmetry", _openllmetry_langchain, _OPENLLMETRY),
        Candidate("openllmetry-openai", _openllmetry, _OPENLLMETRY[:1]),
    )
}

# ---------------------------------------------------------------------------------------------------------------------
# A candidate's process
# ---------------------------------------------------------------------------------------------------------------------


def _cells(groups: Sequence[str]) -> list[Any]:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.matrix.all_cells import CELLS

    return [cell for cell in CELLS if cell.group in groups]


BESIDE = ("logfire", "logfire-later")


def _work(candidate: Candidate, groups: Sequence[str], start: int, limit: int | None, beside: str | None) -> None:
    """Runs the cells from the number `start` on; says the faults of each, one line of JSON a cell."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    cells = _cells(groups)
    from tests.matrix.cell import Recorder, hear_the_account, logfire, matrix
    from tests.matrix.truth import faults

    with ExitStack() as others:
        surroundings, provider = others.enter_context(matrix(limit))
        if beside == "logfire":
            provider = others.enter_context(logfire(is_global=True))
        settle = candidate.install(provider)
        if settle is not None:
            surroundings.settle = settle
        if beside == "logfire-later":
            others.enter_context(logfire(is_global=True))
        if limit is not None or beside is not None:
            from otel_llm.setup import wiring

            store = Path(others.enter_context(tempfile.TemporaryDirectory())) / "usage.duckdb"
            surroundings.recorder = Recorder()
            hear_the_account(wiring.wire(provider, store), surroundings.recorder)
        for cell in cells[start:]:
            print(json.dumps(faults(cell, surroundings.run(cell))), file=answers, flush=True)
    answers.flush()
    os._exit(0)  # whatever a candidate has left running


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def _judge(name: str, groups: Sequence[str], cells: int, options: Sequence[str]) -> Iterator[list[str]]:
    """The faults of a candidate in each cell. After a cell that hangs or crashes, another process goes on with the next."""
    foreign = ("OTEL_", "OPENAI_", "AZURE_", "TRACELOOP_", "LANGSMITH_", "LANGCHAIN_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    environment |= {"OTEL_LLM_STORE": "none", "TRACELOOP_TELEMETRY": "false", "NO_PROXY": "127.0.0.1"}
    number = 0
    while number < cells:
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--start", str(number), "--group", ",".join(groups), *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None and process.stderr is not None
        said: list[str] = []
        readers = [
            threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
            threading.Thread(target=_read, args=(process.stderr, said.append), daemon=True),
        ]
        for reader in readers:
            reader.start()
        before = number
        try:
            while number < cells:
                line = lines.get(timeout=_PATIENCE)
                if not line:
                    break
                yield json.loads(line)
                number += 1
            lost = "its process ended"
        except queue.Empty:
            lost = "hangs"
        finally:
            process.kill()
            process.wait()
            for reader in readers:
                reader.join()
        if number == before and lost != "hangs":
            raise RuntimeError(f"{name}: {''.join(said).strip().splitlines()[-1:] or 'no word'}")
        if number < cells:
            yield [lost]
            number += 1


def _read(stream: Any, take: Callable[[str], object]) -> None:
    with stream:
        for line in stream:
            take(line)
    take("")


def run(names: Sequence[str], groups: Sequence[str], options: Sequence[str] = ()) -> dict[str, Any]:
    """For each candidate its versions and the faults of each cell (an empty list is right), or why it cannot take part."""
    cells = _cells(groups)
    results: dict[str, Any] = {}
    for name in names:
        try:
            versions = CANDIDATES[name].versions
        except importlib.metadata.PackageNotFoundError as error:
            results[name] = {"cannot": f"not installed ({error.name})"}
            continue
        try:
            found = list(_judge(name, groups, len(cells), options))
        except RuntimeError as error:
            results[name] = {"cannot": str(error)}
            continue
        right: dict[str, list[int]] = {}
        for cell, faults in zip(cells, found, strict=True):
            counts = right.setdefault(cell.group, [0, 0])
            counts[0] += not faults
            counts[1] += 1
        results[name] = {
            "versions": versions,
            "groups": {group: {"right": a, "all": b} for group, (a, b) in right.items()},
            "cells": {cell.name: faults for cell, faults in zip(cells, found, strict=True)},
        }
    return results


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """The results for a reader, in Markdown."""
    ran = {name: result for name, result in results.items() if "groups" in result}
    groups = next(iter(ran.values()))["groups"] if ran else {}
    lines = [f"| cells right / all | {' | '.join(ran)} |", "|---" * (len(ran) + 1) + "|"]
    totals = [[0, 0] for _ in ran]
    for group in groups:
        figures = [result["groups"][group] for result in ran.values()]
        row = [f"{one['right']} / {one['all']}" for one in figures]
        lines.append(f"| {group} | {' | '.join(row)} |")
        for total, one in zip(totals, figures, strict=True):
            total[0] += one["right"]
            total[1] += one["all"]
    lines.append(f"| all | {' | '.join(f'{right} / {number}' for right, number in totals)} |")
    lines += [""] + [f"{name}: {result['versions']}" for name, result in ran.items() if result["versions"]]
    lines += [f"{name}: – {result['cannot']}" for name, result in results.items() if "cannot" in result]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help="these candidates, with commas")
    parser.add_argument("--group", help="these groups of cells, with commas")
    parser.add_argument("--wrong", metavar="CANDIDATE", help="the cells that this candidate gets wrong, and why")
    parser.add_argument("--json", action="store_true", help="the faults of every cell as JSON")
    parser.add_argument("--limits", type=int, help="attributes of a span, and characters of each, that the SDK keeps")
    parser.add_argument("--beside", choices=BESIDE, help="what else is in the process")
    parser.add_argument("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.matrix.cell import GROUPS

    groups = arguments.group.split(",") if arguments.group else list(GROUPS)
    if unknown := sorted(set(groups) - set(GROUPS)):
        parser.error(f"no such group: {', '.join(unknown)} (there are {', '.join(GROUPS)})")
    if arguments.worker:
        _work(CANDIDATES[arguments.worker], groups, arguments.start, arguments.limits, arguments.beside)
    chosen = arguments.wrong or arguments.only
    options: list[str] = []
    if arguments.limits is not None or arguments.beside is not None:
        if chosen not in (None, "otel-llm"):
            parser.error("--limits and --beside ask for the account, which otel-llm alone keeps")
        chosen = "otel-llm"
        options += ["--limits", str(arguments.limits)] if arguments.limits is not None else []
        options += ["--beside", arguments.beside] if arguments.beside is not None else []
    chosen = chosen.split(",") if chosen else list(CANDIDATES)
    if unknown := sorted(set(chosen) - set(CANDIDATES)):
        parser.error(f"no such candidate: {', '.join(unknown)} (there are {', '.join(CANDIDATES)})")
    results = run([name for name in CANDIDATES if name in chosen], groups, options)
    if arguments.json:
        print(json.dumps(results, indent=2))
    elif arguments.wrong:
        for name, result in results.items():
            print(f"{name}: {result['cannot']}" if "cannot" in result else f"{name}: {result['versions']}".rstrip(": "))
            for cell, faults in result.get("cells", {}).items():
                if faults:
                    print(f"    {cell}: {'; '.join(faults)}")
    else:
        versions = f"openai {importlib.metadata.version('openai')}, langchain {importlib.metadata.version('langchain')}"
        print(f"Cells recorded right, of all; {versions}, Python {sys.version.split()[0]}.\n")
        print(table(results))


if __name__ == "__main__":
    main()
