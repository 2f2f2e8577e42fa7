"""Stores of other versions: an older file is brought up to date, and a newer one does not break this version."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import duckdb
import pytest

from otel_llm.store.file import database
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.merge.rows import USAGE_COLUMNS
from otel_llm.store.paths import StorePaths
from tests.store.conftest import count, merging, query, write_call

VIEWS = {"llm_events", "llm_runs", "llm_tool_calls", "llm_conversations", "llm_daily"}
STORES = {version: Path(__file__).with_name(f"schema_{version}.sql") for version in range(1, database.SCHEMA_VERSION)}
"""A real store of each earlier version, as SQL."""
CALLS = {1: 5, 2: 6, 3: 6, 4: 9, 5: 9, 6: 9, 7: 9, 8: 9, 9: 9}


@pytest.fixture
def make(store_path: Path) -> Callable[[int], Path]:
    """Makes the store of a version as a file, in the format that files had then."""

    def make(version: int) -> Path:
        with duckdb.connect(str(store_path), config={"storage_compatibility_version": "v1.5.0"}) as connection:
            connection.execute(STORES[version].read_text())
        return store_path

    return make


@pytest.fixture
def version_1(make: Callable[[int], Path]) -> Path:
    return make(1)


Contents = dict[str, list[tuple[object, ...]]]


def contents(path: Path, like: Contents | None = None) -> Contents:
    """The rows of the two tables as text, in order; with `like`, as far as those have columns."""
    with duckdb.connect(str(path), read_only=True) as connection:
        found = {
            table: connection.execute(f"SELECT COLUMNS(*)::VARCHAR FROM {table} ORDER BY ALL").fetchall()
            for table in ("llm_usage", "spans")
        }
    if like is None:
        return found
    return {table: [row[: len(like[table][0])] for row in rows] for table, rows in found.items()}


def _unnamed(path: Path, calls: list[tuple[object, ...]]) -> set[tuple[object, ...]]:
    """Calls without their conversations, which may be found in what they say of each other."""
    at = [name for name, *_ in query(path, "DESCRIBE llm_usage")].index("conversation_id")
    return {(*call[:at], *call[at + 1 :]) for call in calls}


def versions(path: Path) -> list[int]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return [row[0] for row in connection.execute("SELECT version FROM schema_version ORDER BY 1").fetchall()]


def test_a_new_store_has_every_step(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    merge(store_path)
    assert versions(store_path) == [*range(1, database.SCHEMA_VERSION + 1)]
    names = [
        file.name[:4] for file in (resources.files("otel_llm.store.file") / "schema").iterdir() if file.name[0] == "0"
    ]
    assert sorted(names) == [f"{step:03d}_" for step in range(1, database.SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("version", STORES)
def test_a_file_of_an_earlier_version_is_read_with_every_column(
    version: int, make: Callable[[int], Path], journal: Journal, paths: StorePaths
) -> None:
    """Somebody else is merging, so that it cannot be migrated: what waits in the journal has columns that the file has not."""
    make(version)
    call = write_call(journal, {"error.type": "X"}, std="a new one")
    with merging(paths):
        rows = query(paths.database, f"SELECT {', '.join(USAGE_COLUMNS)} FROM llm_usage")
        assert len(rows) == CALLS[version] + 1
        assert query(paths.database, "SELECT span_id FROM llm_usage WHERE error_message = 'a new one'") == [
            (call["s"],)
        ]


@pytest.mark.parametrize("version", STORES)
def test_a_file_of_an_earlier_version_is_brought_up_to_date(
    version: int, make: Callable[[int], Path], journal: Journal
) -> None:
    path = make(version)
    before = contents(path)
    calls = CALLS[version]
    assert (len(before["llm_usage"]), len(before["spans"]), versions(path)) == (calls, calls, [*range(1, version + 1)])
    write_call(journal)
    assert merge(path).complete

    assert versions(path) == [*range(1, database.SCHEMA_VERSION + 1)]
    after = contents(path, before)
    for table, rows in before.items():
        assert len(after[table]) == len(rows) + 1
    without = _unnamed(path, before["llm_usage"])
    assert without < _unnamed(path, after["llm_usage"]) and set(before["spans"]) < set(after["spans"])
    assert query(path, "SELECT count(*) FROM replayed") == [(0,)]
    tags = query(path, "SELECT DISTINCT tags FROM llm_usage WHERE user_id = 'o''neil'")
    assert tags == [({"team": "blue", "priority": "1"},)]
    said = query(path, "SELECT error_message FROM llm_usage WHERE error_message IS NOT NULL")
    assert said == ([("Error code: 400 - Invalid request.",)] if version == 3 else [])  # where content was captured
    chained = query(
        path, "SELECT conversation_id FROM llm_usage WHERE conversation_source IS NOT NULL ORDER BY started_at"
    )
    first = query(path, "SELECT min_by(response_id, started_at) FROM llm_usage WHERE response_id LIKE 'resp%'")
    assert chained == ([*first * 3, ("resp_elsewhere",), ("c-2",)] if version >= 4 else [])  # where there was one
    assert query(path, "FROM llm_scores") == []
    views = query(path, "SELECT view_name FROM duckdb_views() WHERE NOT internal")
    assert {name for (name,) in views} == VIEWS


@pytest.mark.parametrize("version", STORES)
def test_a_file_of_an_earlier_version_is_read_while_another_holds_it(
    version: int, make: Callable[[int], Path], journal: Journal
) -> None:
    path = make(version)
    with merging(StorePaths.of(path)):  # so that it cannot be migrated now
        write_call(journal)
        assert count(path) == CALLS[version] + 1
        assert versions(path)[-1] == version


def test_a_file_made_by_the_first_step_alone(store_path: Path, journal: Journal) -> None:
    """As `test_a_file_of_an_earlier_version…`, for every column of the first schema as it is in the package today."""
    first = next(
        file for file in (resources.files("otel_llm.store.file") / "schema").iterdir() if file.name[:3] == "001"
    )
    with duckdb.connect(str(store_path)) as connection:
        connection.execute(first.read_text())
        connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL, applied_at TIMESTAMPTZ)")
        connection.execute("INSERT INTO schema_version VALUES (1, now())")
        connection.execute("INSERT INTO llm_usage (started_at, trace_id, span_id) VALUES (now(), 'a', 'b')")
    write_call(journal)
    assert count(store_path) == 2
    assert query(store_path, "SELECT sum(calls) FROM llm_daily") == [(2,)]


def test_no_step_makes_a_temporary_table() -> None:
    """It runs in the instance of the process's merges, whose prepared statements would be planned anew for each use."""
    steps = [database._migration(step) for step in range(1, database.SCHEMA_VERSION + 1)]
    assert [
        step for step in steps if re.search(r"^CREATE (OR REPLACE )?TEMP", step, re.MULTILINE | re.IGNORECASE)
    ] == []


def test_views_are_made_again(version_1: Path, journal: Journal) -> None:
    with duckdb.connect(str(version_1)) as connection:
        connection.execute("CREATE OR REPLACE VIEW llm_daily AS SELECT 1 AS outdated")
    write_call(journal)
    assert query(version_1, "SELECT sum(calls) FROM llm_daily") == [(6,)]


def test_changed_views_reach_a_file_whose_tables_are_up_to_date(
    journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    merge(store_path)
    changed = database.views_sql() + "CREATE OR REPLACE VIEW another AS SELECT 42 AS answer;"
    monkeypatch.setattr(database, "views_sql", lambda: changed)
    write_call(journal)
    merge(store_path)
    assert query(store_path, "SELECT count(*) FROM duckdb_views() WHERE view_name = 'another'") == [(0,)]
    monkeypatch.setattr(database, "VIEWS_VERSION", database.VIEWS_VERSION + 1)
    write_call(journal)
    merge(store_path)
    assert query(store_path, "SELECT answer FROM another") == [(42,)]


def test_everything_says_what_it_is(version_1: Path, journal: Journal) -> None:
    write_call(journal)
    merge(version_1)
    for kind in ("tables", "views", "columns"):
        assert query(version_1, f"FROM duckdb_{kind}() WHERE NOT internal AND comment IS NULL") == [], kind


def test_newer_views_stay(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    merge(store_path)
    with duckdb.connect(str(store_path)) as newer:
        newer.execute("CREATE OR REPLACE VIEW llm_daily AS SELECT 1 AS of_the_future")
        newer.execute("COMMENT ON TABLE schema_version IS 'otel-llm views 99'")
    write_call(journal)
    merge(store_path)
    assert query(store_path, "SELECT of_the_future FROM llm_daily") == [(1,)]


def test_who_changes_the_views_raises_their_version() -> None:
    """Stored files get new views only with a new version. Raise `VIEWS_VERSION`, then put the new pair here."""
    text = hashlib.sha256((database.views_sql() + database.comments_sql()).encode()).hexdigest()[:16]
    assert (database.VIEWS_VERSION, text) == (13, "47c3b7a241181c84")


def test_a_failed_migration_leaves_the_file_as_it_was(
    version_1: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(version_1)
    write_call(journal)
    monkeypatch.setattr(database, "views_sql", lambda: "CREATE VIEW broken AS FROM nowhere")
    with pytest.raises(Exception, match="nowhere"):
        merge(version_1)
    assert (versions(version_1), contents(version_1)) == ([1], before)
    monkeypatch.undo()
    assert merge(version_1).complete
    assert len(contents(version_1)["llm_usage"]) == 6


def test_a_newer_schema_does_not_break_this_version(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    """Newer versions add tables and columns; this one goes on writing and reading what it knows."""
    write_call(journal)
    merge(store_path)
    with duckdb.connect(str(store_path)) as newer:
        for table in ("llm_usage", "spans", "journal_segments", "replayed", "maintenance", "schema_version"):
            newer.execute(f"ALTER TABLE {table} ADD COLUMN of_the_future VARCHAR DEFAULT 'x'")
        newer.execute("CREATE TABLE of_the_future (a INTEGER)")
        newer.execute(
            "CREATE OR REPLACE VIEW llm_daily AS SELECT count(*) AS calls, 'x' AS of_the_future FROM llm_usage"
        )
        newer.execute("INSERT INTO schema_version (version, applied_at) VALUES (99, now())")
    write_call(journal)
    assert merge(store_path).complete
    assert query(store_path, "SELECT calls, of_the_future FROM llm_daily") == [(2, "x")]
    with merging(paths):
        write_call(journal)  # cannot be merged now: it is laid over what is stored
        assert count(store_path) == 3
        assert count(store_path, "spans") == 3
    assert versions(store_path)[-1] == 99
