"""A merge writes a copy that takes the place of the database, so that nobody who reads is ever turned away."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from otel_llm.store import StoreBusy, reader
from otel_llm.store.file import blocks, database, handles, publish
from otel_llm.store.jobs import exclusive
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import duckdb_instance
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import HOLDER, Script, count, merging, query, write_call
from tests.store.file.test_migration import contents


def refused(path: Path, mode: str) -> bool:
    """Whether another process is turned away that opens `path` to `read` or to `write`."""
    code = "import duckdb, sys; duckdb.connect(sys.argv[1], read_only=sys.argv[2] == 'read').execute('FROM llm_usage')"
    done = subprocess.run([sys.executable, "-c", code, str(path), mode], capture_output=True, text=True, check=False)
    assert not done.returncode or "Could not set lock" in done.stderr, done.stderr
    return bool(done.returncode)


# --- readers ----------------------------------------------------------------------------------------------------------

POLLER = """
import duckdb, sys
looks, last = 0, 0
while last < int(sys.argv[2]):
    with duckdb.connect(sys.argv[1], read_only=True) as connection:
        now = connection.execute("SELECT count(*) FROM llm_usage").fetchall()[0][0]
    assert now >= last, (now, last)
    last, looks = now, looks + 1
    if looks == 1:
        print("begun", flush=True)
print(looks)
"""


def test_nobody_who_reads_is_turned_away(
    stored: Callable[[], None], store_path: Path, script: Callable[..., Script]
) -> None:
    """A client that opens the file again and again, while one merge follows the other without a pause."""
    stored()
    poller = script(POLLER, str(store_path), "40")
    poller.line()
    for _ in range(39):
        stored()
    assert int(poller.finish()) > 1


def test_a_reader_may_take_his_time_between_opening_and_locking(
    stored: Callable[[], None], store_path: Path, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may be the database no longer by then; it is not written at once."""
    monkeypatch.setattr(publish, "_REST", 3600)
    stored()
    reader = script(
        """
import sys
with open(sys.argv[1], "rb") as file:
    print("open", flush=True)
    sys.stdin.readline()
    open(sys.argv[2], "wb").write(file.read())
""",
        str(store_path),
        str(copy := store_path.with_name("copy.duckdb")),
    )
    reader.line()
    for _ in range(3):
        stored()
    reader.say()
    reader.finish()
    with duckdb.connect(str(copy), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(1,)]
    assert count(store_path) == 4


def test_a_reader_is_let_in_in_the_middle_of_a_merge(stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    with exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        assert not refused(paths.database, "read")
        with duckdb.connect(str(paths.database), read_only=True) as reader:
            assert reader.execute("SELECT count(*) FROM llm_usage").fetchall() == [(1,)]
    assert count(paths.database) == 0


@pytest.mark.parametrize("stays", [False, True], ids=["and has left", "and stays"])
def test_a_writer_is_let_in_in_the_middle_of_a_merge_which_is_made_again(
    stays: bool, stored: Callable[[], None], paths: StorePaths, script: Callable[..., Script]
) -> None:
    stored()
    writer = script(
        """
import duckdb, sys
with duckdb.connect(sys.argv[1]) as connection:
    print("open", flush=True)
    sys.stdin.readline()
    connection.execute("CREATE TABLE mine AS SELECT 42 AS a")
""",
        str(paths.database),
    )
    with pytest.raises(StoreBusy, match="to write" if stays else "changed"), exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        writer.line()
        if not stays:
            writer.say()
            writer.finish()
    if stays:
        writer.say()
        writer.finish()
    assert query(paths.database, "SELECT a, (SELECT count(*) FROM llm_usage) FROM mine") == [(42, 1)]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["this process", "another process"])
def test_who_keeps_it_open_keeps_what_was_there(
    elsewhere: bool, stored: Callable[[], None], paths: StorePaths, script: Callable[..., Script]
) -> None:
    """And neither stops the merges nor is disturbed by them, however many there are."""
    stored()
    if elsewhere:
        holder = script(
            """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=True)
print("open", flush=True)
sys.stdin.readline()
print(connection.execute("SELECT count(*), count(DISTINCT span_id) FROM llm_usage").fetchall())
""",
            str(paths.database),
        )
        holder.line()
    else:
        held = duckdb.connect(str(paths.database), read_only=True)
    for _ in range(5):
        stored()
    if elsewhere:
        holder.say()
        assert holder.finish().strip() == "[(1, 1)]"
    else:
        assert held.execute("SELECT count(*), count(DISTINCT span_id) FROM llm_usage").fetchall() == [(1, 1)]
        held.close()
    assert count(paths.database) == 6


def test_a_connection_sees_what_ended_while_an_older_one_is_open(stored: Callable[[], None], store_path: Path) -> None:
    """DuckDB gives a process the instance that it has for a path, and that has the file that was there then."""
    connect = reader.connect_to_moment
    stored()
    with connect(store_path) as first:
        stored()
        with connect(store_path) as second:
            stored()
            with connect(store_path) as third, connect(store_path) as fourth:
                seen = [c.execute("SELECT count(*) FROM llm_usage").fetchall() for c in (first, second, third, fourth)]
                assert third.execute("SELECT current_database()").fetchall() == [(store_path.stem,)]
    assert seen == [[(1,)], [(2,)], [(3,)], [(3,)]]
    assert [path.name for path in store_path.parent.iterdir() if path.is_dir()] == [f"{store_path.name}.journal"]


def test_what_another_process_merges_while_the_journal_is_laid_over_is_not_missed(
    journal: Journal, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    merge(paths.database)
    journal.close()
    write_call(journal)
    journal.close()
    overlay, tries = reader._overlay, itertools.count()

    def merged_first(connection: duckdb.DuckDBPyConnection, paths: StorePaths, stored: str) -> None:
        if next(tries) == 0:
            held.__exit__(None, None, None)
            assert merge(paths.database).removed
        overlay(connection, paths, stored)

    monkeypatch.setattr(reader, "_overlay", merged_first)
    held = merging(paths)
    held.__enter__()
    assert count(paths.database) == 2


def test_the_locks_of_the_app_are_not_lost(stored: Callable[[], None], paths: StorePaths) -> None:
    """POSIX locks go with the first descriptor of a file that a process closes, whoever opened it."""
    stored()
    held = paths.database.with_name("held.duckdb")
    os.link(paths.database, held)
    with duckdb.connect(str(paths.database), read_only=True):
        for _ in range(3):
            stored()
        assert not held.samefile(paths.database) and not held.samefile(paths.spare)
        assert handles._parked
        assert refused(held, "write")
    assert not refused(held, "write")
    stored()
    assert not handles._parked


def test_the_app_itself_may_write(stored: Callable[[], None], journal: Journal, paths: StorePaths) -> None:
    stored()
    with duckdb.connect(str(paths.database)) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 42 AS a")
        write_call(journal)
        assert not merge(paths.database, timeout=0.01).complete
        assert refused(paths.database, "write")
    assert merge(paths.database).complete
    assert query(paths.database, "SELECT a, (SELECT count(*) FROM llm_usage) FROM mine") == [(42, 2)]


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_two_files_take_turns(stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    stored()
    pair = {paths.database.stat().st_ino, paths.spare.stat().st_ino}
    seen = []
    for _ in range(4):
        stored()
        assert {paths.database.stat().st_ino, paths.spare.stat().st_ino} == pair
        seen.append(paths.database.stat().st_ino)
    assert len(set(seen)) == 2
    assert not paths.next.exists()


def state(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_what_changes_nothing_publishes_nothing(stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    stored()
    before = state(paths.database)
    with exclusive.alone(paths) as connection:
        connection.execute("SELECT count(*) FROM llm_usage").fetchall()
    assert state(paths.database) == before
    assert paths.spare.exists() and not paths.next.exists()


def test_the_blocks_that_differ_make_two_files_equal(tmp_path: Path) -> None:
    """Inserts, updates, deletes and new tables; the file grows, its blocks are freed and filled again."""
    draw = random.Random(3)
    first, second = tmp_path / "first.duckdb", tmp_path / "second.duckdb"
    with duckdb.connect(str(first), config={"storage_compatibility_version": "v1.5.0"}) as connection:
        connection.execute("CREATE TABLE t AS SELECT i, md5(i::VARCHAR) AS text FROM range(40000) AS r(i)")
    second.touch()
    copied = []
    for _ in range(8):
        copied.append(copy(first, second))
        assert first.read_bytes() == second.read_bytes()
        with duckdb.connect(str(first)) as connection:
            low = draw.randrange(40_000)
            connection.execute(f"DELETE FROM t WHERE i BETWEEN {low} AND {low + 3000}")
            connection.execute(f"INSERT INTO t SELECT i, sha256(i::VARCHAR) FROM range({low}, {low + 2500}) AS r(i)")
            connection.execute(f"UPDATE t SET text = 'x' WHERE i = {draw.randrange(40_000)}")
    copy(first, second)
    assert first.read_bytes() == second.read_bytes()
    first.write_bytes(first.read_bytes()[: 12_288 + 262_144])  # a smaller one
    copy(first, second)
    assert first.read_bytes() == second.read_bytes()
    assert copy(first, second) == 12_288


@pytest.mark.parametrize("offset", [8, 12, 4096 + 40])
def test_a_format_that_is_not_known_is_compared_byte_by_byte(offset: int, tmp_path: Path) -> None:
    first, second = tmp_path / "first.duckdb", tmp_path / "second.duckdb"
    with duckdb.connect(str(first)) as connection:
        connection.execute("CREATE TABLE t AS SELECT i, md5(i::VARCHAR) AS text FROM range(40000) AS r(i)")
    data = bytearray(first.read_bytes())
    data[offset : offset + 2] = b"\x99\x01"
    first.write_bytes(data)
    shutil.copy(first, second)
    data[300_000] ^= 0xFF  # the checksum of its block stays what it was
    first.write_bytes(data)
    copy(first, second)
    assert first.read_bytes() == second.read_bytes()


def copy(source: Path, target: Path) -> int:
    with source.open("rb") as reading, target.open("r+b") as writing:
        return blocks.copy_changed(reading.fileno(), writing.fileno())


def test_the_format_of_this_duckdb_is_known(stored: Callable[[], None], paths: StorePaths) -> None:
    """Where this fails, a merge costs more as the store grows: see whether blocks are still laid out as `blocks` says."""
    stored()
    with paths.database.open("rb") as file:
        assert blocks._layout(file.fileno(), paths.database.stat().st_size) == (262_144, 4096)


def test_what_others_write_between_two_merges_is_kept(stored: Callable[[], None], paths: StorePaths) -> None:
    for number in range(4):
        stored()
        with duckdb.connect(str(paths.database)) as connection:
            connection.execute(f"CREATE VIEW mine_{number} AS SELECT count(*) AS calls FROM llm_usage")
    stored()
    for number in range(4):
        assert query(paths.database, f"SELECT calls FROM mine_{number}") == [(5,)]


def test_the_mode_of_the_file_stays(stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    assert paths.database.stat().st_mode & 0o777 == 0o600
    paths.database.chmod(0o640)
    for _ in range(3):
        stored()
        assert paths.database.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_one(tmp_path: Path) -> None:
    """And what stands beside a store stands beside the file: whoever comes by its other name must find it."""
    elsewhere = tmp_path / "big disk"
    elsewhere.mkdir()
    link = tmp_path / "usage.duckdb"
    link.symlink_to(elsewhere / "account.duckdb")
    assert StorePaths.of(link) == StorePaths.of(elsewhere / "account.duckdb")
    journal = Journal(StorePaths.of(link).journal)
    for number in range(3):
        write_call(journal)
        assert merge(link).complete
        assert link.is_symlink()
        assert count(link) == number + 1
    journal.close()
    assert {path.suffix for path in elsewhere.iterdir()} == {".duckdb", ".spare", ".journal", ".lock", ".next"}
    assert {path.name for path in tmp_path.iterdir()} == {"big disk", "usage.duckdb"}


def test_a_deleted_store_does_not_come_back(stored: Callable[[], None], journal: Journal, paths: StorePaths) -> None:
    for _ in range(3):
        stored()
        journal.close()
    stored()
    left = count(paths.database)
    paths.database.unlink()
    stored()
    assert count(paths.database) < left


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


def test_an_error_leaves_everything_as_it_was(stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    stored()
    before, stat = contents(paths.database), paths.database.stat()
    with pytest.raises(RuntimeError), exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        raise RuntimeError
    assert (contents(paths.database), paths.database.stat().st_ino) == (before, stat.st_ino)
    assert not paths.next.exists()
    stored()
    assert count(paths.database) == 3


def test_the_process_dies_in_the_middle(
    stored: Callable[[], None], paths: StorePaths, script: Callable[..., Script]
) -> None:
    stored()
    stored()
    before = contents(paths.database)
    dying = script(
        """
import os, sys
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
with exclusive.alone(StorePaths.of(sys.argv[1])) as connection:
    connection.execute("DELETE FROM llm_usage")
    print("deleted", flush=True)
    os.kill(os.getpid(), 9)
""",
        str(paths.database),
    )
    dying.line()
    dying.process.wait(120)
    assert paths.next.exists()
    assert contents(paths.database) == before
    stored()
    assert count(paths.database) == 3
    assert not paths.next.exists()


def test_the_process_died_between_the_two_names(stored: Callable[[], None], paths: StorePaths) -> None:
    """Then the spare file and the database are the same file, which must not be written."""
    stored()
    stored()
    paths.spare.unlink()
    os.link(paths.database, paths.spare)
    with duckdb.connect(str(paths.database), read_only=True) as reader:
        for _ in range(3):
            stored()
        assert reader.execute("SELECT count(*) FROM llm_usage").fetchall() == [(2,)]
    assert count(paths.database) == 5


def test_a_file_that_cannot_be_renamed_is_written_in_place(
    stored: Callable[[], None], paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is mounted into a container by itself."""
    stored()
    inode = paths.database.stat().st_ino
    replace = Path.replace

    def busy(path: Path, target: Path) -> Path:
        if path == paths.next and target == paths.database:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", busy)
    for number in range(3):
        stored()
        assert count(paths.database) == count(paths.database, "spans") == number + 2
        assert paths.database.stat().st_ino == inode
    assert not paths.next.exists() and not paths.spare.exists()


@pytest.mark.parametrize("step", ["copy", "link", "descriptors"])
def test_what_cannot_be_had_is_done_without(
    step: str, stored: Callable[[], None], paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for a copy, no hard links, no way to tell which files are open."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stored()
    if step == "copy":
        monkeypatch.setattr(blocks, "copy_changed", fail)
    elif step == "link":
        monkeypatch.setattr(os, "link", fail)
    else:
        monkeypatch.setattr(handles, "_descriptors", fail)
    for number in range(3):
        stored()
        assert count(paths.database) == number + 2
    assert not paths.next.exists()


def test_after_a_failed_draft_the_database_itself_is_written(
    stored: Callable[[], None], journal: Journal, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk with room for the new rows, but not for a copy."""
    stored()
    stored()
    migrate = database.migrate

    def full(connection: duckdb.DuckDBPyConnection) -> None:
        if paths.next.exists():
            raise duckdb.IOException("Could not write: No space left on device")
        migrate(connection)

    monkeypatch.setattr(database, "migrate", full)
    write_call(journal)
    with pytest.raises(database.StoreError, match="No space left"):
        merge(paths.database)
    assert merge(paths.database).complete
    assert not paths.spare.exists()
    assert count(paths.database) == 3


@pytest.mark.parametrize("how", ["copied over", "replaced", "deleted"])
def test_a_store_that_changes_during_a_merge(
    how: str, stored: Callable[[], None], paths: StorePaths, tmp_path: Path
) -> None:
    """Whoever restores a backup just then finds it there afterwards."""
    stored()
    backup = tmp_path / "backup.duckdb"
    shutil.copy(paths.database, backup)
    stored()
    with pytest.raises(StoreBusy, match="changed or replaced"), exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        if how == "copied over":
            shutil.copy(backup, paths.database)
        elif how == "replaced":
            backup.replace(paths.database)
        else:
            paths.database.unlink()
    if how == "deleted":
        assert not paths.database.exists()
    else:
        with duckdb.connect(str(paths.database), read_only=True) as restored:
            assert restored.execute("SELECT count(*) FROM llm_usage").fetchall() == [(1,)]


def test_a_store_that_somebody_makes_meanwhile(paths: StorePaths, journal: Journal) -> None:
    write_call(journal)
    with pytest.raises(StoreBusy, match="somebody else"), exclusive.alone(paths):
        assert not paths.database.exists()
        with duckdb.connect(str(paths.database), config={"storage_compatibility_version": "v1.5.0"}) as connection:
            connection.execute("CREATE TABLE mine AS SELECT 42 AS a")
    assert merge(paths.database).complete
    assert query(paths.database, "SELECT a, (SELECT count(*) FROM llm_usage) FROM mine") == [(42, 1)]


def test_damage_in_the_spare_file_is_not_taken_for_damage_in_the_store(
    stored: Callable[[], None], journal: Journal, paths: StorePaths
) -> None:
    for _ in range(3):
        stored()
    before = contents(paths.database)
    data = bytearray(paths.spare.read_bytes())
    for start in range(12_288, len(data), 262_144):
        data[start + 8 : start + 4096] = bytes(4088)  # all but the checksum of the block
    paths.spare.write_bytes(data)
    write_call(journal)
    assert merge(paths.database).complete
    assert count(paths.database) == 4
    after = contents(paths.database)
    assert all(set(map(repr, before[table])) <= set(map(repr, after[table])) for table in ("llm_usage", "spans"))
    assert not [path for path in paths.database.parent.iterdir() if "corrupt-" in path.name]


# --- large stores -----------------------------------------------------------------------------------------------------


def test_a_large_store_is_not_copied_whole_all_the_time(
    stored: Callable[[], None], paths: StorePaths, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody reads the spare file it waits a second, then makes a copy if one is due, then writes in place."""
    monkeypatch.setattr(publish, "_SMALL", 0)
    monkeypatch.setattr(publish, "_COPY_RATE", 2**40)
    stored()
    holder = script(HOLDER, str(paths.database), "read")
    holder.line()
    stored()  # what is read is the spare file now
    monkeypatch.setattr(publish, "_PATIENCE", 3600.0)
    with pytest.raises(StoreBusy, match="is being read"), exclusive.alone(paths, timeout=0.01):
        pass
    monkeypatch.setattr(publish, "_PATIENCE", 0.0)
    before = paths.database.stat().st_ino
    stored()
    assert paths.database.stat().st_ino != before
    before = paths.database.stat().st_ino
    paths.spare.unlink()
    monkeypatch.setattr(publish, "_COPY_RATE", 1)
    stored()
    assert paths.database.stat().st_ino == before
    assert count(paths.database) == 4


def test_the_instance_of_the_merges_is_not_kept_when_its_work_is_given_up(
    stored: Callable[[], None], paths: StorePaths
) -> None:
    stored()
    instance = duckdb_instance.get()
    with pytest.raises(StoreBusy, match="changed"), exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        paths.database.unlink()
    assert duckdb_instance.get() is not instance


def test_holders_are_named(stored: Callable[[], None], paths: StorePaths, script: Callable[..., Script]) -> None:
    stored()
    holder = script(HOLDER, str(paths.database), "write")
    holder.line()
    with pytest.raises(StoreBusy, match=f"process {holder.process.pid}"), exclusive.alone(paths, timeout=0.01):
        pass
