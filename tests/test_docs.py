"""The papers are true of the tree: the paths, rooms, stops, settings and columns that they name are there, and all are named."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from otel_llm.account import recipes
from otel_llm.store.file import database
from otel_llm.store.journal import record
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.rows import _LINE, USAGE_COLUMNS
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
    told = re.findall(r"^### ([^\n]+), (\d+) stops\n(.*?)(?=^#|\Z)", ARCHITECTURE.read_text(), re.M | re.S)
    command = [sys.executable, "-m", "tests.journeys"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, timeout=240)
    passed = json.loads(done.stdout)
    assert [name for name, _, _ in told] == [
        "A chat call",
        "A streamed chunk",
        "An agent's run",
        "A foreign span",
        "A merge",
        "`otel-llm usage`",
    ]
    for name, stops, text in told:
        paths = dict.fromkeys(_paths(text))
        assert len(paths) == int(stops), name
        assert paths.keys() - set(passed[name]) == set(), name


def _tables(document: str) -> str:
    """The rows of the tables of a document."""
    return "\n".join(line for line in (ROOT / document).read_text().splitlines() if line.startswith("|"))


def test_every_setting_is_on_its_page() -> None:
    read = set(re.findall(r"\"(OTEL_LLM_[A-Z_]+)\"", (PACKAGE / "settings.py").read_text()))
    told = set(re.findall(r"`(OTEL_LLM_[A-Z_]+)`", _tables("docs/settings.md")))
    assert told == read


def test_public_names_are_there() -> None:
    rows = re.findall(r"^\| `(otel_llm[\w.]*)` \| (.+) \|$", (ROOT / "docs" / "stability.md").read_text(), re.M)
    assert len(rows) == 5
    for module, names in rows:
        told, public = set(re.findall(r"`(\w+)`", names)), set(importlib.import_module(module).__all__)
        # `connect` is told of where it is imported from; what else the room of the store has is an inside.
        assert told - {"connect"} <= public if module == "otel_llm.store" else told == public, module


def test_every_column_is_told() -> None:
    contract = (
        (ROOT / "docs" / "stability.md").read_text().partition("\n## Tables and views\n")[2].partition("\n## ")[0]
    )
    told = set(re.findall(r"`(\w+)`", contract))
    with database.open_in_memory() as connection:
        database.migrate(connection)
        for table in ("llm_usage", "spans", "llm_daily", "llm_scores"):
            columns = {row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
            assert columns - told == set(), table
        tables = {row[0] for row in connection.execute("SHOW TABLES").fetchall()}
    assert tables - told == set()
    rows = re.findall(r"^\| (`.+`) \|", contract, re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*USAGE_COLUMNS, "commit_number"}


def test_the_page_of_columns_is_as_the_store_says() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import columns; print(columns.page(), end='')"],
        cwd=ROOT / "docs",
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert (ROOT / "docs" / "columns.md").read_text() == made.stdout, "run python docs/columns.py"


def test_the_recipes_are_those_of_the_page_and_of_agents() -> None:
    (block,) = re.findall(r"^```sql\n(.*?)^```", (ROOT / "docs" / "sql-recipes.md").read_text(), re.M | re.S)
    assert block == recipes.page()


def test_every_field_of_the_journal_is_told() -> None:
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| (?:all|(?:`[hseaug]`(?:, )?)+) \|", _tables("docs/journal-format.md"), re.M
    )
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    header = Journal(Path("unused"))._header()
    score = record.score_record(("", "", "", "", 0.0, "", "", "", 0))
    assert told == {*_LINE, *header, *record.acknowledgement("", []), *score, "m"}
    page = (ROOT / "docs" / "journal-format.md").read_text()
    assert f'"v":{header["v"]}' in page
    (line,) = re.findall(r"^    (\{\"c\".*)$", page, re.M)
    assert record.is_intact(line.encode())


def test_a_link_leads_somewhere() -> None:
    broken = []
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = target.partition("#")
            if re.match(r"https?:", target):
                continue
            file = document.parent / name if name else document
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{document.name}: {target}")
    assert broken == []


def _anchors(document: Path) -> set[str]:
    """What headings can be linked by: their words in small letters, with hyphens."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page}" not in index} == set()


def test_the_readme_is_read_in_one_go() -> None:
    assert 120 <= len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_a_commit_is_held_to_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    linted = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert linted is not None
    commands = [line.strip().replace("$(VENV)", ".venv") for line in linted[1].splitlines()]
    assert [hook["entry"] for hook in hooks] == commands


def test_classifiers_name_what_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    run = (ROOT / ".ci" / "run").read_text()
    oldest, newest = re.search(r"^OLDEST=(\S+)", run, re.M), re.search(r"^NEWEST_FIRST=\((.*)\)", run, re.M)
    assert oldest is not None and newest is not None
    told = {name.rpartition(" ")[2] for name in classifiers if re.search(r":: 3\.\d+$", name)}
    assert oldest[1] in told <= {oldest[1], *newest[1].split()}
