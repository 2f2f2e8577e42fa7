"""Rows on the way out: a table for people, JSON and CSV for programs.

A table is cut to the terminal it is printed on. In a pipe it has no colours and nothing is cut.
"""

from __future__ import annotations

import csv
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
from typing import Final

NOTHING = "–"
"""What a table shows for a value that is not known. It is never 0: nought is a count, this is the lack of one."""

_GAP = 2
_FEW = 5
_UNBOUNDED = 1_000_000
_NARROW = re.compile(r"[ -~\xa1-\xac\xae-\u02ff\u2010-\u2027\u2500-\u259f]*")
_STYLES: Final = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Format(StrEnum):
    """What `--format` takes."""

    table = "table"
    json = "json"
    csv = "csv"


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
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), shown)


def count(value: object) -> str:
    """A whole number with its thousands set apart."""
    return f"{value:,}" if isinstance(value, int) else text(value)


def counted(number: int, noun: str) -> str:
    """So many of something, in words: `1 span`, `2,000 spans`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: `short` is the heading where the terminal is too narrow for the name."""

    name: str
    short: str = ""
    number: bool = False
    show: Callable[[object], str] = text


def write_line(line: str = "") -> None:
    """One line on stdout."""
    sys.stdout.write(f"{line}\n")


def write_data(output: Format, names: Sequence[str], rows: Iterable[Sequence[object]]) -> bool:
    """Writes rows for a program, if it is one that they are for; returns whether."""
    match output:
        case Format.json:
            write_json(names, rows)
        case Format.csv:
            write_csv(names, rows)
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


def _json(value: object, indent: int | None = None) -> str:
    # Only an encoding that knows every character may be handed all of them.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode, indent=indent)


def write_csv(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A header and the rows; a value that is not known is an empty field, lists and maps are JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_field(value) for value in row])


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

    On a terminal that is too narrow, headings are shortened, then text down to `narrowest`, then columns are left out
    from the right; a note says so.
    """
    cells = [[column.show(value) for column, value in zip(columns, row, strict=True)] for row in rows]
    last = [] if totals is None else [[column.show(value) for column, value in zip(columns, totals, strict=True)]]
    headings, widths = _layout(columns, [*cells, *last], line_width(), narrowest)
    rule = "─" * _total(widths)
    write_line(_line(columns, widths, headings, "bold"))
    write_line(rule)
    for row in cells:
        write_line(_line(columns, widths, row))
    for row in last:
        write_line(rule)
        write_line(_line(columns, widths, row, "bold"))

    if hidden := [column.name for column in columns[len(widths) :]]:
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
    """The words in one of `_STYLES`, on a terminal that has styles and unless NO_COLOR is set."""
    if not words or not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return words
    return f"\x1b[{_STYLES[style]}m{words}\x1b[0m"


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


def _line(columns: Sequence[Column], widths: Sequence[int], row: Sequence[str], style: str = "") -> str:
    """A row with each cell cut and padded to its width."""
    cells = [fit(cell, width) for cell, width in zip(row, widths, strict=False)]
    used = len(cells)
    while used and not cells[used - 1]:  # no blanks at the end of a line
        used -= 1
    line = ""
    for index, (column, width, cell) in enumerate(zip(columns, widths, cells[:used], strict=False)):
        blank = " " * (width - cell_width(cell))
        shown = styled(cell, style) if style else styled(cell, "dim") if cell == NOTHING else cell
        last = index == used - 1
        line += " " * (_GAP if index else 0) + (blank + shown if column.number else shown + ("" if last else blank))
    return line


def _layout(
    columns: Sequence[Column], cells: Sequence[Sequence[str]], available: int, narrowest: int
) -> tuple[list[str], list[int]]:
    """The headings and the widths of the columns that are shown."""
    widest = [max((cell_width(row[index]) for row in cells), default=0) for index in range(len(columns))]
    for shorten in (False, True):
        headings = [column.short or column.name if shorten else column.name for column in columns]
        widths = [max(cell_width(heading), width) for heading, width in zip(headings, widest, strict=True)]
        if _total(widths) <= available:
            return headings, widths
    while len(widths) > 1 and _total(_cut(columns, widths, narrowest)) > available:
        widths.pop()
    limit = min(max(widths), available)
    while limit > narrowest and _total(_cut(columns, widths, limit)) > available:
        limit -= 1
    return headings, _cut(columns, widths, limit)


def _cut(columns: Sequence[Column], widths: Sequence[int], limit: int) -> list[int]:
    """The widths with those of text held to `limit`: half a number would be a wrong one."""
    return [width if column.number else min(width, limit) for column, width in zip(columns, widths, strict=False)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
