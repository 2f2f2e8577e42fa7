"""`otel-llm path`."""

from __future__ import annotations

import click

from otel_llm.cli.options.access import Place, locate, remote
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import write_line


@click.command()
@store_option
def path(store: Place | None) -> None:
    """Print where the store is, and nothing else.

    \b
    Examples:
      otel-llm path
      duckdb -readonly "$(otel-llm path)" "from llm_usage limit 5"
    """
    write_line(str(remote(store) or locate(store)))
