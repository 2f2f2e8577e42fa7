"""otel-llm inside what apps are packed into: a zip file, and a folder or file of PyInstaller's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import otel_llm

APP = Path(__file__).with_name("app.py")
PACKAGE = Path(otel_llm.__file__).parent
ROW = "1 True packed 1000 0.000210000"

needs_httpx2 = pytest.mark.skipif(importlib.util.find_spec("httpx2") is None, reason="the client stands on httpx here")
needs_pyinstaller = pytest.mark.skipif(
    importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed"
)


def files() -> set[Path]:
    return {
        file.relative_to(PACKAGE) for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }


def run(command: list[str], folder: Path, **variables: str) -> list[str]:
    """Runs a packed app, with a store of its own; returns what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHONPATH"))}
    environment = inherited | {"OTEL_LLM_STORE": str(folder / "usage.duckdb"), **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@needs_httpx2
def test_in_a_zip_file(tmp_path: Path) -> None:
    """As zipapp has it, and shiv and pex where they do not unpack."""
    archive = tmp_path / "app.pyz"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in files():
            packed.write(PACKAGE / file, Path("otel_llm") / file)
    row, home = run([sys.executable, str(APP)], tmp_path, PYTHONPATH=str(archive))
    assert row == ROW
    assert home.startswith(str(archive))


@needs_pyinstaller
def test_pyinstaller_is_told_of_all_that_it_cannot_see() -> None:
    """Without building anything: what the hook names is every module and every other file, and what is asked at run time."""
    (entry,) = importlib.metadata.entry_points(group="pyinstaller40", module="otel_llm._pyinstaller")
    assert entry.name == "hook-dirs"
    (folder,) = entry.load()()
    hook = runpy.run_path(str(Path(folder) / "hook-otel_llm.py"))

    packed = {Path(target, Path(source).name) for source, target in hook["datas"]}
    modules = {file for file in files() if file.suffix == ".py" and file.parts[0] != "_pyinstaller"}
    data = {file for file in files() if file.suffix != ".py"}
    assert {Path("store/file/schema/views.sql"), Path("py.typed")} < data
    assert {Path("otel_llm") / file for file in data} <= packed
    names = {".".join(("otel_llm", *file.with_suffix("").parts)).removesuffix(".__init__") for file in modules}
    assert names <= set(hook["hiddenimports"])
    described = {target.parts[0].split("-")[0] for target in packed if target.parts[0].endswith("-info")}
    assert {"otel_llm", "genai_prices", "opentelemetry_sdk", "openai"} <= described


LEFT_OUT = (
    "langchain langchain_core langchain_openai langgraph langsmith fastapi uvicorn pytest hypothesis mypy tiktoken"
)
"""What this app does without, and would take minutes to pack."""


@needs_pyinstaller
@needs_httpx2
@pytest.mark.skipif(
    not os.environ.get("OTEL_LLM_TEST_FROZEN"), reason="a build takes a minute: .ci/run sets OTEL_LLM_TEST_FROZEN=1"
)
@pytest.mark.skipif(
    sys.platform == "linux" and not shutil.which("objdump"), reason="PyInstaller needs objdump (binutils)"
)
@pytest.mark.timeout(900)
def test_a_frozen_app_has_its_row_and_its_price(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", str(APP)]
    left_out = [option for name in LEFT_OUT.split() for option in ("--exclude-module", name)]
    built = subprocess.run([*build, *left_out], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    row, home = run([str(tmp_path / "dist" / "app" / "app")], tmp_path)
    assert row == ROW
    assert home.startswith(str(tmp_path))
