"""Every command and snippet of the papers is run: a document that lies is a defect.

- A ```python block runs as a script, with the local server as its OpenAI. A ```py block is somebody else's, and needs what is not
  installed: docs/coming-from.md sets ours beside it.
- In a ```console block every line after `$ ` runs in a shell; all blocks of a document share a folder and a store, in
  their order. A line of output in the document must come out as to its words: numbers, ids and widths may differ.
- A command that ends in ` &` runs in the background, with a model that takes its time, until its block ends. Where the
  document says what it prints, the next command waits for that; else that one is asked again until it prints what it should.
- An `export` holds for the rest of its block. The port of a server that a document starts is another one here, a free one.
- The ClickHouse at `ch.example` is that of the tests; where they have none, the document is skipped.
- A ```toml or ```yaml block is parsed; ```sql runs on the document's store.
- A command that cannot run here (it needs Docker or the registry) stands in `ELSEWHERE`, with who runs it instead.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.integration.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("[!R]*.md"))]

# They share a folder and a store, so they run in one process, in their order.
pytestmark = pytest.mark.xdist_group("documents")

ELSEWHERE = {
    "make demo": "tests/integration/test_demo.py runs what it does; .ci/run runs `make demo` itself",
    "make test": "this is it",
    "make lint": ".ci/run",
    ".venv/bin/pytest": "this is it",
    "otel-llm ui": "tests/ui",
    "otel-llm mcp": "tests/cli/test_mcp.py",
    "duckdb -readonly": "that command line is not here: docs/analysts.md has the same in Python",
    "claude mcp": "that client is not here: tests/cli/test_mcp.py has another",
    "otel-llm score 4bf92f35": "it needs that trace: tests/lifecycle/test_scoring.py",
    "make bench": "tests/benchmarks",
    "make matrix": "tests/benchmarks",
    "python benchmarks/phoenix.py": "it needs Phoenix, by hand",
    "python3 -m venv": "the environment this test runs in is such an install",
    "python -m venv /tmp/phx": "it needs Phoenix, by hand",
    "pip install": "the environment this test runs in is such an install",
    "docker compose": "tests/test_collector_config.py checks the file",
    "otelcol-contrib validate": "tests/test_collector_config.py, where OTELCOL_BIN names one",
    "otelcol-contrib --config": "tests/integration/test_collector.py, where OTELCOL_BIN names one",
    "COLLECTOR_HOST=0.0.0.0 otelcol-contrib": "tests/integration/test_collector.py, where OTELCOL_BIN names one",
    "docker build": "no container engine is here: tests/packaging/test_deploy.py checks what goes into the images",
    "kubectl": "no cluster is here: tests/packaging/test_deploy.py checks the manifests",
    "curl -s 'http://localhost:16686/": "tests/integration/test_jaeger.py asks the same, where JAEGER_BIN names one",
    "OTEL_LLM_SERVE_TOKEN=a-long-random-text otel-llm serve": "it goes on for ever: tests/fleet/test_ship_to_serve.py",
    "otel-llm ship --to http://account": "it needs a receiver: tests/fleet/ship/test_processes.py",
    "otel-llm replay": "it needs a backend: tests/integration/test_replay.py",
    "clickhouse-client": "tests/fleet/clickhouse_server.py reads the same files",
    "otel-llm ship --to clickhouse": "tests/fleet/ship/test_clickhouse.py",
    "git clone": ".ci/run starts from a clone",
}


class Block(NamedTuple):
    language: str
    text: str
    line: int


_THERE = re.compile(r"clickhouses://\w+@ch\.example:8443/otel")
"""The ClickHouse of the documents. Here it is that of the tests."""


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text()
    for match in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.M | re.S):
        yield Block(match[1], match[2], text[: match.start()].count("\n") + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a document's commands run: with the examples, an empty store and nothing else."""
    folder = tmp_path_factory.mktemp("document")
    (folder / "examples").symlink_to(ROOT / "examples")
    for example in ("chat.py", "agent.py"):
        (folder / f"{example.removesuffix('.py')}_app.py").write_text((ROOT / "examples" / example).read_text())
    (folder / "app.py").write_text((ROOT / "examples" / "chat.py").read_text())
    return folder


@pytest.fixture
def environment(folder: Path, openai_server) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OPENAI_BASE_URL": openai_server.base_url,
        "OPENAI_API_KEY": "local",
        # The stock distro and its configurator are installed too, for other tests.
        "OTEL_PYTHON_DISTRO": "otel_llm",
        "OTEL_PYTHON_CONFIGURATOR": "none",
        "OTEL_LLM_STORE": str(folder / "usage.duckdb"),
        "COLUMNS": "160",
        "PYTHONUTF8": "1",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document(document: Path, folder: Path, environment: dict[str, str], request: pytest.FixtureRequest) -> None:
    for block in blocks(document):
        if _THERE.search(block.text):
            there = request.getfixturevalue("clickhouse")
            block = block._replace(text=_THERE.sub(lambda _, url=there: url, block.text))
        where = f"{document.name}:{block.line}"
        match block.language:
            case "python":
                _run([sys.executable, "-c", block.text], folder, environment, where)
            case "console":
                _run_console(block, folder, environment, where)
            case "sql":
                for statement in block.text.split(";"):
                    if statement.strip():
                        _run(["otel-llm", "sql", "--", statement], folder, environment, where)
            case "toml":
                tomllib.loads(block.text)
            case "yaml":
                list(yaml.safe_load_all(block.text))
            case "sh" | "bash":
                pytest.fail(f"{where}: use ```console with `$ `, so that the commands are run")


def _run_console(block: Block, folder: Path, environment: dict[str, str], where: str) -> None:
    environment = dict(environment)
    running: list[subprocess.Popen[str]] = []
    awaited: subprocess.Popen[str] | None = None
    text = re.sub(r"\b4321\b", str(*free_ports(1)), block.text)
    try:
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            if any(command.startswith(start) for start in ELSEWHERE):
                continue
            if command.startswith("export "):
                environment |= dict(setting.split("=", 1) for setting in shlex.split(command)[1:])
                continue
            if command.endswith(" &"):
                slow = environment | {"OPENAI_CUSTOM_HEADERS": "x-local-behaviour: slow"}
                process = subprocess.Popen(
                    ["bash", "-c", f"exec {command.removesuffix(' &')}"], cwd=folder, env=slow,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if output else subprocess.DEVNULL, text=True,
                )  # fmt: skip
                running.append(process)
                if process.stdout is None:
                    awaited = process
                else:
                    with process.stdout as lines:
                        assert lines.readline() == output, where
                continue
            deadline = time.monotonic() + (60 if awaited else 0)
            while True:
                printed = _run(["bash", "-c", command], folder, environment, where)
                words = set(_words(printed))
                missing = [word for word in _words(output) if word not in words]
                if not missing or time.monotonic() > deadline or awaited is None or awaited.poll() is not None:
                    break
                time.sleep(0.1)
            assert not missing, f"{where}: `{command}` no longer prints {missing}\n{printed}"
    finally:
        for process in running:
            process.kill()
            process.wait()


def _words(text: str) -> list[str]:
    """The words of what a command prints; neither a trace id nor the unit of a size is one: both go with the figures."""
    return re.findall(r"[A-Za-z_]{3,}", re.sub(r"\b[0-9a-f]{32}\b|\b[0-9.]+ bytes\b", "", text))


def _run(command: list[str], folder: Path, environment: dict[str, str], where: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
