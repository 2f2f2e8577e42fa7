"""What is spent and set aside, for all processes of a machine that keep one account: a file of counters beside the store.

A row for each budget, period and value of its column; in each row a pair of cells for each process (its *slot*): what its calls
have cost, and what is set aside for those that run. A process writes no cells but its own, with one write that another process
sees whole, and reads the row of all. So nobody waits for anybody, and a process that is stopped in the midst of it stops no other.

    row: digest (2), base, read at, ends at, slots that are used, 2 unused,
         then cost and set aside of slot 0, of slot 1, …                        (all 64-bit integers)
    spent = base + the costs of all slots

The costs only grow. `base` is what makes the sum that of the account: whoever has read that writes `account - costs`, with the
costs as they were *before* he read it, so that a call that ends meanwhile counts twice until the next time, and none is left out.

A slot is held by a lock, which the kernel frees when its process dies. What was set aside in a slot that nobody holds belongs to
the dead: it is given back by whoever takes the slot, or is about to refuse a call because of it. What the dead had spent stays.

The file is a convenience: the account has everything in it. One that is missing or damaged is made again, and rows whose time is
over are used again.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from otel_llm.support import files, forks
from otel_llm.support.system import file_locks, offsets

SLOTS: Final = 64
"""Processes that can keep the same account with budgets that stop, at once."""
MOST_ROWS: Final = 2**16
_MAGIC: Final = 0x316C6C6D62646774
_WORD: Final = 8
_HEADER: Final = 8 * _WORD
"""Magic number, slots, rows."""
_BEFORE_CELLS: Final = 8
_USED: Final = 5 * _WORD
"""Where a row says how many slots there are in it."""
_ROW: Final = (_BEFORE_CELLS + 2 * SLOTS) * _WORD
_GROWTH: Final = 64
"""Rows by which the file grows."""
_LOOKS_EVERY: Final = 0.1
"""Seconds between two looks for the dead."""
_GRACE_US: Final = 24 * 3600 * 10**6
"""How long after its end the row of a period is kept: calls that began in it may still run."""
_LONGEST_WAIT: Final = 1.0


class LedgerUnusable(Exception):
    """The counters cannot be read or written; the text says why."""


class Standing(NamedTuple):
    """How a row stands."""

    spent: int
    reserved: int
    read_at_us: int
    """When the account was read for it; 0: never."""


class Ledger:
    """The file at `path`, and this process's slot in it. Safe to use from many threads; after a fork the child has its own slot."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "ledger"
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.RLock()
        self._file: io.FileIO | None = None
        self._slot = -1
        self._slot_lock: io.FileIO | None = None
        self._rows: dict[bytes, int] = {}
        self._seen_rows = 0
        self._own: dict[int, list[int]] = {}
        """This process's cells by row, which it alone writes: cost, set aside, and where in the file they are."""
        self._looked_at = 0.0
        self.generation = object()
        """Another after a fork, and after the file was made again: what was set aside before is not in these rows."""

    # --- spending ------------------------------------------------------------------------------------------------------
    def row(self, digest: bytes, ends_at_us: int) -> int:
        """The row with this digest of 16 bytes; made where there is none. Raises LedgerUnusable."""
        found = self._rows.get(digest)
        return self._find(digest, ends_at_us) if found is None else found

    def reserve(self, row: int, amount: int, limit: int) -> Standing | None:
        """Sets `amount` aside, if it fits below `limit`; else how the row stands. Raises LedgerUnusable."""
        refused = self._reserve(row, amount, limit)
        if refused is not None and refused.reserved and self.bury(row):
            refused = self._reserve(row, amount, limit)
        return refused

    def _reserve(self, row: int, amount: int, limit: int) -> Standing | None:
        try:
            with self._lock:
                cells = self._own.get(row)
                if cells is None:
                    cells = self._cells(row)
                cells[1] += amount
                self._put(cells)
                found = self._read(row)
                if found[2] + sum(found[_BEFORE_CELLS:]) <= limit:
                    return None
                cells[1] -= amount
                self._put(cells)
                standing = _standing(found)
                return standing._replace(reserved=standing.reserved - amount)
        except OSError as error:
            raise LedgerUnusable(str(error)) from error

    def settle(self, row: int, reserved: int, cost: int) -> None:
        """A call for which `reserved` was set aside has cost `cost`."""
        with self._lock, suppress(OSError):
            cells = self._own.get(row)
            if cells is None:
                cells = self._cells(row)
            cells[0] += cost
            cells[1] -= reserved
            self._put(cells)

    def standing(self, row: int) -> Standing:
        """Raises LedgerUnusable."""
        try:
            with self._lock:
                return _standing(self._read(row))
        except OSError as error:
            raise LedgerUnusable(str(error)) from error

    def costs(self, row: int) -> int:
        """What the calls of all processes have cost that were settled here. Raises LedgerUnusable."""
        try:
            with self._lock:
                return sum(self._read(row)[_BEFORE_CELLS::2])
        except OSError as error:
            raise LedgerUnusable(str(error)) from error

    def family(self, prefix: bytes) -> dict[bytes, tuple[int, int]]:
        """The rows whose digest begins so: by digest, with what has been settled there. Raises LedgerUnusable."""
        try:
            with self._lock:
                self._fd()
                self._see_new()
                found = {known: row for known, row in self._rows.items() if known.startswith(prefix)}
                return {known: (row, sum(self._read(row)[_BEFORE_CELLS::2])) for known, row in found.items()}
        except OSError as error:
            raise LedgerUnusable(f"{self.path}: {error.strerror or error}") from error

    def rebase(self, row: int, account: int, costs: int, now_us: int) -> None:
        """The account says `account`; `costs` is what `costs()` said before it was asked. Raises LedgerUnusable."""
        with self._lock:
            try:
                self._write(row, 2, (account - costs, now_us))
            except OSError as error:
                raise LedgerUnusable(str(error)) from error

    # --- the file --------------------------------------------------------------------------------------------------------
    def _read(self, row: int) -> tuple[int, ...]:
        """The words of a row. Raises OSError, LedgerUnusable."""
        whole = offsets.pread(self._fd(), _ROW, _HEADER + row * _ROW)
        if len(whole) < _ROW:
            self.forget()
            raise LedgerUnusable(f"{self.path} was cut")
        (used,) = _COUNT.unpack_from(whole, _USED)
        words: tuple[int, ...] = _WORDS[used if 0 <= used <= SLOTS else SLOTS].unpack_from(whole)
        return words

    def _write(self, row: int, word: int, values: tuple[int, ...]) -> None:
        offsets.pwrite(self._fd(), _words(*values), _HEADER + row * _ROW + word * _WORD)

    def _put(self, cells: list[int]) -> None:
        cost, reserved, place = cells
        offsets.pwrite(self._fd(), _CELLS.pack(cost, reserved if reserved > 0 else 0), place)

    def _cells(self, row: int) -> list[int]:
        """This process's cells; the slot is taken where there is none yet. Raises OSError, LedgerUnusable."""
        if self._slot < 0:
            self._take_slot()
        cells = self._own.get(row)
        if cells is None:
            place = _HEADER + row * _ROW + (_BEFORE_CELLS + 2 * self._slot) * _WORD
            with self._alone():  # whoever reads the row from now on reads this slot too
                used, *_ = _unpacked(offsets.pread(self._fd(), _WORD, _HEADER + row * _ROW + _USED)) or (0,)
                if used <= self._slot:
                    self._write(row, _USED // _WORD, (self._slot + 1,))
            (before,) = _unpacked(offsets.pread(self._fd(), _WORD, place)) or (0,)
            cells = self._own[row] = [before, 0, place]
        return cells

    def _fd(self) -> int:
        file = self._file
        if file is None:
            file = self._open()
        return file.fileno()

    def _open(self) -> io.FileIO:
        """Raises LedgerUnusable."""
        try:
            files.make_own_dir(self.directory)
            file = self._file = io.FileIO(files.open_or_create(self.path), "r+")
            with self._alone():
                header = _unpacked(offsets.pread(file.fileno(), _HEADER, 0))
                size = os.fstat(file.fileno()).st_size
                if header[:2] != (_MAGIC, SLOTS) or size < _HEADER + header[2] * _ROW:
                    # New, or damaged: the account will say what was spent.
                    os.ftruncate(self._fd(), 0)
                    offsets.pwrite(self._fd(), _words(_MAGIC, SLOTS, 0, 0, 0, 0, 0, 0), 0)
        except OSError as error:
            self._file = None
            raise LedgerUnusable(f"{self.path}: {error.strerror or error}") from error
        return file

    def forget(self) -> None:
        """Lets go of the file, which is opened again by the next who needs it; made again where it is not what it was."""
        with self._lock:
            slot, file = self._slot_lock, self._file
            self._file = self._slot_lock = None
            self._slot, self._seen_rows = -1, 0
            self._rows, self._own, self.generation = {}, {}, object()
            for held in (slot, file):
                if held is not None:
                    held.close()

    def is_replaced(self) -> bool:
        """Whether the file was deleted, or another put in its place."""
        with self._lock:
            try:
                return self._file is not None and not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
            except OSError:
                return True

    def _alone(self) -> _Alone:
        return _Alone(self.directory / "rows.lock")

    def _count(self) -> int:
        """How many rows there are."""
        found = _unpacked(offsets.pread(self._fd(), _HEADER, 0))
        return min(found[2], MOST_ROWS) if found else 0

    def refresh(self) -> None:
        """Rows whose time is over may be used for something else by now: they are looked up again."""
        with self._lock:
            self._rows, self._seen_rows = {}, 0
            self._own = {row: cells for row, cells in self._own.items() if cells[1]}

    # --- rows --------------------------------------------------------------------------------------------------------------
    def _find(self, digest: bytes, ends_at_us: int) -> int:
        try:
            with self._lock:
                self._fd()
                self._see_new()
                if (found := self._rows.get(digest)) is not None:
                    return found
                with self._alone():
                    self._see_new()
                    found = self._rows.get(digest)
                    return self._make(digest, ends_at_us) if found is None else found
        except OSError as error:
            raise LedgerUnusable(f"{self.path}: {error.strerror or error}") from error

    def _see_new(self) -> None:
        """Takes note of rows that others have made."""
        rows = self._count()
        while self._seen_rows < rows:
            digest = offsets.pread(self._fd(), 16, _HEADER + self._seen_rows * _ROW)
            self._rows[digest] = self._seen_rows
            self._seen_rows += 1

    def _make(self, digest: bytes, ends_at_us: int) -> int:
        """A new row, or one whose time is over. Others are kept out."""
        row = rows = self._count()
        if rows % _GROWTH == 0:
            row = self._over(rows)
            if row == rows:
                if rows >= MOST_ROWS:
                    raise LedgerUnusable(f"{self.path} has {MOST_ROWS} limits in it, the most that it can have")
                # Written out, so that a full disk says so here.
                for number in range(rows, rows + _GROWTH):
                    offsets.pwrite(self._fd(), bytes(_ROW), _HEADER + number * _ROW)
        if row < rows:
            offsets.pwrite(self._fd(), bytes(_ROW), _HEADER + row * _ROW)
            self._rows = {known: at for known, at in self._rows.items() if at != row}
            self._own.pop(row, None)
        self._write(row, 4, (ends_at_us,))
        offsets.pwrite(self._fd(), digest, _HEADER + row * _ROW)
        if row == rows:
            offsets.pwrite(self._fd(), _words(rows + 1), 2 * _WORD)
            self._seen_rows = rows + 1
        self._rows[digest] = row
        return row

    def _over(self, rows: int) -> int:
        """A row that is not needed any more; `rows` where there is none."""
        before = time.time_ns() // 1000 - _GRACE_US
        for row in range(rows):
            found = _unpacked(offsets.pread(self._fd(), _WORD, _HEADER + row * _ROW + 4 * _WORD))
            if found and found[0] < before:
                return row
        return rows

    # --- slots -------------------------------------------------------------------------------------------------------------
    def _slot_path(self, slot: int) -> Path:
        return self.directory / f"slot-{slot:02d}"

    def _take_slot(self) -> None:
        """Raises LedgerUnusable where all are held."""
        self._fd()
        for slot in range(SLOTS):
            if (held := self._held(slot)) is None:
                continue
            self._slot, self._slot_lock = slot, held
            self._give_back(slot)
            return
        raise LedgerUnusable(f"{SLOTS} processes keep {self.path}, the most that can")

    def _held(self, slot: int) -> io.FileIO | None:
        """The lock of a slot, where no living process holds it. A fork waits until it is known here, so that the child lets go."""
        try:
            return _locked(self._slot_path(slot))
        except BlockingIOError:
            return None

    def bury(self, row: int) -> bool:
        """Gives back what is set aside in a row by processes that are dead; whether there was anything. Looks every so often."""
        now = time.monotonic()
        with self._lock:
            if now < self._looked_at + _LOOKS_EVERY:
                return False
            self._looked_at = now
            given_back = False
            try:
                for slot, reserved in enumerate(self._read(row)[_BEFORE_CELLS + 1 :: 2]):
                    if reserved and slot != self._slot and (held := self._held(slot)) is not None:
                        given_back = self._give_back(slot) or given_back
                        held.close()
            except OSError:
                pass  # they will be asked again
            return given_back

    def _give_back(self, slot: int) -> bool:
        """Nothing is set aside in a slot any more, whose lock is held here."""
        found = False
        for row in range(self._count()):
            place = _HEADER + row * _ROW + (_BEFORE_CELLS + 2 * slot + 1) * _WORD
            if any(_unpacked(offsets.pread(self._fd(), _WORD, place))):
                offsets.pwrite(self._fd(), bytes(_WORD), place)
                found = True
        return found

    def _after_fork(self) -> None:
        held = self._file, self._slot_lock
        self._start_afresh()
        for file in held:
            if file is not None:
                with suppress(OSError):
                    file.close()


_WORDS: Final = [struct.Struct(f"={_BEFORE_CELLS + 2 * used}q") for used in range(SLOTS + 1)]
_CELLS: Final = struct.Struct("=2q")
_COUNT: Final = struct.Struct("=q")


def _words(*values: int) -> bytes:
    return struct.pack(f"={len(values)}q", *values)


def _standing(words: tuple[int, ...]) -> Standing:
    return Standing(words[2] + sum(words[_BEFORE_CELLS::2]), sum(words[_BEFORE_CELLS + 1 :: 2]), words[3])


def _unpacked(data: bytes) -> tuple[int, ...]:
    """The whole words in it."""
    count = len(data) // _WORD
    return struct.unpack(f"={count}q", data[: count * _WORD])


class _Alone:
    """Keeps other processes from making rows, by the lock file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None

    def __enter__(self) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT
        while True:
            try:
                self._file = _locked(self._path)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _locked(path: Path) -> io.FileIO:
    """Holds the lock file `path`, which is made where it is missing, until what is returned is closed.

    Raises BlockingIOError where somebody else does, OSError.
    """
    file = io.FileIO(files.open_or_create(path), "r+")
    try:
        file_locks.take(file.fileno())
    except BaseException:
        file.close()
        raise
    return file


def digest(*parts: str) -> bytes:
    """What stands for a budget, a period and a value in the file."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


_all = forks.members(forks.Turn.BUDGETS, Ledger._after_fork, lambda ledger: ledger._lock)
