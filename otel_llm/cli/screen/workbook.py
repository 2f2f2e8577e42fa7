"""Rows as a workbook of Excel: typed cells, no text that is calculated, times without a zone, which Excel has not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import orjson
from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell

MOST_ROWS: Final = 1_048_575
"""What a sheet of Excel holds below its heading: https://support.microsoft.com/office/excel-specifications-and-limits."""
_MOST_CHARACTERS: Final = 32_767
_NOT_IN_XML: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write(rows: Path, kinds: Mapping[str, str], title: str, file: Path) -> int:
    """Makes a workbook of one sheet from JSON lines; `kinds` has the type of each column. Returns how many texts were cut."""
    workbook = Workbook(write_only=True)
    sheet = workbook.create_sheet(title)
    sheet.freeze_panes = "A2"
    cut = 0

    def cell(name: str, value: Any) -> Any:
        nonlocal cut
        value = _typed(kinds[name], value)
        if not isinstance(value, str):
            return value
        value = _NOT_IN_XML.sub("\ufffd", value)
        cut += len(value) > _MOST_CHARACTERS
        made = WriteOnlyCell(sheet, value)  # which cuts it
        made.data_type = "s"  # a text, also where it looks like a formula
        return made

    sheet.append([*kinds])
    for row in _read(rows):
        sheet.append([cell(name, row.get(name)) for name in kinds])
    workbook.save(file)
    return cut


def _read(rows: Path) -> Iterator[dict[str, Any]]:
    with rows.open("rb") as lines:
        yield from map(orjson.loads, lines)


def _typed(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        if kind.upper().startswith(("TIMESTAMP", "DATETIME", "NULLABLE(DATETIME")):
            return datetime.fromisoformat(value).astimezone().replace(tzinfo=None)
        return date.fromisoformat(value) if "DATE" in kind.upper() else value
    if isinstance(value, dict | list):
        return orjson.dumps(value).decode()
    return value
