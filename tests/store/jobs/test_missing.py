"""What is missing at an OTLP endpoint: what the journals say of it, and what is sent of it. Real processes are for
tests/integration/test_missing.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from otel_llm.store import StoreBusy, StoreError
from otel_llm.store.jobs import exclusive, missing, replaying, retention
from otel_llm.store.jobs.replaying import BackendError, Outcome, Selection
from otel_llm.store.journal import locks
from otel_llm.store.journal.record import acknowledgement
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import pending
from otel_llm.store.merge.ingest import MergeResult, merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import NOON, end, identity, query, start, write_call
from tests.store.jobs.test_replay import TARGET, Backend, backend

__all__ = ["backend"]

TO = {"o": TARGET.name}


def arrive(journal: Journal, *calls: dict[str, Any], endpoint: str = TARGET.name) -> None:
    journal.append(acknowledgement(endpoint, [(int(call["t"], 16), int(call["s"], 16)) for call in calls]))


def send(paths: StorePaths, **selection: Any) -> Outcome:
    return missing.send(paths, TARGET, Selection(**selection), timeout=0.0)


def left(store_path: Path) -> list[str]:
    merge(store_path)
    return [span for (span,) in query(store_path, "SELECT span_id FROM pending_exports ORDER BY ALL")]


# --- what the store knows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [lambda _: None, merge], ids=["at once", "one after the other"])
def test_what_arrives_is_pending_no_more(between: Callable[[Path], object], journal: Journal, store_path: Path) -> None:
    calls = [write_call(journal, **TO) for _ in range(4)]
    write_call(journal)
    between(store_path)
    arrive(journal, calls[0], calls[2])
    assert left(store_path) == [calls[1]["s"], calls[3]["s"]]
    arrive(journal, calls[1], endpoint="http://elsewhere:4317")
    assert left(store_path) == [calls[1]["s"], calls[3]["s"]]
    arrive(journal, calls[1], calls[3], write_call(journal))
    assert left(store_path) == []
    assert query(store_path, "SELECT count(*) FROM spans") == [(6,)]


def test_the_sign_is_there_as_long_as_something_is_pending(
    journal: Journal, paths: StorePaths, store_path: Path
) -> None:
    write_call(journal)
    merge(store_path)
    assert not pending.is_likely(paths)
    call = write_call(journal, **TO)
    merge(store_path)
    assert pending.is_likely(paths)
    arrive(journal, call)
    merge(store_path)
    assert not pending.is_likely(paths)
    journal.close()  # as if it had died: what it has left there nobody has looked at
    assert pending.is_likely(paths)


def test_a_line_that_is_whole_and_none_of_ours_stops_no_merge(journal: Journal, store_path: Path) -> None:
    call = write_call(journal, **TO)
    for strange in ({"k": "a"}, {"k": "a", "o": 1, "i": ["x"]}, {"k": "a", "o": TARGET.name, "i": "short"}):
        journal.append(strange)
    assert left(store_path) == [call["s"]]


def test_pruned_spans_are_no_longer_pending(journal: Journal, paths: StorePaths, store_path: Path) -> None:
    write_call(journal, **TO)
    retention.prune(paths, retention.Policy(max_age=1.0))
    assert left(store_path) == []


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_only_of_those_who_are_gone(journal: Journal, paths: StorePaths, store_path: Path, backend: Backend) -> None:
    calls = [write_call(journal, **TO) for _ in range(2)]
    arrive(journal, calls[0])
    assert send(paths) == Outcome()
    journal.rotate()
    merge(store_path)
    assert send(paths) == Outcome()
    journal.close()
    assert send(paths) == Outcome(1, 1)
    assert backend.ids == [calls[1]["s"]]
    assert send(paths) == Outcome()
    assert (left(store_path), pending.is_likely(paths)) == ([], False)


def test_one_that_goes_on_while_it_is_looked_at_lives(
    journal: Journal, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal, **TO)
    is_live = missing._is_live

    def look(segment: Any) -> bool:
        journal.rotate()
        return is_live(segment)

    monkeypatch.setattr(missing, "_is_live", look)
    assert missing._living(paths.journal) == {journal._writer}


def test_what_a_process_noted_with_its_last_breath_counts(
    journal: Journal, paths: StorePaths, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was alive when the store was merged, and is gone when that is asked."""
    call = write_call(journal, **TO)
    living = missing._living

    def die(directory: Path) -> set[str]:
        arrive(journal, call)
        journal.close()
        return living(directory)

    monkeypatch.setattr(missing, "_living", die)
    assert send(paths) == Outcome()
    assert backend.batches == []


def test_a_call_that_never_ended_is_sent_as_far_as_it_came(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend
) -> None:
    begin = start(**TO)
    journal.append(begin, start_of=identity(begin))
    journal.close()
    assert send(paths) == Outcome(1, 1)
    # Its end comes after all, from a process that was taken for dead.
    journal.append(end(begin), end_of=identity(begin))
    assert left(store_path) == [begin["s"]]
    journal.close()
    assert send(paths) == Outcome(before=1)
    assert backend.ids == [begin["s"]]


def test_what_another_replay_has_sent_is_not_missing(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend
) -> None:
    write_call(journal, **TO)
    assert replaying.replay(paths, TARGET, Selection()).sent == 1
    assert left(store_path) == []
    journal.close()
    assert send(paths) == Outcome()


def test_no_more_than_was_asked_for_of_whom_was_asked_for(
    journal: Journal, paths: StorePaths, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "_PAGE", 2)
    ours = [write_call(journal, st=NOON + n, r={"service.name": "ours"}, **TO)["s"] for n in range(5)]
    write_call(journal, r={"service.name": "theirs"}, **TO)
    journal.close()
    assert send(paths, service="ours", pages=2) == Outcome(4, 4, left=1)
    assert send(paths, service="ours", pages=2) == Outcome(1, 1)
    assert backend.ids == ours
    assert send(paths).sent == 1


def test_one_at_a_time(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    write_call(journal, **TO)
    journal.close()
    with locks.exclusive(paths.sending, time.monotonic() + 30), pytest.raises(StoreBusy, match="another process"):
        send(paths)
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(missing.send(paths, TARGET, Selection()).sent)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 0, 0, 1]
    assert len(backend.ids) == 1


def test_nothing_is_sent_while_it_cannot_be_told_what_has_arrived(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = write_call(journal, **TO)
    merge(store_path)
    arrive(journal, call)
    journal.close()
    held = MergeResult(reason="a reader has the store")
    monkeypatch.setattr(exclusive, "brought_up_to_date", lambda paths: held)
    with pytest.raises(StoreBusy, match="a reader has the store"):
        replaying.replay(paths, TARGET, Selection(pending_of={journal._writer}))
    assert backend.batches == []


def test_a_backend_that_is_down_is_tried_again(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = write_call(journal, **TO)
    journal.close()
    with monkeypatch.context() as down, pytest.raises(BackendError):
        down.setattr(backend, "export", lambda spans: SpanExportResult.FAILURE)
        send(paths)
    assert left(store_path) == [call["s"]]
    assert send(paths).sent == 1


def test_no_content(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    said = {"gen_ai.input.messages": "[]", "llm.input_messages.0.message.content": "x", "gen_ai.request.model": "m"}
    event = {
        "name": "exception",
        "time_unix_nano": NOON,
        "attributes": {"exception.message": "x", "exception.type": "E"},
    }
    write_call(journal, said, sts="ERROR", std="x", e=[event], **TO)
    journal.close()
    send(paths, content=False)
    ((span,),) = backend.batches
    assert set(span.attributes or {}) == {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"}
    assert [dict(event.attributes or {}) for event in span.events] == [{"exception.type": "E"}]
    assert span.status.description is None


def test_a_store_that_cannot_be_used(paths: StorePaths, backend: Backend) -> None:
    with pytest.raises(StoreError):
        send(paths)
