"""What a shipper leaves for others to read while it runs, and after: in the file whose lock it holds.

So `ps` and `doctor` tell in which process it is, and why it does not get on, without a look at the database.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from otel_llm.store.journal import locks
from otel_llm.store.paths import StorePaths
from otel_llm.support import files
from otel_llm.support.system import offsets


@dataclass(frozen=True, slots=True)
class ShippingNote:
    """How one destination fares. Times are in seconds since 1970."""

    destination: str
    pid: int
    behind_since: float | None = None
    """When there was first something that has not arrived; None where all has."""
    failing_since: float | None = None
    reason: str | None = None
    """Why it fails."""


def write(lock: io.FileIO, note: ShippingNote) -> None:
    """Puts the note into the file, whose lock is held. Raises OSError."""
    text = json.dumps(asdict(note)).encode()
    offsets.pwrite(lock.fileno(), text + b"\n", 0)
    os.ftruncate(lock.fileno(), len(text) + 1)


def read_all(paths: StorePaths) -> list[tuple[ShippingNote, bool]]:
    """The notes of all who ship this store, or have shipped it, and whether each still does. Raises nothing."""
    return [note for note in map(_read, paths.all_shipping) if note is not None]


def _read(file: Path) -> tuple[ShippingNote, bool] | None:
    try:
        note = ShippingNote(**json.loads(files.read_own(file).split(b"\n")[0]))
        return note, locks.is_held(file)
    except (OSError, ValueError, TypeError):  # it is not written yet, or somebody else's
        return None
