"""Which calls a question is about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from otel_llm.account.engine import Engine, Values
from otel_llm.account.sql_words import with_columns
from otel_llm.account.sums import COLUMNS, TIMES, Dimension

_COLUMNS: Final = {"user": "user_id", "conversation": "conversation_id", "module": "module", "trace": "trace_id"}


@dataclass(frozen=True, slots=True)
class CallFilter:
    """All calls, but for what is given."""

    since: datetime | None = None
    """Those that began then or later."""
    until: datetime | None = None
    """Those that began before then."""
    user: str | None = None
    conversation: str | None = None
    module: str | None = None
    trace: str | None = None
    current: bool = False
    """Those of the conversation that the last call in one belongs to, of those that are chosen by what stands above."""
    model: str | None = None
    """Those that asked for this model, or were answered by it; `*` and `?` match."""
    search: str = ""
    """Those in whose messages or error each word of this stands."""
    errors: bool = False
    """Those with the status error."""
    having: tuple[tuple[Dimension, tuple[str, ...]], ...] = ()
    """Those that have one of these values in each of these; `*` and `?` match."""
    run: Dimension | None = None
    """Those that are in a trace, or in a conversation, which has a call that began in this time; then all calls of it."""
    where: str | None = None
    """Those for which this holds: a condition on `llm_usage` that the user wrote, in the SQL of the engine. It may have the names
    of `DIMENSIONS`, too."""

    def sql(self, engine: Engine, values: Values) -> str:
        """The condition on `llm_usage`; what it refers to is added to `values`. Raises `AccountError` for a bad `where`."""
        clauses = between("started_at", self.since, self.until, engine, values)
        if self.run is not None:
            run = self.run.sql(engine, values)
            lately = " AND ".join([f"{run} IS NOT NULL", *clauses])
            clauses = [f"{run} IN (SELECT {run} FROM llm_usage WHERE {lately})"]
        for name, column in _COLUMNS.items():
            if (value := getattr(self, name)) is not None:
                clauses.append(f"{column} = {engine.value(values.add(value))}")
        if self.current:
            clauses.append(
                "conversation_id = (SELECT conversation_id FROM llm_usage WHERE "
                f"{' AND '.join(['conversation_id IS NOT NULL', *clauses])} ORDER BY started_at DESC LIMIT 1)"
            )
        if self.model is not None:
            clauses.append(engine.glob(("request_model", "response_model"), self.model, values))
        for dimension, chosen in self.having:
            column = dimension.sql(engine, values)
            exact = [engine.value(values.add(value)) for value in chosen if not _is_pattern(value)]
            either = [f"{column} IN ({', '.join(exact)})"] if exact else []
            either += [engine.glob((column,), value, values) for value in chosen if _is_pattern(value)]
            clauses.append(f"({' OR '.join(either)})")
        clauses += [engine.said(word, values) for word in self.search.split()]
        if self.errors:
            clauses.append("status = 'error'")
        if self.where is not None:
            clauses.append(engine.condition(with_columns(self.where, lambda name: _column_of(name, engine))))
        return " AND ".join(clauses) or "true"


def _is_pattern(value: str) -> bool:
    return "*" in value or "?" in value


def _column_of(name: str, engine: Engine) -> str | None:
    """The SQL for a name of `DIMENSIONS` that is no column; None for any other word."""
    if name in TIMES:
        return engine.written(engine.local("started_at", name), TIMES[name])
    sql = COLUMNS.get(name)
    return None if sql in (None, name) else f"({sql})"


def between(column: str, since: datetime | None, until: datetime | None, engine: Engine, values: Values) -> list[str]:
    """The conditions on a column of moments: `since` or later, before `until`."""
    clauses = []
    if since is not None:
        clauses.append(f"{column} >= {engine.moment(values.add(since.isoformat()))}")
    if until is not None:
        clauses.append(f"{column} < {engine.moment(values.add(until.isoformat()))}")
    return clauses
