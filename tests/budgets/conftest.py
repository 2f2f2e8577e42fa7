"""What the tests of budgets share: a store with known rows, in both engines, and ways to run a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import _own_settings, both_engines, engine, execute, fill, on_terminal, run

__all__ = ["Write", "_own_settings", "both_engines", "engine", "execute", "fill", "on_terminal", "run"]

Write = Callable[[str], Path]


@pytest.fixture
def budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the file of budgets, and names it in the environment."""

    def write(text: str) -> Path:
        file = tmp_path / "budgets.toml"
        file.write_text(text, encoding="utf-8")
        monkeypatch.setenv("OTEL_LLM_BUDGETS", str(file))
        return file

    return write
