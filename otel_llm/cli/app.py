"""The command line put together, and what every command has in common: exit codes, one-line errors, broken pipes."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from otel_llm.cli.access import locate
from otel_llm.cli.copies import backup, compact
from otel_llm.cli.doctor import doctor
from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.export import export
from otel_llm.cli.options import StoreOption
from otel_llm.cli.output import write_line
from otel_llm.cli.prune import prune
from otel_llm.cli.ps import ps
from otel_llm.cli.replay import replay
from otel_llm.cli.show import show
from otel_llm.cli.sql import sql
from otel_llm.cli.usage import usage
from otel_llm.version import __version__

_INTERRUPTED = 130

app = typer.Typer(
    name="otel-llm",
    # Plain text: the help is the manual, and reads the same in a pipe, in a page and on a terminal.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback(invoke_without_command=True)
def otel_llm(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What your programs asked of language models: calls, tokens, cost.

    \b
    Record, then ask:
      opentelemetry-instrument python app.py
      otel-llm usage --by model,user

    The store is a DuckDB file: $OTEL_LLM_STORE, else usage.duckdb in the user's data directory. Reading it while programs
    write it is fine.

    Exit codes: 0; 1 when doctor finds something wrong; 2 for an error, with one line on stderr; 130 when
    interrupted.
    """
    if context.invoked_subcommand is None:
        write_line(context.get_help())


app.command()(usage)
app.command()(show)
app.command()(sql)
app.command()(ps)
app.command()(export)
app.command()(replay)
app.command()(backup)
app.command()(prune)
app.command()(compact)


@app.command()
def path(store: StoreOption = None) -> None:
    """Print where the store is, and nothing else.

    \b
    Examples:
      otel-llm path
      duckdb -readonly "$(otel-llm path)" "from llm_usage limit 5"
    """
    write_line(str(locate(store)))


app.command()(doctor)


@app.command()
def version() -> None:
    """Print the version.

    \b
    Example:
      otel-llm version
    """
    write_line(f"otel-llm {__version__}")


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; a fault of any kind ends as one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What was recorded may hold characters that the terminal's encoding does not have.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(args=arguments, prog_name="otel-llm", standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        return _fail(str(error))
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as end:
        # typer ends shell completion like this, and a program whose reader has gone.
        if isinstance(end.__context__, BrokenPipeError):
            return _reader_gone()
        raise
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except Exception as error:
        # typer's own errors (an unknown option, a missing argument) know how to say what was wrong; which class they
        # are of has changed from one version of it to another.
        if say := getattr(error, "format_message", None):
            return _fail(f"{say()} See: otel-llm --help")
        if os.environ.get("OTEL_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        return _fail(f"{type(error).__name__}: {one_line(error)}; OTEL_LOG_LEVEL=debug shows where")
    return code if isinstance(code, int) else 0


def _reader_gone() -> int:
    """Whoever read our output has seen enough (`| head`), which is no error."""
    # The interpreter flushes stdout once more at exit: into nothing.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"otel-llm: {one_line(message)}\n")
    return 2
