"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otel_llm.cli.output import Format

FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How to print the rows.")]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="The DuckDB file to read, in place of $OTEL_LLM_STORE or the default (see `otel-llm path`).",
        show_default=False,
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace FILE if it is there already.")]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        show_default=False,
        help="Only what began then or later: 2h, 7d, today, yesterday, 2026-11, 2026-11-01, 2026-11-01T14:30.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="TIME", show_default=False, help="Only what began before then; a day counts whole."
    ),
]
