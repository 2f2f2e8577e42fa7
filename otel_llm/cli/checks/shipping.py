"""Where the account goes from here, how far each destination has got, and why one does not get on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from otel_llm.cli.checks import Section
from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options.access import Place, locate, reading, remote
from otel_llm.cli.screen.output import counted
from otel_llm.settings import settings
from otel_llm.support import masking

if TYPE_CHECKING:
    from otel_llm.fleet.ship.outbox import Lag
    from otel_llm.fleet.ship.shipping_note import ShippingNote

_LATE_SECONDS: Final = 60.0
"""Who is behind for longer is not merely at it."""


def shipping(store: Place | None) -> Section:
    """The destinations of the store that programs write, or of the one at `store`."""
    section = Section("shipping")
    _check_urls(section)
    if remote(store) is not None:
        return section  # from there nothing is shipped
    if store is None and settings().store is None:
        return section  # which is said of the store
    from otel_llm.fleet.ship import outbox, shipping_note
    from otel_llm.store.paths import StorePaths

    try:
        with reading(store) as connection:
            lags = outbox.lags(connection)
    except CommandError:  # which is said of the store
        return section
    notes = {
        note.destination: (note, is_running)
        for note, is_running in shipping_note.read_all(StorePaths.of(locate(store)))
    }
    for destination in dict.fromkeys(lag.destination for lag in lags):
        of_it = [lag for lag in lags if lag.destination == destination]
        section.facts[destination] = "; ".join(map(_told, of_it))
        _check(section, destination, of_it, *notes.get(destination, (None, False)))
    return section


def _check_urls(section: Section) -> None:
    from otel_llm.fleet.ship.urls import destination_at

    names = []
    for url in settings().ship_to:
        try:
            names.append(destination_at(url).name)
        except ValueError as error:
            section.problem(
                f"OTEL_LLM_SHIP_TO: {masking.text(error)}", "correct it, or unset it: nothing is shipped there"
            )
    if names:
        section.facts["to"] = ", ".join(names)


def _told(lag: Lag) -> str:
    waiting = f"{lag.rows:,} waiting" if lag.rows else "all has arrived"
    refused = f", {lag.refused:,} refused" if lag.refused else ""
    removed = f", {lag.removed:,} removed before they arrived" if lag.removed else ""
    return f"{lag.source} {lag.sent:,} sent, {waiting}{refused}{removed}"


def _check(section: Section, destination: str, lags: list[Lag], note: ShippingNote | None, is_running: bool) -> None:
    waiting = sum(lag.rows for lag in lags)
    removed, refused = sum(lag.removed for lag in lags), sum(lag.refused for lag in lags)
    if waiting and not is_running:
        section.remark(
            f"{counted(waiting, 'row')} {'waits' if waiting == 1 else 'wait'} for {destination}, and nobody ships there",
            f"otel-llm ship --to {destination}; or, to have it kept for that no more, the same with --forget",
        )
    elif note is not None and note.failing_since is not None:
        section.problem(
            f"{destination} does not take what process {note.pid} ships: {one_line(note.reason or '')}",
            f"see to it there; {counted(waiting, 'row')} {'stays' if waiting == 1 else 'stay'} in the store until it does",
        )
    elif waiting and note is not None and note.behind_since and time.time() - note.behind_since > _LATE_SECONDS:
        section.remark(
            f"{counted(waiting, 'row')} {'has' if waiting == 1 else 'have'} not arrived at {destination} yet",
            "it catches up in blocks; look again",
        )
    if removed:
        section.problem(
            f"{counted(removed, 'row')} had to be removed before {destination} had got them",
            "raise OTEL_LLM_MAX_SIZE, or have it shipped more often",
        )
    if refused:
        section.remark(
            f"{destination} has refused {counted(refused, 'row')}",
            "the log of who ships says why; they are in the store",
        )
