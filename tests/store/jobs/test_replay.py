"""Which spans are sent again, what is remembered of it, and how a row becomes the span it was. The wire is for
tests/integration/test_replay.py."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from otel_llm.content import otlp_sizes
from otel_llm.store import StoreBusy, StoreNotFound
from otel_llm.store.jobs import exclusive, replaying, retention
from otel_llm.store.jobs.replaying import BackendError, Outcome, ReplayTarget, Selection
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import NOON, end, merging, query, start, write_call

TARGET = ReplayTarget("http://backend:4317", "grpc")


class Backend(SpanExporter):
    """Takes spans until it has had `capacity` batches; what it says then goes to the exporter's log."""

    def __init__(self) -> None:
        self.batches: list[list[ReadableSpan]] = []
        self.capacity = 10**6
        self.is_shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if len(self.batches) >= self.capacity:
            # No logger of the exporter itself: that says the same only once in some seconds, whichever test it was for.
            logging.getLogger("opentelemetry.exporter.otlp.backend").error("connection refused")
            return SpanExportResult.FAILURE
        self.batches.append(list(spans))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.is_shut_down = True

    @property
    def ids(self) -> list[str]:
        """The span ids in the order they came."""
        return [f"{span.context.span_id:016x}" for batch in self.batches for span in batch if span.context]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend = Backend()
    monkeypatch.setattr(ReplayTarget, "exporter", lambda _: backend)
    return backend


def send(paths: StorePaths, target: ReplayTarget = TARGET, **selection: Any) -> Outcome:
    return replaying.replay(paths, target, Selection(**selection))


# --- which, and how often ---------------------------------------------------------------------------------------------


def test_each_span_once(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    calls = [write_call(journal)["s"] for _ in range(3)]
    assert send(paths) == Outcome(3, 3)
    assert backend.ids == calls
    assert backend.is_shut_down
    assert send(paths) == Outcome(before=3)
    calls.append(write_call(journal)["s"])
    assert send(paths) == Outcome(1, 1, before=3)
    assert backend.ids == calls


def test_all_sends_again_and_remembers_once(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend
) -> None:
    call = write_call(journal)
    send(paths)
    assert send(paths, again=True) == Outcome(1, 1)
    assert backend.ids == [call["s"]] * 2
    assert query(store_path, "SELECT trace_id, span_id, endpoint FROM replayed") == [
        (call["t"], call["s"], TARGET.name)
    ]


def test_another_endpoint_knows_nothing_of_it(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    write_call(journal)
    assert send(paths).sent == send(paths, ReplayTarget("http://other:4317", "grpc")).sent == 1


def test_selected_by_time_and_trace(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    calls = [write_call(journal, st=NOON + number * 10**9) for number in range(5)]
    send(paths, since_ns=NOON + 1 * 10**9, until_ns=NOON + 3 * 10**9)
    assert backend.ids == [calls[1]["s"], calls[2]["s"]]
    send(paths, trace_id=calls[4]["t"])
    assert backend.ids[2:] == [calls[4]["s"]]


def test_what_the_sampler_left_out_is_sent_only_if_asked_for(
    journal: Journal, paths: StorePaths, backend: Backend
) -> None:
    sampled, unsampled = write_call(journal, f=1), write_call(journal, f=0)
    assert send(paths) == Outcome(1, 1, unsampled=1)
    assert backend.ids == [sampled["s"]]
    assert send(paths, unsampled=True) == Outcome(1, 1, before=1)
    assert backend.ids == [sampled["s"], unsampled["s"]]


@pytest.mark.parametrize("calls", [1, 6, 7, 8, 13])
def test_pages(
    calls: int, journal: Journal, paths: StorePaths, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "_PAGE", 7)
    # Many begin in the same nanosecond: pages end between them all the same.
    expected = sorted(write_call(journal, st=NOON + number // 5)["s"] for number in range(calls))
    steps: list[tuple[int, int]] = []
    outcome = replaying.replay(paths, TARGET, Selection(again=True), lambda sent, of: steps.append((sent, of)))
    assert outcome == Outcome(calls, calls)
    assert backend.ids == expected
    assert [len(batch) for batch in backend.batches] == [7] * (calls // 7) + [calls % 7] * (calls % 7 > 0)
    assert steps[0] == (0, calls)
    assert steps[-1] == (calls, calls)


def test_a_page_is_sent_in_batches(
    journal: Journal, paths: StorePaths, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "_BATCH", 2)
    for _ in range(5):
        write_call(journal)
    assert send(paths).sent == 5
    assert [len(batch) for batch in backend.batches] == [2, 2, 1]


def test_large_spans_go_in_small_batches(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    for _ in range(5):
        write_call(journal, {"gen_ai.input.messages": "x" * 1_200_000})
    assert send(paths).sent == 5
    assert [len(batch) for batch in backend.batches] == [2, 2, 1]


def test_what_was_said_is_left_out_where_no_request_has_room_for_it(
    journal: Journal, paths: StorePaths, backend: Backend
) -> None:
    large = write_call(journal, {"gen_ai.input.messages": "x" * 5_000_000})
    assert send(paths) == Outcome(1, 1)
    ((span,),) = backend.batches
    assert backend.ids == [large["s"]] and "gen_ai.input.messages" not in (span.attributes or {})


def test_a_span_that_no_request_has_room_for_holds_nothing_up(
    journal: Journal, paths: StorePaths, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent alone, as some backends take it, and tried again by the next replay."""
    calls = [write_call(journal, {"theirs": "x" * size})["s"] for size in (1, 5_000_000, 1)]
    takes = backend.export

    def refuse(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if sum(otlp_sizes.size_of(span) for span in spans) < 4 * 2**20:
            return takes(spans)
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").error("larger than max")
        return SpanExportResult.FAILURE

    monkeypatch.setattr(backend, "export", refuse)
    outcome = send(paths)
    assert (outcome.selected, outcome.sent) == (3, 2) and backend.ids == [calls[0], calls[2]]
    (said,) = outcome.too_large
    assert said.startswith("the span chat gpt-4o-mini of trace ") and said.endswith("larger than max")
    monkeypatch.setattr(backend, "export", takes)
    assert send(paths) == Outcome(1, 1, 2)
    assert backend.ids[2:] == [calls[1]]


def test_a_backend_that_is_down_is_not_taken_for_one_that_refuses_what_is_too_large(
    journal: Journal, paths: StorePaths, backend: Backend
) -> None:
    for size in (5_000_000, 1):
        write_call(journal, {"theirs": "x" * size})
    backend.capacity = 0
    with pytest.raises(BackendError, match="connection refused; 0 of 2 spans were sent"):
        send(paths)


def test_the_store_is_free_while_spans_are_on_their_way(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "_PAGE", 1)
    take = backend.export

    def export(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        write_call(journal, st=NOON * 2)
        assert merge(store_path, timeout=0).complete
        return take(spans)

    monkeypatch.setattr(backend, "export", export)
    for _ in range(3):
        write_call(journal)
    assert send(paths).sent == 3
    assert query(store_path, "SELECT count(*) FROM spans") == [(6,)]


def test_what_is_removed_meanwhile_is_not_sent(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "_PAGE", 1)
    for _ in range(2):
        write_call(journal)

    def progress(sent: int, of: int) -> None:
        if sent == 1:
            with exclusive.alone(paths) as connection:
                connection.execute("DELETE FROM spans")

    assert replaying.replay(paths, TARGET, Selection(), progress) == Outcome(2, 1)


def test_pruned_spans_leave_no_mark_behind(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend
) -> None:
    write_call(journal)
    send(paths)
    retention.prune(paths, retention.Policy(max_age=1.0))
    assert query(store_path, "SELECT count(*) FROM replayed") == [(0,)]


# --- when it fails ----------------------------------------------------------------------------------------------------


def test_a_backend_that_is_down(journal: Journal, paths: StorePaths, store_path: Path, backend: Backend) -> None:
    backend.capacity = 0
    write_call(journal)
    with pytest.raises(BackendError, match=r"http://backend:4317 .*: connection refused; 0 of 1 spans were sent"):
        send(paths)
    assert query(store_path, "SELECT count(*) FROM replayed") == [(0,)]
    assert backend.is_shut_down


def test_a_backend_that_goes_down(
    journal: Journal,
    paths: StorePaths,
    store_path: Path,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(replaying, "_PAGE", 2)
    calls = [write_call(journal)["s"] for _ in range(5)]
    backend.capacity = 1
    with pytest.raises(BackendError, match="2 of 5"):
        send(paths)
    assert {row[0] for row in query(store_path, "SELECT span_id FROM replayed")} == set(calls[:2])
    backend.capacity = 10
    assert send(paths) == Outcome(3, 3, before=2)
    assert backend.ids == calls
    assert capfd.readouterr().err == ""


def test_interrupted_by_the_user(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the backend has taken is remembered, whatever ends the run."""
    for _ in range(3):
        write_call(journal, {"gen_ai.input.messages": "x" * 2**21})
    take = backend.export

    def export(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if backend.batches:
            raise KeyboardInterrupt
        return take(spans)

    monkeypatch.setattr(backend, "export", export)
    with pytest.raises(KeyboardInterrupt):
        send(paths)
    assert query(store_path, "SELECT count(*) FROM replayed") == [(1,)]


def test_nothing_is_sent_that_could_not_be_remembered(
    journal: Journal, paths: StorePaths, store_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal)
    merge(store_path)
    monkeypatch.setattr(exclusive, "PATIENCE", 0.05)
    alone: Callable[..., Any] = exclusive.alone
    monkeypatch.setattr(exclusive, "alone", lambda paths: alone(paths, 0.05))
    with merging(paths), pytest.raises(StoreBusy):
        send(paths)
    assert backend.batches == []


def test_no_store(paths: StorePaths, backend: Backend) -> None:
    with pytest.raises(StoreNotFound):
        send(paths)


# --- a row as a span --------------------------------------------------------------------------------------------------


def test_a_span_is_what_it_was(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    attributes = {
        "whole": 1,
        "real": 1.0,
        "flag": True,
        "text": "å",
        "list": ["a", "b"],
        "reals": [1.0, 2.5],
        "none": None,
    }
    event = {"name": "began", "time_unix_nano": NOON + 5, "attributes": {"attempt": 1, "share": 1.0}}
    link = {"trace_id": "a" * 32, "span_id": "b" * 16, "attributes": {"why": "retry"}}
    begin = start(st=NOON + 7, p="c" * 16, kd="SERVER")
    journal.append(
        end(
            begin,
            attributes,
            et=NOON + 107,
            sts="ERROR",
            std="no luck",
            e=[event],
            l=[link],
            r={"service.name": "x", "n": 1},
        )
    )
    send(paths)
    ((span,),) = backend.batches
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") == (begin["t"], begin["s"])
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (begin["t"], "c" * 16)
    assert (span.start_time, span.end_time, span.kind, span.name) == (NOON + 7, NOON + 107, SpanKind.SERVER, begin["n"])
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no luck")
    del attributes["none"]
    assert json.dumps(dict(span.attributes or {}), sort_keys=True) == json.dumps(
        begin["a"] | attributes, sort_keys=True
    )
    assert [(each.name, each.timestamp, dict(each.attributes or {})) for each in span.events] == [
        ("began", NOON + 5, {"attempt": 1, "share": 1.0})
    ]
    assert [
        (f"{each.context.trace_id:x}", f"{each.context.span_id:x}", dict(each.attributes or {})) for each in span.links
    ] == [("a" * 32, "b" * 16, {"why": "retry"})]
    assert dict(span.resource.attributes) == {"service.name": "x", "n": 1}
    assert span.instrumentation_scope is not None
    assert (span.instrumentation_scope.name, span.instrumentation_scope.version) == ("tests.scope", "1.0")


def test_a_call_that_never_ended(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    dead = Journal(journal.directory)
    begin = start()
    dead.append(begin, start_of=1)
    dead.close()
    assert send(paths).sent == 1
    ((span,),) = backend.batches
    assert (span.start_time, span.end_time) == (begin["st"], begin["st"])


def test_spans_of_one_resource_share_it(journal: Journal, paths: StorePaths, backend: Backend) -> None:
    for _ in range(3):
        write_call(journal)
    write_call(journal, r={"service.name": "another"})
    send(paths)
    assert len({id(span.resource) for batch in backend.batches for span in batch}) == 2


# --- where to ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "protocol", "environment", "expected"),
    [
        ("http://h:4317", None, {}, ("http://h:4317", "grpc")),
        ("h:4317", None, {}, ("http://h:4317", "grpc")),
        ("https://h", None, {}, ("https://h/v1/traces", "http/protobuf")),
        ("http://h:4318", None, {}, ("http://h:4318/v1/traces", "http/protobuf")),
        ("http://h:4318/", None, {}, ("http://h:4318/v1/traces", "http/protobuf")),
        ("http://h/v1/traces", None, {}, ("http://h/v1/traces", "http/protobuf")),
        ("https://h/otlp", "http/protobuf", {}, ("https://h/otlp/v1/traces", "http/protobuf")),
        ("http://h:4318", "grpc", {}, ("http://h:4318", "grpc")),
        (None, None, {"ENDPOINT": "http://h:4318"}, ("http://h:4318/v1/traces", "http/protobuf")),
        (None, None, {"ENDPOINT": "http://h", "PROTOCOL": "http/protobuf"}, ("http://h/v1/traces", "http/protobuf")),
        # Without a scheme, the exporter takes the variable for TLS.
        (None, None, {"ENDPOINT": "h:4317"}, ("https://h:4317", "grpc")),
        (None, None, {"ENDPOINT": "h:4317", "INSECURE": "true"}, ("http://h:4317", "grpc")),
        (None, None, {"ENDPOINT": "h:4317", "INSECURE": "true", "TRACES_INSECURE": "false"}, ("https://h:4317", "grpc")),
        (None, None, {"ENDPOINT": "h:4318"}, ("http://h:4318/v1/traces", "http/protobuf")),
        ("h:4317", None, {"ENDPOINT": "i:4317"}, ("http://h:4317", "grpc")),
        (None, None, {"TRACES_ENDPOINT": "http://h:4318/here", "ENDPOINT": "http://i"}, ("http://h:4318/here", "http/protobuf")),
        ("http://h:1", None, {"TRACES_PROTOCOL": "http/protobuf", "PROTOCOL": "grpc"}, ("http://h:1/v1/traces", "http/protobuf")),
    ],
)  # fmt: skip
def test_targets(
    endpoint: str | None, protocol: str | None, environment: dict[str, str], expected: tuple[str, str]
) -> None:
    named = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environment.items()}
    target = ReplayTarget.of(endpoint, protocol, named)
    assert (target.endpoint, target.protocol) == expected


@pytest.mark.parametrize(
    ("endpoint", "protocol", "message"),
    [
        (None, None, "no endpoint"),
        ("ftp://h", None, "ftp://h is not an endpoint"),
        ("http://", None, "is not an endpoint"),
        ("http://h:port", None, "port"),
        ("http://h", "http/json", "http/json"),
    ],
)
def test_what_is_no_target(endpoint: str | None, protocol: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayTarget.of(endpoint, protocol, {})


def test_secrets_of_an_endpoint_are_not_remembered() -> None:
    target = ReplayTarget.of("https://user:secret@h:4318/v1/traces?key=secret", None, {})
    assert target.name == "https://h:4318/v1/traces"
