"""From a store to another machine's, by `otel-llm ship` and `otel-llm serve`: the two accounts agree row by row."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.fleet.serve.conftest import Server, serve
from tests.fleet.ship.conftest import account, calls, drain, journal, receiver, shipper_to, stored, url_of
from tests.fleet.ship.test_processes import drained, ship, write_calls
from tests.integration.otlp_receiver import OtlpReceiver
from tests.store.conftest import count, end, query, start, until

__all__ = ["calls", "journal", "receiver", "serve"]


def url(server: Server) -> str:
    return f"grpc://127.0.0.1:{server.grpc}"


def assert_equal(server: Server, paths: StorePaths) -> None:
    server.stop()
    assert stored(StorePaths.of(server.store)) == stored(paths)


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    (tmp_path / "here").mkdir()
    return StorePaths.of(tmp_path / "here" / "usage.duckdb")


def test_each_change_arrives(
    serve: Callable[..., Server],
    calls: Callable[..., Any],
    journal: Journal,
    paths: StorePaths,
    receiver: OtlpReceiver,
) -> None:
    """A new price, a late end, and a call that two have reported: at `serve`, and where that ships it to."""
    server = serve()
    there = StorePaths.of(server.store)
    shippers = {paths: shipper_to(paths, url(server)), there: shipper_to(there, url_of(receiver))}

    def pass_on() -> None:
        for store, shipper in shippers.items():
            assert merge(store.database).complete
            drain(shipper)

    calls(3)
    begin = start()
    dying = Journal(paths.journal)
    dying.append(begin)
    dying.close()
    outer = start(sc="opentelemetry.instrumentation.langchain")
    journal.append(outer)
    journal.append(end(outer))
    assert merge(paths.database).interrupted == 1
    pass_on()
    with exclusive.alone(paths) as connection:
        connection.execute("UPDATE llm_usage SET cost_usd = NULL, price_source = 'no price' WHERE status = 'ok'")
        assert repricing.reprice(connection, repricing.Choice()).changed
    pass_on()
    late = Journal(paths.journal)
    late.append(end(begin))
    late.close()
    inner = start(sc="otel_llm.openai", t=outer["t"], p=outer["s"], st=outer["st"] + 1000)
    journal.append(inner)
    journal.append(end(inner))
    assert merge(paths.database).complete
    pass_on()
    assert query(paths.database, "SELECT max(row_version) FROM llm_usage") == [(2,)]
    assert count(paths.database, "retracted_calls") > 0
    assert account(receiver) == stored(paths)
    assert_equal(server, paths)


def has(store: Path, number: int) -> bool:
    return store.exists() and count(store) >= number


def test_kills_on_both_sides(serve: Callable[..., Server], paths: StorePaths) -> None:
    chance = random.Random(3)
    server = serve()
    listen = ("--grpc", f"127.0.0.1:{server.grpc}")
    for _ in range(4):
        enough = (count(server.store) if server.store.exists() else 0) + chance.randrange(1, 40)
        write_calls(paths, 60)
        with ship("--to", url(server), store=paths.database) as shipper:
            until(partial(has, server.store, enough), "rows to arrive")
            for victim in chance.sample((shipper, server.process), 2):
                victim.send_signal(signal.SIGKILL)
        server.kill()
        server = serve(*listen)
    drained(url(server), paths.database)
    assert len(stored(paths)) == 240
    assert_equal(server, paths)
