"""What OTLP has not got: has the exporter's successes noted in the journal, and sends what earlier processes could not.

Only for an exporter that the `OTEL_*` variables ask for: to that one everything can be sent again as it was.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME

from otel_llm.settings import settings
from otel_llm.setup import otlp_batches
from otel_llm.support import faults, importing, otel_private

if TYPE_CHECKING:
    from otel_llm.store import Store
    from otel_llm.store.jobs.replaying import ReplayTarget
    from otel_llm.store.usage_processor import UsageSpanProcessor

_logger = logging.getLogger("otel_llm")

_ROUNDS: Final = (0.0, 60.0)
"""Seconds to wait before looking, each time: whom this process takes the place of may still run when it begins."""
_PAGES: Final = 4
"""The most that is sent in a round, in pages of the replay. More, after a long outage, is left to `otel-llm replay --missing`."""
_EXIT_SECONDS: Final = 2.0
_DEFAULTS: Final = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}


def watch(provider: Any, processor: UsageSpanProcessor, store: Store) -> None:
    """Has noted what arrives of the spans of `provider`, and what is missing sent in the background. Raises nothing.

    Of several exporters the first is watched.
    """
    try:
        for exporter in otlp_batches.exporters(provider):
            if type(exporter.export) is otlp_batches.Parts and (target := _target(exporter)) is not None:
                exporter.export.arrived = partial(_note, store, target.name)
                processor.exports_to = target.name
                store.awaits_exports = True
                if settings().replay_missing:
                    _Sender.start_once(store, target, provider.resource.attributes.get(SERVICE_NAME))
                return
    except Exception as fault:
        faults.report("note what arrives over OTLP", fault)


def _target(exporter: Any) -> ReplayTarget | None:
    """Where an exporter sends, if another that the environment sets up would send there too."""
    from otel_llm.store.jobs.replaying import ReplayTarget, is_insecure

    protocol = "grpc" if ".grpc." in type(exporter).__module__ else "http/protobuf"
    try:
        target = ReplayTarget.of(None, protocol, os.environ)
    except ValueError:
        target = ReplayTarget.of(_DEFAULTS[protocol], protocol, {})
    parts = urlsplit(target.endpoint)
    same = (target.endpoint, None) if protocol != "grpc" else (parts.netloc, is_insecure(parts.scheme, os.environ))
    return target if otel_private.otlp_endpoint(exporter) == same else None


def _note(store: Store, endpoint: str, spans: Sequence[Any]) -> None:
    """Called by the exporter's own thread."""
    from otel_llm.store.journal.record import acknowledgement
    from otel_llm.store.usage_processor import MARK

    ids = [(span.context.trace_id, span.context.span_id) for span in spans if getattr(span, MARK, False)]
    if ids:
        store.write(acknowledgement(endpoint, ids))


class _Stopped(Exception):
    """The process ends."""


class _Sender:
    """Looks in the background for what is missing, and sends it."""

    def __init__(self, store: Store, target: ReplayTarget, service: Any) -> None:
        self._paths, self._target, self._service = store.paths, target, service
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-llm-missing", daemon=True)

    @staticmethod
    def start_once(store: Store, target: ReplayTarget, service: Any) -> None:
        """Once for each store and endpoint: what went missing in this process is for the next."""
        from otel_llm.store.file import exits

        key = f"{store.path} {target.name}"
        if key not in _senders:
            sender = _senders[key] = _Sender(store, target, service)
            exits.register(_stop)
            sender._thread.start()

    def stop(self) -> None:
        """Waits until what is on its way has been noted, but not for long."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_EXIT_SECONDS)

    @importing.whole()
    def _run(self) -> None:
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        from otel_llm.store.errors import StoreError

        for wait in _ROUNDS:
            if self._stopping.wait(wait):
                return
            try:
                with suppress_instrumentation():
                    self._send()
            except _Stopped:
                return
            except (StoreError, OSError) as error:  # the next round, or the next process
                _logger.debug("what is missing over OTLP is not sent: %s", error)
            except (Exception, SystemExit) as error:
                faults.note("send what is missing over OTLP", error)

    def _send(self) -> None:
        from otel_llm.store.jobs import missing
        from otel_llm.store.jobs.replaying import Selection
        from otel_llm.store.merge import pending

        if not pending.is_likely(self._paths):
            return
        # What is not captured here is not sent from here, though an earlier process has captured it.
        selection = Selection(service=self._service, pages=_PAGES, content=settings().capture.in_span)
        outcome = missing.send(self._paths, self._target, selection, self._go_on, timeout=0.0)
        for each in outcome.too_large:
            _logger.warning("not sent to %s: %s", self._target.name, each)
        if outcome.sent:
            _logger.info(
                "%d spans that earlier processes could not send are sent to %s%s",
                outcome.sent,
                self._target.name,
                f"; {outcome.left} more are for `otel-llm replay --missing`" if outcome.left else "",
            )

    def _go_on(self, sent: int, of: int) -> None:
        if self._stopping.is_set():
            raise _Stopped


_senders: dict[str, _Sender] = {}


def _stop() -> None:
    for sender in list(_senders.values()):
        sender.stop()
