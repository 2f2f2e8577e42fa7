"""What a frozen app needs of otel-llm, for PyInstaller: the entry point `hook-dirs` of `pyinstaller40` names this folder."""

from __future__ import annotations

from importlib import resources


def hook_dirs() -> list[str]:
    """The folders that hold `hook-*.py`."""
    return [str(resources.files(__name__))]
