"""Fixtures for all tests: a real server with a ledger, real instrumented processes, and the rows they leave behind.

def test_something(openai_server, run_instrumented, rows):
    run_instrumented("chat.py's path, or the text of a script")
    assert len(rows("from llm_usage")) == len(openai_server.ledger)
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import pytest

from otel_llm.calls import stream_usage

# The same examples in each run, however slow the machine: a change is judged by what it changes.
# `HYPOTHESIS_PROFILE=default` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = Path(sysconfig.get_path("scripts"))

if TYPE_CHECKING:
    from local_openai import LocalOpenAI
else:
    # By its file: the directory of the examples stays out of sys.path, where `web` or `chat` would hide other modules.
    _spec = importlib.util.spec_from_file_location("local_openai", EXAMPLES / "local_openai.py")
    _module = sys.modules["local_openai"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    LocalOpenAI = _module.LocalOpenAI

# Instrumentors of others (for the benchmarks, say) would record each call a second time.
OTHER_INSTRUMENTORS = sorted(
    entry_point.name
    for entry_point in importlib.metadata.entry_points(group="opentelemetry_instrumentor")
    if not entry_point.name.startswith("otel_llm")
)

# What a developer has set must not reach the processes that the tests start.
_FOREIGN = ("OTEL_", "OPENAI_", "AZURE_", "LANGSMITH_", "LANGCHAIN_", "PYTHONPATH", "PYTHONWARNINGS")


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Reading spans collects garbage first, some thousand times: what is here by now need not be gone through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _strange_servers() -> None:
    """No test knows what an earlier one has learned of a server."""
    stream_usage.forget()


@pytest.fixture(autouse=True)
def _no_store_goes_on() -> Iterator[None]:
    """The thread of a store ends with its test: hundreds of them would merge beside the tests that follow."""
    yield
    module = sys.modules.get("otel_llm.store.store")
    for store in module.opened() if module is not None else ():
        if store._thread.thread is not None:
            store._thread.stop(5)
            store._thread.reset()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or DuckDB takes what Python does not go through for leaked, and says so


@pytest.fixture(scope="session")
def _openai_process() -> Iterator[LocalOpenAI]:
    with LocalOpenAI() as server:
        yield server


@pytest.fixture
def openai_server(_openai_process: LocalOpenAI) -> LocalOpenAI:
    """The local OpenAI server with an empty ledger: one process for the whole session, emptied for each test."""
    _openai_process.reset()
    return _openai_process


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where this test's account goes. Nothing is there yet."""
    return tmp_path / "usage.duckdb"


@pytest.fixture
def environment(openai_server: LocalOpenAI, store_path: Path, tmp_path: Path) -> dict[str, str]:
    """The environment for a child process: the local server, this test's store, nothing of the developer's settings."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {
        **mine,
        **openai_server.environment,
        "OTEL_LLM_STORE": str(store_path),
        # `python` and `otel-llm` are this environment's; the user's own data directory stays out of reach.
        "PATH": os.pathsep.join((str(SCRIPTS), mine.get("PATH", ""))),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        # The stock distro is installed here too, and the launcher takes whichever it finds first.
        "OTEL_PYTHON_DISTRO": "otel_llm",
        **({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(OTHER_INSTRUMENTORS)} if OTHER_INSTRUMENTORS else {}),
    }


class Run(Protocol):
    """What `run_instrumented` is."""

    def __call__(
        self,
        script: str | Path | Sequence[str],
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        stderr: str | None = None,
        code: int | None = 0,
        instrument: bool = True,
        python: Path | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_instrumented(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs a real process under `opentelemetry-instrument` and returns it when it has ended.

    `script` is a file (Path), the text of a script (str), or a whole command (a list). `env` adds variables, None takes one
    away. What is written to stderr fails the test, except for lines that match the regular expression `stderr`.
    `code` is the expected exit code (None: any). `instrument=False` runs the same without `opentelemetry-instrument`.
    `python` is another interpreter, one of `python_without`.
    """

    def run(
        script: str | Path | Sequence[str],
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        stderr: str | None = None,
        code: int | None = 0,
        instrument: bool = True,
        python: Path | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        process = subprocess.run(
            [*command(script, tmp_path, instrument=instrument, python=python), *arguments],
            env=merged(environment, env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        lines = [line for line in process.stderr.splitlines() if stderr is None or not re.search(stderr, line)]
        report = f"exit code {process.returncode}\nstdout:\n{process.stdout}\nstderr:\n{process.stderr}"
        assert code in (None, process.returncode), report
        assert not lines, report
        return process

    return run


@pytest.fixture
def start_instrumented(environment: dict[str, str], tmp_path: Path) -> Iterator[Any]:
    """The same for a process that goes on: returns its `Popen` (text, all three pipes); it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(
        script: str | Path | Sequence[str],
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        instrument: bool = True,
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command(script, tmp_path, instrument=instrument), *arguments],
            env=merged(environment, env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


class Rows(Protocol):
    """What `rows` is."""

    def __call__(self, sql: str = ..., store: Path | None = None) -> list[dict[str, Any]]: ...


@pytest.fixture
def rows(store_path: Path) -> Rows:
    """Rows of this test's store (or of `store`) as dictionaries, by SQL; `llm_usage` in order of time by default."""

    def query(
        sql: str = "from llm_usage order by started_at, span_id", store: Path | None = None
    ) -> list[dict[str, Any]]:
        from otel_llm.store.reader import connect

        with connect(store or store_path) as connection:
            relation = connection.execute(sql)
            names = [column[0] for column in relation.description or ()]
            return [dict(zip(names, values, strict=True)) for values in relation.fetchall()]

    return query


@pytest.fixture(scope="session")
def clickhouse() -> Iterator[str]:
    """The URL of a ClickHouse with the tables of the account; skips where there is none. `clickhouse_server.empty` empties it."""
    from tests.fleet import clickhouse_server

    clickhouse_server.require()
    with clickhouse_server.server({"ship": {"password": "a secret", "may": "INSERT"}}) as url:
        yield url


@pytest.fixture(scope="session")
def python_without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A Python that has all of this environment but some distributions: `python_without("langchain-core", "langchain")`.

    A virtual environment of links: it takes no installing. Where a module of a distribution is in a namespace package that others
    share, only the distribution's metadata (with its entry points) is gone.
    """

    @cache
    def make(*names: str) -> Path:
        directory = tmp_path_factory.mktemp("without")
        venv.create(directory, symlinks=True)
        python = directory / "bin" / "python"
        (site,) = directory.glob("lib/python*/site-packages")
        left_out = set()
        for name in names:
            distribution = importlib.metadata.distribution(name)
            for file in distribution.files or ():
                left_out.add(file.parts[0])
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if entry.name not in left_out or entry.name == "opentelemetry":
                (site / entry.name).symlink_to(entry)
        return python

    return make


def command(
    script: str | Path | Sequence[str], directory: Path, *, instrument: bool = True, python: Path | None = None
) -> list[str]:
    """The command line that runs a file, a script's text, or a command, under `opentelemetry-instrument`."""
    prefix: list[str] = []
    if instrument:
        # What the installed script says, for an environment that has no such script.
        launch = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
        prefix = [str(SCRIPTS / "opentelemetry-instrument")] if python is None else [str(python), "-c", launch]
    if isinstance(script, str):
        number = len(list(directory.glob("script*.py")))
        file = directory / f"script{number}.py"
        file.write_text(script)
        script = file
    if isinstance(script, Path):
        return [*prefix, str(python or sys.executable), str(script)]
    return [*prefix, *script]


def merged(environment: Mapping[str, str], changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """`environment` with `changes`; None takes a variable away."""
    both: dict[str, str | None] = {**environment, **(changes or {})}
    return {name: value for name, value in both.items() if value is not None}
