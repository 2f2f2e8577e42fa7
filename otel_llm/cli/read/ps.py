"""`otel-llm ps`: the model calls that run right now, in every process that writes the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from otel_llm.cli.errors import one_line
from otel_llm.cli.options.access import Place, asking, locate, remote
from otel_llm.cli.options.common import output_options, store_option
from otel_llm.cli.screen.output import Column, Format, text, write_data, write_line, write_table
from otel_llm.conventions import semconv

if TYPE_CHECKING:
    from otel_llm.store.paths import StorePaths

_LATE_SECONDS = 10
"""Who ships and is behind for less is at it."""
_ATTRIBUTES = {
    "operation": semconv.OPERATION,
    "model": semconv.REQUEST_MODEL,
    "user": semconv.USER_ID,
    "module": semconv.MODULE,
}
_COLUMNS = ("pid", "started_at", "seconds", "name", *_ATTRIBUTES, "trace_id", "span_id")
_SHOWN = ("pid", "started_at", "seconds", "name", "user", "module", "trace_id")
"""The columns for people: name has the operation and the model."""


@click.command()
@output_options
@store_option
def ps(output: Format, store: Place | None) -> None:
    """List the model calls that are running, in every process.

    \b
    Examples:
      otel-llm ps
      otel-llm ps --json

    A call is listed from its request to the end of its answer, streams included, together with the agents, tools and
    workflows around it that are still at work. seconds is how long it has been running. Below them stands who ships the account
    elsewhere, and how far behind that is.

    In a ClickHouse those of all machines that ship to it are listed, as they were some 10 seconds ago.
    """
    if remote(store) is not None:
        _of_all_machines(output, store)
        return
    from otel_llm.store.journal.segments import running_calls
    from otel_llm.store.paths import StorePaths

    path = locate(store, must_exist=True)
    rows = [_row(start) for start in running_calls(StorePaths.of(path).journal)]
    if write_data(output, _COLUMNS, rows):
        return
    if rows:
        _print(rows)
    else:
        write_line(f"Nothing is running that writes to {path}.")
    for line in _shipping(StorePaths.of(path)):
        write_line(line)


def _of_all_machines(output: Format, store: Place | None) -> None:
    from otel_llm.account.clickhouse_engine import RUNNING, ClickHouseEngine

    with asking(store) as account:
        assert isinstance(account.engine, ClickHouseEngine)
        at = RUNNING.index("started_at")
        rows = [(*row[:at], datetime.fromisoformat(row[at]), *row[at + 1 :]) for row in account.engine.running()]
    if write_data(output, RUNNING, rows):
        return
    if rows:
        _print(rows, RUNNING, ("host", *_SHOWN))
    else:
        write_line(f"Nothing is running on the machines that ship to {account.place}.")


def _shipping(paths: StorePaths) -> list[str]:
    """How each process fares that ships the account elsewhere."""
    from otel_llm.fleet.ship import shipping_note

    lines = []
    for note, is_running in shipping_note.read_all(paths):
        if not is_running:
            continue
        behind = 0.0 if note.behind_since is None else time.time() - note.behind_since
        state = "up to date" if behind < _LATE_SECONDS else f"behind for {_age(note.behind_since or 0)}"
        if note.failing_since is not None:
            state = f"failing for {_age(note.failing_since)}: {one_line(note.reason or '')}"
        lines.append(f"Process {note.pid} ships to {note.destination}: {state}.")
    return lines


def _age(since: float) -> str:
    """How long ago that is, in two units at most."""
    seconds = max(round(time.time() - since), 0)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"


def _row(start: dict[str, Any]) -> list[Any]:
    """A line of the list from the journal's record of a call that began."""
    began = start["st"] / 1e9
    attributes = start.get("a") or {}
    return [
        start.get("pid"),
        datetime.fromtimestamp(began, UTC).astimezone(),
        round(max(time.time() - began, 0.0), 1),
        start.get("n"),
        *(attributes.get(name) for name in _ATTRIBUTES.values()),
        start["t"],
        start["s"],
    ]


def _print(rows: Sequence[Sequence[Any]], names: Sequence[str] = _COLUMNS, shown: Sequence[str] = _SHOWN) -> None:
    def clock(value: object) -> str:
        return f"{value:%H:%M:%S}" if isinstance(value, datetime) else text(value)

    show = {"started_at": clock}
    columns = [Column(name, number=name in ("pid", "seconds"), show=show.get(name, text)) for name in shown]
    write_table(columns, [[row[names.index(name)] for name in shown] for row in rows])
