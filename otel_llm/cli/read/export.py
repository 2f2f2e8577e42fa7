"""`otel-llm export`: a table or a view as a file for other programs."""

from __future__ import annotations

import os
import secrets
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from otel_llm.cli.checks import Size
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import reading, require_absent
from otel_llm.cli.options.common import FILE, force_option, period_options, raw_option, store_option
from otel_llm.cli.screen.output import FORMULA, PLAIN_NUMBER, counted, write_line

if TYPE_CHECKING:
    import duckdb


class FileFormat(StrEnum):
    """What `--format` takes."""

    parquet = "parquet"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


_OPTIONS: Final = {
    FileFormat.parquet: "FORMAT parquet, COMPRESSION zstd",
    FileFormat.csv: "FORMAT csv, HEADER",
    FileFormat.json: "FORMAT json, ARRAY true",
    FileFormat.jsonl: "FORMAT json",
}
_SUFFIXES: Final = {f".{kind}": kind for kind in FileFormat} | {".ndjson": FileFormat.jsonl}


class Table(StrEnum):
    """What `--table` takes."""

    llm_usage = "llm_usage"
    spans = "spans"
    llm_events = "llm_events"
    llm_tool_calls = "llm_tool_calls"
    llm_runs = "llm_runs"
    llm_conversations = "llm_conversations"
    llm_daily = "llm_daily"


_TIMES: Final = {
    Table.llm_events: "occurred_at",
    Table.llm_runs: "last_at",
    Table.llm_conversations: "last_at",
    Table.llm_daily: "day",
}
"""The column that `--since` and `--until` look at, where it is not `started_at`."""


@click.command()
@click.argument("file", metavar="FILE", type=FILE)
@click.option(
    "--table", "-t", default=Table.llm_usage.value, show_default=True, type=click.Choice([*map(str, Table)]),
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
    store: Path | None,
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
    from otel_llm.store.file import database

    chosen = FileFormat(kind) if kind else _SUFFIXES.get(file.suffix.lower())
    if chosen is None:
        raise CommandError(f"{file} does not say what to write; use {', '.join(_SUFFIXES)} or --format")
    from otel_llm.support import files

    target = file.expanduser().absolute()
    require_absent(target, store, force=force)
    period = when.period(since, until, _TIMES.get(Table(table), "started_at"))
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(files.create(new))  # DuckDB writes to it as it is: it would make one that is open to all
        with reading(store) as connection:
            name = database.literal(new)
            (rows,) = connection.execute(
                f"COPY (SELECT {_columns(connection, table, chosen, raw=raw)} FROM {table} WHERE {period.sql}) "
                f"TO {name} ({_OPTIONS[chosen]}, USE_TMP_FILE false)",
                list(period.parameters),
            ).fetchall()[0]
        new.replace(target)
    except OSError as error:
        raise CommandError(f"cannot write {target}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
    write_line(f"Wrote {counted(rows, 'row')} of {table} to {target} ({Size(target.stat().st_size)}).")


def _columns(connection: duckdb.DuckDBPyConnection, table: str, kind: FileFormat, *, raw: bool) -> str:
    """The columns as they are written: CSV has no lists and maps, and its texts must not be formulas unless they are `raw`."""
    if kind is not FileFormat.csv:
        return "*"
    columns = connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {table})").fetchall()
    changed = {
        name: f"to_json({name})"
        for name, type_ in columns
        if type_.endswith("[]") or type_.startswith(("MAP", "STRUCT"))
    }
    for name, type_ in columns:
        if type_ == "VARCHAR" and not raw:
            formula = f"regexp_matches({name}, '{FORMULA}') AND NOT regexp_matches({name}, '{PLAIN_NUMBER}')"
            changed[name] = f"CASE WHEN {formula} THEN chr(39) || {name} ELSE {name} END"
    return f"* REPLACE ({', '.join(f'{value} AS {name}' for name, value in changed.items())})" if changed else "*"
