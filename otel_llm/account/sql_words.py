"""SQL that a user wrote, word by word: enough to tell names from strings and remarks, in the dialects of all engines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_TOKENS: Final = re.compile(
    r"""
    (?P<string> [eE]?'(?:[^']|'')*' | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<quoted> "(?:[^"]|"")*" | `[^`]*` )
    | (?P<comment> --[^\n]* | /\*.*?\*/ )
    | (?P<number> \d[\w.]* )
    | (?P<word> [^\W\d]\w* )
    | (?P<other> \s+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)


def with_columns(condition: str, column_of: Callable[[str], str | None]) -> str:
    """The condition with `column_of(name)` in the place of each name that has one: `user = 'alice'` means the column `user_id`.

    Without this it would be no error: `user` is a function of SQL that names whoever is connected, and no call is his. What is
    quoted, a string or a remark stays, and so do functions, parts of other names (`user(`, `t.user`, `user.name`) and units of time
    (`interval 1 day`, `extract(day from …)`): no column stands after a value, or before FROM.
    """
    tokens = _tokens(condition)
    written = []
    for at, (kind, text) in enumerate(tokens):
        replaced = None
        if kind == "word" and _is_name(_next(tokens, at, -1), _next(tokens, at, 1)):
            replaced = column_of(text.lower())
        written.append(text if replaced is None else replaced)
    return "".join(written)


def _is_name(before: tuple[str, str], after: tuple[str, str]) -> bool:
    """Whether a word between these may be a column's whole name."""
    if before[0] in ("number", "string") or before[1] in (")", "."):
        return False
    return after[1] not in ("(", ".") and after[1].lower() != "from"


def without_end(statement: str) -> str:
    """The statement without the semicolon, blanks and remarks after it."""
    tokens = _tokens(statement)
    while tokens and (tokens[-1][0] == "comment" or tokens[-1][1] == ";" or tokens[-1][1].isspace()):
        tokens.pop()
    return "".join(text for _, text in tokens)


def _tokens(sql: str) -> list[tuple[str, str]]:
    """What kind of word each is, and itself."""
    tokens = [(found.lastgroup or "", found[0]) for found in _TOKENS.finditer(sql)]
    return [("string", text) if kind == "tag" else (kind, text) for kind, text in tokens]


def _next(tokens: list[tuple[str, str]], at: int, step: int) -> tuple[str, str]:
    """The nearest token on that side that says something."""
    at += step
    while 0 <= at < len(tokens):
        kind, text = tokens[at]
        if kind != "comment" and not text.isspace():
            return kind, text
        at += step
    return "", ""
