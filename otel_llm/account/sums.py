"""What calls are added up by, and what is added up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from otel_llm.account.engine import Engine, Row, Values
from otel_llm.prices.billing import BILLED, REPORTED, UNPRICED

COLUMNS: Final = {
    "model": "coalesce(request_model, response_model)",
    "response_model": "response_model",
    "user": "user_id",
    "module": "module",
    "day": "started_at",
    "hour": "started_at",
    "provider": "provider",
    "operation": "operation",
    "status": "status",
    "session": "session_id",
    "conversation": "conversation_id",
    "agent": "agent_name",
    "workflow": "workflow_name",
    "profile": "profile",
    "service": "service_name",
    "server": "server_address",
    "price_source": "price_source",
}
"""The SQL of each dimension; of a time the moment."""
TAG: Final = "tag:"
"""What the name of a dimension begins with that is a tag."""

TRACE: Final = "trace"
"""One more, for budgets: whoever asks by it wants few."""
DIMENSIONS: Final = tuple(COLUMNS)
"""What calls can be added up by, beside `tag:KEY`. Nothing that a user types becomes SQL: a name is looked up here."""
TIMES: Final = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:00"}
"""Those in local time, and how they are written: the groups, of which there are fewer than rows."""

MEASURES: Final = {
    "calls": f"count(CASE WHEN {BILLED} THEN 1 END)",
    "errors": "count(CASE WHEN status = 'error' THEN 1 END)",
    "input_tokens": f"sum(CASE WHEN {REPORTED} THEN input_tokens END)",
    "output_tokens": f"sum(CASE WHEN {REPORTED} THEN output_tokens END)",
    "cached": "sum(cache_read_tokens)",
    "cost_usd": f"sum(CASE WHEN {REPORTED} THEN cost_usd END)",
    "share": "NULL",  # of what all rows have together: see `with_shares`
    "unpriced": f"count(CASE WHEN {UNPRICED} THEN 1 END)",
    "estimated_usd": f"sum(CASE WHEN NOT ({REPORTED}) THEN cost_usd END)",
}
"""What is added up, and the SQL for it. CASE, where FILTER would say the same: over many rows it takes DuckDB a fifth less."""
_SENT: Final = f"{BILLED} AND coalesce(status, '') <> 'refused'"
_ALL_TOKENS: Final = "coalesce(input_tokens, 0) + coalesce(output_tokens, 0)"
SPENDING: Final = {
    "calls": f"count(CASE WHEN {_SENT} THEN 1 END)",
    "tokens": f"sum(CASE WHEN {_SENT} THEN {_ALL_TOKENS} END)",
    "cost_usd": "sum(cost_usd)",
    "unpriced": f"count(CASE WHEN {UNPRICED} AND {_SENT} THEN 1 END)",
    "unpriced_tokens": f"sum(CASE WHEN {UNPRICED} AND {_SENT} THEN {_ALL_TOKENS} END)",
    "untold": f"count(CASE WHEN {UNPRICED} AND {_SENT} AND input_tokens IS NULL AND output_tokens IS NULL THEN 1 END)",
}
"""What a budget looks at: as above, but what is estimated is spent, too, and a call that a budget has refused is none. `untold`
are calls whose tokens nobody knows."""
TOKENS: Final = " + ".join(f"coalesce({MEASURES[name]}, 0)" for name in ("input_tokens", "output_tokens"))


_INPUT, _OUTPUT, _COST, _SHARE = (
    list(MEASURES).index(name) - len(MEASURES) for name in ("input_tokens", "output_tokens", "cost_usd", "share")
)
"""Where these stand in a row, counted from its end."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing to add up by."""

    name: str

    @classmethod
    def named(cls, name: str) -> Dimension | None:
        """The dimension that is called so; None where there is none."""
        return cls(name) if name in COLUMNS or name.removeprefix(TAG) not in (name, "") else None

    def sql(self, engine: Engine, values: Values) -> str:
        """What to group by; what it refers to is added to `values`."""
        if self.name in TIMES:
            return engine.local(COLUMNS[self.name], self.name)
        if self.name in COLUMNS:
            return COLUMNS[self.name]
        if self.name == TRACE:
            return "trace_id"
        return engine.tag(values.add(self.name.removeprefix(TAG)))


def shown(dimension: Dimension, sql: str, engine: Engine) -> str:
    """What is answered of a group."""
    return engine.written(sql, TIMES[dimension.name]) if dimension.name in TIMES else sql


def with_shares(rows: Sequence[Row]) -> list[Row]:
    """The rows with the share of each: of the cost, or of the tokens where no cost is known."""
    amounts, _ = weights(rows)
    whole = total(amounts)
    return [
        (*row[:_SHARE], None if amount is None or not whole else round(float(amount / whole), 6), *row[_SHARE + 1 :])
        for row, amount in zip(rows, amounts, strict=True)
    ]


def weights(rows: Sequence[Row]) -> tuple[list[Any], str]:
    """What the rows are weighed by, and its name: their cost, or their tokens where no cost is known."""
    if any(row[_COST] is not None for row in rows):
        return [row[_COST] for row in rows], "cost_usd"
    return [total((row[_INPUT], row[_OUTPUT])) for row in rows], "tokens"


def total(values: Iterable[Any]) -> Any:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
