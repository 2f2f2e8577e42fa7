"""Where the files of one store lie: the database and what stands beside it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StorePaths:
    """The files of one store. Everything but the database is named after it."""

    database: Path

    @classmethod
    def of(cls, store: str | os.PathLike[str]) -> StorePaths:
        """The layout of the store whose database is at `store` (made absolute, `~` expanded).

        A link is followed: whoever comes by another name must find the same lock and the same journal.
        """
        path = Path(store).expanduser().absolute()
        return cls(path.resolve() if path.is_symlink() else path)

    @property
    def wal(self) -> Path:
        return _beside(self.database, ".wal")

    @property
    def next(self) -> Path:
        """The copy of the database that a merge writes, until it takes the place of the database."""
        return _beside(self.database, ".next")

    @property
    def spare(self) -> Path:
        """What the database was before the last merge: the next merge brings it up to date instead of copying everything."""
        return _beside(self.database, ".spare")

    @property
    def lock(self) -> Path:
        """The sidecar file that lets one process merge at a time."""
        return _beside(self.database, ".lock")

    @property
    def lock_next(self) -> Path:
        """Held by who is next to have the lock."""
        return _beside(self.lock, ".next")

    @property
    def journal(self) -> Path:
        """The directory of journal segments."""
        return _beside(self.database, ".journal")

    @property
    def corrupt(self) -> Path:
        """Where lines are put aside that fail their checksum, one file per segment."""
        return self.journal / "corrupt"

    @property
    def merged(self) -> Path:
        """A note of what the last merge took, so that an idle process need not open the database to see."""
        return self.journal / "merged.json"

    @property
    def merger(self) -> Path:
        """The lock that the process holds, for as long as it lives, which merges for all: see `jobs.merge_role`."""
        return self.journal / "merger.lock"

    @property
    def pending(self) -> Path:
        """Is there while spans are known that have not arrived over OTLP, so that nobody opens the database to find none."""
        return self.journal / "pending"

    @property
    def sending(self) -> Path:
        """The lock that lets one process at a time send what is missing at an OTLP endpoint."""
        return self.journal / "sending.lock"

    def shipping(self, destination: str) -> Path:
        """The lock that lets one process at a time ship to that destination, with a note of how that fares."""
        return self.journal / f"ship-{hashlib.sha256(destination.encode()).hexdigest()[:16]}.lock"

    @property
    def all_shipping(self) -> list[Path]:
        """Those locks, of every destination that was ever shipped to."""
        return sorted(self.journal.glob("ship-*.lock"))

    @property
    def crossings(self) -> Path:
        """Which thresholds of budgets were crossed, and who was told: see `otel_llm.budgets.alerts`."""
        return self.journal / "budget-crossings.log"

    @property
    def alerting(self) -> Path:
        """The lock that lets one process at a time tell of them."""
        return self.journal / "budget-alerts.lock"

    @property
    def stream_usage(self) -> Path:
        """What servers take that are asked for the usage of a stream: see `otel_llm.calls.stream_usage`."""
        return self.journal / "stream-usage.json"

    @property
    def quotes(self) -> Path:
        """What genai-prices has said of the models in use: see `otel_llm.prices.remembered`."""
        return self.journal / "prices.json"

    @property
    def budgets(self) -> Path:
        """The directory of what budgets have spent and set aside: see `otel_llm.budgets.stop.ledger`."""
        return _beside(self.database, ".budgets")

    @property
    def prices(self) -> Path:
        """The directory of price lists that were imported."""
        return _beside(self.database, ".prices")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
