from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from otel_llm.conventions import dialects, semconv
from otel_llm.store import StoreBusy, StoreError
from otel_llm.store.file import database
from otel_llm.store.journal import record, segments
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import batch, duckdb_instance, ingest
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import HOLDER, NOON, Script, count, end, identity, query, start, until, write_call


def row(path: Path, *columns: str, where: str = "true") -> dict[str, Any]:
    (values,) = query(path, f"SELECT {', '.join(columns)} FROM llm_usage WHERE {where}")
    return dict(zip(columns, values, strict=True))


# --- what a row says --------------------------------------------------------------------------------------------------


def test_every_column_of_the_contract(journal: Journal, store_path: Path) -> None:
    call = write_call(
        journal,
        USAGE_OF_ALL_KINDS
        | {
            semconv.RESPONSE_MODEL: "gpt-4o-mini-2024-07-18",
            semconv.RESPONSE_ID: "chatcmpl-1",
            semconv.REQUEST_STREAM: True,
            semconv.TIME_TO_FIRST_CHUNK: 0.125,
            semconv.FINISH_REASONS: ("stop", "length"),
            semconv.MODULE: "billing",
            semconv.USER_ID: "u",
            semconv.SESSION_ID: "s",
            semconv.CONVERSATION_ID: "c",
            semconv.REQUEST_ID: "r",
            semconv.TAG_PREFIX + "team": "blue",
            semconv.TAG_PREFIX + 'odd "key"/~': 7,
            semconv.AGENT_NAME: "agent",
            semconv.WORKFLOW_NAME: "workflow",
            semconv.PROFILE: "cheap",
            semconv.SERVER_ADDRESS: "api.openai.com",
            semconv.RECORDED_BY: "otel_llm.openai",
            semconv.ATTEMPTS: 2,
            semconv.OPENAI_RESPONSE_SERVICE_TIER: "flex",
            semconv.INPUT_MESSAGES: '[{"role":"user"}]',
            semconv.OUTPUT_MESSAGES: [{"role": "assistant"}],
            semconv.UNIT_PREFIX + "web_search_calls": 3,
            semconv.AUDIO_SECONDS: 1.5,
            semconv.UNIT_PREFIX + "nonsense": "many",
        },
    )
    with_time = query(store_path, "SELECT epoch_us(started_at), * EXCLUDE (started_at) FROM llm_usage")[0]
    names = ["started_us", *[name for (name,) in query(store_path, "SELECT column_name FROM (DESCRIBE llm_usage)")][1:]]
    assert dict(zip(names, with_time, strict=True)) == {
        "started_us": call["st"] // 1000,
        "duration_ms": 250.0,
        "time_to_first_chunk_ms": 125.0,
        "trace_id": call["t"],
        "span_id": call["s"],
        "parent_span_id": None,
        "service_name": "tests",
        "operation": "chat",
        "provider": "openai",
        "request_model": "gpt-4o-mini",
        "response_model": "gpt-4o-mini-2024-07-18",
        "response_id": "chatcmpl-1",
        "stream": True,
        "status": "ok",
        "error_type": None,
        "finish_reasons": ["stop", "length"],
        "input_tokens": 1000,
        "output_tokens": 500,
        "cache_read_tokens": 100,
        "cache_write_tokens": 0,
        "reasoning_tokens": 50,
        "audio_input_tokens": 1,
        "audio_output_tokens": 2,
        "image_input_tokens": 3,
        "image_output_tokens": 4,
        "usage_source": "reported",
        "cost_usd": with_time[names.index("cost_usd")],
        "price_source": with_time[names.index("price_source")],
        "module": "billing",
        "user_id": "u",
        "session_id": "s",
        "conversation_id": "c",
        "request_id": "r",
        "tags": {"team": "blue", 'odd "key"/~': "7"},
        "agent_name": "agent",
        "workflow_name": "workflow",
        "profile": "cheap",
        "server_address": "api.openai.com",
        "instrumentation": "otel_llm.openai",
        "attempts": 2,
        "input_messages": '[{"role":"user"}]',
        "output_messages": '[{"role":"assistant"}]',
        "service_tier": "flex",
        "error_message": None,
        "units": {"web_search_calls": 3.0, "audio_seconds": 1.5, "nonsense": None},
        "cache_write_1h_tokens": 0,
        "audio_cache_read_tokens": 1,
        "image_cache_read_tokens": 2,
        "conversation_source": None,
        "row_version": 1,
        "input_chars": None,
        "output_chars": None,
        "reasoning_chars": None,
        "commit_number": None,
    }


USAGE_OF_ALL_KINDS = {
    semconv.INPUT_TOKENS: 1000,
    semconv.OUTPUT_TOKENS: 500,
    semconv.CACHE_READ_TOKENS: 100,
    semconv.CACHE_WRITE_TOKENS: 0,
    semconv.REASONING_TOKENS: 50,
    semconv.AUDIO_INPUT_TOKENS: 1,
    semconv.AUDIO_OUTPUT_TOKENS: 2,
    semconv.IMAGE_INPUT_TOKENS: 3,
    semconv.IMAGE_OUTPUT_TOKENS: 4,
    semconv.CACHE_WRITE_1H_TOKENS: 0,
    semconv.AUDIO_CACHE_READ_TOKENS: 1,
    semconv.IMAGE_CACHE_READ_TOKENS: 2,
}


def test_what_is_not_said_is_null_and_never_zero(journal: Journal, store_path: Path) -> None:
    write_call(journal, {})
    columns = ("input_tokens", "output_tokens", "cache_read_tokens", "cost_usd", "usage_source", "tags", "attempts")
    found = row(store_path, *columns, "stream", "price_source")
    assert [found[column] for column in columns] == [None] * len(columns)
    assert found["stream"] is False and found["price_source"] == "no usage reported"


@pytest.mark.parametrize(
    ("attributes", "fields", "status", "error"),
    [
        ({}, {}, "ok", None),
        ({}, {"sts": "ERROR"}, "error", None),
        ({semconv.ERROR_TYPE: "429"}, {}, "error", "429"),
        ({semconv.STATUS: "cancelled"}, {"sts": "ERROR"}, "cancelled", None),
        ({semconv.STATUS: "nonsense"}, {}, "ok", None),
        (
            {},
            {"sts": "ERROR", "e": [{"name": "exception", "attributes": {"exception.type": "ValueError"}}]},
            "error",
            "ValueError",
        ),
    ],
)
def test_status(
    journal: Journal,
    store_path: Path,
    attributes: dict[str, Any],
    fields: dict[str, Any],
    status: str,
    error: str | None,
) -> None:
    journal.append(end(None, attributes, **fields))
    assert row(store_path, "status", "error_type") == {"status": status, "error_type": error}


@pytest.mark.parametrize("value", [-1, 10**13, 2**70, "many", True, 1e30, [1], None, float("nan")])
def test_absurd_token_counts_are_unknown(journal: Journal, store_path: Path, value: object) -> None:
    write_call(journal, {semconv.INPUT_TOKENS: value, semconv.OUTPUT_TOKENS: 5})
    assert row(store_path, "input_tokens", "output_tokens") == {"input_tokens": None, "output_tokens": 5}


@pytest.mark.parametrize("name", [semconv.INPUT_TOKENS, *dialects.ALIASES[semconv.INPUT_TOKENS]])
def test_older_names_are_read(journal: Journal, store_path: Path, name: str) -> None:
    write_call(journal, {name: 7})
    assert row(store_path, "input_tokens") == {"input_tokens": 7}


def test_a_newer_name_counts_more_than_an_older_one(journal: Journal, store_path: Path) -> None:
    write_call(journal, {"gen_ai.usage.prompt_tokens": 1, semconv.INPUT_TOKENS: 2})
    assert row(store_path, "input_tokens") == {"input_tokens": 2}


@pytest.mark.parametrize(
    ("attributes", "operation", "is_call"),
    [
        ({semconv.OPERATION: "embeddings"}, "embeddings", True),
        ({semconv.OPERATION: "something_new"}, "something_new", True),
        *[({semconv.OPERATION: name}, name, False) for name in sorted(semconv.TREE_OPERATIONS)],
        ({"openinference.span.kind": "LLM"}, "chat", True),
        ({"openinference.span.kind": "TOOL"}, "execute_tool", False),
        ({"openinference.span.kind": "RERANKER"}, "reranker", False),
        ({"openinference.span.kind": "RERANKER", "llm.model_name": "rerank-2"}, "reranker", True),
        ({"llm.request.type": "completion"}, "text_completion", True),
        ({"traceloop.span.kind": "workflow"}, "invoke_workflow", False),
        ({"gen_ai.system": "openai", semconv.REQUEST_MODEL: "m"}, None, True),
        ({"gen_ai.system": "openai"}, None, False),
        ({"http.request.method": "GET"}, None, False),
    ],
)
def test_which_spans_are_model_calls(
    journal: Journal, store_path: Path, attributes: dict[str, Any], operation: str | None, is_call: bool
) -> None:
    journal.append(end(start(), {}, a=attributes))
    assert query(store_path, "SELECT operation FROM spans") == [(operation,)]
    assert count(store_path) == int(is_call)


def test_a_clock_that_jumped_back_gives_no_duration(journal: Journal, store_path: Path) -> None:
    journal.append(end(start(), et=NOON - 10**9))
    assert row(store_path, "duration_ms", "status") == {"duration_ms": None, "status": "ok"}


def test_a_time_out_of_range_costs_no_row(journal: Journal, store_path: Path) -> None:
    journal.append(end(start(), st=2**63, f=1000))
    write_call(journal)
    assert count(store_path) == 2


def test_whole_spans_are_kept(journal: Journal, store_path: Path) -> None:
    event = {"name": "e", "time_unix_nano": NOON, "attributes": {"x": 1}}
    link = {"trace_id": "a" * 32, "span_id": "b" * 16, "attributes": {}}
    call = end(start(p="c" * 16), std="why", e=[event], l=[link])
    journal.append(call)
    columns = [name for (name,) in query(store_path, "SELECT column_name FROM (DESCRIBE spans)")]
    columns = [
        name for name in columns if name not in ("started_at", "duration_ms", "status", "operation", "service_name")
    ]
    found = dict(zip(columns, query(store_path, f"SELECT {', '.join(columns)} FROM spans")[0], strict=True))
    for name in ("attributes", "events", "links", "resource"):
        found[name] = json.loads(found[name])
    assert found == {
        "trace_id": call["t"],
        "span_id": call["s"],
        "parent_span_id": "c" * 16,
        "name": "chat gpt-4o-mini",
        "kind": "CLIENT",
        "start_ns": call["st"],
        "end_ns": call["et"],
        "status_code": "UNSET",
        "status_message": "why",
        "attributes": call["a"],
        "events": [event],
        "links": [link],
        "resource": {"service.name": "tests"},
        "scope_name": "tests.scope",
        "scope_version": "1.0",
        "trace_flags": 1,
        "commit_number": None,
    }


def test_odd_text_survives(journal: Journal, store_path: Path) -> None:
    write_call(journal, {semconv.USER_ID: 'a\x00b"\\\n\ud800ü', semconv.FINISH_REASONS: "[half"})
    assert row(store_path, "user_id", "finish_reasons") == {"user_id": 'a\x00b"\\\n?ü', "finish_reasons": ["[half"]}


def test_views(journal: Journal, store_path: Path) -> None:
    write_call(journal, {semconv.CONVERSATION_ID: "c"} | USAGE_OF_ALL_KINDS)
    tool = {semconv.OPERATION: "execute_tool", semconv.TOOL_NAME: "search"}
    journal.append(end(start(), {}, a=tool, e=[{"name": "found", "time_unix_nano": NOON, "attributes": {}}]))
    assert query(store_path, "SELECT conversation_id, calls FROM llm_conversations") == [("c", 1)]
    assert query(store_path, "SELECT tool_name, status FROM llm_tool_calls") == [("search", "ok")]
    assert query(store_path, "SELECT calls FROM llm_daily") == [(1,)]
    assert query(store_path, "SELECT event, count(*) FROM llm_events GROUP BY 1 ORDER BY 1") == [
        ("ProviderCompleted", 1),
        ("ProviderStarted", 1),
        ("ToolCompleted", 1),
        ("ToolsStarted", 1),
        ("found", 1),
    ]


# --- exactly once -----------------------------------------------------------------------------------------------------


def test_a_merge_takes_what_is_new(journal: Journal, store_path: Path) -> None:
    for expected in (1, 2, 3):
        write_call(journal)
        result = merge(store_path)
        assert result.complete and result.rows == 1
        assert count(store_path) == expected


def test_a_merge_without_news_does_not_open_the_database(
    journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    merge(store_path)
    monkeypatch.setattr(database, "attach_for_merge", lambda *_: pytest.fail("opened"))
    assert merge(store_path).complete


def test_the_instance_is_made_anew_before_it_has_grown(journal: Journal, store_path: Path) -> None:
    """Counted in instances, as memory is the system's to give and take: DuckDB's grew by a megabyte a merge."""
    instances = []
    for _ in range(30):
        write_call(journal)
        merge(store_path)
        if (instance := duckdb_instance.get()) not in instances:
            instances.append(instance)
    assert len(instances) >= 3


def test_a_span_journalled_twice_is_stored_once(journal: Journal, store_path: Path) -> None:
    call = write_call(journal)
    journal.append(call)
    merge(store_path)
    journal.append(call)
    merge(store_path)
    assert count(store_path) == count(store_path, "spans") == 1


def test_sealed_segments_are_deleted(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    for _ in range(3):
        write_call(journal)
        journal.rotate()
    result = merge(store_path)
    assert result.removed == 3
    assert [s.path for s in segments.list_segments(paths.journal)] == [journal.segment]
    journal.close()
    merge(store_path)
    assert segments.list_segments(paths.journal) == []
    assert count(store_path) == 3


def test_a_big_journal_goes_in_by_batches(journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BATCH_BYTES", 3_000)
    for _ in range(50):
        write_call(journal)
    merge(store_path)
    assert count(store_path) == 50


@pytest.mark.parametrize("step", ["price", "store"])
def test_what_fails_is_repeated_whole(
    step: str, journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    merge(store_path)
    for _ in range(5):
        write_call(journal)
    work = getattr(batch, step)

    def fail(*arguments: Any) -> None:
        work(*arguments)
        raise duckdb.OutOfMemoryException("none left")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="none left"):
        patch.setattr(batch, step, fail)
        merge(store_path)
    assert merge(store_path).rows == 5
    assert count(store_path) == count(store_path, "spans") == 6


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever lines are read into the workbench."""
    seen: list[Any] = []
    load = batch.load

    def watched(*arguments: Any) -> Any:
        seen.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(batch, "load", watched)
    return seen


def test_what_is_loaded_waits_for_the_database(
    journal: Journal, store_path: Path, script: Callable[..., Script], loads: list[Any]
) -> None:
    """While somebody writes to it, the journal is not read again and again."""
    write_call(journal)
    merge(store_path)
    for _ in range(3):
        write_call(journal)
    holder = script(HOLDER, str(store_path), "write")
    holder.line()
    loads.clear()
    for _ in range(3):
        assert not merge(store_path, timeout=0.01).complete
    assert len(loads) == 1
    holder.say()
    holder.finish()
    write_call(journal)  # after what is loaded
    assert merge(store_path).rows == 4
    assert len(loads) == 2


MERGER = """
import sys
from otel_llm.store.merge.ingest import merge
print(merge(sys.argv[1]).rows, flush=True)
"""


def test_what_another_process_took_meanwhile_is_not_stored_again(
    journal: Journal, store_path: Path, script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch, loads: list[Any]
) -> None:
    write_call(journal)
    merge(store_path)
    write_call(journal)

    def busy(*_: object) -> None:
        raise StoreBusy("held")

    with monkeypatch.context() as patch:
        patch.setattr(ingest.duckdb_instance, "attached", busy)
        assert not merge(store_path, timeout=0).complete
    assert script(MERGER, str(store_path)).line() == "1"
    write_call(journal)
    assert merge(store_path).rows == 1
    assert count(store_path) == count(store_path, "spans") == 3


def test_the_database_is_believed_not_the_note(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    """What somebody has deleted does not come back because the note of the last merge says less than the database."""
    write_call(journal)
    merge(store_path)
    with duckdb.connect(str(store_path)) as connection:
        connection.execute("DELETE FROM llm_usage; DELETE FROM spans")
    paths.merged.write_text(json.dumps({"database": ingest._identity(paths), "segments": {}}))
    write_call(journal)
    assert merge(store_path).rows == 1
    assert count(store_path) == 1


def test_what_is_loaded_for_one_store_does_not_go_into_another(
    journal: Journal, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)

    def busy(*_: object) -> None:
        raise StoreBusy("held")

    with monkeypatch.context() as patch:
        patch.setattr(ingest.duckdb_instance, "attached", busy)
        merge(store_path, timeout=0)
    other = Journal(StorePaths.of(tmp_path / "other.duckdb").journal)
    write_call(other)
    other.close()
    merge(tmp_path / "other.duckdb")
    merge(store_path)
    assert count(store_path) == count(tmp_path / "other.duckdb") == 1


def test_two_writers_and_one_resource_each(store_path: Path, paths: StorePaths) -> None:
    journals = [Journal(paths.journal) for _ in range(2)]
    for number, journal in enumerate(journals):
        journal.resource = {"service.name": f"service-{number}"}
        write_call(journal)
        merge(store_path)
        write_call(journal)  # read from an offset: the header is behind it
    write_call(journals[0], r={"service.name": "other"})
    assert query(store_path, "SELECT service_name, count(*) FROM llm_usage GROUP BY 1 ORDER BY 1") == [
        ("other", 1),
        ("service-0", 2),
        ("service-1", 2),
    ]
    for journal in journals:
        journal.close()


def test_private_files(journal: Journal, paths: StorePaths) -> None:
    write_call(journal)
    merge(paths.database)
    for path in (paths.database, paths.lock, paths.merged):
        assert path.stat().st_mode & 0o077 == 0


def test_the_file_can_be_read_by_duckdb_1_5(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    ((tags,),) = query(store_path, "SELECT tags FROM duckdb_databases() WHERE database_name = current_database()")
    if database._version(duckdb.__version__) >= (2,):
        assert tags["storage_version"].startswith("v1.5.0")


# --- one look at the journals -----------------------------------------------------------------------------------------


class Looks:
    """Counts what is asked of the file system about the journal folder `directory` and its segments."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scans = self.opens = self.probes = 0
        self._directory = directory
        self._opened: set[int] = set()
        monkeypatch.setattr(os, "scandir", partial(self._scandir, os.scandir))
        monkeypatch.setattr(os, "open", partial(self._open, os.open))
        monkeypatch.setattr(fcntl, "flock", partial(self._flock, fcntl.flock))

    def _scandir(self, scandir: Callable[..., Any], path: Any = ".") -> Any:
        self.scans += Path(path) == self._directory if isinstance(path, str | os.PathLike) else False
        return scandir(path)

    def _open(self, open_file: Callable[..., int], path: Any, *more: Any, **named: Any) -> int:
        fd = open_file(path, *more, **named)
        is_segment = str(path).endswith(".jsonl") and Path(path).parent == self._directory
        self.opens += is_segment
        # A number is used again: other stores' threads may be at work in this process.
        (self._opened.add if is_segment else self._opened.discard)(fd)
        return fd

    def _flock(self, flock: Callable[..., None], fd: int, operation: int) -> None:
        self.probes += operation == fcntl.LOCK_SH | fcntl.LOCK_NB and fd in self._opened
        flock(fd, operation)

    def counted(self) -> tuple[int, int, int]:
        found = self.scans, self.opens, self.probes
        self.scans = self.opens = self.probes = 0
        return found


def test_one_look_at_the_journals_per_merge(
    store_path: Path, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals = [Journal(paths.journal) for _ in range(4)]
    for journal in journals:
        write_call(journal)
    merge(store_path)
    looks = Looks(paths.journal, monkeypatch)
    for journal in journals:
        write_call(journal)
    assert merge(store_path).rows == 4
    assert looks.counted() == (1, 4, 4)
    write_call(journals[0])
    assert merge(store_path).rows == 1
    assert looks.counted() == (1, 4, 4)
    assert merge(store_path).complete  # nothing new: is anybody dead?
    assert looks.counted() == (1, 4, 4)
    for journal in journals:
        journal.close()


def test_a_segment_that_appears_during_a_merge_waits_for_the_next(
    journal: Journal, store_path: Path, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    journal.append(running, start_of=identity(running))
    write_call(journal)
    load = batch.load

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(batch, "load", load)
        journal.rotate()
        write_call(journal)
        return load(*arguments)

    monkeypatch.setattr(batch, "load", meanwhile)
    result = merge(store_path)
    assert (result.complete, result.rows, result.interrupted, result.removed) == (True, 1, 0, 0)
    assert len(segments.list_segments(paths.journal)) == 2
    result = merge(store_path)
    assert (result.complete, result.rows, result.interrupted, result.removed) == (True, 1, 0, 1)


def test_a_writer_that_goes_on_to_its_next_segment_after_the_look_is_not_dead(
    journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    journal.append(running, start_of=identity(running))
    write_call(journal)
    plan = ingest.plan

    def after_rotation(*arguments: Any) -> Any:
        monkeypatch.setattr(ingest, "plan", plan)
        journal.rotate()
        return plan(*arguments)

    merge(store_path)
    write_call(journal)
    monkeypatch.setattr(ingest, "plan", after_rotation)
    result = merge(store_path)
    assert (result.rows, result.interrupted, result.removed) == (1, 0, 1)
    journal.append(end(running), end_of=identity(running))
    assert query(store_path, "SELECT DISTINCT status FROM spans") == [("ok",)]


def test_another_merge_after_the_look_calls_for_another_look(
    journal: Journal, store_path: Path, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it took of a segment that this one has not seen must not be forgotten: it would be taken again."""
    write_call(journal)
    merge(store_path)
    write_call(journal)
    other = Journal(paths.journal)
    in_turn = ingest._in_turn

    def after_another(*arguments: Any) -> bool:
        monkeypatch.setattr(ingest, "_in_turn", in_turn)
        write_call(other)
        assert merge(store_path).rows == 2
        write_call(other)
        return in_turn(*arguments)

    monkeypatch.setattr(ingest, "_in_turn", after_another)
    assert merge(store_path).rows == 1
    with duckdb.connect(str(store_path), read_only=True) as connection:
        known = set(ingest.read_offsets(connection))
    assert known == {segment.name for segment in segments.list_segments(paths.journal)}
    other.close()


# --- calls that never end ---------------------------------------------------------------------------------------------


def test_a_running_call_is_not_interrupted(journal: Journal, store_path: Path) -> None:
    begin = start()
    journal.append(begin, start_of=identity(begin))
    write_call(journal)
    assert merge(store_path).interrupted == 0
    assert count(store_path) == 1


def test_a_dead_writer_s_call_is_interrupted_once(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    begin = start({semconv.USER_ID: "u", semconv.REQUEST_STREAM: True})
    journal.append(begin, start_of=identity(begin))
    journal.rotate()
    write_call(journal)
    journal.close()  # as if the process had died: nothing holds the segment
    assert merge(store_path).interrupted == 1
    columns = "status", "duration_ms", "input_tokens", "cost_usd", "user_id", "request_model", "stream", "service_name"
    assert list(row(store_path, *columns, where="status = 'interrupted'").values()) == [
        "interrupted", None, None, None, "u", "gpt-4o-mini", True, "tests",
    ]  # fmt: skip
    assert count(store_path) == 2 and segments.list_segments(paths.journal) == []


def test_a_late_end_replaces_the_interruption(journal: Journal, store_path: Path) -> None:
    begin = start()
    journal.append(begin, start_of=identity(begin))
    journal.close()
    merge(store_path)
    assert row(store_path, "status") == {"status": "interrupted"}
    journal.append(end(begin), end_of=identity(begin))
    merge(store_path)
    assert row(store_path, "status", "input_tokens") == {"status": "ok", "input_tokens": 1000}
    assert query(store_path, "SELECT status FROM spans") == [("ok",)]


CALLER = """
import os, random, sys, time
from pathlib import Path
from otel_llm.store.journal.writer import Journal
journal = Journal(Path(sys.argv[1]), segment_size=20_000)
seed = int(sys.argv[2])
generator = random.Random(seed)
number = 0
out = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
running = []
print("ready", flush=True)
while True:
    number += 1
    span = (seed << 32) + number
    record = {"k": "s", "t": f"{span:032x}", "s": f"{span:016x}", "n": "chat", "kd": "CLIENT", "f": 1,
              "st": 1_763_640_000 * 10**9 + number * 10**6,
              "a": {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "x": "y" * generator.randrange(300)}}
    journal.append(record, start_of=span)
    os.write(out, b"s%016x\\n" % span)
    running.append(record)
    if len(running) > 5:
        done = running.pop(generator.randrange(len(running)))
        journal.append({**done, "k": "e", "et": done["st"] + 10**6, "sts": "OK"}, end_of=int(done["s"], 16))
        os.write(out, b"e%s\\n" % done["s"].encode())
"""


def test_kill_9_loses_nothing_that_had_ended(
    store_path: Path, paths: StorePaths, tmp_path: Path, script: Callable[..., Script]
) -> None:
    """Processes that call all the while are killed at random moments while others merge."""
    chance = random.Random(7)
    logs = []
    stop = threading.Event()

    def keep_merging() -> None:
        while not stop.wait(0.02):
            merge(store_path)

    merger = threading.Thread(target=keep_merging)
    merger.start()
    try:
        for generation in range(4):
            processes = []
            for number in range(2):
                seed = generation * 2 + number + 1
                logs.append(tmp_path / f"{seed}.log")
                processes.append(script(CALLER, str(paths.journal), str(seed), str(logs[-1])))
            for process in processes:
                process.line()
            for process, log in zip(processes, logs[-2:], strict=True):
                size = chance.randrange(2_000, 40_000)
                until(lambda log=log, size=size: log.exists() and log.stat().st_size > size, "calls to be made")
                process.kill()
    finally:
        stop.set()
        merger.join()
    merge(store_path)
    stored = dict(query(store_path, "SELECT span_id, status FROM llm_usage"))
    assert count(store_path) == count(store_path, "spans") == len(stored)
    for log in logs:
        # Two calls of a process may be one write ahead of the log: the one that began and the one that ended last.
        said = log.read_text().split()
        began = {line[1:] for line in said if line[0] == "s"}
        ended = {line[1:] for line in said if line[0] == "e"}
        assert {span for span in ended if stored.get(span) != "ok"} == set()
        running = began - ended
        assert all(stored[span] in ("interrupted", "ok") for span in running)
        assert sum(stored[span] == "ok" for span in running) <= 1
        ours = {span for span in stored if span[:8] == f"{int(log.stem):08x}"}
        assert len(ours - began) <= 1
    assert segments.list_segments(paths.journal) == []
    assert not paths.corrupt.exists() or sum(len(f.read_bytes()) for f in paths.corrupt.iterdir()) < 8 * 1000


def test_a_merger_that_is_killed_repeats_nothing(
    journal: Journal, store_path: Path, script: Callable[..., Script]
) -> None:
    text = """
import sys
from otel_llm.store.merge.ingest import merge
print("ready", flush=True)
while True:
    merge(sys.argv[1])
"""
    written = 0
    chance = random.Random(3)
    for _ in range(4):
        process = script(text, str(store_path))
        process.line()
        for _ in range(chance.randrange(20, 200)):
            write_call(journal)
            written += 1
        until(lambda: journal.position and ingest._read_note(StorePaths.of(store_path)), "a first merge")
        process.kill()
    merge(store_path)
    assert count(store_path) == count(store_path, "spans") == written


def _calls(directory: Path, process: int, number: int) -> None:
    journal = Journal(directory, segment_size=50_000)
    for call in range(number):
        write_call(journal, number=process * 10**6 + call)
        if call % 50 == 0:
            merge(StorePaths.of(str(directory).removesuffix(".journal")).database, timeout=0.05)
    journal.close()


def test_many_processes_write_and_merge_one_store(store_path: Path, paths: StorePaths) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_calls, args=(paths.journal, number, 300)) for number in range(1, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    merge(store_path)
    assert count(store_path) == count(store_path, "spans") == 1200


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_line_is_skipped_counted_and_put_aside(
    journal: Journal, store_path: Path, paths: StorePaths, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        write_call(journal)
    segment = journal.segment
    assert segment is not None
    journal.close()
    content = bytearray(segment.read_bytes())
    lines = content.split(b"\n")
    lines[4] = lines[4].replace(b"chat", b"chit")
    segment.write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING, "otel_llm"):
        result = merge(store_path)
    assert result.corrupt == 1 and result.complete
    assert (paths.corrupt / segment.name).read_bytes() == bytes(lines[4]) + b"\n"
    assert str(paths.corrupt / segment.name) in caplog.text
    # The end was damaged, its start was not: the call is known, its outcome is not.
    assert query(store_path, "SELECT status, count(*) FROM llm_usage GROUP BY 1 ORDER BY 1") == [
        ("interrupted", 1),
        ("ok", 2),
    ]


def test_a_line_that_the_database_refuses_does_not_stop_the_rest(
    journal: Journal, store_path: Path, paths: StorePaths
) -> None:
    for _ in range(5):
        write_call(journal)
    # Intact by its checksum, and no JSON: as a foreign writer, or a bug of ours, might leave it.
    assert journal.segment is not None
    body = b'"k":"e","t":"' + b"f" * 32 + b'","s":"' + b"f" * 16 + b'","st":1,"a":{not json}}'
    with journal.segment.open("ab") as file:
        file.write(b'{"c":"%08x",%b\n' % (zlib.crc32(body), body))
    write_call(journal)
    result = merge(store_path)
    assert (result.rows, result.corrupt, result.complete) == (6, 1, True)
    assert count(store_path) == 6


@pytest.mark.parametrize("damage", ["header", "middle", "truncated", "text"])
def test_a_damaged_database_is_moved_aside(
    journal: Journal, store_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2000):
        write_call(journal)
    merge(store_path)
    content = bytearray(store_path.read_bytes())
    match damage:
        case "header":
            content[4100:4200] = bytes(100)
            content[8200:8300] = bytes(100)
        case "middle":
            for position in range(12288, len(content), 4096):
                content[position + 100] ^= 0xFF
        case "truncated":
            del content[20_000:]
        case "text":
            content[:] = b"this was no accident" * 1000
    store_path.unlink()
    store_path.write_bytes(content)
    write_call(journal)
    ingest_paths = StorePaths.of(store_path)
    with caplog.at_level(logging.ERROR, "otel_llm"):
        for _ in range(3):
            try:
                if merge(store_path).complete:
                    break
            except StoreError:
                continue
    # Everything is still in the journal's live segment.
    assert count(store_path) == 2001
    aside = [path for path in store_path.parent.iterdir() if ".corrupt-" in path.name]
    assert aside and "moved to" in caplog.text
    assert segments.list_segments(ingest_paths.journal)


def test_a_damaged_wal_is_moved_aside(journal: Journal, store_path: Path, paths: StorePaths) -> None:
    write_call(journal)
    merge(store_path)
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import duckdb, os; c = duckdb.connect({str(store_path)!r}); c.execute('PRAGMA disable_checkpoint_on_shutdown');"
            "c.execute('CREATE TABLE t AS SELECT range i FROM range(5000)'); os._exit(0)",
        ],
        check=True,
    )
    wal = bytearray(paths.wal.read_bytes())
    wal[200] ^= 0xFF
    paths.wal.write_bytes(wal)
    write_call(journal)
    assert merge(store_path).complete
    assert count(store_path) == 2
    assert [path for path in store_path.parent.iterdir() if path.name.endswith(".wal") and "corrupt" in path.name]


def test_a_file_that_was_never_a_store_is_left_alone(journal: Journal, store_path: Path) -> None:
    store_path.write_text("my precious notes" * 100)
    write_call(journal)
    with pytest.raises(StoreError, match="not a valid DuckDB database"):
        merge(store_path)
    assert store_path.read_text().startswith("my precious notes")


def test_an_empty_placeholder_becomes_the_store(journal: Journal, store_path: Path) -> None:
    store_path.touch()
    write_call(journal)
    assert merge(store_path).complete and count(store_path) == 1


def test_a_deleted_database_is_made_again_from_what_the_journal_holds(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    merge(store_path)
    store_path.unlink()
    write_call(journal)
    merge(store_path)
    assert count(store_path) == 2


def test_a_database_of_a_newer_version_is_written_all_the_same(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    merge(store_path)
    with duckdb.connect(str(store_path)) as connection:
        connection.execute("ALTER TABLE llm_usage ADD COLUMN new_column VARCHAR")
        connection.execute("INSERT INTO schema_version VALUES (99, now())")
    write_call(journal)
    assert merge(store_path).complete and count(store_path) == 2


# --- held by others ---------------------------------------------------------------------------------------------------


def test_a_database_that_another_process_writes_is_waited_for(
    journal: Journal, store_path: Path, script: Callable[..., Script]
) -> None:
    write_call(journal)
    merge(store_path)
    holder = script(HOLDER, str(store_path), "write")
    holder.line()
    write_call(journal)
    result = merge(store_path, timeout=0.1)
    assert not result.complete and result.reason is not None and str(holder.process.pid) in result.reason
    holder.say()
    assert merge(store_path, timeout=30).complete
    assert count(store_path) == 2


def test_one_merge_at_a_time(
    journal: Journal, store_path: Path, paths: StorePaths, script: Callable[..., Script]
) -> None:
    write_call(journal)
    holder = script(
        """
import sys, time
from pathlib import Path
from otel_llm.store.journal import locks
with locks.exclusive(Path(sys.argv[1]), 0):
    print("held", flush=True)
    sys.stdin.readline()
""",
        str(paths.lock),
    )
    holder.line()
    result = merge(store_path, timeout=0.05)
    assert not result.complete and "another process" in str(result.reason)
    holder.kill()  # the dead keep no lock
    assert merge(store_path).complete and count(store_path) == 1


def test_costs_add_up_exactly(journal: Journal, store_path: Path) -> None:
    for _ in range(100):
        write_call(journal, {semconv.INPUT_TOKENS: 1, semconv.OUTPUT_TOKENS: 1})
    ((total, source),) = query(store_path, "SELECT sum(cost_usd), any_value(price_source) FROM llm_usage")
    assert isinstance(total, Decimal) and total > 0 and source.startswith("genai-prices ")


def test_what_a_failed_call_said(journal: Journal, store_path: Path) -> None:
    """The journal has it where content is captured."""
    begun = start(a={semconv.OPERATION: "chat"})
    journal.append(end(begun, {semconv.ERROR_TYPE: "429"}, sts="ERROR", std="Too many."), end_of=2)
    assert merge(store_path).complete
    assert query(store_path, "SELECT status, error_message FROM llm_usage") == [("error", "Too many.")]
    assert query(store_path, "SELECT status_message FROM spans") == [("Too many.",)]


def test_a_line_written_by_hand_needs_only_the_documented_fields(store_path: Path, paths: StorePaths) -> None:
    paths.journal.mkdir()
    line = record.encode({"k": "e", "t": "1" * 32, "s": "2" * 16, "st": NOON, "a": {semconv.OPERATION: "chat"}})
    (paths.journal / "other-000001.jsonl").write_bytes(line)
    assert merge(store_path).complete
    assert row(store_path, "operation", "status", "service_name") == {
        "operation": "chat",
        "status": "ok",
        "service_name": None,
    }
