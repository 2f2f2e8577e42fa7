"""The store to oneself, for the moments in which something other than a merge writes to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from otel_llm.store.errors import StoreBusy, StoreError, StoreNotFound
from otel_llm.store.file import database
from otel_llm.store.file.interrupts import was_interrupted
from otel_llm.store.file.waiting import when_free
from otel_llm.store.journal import locks, segments
from otel_llm.store.merge import duckdb_instance, ingest
from otel_llm.store.paths import StorePaths
from otel_llm.support import files, fork_guard

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PATIENCE: Final = 10.0
"""Seconds that a command waits for whoever has the store."""


@contextmanager
def alone(
    paths: StorePaths, timeout: float = PATIENCE, *, after: Callable[[], object] = lambda: None
) -> Iterator[DuckDBPyConnection]:
    """A read-write connection to the store, migrated, under the merge lock. Others' merges are put off meanwhile.

    `after` is called when what was written is in the store, and nobody else has written anything since. Raises StoreBusy where
    another process has the store for longer than `timeout` seconds, StoreError where it cannot be used or where a statement in the
    block fails.
    """
    deadline = time.monotonic() + timeout
    with unmerged(paths, timeout):
        with ExitStack() as stack:
            yield _attach_when_free(stack, paths, deadline)
        after()


@contextmanager
def unmerged(paths: StorePaths, timeout: float = PATIENCE) -> Iterator[None]:
    """The merge lock: others' merges are put off meanwhile. Raises as `alone` does."""
    import duckdb

    try:
        files.make_private_dir(paths.lock.parent)
        with locks.exclusive(paths.lock, time.monotonic() + timeout):
            yield
    except TimeoutError as error:
        raise StoreBusy(f"the store {paths.database} is being merged by another process; try again") from error
    except duckdb.Error as error:
        raise database.classify(paths, error) from error
    except RuntimeError as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        raise
    except OSError as error:
        raise StoreError(f"cannot use the store {paths.database}: {error}") from error


def _attach_when_free(stack: ExitStack, paths: StorePaths, deadline: float) -> DuckDBPyConnection:
    """Enters the mutex and the store into `stack`, as soon as no reader has the store open."""

    def attach() -> DuckDBPyConnection:
        with ExitStack() as attempt:  # the mutex is not held between two attempts: a fork waits for it
            attempt.enter_context(fork_guard.mutex)
            connection = attempt.enter_context(duckdb_instance.attached(paths))
            stack.push(attempt.pop_all())
            return connection

    return when_free(attach, deadline)


def brought_up_to_date(paths: StorePaths) -> ingest.MergeResult:
    """Merges what the journals hold. Raises StoreNotFound where nothing was ever recorded, StoreError."""
    if not paths.database.exists() and not segments.list_segments(paths.journal):
        raise StoreNotFound(f"there is no store at {paths.database} yet")
    return ingest.merge(paths.database, timeout=PATIENCE)
