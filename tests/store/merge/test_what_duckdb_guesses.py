"""DuckDB guesses from names and first bytes: columns from a path, several files from one. None of it reaches the account."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from otel_llm.cli.app import run
from otel_llm.store import Store, StoreError, connect, reader
from otel_llm.store.errors import StoreTooNew
from otel_llm.store.file import database
from otel_llm.store.jobs import copying
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import rows
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import merging, query, write_call

FOLDERS = (
    "k=1",
    "t=2026-11-28/s=0",
    "a=b/e=[]/filename=x/env=prod/region=eu/c=1/k=h/st=0",
    "[ab]/[!a]",
    "a*",
    "**/{a,b}",
    "?",
    'it\'s/"quoted"/-rf/~/$HOME/100%41/a#b/a;b/ a b /ünïcödé/s3:/a.csv.gz/a.parquet/new\nline',
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_path_of_the_store_changes_nothing(folder: str, tmp_path: Path) -> None:
    """What is recorded is what is read: merged, laid over what is merged, and copied."""
    for decoy in ("a", "ab", "x"):  # what a pattern would find
        (tmp_path / decoy / "usage.duckdb.journal").mkdir(parents=True)
    paths = StorePaths.of(tmp_path / folder / "usage.duckdb")
    paths.database.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(paths.journal)
    if "?" in folder:
        call = write_call(journal)
        for attempt in (lambda: merge(paths.database), lambda: connect(paths.database)):
            with pytest.raises(StoreError, match=r"path with \? in it.*name another store"):
                attempt()
        assert journal.segment is not None and call["t"].encode() in journal.segment.read_bytes()
        journal.close()
        return
    calls = [write_call(journal)]
    assert merge(paths.database).rows == 1
    calls.append(write_call(journal))
    read = "SELECT trace_id, span_id, input_tokens, request_model FROM llm_usage ORDER BY started_at"
    expected = [(call["t"], call["s"], 1000, "gpt-4o-mini") for call in calls]
    with merging(paths):
        assert query(paths.database, read) == expected
    assert query(paths.database, read) == expected
    for copied in (copying.compact(paths), copying.backup(paths, paths.database.with_name("backup.duckdb"))):
        assert (copied.calls, copied.complete) == (2, True)
    for kind in ("csv", "jsonl"):
        file = paths.database.with_name(f"out.{kind}")
        assert run(["export", str(file), "--store", str(paths.database)]) == 0
        assert all(call["t"] in file.read_text() for call in calls)
    journal.close()


MISREAD: dict[str, Callable[[str], str]] = {
    "a line is missing": lambda read: f"{read} LIMIT 3",
    "another column is read for the kind": lambda read: read.replace("SELECT k, t,", "SELECT 1, t,"),
    "one is read for the trace": lambda read: read.replace("SELECT k, t,", "SELECT k, NULL,"),
}


@pytest.mark.parametrize("how", MISREAD)
def test_less_rows_than_lines_are_no_merge(
    how: str,
    journal: Journal,
    store_path: Path,
    paths: StorePaths,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However DuckDB may misread a file: then nothing is taken, `flush` says so, and the next one that works takes it all."""
    calls = [write_call(journal) for _ in range(3)]
    load, store = rows.load_lines, Store.open(store_path)
    monkeypatch.setattr(rows, "load_lines", lambda *given: MISREAD[how](load(*given)))
    assert not store.flush(1)
    assert re.search(r"has read \d of \d (lines|records) of the journal .*; calls stay in the journal", caplog.text)
    journal.close()
    with pytest.raises(StoreError, match="has read"):
        merge(store_path)
    assert list(paths.journal.glob("*.jsonl"))
    monkeypatch.setattr(rows, "load_lines", load)
    assert store.flush()
    assert query(store_path, "SELECT trace_id FROM llm_usage ORDER BY started_at") == [(call["t"],) for call in calls]
    assert not paths.corrupt.exists()


def test_a_line_that_names_no_span_is_put_aside(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    call = write_call(journal)
    journal.append({"k": "e", "t": call["t"], "et": 1})
    journal.append({"k": "e", "t": None, "s": None, "et": 2})
    write_call(journal)
    done = merge(store_path)
    assert (done.complete, done.rows, done.corrupt) == (True, 2, 2)
    assert sum(len(file.read_bytes().splitlines()) for file in paths.corrupt.iterdir()) == 2


# --- the format of the file -------------------------------------------------------------------------------------------


def tags(path: Path) -> str:
    with duckdb.connect(str(path), read_only=True) as connection:
        return str(connection.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()[0][0])


@pytest.mark.parametrize("version", ["v1.0.0", "v1.4.0", "latest"])
def test_a_database_that_was_there_is_written_in_the_format_that_it_has(
    version: str, journal: Journal, store_path: Path, paths: StorePaths
) -> None:
    """As one of the user's own, which a newer DuckDB has made, with tables of his in it."""
    with duckdb.connect(str(store_path), config={"storage_compatibility_version": version}) as own:
        own.execute("CREATE TABLE my_orders AS SELECT 42 AS a")
    before = tags(store_path)
    for number in range(1, 4):
        write_call(journal)
        assert merge(store_path).complete
        assert query(store_path, "SELECT a, (SELECT count(*) FROM llm_usage) FROM my_orders") == [(42, number)]
    assert paths.spare.exists()
    assert copying.compact(paths).calls == 3
    copying.backup(paths, backup := store_path.with_name("backup.duckdb"))
    assert tags(store_path) == tags(backup) == before


def test_another_program_s_database_is_left_alone(journal: Journal, store_path: Path) -> None:
    """And no extension of DuckDB's is fetched to read it with."""
    with sqlite3.connect(store_path) as other:
        other.execute("CREATE TABLE mine (a)")
    other.close()
    before = store_path.read_bytes()
    write_call(journal)
    with pytest.raises(StoreError, match="not a valid DuckDB database"):
        merge(store_path)
    assert store_path.read_bytes() == before


# What DuckDB 1.4.5, 1.5.0 and 1.5.6 say of a file that 2.0.1 has made, in its own format and in ours.
NEWER = (
    "IO Error: Trying to read a database file with version number 68, but we can only read versions between 64 and 67.\n"
    "The database file was created with an newer version of DuckDB.\n\nNewer DuckDB version might introduce",
    "IO Error: Trying to read a database file with version number 999, but we can only read versions between 64 and 68.",
    "IO Error: Trying to read a database file with version number 69, but we can only read versions between 64 and 68.",
)


@pytest.mark.parametrize("said", NEWER)
def test_a_file_that_is_too_new_is_said_once_with_the_remedy(
    said: str,
    journal: Journal,
    store_path: Path,
    paths: StorePaths,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_call(journal)
    merge(store_path)
    before, attach = store_path.read_bytes(), database._attach

    def refuse(*_: object) -> None:
        raise duckdb.IOException(said)

    monkeypatch.setattr(database, "_attach", refuse)
    store, call = Store.open(store_path), write_call(journal)
    assert not store.flush(1) and not store.flush(1)
    (message,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert "pip install --upgrade duckdb" in message and "calls stay in the journal" in message
    failure = database.classify(paths, duckdb.IOException(said))
    assert isinstance(failure, StoreTooNew) and "where it is" in failure.remedy
    assert store_path.read_bytes() == before
    monkeypatch.setattr(database, "_attach", attach)
    assert store.flush() and (call["t"],) in query(store_path, "SELECT trace_id FROM llm_usage")


def test_doctor_names_the_remedy_for_what_is_wrong(
    journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_call(journal)
    merge(store_path)
    write_call(journal)
    journal.close()  # what ended programs have left waits too, for the same reason
    for error, remedy in ((NEWER[0], "upgrade DuckDB"), ("Could not set lock on file", "close the program")):

        def refuse(*_: object, error: str = error) -> None:
            raise database.classify(StorePaths.of(store_path), duckdb.IOException(error))

        def unmerged(*_: object, error: str = error) -> None:
            raise duckdb.IOException(error)

        monkeypatch.setattr(reader, "_open", refuse)
        monkeypatch.setattr(database, "_attach", unmerged)
        run(["doctor", "--store", str(store_path)])
        said = " ".join(capsys.readouterr().out.split())
        assert remedy in said and "waits in the journal" in said and "file aside" not in said
        assert "ended writers 1" in said and "are not merged" not in said, said  # one cause, one remedy
