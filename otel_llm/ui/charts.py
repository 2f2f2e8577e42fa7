"""Charts as SVG, made here: bars over time, stacked; each bar and each name in the legend is a link. No script draws anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

COLOURS: Final = 8
"""Classes c0 to c7 of the stylesheet; what comes after them is one group."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 960, 220, 64, 24, 8


@dataclass(frozen=True, slots=True)
class BarPart:
    """One piece of a bar."""

    series: int
    amount: float
    title: str
    href: str | None
    """Where it leads; None for nowhere."""


@dataclass(frozen=True, slots=True)
class ChartBar:
    """What happened in one stretch of time."""

    label: str
    parts: Sequence[BarPart]


def stacked(bars: Sequence[ChartBar], show: Callable[[float], str], *, name: str) -> Markup:
    """Bars side by side, the first series at the bottom. `name` is what a screen reader says of it."""
    top = max((sum(part.amount for part in bar.parts) for bar in bars), default=0.0)
    scale = nice(top)
    room = _WIDTH - _LEFT
    width = room / max(len(bars), 1)
    drawn: list[Markup] = []
    for step in range(5):
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * step / 4
        drawn.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, _WIDTH, y, y)
            + Markup('<text class="axis" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                _LEFT - 8, y + 4, show(scale * (4 - step) / 4)
            )
        )
    every = max(1, -(-len(bars) // 10))
    for index, bar in enumerate(bars):
        x = _LEFT + index * width
        if index % every == 0:
            drawn.append(
                Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    x + width / 2, _HEIGHT - 6, bar.label
                )
            )
        base = float(_HEIGHT - _BOTTOM)
        for part in bar.parts:
            if part.amount <= 0 or not scale:
                continue
            height = max((_HEIGHT - _TOP - _BOTTOM) * part.amount / scale, 0.75)
            base -= height
            drawn.append(
                _linked(
                    part,
                    Markup('<rect class="c{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>').format(
                        part.series, x + width * 0.08, base, max(width * 0.84, 0.5), height
                    ),
                )
            )
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, name, Markup("").join(drawn)
    )


def _linked(part: BarPart, drawn: Markup) -> Markup:
    """By keys one gets at the same by the table below a chart: hundreds of stops would be in the way."""
    title = Markup("<title>{}</title>").format(part.title)
    if part.href is None:
        return Markup("<g>{}{}</g>").format(title, drawn)
    label = part.title.replace("\n", ", ")
    return Markup('<a href="{}" tabindex="-1" aria-label="{}">{}{}</a>').format(part.href, label, title, drawn)


def nice(top: float) -> float:
    """A round number that is at least `top`, with four round steps."""
    if top <= 0:
        return 0.0
    power = 1.0
    while power > top:
        power /= 10
    while power * 10 < top:
        power *= 10
    return next(power * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if power * step >= top * 0.9999999)


def meter(begin: float, length: float, *, style: str, label: str) -> Markup:
    """A stretch of a row from 0 to 1: the line of a waterfall."""
    begin = min(max(begin, 0.0), 1.0)
    length = min(max(length, 0.004), 1.0 - begin if begin < 0.996 else 0.004)
    return Markup(
        '<svg class="meter" width="100%" height="14" role="img" aria-label="{}"><rect class="{}" x="{:.3f}%" y="2" width="{:.3f}%"'
        ' height="10" rx="2"/></svg>'
    ).format(label, style, min(begin * 100, 99.6), length * 100)
