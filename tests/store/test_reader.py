from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from otel_llm.settings import reload
from otel_llm.store import Store, StoreBusy, StoreError, StoreNotFound, connect, reader
from otel_llm.store.file import handles
from otel_llm.store.file.connection import StoreConnection
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import batch, duckdb_instance
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import HOLDER, Script, count, end, identity, merging, query, start, write_call
from tests.store.file.test_publish import refused


def test_no_store_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=str(tmp_path / "none.duckdb")):
        connect(tmp_path / "none.duckdb")
    assert list(tmp_path.iterdir()) == []


def test_the_settings_name_the_store(journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_call(journal)
    with pytest.raises(StoreNotFound, match="turned off"):
        connect()
    monkeypatch.setenv("OTEL_LLM_STORE", str(store_path))
    reload()
    with connect() as connection:
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(1,)]


def test_before_the_first_call_of_who_writes_it_a_store_is_empty(store_path: Path) -> None:
    """As in the first cell of a notebook."""
    with closing(Store.open(store_path)) as store, connect(store_path) as connection:
        assert connection.execute("FROM llm_usage").fetchall() == connection.execute("FROM llm_events").fetchall() == []
        store.write(start(t="1" * 32, s="2" * 16), start_of=2)
        store.write(end(start(t="1" * 32, s="2" * 16), {}), end_of=2)
        assert len(connection.execute("FROM llm_usage").fetchall()) == 1


def test_the_connection_only_reads(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    with connect(store_path) as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("DELETE FROM llm_usage")


def test_a_misspelt_table_is_not_the_caller_s_variable(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    lm_usage = connect(store_path)
    with lm_usage, pytest.raises(duckdb.CatalogException):
        lm_usage.execute("FROM lm_usage")


def test_what_a_store_of_this_process_holds_back_is_seen(quiet_store: Store, store_path: Path) -> None:
    abandoned = start()
    quiet_store.write(abandoned, start_of=identity(abandoned))
    quiet_store.before_flush.append(
        lambda: quiet_store.write(end(abandoned), end_of=identity(abandoned)) if quiet_store.journal._running else None
    )
    assert query(store_path, "SELECT status FROM llm_usage") == [("ok",)]


def test_what_cannot_be_merged_is_laid_over(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    """While another merge is stuck, readers see everything all the same."""
    merged = write_call(journal, {"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 1})
    dead = Journal(journal.directory)
    begin = start()
    dead.append(begin, start_of=identity(begin))
    dead.close()
    merge(store_path)
    with merging(paths):
        new = write_call(journal)
        dead.append(end(begin), end_of=identity(begin))  # it was not dead after all
        journal.append(merged)  # journalled twice
        assert not merge(store_path, timeout=0.01).complete
        rows = query(store_path, "SELECT span_id, status, cost_usd > 0 FROM llm_usage ORDER BY started_at")
        assert rows == [(merged["s"], "ok", True), (begin["s"], "ok", True), (new["s"], "ok", True)]
        assert count(store_path, "spans") == 3
        assert query(store_path, "SELECT sum(calls) FROM llm_daily") == [(3,)]
    assert merge(store_path).complete
    assert query(store_path, "SELECT span_id, status, cost_usd > 0 FROM llm_usage ORDER BY started_at") == rows
    dead.close()


def test_a_table_of_the_user_s_own_is_not_hidden(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    """Whatever tables a reader needs for what is not merged yet, they are gone when it is handed out."""
    write_call(journal)
    merge(store_path)
    with duckdb.connect(str(store_path)) as connection:
        for name in batch.TABLES:
            connection.execute(f"CREATE TABLE {name} AS SELECT 'mine' AS whose")
    write_call(journal)
    with merging(paths), connect(store_path) as connection:
        for calls in (2, 3):
            for name in batch.TABLES:
                assert connection.execute(f"SELECT whose FROM {name}").fetchall() == [("mine",)]
            assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(calls,)]
            write_call(journal)


def test_a_store_that_another_process_writes_is_named(
    journal: Journal, store_path: Path, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    merge(store_path)
    holder = script(HOLDER, str(store_path), "write")
    holder.line()
    monkeypatch.setattr(reader, "_OPEN_SECONDS", 0.05)
    with pytest.raises(StoreError, match=f"process {holder.process.pid}"):
        connect(store_path)


def test_two_connections_at_once(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    with connect(store_path) as first, connect(store_path) as second:
        write_call(journal)
        with connect(store_path) as third:
            counts = [c.execute("SELECT count(*) FROM llm_usage").fetchall()[0][0] for c in (first, second, third)]
    assert counts == [2, 2, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_store_that_may_only_be_read(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    write_call(journal)
    merge(store_path)
    write_call(journal)
    journal.close()
    for directory in (paths.journal, store_path.parent):
        directory.chmod(0o500)
    try:
        assert count(store_path) == 2
    finally:
        for directory in (store_path.parent, paths.journal):
            directory.chmod(0o700)


def test_a_plain_duckdb_reads_the_store_in_this_process(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    with connect(store_path) as ours, duckdb.connect(str(store_path), read_only=True) as plain:
        sql = "SELECT span_id FROM llm_usage"
        assert ours.execute(sql).fetchall() == plain.execute(sql).fetchall()


# --- a connection that is kept open ------------------------------------------------------------------------------------

CALLS = "SELECT count(*) FROM llm_usage"
Ask = Callable[[StoreConnection], object]
ASKING: dict[str, Ask] = {
    "execute": lambda store: store.execute(CALLS).fetchall()[0][0],
    "sql": lambda store: store.sql(CALLS).fetchall()[0][0],
    "query": lambda store: store.query(CALLS).fetchall()[0][0],
    "table": lambda store: store.table("llm_usage").count("*").fetchall()[0][0],
    "view": lambda store: store.sql("SELECT CAST(sum(calls) AS BIGINT) FROM llm_daily").fetchall()[0][0],
    "cursor": lambda store: store.cursor().execute(CALLS).fetchall()[0][0],
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_a_connection_that_is_kept_sees_what_comes_after(ask: Ask, journal: Journal, paths: StorePaths) -> None:
    """Merged by this process or another, or not merged yet; and while others do the same, beside plain connections."""
    write_call(journal)
    with connect(paths.database) as store, connect(paths.database) as another:
        cursor, relation = store.cursor(), store.sql(CALLS)
        assert ask(store) == 1
        for merged in (2, 4, 6):
            write_call(journal)
            assert ask(store) == merged
            with merging(paths):
                write_call(journal)
                assert ask(store) == merged + 1
            assert [each.execute(CALLS).fetchall() for each in (store, another, cursor)] == [[(merged + 1,)]] * 3
        assert relation.fetchall() == [(7,)]
        write_call(journal)
        assert store.refresh() is store and relation.fetchall() == [(8,)]


def test_a_transaction_sees_one_moment(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    with connect(store_path) as store:
        for begin, finish in (("BEGIN", "COMMIT"), ("START TRANSACTION READ ONLY", "ROLLBACK")):
            seen = store.execute(begin).execute(CALLS).fetchall()
            write_call(journal)
            assert count(store_path) == seen[0][0] + 1
            assert store.sql(CALLS).fetchall() == store.refresh().execute(CALLS).fetchall() == seen
            store.execute(finish)
            assert store.sql(CALLS).fetchall() == [(seen[0][0] + 1,)]
        store.begin()
        with pytest.raises(duckdb.Error):
            store.execute("FROM nothing")
        store.rollback()
        write_call(journal)
        assert store.execute(CALLS).fetchall() == [(4,)]


def test_what_the_user_has_made_in_a_connection_stays(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    with connect(store_path) as store:
        store.execute("CREATE TEMP TABLE mine AS SELECT 5 AS x")
        store.execute("CREATE TEMP VIEW named AS SELECT span_id, x FROM llm_usage, mine")
        store.execute("SET TimeZone = 'Asia/Tokyo'")
        before = store.sql("FROM named")
        for calls in (2, 3):
            write_call(journal)
            assert len(store.sql("FROM named").fetchall()) == len(before.fetchall()) == calls
            assert len(before.union(store.sql("FROM named")).fetchall()) == 2 * calls
        assert store.sql("SELECT current_setting('TimeZone')").fetchall() == [("Asia/Tokyo",)]


def test_a_connection_is_one_of_duckdb_s(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    with connect(store_path) as store:
        assert isinstance(store, duckdb.DuckDBPyConnection) and isinstance(store.cursor(), duckdb.DuckDBPyConnection)
        assert set(dir(store)) >= {name for name in dir(store.plain) if name[0] != "_"}
        assert store.execute(CALLS) is store.execute("SELECT $1", [1]) is store
        assert store.description is not None and store.fetchone() == (1,)
        assert store.fetchall() == []
        assert duckdb.sql(CALLS, connection=store.plain).fetchall() == [(1,)]
        with pytest.raises(AttributeError, match="nothing"):
            _ = store.nothing
    with pytest.raises(duckdb.ConnectionException):
        store.execute(CALLS)


def test_files_that_nobody_reads_any_more_are_let_go(stored: Callable[[], None], store_path: Path) -> None:
    stored()
    with connect(store_path) as store, connect(store_path) as another:
        for _ in range(4):
            stored()
            assert store.execute(CALLS).fetchall() == another.execute(CALLS).fetchall()
        (databases,) = store.execute("SELECT count(*) FROM duckdb_databases() WHERE NOT internal").fetchall()[0]
        assert databases == 2  # what was opened first, and the database as it is now
        handles.sweep()
        assert len(handles.others(store_path.stat())) == 1


def test_the_locks_of_an_app_that_has_the_database_attached_are_not_lost(
    stored: Callable[[], None], store_path: Path
) -> None:
    stored()
    with connect(store_path) as store, duckdb.connect() as app:
        stored()
        app.execute("ATTACH ? (READ_ONLY)", [str(store_path)])
        held = store_path.with_name("held.duckdb")
        os.link(store_path, held)
        for calls in (2, 3, 4):
            assert store.execute(CALLS).fetchall() == [(calls,)]
            stored()
        assert refused(held, "write")


@pytest.mark.parametrize("gone", ["deleted", "held"])
def test_a_store_that_cannot_be_read_any_more_is_an_error(
    gone: str,
    stored: Callable[[], None],
    paths: StorePaths,
    store_path: Path,
    script: Callable[..., Script],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was seen before is not passed off as what is there now."""
    stored()
    monkeypatch.setattr(reader, "_OPEN_SECONDS", 0.05)
    with connect(store_path) as store:
        stored()
        if gone == "held":
            script(HOLDER, str(store_path), "write").line()
        else:
            store_path.unlink()
            shutil.rmtree(paths.journal)
        with pytest.raises(StoreBusy if gone == "held" else StoreNotFound):
            store.execute(CALLS)


def test_what_a_moment_shows_stays(journal: Journal, paths: StorePaths) -> None:
    """For a command whose answer is of several queries."""
    write_call(journal)
    with connect(paths.database) as kept:
        write_call(journal)
        with merging(paths), reader.connect_to_moment(paths.database) as moment:
            write_call(journal)
            assert [each.execute(CALLS).fetchall() for each in (kept, moment)] == [[(3,)], [(2,)]]


def test_no_bar_is_drawn_of_a_long_query(stored: Callable[[], None], store_path: Path) -> None:
    """It would go to the app's stdout, or into the JSON of a command."""
    stored()
    bar = "SELECT current_setting('enable_progress_bar')"
    assert duckdb_instance.get().execute(bar).fetchall() == [(False,)]
    with connect(store_path) as connection:
        assert connection.execute(bar).fetchall() == connection.cursor().execute(bar).fetchall() == [(False,)]
