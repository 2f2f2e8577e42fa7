"""Thresholds that were crossed, and who has been told: a file beside the journals, a JSON object a line, only ever added to.

    {"crossed": {what `Crossing` has}, "to": [who is to be told]}
    {"told": id, "to": who, "at": when}
    {"gave_up": id, "to": who, "at": when}

It is no table of the database, so that nothing here waits for a merge, or has one wait. A crossing is on disk before anybody is
told of it, and an answer before the next crossing: after `kill -9` whoever has not answered is told again, by the same id.
One process writes the file, under a lock; whoever reads it leaves out what is not whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self

from otel_llm.budgets.rules import Per, Unit
from otel_llm.budgets.spending import Spending
from otel_llm.store.paths import StorePaths
from otel_llm.support import files, masking

LOG: Final = ""
"""Who is told by a line in the log of the process, and by an event."""
_LARGEST: Final = 4 * 2**20
"""Bytes, before what nobody asks for any more is left out."""
_KEPT_SECONDS: Final = 40 * 86_400.0
"""So long after it was crossed: longer than any period."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A threshold of one limit that was reached. Numbers are in what the budget limits; moments in ISO 8601."""

    id: str
    """The same for the same threshold of the same limit: whoever gets it twice can tell."""
    at: str
    budget: str
    unit: str
    limit: float
    threshold: float
    action: str
    per: str
    each: str | None
    value: str | None
    run: str | None
    start: str | None
    end: str | None
    spent: float
    calls: int
    uncounted: int
    """Calls that are not in `spent`."""
    blocked: bool
    """A call without a price has spent it."""

    @classmethod
    def of(cls, spending: Spending, threshold: float, now: datetime) -> Self:
        budget, period = spending.budget, spending.period
        start, end = (one.astimezone(budget.zone).isoformat() for one in period) if period is not None else (None, None)
        since = None if period is None else period.start.isoformat()
        limit = [
            budget.name, budget.unit, str(budget.limit), budget.per, budget.each, spending.value, spending.run, since, threshold,
        ]  # fmt: skip
        return cls(
            id=hashlib.sha256(json.dumps(limit).encode()).hexdigest()[:32],
            at=now.astimezone(budget.zone).isoformat(timespec="milliseconds"),
            budget=budget.name,
            unit=budget.unit.value,
            limit=float(budget.limit),
            threshold=threshold,
            action=budget.action,
            per=budget.per.value,
            each=budget.each,
            value=spending.value,
            run=spending.run,
            start=start,
            end=end,
            spent=float(spending.amount),
            calls=spending.calls,
            uncounted=spending.uncounted,
            blocked=spending.is_blocked,
        )

    @property
    def time_ns(self) -> int:
        return round(datetime.fromisoformat(self.at).timestamp() * 1e9)

    @property
    def is_spent(self) -> bool:
        return self.threshold >= 1 or self.blocked

    @property
    def subject(self) -> str:
        """Which limit it is, of all that the budget has."""
        parts = [f"budget {masking.text(repr(self.budget))}"]
        if self.each is not None:
            parts.append(f"{self.each} = {'(none)' if self.value is None else masking.text(repr(self.value))}")
        if self.run is not None:
            parts.append(f"{self.per} {masking.text(self.run)}")
        return ", ".join(parts)

    @property
    def details(self) -> str:
        """How much is spent of it, until when, and what that means."""
        share = "spent" if self.is_spent else f"{percent(self.threshold)} is spent"
        said = f"{share}, {amount(self.spent)} of {amount(self.limit)} {self.unit_name}"
        if self.end is not None:
            until = f"{datetime.fromisoformat(self.end):%Y-%m-%d %H:%M %Z}".rstrip()
            said += f" {'today' if self.per == Per.day else f'this {self.per}'}, until {until}"
        if self.blocked:
            said += "; a call without a price blocks it"
        if self.action == "stop" and self.is_spent:
            said += "; no further call is sent"
        if self.uncounted:
            said += f"; {self.uncounted:,} {'call' if self.uncounted == 1 else 'calls'} of unknown cost not counted"
        return said

    @property
    def text(self) -> str:
        """The crossing in a line."""
        return f"{self.subject}: {self.details}"

    @property
    def unit_name(self) -> str:
        return "USD" if self.unit == Unit.usd.value else self.unit


def amount(number: float | Decimal) -> str:
    """A number of USD, tokens or calls as people read it."""
    if number == int(number):
        return f"{int(number):,}"
    return f"{number:,.2f}" if number >= 1 else f"{number:.6f}".rstrip("0").rstrip(".") or "0"


def percent(share: float) -> str:
    return f"{round(share * 100, 2):g} %"


@dataclass(frozen=True, slots=True)
class Told:
    """A crossing, and how it stands with each who is to be told."""

    crossing: Crossing
    to: Mapping[str, str] = field(default_factory=dict)
    """By name: `told`, `waiting` or `gave up`."""


class CrossingLog:
    """The file, for the one process that writes it. Safe to use from several threads."""

    def __init__(self, paths: StorePaths) -> None:
        self._file = paths.crossings
        self._lock = threading.Lock()
        self._known: dict[str, Crossing] = {}
        self._waiting: dict[tuple[str, str], None] = {}
        self._load()

    def _load(self) -> None:
        """Raises OSError."""
        try:
            content = files.read_own(self._file)
        except FileNotFoundError:
            return
        lines: list[Mapping[str, Any]] = [*_objects(content)]
        if len(content) > _LARGEST:
            lines = [*_still_asked_for(lines)]
            _replace(self._file, lines)
        elif content and not content.endswith(b"\n"):  # somebody was killed while he wrote
            files.append(self._file, b"\n")
        for told in _told(lines):
            self._known[told.crossing.id] = told.crossing
            self._waiting |= {(told.crossing.id, to): None for to, how in told.to.items() if how == "waiting"}

    def is_known(self, crossing: Crossing) -> bool:
        return crossing.id in self._known

    def add(self, crossings: Sequence[tuple[Crossing, Sequence[str]]]) -> None:
        """Notes crossings, each with whom to tell. Raises OSError, and then none is noted."""
        if not crossings:
            return
        with self._lock:
            self._write({"crossed": asdict(crossing), "to": list(to)} for crossing, to in crossings)
            for crossing, to in crossings:
                self._known[crossing.id] = crossing
                self._waiting |= {(crossing.id, one): None for one in to}

    def told(self, crossing: Crossing, to: str) -> None:
        """Notes that somebody has been told. Raises OSError."""
        self._settle("told", crossing, to)

    def gave_up(self, crossing: Crossing, to: str) -> None:
        """Notes that somebody will not be told. Raises OSError."""
        self._settle("gave_up", crossing, to)

    def waiting(self) -> dict[str, list[Crossing]]:
        """Who is still to be told, and of what, the earliest first."""
        found: dict[str, list[Crossing]] = {}
        for id_, to in list(self._waiting):
            found.setdefault(to, []).append(self._known[id_])
        return found

    def _settle(self, how: str, crossing: Crossing, to: str) -> None:
        with self._lock:
            self._write([{how: crossing.id, "to": to, "at": time.time()}])
            self._waiting.pop((crossing.id, to), None)

    def _write(self, objects: Iterable[Mapping[str, Any]]) -> None:
        data = b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in objects)
        files.make_own_dir(self._file.parent)
        with os.fdopen(files.open_or_create(self._file, os.O_WRONLY | os.O_APPEND), "ab") as end:
            end.write(data)
            end.flush()
            os.fsync(end.fileno())


def read(paths: StorePaths) -> list[Told]:
    """What was crossed and is still known, in that order. Raises nothing: what cannot be read is left out."""
    try:
        if files.directory_objection(paths.journal) is not None:
            return []
        return [*_told(_objects(files.read_own(paths.crossings)))]
    except OSError:
        return []


def _objects(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _told(lines: Iterable[Mapping[str, Any]]) -> Iterable[Told]:
    found: dict[str, tuple[Crossing, dict[str, str]]] = {}
    for line in lines:
        try:
            if "crossed" in line:
                crossing = Crossing(**line["crossed"])
                found.setdefault(crossing.id, (crossing, dict.fromkeys(line["to"], "waiting")))
            else:
                how = "told" if "told" in line else "gave_up"
                if (known := found.get(line[how])) is not None:
                    known[1][line["to"]] = how.replace("_", " ")
        except (KeyError, TypeError, ValueError):  # of another version
            continue
    return [Told(crossing, to) for crossing, to in found.values()]


def _still_asked_for(lines: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What belongs to periods that may go on, and what somebody still has to be told."""
    limit = (time.time() - _KEPT_SECONDS) * 1e9
    kept = {
        told.crossing.id for told in _told(lines) if "waiting" in told.to.values() or told.crossing.time_ns >= limit
    }
    for line in lines:
        crossed = line.get("crossed")
        if (crossed.get("id") if isinstance(crossed, dict) else line.get("told", line.get("gave_up"))) in kept:
            yield line


def _replace(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Puts other lines in the place of a file. Raises OSError."""
    new = file.with_name(f".{file.name}.tmp")
    new.unlink(missing_ok=True)
    with os.fdopen(files.create(new, os.O_WRONLY), "wb") as output:
        output.writelines(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in lines)
        output.flush()
        os.fsync(output.fileno())
    new.replace(file)
