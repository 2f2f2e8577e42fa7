"""The first minute, as README has it: typed word for word into an empty environment, with a home directory where nothing is.

It installs what pip finds, which takes a minute: `.ci/run` sets OTEL_LLM_TEST_FIRST_MINUTE=1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.integration.ports import free_ports
from tests.test_readme import _words, blocks

NETWORK = re.compile(r"PIP_(INDEX|EXTRA|TRUSTED|CERT|FIND|DEFAULT)\w*|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|(?i:\w+_proxy)")
"""What this machine needs to reach a package index: all that is taken over from the environment."""
MARK = "=====8<====="

pytestmark = [
    pytest.mark.skipif(
        "OTEL_LLM_TEST_FIRST_MINUTE" not in os.environ, reason="NOT TESTED: it installs; .ci/run has it tested"
    ),
    pytest.mark.timeout(1200),
]


def test_what_is_typed_from_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    home, clone = tmp_path / "home", tmp_path / "clone"
    home.mkdir()
    shutil.copytree(ROOT, clone, symlinks=True, ignore=shutil.ignore_patterns(".venv*", ".git", ".*_cache", ".demo"))
    section = (ROOT / "README.md").read_text().partition("\n## In a minute\n")[2].partition("\n## ")[0]
    console, python = (block for block in blocks(ROOT / "README.md") if block.text in section)
    assert (console.language, python.language) == ("console", "python")

    text = re.sub(r"\b4321\b", str(*free_ports(1)), console.text)
    typed, expected = ["exec 2>&1", "set -e"], []
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        typed += [f"echo '{MARK}'", command]
        if command.endswith("&"):  # who types waits until the server has printed where it is
            port = re.search(r"--port (\d+)", command)
            assert port is not None
            typed.append(f"until (exec 3<>/dev/tcp/127.0.0.1/{port[1]}) 2>/dev/null; do sleep 0.1; done")
        expected.append((command, output))
    (clone / "typed.py").write_text(python.text)
    # And from anywhere, what was installed without the clone.
    typed += [f"echo '{MARK}'", "python typed.py", f"echo '{MARK}'", "cd ~; otel-llm demo tour", "kill %1"]
    expected += [("python typed.py", "summaries alice"), ("otel-llm demo tour", "Every token agrees weather")]

    empty = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
    interpreter = Path(sys.base_prefix) / "bin"
    empty |= {"HOME": str(home), "PATH": f"{interpreter}:/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"}
    done = subprocess.run(
        ["env", "-i", *(f"{name}={value}" for name, value in empty.items()), "bash", "--noprofile", "--norc", "-s"],
        cwd=clone, input="\n".join(typed) + "\n", stdout=subprocess.PIPE, text=True, timeout=1000,
    )  # fmt: skip
    printed = done.stdout.split(f"{MARK}\n")[1:]
    assert done.returncode == 0, done.stdout
    assert len(printed) == len(expected), done.stdout
    for (command, output), said in zip(expected, printed, strict=True):
        missing = [word for word in _words(output) if word not in _words(said)]
        assert not missing, f"`{command}` no longer prints {missing}\n{said}"
        assert not re.search(r"Traceback|WARNING", said), said
    # The account is this user's, and the demo kept to its folder.
    assert (home / ".local" / "share" / "otel-llm" / "usage.duckdb").is_file()
    assert (home / "tour" / "usage.duckdb").is_file()
