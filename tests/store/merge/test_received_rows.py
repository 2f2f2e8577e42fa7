"""Rows that come whole, from another store: each counted once, in its last version, beside whatever its span says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from otel_llm.conventions import semconv
from otel_llm.store.jobs import exclusive, retention
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import count, end, identity, merging, query, start, write_call

ROW: dict[str, Any] = {
    "started_at": "2026-11-29T12:00:00.123456Z",
    "duration_ms": 250.5,
    "time_to_first_chunk_ms": 12.0,
    "parent_span_id": "00000000000000aa",
    "service_name": "shop",
    "operation": "chat",
    "provider": "openai",
    "request_model": "gpt-4o-mini",
    "response_model": "gpt-4o-mini-2024-07-18",
    "response_id": "chatcmpl-1",
    "stream": True,
    "status": "ok",
    "finish_reasons": ["stop", None, "length"],
    "input_tokens": 1000,
    "output_tokens": 500,
    "usage_source": "reported",
    "cost_usd": "0.123456789",
    "price_source": "a list of another machine",
    "module": "billing",
    "tags": {"team": "blue", 'odd "key"/~': "7", "none": None},
    "instrumentation": "otel_llm.openai",
    "attempts": 2,
    "input_messages": '[{"role": "user"}]',
    "units": {"web_search_calls": 2.0},
    "row_version": 1,
}


def received(row: Mapping[str, Any], number: int = 1, **columns: Any) -> dict[str, Any]:
    """The record of a row, with the ids that `start(number=number)` has."""
    begun = start(number=number)
    return {"k": "u", "t": begun["t"], "s": begun["s"], "u": {**row, **columns}}


def moment(number: int) -> str:
    """When the call that `start(number=number)` begins began, as a row has it."""
    begun_us = start(number=number)["st"] // 1000
    return f"2025-11-20T12:00:{begun_us // 10**6 % 60:02d}.{begun_us % 10**6:06d}Z"


def rows(path: Path, columns: str) -> list[tuple[Any, ...]]:
    return query(path, f"SELECT {columns} FROM llm_usage ORDER BY span_id")


@pytest.fixture(params=["merged", "in the journal"])
def shown(request: pytest.FixtureRequest, store_path: Path) -> Any:
    """Reads `llm_usage` as merged, and as laid over the file while somebody else merges."""

    with exclusive.alone(StorePaths.of(store_path)):
        pass  # the file is there

    def read(columns: str) -> list[tuple[Any, ...]]:
        if request.param == "merged":
            return rows(store_path, columns)
        with merging(StorePaths.of(store_path)):
            return rows(store_path, columns)

    return read


def test_a_row_is_as_it_came(journal: Journal, store_path: Path, shown: Any) -> None:
    journal.append(received(ROW))
    assert shown("* EXCLUDE (trace_id, span_id)") == shown("* EXCLUDE (trace_id, span_id)")
    names = ", ".join(name for name in ROW if name not in ("started_at", "input_messages", "cost_usd"))
    (found,) = shown(names)
    assert dict(zip(names.split(", "), found, strict=True)) == {name: ROW[name] for name in names.split(", ")}
    assert shown("cost_usd, epoch_us(started_at), input_messages, error_type, cache_read_tokens") == [
        (Decimal("0.123456789"), 1_795_953_600_123_456, '[{"role": "user"}]', None, None)
    ]
    assert query(store_path, "SELECT count(*) FROM spans") == [(0,)]


def test_unknown_stays_unknown(journal: Journal, shown: Any) -> None:
    journal.append(received({"started_at": ROW["started_at"], "status": "error", "input_tokens": 5}))
    (values,) = shown("COLUMNS(* EXCLUDE (trace_id, span_id, started_at, status, row_version, input_tokens))")
    assert set(values) == {None}
    assert shown("row_version") == [(1,)]


VERSIONS = [
    received(ROW, row_version=1, status="interrupted"),
    received(ROW, row_version=2, cost_usd=None, price_source="no price"),
    received(ROW, row_version=3, cost_usd="1.5"),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("merged_after", [0, 1, 2])
def test_the_highest_version_counts_in_any_order(
    order: tuple[int, ...], merged_after: int, journal: Journal, store_path: Path
) -> None:
    for number, version in enumerate(order):
        journal.append(VERSIONS[version])
        journal.append(VERSIONS[version])
        if number < merged_after:
            merge(store_path)
    with exclusive.alone(StorePaths.of(store_path)):
        pass
    with merging(StorePaths.of(store_path)):
        assert rows(store_path, "status, cost_usd, row_version") == [("ok", Decimal("1.5"), 3)]
    assert rows(store_path, "status, cost_usd, row_version") == [("ok", Decimal("1.5"), 3)]
    journal.append(VERSIONS[order[0]])
    assert rows(store_path, "status, cost_usd, row_version") == [("ok", Decimal("1.5"), 3)]


@pytest.mark.parametrize("merged_after", [0, 1, 2])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_call_that_comes_as_span_and_as_row_is_one_row(
    order: tuple[int, ...], merged_after: int, journal: Journal, store_path: Path
) -> None:
    begun = start(number=1)
    row = received(ROW, started_at=moment(1))
    what = (begun, end(begun, {semconv.INPUT_TOKENS: 7, semconv.OUTPUT_TOKENS: 8}), row)
    for number, which in enumerate(order):
        kind = {0: "start_of", 1: "end_of"}.get(which)
        journal.append(what[which], **({} if kind is None else {kind: identity(begun)}))
        if number < merged_after:
            merge(store_path)
    with exclusive.alone(StorePaths.of(store_path)):
        pass
    with merging(StorePaths.of(store_path)):
        assert rows(store_path, "input_tokens, cost_usd, module") == [(1000, Decimal("0.123456789"), "billing")]
    assert rows(store_path, "input_tokens, cost_usd, module") == [(1000, Decimal("0.123456789"), "billing")]
    assert query(store_path, "SELECT count(*), any_value(status) FROM spans") == [(1, "ok")]


def test_a_span_of_a_process_that_died_does_not_replace_its_row(journal: Journal, store_path: Path) -> None:
    """The other machine has told the call as interrupted; what comes of its span is for the tree."""
    begun = start(number=1)
    journal.append(received(ROW, started_at=moment(1), status="interrupted", cost_usd=None))
    merge(store_path)
    journal.append(end(begun))
    assert rows(store_path, "status, module") == [("interrupted", "billing")]
    assert count(store_path, "spans") == 1


def test_what_this_store_changes_does_not_shut_out_what_comes(journal: Journal, store_path: Path) -> None:
    """Versions of another store are compared with one another, not with those that this store gives."""
    begun = start(number=1)
    journal.append(begun, start_of=identity(begun))
    journal.close()
    merge(store_path)
    journal.append(end(begun))
    merge(store_path)
    assert rows(store_path, "status, row_version") == [("ok", 2)]
    journal.append(received(ROW, started_at=moment(1)))
    assert rows(store_path, "module, row_version") == [("billing", 3)]
    journal.append(received(ROW, started_at=moment(1), module="sales", row_version=2))
    assert rows(store_path, "module, row_version") == [("sales", 4)]


def test_a_row_that_is_taken_back_counts_no_more(journal: Journal, store_path: Path, shown: Any) -> None:
    journal.append(received(ROW))
    journal.append(received(ROW, number=2))
    merge(store_path)
    gone = {"started_at": ROW["started_at"], "row_version": 2, "retracted": True}
    journal.append(received(gone))
    assert len(shown("span_id")) == 1
    journal.append(received(ROW))
    assert len(shown("span_id")) == 1
    merge(store_path)
    journal.append(received(ROW))
    assert shown("module") == [("billing",)]


def test_a_call_told_by_two_machines_counts_once(journal: Journal, store_path: Path) -> None:
    """One asked for a response in the background, and another fetched its result."""
    told = {"response_id": "resp_1", "units": None, "cost_usd": None, "price_source": "no usage reported"}
    nothing = {"input_tokens": None, "output_tokens": None, "usage_source": None}
    journal.append(received(ROW, **told, **nothing))
    merge(store_path)
    later = {"started_at": "2026-11-29T12:00:05.000000Z", "operation": semconv.RETRIEVE}
    journal.append(received(ROW, number=2, **told, **later))
    assert rows(store_path, "operation, input_tokens, cost_usd") == [("chat", 1000, Decimal("0.000450000"))]
    journal.append(received(ROW, number=2, **told, **later))
    journal.append(received(ROW, **told, **nothing))
    assert rows(store_path, "operation, input_tokens") == [("chat", 1000)]


def test_what_cannot_be_a_value_is_unknown(journal: Journal, store_path: Path) -> None:
    """Whoever writes the journal has looked at it; a line that slips through must hold up no other."""
    journal.append(received(ROW, started_at="soon", input_tokens=10**30, cost_usd="much", row_version="x"))
    journal.append({"k": "u", "t": "1", "s": "2", "u": {"started_at": ROW["started_at"], "tags": "none"}})
    journal.append({"k": "u", "t": "1", "s": "3", "u": "nothing"})
    write_call(journal, number=100)
    assert query(store_path, "SELECT count(*) FROM llm_usage WHERE input_tokens = 1000") == [(1,)]
    assert query(store_path, "SELECT cost_usd, row_version FROM llm_usage WHERE module IS NOT NULL") == [(None, 1)]


def test_retention_takes_both(journal: Journal, paths: StorePaths) -> None:
    journal.append(received(ROW))
    merge(paths.database)
    with exclusive.alone(paths) as connection:
        assert connection.execute("SELECT count(*) FROM received_rows").fetchall() == [(1,)]
        retention.remove(connection, retention.Policy(max_age=1), now=2e9)
        assert connection.execute("SELECT count(*) FROM received_rows").fetchall() == [(0,)]
    assert count(paths.database) == 0


def test_a_row_teaches_what_others_of_its_model_cost(journal: Journal, store_path: Path) -> None:
    """Calls that were billed and told nothing are estimated from rows as from spans, and rows are never estimated themselves."""
    for number in range(1, 9):
        told = {"units": None, "response_id": f"chatcmpl-{number}", "input_chars": 4000, "output_chars": 2000}
        journal.append(received(ROW, number=number, **told))
    left = {"status": "partial", "input_tokens": None, "output_tokens": None, "usage_source": None}
    journal.append(received(ROW, number=9, **left, response_id=None, input_chars=4000, output_chars=2000))
    write_call(journal, {semconv.STATUS: "partial"}, number=100, ci=4000, co=2000)
    found = query(
        store_path, "SELECT input_tokens, usage_source FROM llm_usage WHERE status = 'partial' ORDER BY span_id DESC"
    )
    assert found == [(1000, "estimated"), (None, None)]


def test_rows_that_look_alike_are_not_taken_for_one(journal: Journal, store_path: Path) -> None:
    """Pods of one service ask the same at one time. Layers of one process were settled there; one response is one call."""
    alike = {"response_id": None, "started_at": moment(1)}
    for number, scope in enumerate(("one.scope", "another.scope"), 1):
        journal.append(received(ROW, number=number, **alike, instrumentation=scope))
        merge(store_path)
    assert len(rows(store_path, "span_id")) == 2
    for number, scope in enumerate(("one.scope", "another.scope"), 3):
        journal.append(received(ROW, number=number, started_at=moment(1), response_id="r", instrumentation=scope))
        merge(store_path)
    assert len(rows(store_path, "span_id")) == 3
    looks = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 500}
    write_call(journal, looks, number=5, sc="a.third", r={"service.name": "shop"})
    assert len(rows(store_path, "span_id")) == 3


def test_a_file_of_an_earlier_version_is_laid_over_too(paths: StorePaths, journal: Journal) -> None:
    """It has no place for what has come whole, and cannot be migrated while somebody else merges."""
    older = Path(__file__).parents[1] / "file" / "schema_7.sql"
    with duckdb.connect(str(paths.database), config={"storage_compatibility_version": "v1.5.0"}) as connection:
        connection.execute(older.read_text())
    with merging(paths):
        before = count(paths.database)
        journal.append(received(ROW))
        journal.append(received(ROW, row_version=2, module="sales"))
        found = query(paths.database, "SELECT module, count(*) OVER () FROM llm_usage ORDER BY started_at DESC LIMIT 1")
    assert found == [("sales", before + 1)]
