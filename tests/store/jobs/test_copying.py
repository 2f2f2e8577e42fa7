from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from otel_llm.store import StoreBusy, StoreError, StoreNotFound
from otel_llm.store.file.database import SCHEMA_VERSION
from otel_llm.store.jobs import copying, exclusive, retention
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import HOLDER, NOON, Script, count, merging, query, write_call
from tests.store.file.test_migration import VIEWS, contents, versions
from tests.store.jobs.test_retention import DAY, fill


def files(paths: StorePaths) -> set[str]:
    """What lies beside the store, but for its own files."""
    own = {paths.database.name, paths.spare.name, paths.lock.name, f"{paths.lock.name}.next", paths.journal.name}
    return {path.name for path in paths.database.parent.iterdir()} - own


def storage(path: Path) -> str:
    with duckdb.connect(str(path), read_only=True) as connection:
        tags = connection.execute("SELECT tags FROM duckdb_databases() WHERE path = ?", [str(path)]).fetchall()[0][0]
    return str(tags["storage_version"])


def views(path: Path) -> set[str]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return {
            name for (name,) in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        }


# --- compact ----------------------------------------------------------------------------------------------------------


def test_compact_gives_room_back_and_changes_nothing(paths: StorePaths, store_path: Path) -> None:
    fill(paths, 6000, size=2000)
    retention.prune(paths, retention.Policy(max_age=DAY), now=NOON / 1e9 + 10 * DAY)
    before, size, inode = contents(store_path), store_path.stat().st_size, store_path.stat().st_ino
    store_path.chmod(0o640)

    done = copying.compact(paths)

    assert (done.calls, done.spans, done.before, done.after) == (600, 600, size, store_path.stat().st_size)
    assert done.after < size / 2
    assert store_path.stat().st_ino != inode
    assert store_path.stat().st_mode & 0o777 == 0o640
    assert contents(store_path) == before
    assert (versions(store_path)[-1], views(store_path), storage(store_path)) == (SCHEMA_VERSION, VIEWS, "v1.5.0+")
    assert files(paths) == set()


def test_writers_go_on(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    for _ in range(3):
        write_call(journal)
        assert copying.compact(paths).complete
    write_call(journal)
    assert count(store_path) == 4


def test_compact_while_others_merge(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    """Nobody can write to the old file once the new one is begun."""
    stop = threading.Event()

    def keep_merging() -> None:
        while not stop.is_set():
            write_call(journal)
            merge(store_path)

    write_call(journal)
    thread = threading.Thread(target=keep_merging)
    thread.start()
    try:
        for _ in range(4):
            copying.compact(paths)
    finally:
        stop.set()
        thread.join()
    assert count(store_path) == journal.records // 2
    assert query(store_path, "SELECT count(DISTINCT span_id) FROM llm_usage") == [(journal.records // 2,)]


def test_what_else_is_in_the_file_is_kept(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    write_call(journal)
    merge(store_path)
    with duckdb.connect(str(store_path)) as connection:
        connection.execute('CREATE SCHEMA mine; CREATE TABLE mine."a table" AS SELECT 42 AS a')
        connection.execute('CREATE VIEW mine.two AS SELECT a * 2 AS a FROM mine."a table"')
    copying.compact(paths)
    assert query(store_path, "SELECT a FROM mine.two") == [(84,)]


def test_a_link_stays_a_link(journal: Journal, store_path: Path, tmp_path: Path) -> None:
    write_call(journal)
    merge(store_path)
    link = tmp_path / "link.duckdb"
    link.symlink_to(store_path)
    copying.compact(StorePaths.of(link))
    assert link.is_symlink()
    assert count(store_path) == 1


def test_a_store_that_is_held_is_left_alone(
    journal: Journal, paths: StorePaths, store_path: Path, script: Callable[..., Script]
) -> None:
    write_call(journal)
    merge(store_path)
    holder = script(HOLDER, str(store_path), "write")
    holder.line()
    before = store_path.read_bytes()
    with pytest.raises(StoreBusy, match=f"process {holder.process.pid}"):
        copying.compact(paths, timeout=0.05)
    holder.kill()
    assert store_path.read_bytes() == before
    assert files(paths) == set()
    assert copying.compact(paths).calls == 1


def test_who_reads_goes_on_reading(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    call = write_call(journal)
    merge(store_path)
    with duckdb.connect(str(store_path), read_only=True) as reader:
        assert copying.compact(paths).calls == 1
        assert reader.execute("SELECT span_id FROM llm_usage").fetchall() == [(call["s"],)]
    assert not paths.spare.exists()  # what is given back to the disk is given back twice


def test_no_room(journal: Journal, paths: StorePaths, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_call(journal)
    merge(store_path)
    before = store_path.read_bytes()
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=f"no room for a copy in {re.escape(str(store_path.parent))}.* 1,000 are free"):
        copying.compact(paths)
    assert store_path.read_bytes() == before
    assert files(paths) == set()


def test_the_disk_fills_up_on_the_way(
    paths: StorePaths, store_path: Path, script: Callable[..., Script], journal: Journal
) -> None:
    fill(paths, 3000, size=2000)
    before = contents(store_path)
    limited = script(
        """
import resource, signal, sys
from otel_llm.store import StoreError
from otel_llm.store.jobs import copying
from otel_llm.store.paths import StorePaths
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
for copy in (copying.compact, lambda paths: copying.backup(paths, paths.database.with_name("backup.duckdb"))):
    try:
        copy(StorePaths.of(sys.argv[1]))
        print("done")
    except StoreError as error:
        print("refused", error)
""",
        str(store_path),
    )
    lines = limited.finish().splitlines()
    assert [line.split()[0] for line in lines] == ["refused", "refused"]
    assert contents(store_path) == before
    assert files(paths) == set()


def test_a_copy_that_differs_is_given_up(
    journal: Journal, paths: StorePaths, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    merge(store_path)
    inode = store_path.stat().st_ino
    answers = iter([{"main.spans": (1, 2)}, {"main.spans": (1, 3)}] * 2)
    monkeypatch.setattr(copying, "_contents", lambda *_: next(answers))
    with pytest.raises(StoreError, match="not equal"):
        copying.compact(paths)
    with pytest.raises(StoreError, match="not equal"):
        copying.backup(paths, tmp_path / "backup.duckdb")
    assert store_path.stat().st_ino == inode
    assert files(paths) == set()


@pytest.mark.parametrize("table", ["spans", "llm_usage"])
def test_a_changed_value_is_noticed(table: str, paths: StorePaths) -> None:
    fill(paths, 10)
    with exclusive.alone(paths) as connection:
        before = copying._contents(connection, "store")
        connection.execute(f"UPDATE {table} SET status = 'other' WHERE span_id = printf('%016x', 3)")
        after = copying._contents(connection, "store")
    assert {name for name in before if before[name] != after[name]} == {f"main.{table}"}


def test_there_is_nothing_to_copy(paths: StorePaths) -> None:
    for copy in (copying.compact, lambda paths: copying.backup(paths, paths.database.with_name("backup.duckdb"))):
        with pytest.raises(StoreNotFound):
            copy(paths)
    assert files(paths) == set()


# --- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_is_a_whole_store(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    write_call(journal)
    target = store_path.with_name("backup.duckdb")
    done = copying.backup(paths, target)
    assert (done.calls, done.spans, done.complete) == (1, 1, True)
    before = contents(store_path)
    write_call(journal)
    assert contents(target) == before
    assert (versions(target)[-1], views(target), storage(target)) == (SCHEMA_VERSION, VIEWS, "v1.5.0+")
    assert target.stat().st_mode & 0o777 == 0o600
    assert files(paths) == {"backup.duckdb"}
    assert count(target) == 1
    assert count(store_path) == 2


def test_a_backup_while_others_write_and_read(
    journal: Journal, paths: StorePaths, store_path: Path, tmp_path: Path
) -> None:
    write_call(journal)
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            write_call(journal)
            merge(store_path)
            count(store_path)

    thread = threading.Thread(target=keep_writing)
    thread.start()
    counts = []
    try:
        for number in range(4):
            counts.append(copying.backup(paths, tmp_path / f"{number}.duckdb").calls)
    finally:
        stop.set()
        thread.join()
    assert counts == sorted(counts)
    for number, calls in enumerate(counts):
        with duckdb.connect(str(tmp_path / f"{number}.duckdb"), read_only=True) as connection:
            sql = "SELECT count(*), count(DISTINCT span_id) FROM llm_usage"
            assert connection.execute(sql).fetchall() == [(calls, calls)]
            assert connection.execute("SELECT count(*) FROM spans").fetchall() == [(calls,)]


def test_a_backup_while_somebody_merges(
    journal: Journal, paths: StorePaths, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has what is stored, and says that there is more."""
    monkeypatch.setattr(exclusive, "PATIENCE", 0.05)
    write_call(journal)
    merge(store_path)
    with merging(paths):
        write_call(journal)
        done = copying.backup(paths, tmp_path / "backup.duckdb")
    assert (done.calls, done.complete) == (1, False)


def test_a_restored_backup_goes_on_where_it_was_made(
    journal: Journal, paths: StorePaths, store_path: Path, tmp_path: Path
) -> None:
    """What was journalled since is still in the journal: it is taken in, and nothing twice."""
    write_call(journal)
    copying.backup(paths, tmp_path / "backup.duckdb")
    write_call(journal)
    merge(store_path)
    shutil.copy(tmp_path / "backup.duckdb", store_path)
    assert count(store_path) == 2
    write_call(journal)
    assert query(store_path, "SELECT count(*), count(DISTINCT span_id) FROM llm_usage") == [(3, 3)]


def test_a_backup_replaces_an_older_one_when_it_is_whole(
    journal: Journal, paths: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "backup.duckdb"
    write_call(journal)
    copying.backup(paths, target)
    write_call(journal)
    with monkeypatch.context() as patch:
        patch.setattr(copying, "_contents", lambda *_: os.urandom(8))
        with pytest.raises(StoreError):
            copying.backup(paths, target)
    assert count(target) == 1
    assert copying.backup(paths, target).calls == 2
    assert count(target) == 2


def test_a_backup_never_goes_over_the_store(journal: Journal, paths: StorePaths, tmp_path: Path) -> None:
    write_call(journal)
    merge(paths.database)
    link = tmp_path / "link.duckdb"
    link.symlink_to(paths.database)
    for target in (paths.database, link):
        with pytest.raises(StoreError, match="the store itself"):
            copying.backup(paths, target)
    with pytest.raises(StoreError, match="nowhere"):
        copying.backup(paths, tmp_path / "nowhere" / "backup.duckdb")
    assert count(paths.database) == 1
