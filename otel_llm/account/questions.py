"""The account as it can be asked, whichever engine holds it: used by the command line, and whatever else shows the account."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

from otel_llm.account.call_filter import CallFilter, between
from otel_llm.account.engine import Engine, FileFormat, QueryAnswer, Row, Values
from otel_llm.account.sums import MEASURES, SPENDING, TIMES, TOKENS, Dimension, shown, with_shares
from otel_llm.prices.billing import BILLED, CACHE_HIT, NO_REASON, REFUSED, REPORTED, TOLD, UNPRICED, literal

EVERY_CALL: Final = CallFilter()

TABLES: Final = {
    "llm_usage": "started_at",
    "spans": "started_at",
    "llm_events": "occurred_at",
    "llm_tool_calls": "started_at",
    "llm_runs": "last_at",
    "llm_conversations": "last_at",
    "llm_daily": "day",
    "llm_scores": "scored_at",
}
"""The tables and views of the account, and the column that says when a row was."""

_DEAREST: Final = (
    f"{MEASURES['cost_usd']} DESC NULLS LAST",
    f"{TOKENS} DESC",
    f"{MEASURES['calls']} DESC",
)
_STREAM_WITHOUT_USAGE: Final = """status = 'ok' AND time_to_first_chunk_ms IS NOT NULL AND input_tokens IS NULL
    AND output_tokens IS NULL AND operation IN ('chat', 'text_completion') AND coalesce(instrumentation, 'openai') LIKE '%openai'"""
"""Only the streams of the OpenAI client are asked by us, and one that was left early has no end to tell it at."""
_CONTINUES: Final = "otel_llm.run.continues"


class Costs(NamedTuple):
    """How much of a cost the providers have told themselves."""

    told: Decimal | None
    told_calls: int
    computed: Decimal | None
    computed_calls: int


class Estimate(NamedTuple):
    """What stands beside the sums because nobody has reported it."""

    calls: int
    input_tokens: int
    output_tokens: int


class Unbilled(NamedTuple):
    """Calls that cost nothing: the provider refused them, or a cache answered."""

    refused: int
    cached: int


class Contents(NamedTuple):
    """What the account holds altogether."""

    calls: int
    first: str | None
    last: str | None
    unpriced: int
    by_status: dict[str | None, int]
    by_instrumentation: dict[str, int]
    spans: int


class DescribedColumn(NamedTuple):
    """A column for whoever writes SQL."""

    name: str
    kind: str
    """Its type, as the engine calls it."""
    meaning: str
    """What the store says of it; empty where it says nothing."""


class Span(NamedTuple):
    """A span, with what the account says of it where it is a model call."""

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
    start_ns: int

    @property
    def is_part_of_run(self) -> bool:
        return self.waiting or self.continues is not None

    @property
    def run(self) -> str:
        """The run that a chain is a part of; the last part tells whether it waits."""
        return self.span_id if self.continues is None else self.continues[-16:]


class Account:
    """All model calls of a store, or of many machines. Each question is one method; the rows are what `engine.Row` says."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.place = engine.place
        self.store = engine.store

    # --- sums -----------------------------------------------------------------------------------------------------------
    def sums(self, by: Sequence[Dimension], calls: CallFilter = EVERY_CALL, *, sort: str | None = None) -> list[Row]:
        """A row for each group of calls: the dimensions, then the `MEASURES`.

        `sort` is the name of a dimension, of a measure, or `tokens`; numbers go from the largest. What is left equal, or all
        without it, goes by days and hours first, then by the dearest.
        """
        values = Values()
        groups = [dimension.sql(self.engine, values) for dimension in by]
        columns = [shown(dimension, sql, self.engine) for dimension, sql in zip(by, groups, strict=True)]
        keys = [str(position) for position in range(1, len(by) + 1)]
        return with_shares(
            self.engine.ask(
                f"""SELECT {", ".join([*columns, *MEASURES.values()])}
                FROM llm_usage WHERE {calls.sql(self.engine, values)}
                GROUP BY {", ".join(groups)}
                ORDER BY {", ".join([*_order(sort, [one.name for one in by]), *_DEAREST, *keys])}""",
                values,
            )
        )

    def spent(
        self,
        by: Sequence[Dimension],
        calls: CallFilter,
        amount: str,
        *,
        least: Decimal | None = None,
        most: int | None = None,
    ) -> list[Row]:
        """A row for each group of calls, or one for all: the dimensions, then what `SPENDING` has; the largest `amount` first.

        `amount` is SQL over the columns of `llm_usage`; `least`: only groups with that or more; `most`: so many groups.
        """
        values = Values()
        groups = [dimension.sql(self.engine, values) for dimension in by]
        sql = f"SELECT {', '.join([*groups, *SPENDING.values()])} FROM llm_usage WHERE {calls.sql(self.engine, values)}"
        if groups:
            sql += f" GROUP BY {', '.join(groups)}"
            if least is not None:
                sql += f" HAVING {amount} >= {least:f}"
            sql += f" ORDER BY {', '.join([f'{amount} DESC NULLS LAST', *(str(at) for at in range(1, len(by) + 1))])}"
            sql += f" LIMIT {most}" if most is not None else ""
        return self.engine.ask(sql, values)

    def unpriced(self, calls: CallFilter = EVERY_CALL) -> list[tuple[str, int]]:
        """Why some calls are not in the cost, and how many: the commonest reason first."""
        return self._of_calls(
            f"coalesce(price_source, {literal(NO_REASON)}), count(*)", UNPRICED, calls, "GROUP BY 1 ORDER BY 2 DESC, 1"
        )

    def costs(self, calls: CallFilter = EVERY_CALL) -> Costs:
        """How much of the cost was told, and how much computed where any was told."""
        told, told_calls = self._of_calls("sum(cost_usd), count(*)", TOLD, calls)[0]
        if not told_calls:  # nothing to read more columns for
            return Costs(None, 0, None, 0)
        computed, computed_calls = self._of_calls(
            f"sum(cost_usd) FILTER (WHERE {REPORTED}), count(cost_usd) FILTER (WHERE {BILLED} AND {REPORTED})",
            f"NOT ({TOLD})",
            calls,
        )[0]
        return Costs(told, told_calls, computed, computed_calls)

    def unbilled(self, calls: CallFilter = EVERY_CALL) -> Unbilled:
        """What costs nothing, and so is not missing."""
        condition = f"price_source IN ({literal(REFUSED)}, {literal(CACHE_HIT)})"
        found: dict[str, int] = dict(self._of_calls("price_source, count(*)", condition, calls, "GROUP BY 1"))
        return Unbilled(found.get(REFUSED, 0), found.get(CACHE_HIT, 0))

    def estimated(self, calls: CallFilter = EVERY_CALL) -> Estimate:
        """Tokens that were billed, as it seems, and not reported."""
        return Estimate(
            *self._of_calls(
                "count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0)", f"NOT ({REPORTED})", calls
            )[0]
        )

    def streams_without_usage(self, calls: CallFilter = EVERY_CALL) -> list[tuple[str | None, int]]:
        """How many streams came without usage, by the server they came from."""
        return self._of_calls("server_address, count(*)", _STREAM_WITHOUT_USAGE, calls, "GROUP BY 1 ORDER BY 2 DESC, 1")

    def _of_calls(self, columns: str, condition: str, calls: CallFilter, rest: str = "") -> list[Row]:
        values = Values()
        chosen = calls.sql(self.engine, values)
        return self.engine.ask(f"SELECT {columns} FROM llm_usage WHERE {condition} AND {chosen} {rest}", values)

    def tag_keys(self) -> list[str]:
        """The keys of the tags that calls have, the commonest first: of some ten thousand calls."""
        return common_tag_keys(self.engine, "true", Values())

    # --- single calls ---------------------------------------------------------------------------------------------------
    def is_empty(self) -> bool:
        """Whether no model call has been recorded at all."""
        return not self.engine.ask("SELECT 1 FROM llm_usage LIMIT 1")

    def latest(self, columns: Sequence[str], calls: CallFilter = EVERY_CALL, most: int | None = None) -> list[Row]:
        """The latest calls, at `most` so many, in the order of time: these columns of `llm_usage`."""
        values = Values()
        chosen = calls.sql(self.engine, values)
        shown = [self.engine.moment_text(name) if name == "started_at" else name for name in columns]
        return self.engine.ask(
            f"SELECT {', '.join(shown)} FROM llm_usage WHERE {chosen} "
            f"ORDER BY llm_usage.started_at DESC, span_id DESC {f'LIMIT {most}' if most else ''}",
            values,
        )[::-1]

    # --- traces ---------------------------------------------------------------------------------------------------------
    def latest_trace(self) -> str | None:
        """The trace of the latest call."""
        found = self.engine.ask("SELECT trace_id FROM llm_usage ORDER BY started_at DESC LIMIT 1")
        return found[0][0] if found else None

    def traces_like(self, beginning: str) -> list[str]:
        """The traces whose id begins so: one or two of them, or none."""
        values = Values()
        least = self.engine.value(values.add(beginning))
        most = self.engine.value(values.add(f"{beginning}~"))  # which comes after any digit
        like = f"WHERE trace_id >= {least} AND trace_id <= {most}"
        found = self.engine.ask(
            f"""SELECT DISTINCT trace_id FROM (SELECT trace_id FROM spans {like}
            UNION ALL SELECT trace_id FROM llm_usage {like}) AS known LIMIT 2""",
            values,
        )
        return [trace_id for (trace_id,) in found]

    def spans_like(self, trace_id: str, beginning: str) -> list[str]:
        """The spans of a trace whose id begins so: one or two of them, or none."""
        values = Values()
        like = f"""WHERE trace_id = {self.engine.value(values.add(trace_id))}
            AND starts_with(span_id, {self.engine.value(values.add(beginning))})"""
        found = self.engine.ask(
            f"""SELECT DISTINCT span_id FROM (SELECT span_id FROM spans {like}
            UNION ALL SELECT span_id FROM llm_usage {like}) AS known LIMIT 2""",
            values,
        )
        return [span_id for (span_id,) in found]

    def run(self, trace_id: str) -> list[list[Span]]:
        """The spans of a trace, and of the traces that a run in it goes on in or goes back to; each in the order of time."""
        traces = {trace_id: self._spans(trace_id)}
        known: set[str] = set()
        while new := traces.keys() - known:
            known |= new
            traces |= {one: self._spans(one) for one in self._beside(new) - known}
        return sorted(
            (spans for spans in traces.values() if spans), key=lambda spans: (spans[0].start_ns, spans[0].trace_id)
        )

    def _spans(self, trace_id: str) -> list[Span]:
        values = Values()
        attribute, moment = self.engine.attribute, self.engine.moment_text
        trace = self.engine.value(values.add(trace_id))
        found = self.engine.ask(
            f"""SELECT s.span_id, s.parent_span_id, s.name, s.operation, {moment("s.started_at")}, s.duration_ms, s.status,
                coalesce(u.error_type, {attribute("s.attributes", "error.type")}), u.input_tokens, u.output_tokens, u.cost_usd,
                CASE WHEN s.status IN ('error', 'cancelled', 'refused') THEN s.status_message END, s.trace_id,
                coalesce({attribute("s.attributes", "otel_llm.run.waiting")} = 'true', false),
                {attribute("s.attributes", _CONTINUES)}, u.usage_source, s.start_ns
            FROM (SELECT * FROM spans WHERE trace_id = {trace}) AS s
            LEFT JOIN (SELECT * FROM llm_usage WHERE trace_id = {trace}) AS u ON u.trace_id = s.trace_id AND u.span_id = s.span_id
            ORDER BY s.start_ns, s.end_ns DESC""",
            values,
        )
        return [span._replace(waiting=bool(span.waiting)) for span in map(Span._make, found)]

    def _beside(self, traces: set[str]) -> set[str]:
        """The traces that runs in these are continued in, or continue."""
        values = Values()
        listed = ", ".join(self.engine.value(values.add(trace_id)) for trace_id in sorted(traces))
        found = self.engine.ask(
            f"""SELECT DISTINCT c.trace_id, p.trace_id FROM spans AS p JOIN (
                SELECT trace_id, {self.engine.attribute("attributes", _CONTINUES)} AS run FROM spans
                WHERE operation IN ('invoke_workflow', 'invoke_agent', 'create_agent') AND attributes LIKE '%{_CONTINUES}%'
            ) AS c ON p.span_id = right(c.run, 16)
            WHERE (length(c.run) = 16 OR p.trace_id = left(c.run, 32))
                AND (c.trace_id IN ({listed}) OR p.trace_id IN ({listed}))""",
            values,
        )
        return {trace_id for pair in found for trace_id in pair}

    # --- all of it ------------------------------------------------------------------------------------------------------
    def contents(self) -> Contents:
        """What there is, in numbers."""
        moment = self.engine.moment_text
        ((calls, first, last, unpriced),) = self.engine.ask(
            f"""SELECT count(*), {moment("min(started_at)")}, {moment("max(started_at)")}, count(*) FILTER (WHERE {UNPRICED})
            FROM llm_usage"""
        )
        numbers = "SELECT {}, count(*) FROM llm_usage GROUP BY 1 ORDER BY 2 DESC, 1"
        if not calls:  # where there is nothing, an engine may have 1970 for the least of it
            first = last = None
        return Contents(
            calls, first, last, unpriced,
            by_status=dict(self.engine.ask(numbers.format("status"))),
            by_instrumentation=dict(self.engine.ask(numbers.format("coalesce(instrumentation, 'unknown')"))),
            spans=self.engine.ask("SELECT count(*) FROM spans")[0][0],
        )  # fmt: skip

    def statements(self, sql: str) -> list[str]:
        """The statements in SQL of the user's."""
        return self.engine.statements(sql)

    def query(self, sql: str, most: int | None = None) -> QueryAnswer | None:
        """What SQL of the user's answers, at `most` so many rows; None where it answers nothing."""
        return self.engine.run(sql, most)

    def export(
        self, table: str, file: Path, kind: FileFormat, *,
        since: datetime | None = None, until: datetime | None = None, raw: bool = False, zones: bool = True,
    ) -> int:  # fmt: skip
        """Writes one of the `TABLES` to a file that is there and empty; returns the number of rows."""
        values = Values()
        where = " AND ".join(between(TABLES[table], since, until, self.engine, values)) or "true"
        return self.engine.export(table, where, values, file, kind, raw=raw, zones=zones)

    def described(self) -> dict[str, list[DescribedColumn]]:
        """The tables and views that are meant for people, with their columns, for whoever writes SQL."""
        found: dict[str, dict[str, DescribedColumn]] = {}
        for table, name, kind, meaning in self.engine.ask(
            f"""SELECT table_name, column_name, data_type, column_comment FROM information_schema.columns
            WHERE table_name IN ({", ".join(map(literal, TABLES))}) ORDER BY table_name, ordinal_position"""
        ):
            columns = found.setdefault(table, {})
            known = columns.get(name)  # a view that lies over the table of its name has it, too
            if known is None or not known.meaning:
                columns[name] = DescribedColumn(name, kind, meaning or "")
        return {name: [*found[name].values()] for name in TABLES if name in found}

    def has_messages(self) -> bool:
        """Whether of any call it was recorded what was said."""
        return bool(
            self.engine.ask(
                "SELECT 1 FROM llm_usage WHERE input_messages IS NOT NULL OR output_messages IS NOT NULL LIMIT 1"
            )
        )

    def names(self) -> list[str]:
        """Every table, view and column, for whoever writes SQL."""
        return self.engine.names()


def common_tag_keys(engine: Engine, where: str, values: Values) -> list[str]:
    """The keys of the tags that calls have for which a condition holds, the commonest first: of some ten thousand of them."""
    found = engine.ask(
        f"""SELECT tag_key, count(*) FROM (
            SELECT {engine.tag_keys()} AS tag_key FROM (SELECT tags FROM llm_usage WHERE {where} LIMIT 20000) AS sampled) AS keyed
        GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 50""",
        values,
    )
    return [key for key, _ in found]


def _order(sort: str | None, dimensions: Sequence[str]) -> list[str]:
    """What stands before the usual order: SQL over the columns of the result."""
    if sort is None:
        return [str(position) for position, name in enumerate(dimensions, 1) if name in TIMES]
    if sort in dimensions:
        return [str(dimensions.index(sort) + 1)]
    if sort == "share":  # which is that of what the usual order begins with
        return []
    return [f"{TOKENS if sort == 'tokens' else MEASURES[sort]} DESC NULLS LAST"]
