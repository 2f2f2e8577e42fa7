"""`otel-llm export`: a table or a view as a file for other programs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from otel_llm.account.engine import FileFormat
from otel_llm.account.questions import TABLES
from otel_llm.cli.checks import Size
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import Place, asking, require_absent
from otel_llm.cli.options.common import FILE, force_option, period_options, raw_option, store_option
from otel_llm.cli.screen.output import counted, write_line

if TYPE_CHECKING:
    from otel_llm.account.questions import Account

_XLSX: Final = "xlsx"
_SUFFIXES: Final = {
    **{f".{kind}": str(kind) for kind in FileFormat},
    ".ndjson": str(FileFormat.jsonl),
    f".{_XLSX}": _XLSX,
}


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
    type=click.Choice([*map(str, FileFormat), _XLSX]),
    help="In place of what the suffix of FILE says.",
)
@raw_option
@click.option("--no-timezone", is_flag=True, help="CSV with local times that say no zone, for programs that know none.")
@force_option
@store_option
def export(
    file: Path,
    table: str,
    since: str | None,
    until: str | None,
    kind: str | None,
    raw: bool,
    no_timezone: bool,
    force: bool,
    store: Place | None,
) -> None:
    """Write a table to a Parquet, CSV, JSON or Excel file.

    \b
    Examples:
      otel-llm export calls.parquet
      otel-llm export november.csv --since 2026-11-01 --until 2026-11-30
      otel-llm export spans.json --table spans --since 2h
      otel-llm export november.xlsx --since 2026-11-01 --until 2026-11-30

    JSON is an array of objects, JSONL an object on each line. In CSV a value that is not known is an empty field, lists and
    maps are JSON, and a text that a spreadsheet would take for a formula begins with an apostrophe, unless --raw says no.
    Excel (needs otel-llm[excel]) has texts that are never calculated, and times that are local and have no zone. FILE is there
    only when it is whole.
    """
    chosen = kind or _SUFFIXES.get(file.suffix.lower())
    if chosen is None:
        raise CommandError(f"{file} does not say what to write; use {', '.join(_SUFFIXES)} or --format")
    if no_timezone and chosen not in (FileFormat.csv, _XLSX):
        raise CommandError(f"--no-timezone is about CSV and Excel; {chosen} has a type for times with a zone")
    if chosen == _XLSX:
        _require_openpyxl()
    from otel_llm.support import files

    target = file.expanduser().absolute()
    require_absent(target, store, force=force)
    period = when.period(since, until)
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(files.create(new))  # an engine writes to it as it is: DuckDB would make one that is open to all
        with asking(store) as account:
            if chosen == _XLSX:
                rows, cut = _write_workbook(account, table, period, new)
            else:
                rows, cut = account.export(
                    table, new, FileFormat(chosen),
                    since=period.since, until=period.until, raw=raw, zones=not no_timezone,
                ), 0  # fmt: skip
        new.replace(target)
    except OSError as error:
        raise CommandError(f"cannot write {target}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
    write_line(f"Wrote {counted(rows, 'row')} of {table} to {target} ({Size(target.stat().st_size)}).")
    if cut:
        write_line(f"{counted(cut, 'text')} longer than a cell of Excel holds {'was' if cut == 1 else 'were'} cut.")


def _require_openpyxl() -> None:
    try:
        import openpyxl  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError("an Excel file needs openpyxl: pip install 'otel-llm[excel]'; CSV needs nothing") from error


def _write_workbook(account: Account, table: str, period: when.Period, file: Path) -> tuple[int, int]:
    """How many rows there are, and how many of their texts were cut."""
    from otel_llm.cli.screen import workbook
    from otel_llm.support import files

    lines = file.with_name(f"{file.name}l")
    try:
        os.close(files.create(lines))
        rows = account.export(table, lines, FileFormat.jsonl, since=period.since, until=period.until)
        if rows > workbook.MOST_ROWS:
            raise CommandError(
                f"{rows:,} rows are more than the {workbook.MOST_ROWS:,} of a sheet of Excel; narrow them with --since and "
                "--until, or write CSV or Parquet"
            )
        kinds = {column.name: column.kind for column in account.described()[table]}
        return rows, workbook.write(lines, kinds, table, file)
    finally:
        lines.unlink(missing_ok=True)
