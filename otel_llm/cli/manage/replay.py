"""`otel-llm replay`: send stored spans to an OTLP backend again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import asking, maintaining
from otel_llm.cli.options.common import period_options, store_option
from otel_llm.cli.read.show import find_trace
from otel_llm.cli.screen.output import counted, write_line


class Protocol(StrEnum):
    """What `--protocol` takes."""

    grpc = "grpc"
    http = "http/protobuf"


@click.command()
@period_options
@click.option("--trace", metavar="ID", help="Only this trace: its id or the beginning of it.")
@click.option(
    "--endpoint",
    metavar="URL",
    help="Where to send them, in place of $OTEL_EXPORTER_OTLP_ENDPOINT: http://localhost:4318.",
)
@click.option(
    "--protocol",
    type=click.Choice([*map(str, Protocol)]),
    help="In place of $OTEL_EXPORTER_OTLP_PROTOCOL; if neither is given, gRPC for port 4317 and HTTP for others.",
)
@click.option(
    "--missing", is_flag=True, help="Only what programs that have ended were to send there and has not arrived."
)
@click.option("--all", "again", is_flag=True, help="Send what an earlier replay has sent there once more.")
@click.option("--unsampled", is_flag=True, help="Send traces as well that the sampler had left out.")
@store_option
def replay(
    since: str | None,
    until: str | None,
    trace: str | None,
    endpoint: str | None,
    protocol: str | None,
    missing: bool,
    again: bool,
    unsampled: bool,
    store: Path | None,
) -> None:
    """Send stored spans to Jaeger or any OTLP backend again, as they were: after an outage, or to a new backend.

    \b
    Examples:
      otel-llm replay --missing
      otel-llm replay --since 2h --endpoint http://localhost:4318
      otel-llm replay --since 2026-11-20T14:00 --until 2026-11-20T15:30 --endpoint http://localhost:4318

    What a replay has sent to an endpoint is not sent there by the next one. What your programs sent there themselves is left out
    with --missing alone: without it, name the time of the outage. Headers, certificates and the timeout come from
    OTEL_EXPORTER_OTLP_*.
    """
    from otel_llm.store.jobs import missing as catching_up
    from otel_llm.store.jobs import replaying as sending

    if missing and (again or unsampled):
        raise CommandError("--missing cannot be combined with --all or --unsampled: nothing of that was to arrive")

    try:
        target = sending.ReplayTarget.of(endpoint, protocol, os.environ)
    except ValueError as error:
        raise CommandError(str(error)) from error
    now = datetime.now().astimezone()
    selection = sending.Selection(
        since_ns=None if since is None else _nanoseconds(when.since(since, now)),
        until_ns=None if until is None else _nanoseconds(when.until(until, now)),
        trace_id=None if trace is None else _find(trace, store),
        unsampled=unsampled,
        again=again,
    )
    with maintaining(store) as paths, _progress() as progress:
        outcome = (catching_up.send if missing else sending.replay)(paths, target, selection, progress)
    notes = []
    if outcome.before:
        notes.append(f"{outcome.before:,} sent there before (--all sends them again)")
    if outcome.unsampled:
        notes.append(f"{outcome.unsampled:,} not sampled (--unsampled sends them too)")
    sent = (
        f"Sent {counted(outcome.sent, 'span')} to {target.name}"
        if outcome.sent or outcome.too_large
        else f"Nothing {'is missing at' if missing else 'new to send to'} {target.name}"
    )
    write_line(f"{'; '.join([sent, *notes])}.")
    if outcome.too_large:
        raise CommandError(f"not sent: {'; '.join(outcome.too_large)}")


def _find(trace: str, store: Path | None) -> str:
    with asking(store) as account:
        return find_trace(account, trace)


def _nanoseconds(moment: datetime) -> int:
    return int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere: it goes to stderr, and is gone when all is sent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("spans"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("sending", total=None)
        yield lambda sent, of: bar.update(task, completed=sent, total=of)
