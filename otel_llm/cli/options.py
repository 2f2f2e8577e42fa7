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
