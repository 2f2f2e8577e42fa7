"""Texts that a spreadsheet would calculate. The names of models and users may come from anybody."""

from __future__ import annotations

import re
from typing import Final

FORMULA: Final = r"^[=+\-@\t\r\n＝＋－＠|]"
"""How a text begins that a spreadsheet may take for a formula (OWASP, CSV injection)."""
PLAIN_NUMBER: Final = r"^[+-]?[0-9]+([.][0-9]+)?$"
_FORMULA: Final = re.compile(FORMULA)
_PLAIN_NUMBER: Final = re.compile(PLAIN_NUMBER)


def as_text(words: str) -> str:
    """The words as a cell that spreadsheets show and do not calculate: an apostrophe before what may be a formula."""
    return f"'{words}" if _FORMULA.match(words) and not _PLAIN_NUMBER.match(words) else words
