"""`otel-llm show`: one trace as a tree, with the time, tokens and cost of each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import is_empty, locate, nothing_yet, reading
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import (
    STATUS_STYLES,
    cell_width,
    fit,
    line_width,
    style_of,
    styled,
    text,
    write_json,
    write_line,
    write_parts,
)
from otel_llm.settings import settings

if TYPE_CHECKING:
    import duckdb

_COLUMNS = (
    "span_id", "parent_span_id", "depth", "name", "operation", "started_at", "duration_ms", "status", "error_type",
    "input_tokens", "output_tokens", "cost_usd", "error_message",
)  # fmt: skip

_SPANS = """
    SELECT s.span_id, s.parent_span_id, s.name, s.operation, CAST(s.started_at AS VARCHAR), s.duration_ms,
        s.status, coalesce(u.error_type, s.attributes ->> '$."error.type"'), u.input_tokens, u.output_tokens, u.cost_usd,
        CASE WHEN s.status IN ('error', 'cancelled') THEN s.status_message END
    FROM spans AS s LEFT JOIN llm_usage AS u ON u.trace_id = s.trace_id AND u.span_id = s.span_id
    WHERE s.trace_id = ? ORDER BY s.start_ns, s.end_ns DESC
"""


_GAP = 2
_SHORTEST_NAME = 20


class _Span(NamedTuple):
    span_id: str
    parent_span_id: str | None
    name: str
    operation: str | None
    started_at: str
    duration_ms: float | None
    status: str
    error_type: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    error_message: str | None


class _Placed(NamedTuple):
    span: _Span
    depth: int
    lines: str
    """What leads to the name: the branches of the tree."""


@click.command()
@click.argument("trace", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the spans as JSON, parents before children.")
@store_option
def show(trace: str | None, as_json: bool, store: Path | None) -> None:
    """Show a trace as a tree: what called what, how long it took, what it cost.

    \b
    Examples:
      otel-llm show
      otel-llm show --json

    TRACE is a trace id or its beginning, as logs prints it; the latest trace if left out. With OTEL_LLM_JAEGER_URL set, the
    page of the trace in Jaeger is named too.
    """
    with reading(store) as connection:
        if is_empty(connection):
            if as_json:
                write_json(_COLUMNS, [])
            else:
                write_line(nothing_yet(locate(store)))
            return
        trace_id = find_trace(connection, trace)
        spans = [_Span(*row) for row in connection.execute(_SPANS, [trace_id]).fetchall()]
    if not spans:
        raise CommandError(f"the spans of trace {trace_id} are no longer in the store; `otel-llm logs` has its calls")
    placed = list(_place(spans))
    if as_json:
        write_json(_COLUMNS, [(one.span.span_id, one.span.parent_span_id, one.depth, *one.span[2:]) for one in placed])
    else:
        write_line(f"{styled(f'trace {trace_id}', 'bold')}  {placed[0].span.started_at[:19]}")
        _print(placed)
        if jaeger := settings().jaeger_url:
            write_line(f"{jaeger}/trace/{trace_id}")


def find_trace(connection: duckdb.DuckDBPyConnection, trace: str | None) -> str:
    """The one trace whose id begins with `trace`, the latest for None. Raises `CommandError` for none and for several."""
    if trace is None:
        latest: str = connection.execute("SELECT trace_id FROM llm_usage ORDER BY started_at DESC LIMIT 1").fetchall()[
            0
        ][0]
        return latest
    found = connection.execute(
        "SELECT DISTINCT trace_id FROM spans WHERE starts_with(trace_id, ?) LIMIT 2", [trace.strip().lower()]
    ).fetchall()
    if not found:
        raise CommandError(f"there is no trace {trace!r} in the store; `otel-llm logs` lists them")
    if len(found) > 1:
        raise CommandError(f"several traces begin with {trace!r}; give more of the id")
    return str(found[0][0])


def _place(spans: Sequence[_Span]) -> Iterable[_Placed]:
    """The spans in the order of the tree. A span whose parent is not in the store (another service's) is a root."""
    known = {span.span_id for span in spans}
    children: dict[str | None, list[_Span]] = {}
    for span in spans:
        parent = span.parent_span_id if span.parent_span_id in known and span.parent_span_id != span.span_id else None
        children.setdefault(parent, []).append(span)
    # A stack, not a recursion: an agent's trace may be deeper than Python's.
    waiting = [(span, 0, "", "") for span in reversed(children.get(None, []))]
    while waiting:
        span, depth, lines, below = waiting.pop()
        yield _Placed(span, depth, lines)
        inner = children.get(span.span_id, [])
        for index, child in reversed(list(enumerate(inner))):
            last = index == len(inner) - 1
            waiting.append((child, depth + 1, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))


def _print(placed: Sequence[_Placed]) -> None:
    names = [text(one.span.name) for one in placed]
    times = [_time(one.span.duration_ms) for one in placed]
    facts = [_facts(one.span) for one in placed]
    widths = [cell_width(one.lines + name) for one, name in zip(placed, names, strict=True)]
    time_width = max(map(len, times))
    room = line_width() - time_width - 2 * _GAP - max(map(cell_width, facts))
    name_width = min(max(widths), max(room, _SHORTEST_NAME))
    for one, name, time, fact in zip(placed, names, times, facts, strict=True):
        name = fit(name, max(name_width - cell_width(one.lines), 1))
        blank = " " * (name_width - cell_width(one.lines + name))
        bad = STATUS_STYLES.get(one.span.status, "")
        write_parts(
            [
                (one.lines, "dim"),
                (name, bad or _style(one.span.operation)),
                (f"{blank}{' ' * _GAP}{time:>{time_width}}", bad),
                (f"{' ' * _GAP}{fact}" if fact else "", bad),
            ]
        )
        if one.span.error_message is not None:
            below = one.lines.replace("└─ ", "   ").replace("├─ ", "│  ")
            write_parts([(f"{below}   ", "dim"), (text(one.span.error_message), bad)])


def _style(operation: str | None) -> str:
    """Models, tools and what surrounds them apart, as `tail` has them."""
    if operation is None:
        return ""
    from otel_llm.lifecycle.from_record import started

    return style_of(started(operation).__name__)


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "?"
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"


def _facts(span: _Span) -> str:
    facts: list[str] = []
    if span.input_tokens is not None or span.output_tokens is not None:
        facts.append(f"{text(span.input_tokens)} in, {text(span.output_tokens)} out")
    if span.cost_usd is not None:
        facts.append(f"${text(span.cost_usd)}")
    if span.status != "ok":
        facts.append(text(f"{span.status} {span.error_type or ''}".strip()))
    return "  ".join(facts)
