"""`.ci/tools`: what can be had is named, what cannot is told, and a program that does not compile is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

GO = """#!/usr/bin/env bash
# A Go that fetches and compiles anything, but for what FAILS says.
case "$*" in
    *"env GOVERSION") echo go1.99; exit ;;
esac
for pattern in $FAILS; do
    if [[ "$*" == *$pattern* ]]; then echo "no $pattern from https://registry.example/x" >&2; exit 1; fi
done
case "$*" in
    *install*) printf '#!/bin/sh\\nexit 0\\n' >"$GOBIN/builder"; chmod +x "$GOBIN/builder" ;;
    *"build "*) while [[ $1 != -o ]]; do shift; done; echo program >"$2"; chmod +x "$2" ;;
esac
"""
VARIABLES = {"OTELCOL_BIN", "JAEGER_BIN", "MANIFESTS_BIN"}


def tools(tmp_path: Path, *, fails: str = "", with_go: bool = True) -> tuple[int, dict[str, str], str]:
    """The exit code, what is exported, and what is said."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name in (
        "bash",
        "cat",
        "chmod",
        "cp",
        "cut",
        "dirname",
        "flock",
        "mkdir",
        "mktemp",
        "mv",
        "nice",
        "rm",
        "sed",
        "sha256sum",
        "tail",
    ):
        if not (programs / name).exists():
            (programs / name).symlink_to(str(shutil.which(name)))
    if with_go:
        (programs / "go").write_text(GO)
        (programs / "go").chmod(0o755)
    environment = {"PATH": str(programs), "HOME": str(tmp_path), "FAILS": fails}
    done = subprocess.run([str(ROOT / ".ci/tools")], env=environment, capture_output=True, text=True, timeout=60)
    lines = [line.removeprefix("export ").partition("=") for line in done.stdout.splitlines()]
    return done.returncode, {name: value for name, _, value in lines}, done.stderr


def test_what_is_built_is_named_and_kept(tmp_path: Path) -> None:
    code, exported, said = tools(tmp_path)
    assert (code, said) == (0, "")
    assert exported.keys() == VARIABLES
    for file in exported.values():
        assert os.access(file, os.X_OK)
        assert Path(file).is_relative_to(tmp_path / ".cache")
    # The next time nothing is fetched.
    assert tools(tmp_path, fails="install get build") == (0, exported, "")


def test_without_go_there_is_nothing_and_it_is_said(tmp_path: Path) -> None:
    code, exported, said = tools(tmp_path, with_go=False)
    assert (code, exported) == (0, {})
    assert "NOT BUILT" in said and "there is no Go" in said


@pytest.mark.parametrize(
    ("fails", "missing"),
    [("install", {"OTELCOL_BIN"}), ("get", {"JAEGER_BIN", "MANIFESTS_BIN"}), ("get install", VARIABLES)],
)
def test_what_cannot_be_fetched_is_left_out_and_said(fails: str, missing: set[str], tmp_path: Path) -> None:
    code, exported, said = tools(tmp_path, fails=fails)
    assert code == 0
    assert exported.keys() == VARIABLES - missing
    assert said.count("NOT BUILT") == len(missing)
    assert "registry.example" not in said


def test_what_does_not_compile_is_a_failure(tmp_path: Path) -> None:
    code, exported, said = tools(tmp_path, fails="jaeger.bin")
    assert code == 1
    assert exported.keys() == VARIABLES - {"JAEGER_BIN"}
    assert "jaeger does not compile" in said
