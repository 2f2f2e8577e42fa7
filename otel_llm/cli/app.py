"""The command line put together, and what every command has in common: exit codes, one-line errors, broken pipes."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from otel_llm.cli.errors import INTERRUPTED, CommandError, one_line
from otel_llm.cli.screen.output import in_ascii, write_line

COMMANDS: Final = {
    "usage": ("read.usage", "Add up calls, errors, tokens and cost by model, user, day, ..."),
    "logs": ("read.logs", "List the latest calls, with what was said where that was recorded."),
    "show": (
        "read.show",
        "Show a trace as a tree: what called what, how long it took, what it cost; or a conversation.",
    ),
    "diff": ("read.diff", "Show two traces side by side: how often each step ran, how long it took, what it cost."),
    "sql": ("read.sql", "Run SQL on the store, read-only."),
    "ps": ("read.ps", "List the model calls that are running, in every process."),
    "ui": ("services.ui", "Show the account in a browser: spend, calls as they end, traces, conversations, SQL."),
    "mcp": ("services.mcp", "Offer the account to an agent, as tools of the Model Context Protocol."),
    "tail": ("read.tail", "Follow calls, tools, steps and chains as they begin and end, in every process."),
    "budget": ("limits.budget", "Show what is spent of each budget, what it will be, and who is next."),
    "prices": ("manage.prices", "Show what models cost per million tokens, and where the price comes from."),
    "reprice": ("manage.reprice", "Price calls again whose price was not known."),
    "report": ("read.report", "Write the overview of a period as one file: no server, no network, nothing to load."),
    "score": ("manage.score", "Say how good an answer was: a number or a word, about a trace, a span or a request."),
    "export": ("read.export", "Write a table to a Parquet, CSV, JSON or Excel file."),
    "replay": ("manage.replay", "Send stored spans to Jaeger or any OTLP backend again."),
    "ship": ("manage.ship", "Send the account to another machine, for ever or once."),
    "serve": ("services.serve", "Take what other machines and languages send over OTLP into one store."),
    "backup": ("manage.copies", "Copy the whole store to FILE."),
    "prune": ("manage.prune", "Remove old spans and calls from the store."),
    "compact": ("manage.copies", "Make the file of the store smaller, after a prune."),
    "path": ("manage.path", "Print where the store is, and nothing else."),
    "demo": ("demo.demo", "Run three example programs against a local server, and show the account of them."),
    "doctor": ("manage.doctor", "Find out why something is not recorded, and how to mend it."),
    "version": ("manage.version", "Print the version."),
}
"""Every command: the module here that has it, under the command's name, and its line in the list of commands. A module is
imported when its command is wanted, so that none pays for the others."""


class _ReaderGone(Exception):
    """Nobody reads our output any more. (Not an OSError: click has an exit code of its own for that.)"""


@contextmanager
def _noticing_that_the_reader_has_gone() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGone from error


class _Commands(click.Group):
    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _noticing_that_the_reader_has_gone():  # of --help and --version
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _noticing_that_the_reader_has_gone():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "help":  # as people type it
            if not args[1:]:
                write_line(ctx.get_help())
                ctx.exit()
            args = [args[1], "--help"]
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            if close := get_close_matches(args[0], COMMANDS, n=1):
                raise click.UsageError(f"{error.message} Did you mean {close[0]}?", ctx) from error
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"otel_llm.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.invoke(import_module("otel_llm.cli.manage.version").version)
        context.exit()


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    \b
    Exit codes:
      0    it worked; nothing found is no error
      1    doctor found something wrong
      2    an error, with one line on stderr
      130  interrupted with Ctrl-C

    \b
    Completion, in ~/.bashrc or ~/.zshrc (zsh_source there), or fish (fish_source):
      eval "$(_OTEL_LLM_COMPLETE=bash_source otel-llm)"
    """,
)
@click.option(
    "--version", "-V", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def otel_llm(context: click.Context) -> None:
    """What your programs asked of language models: calls, tokens, cost.

    \b
    Record, then ask:
      opentelemetry-instrument python app.py
      otel-llm usage --by model,user

    The store is a DuckDB file: $OTEL_LLM_STORE, else usage.duckdb in the user's data directory. Reading it while programs
    write it is fine. --json prints rows as JSON; in a pipe there are no colours and nothing is cut.
    """
    if context.invoked_subcommand is None:
        write_line(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; a fault of any kind ends as one line on stderr."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  (None where whoever started us has closed it)
    sys.stderr = sys.stderr or sys.stdout
    codecs.register_error("otel_llm.in_ascii", in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What was recorded may hold characters that the terminal's encoding does not have, and so do our own lines and bars.
            stream.reconfigure(errors="otel_llm.in_ascii")
    try:
        code: Any = otel_llm.main(arguments, prog_name="otel-llm", standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        return _fail(str(error))
    except click.ClickException as error:  # an unknown option, a missing argument
        context = error.ctx if isinstance(error, click.UsageError) else None
        return _fail(f"{error.format_message()} See: {context.command_path if context else 'otel-llm'} --help")
    except (BrokenPipeError, _ReaderGone):
        return _reader_gone()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name in ("fcntl", "msvcrt"):
            return _fail(
                "the account needs locks of files, which this platform has not; spans go over OTLP from here too"
            )
        return _fail(f"{one_line(error)}; pip install --force-reinstall otel-llm brings what it needs")
    except Exception as error:
        if os.environ.get("OTEL_LOG_LEVEL", "").lower() == "debug":
            import traceback

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
