"""Bars in a terminal: a row for each group. An hour or a day in which nothing happened has a row too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from otel_llm.cli.screen.output import NOTHING, cell_width, fit, line_width, styled, write_line

_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_WIDEST: Final = 100
"""A line where there is no terminal to fit."""
_LABELS: Final = 40
"""Room for the names of a group, shared by its dimensions."""
_SHORTEST_LABEL: Final = 10
_STEPS: Final = {"day": ("%Y-%m-%d", timedelta(days=1)), "hour": ("%Y-%m-%d %H:00", timedelta(hours=1))}
_MOST_GAPS: Final = 1_000


class Bar(NamedTuple):
    """A group: what it is called in each dimension, how much, and that in writing."""

    labels: tuple[str, ...]
    amount: Any
    shown: str


def write_bars(names: Sequence[str], bars: Sequence[Bar], what: str, *, series: bool) -> None:
    """The bars under a heading, as long as the terminal is wide; a `series` of days or hours is drawn without gaps."""
    if series and len(names) == 1 and names[0] in _STEPS:
        bars = list(_without_gaps(bars, *_STEPS[names[0]]))
    heading, *labels = _labels([tuple(names), *(bar.labels for bar in bars)])
    left = cell_width(heading)
    right = max(len(text) for text in [what, *(bar.shown for bar in bars)])
    room = max(min(line_width(), _WIDEST) - left - right - 4, 8)
    most = max((bar.amount for bar in bars if bar.amount), default=0)
    write_line(styled(f"{heading}  {what:>{right}}", "bold"))
    for label, bar in zip(labels, bars, strict=True):
        blocks = _blocks(float(bar.amount or 0) / float(most) * room if most else 0.0)
        write_line(f"{label}  {bar.shown:>{right}}  {styled(blocks, 'cyan')}".rstrip())


def _without_gaps(bars: Sequence[Bar], form: str, step: timedelta) -> Iterator[Bar]:
    """The bars of a time series in their order, with an empty one for each moment that has none."""
    known: dict[datetime, Bar] = {}
    for bar in bars:
        try:
            known[datetime.strptime(bar.labels[0], form)] = bar
        except ValueError:  # a time that is not known
            yield bar
    if not known:
        return
    moment, last = min(known), max(known)
    if (last - moment) / step > _MOST_GAPS:
        yield from (known[moment] for moment in sorted(known))
        return
    while moment <= last:
        yield known.get(moment) or Bar((f"{moment:{form}}",), 0, NOTHING)
        moment += step


def _blocks(length: float) -> str:
    """A bar of so many characters, to the eighth. Something is never drawn as nothing."""
    eighths = round(length * 8) or (1 if length > 0 else 0)
    whole, part = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[part] if part else "")


def _labels(rows: Sequence[Sequence[str]]) -> list[str]:
    """The names of the groups, each dimension as wide as its widest, long ones cut."""
    longest = max(_LABELS // len(rows[0]), _SHORTEST_LABEL)
    columns = []
    for cells in zip(*rows, strict=True):
        cut = [fit(cell, longest) for cell in cells]
        widest = max(map(cell_width, cut))
        columns.append([cell + " " * (widest - cell_width(cell)) for cell in cut])
    return ["  ".join(row) for row in zip(*columns, strict=True)]
