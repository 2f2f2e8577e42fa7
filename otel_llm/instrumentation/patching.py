"""Patches that can be undone to the letter: after `undo()` every patched attribute is the object it was before."""

from __future__ import annotations

from collections.abc import Callable
from types import CellType
from typing import Any

import wrapt

_MISSING = object()


class Patches:
    """The patches of one instrumentor."""

    def __init__(self) -> None:
        self._done: list[tuple[type, str, object, object]] = []
        self._inner: list[tuple[CellType, object, object]] = []
        self._undone = False

    def when_imported(self, module: str, patch: Callable[[Any], None]) -> None:
        """Calls `patch(module)` once the module is imported; at once if it is. Importing it is left to the app."""

        def hook(imported: Any) -> None:
            if not self._undone:  # wrapt keeps its import hooks for good
                patch(imported)

        wrapt.register_post_import_hook(hook, module)

    def wrap(self, owner: type, name: str, wrapper: Callable[..., Any], *, optional: bool = False) -> None:
        """Wraps `owner.name` with a wrapt wrapper. Raises AttributeError where it is missing and not `optional`."""
        original = vars(owner).get(name, _MISSING)
        if original is _MISSING and not hasattr(owner, name):
            if optional:
                return
            raise AttributeError(f"{owner.__module__}.{owner.__qualname__} has no {name}")
        ours = wrapt.FunctionWrapper(getattr(owner, name), wrapper, enabled=self._is_active)
        setattr(owner, name, ours)
        self._done.append((owner, name, original, ours))

    def wrap_inner(self, function: Any, variable: str, wrapper: Callable[..., Any]) -> None:
        """Wraps the function that a decorator has put `function` around and keeps in a `variable` of its own.

        So it is found by whoever has got hold of `function` before, too. Raises ValueError where there is no such variable.
        """
        cell = function.__closure__[function.__code__.co_freevars.index(variable)]
        original = cell.cell_contents
        ours = wrapt.FunctionWrapper(original, wrapper, enabled=self._is_active)
        cell.cell_contents = ours
        self._inner.append((cell, original, ours))

    def is_bypassed(self, owner: type, name: str) -> bool:
        """Whether `owner.name` is another's wrapper round an inherited attribute as it was before we wrapped it."""
        step = vars(owner).get(name)
        ours = {id(patched): original for _, _, original, patched in self._done}
        inherited = {id(original) for original in ours.values()}
        while step is not None and id(step) not in ours:
            if id(step) in inherited:
                return True
            step = getattr(step, "__wrapped__", None)
        return False

    def _is_active(self) -> bool:
        return not self._undone

    def undo(self) -> None:
        """Puts every original back, unless somebody else has wrapped ours since: theirs is left in place, and ours lets through."""
        self._undone = True
        while self._inner:
            cell, inner, wrapped = self._inner.pop()
            if cell.cell_contents is wrapped:
                cell.cell_contents = inner
        while self._done:
            owner, name, original, ours = self._done.pop()
            if vars(owner).get(name) is not ours:
                continue
            if original is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
