"""`otel-llm score`: how good an answer was, said by whoever looks at it."""

from __future__ import annotations

import math

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import Place, asking, locate
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import text, write_line


@click.command(context_settings={"ignore_unknown_options": True})  # a score may be negative
@click.argument("words", nargs=-1, metavar="[TRACE[/SPAN]] NAME VALUE|LABEL")
@click.option(
    "--request", "request_id", metavar="ID", help="Score a request, as request_id has it, in place of a trace."
)
@click.option("--comment", help="Why.")
@click.option("--source", default="cli", show_default=True, help="Who says so.")
@store_option
def score(
    words: tuple[str, ...], request_id: str | None, comment: str | None, source: str, store: Place | None
) -> None:
    """Say how good an answer was: a number or a word, about a trace, a span or a request.

    \b
    Examples:
      otel-llm score 4bf92f35 helpful 1
      otel-llm score 4bf92f35/00f067aa tone good --comment "kind and short"
      otel-llm score --request order-17 helpful -1
      otel-llm sql "select name, avg(value), count(*) from llm_scores group by all"

    Beginnings of ids are enough, as logs prints them. A later score of the same name about the same thing takes the place of
    the earlier one. What a good answer costs is on the page Compare of `otel-llm ui`.
    """
    wanted = 3 if request_id is None else 2
    if len(words) != wanted:
        form = "TRACE[/SPAN] NAME VALUE" if request_id is None else "--request ID NAME VALUE"
        raise CommandError(f"otel-llm score takes {form}; {len(words)} were given: {' '.join(words)[:80] or 'nothing'}")
    *subject, name, told = words
    path = locate(store, must_exist=True)
    trace_id, span_id = _find(store, subject[0]) if subject else (None, None)

    from otel_llm.lifecycle.scoring import BadScore, checked
    from otel_llm.store import Store
    from otel_llm.store.journal import record

    value = _number(told)
    label = told if value is None else None
    try:
        given = checked(trace_id, span_id, request_id, name, value, label=label, comment=comment, source=source)
        Store.open(path).write_whole(record.encode(record.score_record(given)), 1)
    except BadScore as error:
        raise CommandError(f"that is no score: {error}") from error
    except OSError as error:
        raise CommandError(f"the score cannot be kept: {error}") from error
    about = (
        f"request {request_id}" if trace_id is None else f"trace {trace_id}" + (f", span {span_id}" if span_id else "")
    )
    write_line(text(f"{name} {told}: {about}"))


def _number(told: str) -> float | None:
    try:
        number = float(told)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _find(store: Place | None, subject: str) -> tuple[str, str | None]:
    """The trace, and the span in it where one is named. Raises `CommandError` where it is not one."""
    from otel_llm.cli.read.show import find_trace

    trace, slash, span = subject.partition("/")
    with asking(store) as account:
        trace_id = find_trace(account, trace)
        if not slash:
            return trace_id, None
        spans = account.spans_like(trace_id, span.strip().lower())
    if len(spans) != 1:
        raise CommandError(f"{'several spans begin' if spans else 'no span begins'} with {span!r} in trace {trace_id}")
    return trace_id, spans[0]
