"""`otel-llm version`."""

from __future__ import annotations

import click

from otel_llm.cli.screen.output import write_line
from otel_llm.version import __version__


@click.command()
def version() -> None:
    """Print the version.

    \b
    Example:
      otel-llm version
    """
    write_line(f"otel-llm {__version__}")
