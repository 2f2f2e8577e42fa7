"""What the account says was spent, brought into the ledger: before the first call, and every so often by one process for all.

So what the counters cannot know counts too: calls made before there was a budget or without one, a late end, another price, a call
whose process died, and what other machines have spent where the account is a shared one.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.budgets.stop.amounts import in_parts
from otel_llm.budgets.stop.gatekeeper import NO_VALUE, StopRule
from otel_llm.budgets.stop.ledger import Ledger, LedgerUnusable
from otel_llm.settings import settings
from otel_llm.store.file import exits
from otel_llm.store.journal import locks
from otel_llm.support import forks, importing, masking

if TYPE_CHECKING:
    from otel_llm.account.questions import Account

_logger = logging.getLogger("otel_llm")

EVERY: Final = 15.0
"""Seconds between two readings of the account."""
WAIT: Final = 15.0
"""Seconds that the first call of a period waits for the account to be read."""
_LOOKS_EVERY: Final = 0.02
_AGAIN: Final = 2.0
"""Seconds after which the account is tried again that could not be read."""
_REFRESH: Final = 3600.0
_EXIT: Final = 10.0
_MOST: Final = 1_000_000

Open = Callable[[], AbstractContextManager["Account"]]
"""Opens the account: it shows one moment."""


class Rebasing:
    """Keeps the ledger of one store in line with its account, by a thread of its own."""

    def __init__(self, ledger: Ledger, accounts: Sequence[Open], before: Callable[[], None]) -> None:
        """`accounts`: of several the larger sum counts. `before` is called before each look."""
        self._ledger = ledger
        self._accounts = accounts
        self._before_look = before
        self.rules: Sequence[StopRule] = ()
        self._stopped = False
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._wake = threading.Event()
        self._role: io.FileIO | None = None
        self._failed: str | None = None
        self._failed_at = 0.0
        self._refreshed_at = time.monotonic()

    # --- in the app's thread -------------------------------------------------------------------------------------------------
    def wait_for(self, rule: StopRule) -> str | None:
        """Waits until the account has been read for the period of a rule; says why not where it cannot be."""
        until = time.monotonic() + WAIT
        try:
            while not self._is_read(rule):
                if self._stopped:
                    return "this process is about to end"
                self.start()
                self._wake.set()
                if self._failed is not None and time.monotonic() < self._failed_at + _AGAIN:
                    return self._failed
                if time.monotonic() > until:
                    return "it takes too long"
                time.sleep(_LOOKS_EVERY)
        except LedgerUnusable as error:
            return str(error)
        return None

    def _is_read(self, rule: StopRule) -> bool:
        if not rule.is_read and self._ledger.standing(rule.marker()).read_at_us:
            rule.is_read = True
        return rule.is_read

    # --- the thread ----------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Has the thread run, if it does not."""
        if self._thread is None or not self._thread.is_alive():
            with self._starting:
                if (self._thread is None or not self._thread.is_alive()) and not self._stopped:
                    exits.register(self.stop)
                    self._thread = threading.Thread(target=self._run, name="otel-llm-budgets", daemon=True)
                    self._thread.start()

    def stop(self) -> None:
        """Waits for its end: a process must not end while DuckDB is at work."""
        self._stopped = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_EXIT)
        role, self._role = self._role, None
        if role is not None:
            role.close()

    @importing.whole()
    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            try:
                self.read()
            except (Exception, SystemExit) as error:
                self._failed, self._failed_at = masking.error(error), time.monotonic()
                _logger.debug("the account could not be read for the budgets", exc_info=True)
            if not self._stopped:
                self._wake.wait(EVERY if self._failed is None else _AGAIN)

    def read(self) -> None:
        """Reads the account for all rules, if that is for this process to do now. Raises what reading the account raises."""
        ledger = self._ledger
        self._before_look()
        if ledger.is_replaced():
            ledger.forget()
        if time.monotonic() > self._refreshed_at + _REFRESH:
            self._refreshed_at = time.monotonic()
            ledger.refresh()
        now = datetime.now(UTC)
        for rule in self.rules:
            rule.turn(time.time_ns())
            if rule.is_read and not ledger.standing(rule.marker()).read_at_us:
                ledger.rebase(rule.marker(), 0, 0, _us(now))  # its period has begun under the eyes of this process
        unread = [rule for rule in self.rules if not self._is_read(rule)]
        if not self._has_role() and not unread:
            return
        rules = list(self.rules if self._role is not None else unread)
        # What has been settled is looked at before the account is opened, which shows one moment.
        settled = [(rule, rule.family, ledger.family(rule.family[:8])) for rule in rules]
        with ExitStack() as stack:
            accounts = [stack.enter_context(open_account()) for open_account in self._accounts]
            for rule, family, before in settled:
                self._rebase(accounts, rule, family, before, now)
        self._failed = None

    def _has_role(self) -> bool:
        """Whether this process reads the account for all."""
        if self._role is None:
            try:
                self._role = locks.hold(self._ledger.directory / "reader")
            except OSError:
                return False
        return self._role is not None

    def _rebase(
        self,
        accounts: Sequence[Account],
        rule: StopRule,
        family: bytes,
        before: Mapping[bytes, tuple[int, int]],
        now: datetime,
    ) -> None:
        from otel_llm.budgets.spending import spent

        ledger, budget = self._ledger, rule.budget
        parts: dict[bytes, int] = {}
        for account in accounts:
            for one in spent(account, budget, now, most=_MOST):
                value = None if budget.each is None else NO_VALUE if one.value is None else one.value
                amount = in_parts(budget.unit, one.amount)
                if one.is_blocked:
                    amount = max(amount, rule.limit)
                digest = rule.row_digest((value, one.run))
                parts[digest] = max(parts.get(digest, 0), amount)
        if rule.family != family:
            return  # another period has begun meanwhile
        for digest, (row, costs) in before.items():
            # A trace or a conversation that has rested for long is not among what was answered, and keeps what it had.
            if digest != family and (digest in parts or budget.per.run_column is None):
                ledger.rebase(row, parts.pop(digest, 0), costs, _us(now))
        for digest, amount in parts.items():
            if amount:
                ledger.rebase(ledger.row(digest, rule.ends_at_us), amount, 0, _us(now))
        ledger.rebase(ledger.row(family, rule.ends_at_us), 0, 0, _us(now))
        rule.is_read = True


def openers(path: Path) -> list[Open]:
    """What opens the account of a store, and that of all machines where `OTEL_LLM_STORE` names a ClickHouse."""
    from otel_llm.account.opening import open_clickhouse, open_store

    found: list[Open] = [partial(open_store, path)]
    if (url := settings().account_url) is not None:
        from otel_llm.fleet.clickhouse.server_url import BadURL, ClickHouseURL

        try:
            found.append(partial(open_clickhouse, ClickHouseURL.parse(url)))
        except BadURL as error:
            _logger.warning("OTEL_LLM_STORE: %s; budgets count what this machine has spent", masking.text(error))
    return found


def _us(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


_all = forks.members(forks.Turn.BUDGET_READING, Rebasing._start_afresh)
