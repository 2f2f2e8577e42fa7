"""Patches that can be undone to the letter: after `undo()` every patched attribute is the object it was before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wrapt

_MISSING = object()


class Patches:
    """The patches of one instrumentor."""

    def __init__(self) -> None:
        self._done: list[tuple[type, str, object, object]] = []
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
        while self._done:
            owner, name, original, ours = self._done.pop()
            if vars(owner).get(name) is not ours:
                continue
            if original is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
