"""Which of the processes that share a store merges it for all of them: the one that holds a lock for as long as it lives.

What merges has DuckDB in memory and spends the time that planning takes, however little there is to take in. One process with that
is enough: the others write their journals and look, once in an interval, whether the role is free. The kernel frees it with the
process. It is a matter of economy alone: whoever merges without it (a command, `flush()`) takes the merge lock as before.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from otel_llm.store.journal import locks
from otel_llm.store.paths import StorePaths
from otel_llm.support import files


class MergeRole:
    """This process's part in who merges the store at `paths()`."""

    def __init__(self, paths: Callable[[], StorePaths]) -> None:
        self._paths = paths
        self.start_afresh()

    def start_afresh(self) -> None:
        """At construction, and in the child of a fork, where `locks` has closed what the parent holds."""
        self._file: io.FileIO | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process has it."""
        return self._file is not None

    def take(self) -> bool:
        """Whether this process has the role, which it takes where it is free. Never waits; raises OSError."""
        path = self._paths().merger
        if self._file is not None:
            if not self._file.closed and locks.leads_to(path, self._file.fileno()):
                return True
            self.give_up()  # the store was moved or deleted
        files.make_private_dir(path.parent)
        try:
            self._file = locks.hold(path)
        except TimeoutError:  # something else of this process is at the store: at the next look
            return False
        return self._file is not None

    def give_up(self) -> None:
        """Lets another process have it."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
