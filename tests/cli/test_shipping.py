"""What `ps` and `doctor` say of shipping, and `ship` where it runs in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_llm.fleet.ship import shipping_note
from otel_llm.fleet.ship.shipper import Shipper
from otel_llm.fleet.ship.shipping_note import ShippingNote
from otel_llm.fleet.ship.urls import destination_at
from otel_llm.settings import reload
from otel_llm.store.jobs import exclusive
from otel_llm.store.journal import locks
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Fill, Run
from tests.integration.otlp_receiver import OtlpReceiver

Doctor = Callable[[], dict[str, Any]]


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(all_signals=True) as receiver:
        yield receiver


@pytest.fixture
def paths(store_path: Path, fill: Fill) -> StorePaths:
    fill({}, {}, {})
    paths = StorePaths.of(store_path)
    paths.journal.mkdir(mode=0o700, exist_ok=True)
    return paths


@pytest.fixture
def url(receiver: OtlpReceiver) -> str:
    return receiver.endpoint("http/protobuf")


@pytest.fixture
def doctor(run: Run) -> Doctor:
    """What it reports of shipping."""

    def report() -> dict[str, Any]:
        told = json.loads(run("doctor", "--json").out)
        findings = [*told["problems"], *told["remarks"]]
        said = [
            f"{each['what']}: {each['remedy']}" for each in findings if "ship" in str(each) or "arrived" in str(each)
        ]
        return {"facts": told["shipping"], "said": said, "ok": told["ok"]}

    return report


def hold(paths: StorePaths, note: ShippingNote) -> Any:
    lock = locks.hold(paths.shipping(note.destination))
    assert lock is not None
    shipping_note.write(lock, note)
    return lock


def test_all_has_arrived(paths: StorePaths, url: str, run: Run, doctor: Doctor) -> None:
    assert run("ship", "--to", url, "--once").out == f"Shipped 3 rows to {url}.\n"
    assert run("ship", "--to", url, "--once").out == f"Shipped 0 rows to {url}.\n"
    assert doctor() == {"facts": {url: "llm_usage 3 sent, all has arrived"}, "said": [], "ok": True}
    assert run("ps").out == f"Nothing is running that writes to {paths.database}.\n"


def test_nobody_ships_what_waits(paths: StorePaths, url: str, run: Run, doctor: Doctor, fill: Fill) -> None:
    run("ship", "--to", url, "--once")
    fill({"trace_id": "f" * 32})
    told = doctor()
    assert told["facts"] == {url: "llm_usage 3 sent, 1 waiting"}
    assert told["ok"] and told["said"] == [
        f"1 row waits for {url}, and nobody ships there: otel-llm ship --to {url}; or, to have it kept for that no more, "
        "the same with --forget"
    ]
    assert run("ship", "--to", url, "--forget").out == f"Forgot {url}.\n"
    assert doctor()["facts"] == {}


def test_a_destination_that_fails(paths: StorePaths, url: str, run: Run, doctor: Doctor, fill: Fill) -> None:
    run("ship", "--to", url, "--once")
    fill({"trace_id": "f" * 32})
    failing = ShippingNote(url, 42, time.time() - 400, time.time() - 3700, "HTTP 503 Service Unavailable")
    with hold(paths, failing):
        assert f"Process 42 ships to {url}: failing for 1 h 1 min: HTTP 503 Service Unavailable.\n" in run("ps").out
        told = doctor()
        assert not told["ok"]
        assert told["said"] == [
            f"{url} does not take what process 42 ships: HTTP 503 Service Unavailable: "
            "see to it there; 1 row stays in the store until it does"
        ]
        held = run("ship", "--to", url, "--forget")
        assert (held.code, held.err) == (2, f"otel-llm: a process ships to {url}: end it first\n")
    with hold(paths, ShippingNote(url, 42, time.time() - 400)):
        assert f"Process 42 ships to {url}: behind for 6 min 40 s.\n" in run("ps").out
        assert doctor()["said"] == [f"1 row has not arrived at {url} yet: it catches up in blocks; look again"]
    with hold(paths, ShippingNote(url, 42, time.time())):
        assert f"Process 42 ships to {url}: up to date.\n" in run("ps").out
        assert doctor()["said"] == []


def test_rows_that_are_nowhere_else(paths: StorePaths, url: str, run: Run, doctor: Doctor) -> None:
    run("ship", "--to", url, "--once")
    with exclusive.alone(paths) as connection:
        connection.execute("UPDATE shipments SET removed = 5, refused = 2")
    told = doctor()
    assert told["facts"] == {url: "llm_usage 3 sent, all has arrived, 2 refused, 5 removed before they arrived"}
    assert not told["ok"]
    assert f"5 rows had to be removed before {url} had got them" in told["said"][0]


def test_what_the_setting_says(paths: StorePaths, run: Run, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_SHIP_TO", "http://user:secret@a:4318, nonsense://b, clickhouse://c")
    told = doctor()
    assert told["facts"] == {"to": "http://a:4318, clickhouse://c:8123/default"}
    assert not told["ok"]
    assert "nonsense://b is not an endpoint" in told["said"][0]
    assert "secret" not in str(told)


def test_a_store_of_an_earlier_version(store_path: Path, doctor: Doctor) -> None:
    import duckdb

    with duckdb.connect(str(store_path)) as connection:
        connection.execute((Path(__file__).parents[1] / "store" / "file" / "schema_7.sql").read_text())
    assert doctor()["facts"] == {}


def test_a_note_that_nobody_can_read(paths: StorePaths, url: str) -> None:
    with locks.hold(paths.shipping(url)):  # type: ignore[union-attr]
        paths.shipping(url).write_text("{half a no")
        assert shipping_note.read_all(paths) == []


def test_the_shipper_leaves_a_note(paths: StorePaths, url: str, receiver: OtlpReceiver) -> None:
    reload()
    shipper = Shipper(lambda: paths, destination_at(url), ("llm_usage",))
    assert shipper.is_ours()
    shipper._failed("why", None)
    ((note, is_running),) = shipping_note.read_all(paths)
    assert is_running and note.reason == "why" and note.failing_since is not None
    while not shipper.ship():
        pass
    ((note, _),) = shipping_note.read_all(paths)
    assert (note.reason, note.failing_since, note.behind_since) == (None, None, None)
    shipper.let_go()
    ((_, is_running),) = shipping_note.read_all(paths)
    assert not is_running
