"""`otel-llm report`: the overview of a period as one file, to mail or to keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import asking
from otel_llm.cli.options.common import period_options, store_option
from otel_llm.cli.screen.output import write_line

if TYPE_CHECKING:
    from otel_llm.cli.options.access import Place


@click.command()
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Where to; stdout if left out.")
@click.option("--format", "form", type=click.Choice(["html", "md"]), help="By the name of FILE, else md.")
@click.option(
    "--by", "-b", multiple=True, default=["model,user,module"], show_default="model,user,module", metavar="DIMENSIONS",
    help="A table for each: model, user, module, agent, service, ..., tag:KEY.",
)  # fmt: skip
@period_options
@store_option
def report(
    output: Path | None, form: str | None, by: Sequence[str], since: str | None, until: str | None, store: Place | None
) -> None:
    """Write the overview of a period as one file: no server, no network, nothing to load.

    \b
    Examples:
      otel-llm report --since last-month -o report.html
      otel-llm report --since 7d --format md
      otel-llm report --since today --by tag:team --format md
    """
    try:
        from otel_llm.ui.scope import CUSTOM, BadRequest, PageScope
        from otel_llm.ui.views import document
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "markupsafe", "starlette"):
            raise
        raise CommandError("a report needs more: pip install 'otel-llm[ui]'") from error
    form = form or ("html" if output is not None and output.suffix in (".html", ".htm") else "md")
    period = when.period(since, until)
    names = [name.strip() for name in ",".join(by).split(",") if name.strip()]
    scope = (
        PageScope("all")
        if period.since is None and period.until is None
        else PageScope(CUSTOM, period.since, period.until)
    )
    with asking(store) as account:
        try:
            write = document.as_html if form == "html" else document.as_markdown
            text = write(account.engine, scope, place=account.place, by=names)
        except BadRequest as error:
            raise CommandError(f"--by: {error}") from error
    if output is None:
        write_line(text.rstrip("\n"))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
    write_line(f"Wrote the report to {output}.")
