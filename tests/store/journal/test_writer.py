from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_llm.store.journal import record, segments, unwritten
from otel_llm.store.journal import running as running_module
from otel_llm.store.journal import writer as journal_module
from otel_llm.store.journal.writer import Journal
from tests.store.conftest import Script, end, identity, start, until, write_call


def lines(directory: Path, kind: bytes = b"se") -> list[dict[str, object]]:
    found = []
    for segment in segments.list_segments(directory):
        for line in segment.path.read_bytes().split(b"\n"):
            if record.is_intact(line) and record.kind(line) in kind:
                found.append(record.decode(line))
    return found


def ended(directory: Path) -> list[str]:
    return [str(line["s"]) for line in lines(directory, b"e")]


def test_nothing_is_made_before_the_first_record(journal: Journal) -> None:
    assert not journal.directory.exists()
    write_call(journal)
    assert len(segments.list_segments(journal.directory)) == 1


def test_files_are_private(journal: Journal) -> None:
    write_call(journal)
    assert stat.S_IMODE(journal.directory.stat().st_mode) == 0o700
    assert journal.segment is not None
    assert stat.S_IMODE(journal.segment.stat().st_mode) == 0o600


def test_a_segment_begins_with_its_header(journal: Journal) -> None:
    write_call(journal)
    assert journal.segment is not None
    first = journal.segment.read_bytes().partition(b"\n")[0]
    header = record.decode(first)
    assert record.kind(first) == b"h"
    assert (
        header["pid"] == os.getpid()
        and header["r"] == {"service.name": "tests"}
        and header["v"] == journal_module.FORMAT_VERSION
    )


def test_rotation_carries_over_what_runs(journal: Journal) -> None:
    running = start()
    journal.append(running, start_of=identity(running))
    finished = write_call(journal)
    first = journal.segment
    journal.rotate()
    assert journal.segment is not None and first is not None and journal.segment != first
    _, unfinished = segments.unfinished(segments.list_segments(journal.directory)[-1])
    assert [record.decode(line)["s"] for line in unfinished] == [running["s"]]
    journal.append(end(running), end_of=identity(running))
    _, unfinished = segments.unfinished(segments.list_segments(journal.directory)[-1])
    assert unfinished == []
    assert ended(journal.directory) == [finished["s"], running["s"]]


def test_rotation_by_size(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", segment_size=5_000)
    calls = [write_call(journal)["s"] for _ in range(50)]
    journal.close()
    sizes = [segment.path.stat().st_size for segment in segments.list_segments(journal.directory)]
    assert len(sizes) > 3 and max(sizes) < 7_000
    assert ended(journal.directory) == calls


def test_rotation_by_age_leaves_an_idle_segment_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", segment_age=0.0)
    running = start()
    journal.append(running, start_of=identity(running))
    for _ in range(3):
        journal.tend()
    assert len(segments.list_segments(journal.directory)) <= 2
    journal.close()


def test_the_living_are_told_from_the_dead(journal: Journal) -> None:
    write_call(journal)
    (segment,) = segments.list_segments(journal.directory)
    assert segments.is_live(segment)
    journal.close()
    assert not segments.is_live(segment)


def test_a_record_after_close_begins_a_new_segment(journal: Journal) -> None:
    first = write_call(journal)
    journal.close()
    second = write_call(journal)
    assert ended(journal.directory) == [first["s"], second["s"]]
    assert len(segments.list_segments(journal.directory)) == 2


def test_an_empty_segment_does_not_stay(journal: Journal) -> None:
    write_call(journal)
    journal.rotate()
    journal.close()
    assert len(segments.list_segments(journal.directory)) == 1


def test_many_threads(journal: Journal) -> None:
    journal.segment_size = 20_000
    calls: list[str] = []

    def work() -> None:
        for _ in range(200):
            calls.append(write_call(journal)["s"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert sorted(ended(journal.directory)) == sorted(calls)
    assert all(
        record.is_intact(line)
        for s in segments.list_segments(journal.directory)
        for line in s.path.read_bytes().split(b"\n")[:-1]
    )


def test_a_signal_handler_may_write_in_the_middle_of_a_write(journal: Journal) -> None:
    journal.segment_size = 3_000  # so that rotations are interrupted as well
    calls: list[str] = []
    previous = signal.signal(signal.SIGALRM, lambda *_: calls.append(write_call(journal)["s"]))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        for _ in range(2_000):
            calls.append(write_call(journal)["s"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert journal.sync()
    assert sorted(ended(journal.directory)) == sorted(calls)


def test_a_forked_child_writes_its_own_file(journal: Journal) -> None:
    running = start()
    journal.append(running, start_of=identity(running))
    theirs = start()
    pid = os.fork()
    if pid == 0:
        try:
            journal.append(end(theirs), end_of=identity(theirs))
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    journal.append(end(running), end_of=identity(running))
    found = segments.list_segments(journal.directory)
    assert len({segment.writer for segment in found}) == 2
    assert sorted(ended(journal.directory)) == sorted([running["s"], theirs["s"]])
    # The child's calls are not the parent's: nothing of the parent's runs in the child.
    for segment in found:
        assert segments.unfinished(segment)[1] == []


def test_a_child_does_not_keep_its_parent_alive(journal: Journal, script: Callable[..., Script]) -> None:
    process = script(
        """
import os, sys, time
from pathlib import Path
from typing import Any
from otel_llm.store.journal.writer import Journal
journal = Journal(Path(sys.argv[1]))
journal.append({"k": "s", "t": "1" * 32, "s": "1" * 16, "st": 1}, start_of=1)
pid = os.fork()
if pid:
    print(pid, flush=True)
time.sleep(60)
""",
        str(journal.directory),
    )
    child = int(process.line())
    try:
        (segment,) = segments.list_segments(journal.directory)
        assert segments.is_live(segment)
        process.process.kill()
        process.process.wait()
        until(lambda: not segments.is_live(segment), "the child to let go")
        os.kill(child, 0)  # it lives on
    finally:
        os.kill(child, signal.SIGKILL)


class FullDisk:
    """Stands for `os.write` on a disk that is full until `free` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, partial: int = 0) -> None:
        self.free = False
        self.partial = partial
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if self.free:
            return self._write(fd, data)
        if self.partial:
            written, self.partial = self._write(fd, bytes(data)[: self.partial]), 0
            return written
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_nothing_that_memory_can_hold(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [write_call(journal)["s"]]
    disk = FullDisk(monkeypatch)
    with caplog.at_level(logging.WARNING, "otel_llm"):
        calls += [write_call(journal)["s"] for _ in range(20)]
    assert len(caplog.records) == 1
    assert str(journal.directory) in caplog.text and "OTEL_LLM_STORE" in caplog.text
    assert journal.waiting == 20 and journal.dropped == 0 and ended(journal.directory) == calls[:1]
    running = start()
    journal.append(running, start_of=identity(running))
    disk.free = True
    assert journal.sync()
    assert ended(journal.directory) == calls and journal.waiting == 0
    _, unfinished = segments.unfinished(segments.list_segments(journal.directory)[0])
    assert [record.decode(line)["s"] for line in unfinished] == [running["s"]]


def test_memory_is_bounded_and_the_loss_counted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwritten, "MAX_BYTES", 5_000)
    disk = FullDisk(monkeypatch)
    calls = [write_call(journal)["s"] for _ in range(50)]
    disk.free = True
    assert journal.sync()
    kept = ended(journal.directory)
    assert kept == calls[-len(kept) :] and len(kept) + journal.dropped == 50 and journal.dropped > 0


def test_a_short_write_is_completed_or_seen(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_call(journal)
    disk = FullDisk(monkeypatch, partial=40)
    second = write_call(journal)
    disk.free = True
    third = write_call(journal)
    assert journal.sync()
    assert ended(journal.directory) == [first["s"], second["s"], third["s"]]
    (segment,) = segments.list_segments(journal.directory)
    chunk = segments.read_chunk(segment, 0, 2**20, live=True)
    assert len(chunk.ends) == 3 and len(chunk.corrupt) == 1


def test_a_directory_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    journal = Journal(blocker / "j")
    with caplog.at_level(logging.WARNING, "otel_llm"):
        call = write_call(journal)
        write_call(journal)
    assert len(caplog.records) == 1 and journal.waiting == 2
    blocker.unlink()
    assert journal.sync()
    assert ended(journal.directory)[0] == call["s"]
    journal.close()


def test_a_segment_deleted_under_us_is_written_again(journal: Journal) -> None:
    calls = [write_call(journal)["s"] for _ in range(3)]
    running = start()
    journal.append(running, start_of=identity(running))
    assert journal.segment is not None
    journal.segment.unlink()
    journal.tend()
    assert ended(journal.directory) == calls
    journal.append(end(running), end_of=identity(running))
    assert ended(journal.directory) == [*calls, running["s"]]


def test_spans_that_never_end_do_not_fill_the_memory(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "MAX_RUNNING", 10)
    for _ in range(100):
        begin = start()
        journal.append(begin, start_of=identity(begin))
    assert len(journal._running) == 10


@pytest.mark.parametrize("policy", ["none", "interval", "always"])
def test_fsync_policies(tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    journal = Journal(tmp_path / "j", fsync=policy)  # type: ignore[arg-type]
    write_call(journal)
    write_call(journal)
    after_writing = len(synced)
    journal.tend()
    assert (after_writing > 0) == (policy == "always")
    assert (len(synced) > after_writing) == (policy == "interval")
    journal.close()


# --- whole lines, for who answers for them ----------------------------------------------------------------------------
def lines_of(*ends: dict[str, Any]) -> bytes:
    return b"".join(map(record.encode, ends))


def test_whole_lines_are_there_when_it_returns(journal: Journal) -> None:
    journal.append_whole(lines_of(end(), end()), 2)
    write_call(journal)
    journal.append_whole(lines_of(end()), 1)
    assert journal.segment is not None
    chunk = segments.read_chunk(segments.list_segments(journal.directory)[0], 0, 2**20, live=True)
    assert (len(chunk.ends), chunk.corrupt, journal.records) == (4, [], 5)


def test_whole_lines_rotate(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", segment_size=2_000)
    for _ in range(5):
        journal.append_whole(lines_of(end(), end(), end()), 3)
    found = segments.list_segments(journal.directory)
    assert len(found) > 2
    assert sum(len(segments.read_chunk(one, 0, 2**20, live=True).ends) for one in found) == 15
    journal.close()


def test_whole_lines_that_cannot_be_written_are_not_kept(tmp_path: Path) -> None:
    """Whoever sent them keeps them. What else waits in memory is written before the next."""
    folder = tmp_path / "journal"
    folder.write_text("in the way")
    journal = Journal(folder)
    with pytest.raises(OSError):
        journal.append_whole(lines_of(end()), 1)
    assert (journal.waiting, journal.records) == (0, 0)
    write_call(journal)
    assert journal.waiting == 1
    folder.unlink()
    journal.append_whole(lines_of(end()), 1)
    assert journal.waiting == 0
    (segment,) = segments.list_segments(folder)
    assert len(segments.read_chunk(segment, 0, 2**20, live=True).ends) == 2
    journal.close()


def test_whole_lines_are_on_disk_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    journal = Journal(tmp_path / "journal", fsync="always")
    journal.append_whole(lines_of(end(), end()), 2)
    assert journal.segment is not None
    assert synced[-1] == journal.segment.stat().st_size

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="broken"):
        journal.append_whole(lines_of(end()), 1)
