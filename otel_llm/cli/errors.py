"""The errors of commands: one line that names what is wrong, and the remedy."""

from __future__ import annotations

import re
from typing import Final

from otel_llm.cli.screen.output import printable
from otel_llm.support import masking

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C."""
_LONGEST = 600


class CommandError(Exception):
    """Ends a command with exit code 2; its text is the one line that goes to stderr."""


def one_line(error: BaseException | str) -> str:
    """The text of an error on a single line, without DuckDB's picture of where in the SQL it was."""
    text, _, _ = str(error).strip().partition("\n\nLINE ")
    text = masking.text(printable(re.sub(r"\s+", " ", text)))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
