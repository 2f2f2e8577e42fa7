"""`otel-llm ship`: send the account to another machine, for ever or once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options.access import Place, locate, maintaining
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import counted, write_line
from otel_llm.settings import settings

if TYPE_CHECKING:
    from otel_llm.fleet.ship.shipper import Shipper
    from otel_llm.store.paths import StorePaths

_GRACE: Final = 10.0
_INTERVAL: Final = 0.8
"""Seconds between two looks at what the journals have, where no other process merges."""


@click.command()
@click.option(
    "--to", "urls", metavar="URL", multiple=True,
    help="Where to, in place of $OTEL_LLM_SHIP_TO: http://collector:4318, grpc://collector:4317, clickhouse://user@host/database. "
    "May be given more than once.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Send what there is now, and end.")
@click.option("--spans", is_flag=True, help="Send spans too. $OTEL_LLM_SHIP_SPANS says the same.")
@click.option("--grace", metavar="SECONDS", type=click.FloatRange(min=0), default=_GRACE, show_default=True,
    help="How long to go on sending after SIGTERM or Ctrl-C.",
)  # fmt: skip
@click.option("--forget", is_flag=True, help="Ship there no more: what has not arrived keeps nothing in the store.")
@store_option
def ship(urls: Sequence[str], once: bool, spans: bool, grace: float, forget: bool, store: Place | None) -> None:
    """Send the account to another machine, for ever or once.

    Each call goes as it is committed: to an OTLP endpoint as a log record, to ClickHouse as a row.

    \b
    Examples:
      otel-llm ship --to http://collector:4318
      otel-llm ship --to clickhouses://ship@warehouse/llm --spans
      otel-llm ship --to grpc://collector:4317 --once
      otel-llm ship --to http://old-collector:4318 --forget

    How far each destination has got is kept in the store, so that it can be begun again at any time. A row that changes, by a late
    end or a new price, goes again with a higher row_version. What has not arrived stays in the store, however long that takes.
    Headers come from OTEL_LLM_SHIP_HEADERS, or those of OTEL_EXPORTER_OTLP_HEADERS that are for the same host; certificates, the
    timeout and the compression from OTEL_EXPORTER_OTLP_*; ClickHouse's password from CLICKHOUSE_PASSWORD.
    """
    chosen = [*(urls or settings().ship_to)]
    if not chosen:
        raise CommandError("say where to: --to URL, or set OTEL_LLM_SHIP_TO")
    with maintaining(store):
        from otel_llm.store.paths import StorePaths

        paths = StorePaths.of(locate(store, must_exist=once or forget))
        shippers = [_shipper(paths, url, spans=spans or settings().ship_spans) for url in chosen]
        if forget:
            _forget(paths, shippers)
        elif once:
            _once(paths, shippers)
        else:
            _follow(paths, shippers, grace)


def _shipper(paths: StorePaths, url: str, *, spans: bool) -> Shipper:
    from otel_llm.fleet.ship.shipper import Shipper
    from otel_llm.fleet.ship.urls import destination_at

    try:
        destination = destination_at(url, headers=settings().ship_headers)
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    return Shipper(lambda: paths, destination, ("llm_usage", "spans") if spans else ("llm_usage",))


def _forget(paths: StorePaths, shippers: Sequence[Shipper]) -> None:
    from otel_llm.fleet.ship import outbox

    for shipper in shippers:
        name = shipper.destination.name
        known = outbox.forget(paths, name)
        write_line(f"Forgot {name}." if known else f"Nothing was ever shipped to {name}.")


def _once(paths: StorePaths, shippers: Sequence[Shipper]) -> None:
    from otel_llm.fleet.ship.destination import NotNow
    from otel_llm.store.jobs import exclusive

    merged = exclusive.brought_up_to_date(paths)
    failed = []
    for shipper in shippers:
        name = shipper.destination.name
        try:
            if not shipper.is_ours():
                raise CommandError(f"another process ships to {name}")
            while not shipper.ship():
                pass
        except NotNow as error:
            failed.append(f"{name} does not take what is shipped: {one_line(error)}; it stays in the store")
        finally:
            shipper.let_go()
        _tell(shipper)
    if failed:
        raise CommandError("; ".join(failed))
    if not merged.complete:
        raise CommandError(f"what waits in the journal is not sent: {merged.reason}")


def _tell(shipper: Shipper) -> None:
    shipped = shipper.shipped
    refused = f"; {shipped.refused:,} refused" if shipped.refused else ""
    write_line(f"Shipped {counted(shipped.sent, 'row')} to {shipper.destination.name}{refused}.")


def _follow(paths: StorePaths, shippers: Sequence[Shipper], grace: float) -> None:
    """Until a signal comes. The main thread waits for that; each destination has a thread."""
    taking_in = _TakingIn(paths)
    stopping = threading.Event()
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    threads = [
        threading.Thread(target=shipper.run, args=(stopping, taking_in.look), name="otel-llm-ship", daemon=True)
        for shipper in shippers
    ]
    for thread in threads:
        thread.start()
    names = ", ".join(shipper.destination.name for shipper in shippers)
    write_line(f"Shipping {paths.database} to {names}.")
    asked.wait()
    taking_in.all_of_it = True
    for shipper in shippers:
        shipper.finish(grace)
    stopping.set()
    for thread in threads:
        thread.join(grace + 1)
    for shipper in shippers:
        shipper.let_go()
        _tell(shipper)


class _TakingIn:
    """Merges what the journals have, where no other process does: this one may be all that runs."""

    def __init__(self, paths: StorePaths) -> None:
        from otel_llm.store.jobs.merge_thread import MergeThread
        from otel_llm.store.jobs.merger import Merger
        from otel_llm.store.journal.writer import Journal

        self._paths = paths
        configured = settings()
        nothing: Any = lambda: None  # noqa: E731
        self._merger = Merger(Journal(paths.journal), lambda: paths, configured)
        self._thread = MergeThread(self._merger, configured.flush_interval or _INTERVAL, nothing, nothing)
        self.all_of_it = False
        """At the end whatever is there, whoever else is to merge."""

    def look(self) -> None:
        """Called before each look for what is new."""
        from otel_llm.store.merge import ingest

        if not self._paths.journal.is_dir():  # it is for the first program that records to make it
            return
        if self._thread.thread is None:
            self._thread.start()
        if self.all_of_it and ingest.has_news(self._paths):
            self._merger.merge(1.0)
