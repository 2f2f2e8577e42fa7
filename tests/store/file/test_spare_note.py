"""What becomes the database is what was written there, whatever has happened to the spare file since the last merge."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from otel_llm.store.file import blocks, publish, spare_note
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import write_call

FIRST, BLOCK, PAGE = 12_288, 262_144, 4096
CALLS = 40_000
STEADY = 8
"""One of the blocks that no merge reads or writes anew."""


@pytest.fixture
def account(stored: Callable[[], None], paths: StorePaths) -> StorePaths:
    """A store with some blocks that no merge writes anew, and a spare file."""
    stored()
    with duckdb.connect(str(paths.database)) as connection:
        connection.execute(
            f"""INSERT INTO llm_usage (started_at, trace_id, span_id, operation, status, input_tokens)
            SELECT TIMESTAMPTZ '2020-01-01' + to_seconds(i), md5('t' || i), left(md5('s' || i), 16), 'chat', 'ok', i
            FROM range({CALLS}) AS t(i)"""
        )
    for _ in range(2):
        stored()
    assert paths.spare.exists()
    return paths


def starts(path: Path) -> range:
    return range(FIRST, path.stat().st_size - BLOCK + 1, BLOCK)


def rot(path: Path, start: int) -> None:
    """Damages the block that begins at `start`, behind the page with its checksum."""
    with path.open("r+b") as file:
        for offset in range(start + PAGE, start + BLOCK, PAGE):
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 255]))


def trust(paths: StorePaths) -> None:
    """As if nobody had touched the two files: what a disk does to them changes no time."""
    there = (spare_note.identity(path.stat()) for path in (paths.database, paths.spare))
    spare_note.write(paths, spare_note.Note(*there))


def whole(paths: StorePaths) -> tuple[int, str, str]:
    """Everything in the database, read by plain DuckDB, in two numbers of two tables."""
    with duckdb.connect(str(paths.database), read_only=True) as connection:
        one = connection.execute("SELECT count(*), sum(hash(each)::HUGEINT)::VARCHAR FROM llm_usage AS each").fetchall()
        other = connection.execute("SELECT sum(hash(each)::HUGEINT)::VARCHAR FROM spans AS each").fetchall()
    return (*one[0], other[0][0])


def is_right(paths: StorePaths, merges: int) -> None:
    assert whole(paths)[0] == CALLS + merges
    assert not [path for path in paths.database.parent.iterdir() if "corrupt-" in path.name]


def test_a_spare_file_that_somebody_has_written_to_is_given_up(
    account: StorePaths, stored: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Its times may be set back, as `cp -p`, `rsync` and `tar` do."""
    for number in range(2):
        before = account.spare.stat()
        for start in starts(account.spare)[number::2]:
            rot(account.spare, start)
        os.utime(account.spare, ns=(before.st_atime_ns, before.st_mtime_ns))
        stored()
        is_right(account, 4 + number)
    assert not caplog.text  # it was not looked at


def test_a_restored_directory_s_spare_file_is_given_up(account: StorePaths, tmp_path: Path) -> None:
    """As a copy, which was made while a merge wrote, leaves it."""
    restored = StorePaths.of(tmp_path / "restored" / account.database.name)
    shutil.copytree(account.database.parent, restored.database.parent, copy_function=shutil.copy2)
    for start in starts(restored.spare):
        rot(restored.spare, start)
    journal = Journal(restored.journal)
    for number in range(3):
        write_call(journal)
        assert merge(restored.database).complete
        is_right(restored, 4 + number)
    journal.close()


def test_after_another_start_of_the_machine_a_whole_copy_is_made(
    account: StorePaths, stored: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spare_note, "_boot", lambda: "another")
    for start in starts(account.spare):
        rot(account.spare, start)
    trust(account)
    monkeypatch.setattr(spare_note, "_boot", lambda: "one more")
    stored()
    is_right(account, 4)
    assert not caplog.text


@pytest.mark.parametrize("room", [8 * 2**20, 1], ids=["at once", "a block each time"])
@pytest.mark.parametrize("which", ["spare", "database"])
def test_what_rots_on_the_disk_is_mended_from_the_other_file(
    which: str,
    room: int,
    account: StorePaths,
    stored: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing tells of it but the bytes. A small store is compared whole each time, a large one in so many merges."""
    monkeypatch.setattr(publish, "_COMPARED", room)
    rot(getattr(account, which), starts(account.spare)[STEADY])
    trust(account)
    rounds = 1 if room > 1 else STEADY + 1
    for _ in range(rounds):
        stored()
    assert "see to the disk" in caplog.text
    is_right(account, 3 + rounds)
    for _ in range(2):
        stored()
        is_right(account, whole(account)[0] - CALLS)


def test_a_database_that_was_put_there_by_hand_spoils_no_spare_file(
    account: StorePaths, stored: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was before is not the spare file of what is made from the old one."""
    monkeypatch.setattr(publish, "_COMPARED", 1)
    torn = tmp_path / "torn.duckdb"
    shutil.copy(account.database, torn)
    rot(torn, starts(torn)[STEADY])
    shutil.copy(torn, account.database)
    for number in range(4):
        stored()
        is_right(account, 4 + number)


def test_a_process_that_died_over_its_draft_leaves_nothing_that_counts(
    account: StorePaths, stored: Callable[[], None]
) -> None:
    for start in starts(account.spare):
        rot(account.spare, start)
    account.spare.rename(account.next)
    stored()
    is_right(account, 4)
    assert not account.next.exists()


def test_the_same_words_in_another_order_are_another_block(account: StorePaths, tmp_path: Path) -> None:
    """DuckDB's checksum is the same for them."""
    other = tmp_path / "other.duckdb"
    shutil.copy(account.database, other)
    data = bytearray(other.read_bytes())
    for start in starts(other):
        a, b = start + 2 * PAGE, start + 3 * PAGE
        data[a : a + 8], data[b : b + 8] = data[b : b + 8], data[a : a + 8]
    other.write_bytes(data)
    with account.database.open("rb") as source, other.open("r+b") as target:
        assert blocks.compare(source.fileno(), target.fileno(), 0, 2**30)[1] == 0
    assert other.read_bytes() == account.database.read_bytes()


def test_nothing_of_it_costs_a_whole_copy(
    account: StorePaths, stored: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two files go on taking turns as long as nobody touches them."""

    def never(*_: object) -> Iterator[None]:
        raise AssertionError("a whole copy")

    monkeypatch.setattr(publish.WorkingCopy, "_copy_whole", never)
    pair = {account.database.stat().st_ino, account.spare.stat().st_ino}
    for _ in range(3):
        stored()
        with duckdb.connect(str(account.database), read_only=True):
            stored()
        assert {account.database.stat().st_ino, account.spare.stat().st_ino} == pair
