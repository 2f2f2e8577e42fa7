"""A trace and a table of usage as objects that a notebook shows: HTML of their own, in which nothing that was recorded is HTML."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any, Final

from otel_llm.account.call_filter import CallFilter
from otel_llm.account.questions import Account
from otel_llm.account.sums import MEASURES
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options import when
from otel_llm.cli.options.access import asking, clickhouse_url
from otel_llm.cli.read.show import PlacedSpan, facts_of, find_trace, in_tree_order, time_text
from otel_llm.cli.read.usage import money, parse_dimensions
from otel_llm.cli.screen.output import count, text
from otel_llm.settings import names_clickhouse
from otel_llm.store import StoreError

_MOST_SPANS: Final = 1_000
_MOST_ROWS: Final = 200
_CELL: Final = "padding:2px 10px;border:0;border-bottom:1px solid rgba(128,128,128,.25);white-space:nowrap"
_BAD: Final = ("error", "interrupted")


class NotebookTrace:
    """One trace. A notebook shows it as a tree; `spans` has its spans as dictionaries, parents before their children."""

    def __init__(self, trace_id: str, placed: Sequence[PlacedSpan]) -> None:
        self.trace_id = trace_id
        self._placed = placed

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [{"depth": one.depth, **one.span._asdict()} for one in self._placed]

    def __repr__(self) -> str:
        lines = [f"trace {self.trace_id}"]
        for one in self._placed[:_MOST_SPANS]:
            facts = (one.lines + text(one.span.name), time_text(one.span.duration_ms), facts_of(one.span))
            lines.append("  ".join(filter(None, facts)))
        return "\n".join([*lines, *self._more()])

    def _repr_html_(self) -> str:
        begin = min((one.span.start_ns for one in self._placed), default=0)
        whole = max((_end_ns(one) for one in self._placed), default=0) - begin
        rows = []
        for one in self._placed[:_MOST_SPANS]:
            span = one.span
            color = ";color:#c62828" if span.status in _BAD else ""
            left, width = (
                100 * part / whole if whole else 0 for part in (span.start_ns - begin, _end_ns(one) - span.start_ns)
            )
            bar = (
                '<div style="width:160px;background:rgba(128,128,128,.12)"><div style="height:8px;background:#4c78a8;'
                f'margin-left:{left:.2f}%;width:{max(min(width, 100 - left), 0.5):.2f}%"></div></div>'
            )
            cells = [
                f'<td style="{_CELL};text-align:left;padding-left:{10 + 18 * min(one.depth, 20)}px{color}">{_html(span.name)}</td>',
                f'<td style="{_CELL}">{bar}</td>',
                f'<td style="{_CELL};text-align:right">{_html(time_text(span.duration_ms))}</td>',
                f'<td style="{_CELL};text-align:left{color}">{_html(facts_of(span))}</td>',
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        return _table(f"trace {self.trace_id}", ("span", "", "time", ""), rows, self._more())

    def _more(self) -> list[str]:
        return [f"the first {_MOST_SPANS:,} of {len(self._placed):,} spans"] if len(self._placed) > _MOST_SPANS else []


class NotebookUsage:
    """Sums of calls. A notebook shows a table; `columns` and `rows` have them for whatever else, such as `pandas.DataFrame`."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.columns = list(columns)
        self.rows = [tuple(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        cells = [self.columns, *self._shown()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([*lines, *self._more()])

    def _repr_html_(self) -> str:
        names = len(self.columns) - len(MEASURES)
        rows = []
        for row in self._shown():
            cells = [
                f'<td style="{_CELL};text-align:{"left" if at < names else "right"}">{_html(cell)}</td>'
                for at, cell in enumerate(row)
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        return _table("", self.columns, rows, self._more())

    def _shown(self) -> list[list[str]]:
        costs = [row[self.columns.index("cost_usd")] for row in self.rows]
        amount = money(max((cost for cost in costs if cost is not None), default=None))
        share = self.columns.index("share")
        return [
            [
                f"{value:.1%}"
                if at == share and value is not None
                else amount(value)
                if isinstance(value, Decimal)
                else count(value)
                for at, value in enumerate(row)
            ]
            for row in self.rows[:_MOST_ROWS]
        ]

    def _more(self) -> list[str]:
        return [f"the first {_MOST_ROWS:,} of {len(self.rows):,} rows"] if len(self.rows) > _MOST_ROWS else []


def trace(trace_id: str | None = None, *, store: str | os.PathLike[str] | None = None) -> NotebookTrace:
    """The trace whose id is this or begins with it; without it the latest one.

    `store` is another place than the one in use: a file, or the URL of a ClickHouse. Raises LookupError where there is no such
    trace, StoreError where the account cannot be read.
    """
    with _asked(store) as account:
        if account.is_empty():
            raise LookupError(f"no model calls are recorded yet in {account.place}")
        try:
            found = find_trace(account, trace_id)
        except CommandError as error:
            raise LookupError(str(error)) from None
        parts = account.run(found)
    return NotebookTrace(found, [one for part in parts for one in in_tree_order(part)])


def usage(
    by: str | Sequence[str] = "model",
    *,
    since: str | None = None,
    until: str | None = None,
    user: str | None = None,
    model: str | None = None,
    module: str | None = None,
    errors: bool = False,
    store: str | os.PathLike[str] | None = None,
) -> NotebookUsage:
    """Calls, tokens and cost added up, as `otel-llm usage` does: `by="model,user"`, `since="7d"`.

    `store` is another place than the one in use: a file, or the URL of a ClickHouse. Raises ValueError for what cannot be added up
    by and for what is no time, StoreError where the account cannot be read.
    """
    try:
        dimensions = parse_dimensions(by if isinstance(by, str) else ",".join(by))
        period = when.period(since, until)
    except CommandError as error:
        raise ValueError(str(error).replace("--", "")) from None
    calls = CallFilter(since=period.since, until=period.until, user=user, model=model, module=module, errors=errors)
    with _asked(store) as account:
        rows = account.sums(dimensions, calls)
    return NotebookUsage([*(one.name for one in dimensions), *MEASURES], rows)


@contextmanager
def _asked(store: str | os.PathLike[str] | None) -> Iterator[Account]:
    try:
        if store is None:
            place = None
        else:
            named = os.fspath(store)
            place = clickhouse_url(named) if names_clickhouse(named) else Path(named)
        with asking(place) as account:
            yield account
    except CommandError as error:
        raise StoreError(str(error)) from error


def _end_ns(one: PlacedSpan) -> int:
    return one.span.start_ns + round((one.span.duration_ms or 0) * 1e6)


def _html(value: str) -> str:
    """As text, whatever it is."""
    return escape(text(value))


def _table(title: str, names: Sequence[str], rows: Sequence[str], notes: Sequence[str]) -> str:
    head = "".join(f'<th style="{_CELL};text-align:left">{_html(name)}</th>' for name in names)
    above = f"<div><code>{_html(title)}</code></div>" if title else ""
    below = "".join(f"<div>{_html(note)}</div>" for note in notes)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div>{above}<table style="border-collapse:collapse">{body}</table>{below}</div>'
