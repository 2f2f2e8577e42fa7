"""`.ci/release` and its workflow: what is built is the same wherever it is built, and nothing is released half said."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT


def _release() -> Any:
    loader = importlib.machinery.SourceFileLoader("release", str(ROOT / ".ci" / "release"))
    spec = importlib.util.spec_from_loader("release", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


release = _release()


def _built(folder: Path, **variables: str) -> dict[str, str]:
    """Copies the tree, builds both distributions there as a build frontend does, and returns their hashes."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=release.LEFT_OUT)
    for file in list(tree.rglob("*.py"))[:50]:
        os.utime(file, (1_000_000_000 + len(folder.name), 1_000_000_000))
    for what in ("sdist", "wheel"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", what, "-d", str(folder / "dist")],
            cwd=tree, env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000", **variables}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    found: dict[str, str] = release.hashes(folder / "dist")
    return found


def test_built_twice_it_is_the_same(tmp_path: Path) -> None:
    """In another place, with other times of files, another order of sets, another zone and other permissions."""
    one, other = tmp_path / "one", tmp_path / "another place"
    first = _built(one, PYTHONHASHSEED="1", TZ="UTC")
    before = os.umask(0o077)
    try:
        second = _built(other, PYTHONHASHSEED="2", TZ="Asia/Tokyo")
    finally:
        os.umask(before)
    assert len(first) == 2
    release.check_same(first, second)
    assert _built(tmp_path / "later", SOURCE_DATE_EPOCH="1790000002") != first, "the time of the commit is not in it"


def test_what_is_not_the_same_is_named() -> None:
    with pytest.raises(release.NotReady, match=r"not the same: a\.whl, b\.whl"):
        release.check_same({"a.whl": "1", "c.whl": "3"}, {"a.whl": "2", "b.whl": "2", "c.whl": "3"})


@pytest.mark.parametrize(
    ("changelog", "fault"),
    [
        ("## [Unreleased]\n\n- New\n", r"has no entry `## \[1\.2\.3\] - YYYY-MM-DD`"),
        ("## [1.2.3]\n\n- New\n", "has no entry"),
        ("## [1.2.3] - 2026-12-24\n\n## [1.2.2] - 2026-11-01\n\n- Old\n", "says nothing"),
        ("## [1.2.3] - 2026-12-24\n\n### Added\n\n- New\n", None),
    ],
)
def test_a_version_has_its_entry(changelog: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    if fault is None:
        release.check_changelog(tmp_path, "1.2.3")
        return
    with pytest.raises(release.NotReady, match=fault):
        release.check_changelog(tmp_path, "1.2.3")


def test_the_tag_is_the_version() -> None:
    release.check_tag("1.2.3", {"GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v1.2.3"})
    release.check_tag("1.2.3", {"GITHUB_REF_TYPE": "branch", "GITHUB_REF_NAME": "main"})
    with pytest.raises(release.NotReady, match=r"the tag is to be v1\.2\.3"):
        release.check_tag("1.2.3", {"GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v1.2.4"})


def test_the_workflow_publishes_what_it_has_built_and_holds_no_secret() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    jobs = workflow["jobs"]
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # `on` is true to YAML 1.1
    assert workflow["permissions"] == {}
    assert "secrets." not in text
    # The one job that PyPI trusts runs nothing of ours.
    assert [name for name, job in jobs.items() if "id-token" in job["permissions"]] == ["publish"]
    publish = jobs["publish"]
    assert publish["environment"]["name"] == "pypi" and publish["needs"] == "build"
    assert all("run" not in step for step in publish["steps"])
    uploaded = {step["with"]["name"]: step["with"]["path"] for step in jobs["build"]["steps"] if "upload" in str(step)}
    assert uploaded["dist"] == publish["steps"][0]["with"]["path"] == "dist/"
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert commands == ["make release"]
    assert "\nrelease: " in (ROOT / "Makefile").read_text()
