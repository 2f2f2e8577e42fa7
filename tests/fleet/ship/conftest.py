"""Stores with calls in them, a receiver, and what the two have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_llm.fleet.ship.destination import Source
from otel_llm.fleet.ship.shipper import Shipper
from otel_llm.fleet.ship.urls import destination_at
from otel_llm.fleet.usage_log_record import row_of
from otel_llm.fleet.wire_row import RETRACTED, USAGE_COLUMNS, Row, select_list
from otel_llm.settings import reload
from otel_llm.store.file import publish
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.integration.otlp_receiver import PROTOCOLS, OtlpReceiver, Protocol
from tests.store.conftest import query, write_call


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_LLM_STORE", "none")
    monkeypatch.setattr(publish, "_REST", 0)
    reload()
    yield
    monkeypatch.undo()
    reload()


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return StorePaths.of(tmp_path / "usage.duckdb")


@pytest.fixture
def journal(paths: StorePaths) -> Iterator[Journal]:
    journal = Journal(paths.journal)
    journal.resource = {"service.name": "shop"}
    yield journal
    journal.close()


@pytest.fixture
def calls(paths: StorePaths, journal: Journal) -> Callable[..., list[dict[str, Any]]]:
    """Stores so many calls; returns their end records."""

    def store(number: int, **attributes: Any) -> list[dict[str, Any]]:
        records = [write_call(journal, attributes or None) for _ in range(number)]
        assert merge(paths.database).complete
        return records

    return store


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    found: Protocol = request.param
    return found


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(all_signals=True) as receiver:
        yield receiver


def url_of(receiver: OtlpReceiver, protocol: Protocol = "http/protobuf") -> str:
    return receiver.endpoint(protocol).replace("http:", "grpc:" if protocol == "grpc" else "http:")


def shipper_to(paths: StorePaths, url: str, *sources: Source) -> Shipper:
    return Shipper(lambda: paths, destination_at(url), sources or ("llm_usage",))


@pytest.fixture
def shipper(paths: StorePaths, receiver: OtlpReceiver, protocol: Protocol) -> Iterator[Shipper]:
    shipper = shipper_to(paths, url_of(receiver, protocol))
    yield shipper
    shipper.let_go()


def drain(shipper: Shipper) -> None:
    """Ships until there is nothing more."""
    for _ in range(1000):
        if shipper.ship():
            return
    raise AssertionError("there is no end of it")


def account(receiver: OtlpReceiver) -> dict[tuple[str, str], Row]:
    """What has been received, each row once, as whoever receives it is to read it."""
    found: dict[tuple[str, str], Row] = {}
    for row in map(row_of, receiver.logs):
        known = found.get(key := (row["trace_id"], row["span_id"]))
        if known is not None and known["row_version"] == row["row_version"]:
            assert known == row, "of one version there is one row"
        if known is None or row["row_version"] > known["row_version"]:
            found[key] = row
    return {key: row for key, row in found.items() if not row[RETRACTED]}


def stored(paths: StorePaths) -> dict[tuple[str, str], Row]:
    """What the store has."""
    rows = query(paths.database, f"SELECT {select_list(USAGE_COLUMNS)} FROM llm_usage")
    named = [dict(zip(USAGE_COLUMNS, row, strict=True)) | {RETRACTED: False} for row in rows]
    return {(row["trace_id"], row["span_id"]): row for row in named}
