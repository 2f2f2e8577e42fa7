"""`otel-llm show`: one trace as a tree, with the time, tokens and cost of each step; and the traces that a run of it goes on in."""

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
    about_of,
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
    "input_tokens", "output_tokens", "cost_usd", "error_message", "trace_id", "waiting", "continues", "usage_source",
)  # fmt: skip

_SPANS = """
    SELECT s.span_id, s.parent_span_id, s.name, s.operation, CAST(s.started_at AS VARCHAR), s.duration_ms,
        s.status, coalesce(u.error_type, s.attributes ->> '$."error.type"'), u.input_tokens, u.output_tokens, u.cost_usd,
        CASE WHEN s.status IN ('error', 'cancelled') THEN s.status_message END, s.trace_id,
        coalesce((s.attributes ->> '$."otel_llm.run.waiting"') = 'true', false), s.attributes ->> '$."otel_llm.run.continues"',
        u.usage_source
    FROM spans AS s LEFT JOIN llm_usage AS u ON u.trace_id = s.trace_id AND u.span_id = s.span_id
    WHERE s.trace_id = ? ORDER BY s.start_ns, s.end_ns DESC
"""

_TRACES_OF_RUN = """
    WITH RECURSIVE continuing AS MATERIALIZED (
        SELECT trace_id, attributes ->> '$."otel_llm.run.continues"' AS run FROM spans
        WHERE operation IN ('invoke_workflow', 'invoke_agent', 'create_agent')
            AND contains(CAST(attributes AS VARCHAR), 'otel_llm.run.continues')
    ), pair AS MATERIALIZED (
        SELECT DISTINCT continuing.trace_id AS one, spans.trace_id AS other
        FROM continuing JOIN spans ON spans.span_id = run[-16:] AND (len(run) = 16 OR spans.trace_id = run[:32])
    ), reached AS (
        SELECT CAST(? AS VARCHAR) AS trace_id
        UNION
        SELECT CASE WHEN one = trace_id THEN other ELSE one END FROM reached JOIN pair ON trace_id IN (one, other)
    )
    SELECT trace_id FROM reached JOIN spans USING (trace_id) GROUP BY trace_id ORDER BY min(start_ns), trace_id
"""
"""A trace, and those that runs in it are continued in, or continue."""

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
    trace_id: str
    waiting: bool
    continues: str | None
    usage_source: str | None

    @property
    def is_part_of_run(self) -> bool:
        return self.waiting or self.continues is not None

    @property
    def run(self) -> str:
        """The run that a chain is a part of; the last part tells whether it waits."""
        return self.span_id if self.continues is None else self.continues[-16:]


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

    TRACE is a trace id or its beginning, as logs prints it, or the id of a run; the latest trace if left out. A run that was
    continued in other traces (`chain(continues=...)`) is shown whole, with those. With OTEL_LLM_JAEGER_URL set, the
    page of the trace in Jaeger is named too. ~ stands before tokens and costs that nobody reported: they are estimated.
    """
    with reading(store) as connection:
        if is_empty(connection):
            if as_json:
                write_json(_COLUMNS, [])
            else:
                write_line(nothing_yet(locate(store)))
            return
        trace_id = find_trace(connection, trace and trace.partition("-")[0])
        traces = [row[0] for row in connection.execute(_TRACES_OF_RUN, [trace_id]).fetchall()]
        parts = [[_Span(*row) for row in connection.execute(_SPANS, [one]).fetchall()] for one in traces]
    if not parts:
        raise CommandError(f"the spans of trace {trace_id} are no longer in the store; `otel-llm logs` has its calls")
    last = {span.run: span.span_id for spans in parts for span in spans if span.is_part_of_run}
    trees = [
        list(_place([span._replace(waiting=span.waiting and last[span.run] == span.span_id) for span in spans]))
        for spans in parts
    ]
    if as_json:
        rows = [(one.span.span_id, one.span.parent_span_id, one.depth, *one.span[2:]) for tree in trees for one in tree]
        write_json(_COLUMNS, rows)
        return
    known = {one.span.span_id for tree in trees for one in tree}
    for tree in trees:
        of = tree[0].span
        write_line(f"{styled(f'trace {of.trace_id}', 'bold')}  {of.started_at[:19]}")
        _print(tree)
        for span in (one.span for one in tree):
            if span.continues is not None and span.continues[-16:] not in known:
                write_line(text(f"{span.name} continues the run {span.continues}, which is not in this store"))
        if jaeger := settings().jaeger_url:
            write_line(f"{jaeger}/trace/{of.trace_id}")


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
    about = about_of(span.usage_source)
    if span.input_tokens is not None or span.output_tokens is not None:
        facts.append(f"{about}{text(span.input_tokens)} in, {about}{text(span.output_tokens)} out")
    if span.cost_usd is not None:
        facts.append(f"{about}${text(span.cost_usd)}")
    if span.waiting:
        facts.append("waiting")
    if span.status != "ok":
        facts.append(text(f"{span.status} {span.error_type or ''}".strip()))
    return "  ".join(facts)
