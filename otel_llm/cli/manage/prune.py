"""`otel-llm prune`: remove what is too old or too much."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click

from otel_llm.cli.checks import Size
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import maintaining
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import counted, write_line
from otel_llm.settings import AGE, LIMIT, parse_age, parse_limit

_Value = TypeVar("_Value")


@click.command()
@click.option("--older-than", metavar="AGE", help="Remove what began longer ago than this: 90d, 12h, 4w.")
@click.option("--max-size", metavar="SIZE", help="Remove the oldest until no more than this is in use: 2GB.")
@click.option("--spans-only", is_flag=True, help="Remove spans, and keep every row of llm_usage.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@store_option
def prune(older_than: str | None, max_size: str | None, spans_only: bool, dry_run: bool, store: Path | None) -> None:
    """Remove old spans and calls from the store.

    \b
    Examples:
      otel-llm prune --older-than 90d --dry-run
      otel-llm prune --older-than 30d --spans-only
      otel-llm prune --max-size 2GB

    Spans go first, the rows of llm_usage last: by size only when there are no spans left. OTEL_LLM_RETENTION and
    OTEL_LLM_MAX_SIZE have your programs do the same by themselves. The file keeps its size, and the room in it is used again;
    otel-llm compact makes it smaller. What is shipped stays until it has arrived (see otel-llm ship), unless the limit of size can
    be kept by nothing else.
    """
    from otel_llm.store.jobs import exclusive, retention

    policy = retention.Policy(
        _parse("--older-than", older_than, parse_age, AGE),
        _parse("--max-size", max_size, parse_limit, LIMIT),
        spans_only,
    )
    if policy.max_age is None and policy.max_size is None:
        raise CommandError("say what to remove: --older-than 90d, --max-size 2GB, or both")
    now = time.time()
    with maintaining(store) as paths:
        if dry_run:
            exclusive.brought_up_to_date(paths)
        else:
            removed = retention.prune(paths, policy, now=now)
        with exclusive.alone(paths) as connection:
            if dry_run:
                removed = retention.would_remove(connection, policy, now=now)
            used = retention.used(connection)
        file = paths.database.stat().st_size
    what = f"{counted(removed.spans, 'span')} and {counted(removed.calls, 'call')}"
    if policy.max_age is not None and policy.max_size is None:
        what += f" that began before {datetime.fromtimestamp(now - policy.max_age, UTC).astimezone():%Y-%m-%d %H:%M}"
    if dry_run:
        about = "" if policy.max_size is None else "about "
        write_line(f"Would remove {about}{what}; {Size(used)} are in use in a file of {Size(file)}.")
    else:
        write_line(f"Removed {what}; {Size(used)} are in use now in a file of {Size(file)}.")


def _parse(option: str, text: str | None, parse: Callable[[str], _Value], expected: str) -> _Value | None:
    try:
        return None if text is None else parse(text)
    except ValueError:
        raise CommandError(f"{option} {text!r} is not {expected}") from None
