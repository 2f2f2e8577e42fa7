"""Where PyInstaller finds what it must know of this package: named by the entry point `hook-dirs` of `pyinstaller40`."""

from __future__ import annotations

from importlib import resources


def hook_dirs() -> list[str]:
    """The folders that hold `hook-*.py`."""
    return [str(resources.files(__name__))]
