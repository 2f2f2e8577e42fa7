"""Stored calls priced again, by the price library and the override table as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from otel_llm.store.file import database
from otel_llm.store.merge import batch, estimates, ingest, rows
from otel_llm.store.paths import StorePaths

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_STEP: Final = 100_000
"""Calls that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which calls are priced again."""

    since: datetime | None = None
    """Those that began then or later."""
    model: str | None = None
    """Those that asked for this model, or were answered by it; `*` and `?` match."""
    priced_too: bool = False
    """Also those that have a price."""

    @property
    def sql(self) -> str:
        """The condition on `llm_usage`, to the parameters of `parameters`."""
        wanted = "($1 IS NULL OR started_at >= $1::TIMESTAMPTZ)"
        wanted += " AND ($2 IS NULL OR request_model GLOB $2 OR response_model GLOB $2)"
        return wanted if self.priced_too else f"{wanted} AND cost_usd IS NULL"

    @property
    def parameters(self) -> list[str | None]:
        """As text: DuckDB takes a datetime with a zone only where pytz is installed."""
        return [None if self.since is None else self.since.isoformat(), self.model]


@dataclass(slots=True)
class Repriced:
    """What came of it. Sums are in USD, over the calls that were looked at and have a price."""

    calls: int = 0
    """Calls looked at."""
    changed: int = 0
    """Calls whose cost is another now, or is known now, or no longer."""
    before: Decimal = Decimal(0)
    after: Decimal = Decimal(0)
    unpriced: dict[str, int] = field(default_factory=dict)
    """How many calls still have no price, by the reason."""


def reprice(
    connection: DuckDBPyConnection, choice: Choice, *, dry_run: bool = False, paths: StorePaths | None = None
) -> Repriced:
    """Prices the chosen calls again, all or none; with `dry_run` only works out what would come of it.

    The caller has the store to itself (`upkeep.alone`).
    """
    done = Repriced()
    ingest.forget_loaded()
    with database.transaction(connection):
        for period in _periods(connection, choice):
            _price(connection, choice, period, paths)
            _measure(connection, done)
            if not dry_run:
                connection.execute(_UPDATE)
    done.unpriced = dict(sorted(done.unpriced.items(), key=lambda item: -item[1]))
    return done


def _periods(connection: DuckDBPyConnection, choice: Choice) -> Iterator[tuple[str | None, str | None]]:
    """Periods with about `_STEP` of the chosen calls each: from, to before."""
    rows = connection.execute(
        f"""SELECT DISTINCT started_at::VARCHAR FROM (
            SELECT started_at, row_number() OVER (ORDER BY started_at) AS number FROM llm_usage WHERE {choice.sql})
        WHERE number % {_STEP} = 0 ORDER BY 1""",
        choice.parameters,
    ).fetchall()
    bounds = [None, *(row[0] for row in rows), None]
    yield from pairwise(bounds)


def _price(
    connection: DuckDBPyConnection, choice: Choice, period: tuple[str | None, str | None], paths: StorePaths | None
) -> None:
    """Fills `usage_batch` with the calls of a period as they are priced now."""
    for table in ("batch", "price", "usage_batch"):
        connection.execute(f"TRUNCATE {table}")
    connection.execute(rows.load_stored_calls(choice.sql), [*choice.parameters, *period])
    estimates.fill(connection, estimates.lately(connection, "llm_usage"), beside=False)
    batch.price(connection, paths)


def _measure(connection: DuckDBPyConnection, done: Repriced) -> None:
    calls, changed, before, after = connection.execute(
        f"""SELECT count(*), count(*) FILTER (WHERE new.cost_usd IS DISTINCT FROM old.cost_usd),
            coalesce(sum(old.cost_usd), 0), coalesce(sum(new.cost_usd), 0)
        FROM usage_batch AS new JOIN llm_usage AS old ON {_SAME}"""
    ).fetchall()[0]
    done.calls += calls
    done.changed += changed
    done.before += before
    done.after += after
    reasons = connection.execute("SELECT price_source, count(*) FROM usage_batch WHERE cost_usd IS NULL GROUP BY 1")
    for reason, number in reasons.fetchall():
        done.unpriced[reason] = done.unpriced.get(reason, 0) + number


_SAME: Final = "old.trace_id = new.trace_id AND old.span_id = new.span_id AND old.started_at = new.started_at"
_CHANGED: Final = ("cost_usd", "price_source", "service_tier", "input_tokens", "output_tokens", "usage_source")
"""Tokens are those that were reported or estimated, or else can be estimated by now."""
_UPDATE: Final = f"""UPDATE llm_usage AS old
    SET {", ".join(f"{column} = new.{column}" for column in _CHANGED)}, row_version = coalesce(old.row_version, 1) + 1,
        commit_number = NULL
    FROM usage_batch AS new WHERE {_SAME}
        AND ({", ".join(f"new.{column}" for column in _CHANGED)})
        IS DISTINCT FROM ({", ".join(f"old.{column}" for column in _CHANGED)})"""
