"""The prompt of `otel-llm sql`: lines with a history, and Tab for tables, columns and keywords."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options.access import Place, asking
from otel_llm.cli.screen.output import write_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST: Final = "otel-llm> "
_MORE: Final = "     ...> "
_LEAVE: Final = ("exit", "quit", ".exit", ".quit")
_DOT: Final = {".tables": "show tables", ".schema": "describe llm_usage", ".help": "show tables"}
"""What hands type that come from sqlite3 or duckdb, and the SQL for it."""
_HISTORY_LINES: Final = 1_000
_WORDS: Final = (
    "select", "from", "where", "group", "by", "order", "limit", "having", "distinct", "join", "left", "using", "as", "and",
    "or", "not", "in", "is", "null", "like", "ilike", "between", "case", "when", "then", "else", "end", "with", "union",
    "all", "desc", "asc", "describe", "show", "tables", "summarize", "explain", "count", "sum", "avg", "min", "max",
    "median", "date_trunc", "coalesce", "interval", "today", "now", "quit",
)  # fmt: skip


def converse(answer: Callable[[str], None], store: Place | None) -> None:
    """Asks for SQL and has it answered until the end of input. What is wrong with a statement is said, and ends nothing.

    The store is open only while a statement runs: nobody who writes it waits for somebody who thinks.
    """
    with asking(store) as account:
        names, place = account.names(), account.place
    write_line(f"{place}, read-only. A statement ends with ; and Ctrl-D leaves.")
    with _line_editing(names):
        while (statement := _statement()) is not None:
            try:
                answer(statement)
            except CommandError as error:
                sys.stdout.flush()
                sys.stderr.write(f"{one_line(error)}\n")
            except KeyboardInterrupt:
                write_line()


def _statement() -> str | None:
    """The next statement, which may take several lines; None at the end. Ctrl-C takes back what was typed."""
    lines: list[str] = []
    while True:
        try:
            line = input(_MORE if lines else _FIRST)
        except EOFError:
            write_line()
            return None
        except KeyboardInterrupt:
            write_line()
            lines.clear()
            continue
        if not lines and line.strip().rstrip(";").lower() in _LEAVE:
            return None
        if not lines and (meant := _DOT.get(line.strip().rstrip(";").lower())):
            return meant
        if lines or line.strip(" ;"):
            lines.append(line)
        if lines and line.rstrip().endswith(";"):
            return "\n".join(lines)


@contextmanager
def _line_editing(names: Sequence[str]) -> Iterator[None]:
    """Arrow keys, Tab and a history that is there next time; plain input where Python has no readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    words = sorted({*names, *_WORDS})

    def complete(text: str, state: int) -> str | None:
        found = [word for word in words if word.startswith(text.lower())]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n,;()=<>+-*/|'\"")
    # macOS has libedit under the same name, which is told otherwise.
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    history = _history_file()
    try:
        if history is not None:
            readline.read_history_file(history)
    except OSError:
        pass
    try:
        yield
    finally:
        if history is not None:
            readline.set_history_length(_HISTORY_LINES)
            try:
                readline.write_history_file(history)
            except OSError:
                pass


def _history_file() -> Path | None:
    """Where the history is kept, for its owner alone: a query can name a customer. None where it cannot be."""
    from platformdirs import user_state_path

    from otel_llm.support import files

    path = user_state_path("otel-llm", appauthor=False) / "sql_history"
    try:
        files.make_private_dir(path.parent)
        os.close(files.open_or_create(path))
    except OSError:
        return None
    return path
