"""What the store has arrives, whatever is in the way, and as often as it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event
from typing import Any

import grpc
import pytest

from otel_llm.conventions import semconv
from otel_llm.fleet.ship import shipper as shipping
from otel_llm.fleet.ship.destination import NotNow
from otel_llm.fleet.ship.shipper import Shipper
from otel_llm.fleet.usage_log_record import row_of
from otel_llm.store.file import database
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.fleet.ship.conftest import account, drain, shipper_to, stored, url_of
from tests.integration.otlp_receiver import OtlpReceiver, Protocol, Reply
from tests.store.conftest import CHAT, USAGE, end, query, start, write_call

Calls = Callable[..., list[dict[str, Any]]]


def shipments(paths: StorePaths) -> list[tuple[Any, ...]]:
    return query(paths.database, "SELECT source, sent, refused, removed FROM shipments ORDER BY ALL")


def test_every_row_arrives_as_it_is_stored(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    calls(3)
    drain(shipper)
    assert account(receiver) == stored(paths)
    assert len(stored(paths)) == 3
    assert shipments(paths) == [("llm_usage", 3, 0, 0)]


def test_what_has_arrived_is_not_sent_again(calls: Calls, shipper: Shipper, receiver: OtlpReceiver) -> None:
    calls(2)
    drain(shipper)
    drain(shipper)
    calls(1)
    drain(shipper)
    assert len(receiver.logs) == 3


def test_rows_go_in_the_order_in_which_they_were_committed(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver
) -> None:
    records = calls(5) + calls(5)
    drain(shipper)
    assert [record.span_id.hex() for record in receiver.logs] == [record["s"] for record in records]


def test_a_late_end_goes_again_with_a_higher_version(
    journal: Journal, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    """A worker whose journal is sealed is taken for dead; then its end comes after all."""
    begin = start()
    journal.append(begin)
    journal.close()
    assert merge(paths.database).interrupted == 1
    drain(shipper)
    another = Journal(paths.journal)
    another.append(end(begin))
    another.close()
    assert merge(paths.database).complete
    drain(shipper)
    rows = [row_of(record) for record in receiver.logs]
    assert [(row["status"], row["row_version"]) for row in rows] == [("interrupted", 1), ("ok", 2)]
    assert account(receiver) == stored(paths)


def test_a_new_price_goes_again(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls(2)
    drain(shipper)
    with exclusive.alone(paths) as connection:  # as if it had not been known
        connection.execute("UPDATE llm_usage SET cost_usd = NULL, price_source = 'no price'")
        assert repricing.reprice(connection, repricing.Choice()).changed == 2
    drain(shipper)
    assert [row_of(record)["row_version"] for record in receiver.logs] == [1, 1, 2, 2]
    assert account(receiver) == stored(paths)
    assert shipments(paths) == [("llm_usage", 4, 0, 0)]


def test_a_row_that_another_stands_for_is_retracted(
    journal: Journal, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    """A framework's report of a call is stored and shipped before the client's own report comes."""
    outer = start(sc="opentelemetry.instrumentation.langchain")
    journal.append(outer)
    journal.append(end(outer))
    assert merge(paths.database).complete
    drain(shipper)
    assert len(account(receiver)) == 1
    inner = start(sc="otel_llm.openai", t=outer["t"], p=outer["s"], st=outer["st"] + 1000)
    journal.append(inner)
    journal.append(end(inner))
    assert merge(paths.database).complete
    assert [key[1] for key in stored(paths)] == [inner["s"]]
    drain(shipper)
    assert account(receiver) == stored(paths)
    last = {row["span_id"]: row for row in map(row_of, receiver.logs)}
    assert (last[outer["s"]]["retracted"], last[outer["s"]]["row_version"]) == (True, 2)


def test_an_interrupted_call_that_turns_out_to_be_another_s_is_retracted(
    journal: Journal, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    """It was shipped as interrupted. Its end comes after all, together with the client's own report of the same call."""
    outer = start(sc="opentelemetry.instrumentation.langchain")
    dying = Journal(paths.journal)
    dying.append(outer)
    dying.close()
    assert merge(paths.database).interrupted == 1
    drain(shipper)
    assert len(account(receiver)) == 1
    inner = start(sc="otel_llm.openai", t=outer["t"], p=outer["s"], st=outer["st"] + 1000)
    for record in (inner, end(inner), end(outer)):
        journal.append(record)
    assert merge(paths.database).complete
    assert [key[1] for key in stored(paths)] == [inner["s"]]
    drain(shipper)
    assert account(receiver) == stored(paths)


def test_a_conversation_that_turns_out_goes_again(
    journal: Journal, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    write_call(journal, USAGE | {semconv.RESPONSE_ID: "resp_1"})
    assert merge(paths.database).complete
    drain(shipper)
    write_call(journal, USAGE | {semconv.RESPONSE_ID: "resp_2", semconv.REQUEST_PREVIOUS_RESPONSE: "resp_1"})
    assert merge(paths.database).complete
    drain(shipper)
    assert {row["conversation_id"] for row in account(receiver).values()} == {"resp_1"}
    assert account(receiver) == stored(paths)
    assert len(receiver.logs) == 3


def test_a_store_of_an_older_version_is_shipped_whole(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    """Neither it nor an older otel-llm that goes on writing there knows of numbers."""
    calls(3)
    drain(shipper)
    with exclusive.alone(paths) as connection:
        connection.execute(
            "INSERT INTO llm_usage (started_at, trace_id, span_id) VALUES (now(), repeat('a', 32), repeat('b', 16))"
        )
    drain(shipper)
    assert account(receiver).keys() == stored(paths).keys()
    assert len(receiver.logs) == 4


def test_each_destination_has_a_place_of_its_own(calls: Calls, receiver: OtlpReceiver, paths: StorePaths) -> None:
    calls(2)
    drain(shipper_to(paths, url_of(receiver)))
    calls(1)
    with OtlpReceiver(all_signals=True) as other:
        drain(shipper_to(paths, url_of(other)))
        assert len(other.logs) == 3
    assert len(receiver.logs) == 2


def test_spans_go_by_choice(calls: Calls, receiver: OtlpReceiver, paths: StorePaths, protocol: Protocol) -> None:
    records = calls(2)
    drain(shipper_to(paths, url_of(receiver, protocol), "llm_usage", "spans"))
    assert [span.span_id for span in receiver.spans] == [record["s"] for record in records]
    assert receiver.spans[0].attributes.items() >= {**CHAT, **USAGE}.items()
    assert receiver.spans[0].resource == {"service.name": "shop"}
    assert shipments(paths) == [("llm_usage", 2, 0, 0), ("spans", 2, 0, 0)]
    calls(1)
    drain(shipper_to(paths, url_of(receiver, protocol), "llm_usage", "spans"))
    assert (len(receiver.spans), len(receiver.logs)) == (3, 3)


# --- in blocks --------------------------------------------------------------------------------------------------------


def test_much_goes_in_blocks(calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths) -> None:
    calls(25)
    shipper.destination.most_rows = 10  # type: ignore[misc]
    drain(shipper)
    assert len(receiver.logs) == 25
    assert account(receiver) == stored(paths)


def test_long_texts_make_small_blocks(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    calls(20)
    with exclusive.alone(paths) as connection:
        connection.execute("""UPDATE llm_usage SET input_messages = '"' || repeat('x', 300_000) || '"'""")
    drain(shipper)
    assert account(receiver) == stored(paths)
    sizes = [len(header.get("content-length", "")) for header in receiver.headers]
    assert len(receiver.headers) >= 3, sizes


def test_a_row_that_is_larger_than_any_block_goes_alone(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    calls(3)
    shipper.destination.most_bytes = 10  # type: ignore[misc]
    drain(shipper)
    assert len(receiver.headers) == 3
    assert account(receiver) == stored(paths)


# --- what a destination may say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, grpc.StatusCode.UNAVAILABLE),
        (401, grpc.StatusCode.UNAUTHENTICATED),
        (403, grpc.StatusCode.PERMISSION_DENIED),
        (404, grpc.StatusCode.UNIMPLEMENTED),
        (500, grpc.StatusCode.INTERNAL),
        (302, grpc.StatusCode.UNKNOWN),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_what_may_be_mended_is_sent_again(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths, status: int, code: grpc.StatusCode
) -> None:
    calls(2)
    receiver.reply = lambda path, body: Reply(
        status, code, "not now", (("Location", "/elsewhere"),) if status == 302 else ()
    )
    for _ in range(3):
        with pytest.raises(NotNow):
            shipper.ship()
    receiver.reply = lambda path, body: None
    drain(shipper)
    assert account(receiver) == stored(paths)
    assert len(receiver.logs) == 2


def test_it_says_how_long_to_wait(calls: Calls, receiver: OtlpReceiver, paths: StorePaths) -> None:
    calls(1)
    receiver.reply = lambda path, body: Reply(429, reason="slowly", headers=(("Retry-After", "7"),))
    shipper = shipper_to(paths, url_of(receiver))
    with pytest.raises(NotNow) as told:
        shipper.ship()
    assert told.value.retry_after == 7
    # As the Collector tells it over gRPC
    from google.protobuf.duration_pb2 import Duration
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    status = Status(code=8)
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=3, nanos=500_000_000)))
    details: Any = (("grpc-status-details-bin", status.SerializeToString()),)
    receiver.reply = lambda path, body: Reply(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="slowly", headers=details)
    shipper = shipper_to(paths, url_of(receiver, "grpc"))
    with pytest.raises(NotNow) as told:
        shipper.ship()
    assert told.value.retry_after == 3.5


def refusing(*spans: str) -> Callable[[str, bytes], Reply | None]:
    """Refuses whatever has one of these spans in it."""
    ids = [bytes.fromhex(span) for span in spans]

    def reply(path: str, body: bytes) -> Reply | None:
        bad = any(each in body for each in ids)
        return Reply(400, grpc.StatusCode.INVALID_ARGUMENT, "malformed") if bad else None

    return reply


def test_a_row_that_is_refused_for_ever_holds_nobody_up(
    calls: Calls,
    shipper: Shipper,
    receiver: OtlpReceiver,
    paths: StorePaths,
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = calls(9)
    bad = records[3]["s"]
    receiver.reply = refusing(bad)
    drain(shipper)
    assert account(receiver).keys() == {key for key in stored(paths) if key[1] != bad}
    assert shipments(paths) == [("llm_usage", 8, 1, 0)]
    assert "refuses 1 rows of llm_usage" in caplog.text and "malformed" in caplog.text
    calls(1)
    drain(shipper)
    assert shipments(paths) == [("llm_usage", 9, 1, 0)]


def test_a_destination_that_refuses_everything_is_at_fault_itself(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    """It may be behind something that speaks for it: no row is given up then."""
    calls(4)
    receiver.reply = lambda path, body: Reply(400, grpc.StatusCode.INVALID_ARGUMENT, "what is that?")
    for _ in range(2):
        with pytest.raises(NotNow):
            shipper.ship()
    receiver.reply = lambda path, body: None
    drain(shipper)
    calls(4)
    receiver.reply = lambda path, body: Reply(400, grpc.StatusCode.INVALID_ARGUMENT, "what is that?")
    for _ in range(2):
        with pytest.raises(NotNow, match="refuses each of 4 rows"):
            shipper.ship()
            shipper.ship()
    receiver.reply = lambda path, body: None
    drain(shipper)
    assert account(receiver) == stored(paths)
    assert shipments(paths) == [("llm_usage", 8, 0, 0)]


def test_a_partial_success_is_counted(
    calls: Calls,
    shipper: Shipper,
    receiver: OtlpReceiver,
    paths: StorePaths,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls(5)
    receiver.reply = lambda path, body: Reply(rejected=2, reason="two of them")
    drain(shipper)
    assert shipments(paths) == [("llm_usage", 3, 2, 0)]
    assert "two of them" in caplog.text


@pytest.mark.parametrize("headers", [(("Content-Type", "text/html"),), (("Content-Type", "application/x-protobuf"),)])
def test_an_answer_of_something_else_is_no_success(
    calls: Calls, receiver: OtlpReceiver, paths: StorePaths, headers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login page, say, of a proxy."""
    calls(1)
    shipper = shipper_to(paths, url_of(receiver))
    monkeypatch.setattr(
        "tests.integration.otlp_receiver.ExportLogsServiceResponse.SerializeToString",
        lambda self: b"<html>",
        raising=False,
    )
    receiver.reply = lambda path, body: Reply(rejected=1, headers=headers)
    with pytest.raises(NotNow, match="not OTLP"):
        shipper.ship()


def test_nobody_is_there(calls: Calls, paths: StorePaths, protocol: Protocol) -> None:
    calls(2)
    with OtlpReceiver(all_signals=True) as receiver:
        ports, url = receiver.ports, url_of(receiver, protocol)
    shipper = shipper_to(paths, url)
    for _ in range(2):
        with pytest.raises(NotNow):
            shipper.ship()
    with OtlpReceiver(all_signals=True, ports=ports) as receiver:
        for _ in range(100):
            try:
                drain(shipper)
                break
            except NotNow:  # gRPC waits a little before it connects again
                shipper.destination.close()
        assert account(receiver) == stored(paths)


# --- one process at a time, one store at a time -----------------------------------------------------------------------


def test_one_ships_to_a_destination_at_a_time(calls: Calls, receiver: OtlpReceiver, paths: StorePaths) -> None:
    calls(1)
    one, other = (shipper_to(paths, url_of(receiver)) for _ in range(2))
    assert one.is_ours()
    assert not other.is_ours()
    one.let_go()
    assert other.is_ours()
    other.let_go()


def test_another_store_in_its_place_is_shipped_from_its_beginning(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    """What has arrived of the first must not count for the second."""
    calls(5)
    assert not shipper.ship()  # it is not written down yet
    paths.database.unlink()
    paths.merged.unlink()
    calls(3)
    drain(shipper)
    assert account(receiver) == stored(paths)
    assert len(stored(paths)) == 8  # the journal still had the first ones
    assert shipments(paths) == [("llm_usage", 8, 0, 0)]


def test_a_backup_in_its_place_goes_on_from_where_it_was(
    calls: Calls, shipper: Shipper, receiver: OtlpReceiver, paths: StorePaths
) -> None:
    calls(2)
    drain(shipper)
    backup = paths.database.read_bytes()
    calls(3)
    assert not shipper.ship()
    paths.database.write_bytes(backup)
    drain(shipper)
    after = calls(4)
    drain(shipper)
    assert {record["s"] for record in after} <= {key[1] for key in account(receiver)}


def test_nothing_is_opened_where_nothing_is_new(
    calls: Calls, shipper: Shipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls(1)
    drain(shipper)
    monkeypatch.setattr(exclusive, "alone", lambda *_: pytest.fail("the store was opened"))
    assert shipper.ship()


def test_a_failure_is_said_once(
    calls: Calls,
    shipper: Shipper,
    receiver: OtlpReceiver,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls(1)
    receiver.reply = lambda path, body: Reply(503, grpc.StatusCode.UNAVAILABLE, "down")
    waits = [shipper._look(Event(), lambda: None) for _ in range(9)]
    assert all(wait > 0 for wait in waits)
    assert waits[0] < 1.3 and waits[3] > 5 and max(waits) <= shipping._LONGEST_BACK_OFF * 1.25
    assert caplog.text.count("does not take what is shipped") == 1
    assert shipper.shipped.failures == 9
    receiver.reply = lambda path, body: None
    assert shipper._look(Event(), lambda: None) > 0  # until it is written down
    monkeypatch.setattr(shipping, "_WRITE_DOWN_SECONDS", 0.0)
    assert shipper._look(Event(), lambda: None) == 0
    assert caplog.text.count("takes what is shipped again") == 1
    assert [record.levelno for record in caplog.records if record.name == "otel_llm"] == [logging.WARNING] * 2


def test_memory_holds_one_block(calls: Calls, shipper: Shipper, receiver: OtlpReceiver) -> None:
    receiver.reply = lambda path, body: Reply(503, grpc.StatusCode.UNAVAILABLE, "down")
    shipper.destination.most_rows = 10  # type: ignore[misc]
    for _ in range(5):
        calls(10)
        shipper._look(Event(), lambda: None)
        assert sum(len(parcel.block.rows) for parcel in shipper._parcels.values()) == 10


def test_numbers_are_given_once(calls: Calls, shipper: Shipper, paths: StorePaths) -> None:
    calls(3)
    drain(shipper)
    calls(3)
    with exclusive.alone(paths) as connection, database.transaction(connection):
        connection.execute("DELETE FROM llm_usage WHERE commit_number = (SELECT max(commit_number) FROM llm_usage)")
    drain(shipper)
    numbers = [number for (number,) in query(paths.database, "SELECT commit_number FROM llm_usage")]
    assert sorted(set(numbers)) == sorted(numbers) and 3 not in numbers
