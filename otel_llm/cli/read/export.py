"""`otel-llm export`: a table or a view as a file for other programs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

import click

from otel_llm.account.engine import FileFormat
from otel_llm.account.questions import TABLES
from otel_llm.cli.checks import Size
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import Place, asking, require_absent
from otel_llm.cli.options.common import FILE, force_option, period_options, raw_option, store_option
from otel_llm.cli.screen.output import counted, write_line

_SUFFIXES: Final = {f".{kind}": kind for kind in FileFormat} | {".ndjson": FileFormat.jsonl}


@click.command()
@click.argument("file", metavar="FILE", type=FILE)
@click.option(
    "--table", "-t", default="llm_usage", show_default=True, type=click.Choice([*TABLES]),
    help="The table or view.",
)  # fmt: skip
@period_options
@click.option(
    "--format",
    "-f",
    "kind",
    type=click.Choice([*map(str, FileFormat)]),
    help="In place of what the suffix of FILE says.",
)
@raw_option
@force_option
@store_option
def export(
    file: Path,
    table: str,
    since: str | None,
    until: str | None,
    kind: str | None,
    raw: bool,
    force: bool,
    store: Place | None,
) -> None:
    """Write a table to a Parquet, CSV or JSON file.

    \b
    Examples:
      otel-llm export calls.parquet
      otel-llm export november.csv --since 2026-11-01 --until 2026-11-30
      otel-llm export spans.json --table spans --since 2h

    JSON is an array of objects, JSONL an object on each line. In CSV a value that is not known is an empty field, lists and
    maps are JSON, and a text that a spreadsheet would take for a formula begins with an apostrophe, unless --raw says no.
    FILE is there only when it is whole.
    """
    chosen = FileFormat(kind) if kind else _SUFFIXES.get(file.suffix.lower())
    if chosen is None:
        raise CommandError(f"{file} does not say what to write; use {', '.join(_SUFFIXES)} or --format")
    from otel_llm.support import files

    target = file.expanduser().absolute()
    require_absent(target, store, force=force)
    period = when.period(since, until)
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(files.create(new))  # an engine writes to it as it is: DuckDB would make one that is open to all
        with asking(store) as account:
            rows = account.export(table, new, chosen, since=period.since, until=period.until, raw=raw)
        new.replace(target)
    except OSError as error:
        raise CommandError(f"cannot write {target}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
    write_line(f"Wrote {counted(rows, 'row')} of {table} to {target} ({Size(target.stat().st_size)}).")
