"""`otel-llm backup` and `otel-llm compact`: whole copies of the store, elsewhere or in its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from otel_llm.cli.checks import Size
from otel_llm.cli.options.access import maintaining, require_absent
from otel_llm.cli.options.common import FILE, force_option, store_option
from otel_llm.cli.screen.output import counted, write_line

if TYPE_CHECKING:
    from otel_llm.store.jobs.copying import Copied


@click.command()
@click.argument("file", metavar="FILE", type=FILE)
@force_option
@store_option
def backup(file: Path, force: bool, store: Path | None) -> None:
    """Copy the whole store to FILE, a DuckDB file that any DuckDB client opens.

    \b
    Examples:
      otel-llm backup usage-backup.duckdb
      otel-llm usage --store usage-backup.duckdb

    The copy is what the store was at one moment; your programs go on writing meanwhile. To restore it, put it in the place of
    the store while nothing writes there.
    """
    from otel_llm.store.jobs.copying import backup

    target = file.expanduser().absolute()
    require_absent(target, store, force=force)
    with maintaining(store) as paths:
        copied = backup(paths, target)
    write_line(f"Copied {_contents(copied)} to {target} ({Size(copied.after)}).")
    if not copied.complete:
        sys.stderr.write(
            "otel-llm: somebody keeps the store open, so that the latest calls are still in the journal and not in the copy\n"
        )


@click.command()
@store_option
def compact(store: Path | None) -> None:
    """Make the file of the store smaller, after a prune.

    \b
    Example:
      otel-llm compact

    The store is written anew beside the old file, compared with it, and put in its place. That takes free disk space for what
    is in use, and nobody may have the store open; your programs go on recording meanwhile.
    """
    from otel_llm.store.jobs.copying import compact

    with maintaining(store) as paths:
        copied = compact(paths)
    write_line(f"{Size(copied.before)} before, {Size(copied.after)} after: {_contents(copied)} in {paths.database}.")


def _contents(copied: Copied) -> str:
    return f"{counted(copied.calls, 'call')} and {counted(copied.spans, 'span')}"
