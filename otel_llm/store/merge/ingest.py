"""From the journals of all processes into DuckDB, exactly once.

Any process may take in any segment, live or sealed, from the offset that the store records up to its last whole line. The
rows and the new offsets are written in one transaction, so a crash at any moment repeats nothing and loses nothing.
One process at a time merges, under a lock on a sidecar file, and has the database open only while it does.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.store.errors import StoreBusy, StoreError
from otel_llm.store.file import database
from otel_llm.store.file.waiting import when_free
from otel_llm.store.journal import follow, locks
from otel_llm.store.journal.record import Score
from otel_llm.store.journal.segments import Chunk, Segment, Snapshot
from otel_llm.store.merge import batch, duckdb_instance, pending, scores
from otel_llm.store.paths import StorePaths
from otel_llm.support import files, fork_guard, importing
from otel_llm.support.system import file_locks

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger("otel_llm")

BATCH_BYTES: Final = 8 * 2**20
"""About how much of the journal goes into one transaction."""
_TURN_SECONDS: Final = 0.05
"""How often a merger that waits for another looks whether there is anything left to do."""


@dataclass(slots=True)
class MergeResult:
    """What one merge did."""

    complete: bool = False
    """Everything that had ended when the merge began is in the database."""
    rows: int = 0
    """Spans written."""
    corrupt: int = 0
    """Lines that failed their checksum or that the database refused; they are put aside."""
    interrupted: int = 0
    """Calls of dead processes that never ended."""
    removed: int = 0
    """Segments deleted."""
    reason: str | None = None
    """Why the merge is not complete."""


Offsets = dict[str, tuple[int, bool]]
"""By segment name: bytes consumed, and whether it is finished."""
_UNREAD: Final = (0, False)


@importing.whole()
def merge(store: str | os.PathLike[str], *, timeout: float = 5.0) -> MergeResult:
    """Takes in what all journals of `store` hold. `timeout` is in seconds, for other mergers and readers to let go.

    Gives up quietly (`complete` is false, `reason` says why) where the database stays held; nothing is lost then.
    Raises StoreError where the store cannot be used at all.
    """
    paths = StorePaths.of(store)
    result = MergeResult()
    deadline = time.monotonic() + timeout
    try:
        snapshot, note = Snapshot(paths.journal), _read_note(paths)
        if not _has_news(snapshot, note or {}):
            result.complete = True
            return result
        work = partial(_merge_now, paths, snapshot, note, result)
        files.make_private_dir(paths.lock.parent)
        while not _in_turn(paths, work, min(time.monotonic() + _TURN_SECONDS, deadline), deadline):
            if _reached(paths, snapshot):  # whoever had the lock took our records too
                result.complete = True
                return result
            if time.monotonic() >= deadline:
                raise StoreBusy(f"the store {paths.database} is being merged by another process or thread")
    except StoreBusy as error:
        result.reason = str(error)
    except OSError as error:
        raise StoreError(f"cannot merge the journal {paths.journal}: {error}") from error
    return result


def _in_turn(paths: StorePaths, work: Callable[[], None], turn: float, deadline: float) -> bool:
    """Does it, unless another merger has its turn until after `turn` (monotonic seconds)."""
    try:
        with locks.exclusive(paths.lock, turn):
            when_free(work, deadline)
    except TimeoutError:
        return False
    return True


def _reached(paths: StorePaths, snapshot: Snapshot) -> bool:
    """Whether the last merge took everything that is in `snapshot`."""
    known = _read_note(paths) or {}
    return all(_has_taken(known, segment.path, size) for segment, size in snapshot.sizes.items())


def has_taken(paths: StorePaths, segment: Path | None, position: int) -> bool:
    """Whether the last merge took that segment, if there is one, up to `position`."""
    return segment is None or _has_taken(_read_note(paths) or {}, segment, position)


def _has_taken(known: Offsets, segment: Path, position: int) -> bool:
    """A segment that is gone was taken whole."""
    return known.get(segment.name, _UNREAD)[0] >= position or not segment.exists()


def has_news(paths: StorePaths) -> bool:
    """Whether the journals hold anything that no merge has taken in. Raises OSError."""
    return _has_news(Snapshot(paths.journal), _read_note(paths) or {})


def _has_news(snapshot: Snapshot, known: Offsets) -> bool:
    """Whether a merge would find anything to do. Costs no look at the database: the last merge left a note."""
    for segment, size in snapshot.sizes.items():
        consumed, finished = known.get(segment.name, _UNREAD)
        if size > consumed or finished or not snapshot.is_live(segment):
            return True
    return False


def waiting(paths: StorePaths) -> int:
    """Bytes of journal that no merge has taken, told without a look at the database. Raises OSError."""
    snapshot, known = Snapshot(paths.journal), _read_note(paths) or {}
    return sum(max(size - known.get(segment.name, _UNREAD)[0], 0) for segment, size in snapshot.sizes.items())


def has_orphans(paths: StorePaths) -> bool:
    """Whether there are journals that nobody writes any more. Each one's lock is tried for that. Raises OSError."""
    snapshot = Snapshot(paths.journal)
    return not all(snapshot.is_live(segment) for segment in snapshot.sizes)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Lines that are in the workbench, ready to be stored."""

    paths: StorePaths
    connection: DuckDBPyConnection
    chunks: list[Chunk]
    batch: batch.Batch
    scores: list[Score]


_loaded: _Loaded | None = None
"""Kept while somebody has the database open, so that it is not all read again for each attempt."""


def _merge_now(paths: StorePaths, snapshot: Snapshot, note: Offsets | None, result: MergeResult) -> None:
    """Merges what is in `snapshot`, which was taken when `note` was read.

    Raises StoreBusy where somebody else has the database open, StoreError.
    """
    import duckdb

    before = _read_note(paths)
    if before is None or before != note:
        # Somebody has merged since, perhaps from a segment that is not in this snapshot and would be taken for deleted.
        snapshot = Snapshot(paths.journal)
    # Held for one attempt, not while waiting for the next: a fork waits for it.
    with fork_guard.mutex:
        try:
            offsets = _take_all(paths, snapshot, before, result)
        except duckdb.Error as error:
            if database.is_corruption(error):
                database.quarantine(paths, str(error))
            raise database.classify(paths, error) from error
    result.complete = True
    removable = [segment for segment in snapshot.sizes if offsets.get(segment.name, _UNREAD)[1]]
    # What is deleted must be in the database itself: its write-ahead log may turn out to be damaged.
    if removable and not paths.wal.exists():
        unread = follow.unread(paths.journal, removable)
        removable = [segment for segment in removable if segment.name not in unread]
    else:
        removable = []
    removed = {segment.name for segment in removable if _delete(segment)}
    result.removed += len(removed)
    snapshot.remove_leftovers()
    _write_note(paths, offsets, removed)


def _delete(segment: Segment) -> bool:
    """Deletes a segment; false where somebody has it open and the system keeps it for him. Raises OSError."""
    try:
        segment.path.unlink(missing_ok=True)
    except PermissionError:
        if file_locks.IS_POSIX:
            raise
        return False
    return True


def _take_all(paths: StorePaths, snapshot: Snapshot, offsets: Offsets | None, result: MergeResult) -> Offsets:
    """Takes in what is in `snapshot`, batch by batch, from `offsets` on; returns how far that went."""
    while True:
        # All that can be done without the database is done before it is attached: nobody else can open it meanwhile.
        loaded = None if offsets is None else _load(paths, snapshot, offsets)
        if offsets is not None and loaded is None:
            return offsets
        with duckdb_instance.attached(paths) as connection:
            known = read_offsets(connection)
            _forget_removed(connection, snapshot, known)
            stored = loaded if loaded is not None and _goes_on_from(loaded.chunks, known) else None
            rows = 0 if stored is None else _store(connection, stored)
        if stored is not None:
            result.rows += rows
            _count(paths, stored, known, result)
        forget_loaded()
        offsets = known


def _load(paths: StorePaths, snapshot: Snapshot, offsets: Offsets) -> _Loaded | None:
    """Puts what is to be taken next into the workbench; None where all is taken."""
    global _loaded
    connection = duckdb_instance.get(paths)
    held = _loaded
    if held and held.paths == paths and held.connection is connection and _goes_on_from(held.chunks, offsets):
        return held
    forget_loaded()
    chunks = plan(snapshot, offsets)
    if not chunks:
        return None
    try:
        ready, refused = batch.load(connection, paths, lines_of(chunks))
    except BaseException:
        duckdb_instance.discard()  # whatever state it is in, the next attempt begins with another
        raise
    for chunk in chunks:
        chunk.corrupt += refused.get(chunk.segment.name, [])
    _loaded = _Loaded(paths, connection, chunks, ready, scores_of(chunks))
    return _loaded


def forget_loaded() -> None:
    """The workbench is about to be used for something else."""
    global _loaded
    _loaded = None


def _goes_on_from(chunks: list[Chunk], offsets: Offsets) -> bool:
    """Whether nobody has taken any of `chunks` meanwhile, and nothing before them is missing."""
    return all(offsets.get(chunk.segment.name, _UNREAD) == (chunk.start, False) for chunk in chunks)


def read_offsets(connection: DuckDBPyConnection, stored: str = "main") -> Offsets:
    """What the store, whose tables are in the schema `stored`, has taken of each segment."""
    rows = connection.execute(f"SELECT segment, consumed, finished FROM {stored}.journal_segments").fetchall()
    return {name: (consumed, finished) for name, consumed, finished in rows}


def _forget_removed(connection: DuckDBPyConnection, snapshot: Snapshot, offsets: Offsets) -> None:
    """Drops the rows of segments that an earlier merge deleted. Their names are never used again."""
    there = {segment.name for segment in snapshot.sizes}
    gone = [name for name in offsets if name not in there]
    if gone:
        connection.execute("DELETE FROM journal_segments WHERE list_contains(?, segment)", [gone])
        for name in gone:
            del offsets[name]


def plan(snapshot: Snapshot, offsets: Offsets) -> list[Chunk]:
    """What to take next, about `BATCH_BYTES` of it; nothing where all is taken.

    A writer may go on writing for as long as we read: each segment of one that lives is read up to where it was, not for ever.
    """
    chunks: list[Chunk] = []
    room = BATCH_BYTES
    for segment, size in snapshot.sizes.items():
        consumed, finished = offsets.get(segment.name, _UNREAD)
        try:
            if finished or (consumed >= size and snapshot.is_live(segment)):
                continue
            chunk = snapshot.read(segment, consumed, room)
        except (FileNotFoundError, PermissionError):  # another user's: he takes it in, and it must not keep ours out
            continue
        if chunk.next == consumed and not chunk.finished:
            continue
        chunks.append(chunk)
        room -= chunk.next - consumed
        if room <= 0:
            break
    return chunks


def _store(connection: DuckDBPyConnection, loaded: _Loaded) -> int:
    """One transaction: rows, and the offsets behind them. Returns the number of rows."""
    values = [(chunk.segment.name, chunk.next, chunk.finished, len(chunk.corrupt)) for chunk in loaded.chunks]
    with database.transaction(connection):
        rows = batch.store(connection, loaded.batch) if loaded.batch.rows else 0
        if arrived := [line for chunk in loaded.chunks for line in chunk.acknowledgements]:
            batch.acknowledge(connection, arrived)
        if loaded.scores:
            scores.store(connection, loaded.scores)
        if arrived or loaded.batch.exported:
            pending.leave_sign(loaded.paths, connection)
        connection.execute(
            f"""INSERT INTO journal_segments (segment, consumed, finished, corrupt)
            VALUES {", ".join(["(?, ?, ?, ?)"] * len(values))}
            ON CONFLICT (segment) DO UPDATE SET consumed = excluded.consumed, finished = excluded.finished,
                corrupt = journal_segments.corrupt + excluded.corrupt""",
            [value for row in values for value in row],
        )
    return rows


def _count(paths: StorePaths, loaded: _Loaded, offsets: Offsets, result: MergeResult) -> None:
    """Notes in `offsets` and `result` what is in the store now, and keeps the bytes of what cannot be."""
    result.interrupted += loaded.batch.interrupted
    duckdb_instance.count(sum(chunk.next - chunk.start for chunk in loaded.chunks))
    for chunk in loaded.chunks:
        offsets[chunk.segment.name] = (chunk.next, chunk.finished)
        if chunk.corrupt:
            result.corrupt += len(chunk.corrupt)
            _put_aside(paths, chunk)


def lines_of(chunks: list[Chunk]) -> batch.Lines:
    """The lines that `chunks` bring."""
    return {chunk.segment.name: (chunk.header, chunk.ends + chunk.unfinished) for chunk in chunks}


def scores_of(chunks: list[Chunk]) -> list[Score]:
    """The scores that `chunks` bring. Lines that hold none count among the corrupt ones from then on."""
    found: list[Score] = []
    for chunk in chunks:
        given, bad = scores.read(chunk.scores)
        found += given
        chunk.corrupt += bad
    return found


def _put_aside(paths: StorePaths, chunk: Chunk) -> None:
    """Keeps the bytes that could not be read, for whoever wants to look."""
    try:
        file = paths.corrupt / chunk.segment.name
        files.append(file, b"\n".join(chunk.corrupt) + b"\n")
    except OSError as error:
        _logger.warning("damaged journal lines of %s could not be put aside: %s", chunk.segment.path, error)
        return
    _logger.warning("%d damaged lines of %s are put aside in %s", len(chunk.corrupt), chunk.segment.path, file)


# --- the note of the last merge ---------------------------------------------------------------------------------------


def _read_note(paths: StorePaths) -> Offsets | None:
    """The offsets of the last merge; None where the note is not about the database that is there now."""
    try:
        note = json.loads(files.read_own(paths.merged))
        if note["database"] != _identity(paths):
            return None
        return {name: (int(consumed), bool(finished)) for name, (consumed, finished) in note["segments"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_note(paths: StorePaths, offsets: Offsets, removed: set[str]) -> None:
    note = {
        "database": _identity(paths),
        "segments": {name: offset for name, offset in offsets.items() if name not in removed},
    }
    hidden = paths.merged.with_name(f".{paths.merged.name}.{os.getpid()}.tmp")
    try:
        hidden.unlink(missing_ok=True)  # of one that died with this number
        with os.fdopen(files.create(hidden, os.O_WRONLY), "w", encoding="utf-8") as file:
            json.dump(note, file)
        hidden.replace(paths.merged)
    except OSError:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def _identity(paths: StorePaths) -> list[int]:
    """The database as the note knows it. With its time: a backup may be copied over it, into the same file."""
    try:
        stat = paths.database.stat()
    except OSError:
        return []
    return [stat.st_dev, stat.st_ino, stat.st_mtime_ns]
