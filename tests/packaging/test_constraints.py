"""`constraints.txt` is what `make` installs; `.ci/newer` tells what is newer than that."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import ROOT

PINNED = re.compile(r"[a-z0-9][a-z0-9-]*==[0-9a-z.!+]+( ; .+)?")
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def test_it_has_one_version_of_each_and_neither_hosts_nor_hashes() -> None:
    assert [line for line in LINES if not PINNED.fullmatch(line)] == []


def test_all_that_is_asked_for_is_in_it() -> None:
    """A new dependency, or another lower bound, needs `make constraints`."""
    from packaging.requirements import Requirement

    pinned = {name: version.partition(" ;")[0] for name, _, version in (line.partition("==") for line in LINES)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [
        Requirement(each)
        for each in (
            *project["build-system"]["requires"],
            *project["project"]["dependencies"],
            *(needed for extra in ("dev", "openai", "langchain") for needed in extras[extra]),
        )
        if not each.startswith("otel-llm")
    ]
    assert len(asked) > 30
    wrong = [
        str(each) for each in asked if not each.specifier.contains(pinned.get(each.name.lower(), ""), prereleases=True)
    ]
    assert wrong == [], "run `make constraints`"


def newer(folder: Path, tested: str, newest: str) -> list[str]:
    (folder / "tested").write_text(tested)
    (folder / "newest").write_text(newest)
    command = [sys.executable, str(ROOT / ".ci" / "newer"), "tested", "newest"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


def test_what_is_newer_is_named(tmp_path: Path) -> None:
    same = "# made by\nsame==1\n"
    assert newer(tmp_path, same + "a==1\nb==2\n", same + "a==1.1\nc==3 ; sys_platform == 'win32'\n") == [
        "newer than what was tested (tested):",
        "  a  1 -> 1.1",
        "  b  2 -> gone",
        "  c  not there -> 3 (where sys_platform == 'win32')",
    ]
    assert newer(tmp_path, same, "same==1\n# by another\n") == ["nothing is newer than what was tested"]
