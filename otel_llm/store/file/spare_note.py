"""Whether the spare file is what a merge has left there, untouched since.

A merge brings the spare file up to date by the blocks whose checksums differ from those of the database. That is right as long as
what stands behind the other checksums is what they were made of. It need not be where the file was restored or copied, where
somebody has written to it or to the database, or where a power cut has kept one block and not the next. So each merge notes which
two files it has left (device, number, size, times of the last write and of the last change of any kind) and since which start of
the machine. A spare file that is not the noted one is given up, and a whole copy made.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from otel_llm.store.paths import StorePaths
from otel_llm.support import files

_NAME: Final = "spare.json"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Note:
    """What the last merge has left."""

    database: tuple[int, ...] = ()
    spare: tuple[int, ...] = ()
    """Empty where nobody may rely on it."""
    compared: int = 0
    """Up to which offset whole blocks of the two have been compared; the next merge goes on from there."""


def identity(stat: os.stat_result | None) -> tuple[int, ...]:
    """A file that nobody has touched: the time of its last change cannot be set by anybody."""
    if stat is None:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read(paths: StorePaths) -> Note:
    """The note; an empty one where there is none of this start of the machine. Raises nothing."""
    try:
        text = json.loads((paths.journal / _NAME).read_text(encoding="utf-8"))
        if text["boot"] != _boot():
            return Note()
        return Note(tuple(text["database"]), tuple(text["spare"]), int(text["compared"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Note()


def write(paths: StorePaths, note: Note) -> None:
    """Keeps `note`. Where it cannot, the one that is there fits nothing any more. Raises nothing."""
    file = paths.journal / _NAME
    hidden = file.with_name(f".{_NAME}.{os.getpid()}.tmp")
    text = {"boot": _boot(), "database": note.database, "spare": note.spare, "compared": note.compared}
    try:
        hidden.unlink(missing_ok=True)  # of an earlier process of this number
        with os.fdopen(files.create(hidden, os.O_WRONLY), "w", encoding="utf-8") as writing:
            json.dump(text, writing)
        hidden.replace(file)
    except OSError:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


@cache
def _boot() -> str:
    """This start of the machine; after another one a power cut may have been between."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
