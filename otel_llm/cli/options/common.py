"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import clickhouse_url
from otel_llm.cli.screen.output import Format
from otel_llm.settings import names_clickhouse

MOST = 10**12
"""No number of rows is larger: beyond what DuckDB counts, an answer would be a riddle."""


class _StoreName(click.Path):
    """A path, or the URL of a ClickHouse."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not value.strip():
            raise CommandError("--store names nothing; leave it out for the store in use, which `otel-llm path` names")
        if isinstance(value, str) and names_clickhouse(value):
            return clickhouse_url(value)
        return super().convert(value, param, ctx)


_Function = TypeVar("_Function", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
"""A path as the user typed it. Whether it is there is for the command to say, in its own words."""


def raw_option(function: _Function) -> _Function:
    """`--raw`, of CSV."""
    return click.option(
        "--raw", is_flag=True, help="CSV with texts as they are, for programs: spreadsheets may take some for formulas."
    )(function)


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--format` and its short form `--json`; the command gets `output`, a `Format`."""

    @click.option(
        "--format", "-f", "chosen", type=click.Choice([Format.table.value, Format.json.value, Format.csv.value]),
        help="How to print the rows.  [default: table]",
    )  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
    @raw_option
    @functools.wraps(function)
    def command(*, chosen: str | None, as_json: bool, raw: bool, **arguments: Any) -> Any:
        if as_json and chosen not in (None, Format.json):
            raise CommandError(f"--json and --format {chosen} contradict each other; give one of them")
        output = Format.json if as_json else Format(chosen or Format.table)
        if raw and output is not Format.csv:
            raise CommandError("--raw is about --format csv; give both, or neither")
        return function(output=Format.raw_csv if raw else output, **arguments)

    return command


def store_option(function: _Function) -> _Function:
    """`--store PATH`, or a URL."""
    return click.option(
        "--store",
        metavar="PATH|URL",
        type=_StoreName(path_type=Path),
        help="The DuckDB file to read, or clickhouse://user@host:8123/database, in place of $OTEL_LLM_STORE or the default "
        "(see `otel-llm path`).",
    )(function)


def force_option(function: _Function) -> _Function:
    """`--force`."""
    return click.option("--force", is_flag=True, help="Replace FILE if it is there already.")(function)


def period_options(function: _Function) -> _Function:
    """`--since TIME` and `--until TIME`."""
    since = click.option(
        "--since",
        metavar="TIME",
        help="Only what began then or later: 2h, 7days, today, yesterday, monday, last-week, this-month, 2026-11, 2026-11-01, "
        "2026-11-01T14:30.",
    )
    until = click.option("--until", metavar="TIME", help="Only what began before then; a day or a month counts whole.")
    return since(until(function))


def call_options(function: _Function) -> _Function:
    """`--user`, `--model`, `--module` and `--errors`."""
    options = (
        click.option("--model", "-m", metavar="MODEL", help="The model that was asked for or answered; * and ? match."),
        click.option("--user", metavar="ID", help="The user id of llm_context."),
        click.option("--module", metavar="NAME", help="The module of llm_context."),
        click.option("--errors", is_flag=True, help="Only calls with status error."),
    )
    for option in options:
        function = option(function)
    return function


def where_option(function: _Function) -> _Function:
    """`--where SQL`."""
    return click.option(
        "--where", metavar="SQL", help="Only the calls for which this condition on llm_usage holds: \"status <> 'ok'\"."
    )(function)
