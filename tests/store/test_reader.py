from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from otel_llm.settings import reload
from otel_llm.store import Store, StoreError, StoreNotFound, connect
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import batch
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import HOLDER, Script, count, end, identity, merging, query, start, write_call


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
    """As in the first cell of a notebook. It is a moment: what comes later is seen by whoever connects again."""
    with closing(Store.open(store_path)) as store, connect(store_path) as before:
        assert before.execute("FROM llm_usage").fetchall() == before.execute("FROM llm_events").fetchall() == []
        store.write(start(t="1" * 32, s="2" * 16), start_of=2)
        store.write(end(start(t="1" * 32, s="2" * 16), {}), end_of=2)
        assert count(store_path) == 1 and before.execute("FROM llm_usage").fetchall() == []


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
        for name in batch._TABLES:
            connection.execute(f"CREATE TABLE {name} AS SELECT 'mine' AS whose")
    write_call(journal)
    with merging(paths), connect(store_path) as connection:
        for name in batch._TABLES:
            assert connection.execute(f"SELECT whose FROM {name}").fetchall() == [("mine",)]
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(2,)]


def test_a_store_that_another_process_writes_is_named(
    journal: Journal, store_path: Path, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_llm.store import reader

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
    assert counts == [1, 1, 2]


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
