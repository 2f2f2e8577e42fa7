"""What stands in the place of the files of a store: nothing waits for it, takes it for ours or replaces it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_llm.settings import reload, settings, store_path
from otel_llm.store import Store, StoreError, connect, place, store
from otel_llm.store.jobs import copying
from otel_llm.store.journal import segments
from otel_llm.store.journal.follow import JournalFollower
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from otel_llm.support import files
from tests.store.conftest import count, end, write_call

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act for other users")


@pytest.fixture(autouse=True)
def _own_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    """A FIFO that is opened the plain way is waited for, for ever."""

    def too_long(*_: object) -> None:
        raise AssertionError("it waits for something")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may not be long
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def make_device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may make a device")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # as /dev/full


def make_link(path: Path) -> None:
    os.mkfifo(path.parent / "fifo")
    path.symlink_to(path.parent / "fifo")


KINDS = [make_fifo, make_socket, make_device, make_link, Path.mkdir]
each_kind = pytest.mark.parametrize("make", KINDS, ids=["fifo", "socket", "device", "link", "directory"])


def kept(path: Path) -> int:
    """Keeps one call in a store that is asked for at `path`, and returns how many its reader sees."""
    mine = Store.open(path)
    mine.write(end())
    assert mine.flush()
    with connect(path) as connection:
        (found,) = connection.execute("SELECT count(*) FROM llm_usage").fetchall()[0]
    mine.close()
    return int(found)


# --- things that are no files -----------------------------------------------------------------------------------------


@each_kind
def test_in_the_place_of_the_store(
    make: Callable[[Path], None], store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(store_path)
    before = store_path.lstat()
    assert kept(store_path) == 1
    assert os.path.samestat(store_path.lstat(), before)
    (line,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    own = tmp_path / "data" / "otel-llm" / "usage.duckdb"
    assert str(store_path) in line and "not a file" in line and str(own) in line
    store._stores.clear()  # another process reads, by that very name
    with pytest.raises(StoreError, match="not a file"):
        connect(store_path)
    assert not list(store_path.parent.glob("usage.duckdb.*"))  # nothing is put beside a device


@each_kind
@pytest.mark.parametrize("suffix", [".wal", ".lock", ".lock.next", ".spare", ".next", ".next.wal", ".journal"])
def test_in_the_place_of_what_stands_beside_the_store(
    make: Callable[[Path], None], suffix: str, store_path: Path
) -> None:
    if (make, suffix) == (Path.mkdir, ".journal"):
        pytest.skip("a directory is what should be there")
    where = store_path.with_name(f"{store_path.name}{suffix}")
    make(where)
    before = where.lstat()
    assert kept(store_path) == 1
    if make is not make_link:  # a link under one of our names leads to nothing of ours, and goes
        assert os.path.samestat(where.lstat(), before)
    else:
        assert (store_path.parent / "fifo").is_fifo()


@each_kind
@pytest.mark.parametrize(
    "name", ["a-000001.jsonl", "follower-1-x", "merged.json", "corrupt", ".x.tmp", ".batch-x.tmp", "spill"]
)
def test_in_the_journal(make: Callable[[Path], None], name: str, store_path: Path, journal: Journal) -> None:
    files.make_private_dir(journal.directory)
    make(journal.directory / name)
    os.utime(journal.directory / name, (0, 0), follow_symlinks=False)
    write_call(journal)
    journal.append({"k": "nonsense"})
    assert segments.running_calls(journal.directory) == []
    with JournalFollower(StorePaths.of(store_path)) as follower:
        write_call(journal)
        assert len(follower.poll()) == 2
    assert kept(store_path) == 3


def test_it_comes_while_the_store_is_in_use(store_path: Path, paths: StorePaths, stored: Callable[[], None]) -> None:
    stored()
    paths.lock.unlink()
    os.mkfifo(paths.lock)
    journal = Journal(paths.journal)
    write_call(journal)
    with pytest.raises(StoreError, match="FIFO"):
        merge(store_path)
    with connect(store_path) as connection:  # what cannot be merged is seen all the same
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(2,)]
    journal.close()


@each_kind
def test_in_the_place_of_a_backup(make: Callable[[Path], None], stored: Callable[[], None], paths: StorePaths) -> None:
    stored()
    target = paths.database.parent / "backup.duckdb"
    make(target)
    before = target.lstat()
    with pytest.raises(StoreError, match="not a file"):
        copying.backup(paths, target)
    assert os.path.samestat(target.lstat(), before)


@pytest.mark.parametrize(
    "name", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/1", "/dev/full", "/dev/tty"]
)
def test_the_names_of_the_system(name: str, tmp_path: Path) -> None:
    """Even where it leads to a file: that is what the app prints to."""
    assert files.no_file_at(Path(name)) == f"{name} is a device, not a file"
    assert place.of(name).paths.database == tmp_path / "data" / "otel-llm" / "usage.duckdb"
    link = tmp_path / "link"
    link.symlink_to(name)
    assert place.of(link).paths.database == tmp_path / "data" / "otel-llm" / "usage.duckdb"


@pytest.mark.parametrize("text", ["none", "None", "/dev/null", "/dev/../dev/null"])
def test_no_account(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_STORE", text)
    reload()
    assert settings().store is None
    assert store_path(text) is None


# --- what is not ours alone -------------------------------------------------------------------------------------------


def test_a_journal_that_others_may_write(store_path: Path, paths: StorePaths, caplog: pytest.LogCaptureFixture) -> None:
    paths.journal.mkdir()
    paths.journal.chmod(0o777)
    theirs = paths.journal / "a-000001.jsonl"
    theirs.write_bytes(b"not ours\n")
    assert kept(store_path) == 1
    (line,) = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    own = store_path.with_name(f"usage.{os.geteuid()}.duckdb")
    assert f"others may write to {paths.journal}" in line and str(own) in line
    assert count(own) == 1
    assert theirs.read_bytes() == b"not ours\n"
    with pytest.raises(StoreError, match="others may write"):
        merge(store_path)


def test_no_link_is_followed(paths: StorePaths, journal: Journal, tmp_path: Path) -> None:
    """Damaged lines are put aside in no file of somebody else's choice."""
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    write_call(journal)
    assert journal.segment is not None
    with journal.segment.open("ab") as segment:
        segment.write(b"damaged\n")
    files.make_private_dir(paths.corrupt)
    (paths.corrupt / journal.segment.name).symlink_to(precious)
    assert merge(paths.database).corrupt == 1
    assert precious.read_text() == "mine\n"


# --- other users ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that everybody may write to, as /tmp is."""
    # Whatever is imported late is imported here: Python itself may lie where another user may not look.
    kept(tmp_path / "before" / "usage.duckdb")
    store._stores.clear()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o1777)
        yield Path(directory)


def as_user(uid: int, task: Callable[[], object]) -> str:
    """What `task` returns, or how it failed, in a child process of another user."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = "an error"
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.environ["XDG_DATA_HOME"] = "/nonexistent"
            code = repr(task())
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, code.encode())
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return answer.read()


@needs_root
def test_two_users_and_one_store(shared: Path) -> None:
    """The second has a store of his own beside it, and finds it by the name of the first."""
    file = shared / "usage.duckdb"
    assert as_user(1001, lambda: kept(file)) == "1"
    assert as_user(1002, lambda: kept(file)) == "1"
    assert as_user(1002, lambda: kept(file)) == "2"
    assert as_user(1002, lambda: place.to_read(file).database.name) == "'usage.1002.duckdb'"
    assert count(file) == 1
    assert count(shared / "usage.1002.duckdb") == 2
    assert {path.stat().st_uid for path in shared.glob("usage.1002.duckdb*")} == {1002}
    # What its owner lets others read, they read by its name.
    file.chmod(0o644)
    assert as_user(1003, lambda: place.to_read(file).database.name) == "'usage.duckdb'"
    assert as_user(1002, lambda: place.to_read(file, named=True).database.name) == "'usage.duckdb'"
    assert as_user(1003, lambda: connect(file).execute("SELECT count(*) FROM llm_usage").fetchall()) == "[(1,)]"


@needs_root
@pytest.mark.parametrize("name", ["", ".wal", ".lock", ".lock.next", ".spare", ".next", ".next.wal", ".journal"])
def test_what_another_user_has_prepared(name: str, shared: Path) -> None:
    """Files that anybody may write, in a directory that anybody may write to: their maker reads and steers nothing."""
    file = shared / "usage.duckdb"
    trap = shared / f"usage.duckdb{name}"
    trap.mkdir() if name == ".journal" else trap.write_bytes(b"trap")
    trap.chmod(0o777)
    os.chown(trap, 1001, 1001)
    assert as_user(1002, lambda: kept(file)) == "1"
    assert kept(file) == 1  # nor is root taken in
    if trap.is_file():
        assert trap.read_bytes() == b"trap"
    assert trap.stat().st_uid == 1001
    for left in shared.rglob("*"):
        assert left == trap or not left.stat().st_mode & 0o077


@needs_root
def test_who_gives_up_being_root(shared: Path, tmp_path: Path) -> None:
    """As gunicorn's workers do, after the app was imported by root."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path / "data")
    mine = Store.open(shared / "usage.duckdb")
    mine.write(end())
    assert mine.flush()

    def work() -> tuple[bool, str]:
        mine.write(end())
        return mine.flush(), mine.path.name

    assert as_user(1002, work) == "(True, 'usage.1002.duckdb')"
    assert count(shared / "usage.1002.duckdb") == 1


@needs_root
def test_root_uses_the_store_of_a_user(shared: Path) -> None:
    """As `sudo otel-llm` does: whatever it makes there is the user's, who goes on as before."""
    home = shared / "home"
    home.mkdir(mode=0o755)
    os.chown(home, 1001, 1001)
    file = home / "data" / "usage.duckdb"
    assert kept(file) == 1
    assert as_user(1001, lambda: kept(file)) == "2"
    assert kept(file) == 3
    assert as_user(1001, lambda: kept(file)) == "4"
    assert {path.stat().st_uid for path in home.rglob("*")} == {1001}


# --- directories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277, 0o777])
def test_whatever_the_umask_says(umask: int, tmp_path: Path) -> None:
    file = tmp_path / "one" / "two" / "three" / "usage.duckdb"
    before = os.umask(umask)
    try:
        assert kept(file) == 1
    finally:
        os.umask(before)
    made = [path.stat() for path in (tmp_path / "one", *(tmp_path / "one").rglob("*"))]
    assert {stat.S_IMODE(each.st_mode) for each in made if stat.S_ISDIR(each.st_mode)} == {0o700}
    assert {stat.S_IMODE(each.st_mode) for each in made if stat.S_ISREG(each.st_mode)} == {0o600}


@needs_root
def test_a_umask_that_takes_from_the_owner_too(shared: Path) -> None:
    """Root, who runs the other tests, may read whatever its mode says."""

    def work() -> tuple[int, int]:
        os.umask(0o777)
        return kept(shared / "usage.duckdb"), kept(shared / "usage.duckdb")

    assert as_user(1001, work) == "(1, 2)"


assert sys.platform != "win32"
