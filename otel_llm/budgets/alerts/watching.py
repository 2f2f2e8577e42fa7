"""Looking after each merge whether a threshold is crossed, and telling of it, in the process that merges for all.

That one has DuckDB in memory anyway. It reads what the merge has left, on a thread of its own that no merge and no call waits for;
each webhook and command has one more while it is told, so that one that hangs holds up no other. What could not be told is told
later, by this process or by another one.
"""

from __future__ import annotations

import io
import logging
import os
import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_llm.budgets import rules
from otel_llm.budgets.periods import period
from otel_llm.budgets.rules import Budget, Rules
from otel_llm.settings import settings
from otel_llm.store.errors import StoreError
from otel_llm.store.file import exits
from otel_llm.store.journal import locks
from otel_llm.support import faults, files, forks, importing, masking

if TYPE_CHECKING:
    from otel_llm.account.questions import Account
    from otel_llm.budgets.alerts.crossings import Crossing, CrossingLog
    from otel_llm.budgets.spending import Spending
    from otel_llm.store import Store

_logger = logging.getLogger("otel_llm")

_LOOK_SECONDS: Final = 1.0
_SHARE: Final = 0.01
"""Of a core, for looks."""
_LONGEST_PAUSE: Final = 5.0
_JUST_ENDED: Final = timedelta(minutes=1)
"""For so long after the end of a period it is looked at once more: a merge comes after the call."""
_FIRST_BACK_OFF: Final = 1.0
_LONGEST_BACK_OFF: Final = 600.0
_LONGEST_ASKED: Final = 3600.0
"""Seconds that a receiver may ask to wait."""
_MOST_AT_ONCE: Final = 20
"""Limits of one budget that a look tells of: the largest."""
_TOO_OLD_SECONDS: Final = 86_400.0
"""After so long nobody is told any more."""
_EXIT_SECONDS: Final = 5.0
"""For a last look and who is to be told at the end of the process. The rest is told by the next one."""


@dataclass(slots=True)
class _Line:
    """How it stands with one receiver."""

    thread: threading.Thread | None = None
    back_off: float = 0.0
    not_before: float = 0.0


class BudgetWatch:
    """Watches the budgets of the file over `store`."""

    def __init__(self, store: Store, file: Path) -> None:
        self._store = store
        self._file = file
        self.start_afresh()
        _all.add(self)

    def start_afresh(self) -> None:
        """At construction, and in the child of a fork, where no thread of the parent runs and its lock is not held."""
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._is_registered = False
        self._has_finished = False
        self._lock: io.FileIO | None = None
        self._log: CrossingLog | None = None
        self._lines: dict[str, _Line] = {}
        self._rules: tuple[Any, Rules] | None = None
        self._seen: Any = None
        self._cost = 0.0
        self._is_failing = False

    def look(self) -> None:
        """Begins where this process merges. Called before each merge, and each look whether one is due; costs nothing."""
        if not self._is_registered:
            self._is_registered = True
            exits.register(self._finish)  # after the store's own, so that all is merged by then
        if self._store.merges_for_all and self._thread is None and not self._stopping.is_set():
            self._thread = threading.Thread(target=self._run, name="otel-llm-budgets", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is shutting down: `_finish` looks
                self._thread = None

    @importing.whole()
    def _run(self) -> None:
        stopping = self._stopping
        while not stopping.wait(min(max(self._cost / _SHARE, _LOOK_SECONDS), _LONGEST_PAUSE)):
            self._once()

    def _once(self, deadline: float | None = None) -> None:
        """A look, and telling. Raises nothing."""
        try:
            if self._is_ours():
                self._find()
                self._tell(deadline)
                self._is_failing = False
        except (StoreError, OSError) as error:  # at the next look
            if not self._is_failing:
                _logger.warning("budgets cannot be looked at: %s; it is tried again", masking.text(error))
            self._is_failing = True
        except (Exception, SystemExit) as error:
            faults.note("look at the budgets", error)

    def _finish(self) -> None:
        """At the end of the process: what the last merge has crossed, if this process merges, and who is to be told of it."""
        self._stopping.set()
        if self._has_finished or (self._thread is None and not self._store.stats.merges):
            return
        self._has_finished = True
        deadline = time.monotonic() + _EXIT_SECONDS
        if self._thread is not None:
            self._thread.join(_EXIT_SECONDS)
            if self._thread.is_alive():
                return
        self._once(deadline)
        for line in list(self._lines.values()):
            if line.thread is not None:
                line.thread.join(max(deadline - time.monotonic(), 0.0))

    def _is_ours(self) -> bool:
        """Whether this process tells of the store's budgets: it does if nobody else does. Raises OSError."""
        paths = self._store.paths
        if self._lock is not None and not self._lock.closed and locks.leads_to(paths.alerting, self._lock.fileno()):
            return True
        self._lock = self._log = self._seen = None
        if not paths.database.exists():
            return False
        files.make_own_dir(paths.journal)
        try:
            self._lock = locks.hold(paths.alerting)
        except TimeoutError:  # a merge of this process is at it: at the next look
            return False
        return self._lock is not None

    # --- finding --------------------------------------------------------------------------------------------------------
    def _find(self) -> None:
        """Notes what is crossed and was not. Raises StoreError, OSError."""
        from otel_llm.account.opening import open_merged
        from otel_llm.budgets.alerts.crossings import CrossingLog

        if self._log is None:
            self._log = CrossingLog(self._store.paths)
        read = self._read()
        seen = (_stamp(self._store.paths.database), read)
        if not read.budgets or seen == self._seen:
            return
        began = time.thread_time()
        now = datetime.now(UTC)
        new: list[tuple[Crossing, list[str]]] = []
        with open_merged(self._store.paths) as account:
            for budget in read.budgets:
                new += self._crossed_of(read, budget, _spent_of(account, budget, now), now)
        self._cost = time.thread_time() - began
        self._log.add(new)
        self._seen = seen

    def _crossed_of(
        self, read: Rules, budget: Budget, spendings: list[Spending], now: datetime
    ) -> list[tuple[Crossing, list[str]]]:
        """What is new of one budget. Nobody is told of hundreds of limits one by one."""
        to = [one.name for one in read.receivers_of(budget)]
        found = [one for spending in spendings for one in self._crossed(spending, now, to)]
        told = [one for one in found if one[1]]
        for _, receivers in told[_MOST_AT_ONCE:]:
            receivers.clear()
        if len(told) > _MOST_AT_ONCE:
            _logger.warning(
                "budget %s: %d more limits are above a threshold, of which nobody is told one by one; otel-llm budget has them",
                masking.text(repr(budget.name)),
                len(told) - _MOST_AT_ONCE,
            )
        return found

    def _crossed(self, spending: Spending, now: datetime, to: list[str]) -> list[tuple[Crossing, list[str]]]:
        """What is new. Of several thresholds at once the highest is told of."""
        from otel_llm.budgets.alerts.crossings import LOG, Crossing

        assert self._log is not None
        crossings = [Crossing.of(spending, threshold, now) for threshold in spending.crossed]
        new: list[tuple[Crossing, list[str]]] = [(one, []) for one in crossings if not self._log.is_known(one)]
        if new and new[-1][0] is crossings[-1]:
            new[-1][1].extend([LOG, *to])
        return new

    def _read(self) -> Rules:
        """The rules, read again where the file has changed; a mistake is said once."""
        stamp = _stamp(self._file)
        if self._rules is None or self._rules[0] != stamp:
            before = set(self._rules[1].mistakes) if self._rules is not None else set()
            self._rules = stamp, rules.load(self._file)
            for mistake in self._rules[1].mistakes:
                if mistake not in before:
                    rules.say(mistake)
        return self._rules[1]

    # --- telling --------------------------------------------------------------------------------------------------------
    def _tell(self, deadline: float | None) -> None:
        """Has each receiver told that is not being told and does not have to be waited for. Raises OSError."""
        from otel_llm.budgets.alerts.crossings import LOG

        log = self._log
        assert log is not None
        for name, crossings in log.waiting().items():
            if name == LOG:
                for crossing in crossings:
                    _say(crossing)
                    log.told(crossing, LOG)
                continue
            line = self._lines.setdefault(name, _Line())
            if (line.thread is not None and line.thread.is_alive()) or time.monotonic() < line.not_before:
                continue
            telling = (log, line, name, crossings, deadline)
            line.thread = threading.Thread(target=self._tell_all, args=telling, name="otel-llm-alert", daemon=True)
            try:
                line.thread.start()
            except RuntimeError:  # the interpreter is shutting down
                line.thread = None
                self._tell_all(*telling)

    def _tell_all(
        self, log: CrossingLog, line: _Line, name: str, crossings: list[Crossing], deadline: float | None
    ) -> None:
        """Tells one receiver of crossings, as far as he takes them. Raises nothing."""
        from otel_llm.budgets.alerts import receivers

        try:
            for crossing in crossings:
                receiver = self._rules[1].receivers.get(name) if self._rules is not None else None
                if time.time() - crossing.time_ns / 1e9 > _TOO_OLD_SECONDS:
                    _logger.warning("budgets: %r was not told in a day, and is not any more: %s", name, crossing.text)
                    log.gave_up(crossing, name)
                elif receiver is not None:  # else it is not in the file: it may come back
                    receivers.tell(receiver, crossing, None if deadline is None else deadline - time.monotonic())
                    log.told(crossing, name)
            if line.back_off:
                _logger.warning("budgets: %r takes what it is told again", name)
            line.back_off = 0.0
        except receivers.NotTold as error:
            if not line.back_off:
                _logger.warning("budgets: %r could not be told (%s); it is tried again", name, error)
            line.back_off = min(line.back_off * 2 or _FIRST_BACK_OFF, _LONGEST_BACK_OFF)
            wait = line.back_off * random.uniform(0.75, 1.25)
            line.not_before = time.monotonic() + max(wait, min(error.retry_after or 0.0, _LONGEST_ASKED))
        except (Exception, SystemExit) as error:
            line.not_before = time.monotonic() + _LONGEST_PAUSE
            faults.note("tell of a budget", error)


def _spent_of(account: Account, budget: Budget, now: datetime) -> list[Spending]:
    """What is spent of a budget, as far as a threshold may be crossed; also in a period that has just ended."""
    from otel_llm.budgets.spending import spent

    moments = [now]
    if budget.per.run_column is None:
        start = period(budget.per, now, budget.zone).start
        if now - start < _JUST_ENDED:
            moments.append(start - timedelta(microseconds=1))
    return [one for at in moments for one in spent(account, budget, at, least=budget.thresholds[0])]


def _say(crossing: Crossing) -> None:
    """Tells of a crossing in the log, and by an event where somebody takes it."""
    from otel_llm.budgets.alerts import receivers
    from otel_llm.conventions import semconv
    from otel_llm.signals import events

    _logger.warning("%s", crossing.text)
    try:
        if events.wanted(semconv.EVENT_BUDGET_THRESHOLD):
            events.budget_crossed(receivers.attributes(crossing), crossing.time_ns)
    except Exception as error:
        faults.note("emit an event", error)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Another after whatever was written to a file."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


_all = forks.members(forks.Turn.BUDGET_ALERTS, BudgetWatch.start_afresh)


def begin(store: Store) -> None:
    """Has the budgets over `store` watched, if `OTEL_LLM_BUDGETS` names a file of them."""
    if (file := settings().budgets) is not None and not any(each._store is store for each in _all):
        store.before_flush.append(BudgetWatch(store, file).look)
