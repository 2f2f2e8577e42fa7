"""The whole way: apps, `otel-llm ship`, a real Collector, `otel-llm serve`. Whatever is killed, the account has each call once."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otel_llm.fleet.wire_row import USAGE_COLUMNS
from tests.conftest import LocalOpenAI, Run
from tests.fleet.serve.conftest import COMMAND, Server
from tests.integration.collector import Collector, eventually, needs_collector
from tests.integration.ports import free_ports
from tests.store.conftest import query

pytestmark = needs_collector

APP = """
import sys, openai, otel_llm
client = openai.OpenAI(max_retries=0)
for number in range(6):
    with otel_llm.llm_context("search", user_id=f"ann-{number}@example.com", customer="acme@example.com"):
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": f"{sys.argv[1]} {number}"}])
try:
    client.chat.completions.create(model="error-500", messages=[{"role": "user", "content": "no"}])
except openai.APIStatusError:
    pass
for chunk in client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "on"}], stream=True):
    pass
"""
TOKEN = "the-token"


def account(store: Path) -> dict[tuple[str, str], tuple[Any, ...]]:
    """The rows by trace and span, each with all that travels."""
    rows = query(store, f"SELECT trace_id, span_id, {', '.join(USAGE_COLUMNS)} FROM llm_usage")
    assert len({row[:2] for row in rows}) == len(rows)
    return {row[:2]: row[2:] for row in rows}


@contextmanager
def shipping(store: Path, to: str) -> Iterator[subprocess.Popen[str]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [COMMAND, "ship", "--to", to, "--grace", "30"]
    with subprocess.Popen(
        command, env={**clean, "OTEL_LLM_STORE": str(store)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_apps_through_a_gateway_to_serve_make_one_row_a_call(
    tmp_path: Path, run_instrumented: Run, openai_server: LocalOpenAI
) -> None:
    pytest.importorskip("uvicorn")
    stores = [tmp_path / f"machine-{number}" / "usage.duckdb" for number in range(2)]
    central = tmp_path / "central" / "usage.duckdb"
    (port,) = free_ports(1)
    quickly = "exporters::otlp_grpc/account::retry_on_failure: {initial_interval: 10ms, max_interval: 200ms}"
    environment = {"ACCOUNT_ENDPOINT": f"127.0.0.1:{port}", "ACCOUNT_INSECURE": "true", "ACCOUNT_TOKEN": TOKEN}
    gateway = Collector(tmp_path / "gateway", "gateway.yaml", "account.yaml", changes=(quickly,), **environment)

    def serve() -> Server:
        listen = ("--grpc", f"127.0.0.1:{port}", "--http", "none")
        return Server(central, *listen, env={"OTEL_LLM_SERVE_TOKEN": TOKEN})

    def calls(what: str) -> None:
        for store in stores:
            run_instrumented(APP, what, env={"OTEL_LLM_STORE": str(store), "OTEL_SERVICE_NAME": store.parent.name})

    def arrived(number: int) -> bool:
        return central.exists() and len(account(central)) >= number

    with gateway:
        url = gateway.endpoint("http/protobuf")
        with shipping(stores[0], url) as one, shipping(stores[1], url) as other:
            calls("first")  # with nobody behind the gateway
            eventually(
                lambda: all(shipped(store) >= 8 for store in stores), "the gateway does not take the first calls"
            )
            gateway.kill()
            calls("second")  # and none in front
            gateway.start()
            server = serve()
            try:
                eventually(lambda: arrived(32), "not every call of the first two rounds arrives")
                server.kill()
                calls("third")
                one.kill()
                gateway.kill()
                gateway.start()
            finally:
                server.kill()
        with shipping(stores[0], url) as one, shipping(stores[1], url) as other:
            server = serve()
            try:
                eventually(lambda: arrived(48), "not every call of the third round arrives")
                for process in (one, other):
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(60) == 0
                here = account(stores[0]) | account(stores[1])
                assert len(here) == 48
                eventually(lambda: account(central) == here, "the account there is not the sum of those here")
                server.stop()
            finally:
                server.kill()
    # Whom it is accounted to came through the gateway as it was.
    tags = query(central, "SELECT DISTINCT tags['customer'] FROM llm_usage WHERE user_id IS NOT NULL")
    assert tags == [("acme@example.com",)]


def shipped(store: Path) -> int:
    """Rows of it that its destination has taken."""
    if not store.exists():
        return 0
    ((number,),) = query(store, "SELECT coalesce(sum(sent), 0) FROM shipments")
    return int(number)
