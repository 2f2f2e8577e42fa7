from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm.store.journal import record, segments
from otel_llm.store.journal.segments import Segment
from otel_llm.store.journal.writer import Journal
from tests.store.conftest import end, identity, start, write_call


def _segment(data: bytes, directory: str) -> Segment:
    path = Path(directory) / "writer-000001.jsonl"
    path.write_bytes(data)
    return Segment("writer", 1, path)


def _journal_bytes(calls: int) -> tuple[bytes, list[bytes]]:
    header = record.encode({"k": "h", "v": 1, "w": "writer", "pid": 1, "r": {}})
    ends = [record.encode(end(start(number=number + 1))) for number in range(calls)]
    return header + b"".join(ends), [line[:-1] for line in ends]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_torn_journal_keeps_every_whole_line(data: st.DataObject) -> None:
    whole, ends = _journal_bytes(5)
    cut = data.draw(st.integers(0, len(whole)))
    with tempfile.TemporaryDirectory() as directory:
        segment = _segment(whole[:cut], directory)
        live = segments.read_chunk(segment, 0, 2**20, live=True)
        dead = segments.read_chunk(segment, 0, 2**20, live=False)
    kept = [line for line in ends if line + b"\n" in whole[:cut]]
    assert live.ends == kept
    assert live.corrupt == [] and live.next == whole[:cut].rfind(b"\n") + 1
    # A line whose newline alone is missing is whole.
    assert dead.ends[: len(kept)] == kept and dead.next == cut and dead.at_end
    torn = whole[:cut].rpartition(b"\n")[2]
    assert dead.corrupt == ([] if not torn or record.is_intact(torn) else [torn])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_byte_costs_at_most_the_lines_it_touches(data: st.DataObject) -> None:
    whole, ends = _journal_bytes(5)
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as directory:
        chunk = segments.read_chunk(_segment(bytes(flipped), directory), 0, 2**20, live=False)
    assert set(chunk.ends) <= set(ends) | {line for line in chunk.ends if line.lower() in {e.lower() for e in ends}}
    assert len(chunk.ends) >= len(ends) - 2  # a newline that is gone joins two lines
    assert chunk.next == len(whole)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000))
def test_chunks_of_any_size_read_every_line_once(limit: int) -> None:
    whole, ends = _journal_bytes(5)
    with tempfile.TemporaryDirectory() as directory:
        segment = _segment(whole, directory)
        read: list[bytes] = []
        offset = 0
        while True:
            chunk = segments.read_chunk(segment, offset, limit, live=True)
            assert chunk.header == whole.partition(b"\n")[0]
            read += chunk.ends
            if chunk.next == offset:
                break
            offset = chunk.next
            if chunk.at_end:
                break
    assert read == ends


def test_running_calls_of_living_processes(journal: Journal) -> None:
    assert segments.running_calls(journal.directory) == []
    write_call(journal)
    slow = start()
    journal.append(slow, start_of=identity(slow))
    journal.rotate()
    (call,) = segments.running_calls(journal.directory)
    assert call["s"] == slow["s"] and call["st"] == slow["st"] and isinstance(call["pid"], int)
    journal.append(end(slow), end_of=identity(slow))
    assert segments.running_calls(journal.directory) == []


def test_strange_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "x.jsonl", ".a-000001.jsonl.tmp", "a-b.jsonl", "merged.json"):
        (tmp_path / name).write_text("{}")
    assert segments.list_segments(tmp_path) == []
