"""`otel-llm tail`: what happens in every process that writes the store, line by line, as it happens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.cli.errors import INTERRUPTED, CommandError
from otel_llm.cli.options.access import locate, reading
from otel_llm.cli.options.common import MOST, store_option
from otel_llm.cli.read.chain_sums import CHAIN_ENDS, add_stored
from otel_llm.cli.screen.output import STATUS_STYLES, count, line_width, style_of, text, write_json_line, write_parts
from otel_llm.conventions import semconv
from otel_llm.conventions.dialects import UNNAMED
from otel_llm.lifecycle import event as kinds

if TYPE_CHECKING:
    from otel_llm.budgets.alerts.crossings import Crossing
    from otel_llm.lifecycle.from_record import Derived
    from otel_llm.store.paths import StorePaths

_INTERVAL: Final = 0.1
"""Seconds between two looks at the journals."""
_COLUMNS: Final = {"user_id": semconv.USER_ID, "module": semconv.MODULE, "conversation_id": semconv.CONVERSATION_ID}
_INTERRUPTED: Final = "Interrupted"
"""What tail alone tells of: a process has died, and something in it will never end."""
_CROSSED: Final = "BudgetCrossed"
"""And of this: a threshold of a budget."""
_EVENTS: Final = (*kinds.TYPES, _INTERRUPTED, _CROSSED)
_GAP: Final = ("  ", "")
_WIDE: Final = 100
"""Columns of a terminal that has room for the process of each line."""
_WIDEST: Final = max(map(len, _EVENTS))

Row = dict[str, Any]


@click.command()
@click.option(
    "--last",
    "-n",
    type=click.IntRange(0, MOST),
    default=10,
    show_default=True,
    metavar="N",
    help="Begin with the last N events of the store.",
)
@click.option("--user", help="Only events of this user.")
@click.option("--module", help="Only events of this module.")
@click.option("--events", metavar="NAMES", help=f"Only these, separated by commas: {', '.join(_EVENTS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: an object for each event.")
@click.option("--follow/--no-follow", default=True, help="Go on as events happen, or end after the last ones.")
@store_option
def tail(
    last: int,
    user: str | None,
    module: str | None,
    events: str | None,
    as_json: bool,
    follow: bool,
    store: Path | None,
) -> int:  # fmt: skip
    """Follow calls, tools, steps and chains as they begin and end, in every process, until interrupted (Ctrl-C).

    \b
    Examples:
      otel-llm tail
      otel-llm tail --user alice --events ProviderCompleted,ChainError
      otel-llm tail -n 0 --json | jq .name

    A line has the time, the process, the event and what it is about; the end of a chain the sums over the model calls in it, of a
    chain that has begun since. Where a process dies, a line Interrupted for each part that
    it was at says for how long. A line BudgetCrossed tells that a threshold of a budget is crossed. Programs that run on other
    machines are not seen.
    """
    path = locate(store, must_exist=last > 0)
    if store is not None and not path.parent.is_dir():
        raise CommandError(f"there is no directory {path.parent}; `otel-llm path` names the store in use")
    wanted = _Filter(_types(events), user, module)
    try:
        _follow(path, store, wanted, _write_json if as_json else _write_line, last=last, follow=follow)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _follow(
    path: Path, store: Path | None, wanted: _Filter, write: Callable[[Row], None], *, last: int, follow: bool
) -> None:
    from otel_llm.cli.read.chain_sums import ChainSums
    from otel_llm.store.journal.follow import JournalFollower
    from otel_llm.store.paths import StorePaths

    seen: set[str] = set()
    paths = StorePaths.of(path)
    sums = ChainSums(paths)
    crossed = _Crossings(paths)
    with JournalFollower(paths) as follower:
        if last:
            rows = [*_last(store, last, wanted), *filter(wanted, crossed.new())]
            for row in sorted(rows, key=lambda row: int(row["time_ns"]))[-last:]:
                seen.add(row["id"])
                write(row)
            sys.stdout.flush()
        crossed.new()
        while follow:
            heard = [(one, list(events_of(one))) for one in follower.poll()]
            sums.add(heard)
            for _, rows in heard:
                for row in rows:
                    # What ended while the store was being read may be in both.
                    if wanted(row) and row["id"] not in seen:
                        write(row)
            for row in filter(wanted, crossed.new()):
                write(row)
            sys.stdout.flush()
            time.sleep(_INTERVAL)


class _Crossings:
    """The thresholds that are crossed, as they are noted beside the journals."""

    def __init__(self, paths: StorePaths) -> None:
        self._paths = paths
        self._seen: set[str] = set()
        self._size = -1

    def new(self) -> list[Row]:
        """Those that have been told of in the log, and were not answered before."""
        from otel_llm.budgets.alerts import crossings

        try:
            size = self._paths.crossings.stat().st_size
        except OSError:
            return []
        if size == self._size:
            return []
        self._size = size
        told = [one for one in crossings.read(self._paths) if one.to and one.crossing.id not in self._seen]
        self._seen |= {one.crossing.id for one in told}
        return [_of_crossing(one.crossing) for one in told]


def _of_crossing(crossing: Crossing) -> Row:
    of_value = {crossing.each: crossing.value}
    return {
        "id": crossing.id,
        "time_ns": crossing.time_ns,
        "event": _CROSSED,
        "pid": None,
        "operation": None,
        "name": crossing.budget,
        **{column: of_value.get(column) for column in _COLUMNS},
        "trace_id": crossing.run if crossing.per == "trace" else None,
        "span_id": None,
        "parent_span_id": None,
        "threshold": crossing.threshold,
        "spent": crossing.spent,
        "limit": crossing.limit,
        "unit": crossing.unit,
        "text": crossing.text,
        "status": semconv.ERROR if crossing.is_spent else None,
    }


class _Filter:
    def __init__(self, types: Collection[str], user: str | None, module: str | None) -> None:
        self.types = types
        self.user = user
        self.module = module

    def __call__(self, row: Row) -> bool:
        return (
            (not self.types or row["event"] in self.types)
            and (self.user is None or row["user_id"] == self.user)
            and (self.module is None or row["module"] == self.module)
        )


def _types(names: str | None) -> set[str]:
    known = {name.lower(): name for name in _EVENTS}
    found = set()
    for name in (names or "").split(","):
        if not name.strip():
            continue
        if name.strip().lower() not in known:
            raise CommandError(f"--events: there is no event {name.strip()!r}; there are {', '.join(_EVENTS)}")
        found.add(known[name.strip().lower()])
    return found


# --- events of a record -----------------------------------------------------------------------------------------------


def events_of(record: Mapping[str, Any], *, whole: bool = False) -> Iterator[Row]:
    """The events that a journal record tells of: a start or an end, or both for a `whole` one."""
    from otel_llm.conventions.dialects import is_genai
    from otel_llm.lifecycle.from_record import at_end, at_start
    from otel_llm.store.journal.follow import INTERRUPTED

    record = {**record, "a": record.get("a") or {}}
    if not is_genai(record["a"]) or record.get("x"):
        return
    if record["k"] == INTERRUPTED:
        row = _row(record, at_start(record))
        age = round((record["et"] - record["st"]) / 1e6, 3)
        interrupted = {
            "id": f"{record['t']}-{record['s']}-{_INTERRUPTED}",
            "time_ns": record["et"],
            "event": _INTERRUPTED,
        }
        row.pop("tool_calls", None)
        yield row | interrupted | {"status": semconv.INTERRUPTED, "age_ms": age}
        return
    if record["k"] == "s" or whole:
        row = _row(record, at_start(record))
        yield row | {"status": semconv.INTERRUPTED} if record.get("interrupted") else row
    if record["k"] != "s":
        for derived in at_end(record):
            yield _row(record, derived)


def _row(record: Mapping[str, Any], derived: Derived) -> Row:
    fields = derived.fields
    row = {
        "id": fields["id"],
        "time_ns": fields["time_ns"],
        "event": derived.type.__name__,
        "pid": record.get("pid"),
        "operation": fields["operation"],
        "name": fields["name"],
        **{column: record["a"].get(name) for column, name in _COLUMNS.items()},
        **{name: fields[name] for name in ("trace_id", "span_id", "parent_span_id")},
    }
    if "calls" in fields:
        row["tool_calls"] = [{"id": call.id, "name": call.name} for call in fields["calls"]]
    if "status" in fields:
        usage = fields.get("usage")
        row |= {
            "status": fields["status"],
            "error_type": fields["error_type"],
            "duration_ms": round(fields["duration_ms"], 3),
            "input_tokens": usage and usage.input,
            "output_tokens": usage and usage.output,
        }
        if derived.type.__name__ in CHAIN_ENDS:
            row |= {"model_calls": None, "cost_usd": None}
    if "waiting" in fields:
        row["waiting"] = fields["waiting"]
    return row


def _last(store: Path | None, last: int, wanted: _Filter) -> list[Row]:
    """The last events of the store that are wanted, oldest first."""
    conditions, parameters = [f"(operation IS NOT NULL OR attributes ->> '$.\"{UNNAMED}\"' IS NOT NULL)"], []
    for column, value in (("user_id", wanted.user), ("module", wanted.module)):
        if value is not None:
            conditions.append(f"attributes ->> '$.\"{_COLUMNS[column]}\"' = ?")
            parameters.append(value)
    limit = last * len(kinds.TYPES) if wanted.types else last
    with reading(store) as connection:
        spans = connection.execute(
            f"""SELECT trace_id, span_id, parent_span_id, name, start_ns, end_ns, status_code, status, attributes
            FROM spans
            WHERE {" AND ".join(conditions)} ORDER BY coalesce(end_ns, start_ns) DESC LIMIT {limit}""",
            parameters,
        ).fetchall()
        rows: list[Row] = []
        for trace_id, span_id, parent, name, start_ns, end_ns, status_code, status, attributes in spans:
            record = {"t": trace_id, "s": span_id, "p": parent, "n": name, "st": start_ns, "et": end_ns}
            record |= {"sts": status_code, "k": "s" if end_ns is None else "e", "a": json.loads(attributes or "{}")}
            record["interrupted"] = status == semconv.INTERRUPTED
            rows += [row for row in events_of(record, whole=True) if wanted(row)]
        # A start that is older than the end of a span left out is not among the last.
        found = sorted(rows, key=lambda row: int(row["time_ns"]))[-last:]
        add_stored(connection, found)
    return found


# --- on the screen ----------------------------------------------------------------------------------------------------


def _write_json(row: Row) -> None:
    shown = {**row, "time": _clock(row).astimezone(UTC).isoformat()}
    write_json_line(shown)


def _write_line(row: Row) -> None:
    """In colour on a terminal."""
    style = STATUS_STYLES.get(str(row.get("status")), "")
    pid = "" if row["pid"] is None else str(row["pid"])
    wide = line_width() >= _WIDE
    parts = [
        (f"{_clock(row):%H:%M:%S.%f}"[:-3], "dim"),
        *([(f"{pid:>7}", "dim")] if wide else []),
        (f"{row['event']:<{_WIDEST}}", style or style_of(row["event"])),
        (text(row["name"]), "bold"),
    ]
    if row["event"] == _CROSSED:
        parts[-1] = (text(row["text"]), style or "yellow")
        write_parts([each for part in parts for each in (_GAP, part)][1:])
        return
    parts += [(text(part), style) for part in _details(row)]
    parts += [(f"pid {pid}", style)] if row["event"] == _INTERRUPTED and not wide else []
    parts += [(text(row[column]), "dim") for column in ("user_id", "module") if row[column] is not None]
    write_parts([each for part in parts for each in (_GAP, part)][1:])


def _details(row: Row) -> Iterator[str]:
    if row.get("status") not in (None, "ok") and row["event"] != _INTERRUPTED:
        yield row["status"]
    if row.get("error_type"):
        yield str(row["error_type"])
    if (duration := row.get("duration_ms")) is not None:
        yield _time(duration)
    if (age := row.get("age_ms")) is not None:
        yield f"after {_time(age)}"
    if row.get("input_tokens") is not None or row.get("output_tokens") is not None:
        yield f"{count(row['input_tokens'])} + {count(row['output_tokens'])} tokens"
    if (calls := row.get("model_calls")) is not None:
        yield f"{calls} model call{'' if calls == 1 else 's'}"
    if (cost := row.get("cost_usd")) is not None:
        yield f"${text(cost)}"
    if row.get("waiting"):
        yield "waiting"
    if row["event"] == kinds.ToolsRequested.__name__:
        yield ", ".join(str(call["name"] or "tool") for call in row["tool_calls"])


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"


def _clock(row: Row) -> datetime:
    return datetime.fromtimestamp(row["time_ns"] / 1e9, UTC).astimezone()
