"""The pictures of the documents: there, whole, fetched from nowhere, and still what the commands print."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.test_readme import DOCUMENTS, ROOT

FOLDER = ROOT / "docs" / "pictures"
NAMESPACE = "http://www.w3.org/2000/svg"


def named() -> Iterator[tuple[Path, Path]]:
    """Each document with each picture of ours that it names."""
    for document in DOCUMENTS:
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]*src=\"([^\"]+)", document.read_text()):
            (name,) = filter(None, target)
            if not re.match(r"https?:", name):
                yield document, document.parent / name


def words(picture: Path) -> set[str]:
    """What is written in a picture of a terminal, without the ids."""
    texts = ElementTree.parse(picture).getroot().iter(f"{{{NAMESPACE}}}text")
    lines = " ".join("".join(text.itertext()) for text in texts)
    return {word for word in re.findall(r"[A-Za-z_]{3,}", lines) if not re.fullmatch("[a-f]+", word)}


@pytest.mark.parametrize(
    ("document", "picture"),
    [*named()],
    ids=lambda path: path.relative_to(ROOT).as_posix() if path.exists() else path.name,
)
def test_a_picture_that_is_named_is_there(document: Path, picture: Path) -> None:
    assert picture.is_file(), f"{document.name} shows {picture}"
    assert picture.resolve().is_relative_to(ROOT)


@pytest.mark.parametrize("picture", sorted(FOLDER.glob("*.svg")), ids=lambda path: path.name)
def test_a_drawing_is_whole_and_fetches_nothing(picture: Path) -> None:
    assert picture in [each.resolve() for _, each in named()], "no document shows it"
    text = picture.read_text()
    assert len(text) < 60_000
    ElementTree.fromstring(text)
    assert set(re.findall(r"\w+://[^\s\"')<]+", text)) == {NAMESPACE}
    assert not re.search(r"@import|@font-face|<image|<script|href=", text)
    assert not re.search(r"/(home|root|tmp|Users|work)\b", text)


def test_the_drawings_are_what_the_commands_print(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FOLDER / "make.py"), str(tmp_path)], check=True, timeout=240)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert [picture.name for picture in drawn] == ["show.svg", "tail.svg", "usage.svg"]
    for picture in drawn:
        assert words(FOLDER / picture.name) == words(picture), f"{picture.name} is out of date: make pictures"
