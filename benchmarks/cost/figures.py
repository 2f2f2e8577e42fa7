"""Medians with their quartiles, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of what was measured, between its quartiles."""

    q1: float
    median: float
    q3: float

    def written(self, unit: str = "", *, sign: bool = True) -> str:
        """`+181 (176 to 190)`: with as many places as say something."""
        places = 0 if abs(self.median) >= 20 else 1 if abs(self.median) >= 2 else 2
        plus = "+" if sign and self.median >= 0 else ""
        return f"{plus}{self.median:.{places}f}{unit} ({self.q1:.{places}f} to {self.q3:.{places}f})"


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, method="inclusive"))


def record(page: Path, run: str, lines: Iterable[str]) -> None:
    """Puts what a run has printed into a document, in place of what is between `<!-- RUN -->` and `<!-- end -->` there."""
    text = page.read_text()
    begin = f"<!-- {run} -->\n"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition("<!-- end -->")
    if not found or not ended:
        raise SystemExit(f"{page} has no {begin.strip()} with an <!-- end --> behind it")
    page.write_text("\n".join((f"{before}{begin}", *lines, f"\n<!-- end -->{after}")))
