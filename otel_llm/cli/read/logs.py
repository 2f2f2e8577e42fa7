"""`otel-llm logs`: the latest calls, one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from otel_llm.account.call_filter import CallFilter
from otel_llm.account.engine import iso
from otel_llm.cli.options import when
from otel_llm.cli.options.access import Place, asking, nothing_yet
from otel_llm.cli.options.common import MOST, output_options, period_options, store_option, where_option
from otel_llm.cli.read.usage import money
from otel_llm.cli.screen.output import (
    STATUS_STYLES,
    Column,
    Format,
    about_of,
    count,
    plain,
    styled,
    text,
    write_csv,
    write_json,
    write_line,
    write_table,
)

_COLUMNS: Final = (
    "started_at", "trace_id", "span_id", "operation", "provider", "request_model", "response_model", "status",
    "error_type", "duration_ms", "time_to_first_chunk_ms", "input_tokens", "output_tokens", "cost_usd", "module",
    "user_id", "session_id", "conversation_id", "agent_name", "workflow_name", "tags", "error_message",
    "input_messages", "output_messages", "usage_source",
)  # fmt: skip

_SPOKEN: Final = ("input_messages", "output_messages", "error_message")
"""What is there only where content was captured."""

_SHOWN: Final = {
    "time": "started_at", "model": "model", "user": "user_id", "module": "module", "status": "status",
    "input": "input_tokens", "output": "output_tokens", "cost": "cost_usd", "ms": "duration_ms", "trace": "trace_id",
}  # fmt: skip
"""The columns for people, and what is in them."""
_NUMBERS: Final = ("input", "output", "cost", "ms")
_SPARED: Final = {"ms": 2, "input": 1, "output": 1}


@click.command()
@click.option(
    "-n",
    "--count",
    "most",
    metavar="N",
    default=10,
    show_default=True,
    type=click.IntRange(0, MOST),
    help="How many calls; 0 for all.",
)
@click.option("--model", "-m", metavar="MODEL", help="The model that was asked for or answered; * and ? match.")
@click.option(
    "--search", "-q", "search", metavar="TEXT", help="Only calls in whose messages or error every word of TEXT stands."
)
@click.option("--user", metavar="ID", help="The user id of llm_context.")
@click.option("--conversation", metavar="ID", help="The conversation, as `usage --by conversation` has it.")
@click.option("--current", "-c", is_flag=True, help="The conversation that the last call in one belongs to.")
@click.option("--module", metavar="NAME", help="The module of llm_context.")
@click.option("--errors", is_flag=True, help="Only calls with status error.")
@period_options
@where_option
@click.option("--short", "-s", is_flag=True, help="A line for each call, whether or not its messages were recorded.")
@output_options
@store_option
def logs(
    most: int,
    model: str | None,
    search: str | None,
    current: bool,
    errors: bool,
    since: str | None,
    until: str | None,
    where: str | None,
    short: bool,
    output: Format,
    store: Place | None,
    user: str | None,
    conversation: str | None,
    module: str | None,
) -> None:
    """List the latest calls, with what was said where that was recorded.

    \b
    Examples:
      otel-llm logs
      otel-llm logs -n 50 --model "gpt-5*" --short
      otel-llm logs --errors --since 2h
      otel-llm logs --user alice --json
      otel-llm logs -q "winter tyres"
      otel-llm logs -c -n 0
      otel-llm logs --where "duration_ms > 10000"

    The newest call comes last. Messages are there only for calls that were made with content capture turned on; --short
    leaves them out. otel-llm show takes what trace says, and shows everything around the call. ~ stands before tokens and costs
    that nobody reported: they are estimated.
    """
    period = when.period(since, until)
    calls = CallFilter(
        since=period.since, until=period.until, user=user, conversation=conversation, module=module, current=current,
        model=model, search=search or "", errors=errors, where=where,
    )  # fmt: skip
    with asking(store) as account:
        rows = account.latest(_COLUMNS, calls, most or None)
        match output:
            case Format.json:
                write_json(_COLUMNS, map(_decoded, rows))
            case Format.csv | Format.raw_csv:
                write_csv(_COLUMNS, rows, raw=output is Format.raw_csv)
            case Format.table if rows:
                _print([dict(zip(_COLUMNS, row, strict=True)) for row in rows], short=short)
            case Format.table:
                write_line(
                    nothing_yet(account.place) if account.is_empty() else f"No such model calls in {account.place}."
                )


def _decoded(row: Sequence[Any]) -> list[Any]:
    """The row for JSON: a time as ISO 8601, messages as part of the document."""
    values = [*row]
    values[0] = iso(values[0])
    for position in map(_COLUMNS.index, ("input_messages", "output_messages")):
        if values[position] is not None:
            values[position] = json.loads(values[position])
    return values


def _print(calls: Sequence[dict[str, Any]], *, short: bool) -> None:
    for call in calls:
        call["model"] = call["request_model"] or call["response_model"]
        call["started_at"] = call["started_at"][:19]
        if call["error_type"]:
            call["status"] = f"{call['status']} {call['error_type']}"
        if call["duration_ms"] is not None and math.isfinite(call["duration_ms"]):
            call["duration_ms"] = round(call["duration_ms"])
    if short or not any(any(call[column] for column in _SPOKEN) for call in calls):
        dearest = max((call["cost_usd"] for call in calls if call["cost_usd"] is not None), default=None)
        show = dict.fromkeys(_NUMBERS, count) | {"cost": money(dearest)}
        for call in calls:
            if about := about_of(call["usage_source"]):
                for name in ("input", "output", "cost"):
                    if (value := call[_SHOWN[name]]) is not None:
                        call[_SHOWN[name]] = f"{about}{show[name](value)}"
        days = {call["started_at"][:10] for call in calls}
        brief = {"time": _clock if len(days) == 1 else _day, "trace": _beginning}
        columns = [
            Column(
                name, number=name in _NUMBERS, show=show.get(name, text), brief=brief.get(name),
                spare=_SPARED.get(name, 0), style=_status_style if name == "status" else None,
            )
            for name in _SHOWN
        ]  # fmt: skip
        write_table(columns, [[call[key] for key in _SHOWN.values()] for call in calls])
        return
    for index, call in enumerate(calls):
        if index:
            write_line()
        said = {name: None if call[name] is None else json.loads(call[name]) for name in _SPOKEN[:2]}
        write_call({**call, **said})


def _clock(moment: object) -> str:
    return str(moment)[11:] or str(moment)


def _day(moment: object) -> str:
    return str(moment)[5:10] or str(moment)


def _beginning(trace_id: object) -> str:
    return text(trace_id)[:8]


def _status_style(status: object) -> str:
    return STATUS_STYLES.get(str(status).partition(" ")[0], "")


def write_call(call: Mapping[str, Any]) -> None:
    """A call with its messages, for reading."""
    about = about_of(call["usage_source"])
    facts = [text(call[key]) for key in ("started_at", "model", "user_id", "module", "status") if call[key] is not None]
    if call["input_tokens"] is not None or call["output_tokens"] is not None:
        facts.append(f"{about}{text(call['input_tokens'])} in, {about}{text(call['output_tokens'])} out")
    if call["cost_usd"] is not None:
        facts.append(f"{about}${text(call['cost_usd'])}")
    write_line(f"{styled('  '.join(facts), 'bold')}  trace {text(call['trace_id'])}")
    for column in ("input_messages", "output_messages"):
        for role, said in _messages(call[column]):
            write_line(f"  {styled(f'{role}:', 'cyan')} {said}")
    if call["error_message"] is not None:
        write_line(f"  {styled('error:', STATUS_STYLES['error'])} {_indented(call['error_message'])}")


def _messages(messages: Any) -> Iterator[tuple[str, str]]:
    """Who said what. A message has a role and parts, as the GenAI conventions have it; what looks otherwise is shown as it is."""
    if messages is None:
        return
    for message in messages if isinstance(messages, list) else [messages]:
        if not isinstance(message, dict):
            yield "?", _indented(message)
            continue
        parts = message.get("parts", message.get("content"))
        said = [_said(part) for part in parts] if isinstance(parts, list) else [_indented(parts)]
        yield text(message.get("role")), "\n    ".join(said)


def _said(part: Any) -> str:
    if isinstance(part, dict) and isinstance(words := part.get("content", part.get("text")), str):
        return _indented(words)
    return _indented(part)


def _indented(value: Any) -> str:
    """Text with its lines, each of them safe for a terminal; anything else as JSON on one line."""
    lines = value.splitlines() if isinstance(value, str) else [json.dumps(plain(value), ensure_ascii=False)]
    return "\n    ".join(map(text, lines))
