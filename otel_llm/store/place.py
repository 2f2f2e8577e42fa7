"""Where this process keeps its account, when it cannot be where it was asked for.

Two users cannot write one store: its files are open to their owner alone, and a directory that another user may write to cannot
be relied upon. So a process that may not use the store that is named keeps its own beside it, `usage.1002.duckdb` for the user
with that number, or else in its user's data directory. The same function answers for whoever writes and whoever reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from otel_llm.settings import default_store, temporary_store
from otel_llm.store.paths import StorePaths
from otel_llm.support import files
from otel_llm.support.system import users


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A store, and why it is not the one that was asked for (None where it is)."""

    paths: StorePaths
    because: str | None = None


def of(requested: str | os.PathLike[str]) -> StorePlace:
    """Where this process keeps the account that it was asked to keep at `requested`. Raises nothing, makes nothing.

    Where it may write nowhere, that is the place that was asked for: calls are kept in memory then, and it is said.
    """
    asked = StorePaths.of(requested)
    device = files.no_file_at(Path(requested).expanduser())
    because = device or objection(asked)
    if because is None:
        return StorePlace(asked)
    for other in _others(asked, beside=device is None):
        if objection(other) is None:
            return StorePlace(other, because)
    return StorePlace(asked, because)


def to_read(requested: str | os.PathLike[str], *, named: bool = False) -> StorePaths:
    """The store to read where the account is asked for at `requested`: this user's own, if he has one.

    Where `requested` is what he has `named` himself, just now, it is that, unless it is another's that he may not read.
    """
    place = of(requested)
    asked = StorePaths.of(requested)
    if place.because is None:
        return asked
    if named and (_is_missing(asked) or files.no_file_at(Path(requested).expanduser())):
        own = _beside(asked)
        return own if _is_there(own) else asked  # a slip in a name is not another account
    if (named or not _is_there(place.paths)) and _is_readable(asked):
        return asked
    return place.paths


def objection(paths: StorePaths) -> str | None:
    """Why this process can keep no account there, in words; None where it can. Raises nothing."""
    try:
        for file in (paths.database, paths.wal, paths.lock, paths.lock_next):
            if (reason := files.objection(file)) is not None:
                return reason
        return files.directory_objection(paths.journal) or _not_writable(paths.journal)
    except NotADirectoryError:
        return None  # that may pass, and whoever opens the journal says it
    except OSError as error:
        return f"{paths.database} cannot be reached ({error.strerror or error})"


def _not_writable(directory: Path) -> str | None:
    """Why nothing can be put into `directory`, which may have to be made first. Raises OSError."""
    nearest = next(each for each in (directory, *directory.parents) if os.path.lexists(each))
    if not nearest.is_dir():
        return None  # that may pass, and whoever opens the journal says it
    effective = os.access in os.supports_effective_ids
    return None if os.access(nearest, os.W_OK | os.X_OK, effective_ids=effective) else f"{nearest} cannot be written"


def _others(asked: StorePaths, *, beside: bool) -> Iterator[StorePaths]:
    if beside:
        yield _beside(asked)
    # A temporary directory is better than to lose calls: a process that has given up being root may still have root's home.
    for path in (default_store().path, temporary_store()):
        if path is not None:
            yield StorePaths.of(path)


def _beside(asked: StorePaths) -> StorePaths:
    file = asked.database
    return StorePaths.of(file.with_name(f"{file.stem}.{users.effective()}{file.suffix}"))


def _is_there(paths: StorePaths) -> bool:
    return not _is_missing(paths)


def _is_missing(paths: StorePaths) -> bool:
    """Whether nothing is there, for certain."""
    for path in (paths.database, paths.journal):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # it cannot be told
            pass
        return False
    return True


def _is_readable(paths: StorePaths) -> bool:
    try:
        return files.no_file(paths.database.stat()) is None and os.access(paths.database, os.R_OK)
    except OSError:
        return False
