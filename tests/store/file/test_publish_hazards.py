"""What others do to the store, and to the process, while a merge writes its copy."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from otel_llm.store import StoreBusy, connect
from otel_llm.store.file import blocks, handles, publish
from otel_llm.store.jobs import copying, exclusive
from otel_llm.store.journal import locks
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import HOLDER, Script, count, query, write_call

MINE = "SELECT a, (SELECT count(*) FROM llm_usage) FROM mine"


# --- others who write -------------------------------------------------------------------------------------------------


def test_the_app_itself_opens_it_to_write_in_the_middle_of_a_merge(
    stored: Callable[[], None], paths: StorePaths
) -> None:
    """Its lock stays, and what it writes is in the store afterwards."""
    stored()
    stored()
    with pytest.raises(StoreBusy, match="to write"), exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        app = duckdb.connect(str(paths.database))
    done = subprocess.run([sys.executable, "-c", HOLDER, paths.database, "read"], capture_output=True, check=False)
    assert b"Could not set lock" in done.stderr
    app.execute("CREATE TABLE mine AS SELECT 42 AS a")
    app.close()
    assert query(paths.database, MINE) == [(42, 2)]


def test_the_app_has_it_open_to_write_by_another_name(
    stored: Callable[[], None], journal: Journal, paths: StorePaths
) -> None:
    """DuckDB does not notice: two instances in one process would write the same file."""
    stored()
    other = paths.database.with_name("other.duckdb")
    os.link(paths.database, other)
    with duckdb.connect(str(other)) as app:
        app.execute("CREATE TABLE mine AS SELECT 42 AS a")
        write_call(journal)
        assert not merge(paths.database, timeout=0.01).complete
    assert merge(paths.database).complete
    assert query(paths.database, MINE) == [(42, 2)]


def test_a_writer_dies_in_the_middle_of_a_merge_with_a_change_in_its_log(
    stored: Callable[[], None], paths: StorePaths, script: Callable[..., Script]
) -> None:
    stored()
    stored()
    with pytest.raises(StoreBusy, match="changed or replaced"), exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        writer = script(
            """
import duckdb, os, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("CREATE TABLE mine AS SELECT 42 AS a")
print("written", flush=True)
os.kill(os.getpid(), 9)
""",
            str(paths.database),
        )
        writer.line()
        writer.process.wait(120)
    stored()
    assert query(paths.database, MINE) == [(42, 3)]


def test_the_log_of_another_database_does_not_stop_the_merges(
    stored: Callable[[], None], paths: StorePaths, caplog: pytest.LogCaptureFixture
) -> None:
    """As that of a store that was replaced by its backup; DuckDB refuses to open the two together."""
    stored()
    app = duckdb.connect(str(paths.database))
    app.execute("CREATE TABLE mine AS SELECT 42 AS a")
    log = paths.wal.read_bytes()
    app.close()
    paths.wal.write_bytes(log)
    stored()
    assert "is damaged" in caplog.text
    assert query(paths.database, MINE) == [(42, 2)]
    assert [path.suffix for path in paths.database.parent.glob("*.corrupt-*")] == [".wal"]


def test_a_database_that_somebody_is_just_making_is_no_placeholder(paths: StorePaths, journal: Journal) -> None:
    write_call(journal)
    paths.database.parent.mkdir(exist_ok=True)
    fd = os.open(paths.database, os.O_RDWR | os.O_CREAT)
    handles.lock(fd, fcntl.LOCK_EX)  # as DuckDB does first
    assert not merge(paths.database, timeout=0.01).complete
    assert paths.database.stat().st_ino == os.fstat(fd).st_ino
    os.close(fd)
    assert merge(paths.database).complete


# --- other names ------------------------------------------------------------------------------------------------------


def test_a_hard_link_is_not_written_to(stored: Callable[[], None], paths: StorePaths) -> None:
    """As backup programs make them: what was the store then must stay what it was."""
    stored()
    stored()
    snapshot = paths.database.with_name("snapshot.duckdb")
    os.link(paths.database, snapshot)
    before = snapshot.read_bytes()
    for _ in range(4):
        stored()
    assert snapshot.read_bytes() == before
    assert paths.spare.stat().st_nlink == 1


@pytest.mark.parametrize("what", ["link", "directory"])
def test_something_else_in_the_place_of_the_spare_file(
    what: str, stored: Callable[[], None], paths: StorePaths, tmp_path: Path
) -> None:
    stored()
    stored()
    paths.spare.unlink()
    precious = tmp_path / "precious"
    precious.write_text("not ours")
    if what == "link":
        paths.spare.symlink_to(precious)
    else:
        paths.spare.mkdir()
    before = paths.database.stat().st_ino
    stored()
    assert paths.database.stat().st_ino != before
    assert precious.read_text() == "not ours"
    assert count(paths.database) == 3


def test_the_lock_file_is_deleted_in_the_middle_of_a_merge(
    stored: Callable[[], None], journal: Journal, paths: StorePaths
) -> None:
    """With `rm usage.duckdb*`, say. The next one may begin then, and neither may take the other's working copy for its own."""
    stored()
    stored()
    with pytest.raises(StoreBusy, match="deleted while it was written"), exclusive.alone(paths) as connection:
        connection.execute("DELETE FROM llm_usage")
        paths.lock.unlink()
        paths.next.unlink()
        shutil.copy(paths.database, paths.next)
    stored()
    assert count(paths.database) == 3


def test_who_waits_for_a_lock_file_that_is_deleted_waits_for_the_next_one(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: lock.unlink(missing_ok=True))
        with (
            pytest.raises(TimeoutError, match="deleted while it was waited for"),
            locks.exclusive(lock, time.monotonic() + 30),
        ):
            pass
    os.close(fd)


# --- who may read it --------------------------------------------------------------------------------------------------


def test_who_may_read_it_by_a_list_may_go_on_reading(stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    # rw for its owner, r for user 12345, nothing for the group and others (acl_ea_header, then tag, permission, id).
    entries = ((1, 6, 2**32 - 1), (2, 4, 12345), (4, 0, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + may.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, may, who in entries
    )
    try:
        os.setxattr(paths.database, "system.posix_acl_access", acl)
    except (OSError, AttributeError):
        pytest.skip("the file system keeps no such lists")
    for _ in range(3):
        stored()
        assert os.getxattr(paths.database, "system.posix_acl_access") == acl
    os.removexattr(paths.database, "system.posix_acl_access")
    for _ in range(2):
        stored()
        assert "system.posix_acl_access" not in os.listxattr(paths.database)


def test_the_store_that_follows_a_damaged_one_is_private(
    stored: Callable[[], None], paths: StorePaths, journal: Journal
) -> None:
    stored()
    paths.spare.unlink(missing_ok=True)
    data = bytearray(paths.database.read_bytes())
    data[4096:12288] = os.urandom(8192)
    paths.database.write_bytes(data)
    write_call(journal)
    assert merge(paths.database).complete
    assert list(paths.database.parent.glob("*.corrupt-*"))
    assert paths.database.stat().st_mode & 0o777 == 0o600


def test_the_journal_of_another_user_does_not_stop_the_merges(
    journal: Journal, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what root's processes have left. He takes it in, with the next merge of his."""
    theirs = Journal(paths.journal)
    write_call(theirs)
    write_call(journal)
    segment, opened = theirs.segment, os.open

    def refuse(path: Path, *arguments: int, **named: int) -> int:
        if path == segment:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for number in range(2):
            assert merge(paths.database).complete
            assert query(paths.database, "SELECT count(*) FROM llm_usage") == [(number + 1,)]
            write_call(journal)
    theirs.close()
    assert count(paths.database) == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_root_writes_stays_its_owners(stored: Callable[[], None], paths: StorePaths) -> None:
    """As `sudo otel-llm usage` does; and it turns nobody away either."""
    stored()
    os.chown(paths.database, 12345, 12345)
    for _ in range(3):
        before = paths.database.stat().st_ino
        stored()
        now = paths.database.stat()
        assert now.st_ino != before
        assert (now.st_uid, now.st_gid) == (12345, 12345)
    copying.compact(paths)
    assert paths.database.stat().st_uid == 12345


# --- forks ------------------------------------------------------------------------------------------------------------


def test_a_child_that_was_forked_in_the_middle_of_a_merge(
    stored: Callable[[], None], paths: StorePaths, script: Callable[..., Script]
) -> None:
    """A fork does not wait for ever. The child goes on merging, and keeps neither file from anybody."""
    stored()
    stored()
    forking = script(
        """
import os, sys
from otel_llm.store.jobs import exclusive
from otel_llm.store.merge.ingest import merge
from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.store.conftest import write_call
paths = StorePaths.of(sys.argv[1])
with exclusive.alone(paths) as connection:
    connection.execute("UPDATE llm_usage SET module = 'changed'")
    child = os.fork()
    if not child:
        sys.stdin.readline()
        journal = Journal(paths.journal)
        for _ in range(3):
            write_call(journal)
            result = merge(paths.database)
            print(result.complete, result.reason, flush=True)
        sys.stdin.readline()
        os._exit(0)
print("forked", flush=True)
os.waitpid(child, 0)
""",
        str(paths.database),
    )
    assert forking.line() == "forked"
    forking.say()
    assert [forking.line() for _ in range(3)] == ["True None"] * 3
    stored()
    assert query(paths.database, "SELECT count(*), count(*) FILTER (module = 'changed') FROM llm_usage") == [(6, 2)]
    forking.say()
    forking.finish()


# --- what comes in between --------------------------------------------------------------------------------------------


def test_an_interrupt_while_the_copy_is_made_leaves_nothing_open(
    stored: Callable[[], None], journal: Journal, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    stored()
    write_call(journal)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "copy_changed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(paths.database)
    assert handles.others(paths.database.stat()) == []
    assert not paths.next.exists()
    assert merge(paths.database).complete


def test_a_directory_that_cannot_be_synced(
    stored: Callable[[], None], journal: Journal, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems. What was merged is removed from the journal all the same."""
    stored()
    fsync = os.fsync

    def refuse(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), paths.database.parent.stat()):
            raise OSError(22, "Invalid argument")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    write_call(journal)
    journal.close()
    assert merge(paths.database).removed
    assert count(paths.database) == 2


def test_a_copy_does_not_fill_the_disk(
    stored: Callable[[], None], paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored()
    paths.spare.unlink()
    monkeypatch.setattr(publish, "_ROOM", 2**62)
    before = paths.database.stat().st_ino
    stored()
    assert paths.database.stat().st_ino == before


def test_a_large_store_that_is_written_all_the_time_gets_its_copy_back(
    stored: Callable[[], None], paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its spare file may be lost: a merge was killed, `compact` was run, somebody reads it. Merges follow without a pause."""
    monkeypatch.setattr(publish, "_SMALL", 0)
    stored()
    os.utime(paths.lock, (paths.lock.stat().st_mtime - 3600,) * 2)
    monkeypatch.setattr(publish, "_COPY_RATE", paths.database.stat().st_size / 600)  # a copy every ten minutes or so
    paths.spare.unlink()
    stored()
    assert paths.spare.exists()
    paths.spare.unlink()
    before = paths.database.stat().st_ino
    stored()
    assert paths.database.stat().st_ino == before
    os.utime(paths.lock, (paths.lock.stat().st_mtime - 3600,) * 2)
    stored()
    assert paths.database.stat().st_ino != before
    assert paths.spare.exists()


def test_a_backup_that_is_restored_while_the_store_is_compacted_stays(
    stored: Callable[[], None], paths: StorePaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored()
    backup = tmp_path / "backup.duckdb"
    shutil.copy(paths.database, backup)
    stored()
    contents = copying._contents

    def restored(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, tuple[int, int | str]]:
        if backup.exists():
            backup.replace(paths.database)
        return contents(connection, name)

    monkeypatch.setattr(copying, "_contents", restored)
    with pytest.raises(StoreBusy, match="replaced"):
        copying.compact(paths)
    with duckdb.connect(str(paths.database), read_only=True) as plain:
        assert plain.execute("SELECT count(*) FROM llm_usage").fetchall() == [(1,)]


@pytest.mark.parametrize("how", ["compact", "connect"])
def test_copies_of_the_dead_are_removed(how: str, stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    beside = paths.database.parent
    names = [f".{paths.database.name}.{name}" for name in ("dead.tmp", "dead.tmp.wal", "alive.tmp")]
    left = [beside / name for name in names]
    for path in left:
        path.touch()
    folder = beside / f".{paths.database.name}.gone.tmp"
    folder.mkdir()
    (folder / paths.database.name).touch()
    for path in (*left[:2], folder):
        os.utime(path, (0, 0))
    if how == "compact":
        copying.compact(paths)
    else:
        with connect(paths.database):
            stored()
            connect(paths.database).close()
    assert [path.name for path in beside.iterdir() if path.name.startswith(".")] == [left[2].name]


# --- crashes ----------------------------------------------------------------------------------------------------------

DYING = """
import itertools, os, sys
from otel_llm.store.merge.ingest import merge
from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.store.conftest import write_call
paths = StorePaths.of(sys.argv[1])
journal = Journal(paths.journal)
write_call(journal)
merge(paths.database)
for last in itertools.count():
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print(os.WIFSIGNALED(status), flush=True)
        sys.stdin.readline()
        continue
    journal = Journal(paths.journal)
    write_call(journal)
    journal.close()
    seen = itertools.count()

    def die(event, arguments):
        file = str(arguments[0]) if arguments else ""
        reads = event in ("open", "os.scandir", "os.listdir") and (".journal" in file or ".lock" in file)
        if paths.database.name in file and not reads and next(seen) == last:
            os.kill(os.getpid(), 9)

    sys.addaudithook(die)
    merge(paths.database)
    os._exit(0)
"""


def test_killed_at_any_step_of_a_merge(paths: StorePaths, script: Callable[..., Script]) -> None:
    """Nothing that has ended is lost or doubled, a plain client gets in, and nothing is left behind for long."""
    dying = script(DYING, str(paths.database))
    for ended in itertools.count(2):
        if dying.line() == "False":
            break
        with duckdb.connect(str(paths.database), read_only=True) as plain:
            (found, ids) = plain.execute("SELECT count(*), count(DISTINCT span_id) FROM llm_usage").fetchall()[0]
        assert ended - 1 <= found == ids <= ended
        assert count(paths.database) == ended
        assert {path.name.removeprefix(paths.database.name) for path in paths.database.parent.iterdir()} <= {
            "", ".spare", ".journal", ".lock", ".lock.next",
        }  # fmt: skip
        dying.say()
    assert ended > 10
    dying.kill()
