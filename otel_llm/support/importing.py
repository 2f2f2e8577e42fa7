"""Imports on a thread of ours, which no other thread sees half done.

While a module is imported it is in `sys.modules` already, and half of it is missing. Whoever imports it as well is made to wait by
Python; whoever only looks it up is not: openai looks for `httpx2` (2.x) or `httpx` (3.x) there in every call, narwhals for
`duckdb`, and an attribute that is not there yet would be raised into the app. What is imported by work of ours, which the
app does not wait for, therefore waits too: an attribute that is missing is asked for again when the import has ended.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

_LONGEST_WAIT: Final = 10.0
"""Seconds. Who waits may hold the lock of a module that the import needs, which ends neither."""

_ours: Any = threading.local()


@contextmanager
def whole() -> Iterator[None]:
    """Imports inside, in this thread, are not seen half done by others."""
    if not any(finder is _finder for finder in sys.meta_path):
        # It stays: another thread may be going through the list.
        sys.meta_path.insert(0, _finder)
    before = getattr(_ours, "here", False)
    _ours.here = True
    try:
        yield
    finally:
        _ours.here = before


class _Importing(ModuleType):
    """A module that is being imported."""

    def __getattr__(self, name: str) -> Any:
        under_way = _under_way.get(id(self))
        if under_way is not None and under_way.thread != threading.get_ident():
            under_way.done.wait(_LONGEST_WAIT)
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


class _UnderWay:
    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.done = threading.Event()


_under_way: dict[int, _UnderWay] = {}
"""By the id of the module, which lives as long."""


class _Loader(Loader):
    """Loads as another loader does."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        # The module is to look as it would without us.
        loader = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = loader
        module.__loader__ = loader
        if type(module) is not ModuleType:  # it has a way of its own
            loader.exec_module(module)
            return
        under_way = _under_way[id(module)] = _UnderWay()
        module.__class__ = _Importing
        try:
            loader.exec_module(module)
        finally:
            if type(module) is _Importing:
                module.__class__ = ModuleType  # type: ignore[assignment]
            under_way.done.set()
            del _under_way[id(module)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(MetaPathFinder):
    """Finds what the others find, in the threads that ask for it."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not getattr(_ours, "here", False):
            return None
        _ours.here = False  # a finder of somebody else's may ask everybody, us included
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader)
                    return spec
        finally:
            _ours.here = True
        return None


_finder: Final = _Finder()
