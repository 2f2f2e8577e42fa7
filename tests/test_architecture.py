"""The house in order: imports point downwards, folders are small and say what is in them, a name stands for one thing.

`python -m tests.test_architecture` prints the figures.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "otel_llm"

ROOMS = (
    "version",
    "support.system",
    "support",
    "settings",
    "conventions",
    "context",
    "signals",
    "content",
    "calls",
    "prices",
    "store.errors",
    "store.paths",
    "store.place",
    "store.journal",
    "store.file",
    "store.merge",
    "store.jobs",
    "store",
    "fleet",
    "fleet.clickhouse",
    "fleet.ship",
    "fleet.serve",
    "account.engine",
    "account.formulas",
    "account.spoken_words",
    "account.sql_words",
    "account.in_duckdb",
    "account",
    "lifecycle",
    "budgets",
    "budgets.alerts",
    "budgets.stop",
    "instrumentation",
    "instrumentation.engine",
    "instrumentation.openai",
    "instrumentation.langchain",
    "instrumentation.litellm",
    "routing",
    "middleware",
    "setup",
    "ui",
    "ui.views",
    "cli.screen",
    "cli.errors",
    "cli.options",
    "cli.checks",
    "cli.read",
    "cli.manage",
    "cli.limits",
    "cli.services",
    "cli.demo",
    "cli",
    "notebook",
    "_pyinstaller",
    "",  # the package itself
)
"""From the ground up: a module imports from its own room and those before it. The longest name that fits is its own room's."""

ENTRIES = 12
"""What a folder may have at most, beside what makes it a package."""

SHARED_FILE_NAMES = frozenset(
    {
        "__init__.py",
        "errors.py",
        "private.py",  # what we touch of the insides of the library that the folder is about
        "version.py",  # the version, and the command that prints it: a command's file has the command's name
    }
)


class Arrow(NamedTuple):
    """A module imports from another. Both without the package's name."""

    source: str
    target: str


# --- what the tree is ------------------------------------------------------------------------------------------------
def modules(package: Path) -> dict[str, Path]:
    """Every module by its name without that of the package, which is itself the empty name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def arrows(package: Path) -> set[Arrow]:
    """Who imports from whom, inside functions too; what is imported for a type checker alone is left out."""
    known = modules(package)
    found = set()
    for module, file in known.items():
        for name in _imported(ast.parse(file.read_text(encoding="utf-8")), package.name):
            while name not in known:  # a name in a module
                name = name.rpartition(".")[0]
            if name != module:
                found.add(Arrow(module, name))
    return found


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for branch in node.orelse:
                yield from _imported(ast.Module([branch], []), package)
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            yield from _imported(node, package)
        for name in names:
            if f"{name}.".startswith(f"{package}."):
                yield name.partition(".")[2]


def room(module: str) -> str:
    """The room that a module belongs to."""
    while module not in ROOMS:
        module, dot, _ = module.rpartition(".")
        assert dot, "a folder or a file at the top belongs into ROOMS"
    return module


def circles(edges: Iterable[Arrow]) -> set[frozenset[str]]:
    """The modules that import one another, by whatever way: Tarjan's strongly connected components."""
    targets: dict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        targets[source].append(target)
    numbers: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(module: str) -> int:
        lowest = numbers[module] = len(numbers)
        stack.append(module)
        for target in targets.get(module, ()):
            if target not in numbers:
                lowest = min(lowest, visit(target))
            elif target in stack:
                lowest = min(lowest, numbers[target])
        if lowest == numbers[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.add(frozenset(stack[at:]))
            del stack[at:]
        return lowest

    for module in list(targets):
        if module not in numbers:
            visit(module)
    return found


def upward(edges: Iterable[Arrow]) -> set[Arrow]:
    """The imports from a room further up."""
    return {arrow for arrow in edges if ROOMS.index(room(arrow.source)) < ROOMS.index(room(arrow.target))}


def folders(package: Path) -> dict[Path, int]:
    """How many entries each folder has, beside what makes it a package."""
    besides = {"__init__.py", "py.typed", "__pycache__"}
    return {
        folder: sum(entry.name not in besides for entry in folder.iterdir())
        for folder in [package, *(one for one in package.rglob("*") if one.is_dir() and one.name != "__pycache__")]
    }


def silent_folders(package: Path) -> list[str]:
    """Folders with Python in them that do not say, in a sentence, what one looks for there."""
    silent = []
    for folder in folders(package):
        if any(folder.glob("*.py")):
            init = folder / "__init__.py"
            said = init.exists() and ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))
            if not (said and said.partition("\n\n")[0].endswith((".", ":"))):
                silent.append(folder.relative_to(package).as_posix())
    return silent


def repeated_files(package: Path) -> dict[str, list[str]]:
    """File names that stand more than once."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in package.rglob("*.py"):
        found[file.name].append(file.relative_to(package).as_posix())
    return {name: sorted(files) for name, files in found.items() if len(files) > 1}


def repeated_classes(package: Path) -> dict[str, list[str]]:
    """Class names that stand more than once. Those that apps know are bound to be what they are."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, file in modules(package).items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        public = {
            name
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for name in ast.literal_eval(node.value)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in public:
                found[node.name].append(module)
    return {name: places for name, places in found.items() if len(places) > 1}


# --- what it shall be ------------------------------------------------------------------------------------------------
def test_imports_point_downwards() -> None:
    assert upward(arrows(PACKAGE)) == set()


def test_imports_form_no_circle() -> None:
    assert circles(arrows(PACKAGE)) == set()
    # The package itself is lazy: what it imports, it imports when it is asked for.
    assert all(module in ("version", "support.lazy") for _, module in (a for a in arrows(PACKAGE) if a.source == ""))


def test_every_room_is_there() -> None:
    assert set(ROOMS) <= set(modules(PACKAGE))
    assert len(set(ROOMS)) == len(ROOMS)


def test_a_folder_is_small() -> None:
    """But for the package's own, which is the list of the rooms."""
    assert [folder for folder, count in folders(PACKAGE).items() if count > ENTRIES and folder != PACKAGE] == []


def test_a_folder_says_what_is_in_it() -> None:
    assert silent_folders(PACKAGE) == []


def test_a_file_name_stands_once() -> None:
    repeated = repeated_files(PACKAGE)
    assert set(repeated) - SHARED_FILE_NAMES == set(), repeated


def test_a_class_name_stands_once() -> None:
    repeated = repeated_classes(PACKAGE)
    assert not repeated


# --- that each rule would tell ---------------------------------------------------------------------------------------
@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small package in order."""
    house = tmp_path / "house"
    for name, text in {
        "__init__.py": '"""A house."""',
        "support/__init__.py": '"""What any program could use."""',
        "support/faults.py": "import logging\nclass Fault: ...",
        "store/__init__.py": '"""The account."""',
        "store/paths.py": "from house.support.faults import Fault",
        "store/errors.py": "def late():\n    from house.support import faults",
    }.items():
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(text)
    return house


def test_a_house_in_order(house: Path) -> None:
    found = arrows(house)
    assert found == {("store.paths", "support.faults"), ("store.errors", "support.faults")}
    assert not (upward(found) or circles(found) or silent_folders(house))
    assert not (repeated_classes(house) or set(repeated_files(house)) - SHARED_FILE_NAMES)
    assert {folder.name: count for folder, count in folders(house).items()} == {"house": 2, "support": 1, "store": 2}


def test_a_crowded_folder_is_seen(house: Path) -> None:
    for number in range(ENTRIES):
        (house / "store" / f"v{number}.sql").touch()
    assert folders(house)[house / "store"] == ENTRIES + 2


@pytest.mark.parametrize(
    "text",
    [
        "from house.store.paths import PATHS",
        "from house.store import paths",
        "import house.store.paths",
        "def late():\n    if True:\n        from house.store import paths",
        "if TYPE_CHECKING:\n    import house.support\nelse:\n    from house.store import paths",
    ],
)
def test_an_import_upwards_is_seen(house: Path, text: str) -> None:
    (house / "support" / "faults.py").write_text(text)
    assert upward(arrows(house)) == {("support.faults", "store.paths")}
    assert circles(arrows(house)) == {frozenset({"support.faults", "store.paths"})}


def test_an_import_for_a_type_checker_is_none(house: Path) -> None:
    (house / "support" / "faults.py").write_text("if TYPE_CHECKING:\n    from house.store import paths")
    assert upward(arrows(house)) == set()


def test_a_circle_over_three_is_seen(house: Path) -> None:
    for name, target in (("one", "two"), ("two", "three"), ("three", "one"), ("four", "one")):
        (house / "support" / f"{name}.py").write_text(f"from house.support.{target} import Something")
    assert circles(arrows(house)) == {frozenset({"support.one", "support.two", "support.three"})}


def test_a_folder_outside_the_order_is_seen(house: Path) -> None:
    (house / "attic").mkdir()
    (house / "attic" / "__init__.py").write_text("from house.support import faults")
    with pytest.raises(AssertionError, match="ROOMS"):
        upward(arrows(house))


@pytest.mark.parametrize("text", ["", '"""No sentence"""', "import os"])
def test_a_silent_folder_is_seen(house: Path, text: str) -> None:
    (house / "store" / "__init__.py").write_text(text)
    assert silent_folders(house) == ["store"]


def test_a_name_that_stands_twice_is_seen(house: Path) -> None:
    (house / "store" / "faults.py").write_text("def f():\n    class Fault: ...")
    assert repeated_files(house)["faults.py"] == ["store/faults.py", "support/faults.py"]
    assert repeated_classes(house) == {"Fault": ["store.faults", "support.faults"]}
    (house / "store" / "faults.py").write_text("__all__ = ['Fault']\nclass Fault: ...")
    assert repeated_classes(house) == {}


if __name__ == "__main__":
    found = arrows(PACKAGE)
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in modules(PACKAGE).values())
    print(f"{len(modules(PACKAGE))} modules, {lines} lines, {len(found)} imports, {len(upward(found))} of them upwards")
    print("circles:", [sorted(circle) for circle in circles(found)])
    print("entries:", {folder.relative_to(PACKAGE).as_posix(): count for folder, count in folders(PACKAGE).items()})
    print("files that stand twice:", set(repeated_files(PACKAGE)) - SHARED_FILE_NAMES)
    print("classes that stand twice:", repeated_classes(PACKAGE))
