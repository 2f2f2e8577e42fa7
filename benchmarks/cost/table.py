"""What recording costs: ours beside its peers', in one run, as a page of Markdown.

    python benchmarks/cost/table.py                    # all of it: about ten minutes on two cores, and the environments once
    python benchmarks/cost/table.py --long             # four times as long
    python benchmarks/cost/table.py --part calls --only "official;otel-llm + store"
    python benchmarks/cost/table.py --json figures.json

Every subject has an environment of its own, in `.venv-bench/`, made from the registry with the versions of constraints.txt.

In the app's thread a figure is the CPU time that a call takes more when the subject is on than when it is off, in one process. The
provider is a mock transport inside the process, so that no network is in it; spans go to a batch processor whose exporter drops
them, and messages are not captured. How these figures are kept honest on a busy machine:

- All processes live through the whole run, which is many short rounds. In each, every subject in turn measures each case, off and
  on, in an order that rotates.
- A measurement is the best of three in a row, each of a few milliseconds: cold caches and interruptions only ever add.
- CPU time, not wall time. On a busy machine the figures grow all the same; the ratios are what to compare.

A subject that cannot be switched off again is compared with the bare client's process in the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import calls
import environments
import processes
from figures import Spread, record, spread
from subjects import BARE, ENVIRONMENTS, OFFICIAL, OFFICIAL_OPENAI, OURS, SPAN, STORE, SUBJECTS

PARTS = ("calls", "apps", "scripts", "usage")
CONTENT, METRICS = ", content", ", metrics"


class _Failed(Exception):
    """A subject that cannot take part, and why."""


class _Worker:
    """The process of a subject, as the run sees it."""

    def __init__(self, name: str, python: Path, folder: Path, cases: Sequence[str], sizes: Sequence[str]) -> None:
        folder.mkdir()
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        chosen = [argument for case in cases for argument in ("--case", case)]
        self._process = subprocess.Popen(
            [str(python), str(processes.HERE / "worker.py"), name, str(folder), *chosen, *sizes],
            env=processes.surroundings(**SUBJECTS[name].settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self.cases = cases
        self.versions = ""
        self.unrecorded: list[str] = []
        self.still_on: list[str] = []

    def wait_until_ready(self) -> None:
        """Returns when it has warmed up. Raises _Failed."""
        said = self._read()
        self.versions, self.unrecorded, self.still_on = said["versions"], said["unrecorded"], said["still_on"]

    def measure(self, case: str) -> tuple[float | None, float]:
        """Microseconds without and with. Raises _Failed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(case, file=self._process.stdin, flush=True)
        off, on = self._read()
        return off, on

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


# --- the app's thread ------------------------------------------------------------------------------------------------
def in_the_thread(
    names: Sequence[str], pythons: processes.Pythons, rounds: int, sizes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """By subject: its versions, what it adds to each case, and where it cannot take part why."""
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for at, name in enumerate(names):
            python = pythons[SUBJECTS[name].environment]
            # One after the other: so many imports at once would take the machine from whoever else uses it.
            worker = stack.enter_context(_Worker(name, python, Path(folder) / str(at), _cases_of(name), sizes))
            try:
                worker.wait_until_ready()
                workers[name] = worker
                results[name] = {"versions": worker.versions, "comes off": not worker.still_on}
            except _Failed as failure:
                results[name] = {"cannot": str(failure)}
        measured: dict[tuple[str, str], list[tuple[float | None, float]]] = {}
        order = list(workers)
        for number in range(rounds):
            _say(f"round {number + 1} of {rounds}")
            for case in (*calls.CASES, calls.LONG):
                for name in order:
                    if case in workers[name].cases:
                        measured.setdefault((name, case), []).append(workers[name].measure(case))
            order.append(order.pop(0))
        for name, worker in workers.items():
            results[name]["cases"] = {}
            for case in worker.cases:
                bare = measured[BARE, case]
                pairs = zip(measured[name, case], bare, strict=True)
                added = [on - (off if off is not None else instead[1]) for (off, on), instead in pairs]
                results[name]["cases"][case] = spread(added)
            results[name]["no span"] = worker.unrecorded
            if name == BARE:
                figures = {case: spread([on for _, on in measured[name, case]]) for case in worker.cases}
                results[name]["takes"] = figures
    return results


def _cases_of(name: str) -> Sequence[str]:
    if name.endswith(CONTENT):
        return (calls.LONG,)
    if name.endswith(METRICS):
        return (calls.CHAT,)
    if name == SPAN:  # one around the client's method says nothing of a chain
        return [case for case in calls.CASES if case not in calls.LANGCHAIN]
    return (*calls.CASES, calls.LONG) if name == BARE else calls.CASES


def thread_table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Rows of cases, columns of subjects."""
    shown = [
        name for name in results if name != BARE and not name.endswith((CONTENT, METRICS)) and "cases" in results[name]
    ]
    takes = results[BARE]["takes"]
    yield f"| µs of CPU | {BARE} | " + " | ".join(shown) + " |"
    yield "|---" * (len(shown) + 2) + "|"
    for case in calls.CASES:
        cells = [_cell(results[name], case) for name in shown]
        yield f"| {case} | {takes[case].written(sign=False)} | " + " | ".join(cells) + " |"


def _cell(result: dict[str, Any], case: str) -> str:
    figure: Spread | None = result["cases"].get(case)
    if figure is None:
        return "–"
    return figure.written() + (" no span" if case in result["no span"] else "")


# --- what is aimed at ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Aim:
    """A figure of ours beside another's, and how much it may be: `most` of the unit, or times the other."""

    what: str
    theirs: Spread | None
    own: Spread | None
    unit: str
    most: float
    times: str = ""

    def row(self) -> str:
        limit = f"≤ {self.most:g}{f' × {self.times}' if self.times else self.unit}"
        cells = [
            figure.written(self.unit, sign=self.theirs is not None) if figure else "–"
            for figure in (self.theirs, self.own)
        ]
        return f"| {self.what} | {cells[0]} | {cells[1]} | {limit} | {self._verdict()} |"

    def _verdict(self) -> str:
        if self.own is None or (self.times and (self.theirs is None or self.theirs.median <= 0)):
            return "–"
        ratio = self.own.median / self.theirs.median if self.times and self.theirs else self.own.median
        return ("reached" if ratio <= self.most else "not reached") + (f": {ratio:.2f} ×" if self.times else "")


def aims(found: dict[str, Any], number: int) -> Iterator[str]:
    """Each row of what we hold ourselves to: ours beside official's."""
    yield f"| | {OFFICIAL} | {STORE} | aim | |"
    yield "|---|---|---|---|---|"
    for part, rows in (("calls", _thread_aims), ("apps", _app_aims), ("scripts", _script_aims), ("usage", _usage_aims)):
        if found.get(part):
            yield from (aim.row() for aim in rows(found[part], number))


def _thread_aims(results: dict[str, dict[str, Any]], number: int) -> Iterator[_Aim]:
    def of(name: str, case: str) -> Spread | None:
        figure: Spread | None = results.get(name, {}).get("cases", {}).get(case)
        return figure

    where = "in the app's thread"
    for case, most in (
        (calls.CHAT, 0.6),
        (calls.RESPONSES, 0.5),
        (calls.EMBEDDINGS, 1.1),
        (calls.CHUNK, 0.15),
        (calls.CHAIN, 0.5),
        (calls.AGENT, 0.45),
    ):
        yield _Aim(f"{case}, {where}", of(OFFICIAL, case), of(STORE, case), " µs", most, OFFICIAL)
    yield _Aim(f"{calls.FAKE}, {where}", of(OFFICIAL, calls.FAKE), of(STORE, calls.FAKE), " µs", 80)
    yield _Aim(f"{calls.CHAT}, beside a {SPAN}", of(SPAN, calls.CHAT), of(STORE, calls.CHAT), " µs", 1.8, "the span")
    for variant, what, case, most in (
        (CONTENT, "a prompt of 14 kB, captured", calls.LONG, 0.5),
        (METRICS, "chat, with metrics", calls.CHAT, 1.0),
    ):
        yield _Aim(f"{what}, {where}", of(OFFICIAL + variant, case), of(STORE + variant, case), " µs", most, OFFICIAL)


def _app_aims(running: dict[str, dict[str, Any]], number: int) -> Iterator[_Aim]:
    def of(name: str, key: str, count: int) -> Spread | None:
        group = running.get(f"{name} × {count}")
        return None if group is None else spread([sum(group[key])])

    def pair(key: str, count: int) -> tuple[Spread | None, Spread | None]:
        return of(OFFICIAL_OPENAI, key, count), of(STORE, key, count)

    alone, each = f"{processes.ALONE:g} calls a second", f"{processes.TOGETHER:g} calls a second each"
    yield _Aim(f"in the background, {alone}", *pair("background_percent", 1), " % of a core", 1)
    together = f"{number} processes on one store"
    yield _Aim(f"the same, {together} at {each}", *pair("background_percent", number), " % of a core", 2)
    ours = [running[name] for name in (f"{STORE} × {number}", f"{STORE} × 1") if name in running]
    others, merging = (
        [
            size
            for group in ours
            for size, merges in zip(group["megabytes"], group["merges"], strict=True)
            if merges is is_one
        ]
        for is_one in (False, True)
    )
    theirs = of(OFFICIAL_OPENAI, "megabytes", 1)
    yield _Aim("memory over a bare client, not merging", theirs, spread(others) if others else None, " MB", 12)
    yield _Aim("the same, the one that merges", theirs, spread(merging) if merging else None, " MB", 85)
    yield _Aim(f"the same, {together}", *pair("megabytes", number), " MB", 180)


def _script_aims(took: dict[str, dict[str, Spread]], number: int) -> Iterator[_Aim]:
    call, start = took["one call"], took["start"]
    yield _Aim("a script with one call, by the clock", call.get(OFFICIAL), call.get(STORE), " s", 0.2)
    what = "`opentelemetry-instrument`, `import openai`, no call, by the clock"
    yield _Aim(what, start.get(OFFICIAL), start.get(STORE), " s", 1, OFFICIAL)


def _usage_aims(reading: dict[str, Any], number: int) -> Iterator[_Aim]:
    yield _Aim(f"`usage --by model,day` over {reading['rows']:,} rows", None, reading["wall"], " s", 0.5)


# --- the page --------------------------------------------------------------------------------------------------------
def page(found: dict[str, Any], number: int) -> Iterator[str]:
    """All of it in Markdown."""
    yield f"{found['machine']}. Medians, with the quartiles in brackets."
    if results := found.get("calls"):
        yield ""
        yield f"What is added in the app's thread, over {found['rounds']} rounds:"
        yield ""
        yield from thread_table(results)
    if any(found.get(part) for part in PARTS):
        yield ""
        yield "What we hold ourselves to:"
        yield ""
        yield from aims(found, number)
    yield ""
    yield from _remarks(found)


def _remarks(found: dict[str, Any]) -> Iterator[str]:
    results = found.get("calls", {})
    versions = [f"{name}: {result['versions']}" for name, result in results.items() if result.get("versions")]
    yield from dict.fromkeys(f"- {each}" for each in versions if CONTENT not in each and METRICS not in each)
    yield f"- all of them on {found['clients']}"
    for name, result in results.items():
        if "cannot" in result:
            yield f"- {name} could not take part: {result['cannot']}"
        elif not result["comes off"]:
            yield f"- {name} cannot be switched off again: compared with the bare client's process"
    if took := found.get("scripts"):
        for part, what in (("one call", "one call"), ("start", "the start")):
            bare = took[part][BARE].written(" s", sign=False)
            spent = [
                f"{name} {took[part][f'{name}, CPU'].written(' s')}" for name in (OFFICIAL, STORE) if name in took[part]
            ]
            yield f"- {what}: the bare script takes {bare}; of a processor more than that {', '.join(spent)}"
    if reading := found.get("usage"):
        spent = reading["cpu"].written(" s", sign=False)
        yield f"- the store that `usage` reads has {reading['megabytes']:.0f} MB; of a processor it takes {spent}"


def _say(line: str) -> None:
    print(f"\r{line}   ", end="", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(type(value).__name__)


def _clients(python: Path) -> str:
    names = ("openai", "langchain", "langchain-openai", "opentelemetry-sdk")
    code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    return subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be given more than once")
    parser.add_argument(
        "--only", help=f"of the calls only these subjects, with semicolons; there are {'; '.join(SUBJECTS)}"
    )
    parser.add_argument("--rounds", type=int, default=24, help="how often every subject measures every case")
    parser.add_argument("--calls", type=int, default=5, help="calls in one measurement")
    parser.add_argument("--chunks", type=int, default=50, help="chunks of a long stream")
    parser.add_argument("--pairs", type=int, default=15, help="how often each script runs")
    parser.add_argument("--settle", type=float, default=30, help="seconds that apps run before it counts")
    parser.add_argument("--seconds", type=float, default=60, help="seconds that apps run while it counts")
    parser.add_argument("--processes", type=int, default=8, help="apps that share a store")
    parser.add_argument("--rows", type=int, default=10_000_000, help="calls in the store that `usage` reads")
    parser.add_argument("--long", action="store_true", help="four times as many rounds, pairs and seconds")
    parser.add_argument("--here", action="store_true", help="no environments: all that is installed beside this Python")
    parser.add_argument("--json", type=Path, help="a file for every figure")
    parser.add_argument("--record", type=Path, help="a document to put it into, as docs/benchmarks.md")
    arguments = parser.parse_args()
    chosen = [name.strip() for name in arguments.only.split(";")] if arguments.only else list(SUBJECTS)
    if unknown := sorted(set(chosen) - set(SUBJECTS)):
        parser.error(f"no such subject: {'; '.join(unknown)} (there are {'; '.join(SUBJECTS)})")
    parts = arguments.part or PARTS
    times = 4 if arguments.long else 1
    pythons = _pythons(chosen, parts, here=arguments.here)
    found: dict[str, Any] = {"machine": processes.machine(), "rounds": arguments.rounds * times}
    found["clients"] = _clients(pythons["clients"])
    if "calls" in parts:
        names = [name for name in SUBJECTS if name in {BARE, *chosen} and name != OFFICIAL_OPENAI]
        sizes = ["--calls", str(arguments.calls), "--chunks", str(arguments.chunks)]
        found["calls"] = in_the_thread(names, pythons, arguments.rounds * times, sizes)
    if "apps" in parts:
        _say("apps")
        settle, seconds = arguments.settle, arguments.seconds * times
        found["apps"] = processes.apps(pythons, arguments.processes, settle=settle, seconds=seconds)
    if "scripts" in parts:
        _say("scripts")
        found["scripts"] = processes.scripts(pythons, arguments.pairs * times)
    if "usage" in parts:
        _say("usage")
        wall, cpu, size = processes.usage(pythons["otel-llm"], arguments.rows, min(5, arguments.pairs) * times)
        found["usage"] = {"wall": wall, "cpu": cpu, "megabytes": size, "rows": arguments.rows}
    _say("")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=_plain))
    lines = [*page(found, arguments.processes)]
    print("\n".join(lines))
    if arguments.record:
        record(arguments.record, "make bench", lines)


def _pythons(chosen: Iterable[str], parts: Iterable[str], *, here: bool) -> dict[str, Path]:
    if here:
        return dict.fromkeys(ENVIRONMENTS, Path(sys.executable))
    wanted = {"clients", *(SUBJECTS[name].environment for name in chosen if "calls" in parts)}
    if {"apps", "scripts"} & set(parts):
        wanted |= {SUBJECTS[name].environment for name in (OFFICIAL, STORE)}
    if "usage" in parts:
        wanted.add(SUBJECTS[OURS].environment)
    return {name: environments.python_of(name) for name in ENVIRONMENTS if name in wanted}


if __name__ == "__main__":
    main()
