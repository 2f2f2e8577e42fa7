"""Sending what a store has to one destination, for as long as it takes: in blocks, again after a failure, one process at a time."""

from __future__ import annotations

import io
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from otel_llm.fleet.ship import shipping_note
from otel_llm.fleet.ship.destination import Block, Destination, Never, NotNow, Receipt, Source
from otel_llm.fleet.ship.outbox import Arrived, Outbox, Parcel, Version, version_of
from otel_llm.fleet.ship.running_calls import RunningTeller
from otel_llm.fleet.ship.shipping_note import ShippingNote
from otel_llm.store.errors import StoreBusy, StoreError
from otel_llm.store.journal import locks
from otel_llm.store.paths import StorePaths
from otel_llm.support import files

_logger = logging.getLogger("otel_llm")

LOOK_SECONDS: Final = 1.0
"""How often a look is taken for what is new: that many rows go together."""
_FIRST_BACK_OFF: Final = 1.0
_LONGEST_BACK_OFF: Final = 60.0
_LONGEST_ASKED: Final = 600.0
"""Seconds that a destination may ask to wait."""
_WRITE_DOWN_SECONDS: Final = 5.0
"""What has arrived is written down after so long, where nothing new comes to write it down with."""
_DOES_NOT_TAKE: Final = "does not take what is shipped"
_CANNOT_SHIP: Final = "cannot be shipped to"
_SHARE: Final = 0.01
_LONGEST_PAUSE: Final = 5.0
_MOST_ROWS: Final = 5_000
"""Rows in memory, whatever a destination would take. While they are read, merges and forks wait."""
_BUSY_SECONDS: Final = 2.0
"""How long a look waits for whoever has the store."""


@dataclass(slots=True)
class Shipped:
    """Counters of one shipper."""

    sent: int = 0
    """Rows that have arrived."""
    refused: int = 0
    """Rows that the destination will not take."""
    failures: int = 0
    """Attempts that came to nothing."""
    last_error: str | None = None


class Shipper:
    """Ships the tables `sources` of the store at `paths()`. Everything but `finish` is for one thread."""

    def __init__(
        self,
        paths: Callable[[], StorePaths],
        destination: Destination,
        sources: Sequence[Source],
        *,
        is_thrifty: bool = False,
    ) -> None:
        self._paths = paths
        self.destination = destination
        self._sources = sources
        self._is_thrifty = is_thrifty
        self.shipped = Shipped()
        self._lock: io.FileIO | None = None
        self._parcels: dict[Source, Parcel] = {}
        """What was taken from the store and has not arrived: at most one block of each table is in memory."""
        self._arrived: dict[Source, Arrived] = {}
        """What has arrived and is not written down."""
        self._arrived_at = 0.0
        self._seen: dict[Source, Version | None] = {}
        """The version of the database in which there was nothing more."""
        self._cost = 0.0
        """Seconds of a processor that the last look into the store took."""
        self._has_taken_any = False
        self._back_off = 0.0
        self._ends_at: float | None = None
        self._tries_again = True
        self._note = ShippingNote(destination.name, os.getpid())
        self._running = RunningTeller(destination)

    # --- one look -----------------------------------------------------------------------------------------------------

    def is_ours(self) -> bool:
        """Whether this process ships to the destination: it does if nobody else does. Raises OSError."""
        path = self._paths().shipping(self.destination.name)
        if self._lock is not None:
            if not self._lock.closed and locks.leads_to(path, self._lock.fileno()):
                return True
            self.let_go()
        if not self._paths().database.exists():
            return False
        files.make_own_dir(path.parent)
        try:
            self._lock = locks.hold(path)
        except TimeoutError:  # a merge of this process is at it, or the file was deleted: at the next look
            return False
        if self._lock is not None:
            shipping_note.write(self._lock, self._note)
        return self._lock is not None

    def let_go(self) -> None:
        """Another process may ship from here on."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
        self.destination.close()

    def ship(self, stopped: Callable[[], bool] = lambda: False, *, patience: float = 0.0) -> bool:
        """Sends what there is until there is nothing more; whether that is so, and is written down.

        What has arrived is written down with what is taken next, and after `patience` seconds where nothing is. Raises NotNow,
        StoreBusy, StoreError; what has arrived by then is not sent again.
        """
        version = version_of(self._paths())
        if version is None:
            return True
        complete = [self._ship(source, version, stopped, patience) for source in self._sources]
        return all(complete)

    def _ship(self, source: Source, version: Version, stopped: Callable[[], bool], patience: float) -> bool:
        outbox = Outbox(self._paths(), self.destination.name, source)
        if version == self._seen.get(source) and source not in self._parcels:
            if source not in self._arrived:
                return True
            if time.monotonic() - self._arrived_at < patience:
                return False
        while not stopped():
            parcel = self._parcels.get(source)
            if parcel is None:
                parcel = self._take(outbox)
                if parcel is None:
                    self._tell(behind_since=None)
                    return True
            rows = len(parcel.block.rows)
            receipt = self._deliver(parcel.block)
            if rows and receipt.refused == rows > 1:
                del self._parcels[source], self._seen[source]  # the next one may have a row among them that it takes
                raise NotNow(f"it refuses each of {rows:,} rows: {receipt.reason}")
            if receipt.refused:
                self._tell_refused(source, receipt)
            sent = rows - receipt.refused
            self._arrived[source] = Arrived(parcel.before, parcel.commit_number, sent, receipt.refused)
            self._arrived_at = time.monotonic()
            del self._parcels[source]
            self.shipped.sent += sent
            self.shipped.refused += receipt.refused
            self._recovered()
            if not parcel.is_full:
                self._tell(behind_since=None)
                return False  # what has come meanwhile goes with the next look
        return False

    def _take(self, outbox: Outbox) -> Parcel | None:
        source = outbox.source
        most_rows = min(self.destination.most_rows, _MOST_ROWS)
        began = time.thread_time()
        parcel = outbox.take(most_rows, self.destination.most_bytes, self._arrived.get(source), timeout=_BUSY_SECONDS)
        self._cost = time.thread_time() - began
        self._arrived.pop(source, None)
        self._seen[source] = outbox.version if parcel is None or not parcel.is_full else None
        if parcel is not None:
            self._parcels[source] = parcel
            self._tell(behind_since=self._note.behind_since or time.time())
        return parcel

    def _deliver(self, block: Block) -> Receipt:
        """Sends a block, and where that is refused its halves, down to the rows that are to blame."""
        try:
            receipt = self.destination.send(block)
        except Never as error:
            if len(block.rows) > 1:
                half = len(block.rows) // 2
                one, other = (
                    self._deliver(Block(block.source, rows)) for rows in (block.rows[:half], block.rows[half:])
                )
                return Receipt(one.refused + other.refused, one.reason or other.reason)
            if not self._has_taken_any:  # it may be the destination that is wrong, and not the row
                raise NotNow(str(error)) from error
            return Receipt(1, str(error))
        if receipt.refused < len(block.rows):
            self._has_taken_any = True
        return receipt

    def _tell_refused(self, source: Source, receipt: Receipt) -> None:
        said = f" ({receipt.reason})" if receipt.reason else ""
        _logger.warning(
            "%s refuses %d rows of %s%s: they are left out there, and stay in the store",
            self.destination.name,
            receipt.refused,
            source,
            said,
        )

    # --- for as long as it takes --------------------------------------------------------------------------------------

    def run(self, stopping: threading.Event, before_look: Callable[[], object] = lambda: None) -> None:
        """Looks, ships and waits until `stopping` is set, and then goes on for as long as `finish` has given it."""
        while True:
            wait = self._look(stopping, before_look)
            if not stopping.is_set():
                stopping.wait(max(wait, self._pause()))
            elif wait == 0 or self._is_over() or (self._back_off and not self._tries_again):
                return
            else:
                time.sleep(min(wait, 0.1))

    def finish(self, seconds: float, *, tries_again: bool = True) -> None:
        """Has it send what is left when it is stopped, but for so long at most, and only once where it does not try again."""
        self._tries_again = tries_again
        self._ends_at = time.monotonic() + seconds
        self.destination.timeout = min(self.destination.timeout, max(seconds, 0.1))

    def _is_over(self) -> bool:
        return self._ends_at is None or time.monotonic() >= self._ends_at

    def _pause(self) -> float:
        """Seconds between two looks: in an app's own process such that they take a hundredth of a core, as merges do."""
        return min(max(self._cost / _SHARE, LOOK_SECONDS), _LONGEST_PAUSE) if self._is_thrifty else LOOK_SECONDS

    def _look(self, stopping: threading.Event, before_look: Callable[[], object]) -> float:
        """Ships what there is, if it can; returns the seconds until the next look, 0 where all is done. Raises nothing."""
        patience = 0.0 if stopping.is_set() else _WRITE_DOWN_SECONDS
        try:
            before_look()
            if not self.is_ours():
                return 0.0
            is_done = self.ship(lambda: stopping.is_set() and self._is_over(), patience=patience)
            self._running.tell(self._paths())
            return 0.0 if is_done else LOOK_SECONDS
        except NotNow as error:
            return self._failed(str(error), error.retry_after, _DOES_NOT_TAKE)
        except StoreBusy as error:
            self.shipped.last_error = str(error)
            return LOOK_SECONDS
        except (StoreError, OSError) as error:
            return self._failed(str(error))
        except Exception as error:  # a fault of ours must not end it
            _logger.debug("shipping failed", exc_info=True)
            return self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, reason: str, retry_after: float | None = None, how: str = _CANNOT_SHIP) -> float:
        """Says so once until it works again; returns how long to wait."""
        if not self._back_off:
            _logger.warning(
                f"%s {how}: %s; what is to go there stays in the store, and is sent when that is mended",
                self.destination.name,
                reason,
            )
        self._tell(failing_since=self._note.failing_since or time.time(), reason=reason)
        self.shipped.failures += 1
        self.shipped.last_error = reason
        self._back_off = min(self._back_off * 2 or _FIRST_BACK_OFF, _LONGEST_BACK_OFF)
        wait = self._back_off * random.uniform(0.75, 1.25)  # a fleet must not come back all at once
        return wait if retry_after is None else max(wait, min(retry_after, _LONGEST_ASKED))

    def _recovered(self) -> None:
        if self._back_off:
            _logger.warning("%s takes what is shipped again", self.destination.name)
        self._back_off = 0.0
        self.shipped.last_error = None
        self._tell(failing_since=None, reason=None)

    def _tell(self, **changes: Any) -> None:
        """Leaves a note for `ps` and `doctor` where it is another than before."""
        changed = replace(self._note, **changes)
        if changed != self._note:
            self._note = changed
            if self._lock is not None:
                with suppress(OSError, ValueError):  # it was closed, by a fork
                    shipping_note.write(self._lock, changed)
