"""Calls in a ClickHouse priced again: fetched, priced as in a store, and sent again where they have changed."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from otel_llm.account.clickhouse_engine import ClickHouseEngine
from otel_llm.account.engine import AccountError, Values
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.ship.clickhouse import ClickHouseDestination
from otel_llm.fleet.ship.destination import Block, Never, NotNow
from otel_llm.fleet.wire_row import RETRACTED, USAGE_COLUMNS, Kind, select_list
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.merge.rows import USAGE_TYPES
from otel_llm.store.paths import StorePaths

_STEP: Final = 50_000
"""Calls that are here at a time."""


def reprice(url: ClickHouseURL, choice: repricing.Choice, *, dry_run: bool = False) -> repricing.Repriced:
    """Prices the chosen calls again. A row that changes is sent with a higher `row_version`; whoever asks meanwhile sees the one or
    the other. Raises AccountError, StoreError."""
    done = repricing.Repriced()
    engine = ClickHouseEngine(ClickHouseClient(url))
    destination = ClickHouseDestination(url)
    try:
        chosen = _chosen(engine, choice)
        while step := list(itertools.islice(chosen, _STEP)):
            changed = _price(step, choice, done, dry_run=dry_run)
            if changed:
                destination.send(Block("llm_usage", changed))
    except (NotNow, Never) as error:
        raise AccountError(str(error)) from error
    finally:
        engine.client.close()
        destination.close()
    done.unpriced = dict(sorted(done.unpriced.items(), key=lambda item: -item[1]))
    return done


def _chosen(engine: ClickHouseEngine, choice: repricing.Choice) -> Iterator[Sequence[Any]]:
    """The chosen calls, with the columns of `USAGE_COLUMNS`."""
    values = Values()
    clauses = ["true"] if choice.priced_too else ["cost_usd IS NULL"]
    if choice.since is not None:
        clauses.append(f"started_at >= {engine.moment(values.add(choice.since.isoformat()))}")
    if choice.model is not None:
        clauses.append(engine.glob(("request_model", "response_model"), choice.model, values))
    return engine.stream(f"SELECT {', '.join(USAGE_COLUMNS)} FROM llm_usage WHERE {' AND '.join(clauses)}", values)


def _price(
    calls: Sequence[Sequence[Any]], choice: repricing.Choice, done: repricing.Repriced, *, dry_run: bool
) -> list[dict[str, Any]]:
    """Adds to `done` what has come of these calls; returns the rows that are others now."""
    with tempfile.TemporaryDirectory(prefix="otel-llm-reprice-") as directory:
        file = Path(directory) / "calls.json"
        # An empty list or mapping is NULL here.
        rows = ({n: v for n, v in zip(USAGE_COLUMNS, call, strict=True) if v not in ([], {})} for call in calls)
        file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        paths = StorePaths.of(Path(directory) / "usage.duckdb")
        with exclusive.alone(paths) as connection:
            # Text that is a document is not a document in a document.
            types = {
                column: "VARCHAR" if USAGE_COLUMNS[column] is Kind.JSON else kind
                for column, kind in USAGE_TYPES.items()
            }
            connection.execute(
                f"INSERT INTO llm_usage BY NAME FROM read_json(?, format = 'newline_delimited', columns = {types})",
                [str(file)],
            )
            connection.execute("CREATE TEMP TABLE before AS SELECT trace_id, span_id, row_version FROM llm_usage")
            found = repricing.reprice(connection, choice, dry_run=dry_run, paths=paths)
            changed = connection.execute(
                f"""SELECT {select_list(USAGE_COLUMNS)} FROM llm_usage SEMI JOIN before
                ON before.trace_id = llm_usage.trace_id AND before.span_id = llm_usage.span_id
                    AND before.row_version < llm_usage.row_version"""
            ).fetchall()
    done.calls += found.calls
    done.changed += found.changed
    done.before += found.before
    done.after += found.after
    for reason, number in found.unpriced.items():
        done.unpriced[reason] = done.unpriced.get(reason, 0) + number
    return [{**dict(zip(USAGE_COLUMNS, row, strict=True)), RETRACTED: False} for row in changed]
