"""Two sets of sums side by side: for each measure the one, the other, and the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from otel_llm.account.sums import total
from otel_llm.cli.screen.output import Column, text

Key = tuple[Any, ...]
Sums = Mapping[Key, Sequence[Any]]
"""What has been added up, in one order, for each group."""


def paired(one: Sums, other: Sums) -> list[tuple[Any, ...]]:
    """A row for each group: what it is called, then for each measure the one, the other, and by how much the one is more.

    A group that one side has not got is nought there. What is not known has no difference.
    """
    rows = []
    for key in dict.fromkeys((*one, *other)):
        sides = [one.get(key), other.get(key)]
        width = len(next(side for side in sides if side is not None))
        a, b = ((0,) * width if side is None else side for side in sides)
        rows.append((*key, *_beside(a, b)))
    return rows


def totals(one: Sums, other: Sums) -> list[Any]:
    """The row below: each side added up."""
    a, b = ([total(values) for values in zip(*side.values(), strict=True)] for side in (one, other))
    width = max(len(a), len(b))
    return _beside(a or [0] * width, b or [0] * width)


def _beside(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    return [
        value
        for mine, theirs in zip(a, b, strict=True)
        for value in (mine, theirs, None if mine is None or theirs is None else mine - theirs)
    ]


def names(measures: Sequence[str], other: str) -> list[str]:
    """The names of the columns for programs."""
    return [name for measure in measures for name in (measure, f"{measure}_{other}", f"{measure}_difference")]


_SPARE: Final = 1


def columns(measures: Mapping[str, Callable[[object], str]], other: str) -> list[Column]:
    """The columns for people, of measures that can best be spared the later they stand."""
    found = []
    for position, (name, show) in enumerate(measures.items()):
        spare = _SPARE + position
        found += [
            Column(name, number=True, show=show, spare=spare),
            Column(other, number=True, show=show, spare=spare),
            Column("+/-", number=True, show=_signed(show), spare=spare, style=_style),
        ]
    return found


def _signed(show: Callable[[object], str]) -> Callable[[object], str]:
    def shown(value: object) -> str:
        if not isinstance(value, int | float | Decimal):
            return text(value)
        sign = "+" if value > 0 else "-" if value < 0 else ""
        return f"{sign}{show(abs(value))}"

    return shown


def _style(value: object) -> str:
    return "dim" if value == 0 else ""
