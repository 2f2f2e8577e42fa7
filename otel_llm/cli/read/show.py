"""`otel-llm show`: one trace as a tree, with the time, tokens and cost of each step, and the traces that a run of it goes on in;
or one conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import Place, asking, nothing_yet
from otel_llm.cli.options.common import MOST, store_option
from otel_llm.cli.screen.output import (
    STATUS_STYLES,
    about_of,
    cell_width,
    counted,
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
    from otel_llm.account.questions import Account, Span

_COLUMNS = (
    "span_id", "parent_span_id", "depth", "name", "operation", "started_at", "duration_ms", "status", "error_type",
    "input_tokens", "output_tokens", "cost_usd", "error_message", "trace_id", "waiting", "continues", "usage_source",
)  # fmt: skip

_GAP = 2
_SHORTEST_NAME = 20


class PlacedSpan(NamedTuple):
    """A span in its place in the tree."""

    span: Span
    depth: int
    lines: str
    """What leads to the name: the branches of the tree."""


@click.command()
@click.argument("trace", required=False)
@click.option("--conversation", metavar="ID", help="The turns of this conversation in place of a trace.")
@click.option("--json", "as_json", is_flag=True, help="Print the spans as JSON, parents before children; or the turns.")
@store_option
def show(trace: str | None, conversation: str | None, as_json: bool, store: Place | None) -> None:
    """Show a trace as a tree: what called what, how long it took, what it cost; or a conversation.

    \b
    Examples:
      otel-llm show
      otel-llm show --json
      otel-llm show --conversation c-1

    TRACE is a trace id or its beginning, as logs prints it, or the id of a run; the latest trace if left out. A run that was
    continued in other traces (`chain(continues=...)`) is shown whole, with those. Of a conversation each call has what was new in
    it, where content was recorded. With OTEL_LLM_JAEGER_URL set, the
    page of the trace in Jaeger is named too. ~ stands before tokens and costs that nobody reported: they are estimated.
    """
    if conversation is not None and trace is not None:
        raise CommandError("a trace and --conversation are two things to show; give one of them")
    with asking(store) as account:
        if account.is_empty():
            if as_json:
                write_json((), [])
            else:
                write_line(nothing_yet(account.place))
            return
        if conversation is not None:
            _show_conversation(account, conversation, as_json=as_json)
            return
        trace_id = find_trace(account, trace and trace.partition("-")[0])
        parts = account.run(trace_id)
    if not parts:
        raise CommandError(f"the spans of trace {trace_id} are no longer in the store; `otel-llm logs` has its calls")
    last = {span.run: span.span_id for spans in parts for span in spans if span.is_part_of_run}
    trees = [
        list(in_tree_order([span._replace(waiting=span.waiting and last[span.run] == span.span_id) for span in spans]))
        for spans in parts
    ]
    if as_json:
        rows = [
            (one.span.span_id, one.span.parent_span_id, one.depth, *one.span[2:-1]) for tree in trees for one in tree
        ]
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


def _show_conversation(account: Account, conversation: str, *, as_json: bool) -> None:
    """The calls of a conversation in their order: of each what is new in it. Raises `CommandError` where there is none."""
    from otel_llm.cli.read.logs import write_call
    from otel_llm.ui import page_questions as questions

    turns = questions.talk(account.engine, "conversation", conversation, most=MOST).turns
    if not turns:
        raise CommandError(
            f"there is no conversation {conversation!r} in the store; `otel-llm usage --by conversation` lists them"
        )
    calls = [
        {**turn.call, "input_messages": turn.asked or None, "output_messages": turn.answered or None} for turn in turns
    ]
    if as_json:
        names = [*calls[0], "spent_usd", "pause_ms"]
        write_json(
            names, ([*call.values(), turn.spent, turn.pause_ms] for call, turn in zip(calls, turns, strict=True))
        )
        return
    for call in calls:
        write_call({**call, "started_at": f"{call['started_at']:%Y-%m-%d %H:%M:%S}"})
    spent = turns[-1].spent
    write_line(
        f"conversation {text(conversation)}: {counted(len(turns), 'call')}{'' if spent is None else f'  ${text(spent)}'}"
    )


def find_trace(account: Account, trace: str | None) -> str:
    """The one trace whose id begins with `trace`, the latest for None. Raises `CommandError` for none and for several."""
    if trace is None:
        latest = account.latest_trace()
        assert latest is not None, "the account is empty"
        return latest
    found = account.traces_like(trace.strip().lower())
    if not found:
        raise CommandError(f"there is no trace {trace!r} in the store; `otel-llm logs` lists them")
    if len(found) > 1:
        raise CommandError(f"several traces begin with {trace!r}; give more of the id")
    return found[0]


def in_tree_order(spans: Sequence[Span]) -> Iterable[PlacedSpan]:
    """The spans in the order of the tree. A span whose parent is not in the store (another service's) is a root."""
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        parent = span.parent_span_id if span.parent_span_id in known and span.parent_span_id != span.span_id else None
        children.setdefault(parent, []).append(span)
    # A stack, not a recursion: an agent's trace may be deeper than Python's.
    waiting = [(span, 0, "", "") for span in reversed(children.get(None, []))]
    while waiting:
        span, depth, lines, below = waiting.pop()
        yield PlacedSpan(span, depth, lines)
        inner = children.get(span.span_id, [])
        for index, child in reversed(list(enumerate(inner))):
            last = index == len(inner) - 1
            waiting.append((child, depth + 1, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))


def _print(placed: Sequence[PlacedSpan]) -> None:
    names = [text(one.span.name) for one in placed]
    times = [time_text(one.span.duration_ms) for one in placed]
    facts = [facts_of(one.span) for one in placed]
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


def time_text(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "?"
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"


def facts_of(span: Span) -> str:
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
