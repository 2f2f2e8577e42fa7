"""What calls cost that are in no store yet, by the statements of the merge: for who tells of them as they end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from otel_llm.store.journal import record
from otel_llm.store.merge import batch, duckdb_instance
from otel_llm.store.paths import StorePaths
from otel_llm.support import fork_guard

Key = tuple[str, str]
"""Trace id and span id."""


def costs_of(paths: StorePaths, records: Iterable[Mapping[str, Any]]) -> dict[Key, Decimal]:
    """The costs in USD of the calls that these end records tell of, as far as they are known.

    Raises duckdb.Error and StoreError.
    """
    lines = [record.encode(one)[:-1] for one in records]
    if not lines:
        return {}
    with fork_guard.mutex:
        connection = duckdb_instance.get(paths)
        batch.load(connection, paths, {"": (b"", lines)})
        priced = connection.execute("SELECT trace_id, span_id, cost_usd FROM usage_batch WHERE cost_usd IS NOT NULL")
        return {(trace_id, span_id): cost for trace_id, span_id, cost in priced.fetchall()}
