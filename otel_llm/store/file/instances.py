"""What is read of one database in this process: the file that DuckDB opened, and those that have taken its place since.

While a connection is open, DuckDB gives this process the same instance for the same path, and so what the database was when that
one was opened. What it has become is attached to the instance, once for all who read it there.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from otel_llm.store.file import database, handles, publish
from otel_llm.store.paths import StorePaths
from otel_llm.support import fork_guard

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_numbers = itertools.count(1)
_instances: weakref.WeakValueDictionary[Path, Instance] = weakref.WeakValueDictionary()


class Moment:
    """The database as it was for a while: which file, and its name in SQL. Kept by whoever reads it."""

    def __init__(self, file: os.stat_result | None, name: str) -> None:
        self.file = file
        self.name = name

    def is_of(self, file: os.stat_result) -> bool:
        return self.file is not None and os.path.samestat(self.file, file)


class Instance:
    """DuckDB's instance of one database."""

    def __init__(self, paths: StorePaths, opened: Moment) -> None:
        self.paths = paths
        self.opened = opened
        """Its first file; without one where that is not known, as of a connection of the app's."""
        self._attached: dict[str, weakref.ref[Moment]] = {}

    def now(self, connection: DuckDBPyConnection) -> Moment:
        """The database as it is, attached where it is not what was opened. Raises duckdb.Error, OSError."""
        with fork_guard.mutex:
            file = self.paths.database.stat()
            if self.opened.is_of(file):
                return self.opened
            for each in list(self._attached.values()):
                if (moment := each()) is not None and moment.is_of(file):
                    return moment
            name = f"{self.opened.name} {next(_numbers)}"
            with self._file(file) as path:
                connection.execute(f"ATTACH {database.literal(path)} AS {database.quoted(name)} (READ_ONLY)")
            moment = Moment(file, name)
            self._attached[name] = weakref.ref(moment)
            return moment

    def let_go(self, connection: DuckDBPyConnection) -> None:
        """Closes what nobody reads any more."""
        for name in [name for name, moment in self._attached.items() if moment() is None]:
            connection.execute(f"DETACH DATABASE IF EXISTS {database.quoted(name)}")
            del self._attached[name]

    @contextmanager
    def _file(self, file: os.stat_result) -> Iterator[Path]:
        """What to attach: a copy where something else has the file open here, whose locks would go when ours is closed."""
        try:
            used = bool(handles.others(file))
        except OSError:  # it cannot be told
            used = False
        publish.remove_leftovers(self.paths.database)
        if not used:
            yield self.paths.database
            return
        folder, name = self.paths.database.parent, self.paths.database.name
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.", suffix=".tmp") as hidden:
            copy = Path(hidden) / name
            publish.snapshot(self.paths, copy)
            yield copy  # only the open file remains of it


def connect(paths: StorePaths) -> tuple[DuckDBPyConnection, Instance]:
    """A connection to read, and its instance, which may have an earlier file open. Raises duckdb.Error, OSError."""
    import duckdb

    database.require_openable(paths)
    with fork_guard.mutex:  # a merge of this process does not open files at the same time
        connection = duckdb.connect(str(paths.database), read_only=True)
        database.be_quiet(connection)
        known = _instances.get(paths.database)
        if known is None or known.opened.file is None or not _is_open(known.opened):
            (name,) = connection.execute("SELECT current_database()").fetchall()[0]
            opened = Moment(paths.database.stat(), name)
            known = Instance(paths, opened if _is_open(opened) else Moment(None, name))
            _instances[paths.database] = known
        return connection, known


def _is_open(moment: Moment) -> bool:
    try:
        return moment.file is None or bool(handles.others(moment.file))
    except OSError:  # it cannot be told
        return True
