"""The papers are true of the tree: the paths, rooms, stops, settings and columns that they name are there, and all are named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import test_architecture
from tests.test_readme import DOCUMENTS, ROOT

PACKAGE = ROOT / "otel_llm"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
ROOTS = r"(?:otel_llm|tests|docs|examples|benchmarks|collector-config|\.ci)/"


def _sentence(room: str) -> str:
    """What the `__init__` of a folder, or a module, says of itself: the first paragraph of its docstring, in one line."""
    file = ROOT / room / "__init__.py" if room.endswith("/") else ROOT / room
    text = ast.get_docstring(ast.parse(file.read_text())) if file.exists() else None
    return " ".join((text or "").partition("\n\n")[0].split())


def _rooms() -> list[str]:
    """The folders and modules in the list of the page, in its order."""
    section = ARCHITECTURE.read_text().partition("\n## The rooms\n")[2].partition("\n## ")[0]
    return re.findall(r"^- `(otel_llm/[^`]*)`", section, re.M)


def _paths(text: str) -> list[str]:
    """The paths of this repository that stand in backticks."""
    return re.findall(rf"`({ROOTS}[\w./-]*)`", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_exists(document: Path) -> None:
    missing = [path for path in _paths(document.read_text()) if not (ROOT / path).exists()]
    assert missing == []


def test_every_room_is_on_the_map() -> None:
    folders = {f"{file.parent.relative_to(ROOT).as_posix()}/" for file in PACKAGE.rglob("__init__.py")}
    modules = {f"otel_llm/{file.name}" for file in PACKAGE.glob("[!_]*.py")}
    assert sorted(_rooms()) == sorted(folders | modules)


def test_the_rooms_stand_in_the_order_of_imports() -> None:
    names = [room.partition("/")[2].strip("/").removesuffix(".py").replace("/", ".") for room in _rooms()]
    assert names == [room for room in test_architecture.ROOMS if room in names]


def test_the_map_says_what_the_rooms_say() -> None:
    expected = [f"- `{room}`: {_sentence(room)}" for room in _rooms()]
    page = ARCHITECTURE.read_text()
    assert [line for line in expected if f"\n{line}\n" not in page] == [], "the list is to be:\n" + "\n".join(expected)


def test_a_journey_has_the_stops_that_it_says() -> None:
    journeys = re.findall(r"^### ([^\n]+), (\d+) stops\n(.*?)(?=^#|\Z)", ARCHITECTURE.read_text(), re.M | re.S)
    assert len(journeys) == 6
    for name, stops, text in journeys:
        assert len(dict.fromkeys(_paths(text))) == int(stops), name
