"""`otel-llm diff`: two traces side by side, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.account.sums import total
from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import Place, asking, nothing_yet
from otel_llm.cli.options.common import output_options, store_option
from otel_llm.cli.read import side_by_side
from otel_llm.cli.read.show import find_trace, time_text
from otel_llm.cli.read.usage import money
from otel_llm.cli.screen.output import Column, Format, count, counted, styled, text, write_data, write_line, write_table
from otel_llm.prices.billing import ESTIMATED

if TYPE_CHECKING:
    from otel_llm.ui.page_questions import Trace

_MEASURES: Final = ("spans", "calls", "duration_ms", "cost_usd", "input_tokens", "output_tokens")
_OTHER: Final = "other"


@click.command()
@click.argument("trace")
@click.argument("other")
@output_options
@store_option
def diff(trace: str, other: str, output: Format, store: Place | None) -> None:
    """Show two traces side by side: how often each step ran, how long it took, what it cost.

    \b
    Examples:
      otel-llm diff 4bf92f35 77aa0c12
      otel-llm diff 4bf92f35 77aa0c12 --json

    TRACE and OTHER are trace ids or their beginnings, as logs prints them. A step is what spans of one name have together; +/-
    says by how much TRACE has more. The time of the last row is from the first beginning to the last end. Estimates are in no sum.
    """
    from otel_llm.ui import page_questions as questions

    with asking(store) as account:
        if account.is_empty():
            if not write_data(output, _names(), []):
                write_line(nothing_yet(account.place))
            return
        ids = [find_trace(account, named) for named in (trace, other)]
        if ids[0] == ids[1]:
            raise CommandError(f"{trace} and {other} are one trace; name two")
        found = [questions.trace(account.engine, one) for one in ids]
    steps = [_steps(one) for one in found]
    whole = [_whole(one) for one in found]
    rows = side_by_side.paired(*steps)
    bottom = side_by_side.totals(*({("",): one} for one in whole))
    if write_data(output, _names(), [*rows, (None, *bottom)]):
        return
    for name, one, sums in zip("AB", found, whole, strict=True):
        began = min(node.span["started_at"] for node in one.nodes)
        facts = f"{began:%Y-%m-%d %H:%M:%S}  {counted(one.calls, 'call')}  {time_text(sums[_MEASURES.index('duration_ms')])}"
        write_line(f"{styled(f'{name}  trace {one.trace_id}', 'bold')}  {facts}")
    write_line()
    dearest = max((one.sums["cost_usd"] for one in found if one.sums["cost_usd"] is not None), default=None)
    shown = {"times": count, "time": _time, "cost": money(dearest), "input": count, "output": count}
    left = _MEASURES.index("calls") * 3 + 1  # which the line of each trace has told
    write_table(
        [Column("step"), *side_by_side.columns(shown, "B")],
        [(*row[:left], *row[left + 3 :]) for row in rows],
        totals=["total", *bottom[: left - 1], *bottom[left + 2 :]],
    )


def _names() -> list[str]:
    return ["step", *side_by_side.names(_MEASURES, _OTHER)]


def _steps(trace: Trace) -> dict[tuple[Any, ...], list[Any]]:
    """What the spans of each name have together, in the order in which the names come up."""
    steps: dict[tuple[Any, ...], list[Any]] = {}
    for span in (node.span for node in trace.nodes):
        told = span["usage_source"] != ESTIMATED
        is_call = any(span[name] is not None for name in ("provider", "request_model", "response_model"))
        values = [
            1, int(is_call), span["duration_ms"],
            *(span[name] if told else None for name in ("cost_usd", "input_tokens", "output_tokens")),
        ]  # fmt: skip
        known = steps.get((span["name"],), [None] * len(values))
        steps[span["name"],] = [total(pair) for pair in zip(known, values, strict=True)]
    return steps


def _whole(trace: Trace) -> list[Any]:
    sums = (trace.sums[name] for name in ("cost_usd", "input_tokens", "output_tokens"))
    return [len(trace.nodes), trace.calls, (trace.end_ns - trace.begin_ns) / 1e6, *sums]


def _time(value: object) -> str:
    return time_text(value) if isinstance(value, float) else text(value)
