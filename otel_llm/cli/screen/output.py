"""Rows on the way out: a table for people, JSON and CSV for programs.

A table is cut to the terminal it is printed on. In a pipe it has no colours and nothing is cut.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, NamedTuple

from otel_llm.account.formulas import as_text
from otel_llm.prices.billing import ESTIMATED

NOTHING = "–"
"""What a table shows for a value that is not known. It is never 0: nought is a count, this is the lack of one."""

_GAP = 2
_FEW = 5
_UNBOUNDED = 1_000_000
_NARROW = re.compile(r"[ -~\xa1-\xac\xae-\u02ff\u2010-\u2027\u2500-\u259f]*")
_STYLES: Final = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_ACTED_UPON = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
STATUS_STYLES: Final = {
    "error": "red",
    "interrupted": "red",
    "refused": "red",
    "cancelled": "yellow",
    "partial": "yellow",
}
"""How what did not end well stands out."""
_IN_ASCII: Final = str.maketrans("─│├└–…█▏▎▍▌▋▊▉→", "-||`-~#::::###>")


class Format(StrEnum):
    """What `--format` takes."""

    table = "table"
    json = "json"
    csv = "csv"
    raw_csv = "csv --raw"
    """CSV whose texts no spreadsheet is kept from taking for formulas."""


def plain(value: object) -> object:
    """A value from DuckDB as JSON has it: numbers stay numbers, what JSON has no type for becomes text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return float(value) if value.is_finite() else None
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return str(value)


def text(value: object) -> str:
    """A value in a cell of a table: one line, with nothing in it that a terminal would act upon."""
    match value:
        case None:
            return NOTHING
        case bool():
            return str(value).lower()
        case Decimal():
            return f"{value.normalize():f}"
        case datetime():
            return value.isoformat(sep=" ")
        case dict() | list() | tuple():
            shown = json.dumps(plain(value), ensure_ascii=False)
        case bytes() | bytearray() | memoryview():
            shown = bytes(value).hex()
        case _:
            shown = str(value)
    return printable(shown)


def printable(words: str) -> str:
    """The words on one line, with nothing in them that a terminal would act upon: what was recorded may come from anybody."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), words)


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """For `codecs.register_error`: lines and bars as ASCII draws them, anything else that an encoding lacks with a backslash."""
    assert isinstance(error, UnicodeEncodeError)
    words = error.object[error.start : error.end].translate(_IN_ASCII)
    return words.encode("ascii", "backslashreplace").decode("ascii"), error.end


def count(value: object) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,}" if isinstance(value, int) else text(value)


def about_of(usage_source: object) -> str:
    """What stands before the tokens and the cost of a call: `~` where they are an estimate."""
    return "~" if usage_source == ESTIMATED else ""


def counted(number: int, noun: str) -> str:
    """So many of something, in words: `1 span`, `2,000 spans`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    short: str = ""
    """The heading where the terminal is too narrow for the name."""
    number: bool = False
    show: Callable[[object], str] = text
    brief: Callable[[object], str] | None = None
    """In place of `show` where the terminal is too narrow."""
    spare: int = 0
    """Where it is narrower still, the columns that can best be spared are left out first; among equals, from the right."""
    style: Callable[[object], str] | None = None
    """The style of a value, the empty string for none."""


def write_line(line: str = "") -> None:
    """One line on stdout."""
    sys.stdout.write(f"{line}\n")


def write_data(output: Format, names: Sequence[str], rows: Iterable[Sequence[object]]) -> bool:
    """Writes rows for a program, if it is one that they are for; returns whether."""
    match output:
        case Format.json:
            write_json(names, rows)
        case Format.csv | Format.raw_csv:
            write_csv(names, rows, raw=output is Format.raw_csv)
        case Format.table:
            return False
    return True


def write_json(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """An array of objects, one a row, each on its own line."""
    before = "["
    for row in rows:
        sys.stdout.write(f"{before}\n  {_json(dict(zip(names, map(plain, row), strict=True)))}")
        before = ","
    sys.stdout.write("[]\n" if before == "[" else "\n]\n")


def write_json_object(value: object) -> None:
    """One JSON value, laid out for reading."""
    sys.stdout.write(f"{_json(plain(value), indent=2)}\n")


def write_json_line(value: object) -> None:
    """One JSON value on a line of its own."""
    sys.stdout.write(f"{_json(plain(value))}\n")


def _json(value: object, indent: int | None = None) -> str:
    # Only an encoding that knows every character may be handed all of them.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    document = json.dumps(value, ensure_ascii=not unicode, indent=indent)
    # JSON leaves some characters as they are that terminals act upon. They can only be inside its strings.
    return _ACTED_UPON.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def write_csv(names: Sequence[str], rows: Iterable[Sequence[object]], *, raw: bool = False) -> None:
    """A header and the rows; a value that is not known is an empty field, lists and maps are JSON.

    Text goes out as it is, but for a spreadsheet, which must not calculate it (unless `raw`), and for a terminal, which must
    not act upon it.
    """
    cell = str if raw else as_text
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a dash in the data is not one that we have drawn
    writer = csv.writer(_Lines(), lineterminator="\r\n")
    shown = printable if sys.stdout.isatty() else str
    writer.writerow(shown(cell(name)) for name in names)
    for row in rows:
        # Numbers may begin with a minus: only what is text here is text there.
        texts = (cell(value) if isinstance(value, str) else _field(value) for value in row)
        writer.writerow([shown(field) if isinstance(field, str) else field for field in texts])


class _Lines:
    """Takes what `csv` writes. Only what is in the end of its lines does it put between quotation marks, and `\\r` ends a line for
    those who read."""

    def write(self, line: str) -> None:
        sys.stdout.write(line.removesuffix("\r\n") + "\n")


def _field(value: object) -> object:
    match value:
        case None:
            return ""
        case Decimal():
            return f"{value.normalize():f}"
        case bool():
            return str(value).lower()
        case dict() | list() | tuple():
            return _json(plain(value))
        case int() | float() | str():
            return value
    return plain(value)


def write_table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[object]],
    *,
    totals: Sequence[object] | None = None,
    notes: Iterable[str] = (),
    narrowest: int = 8,
) -> None:
    """A table with a line of totals under it, where given, and notes below.

    On a terminal that is too narrow, headings are shortened, then text down to `narrowest`, then columns are left out; a note
    says so.
    """
    rows = [*rows]
    table = _layout(columns, rows if totals is None else [*rows, totals], line_width(), narrowest)
    shown = [columns[index] for index in table.shown]
    rule = "─" * _total(table.widths)
    bold = ["bold"] * len(shown)
    write_line(_line(shown, table.widths, table.headings, bold))
    write_line(rule)
    for row, cells in zip(rows, table.cells, strict=False):
        styles = [
            column.style(row[index]) if column.style else "" for index, column in zip(table.shown, shown, strict=True)
        ]
        write_line(_line(shown, table.widths, cells, styles))
    if totals is not None:
        write_line(rule)
        write_line(_line(shown, table.widths, table.cells[-1], bold))

    if hidden := [text(column.name) for index, column in enumerate(columns) if index not in table.shown]:
        which = f": {', '.join(hidden)}" if len(hidden) <= _FEW else ""
        more = f"{len(hidden)} more column{'s' if len(hidden) > 1 else ''}"
        write_note(f"{more} in a wider terminal, or in --format json or csv{which}")
    for note in notes:
        write_note(note)


def write_note(note: str) -> None:
    """A remark under a table."""
    write_line(styled(note, "dim"))


def line_width() -> int:
    """How many characters a line may have: as many as there are on a terminal, without end elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNBOUNDED


def styled(words: str, style: str) -> str:
    """The words in one of `_STYLES` (the empty string is none), on a terminal that has styles and unless NO_COLOR is set."""
    if (
        not words
        or not style
        or not sys.stdout.isatty()
        or os.environ.get("NO_COLOR")
        or os.environ.get("TERM") == "dumb"
    ):
        return words
    return f"\x1b[{_STYLES[style]}m{words}\x1b[0m"


def style_of(event: str) -> str:
    """The style of an event of `otel_llm.lifecycle`: models, tools and what surrounds them apart."""
    if event.startswith("Provider"):
        return "cyan"
    return "magenta" if event.startswith("Tool") else "green"


def cell_width(words: str) -> int:
    """How many columns of a terminal `words` take."""
    if _NARROW.fullmatch(words):
        return len(words)
    from rich.cells import cell_len

    return cell_len(words)


def fit(words: str, columns: int) -> str:
    """The words cut to so many columns of a terminal, with a sign that they are."""
    if cell_width(words) <= columns:
        return words
    if _NARROW.fullmatch(words):
        return f"{words[: columns - 1]}…"
    from rich.cells import set_cell_size

    return f"{set_cell_size(words, columns - 1)}…"


def write_parts(parts: Sequence[tuple[str, str]]) -> None:
    """A line of words, each with its style, that is cut to the terminal."""
    room = line_width()
    line = ""
    for words, style in parts if sum(cell_width(words) for words, _ in parts) > room else ():
        width = cell_width(words)
        if width >= room:
            write_line(line + styled(fit(f"{words}  ", room), style))
            return
        line += styled(words, style)
        room -= width
    write_line("".join(styled(words, style) for words, style in parts))


def _line(columns: Sequence[Column], widths: Sequence[int], row: Sequence[str], styles: Sequence[str]) -> str:
    """A row with each cell cut and padded to its width."""
    cells = [fit(cell, width) for cell, width in zip(row, widths, strict=True)]
    used = len(cells)
    while used and not cells[used - 1]:  # no blanks at the end of a line
        used -= 1
    line = ""
    for index, (column, width, cell, style) in enumerate(zip(columns, widths, cells[:used], styles, strict=False)):
        blank = " " * (width - cell_width(cell))
        shown = styled(cell, style or ("dim" if cell == NOTHING else ""))
        last = index == used - 1
        line += " " * (_GAP if index else 0) + (blank + shown if column.number else shown + ("" if last else blank))
    return line


class _Layout(NamedTuple):
    """A table as it is shown: which columns, their headings and widths, and the cells of each row."""

    shown: list[int]
    headings: list[str]
    widths: list[int]
    cells: list[list[str]]


def _layout(columns: Sequence[Column], rows: Sequence[Sequence[object]], available: int, narrowest: int) -> _Layout:
    for shorten in (False, True):
        headings = [text(column.short or column.name if shorten else column.name) for column in columns]
        show = [column.brief or column.show if shorten else column.show for column in columns]
        cells = [[each(value) for each, value in zip(show, row, strict=True)] for row in rows]
        widths = [max(map(cell_width, column)) for column in zip(headings, *cells, strict=True)]
        if _total(widths) <= available:
            return _Layout([*range(len(columns))], headings, widths, cells)

    def cut(limit: int) -> list[int]:
        return _cut([columns[index] for index in shown], [widths[index] for index in shown], limit)

    shown = [*range(len(columns))]
    for _, index in sorted(((column.spare, index) for index, column in enumerate(columns)), reverse=True)[:-1]:
        if _total(cut(narrowest)) <= available:
            break
        shown.remove(index)
    limit = min(max(widths[index] for index in shown), available)
    while limit > narrowest and _total(cut(limit)) > available:
        limit -= 1
    return _Layout(
        shown, [headings[index] for index in shown], cut(limit), [[row[index] for index in shown] for row in cells]
    )


def _cut(columns: Sequence[Column], widths: Sequence[int], limit: int) -> list[int]:
    """The widths with those of text held to `limit`: half a number would be a wrong one."""
    return [width if column.number else min(width, limit) for column, width in zip(columns, widths, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
