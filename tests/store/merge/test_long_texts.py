"""A long text, as a captured prompt is, is written to a segment once; who reads a later record of its span has it all the same."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from otel_llm.conventions import semconv
from otel_llm.store.journal import record, running, segments
from otel_llm.store.journal.follow import JournalFollower
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import CHAT, USAGE, end, identity, merging, query, start, write_call

PROMPT = '[{"role":"user","parts":"' + "lorem " * 200 + '"}]'
ASKED = {semconv.INPUT_MESSAGES: PROMPT}
FIRST_CHUNK = {semconv.TIME_TO_FIRST_CHUNK: 0.5}


def begin(journal: Journal, **attributes: Any) -> dict[str, Any]:
    begun = start(ASKED | attributes)
    journal.append(begun, start_of=identity(begun))
    return begun


def update(journal: Journal, begun: dict[str, Any]) -> None:
    journal.append({**begun, "a": begun["a"] | FIRST_CHUNK}, start_of=identity(begun))


def finish(journal: Journal, begun: dict[str, Any], **attributes: Any) -> None:
    journal.append(end(begun, USAGE | FIRST_CHUNK | attributes), end_of=identity(begun))


def written(paths: StorePaths) -> list[int]:
    """How often the prompt stands in each segment."""
    return [s.path.read_bytes().count(b"lorem " * 200) for s in segments.list_segments(paths.journal)]


def rows(path: Path) -> list[tuple[Any, ...]]:
    return query(path, "SELECT status, input_messages, request_model, input_tokens FROM llm_usage ORDER BY started_at")


WHOLE = ("ok", PROMPT, "gpt-4o-mini", 1000)


def test_once(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    begun = begin(journal)
    update(journal, begun)
    finish(journal, begun)
    assert written(paths) == [1]
    assert rows(store_path) == [WHOLE]
    ((attributes,),) = query(store_path, "SELECT attributes FROM spans")
    assert record.orjson.loads(attributes) == CHAT | ASKED | FIRST_CHUNK | USAGE


def test_once_in_each_segment_that_the_call_goes_on_in(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    begun = begin(journal)
    update(journal, begun)
    journal.rotate()
    update(journal, begun)
    journal.rotate()
    finish(journal, begun)
    assert written(paths) == [1, 1, 1]
    assert rows(store_path) == [WHOLE]


@pytest.mark.parametrize("updated", [False, True])
def test_the_start_was_read_by_an_earlier_merge(updated: bool, journal: Journal, store_path: Path) -> None:
    begun = begin(journal)
    write_call(journal)
    merge(store_path)
    if updated:
        update(journal, begun)
    finish(journal, begun)
    assert WHOLE in rows(store_path)


def test_the_segment_of_the_start_is_deleted(journal: Journal, store_path: Path) -> None:
    begun = begin(journal)
    journal.rotate()
    assert merge(store_path).removed == 1
    finish(journal, begun)
    assert rows(store_path) == [WHOLE]


def test_the_end_comes_after_the_call_was_taken_for_interrupted(journal: Journal, store_path: Path) -> None:
    begun = begin(journal)
    update(journal, begun)
    journal.close()
    assert rows(store_path) == [("interrupted", PROMPT, "gpt-4o-mini", None)]
    finish(journal, begun)
    assert rows(store_path) == [WHOLE]


def test_what_is_known_of_a_call_whose_process_died(journal: Journal, store_path: Path) -> None:
    update(journal, begin(journal))
    journal.close()
    columns = "status, input_messages, request_model, time_to_first_chunk_ms"
    assert query(store_path, f"SELECT {columns} FROM llm_usage") == [("interrupted", PROMPT, "gpt-4o-mini", 500)]


def test_a_damaged_start_costs_the_text_alone(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    finish(journal, begin(journal))
    (segment,) = segments.list_segments(paths.journal)
    segment.path.write_bytes(segment.path.read_bytes().replace(b"lorem", b"LOREM", 1))
    assert merge(store_path).corrupt == 1
    assert rows(store_path) == [("ok", None, "gpt-4o-mini", 1000)]


def test_a_start_that_is_not_in_the_segment(
    journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full when it began, or when it ended; or too much runs for its start to be kept for the next segment."""
    write_call(journal)
    monkeypatch.setattr(running, "MAX_RUNNING", 2)
    full = FullDisk(monkeypatch)
    full.on = True
    ended = begin(journal)
    finish(journal, ended)
    unwritten = begin(journal)
    full.on = False
    finish(journal, unwritten)
    late = begin(journal)
    full.on = True
    finish(journal, late)
    journal.rotate()
    full.on = False
    forgotten = begin(journal)
    others = [begin(journal) for _ in range(2)]
    journal.rotate()
    for each in (*others, forgotten):
        finish(journal, each)
    assert journal.sync()
    assert rows(store_path)[1:] == [WHOLE] * 6


class FullDisk:
    """Stands for `os.write` on a disk that is full while `on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if self.on:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(fd, data)


def test_a_segment_that_was_deleted_under_its_writer(journal: Journal, store_path: Path) -> None:
    done, goes_on = begin(journal), begin(journal)
    finish(journal, done)
    assert journal.segment is not None
    journal.segment.unlink()
    journal.tend()
    finish(journal, goes_on)
    assert rows(store_path) == [WHOLE] * 2


def test_a_text_that_changes_is_written_again(journal: Journal, store_path: Path) -> None:
    other = PROMPT.replace("lorem", "ipsum")
    finish(journal, begin(journal), **{semconv.INPUT_MESSAGES: other})
    assert rows(store_path) == [("ok", other, "gpt-4o-mini", 1000)]


def test_a_text_that_is_taken_back_stays_away(journal: Journal, store_path: Path) -> None:
    begun = begin(journal)
    journal.append({**end(begun), "a": CHAT | USAGE}, end_of=identity(begun))
    assert rows(store_path) == [("ok", None, "gpt-4o-mini", 1000)]


def test_a_journal_of_version_1(store_path: Path, paths: StorePaths) -> None:
    """Each of its lines says everything."""
    done, died = start(ASKED), start(ASKED)
    entries = [
        {"k": "h", "v": 1, "w": "w", "pid": 1, "r": {}},
        done,
        {**done, "a": done["a"] | FIRST_CHUNK},
        died,
        end(done),
        {**died, "a": died["a"] | FIRST_CHUNK},
    ]
    paths.journal.mkdir(mode=0o700)
    (paths.journal / "w-000001.jsonl").write_bytes(b"".join(map(record.encode, entries)))
    assert rows(store_path) == [WHOLE, ("interrupted", PROMPT, "gpt-4o-mini", None)]


@pytest.mark.parametrize("attribute", ["m", 'a,"m":["x"]'])
def test_what_only_looks_as_if_something_were_left_out(attribute: str, journal: Journal, store_path: Path) -> None:
    write_call(journal, {"a": "x", attribute: ["x"], "b": ',"m":["x"]'})
    ((attributes,),) = query(store_path, "SELECT attributes FROM spans")
    assert record.orjson.loads(attributes)[attribute] == ["x"]


@pytest.mark.parametrize("rest", [b'"m":["a"],"a":{', b'"m":[1,["a"]],"a":[]}', b'"m":["a"],"a":7}', b'"m":["a"]}'])
@pytest.mark.parametrize("kind", [b"s", b"e"])
def test_what_no_version_of_ours_writes(kind: bytes, rest: bytes, journal: Journal, store_path: Path) -> None:
    """It costs nothing but itself."""
    call = write_call(journal)
    body = b'"k":"%b","t":"%b","s":"%b",%b' % (kind, b"a" * 32, b"b" * 16, rest)
    assert journal.segment is not None
    with journal.segment.open("ab") as file:
        for _ in range(2):
            file.write(b'{"c":"%08x",%b\n' % (crc32(body), body))
    journal.close()
    assert merge(store_path).complete
    assert query(
        store_path, f"SELECT input_tokens FROM spans JOIN llm_usage USING (span_id) WHERE span_id = '{call['s']}'"
    ) == [(1000,)]


def test_who_reads_without_a_merge(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    with JournalFollower(paths) as follower:
        begun = begin(journal)
        update(journal, begun)
        (call,) = segments.running_calls(paths.journal)
        assert call["a"] == CHAT | ASKED | FIRST_CHUNK
        finish(journal, begun)
        assert [one["a"].get(semconv.INPUT_MESSAGES) for one in follower.poll()] == [PROMPT, PROMPT]
    merge(store_path)
    with merging(paths):
        finish(journal, begin(journal))
        assert rows(store_path) == [WHOLE] * 2


def test_whatever_happens_to_the_journal_every_row_is_whole(
    store_path: Path, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(11)
    full = FullDisk(monkeypatch)
    journal = Journal(paths.journal, segment_size=20_000)
    running_calls: list[dict[str, Any]] = []
    count = 0

    def delete() -> None:
        if journal.segment is not None and not full.on:
            journal.segment.unlink()
            journal.tend()

    def fill_or_free() -> None:
        full.on = not full.on
        journal.sync()

    happenings: list[Callable[[], object]] = [journal.rotate, journal.close, journal.tend, delete, fill_or_free]
    for _ in range(600):
        what = chance.random()
        if what < 0.4:
            running_calls.append(begin(journal))
            count += 1
        elif what < 0.5 and running_calls:
            update(journal, chance.choice(running_calls))
        elif what < 0.85 and running_calls:
            finish(journal, running_calls.pop(chance.randrange(len(running_calls))))
        elif what < 0.97:
            chance.choice(happenings)()
        elif not full.on:
            merge(store_path)
    full.on = False
    for each in running_calls:
        finish(journal, each)
    journal.close()
    assert rows(store_path) == [WHOLE] * count
