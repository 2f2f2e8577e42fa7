"""Shipping from an app's own process, for `OTEL_LLM_SHIP_TO`: from the one that merges for all who share the store.

That one has DuckDB in memory anyway; the others import nothing for it. Each destination has a thread of its own, so that one that
hangs holds up no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from otel_llm.settings import settings
from otel_llm.store.file import exits
from otel_llm.support import faults, forks, importing, masking

if TYPE_CHECKING:
    from otel_llm.fleet.ship.shipper import Shipper
    from otel_llm.store import Store

_logger = logging.getLogger("otel_llm")

_EXIT_SECONDS: Final = 5.0
"""For what is left at the end of the process. What does not arrive by then is in the store, for the next one."""


class BackgroundShipping:
    """Ships what is in `store` to the URLs."""

    def __init__(self, store: Store, urls: Sequence[str]) -> None:
        self._store = store
        self._urls = urls
        self.start_afresh()
        _all.add(self)

    def start_afresh(self) -> None:
        """At construction, and in the child of a fork, where no thread of the parent runs."""
        _inherited.append(
            getattr(self, "_shippers", None)
        )  # what they have open is the parent's, and is not to be closed
        self._threads: list[threading.Thread] = []
        self._shippers: list[Shipper] | None = None
        self._stopping = threading.Event()
        self._is_registered = False

    def look(self) -> None:
        """Begins where this process merges. Called before each merge, and each look whether one is due; costs nothing."""
        if not self._is_registered:
            self._is_registered = True
            exits.register(self._finish)  # after the store's own, so that all is merged by then
        if self._store.merges_for_all and not self._threads and not self._stopping.is_set():
            self._begin(self._made())

    def _begin(self, shippers: Sequence[Shipper]) -> None:
        if not self._threads:
            for shipper in shippers:
                thread = threading.Thread(target=self._run, args=(shipper,), name="otel-llm-ship", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _made(self) -> list[Shipper]:
        if self._shippers is None:
            from otel_llm.fleet.ship.shipper import Shipper
            from otel_llm.fleet.ship.urls import destination_at

            self._shippers = []
            for url in self._urls:
                try:
                    destination = destination_at(url, headers=settings().ship_headers)
                except ValueError as error:
                    _logger.warning("OTEL_LLM_SHIP_TO: %s; nothing is shipped there", masking.text(error))
                    continue
                sources: Any = ("llm_usage", "spans") if settings().ship_spans else ("llm_usage",)
                self._shippers.append(Shipper(lambda: self._store.paths, destination, sources, is_thrifty=True))
        return self._shippers

    @importing.whole()
    def _run(self, shipper: Shipper) -> None:
        try:
            shipper.run(self._stopping)
        except (Exception, SystemExit) as error:
            faults.note("ship the account", error)
        finally:
            shipper.let_go()

    def _finish(self) -> None:
        """At the end of the process: sends what is left, if this process ships or has merged."""
        if not self._threads and not self._store.stats.merges:
            return
        shippers = self._made()
        for shipper in shippers:
            shipper.finish(_EXIT_SECONDS, tries_again=False)  # nobody's end waits for an outage
        self._stopping.set()
        try:
            self._begin(shippers)
        except RuntimeError:  # the interpreter is shutting down
            for shipper in shippers:
                self._run(shipper)
        # No longer than that: a name that nobody resolves heeds no limit of a request.
        deadline = time.monotonic() + _EXIT_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))


_inherited: list[Any] = []
_all = forks.members(forks.Turn.SHIPPING, BackgroundShipping.start_afresh)


def begin(store: Store) -> None:
    """Has `store` shipped in the background, if `OTEL_LLM_SHIP_TO` says where to."""
    if (urls := settings().ship_to) and not any(each._store is store for each in _all):
        store.before_flush.append(BackgroundShipping(store, urls).look)
