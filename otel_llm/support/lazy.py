"""Names of a module that are imported from where they live when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def attributes(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `module`, whose public names live in its submodules: `homes` has the submodule of each."""

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{module}.{home}"), name)

    return get
