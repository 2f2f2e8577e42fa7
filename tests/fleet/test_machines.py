"""Machines that are apart, as network namespaces: apps on two of them, a gateway, `otel-llm serve`, and ClickHouse.

Both apps' machines ship to both ends, by a real Collector to `serve` and directly to ClickHouse. What runs is killed, cables are
pulled, one clock is wrong, a price changes: in the end the two accounts and the sum of the machines' own are the same, row by row.
Needs root, `ip` (Debian's iproute2), a Collector and chdb; skipped, and said so, without.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.fleet.wire_row import USAGE_COLUMNS, Row, select_list
from tests.conftest import EXAMPLES, ROOT
from tests.fleet import clickhouse_server
from tests.integration.collector import DIRECTORY, eventually, needs_collector
from tests.store.conftest import query

pytestmark = [needs_collector, pytest.mark.timeout(600)]

TOKEN = "the-token"
MACHINES = ("shop", "search", "gateway", "serve", "clickhouse")
OTEL_LLM = str(Path(sys.executable).with_name("otel-llm"))

APP = """
import sys, time
if late := float(sys.argv[1]):
    for name, factor in (("time", 1), ("time_ns", 10**9)):
        setattr(time, name, lambda now=getattr(time, name), by=late * factor: now() + type(now())(by))
import openai, otel_llm
otel_llm.instrument()
client = openai.OpenAI(max_retries=0)
while sys.stdin.readline():
    for number in range(3):
        with otel_llm.llm_context("search", user_id=f"ann-{number}@example.com", customer="acme@example.com"):
            for model in ("gpt-4o-mini", "our-own-model"):
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": f"hello {number}"}])
    print("called", flush=True)
"""
CALLS = 6
PRICES = """
[[price]]
provider = "*"
model = "our-own-model"
input = 1.5
output = 6
"""
ROWS_IN_CLICKHOUSE = """
import json, sys
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from tests.fleet.ship.test_clickhouse import stored
try:
    print(json.dumps(stored(ClickHouseURL.parse(sys.argv[1]))))
except Exception as error:
    sys.exit(f"{error}")
"""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class Machine:
    """A network namespace on a cable to the others, and what runs there."""

    def __init__(self, name: str, number: int) -> None:
        self.name = f"{name}-{os.getpid()}"
        self.address = f"10.77.0.{number + 1}"
        self.cable = f"c{number}"
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[str]:
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "OPENAI_", "CLICKHOUSE_"))
        }
        self.running[name] = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            env={**clean, "PYTHONPATH": str(ROOT), **environment},
            cwd=log.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("a"),
            text=True,
        )
        return self.running[name]

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.communicate()

    def pull(self, switch: str) -> None:
        run("ip", "-n", switch, "link", "set", self.cable, "down")

    def plug(self, switch: str) -> None:
        run("ip", "-n", switch, "link", "set", self.cable, "up")


class Network:
    """The machines by name, all on one switch."""

    def __init__(self) -> None:
        self.switch = f"switch-{os.getpid()}"
        self.machines = {name: Machine(name, number) for number, name in enumerate(MACHINES)}

    def lay(self) -> None:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "name", "hub", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "hub", "up")
        for machine in self.machines.values():
            run("ip", "netns", "add", machine.name)
            run("ip", "-n", machine.name, "link", "set", "lo", "up")
            run(
                "ip",
                "-n",
                self.switch,
                "link",
                "add",
                machine.cable,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                machine.name,
            )
            run("ip", "-n", self.switch, "link", "set", machine.cable, "master", "hub", "up")
            run("ip", "-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            run("ip", "-n", machine.name, "link", "set", "eth0", "up")

    def take_away(self) -> None:
        for machine in self.machines.values():
            for name in [*machine.running]:
                machine.kill(name)
        for name in (*(machine.name for machine in self.machines.values()), self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=60)


@pytest.fixture
def network() -> Iterator[Network]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("NOT SEEN ON MACHINES THAT ARE APART: it needs root and `ip`")
    network = Network()
    try:
        network.lay()
    except subprocess.CalledProcessError as error:
        network.take_away()
        pytest.skip(f"NOT SEEN ON MACHINES THAT ARE APART: {error.stderr}")
    yield network
    network.take_away()


def rows_of(store: Path) -> dict[tuple[str, str], Row]:
    if not store.exists():
        return {}
    rows = query(store, f"SELECT {select_list(USAGE_COLUMNS)} FROM llm_usage")
    named = [dict(zip(USAGE_COLUMNS, row, strict=True)) for row in rows]
    found = {(row["trace_id"], row["span_id"]): row for row in named}
    assert len(found) == len(rows)
    return found


def in_clickhouse(row: Mapping[str, Any]) -> Row:
    """ClickHouse has no NULL for lists and mappings."""
    empty: dict[str, Any] = {"finish_reasons": [], "tags": {}, "units": {}}
    return {name: empty.get(name) if value is None else value for name, value in row.items()}


def same_amount(column: str, one: object, other: object) -> bool:
    """ClickHouse writes no zeros at the end of a decimal."""
    return column == "cost_usd" and None not in (one, other) and Decimal(str(one)) == Decimal(str(other))


def test_two_accounts_and_the_sum_of_the_machines_own_agree(network: Network, tmp_path: Path) -> None:
    pytest.importorskip("chdb", reason="ClickHouse is NOT TESTED here: pip install chdb")
    pytest.importorskip("uvicorn")
    machines = network.machines
    folders = {name: tmp_path / name for name in MACHINES}
    for folder in folders.values():
        folder.mkdir()
    stores = {name: folders[name] / "usage.duckdb" for name in ("shop", "search")}
    central = folders["serve"] / "usage.duckdb"
    at_clickhouse = f"clickhouse://default@{machines['clickhouse'].address}:8123/otel"

    def log(name: str, what: str) -> Path:
        return folders[name] / f"{what}.log"

    def gateway() -> None:
        quickly = "exporters::otlp_grpc/account::retry_on_failure: {initial_interval: 50ms, max_interval: 500ms}"
        files = [f"--config={DIRECTORY / file}" for file in ("gateway.yaml", "account.yaml")]
        machines["gateway"].start(
            "gateway", [os.environ["OTELCOL_BIN"], *files, f"--config=yaml:{quickly}"], log("gateway", "gateway"),
            COLLECTOR_HOST="0.0.0.0", ACCOUNT_TOKEN=TOKEN,
            ACCOUNT_ENDPOINT=f"{machines['serve'].address}:4317", ACCOUNT_INSECURE="true",
        )  # fmt: skip

    def serve() -> None:
        machines["serve"].start(
            "serve", [OTEL_LLM, "serve", "--grpc", "0.0.0.0:4317", "--http", "none"], log("serve", "serve"),
            OTEL_LLM_STORE=str(central), OTEL_LLM_SERVE_TOKEN=TOKEN,
        )  # fmt: skip

    def ship(name: str) -> None:
        ends = ["--to", f"http://{machines['gateway'].address}:4318", "--to", at_clickhouse]
        machines[name].start("ship", [OTEL_LLM, "ship", *ends], log(name, "ship"), OTEL_LLM_STORE=str(stores[name]))

    script = tmp_path / "app.py"
    script.write_text(APP)
    apps = {}
    for name, clock in (("shop", "0"), ("search", "-9000")):  # one is two and a half hours late
        model = machines[name].start(
            "model", [sys.executable, str(EXAMPLES / "local_openai.py"), "--port", "8080"], log(name, "model")
        )
        assert model.stdout is not None and model.stdout.readline()
        apps[name] = machines[name].start(
            "app", [sys.executable, str(script), clock], log(name, "app"),
            OTEL_LLM_STORE=str(stores[name]), OTEL_SERVICE_NAME=name, OTEL_TRACES_EXPORTER="duckdb",
            OPENAI_BASE_URL="http://127.0.0.1:8080/v1", OPENAI_API_KEY="x",
        )  # fmt: skip

    def call() -> None:
        for app in apps.values():
            assert app.stdin is not None and app.stdout is not None
            app.stdin.write("again\n")
            app.stdin.flush()
        for name, app in apps.items():
            assert app.stdout is not None
            assert app.stdout.readline() == "called\n", log(name, "app").read_text()

    def arrived(number: int) -> bool:
        return len(rows_of(central)) >= number

    clickhouse = machines["clickhouse"].start(
        "clickhouse",
        [sys.executable, clickhouse_server.__file__, "{}", machines["clickhouse"].address, "8123"],
        log("clickhouse", "clickhouse"),
    )
    assert clickhouse.stdout is not None and clickhouse.stdout.readline()
    for name in stores:
        ship(name)

    call()  # with neither a gateway nor `serve`
    gateway()
    call()
    machines["clickhouse"].pull(network.switch)
    serve()
    eventually(lambda: arrived(4 * CALLS), "the first calls do not arrive")
    machines["gateway"].kill("gateway")
    call()
    machines["shop"].kill("ship")
    gateway()
    machines["serve"].pull(network.switch)
    call()
    ship("shop")
    machines["serve"].kill("serve")
    machines["clickhouse"].plug(network.switch)
    serve()
    machines["serve"].plug(network.switch)
    call()
    (tmp_path / "prices.toml").write_text(PRICES)
    for store in stores.values():
        environment = {**os.environ, "OTEL_LLM_STORE": str(store), "OTEL_LLM_PRICES": str(tmp_path / "prices.toml")}
        priced = subprocess.run([OTEL_LLM, "reprice"], env=environment, capture_output=True, text=True, timeout=120)
        assert priced.returncode == 0, priced.stderr

    here = rows_of(stores["shop"]) | rows_of(stores["search"])
    assert len(here) == 2 * 5 * CALLS
    repriced = [row for row in here.values() if row["request_model"] == "our-own-model"]
    assert len(repriced) == len(here) / 2
    assert all(row["cost_usd"] is not None for row in repriced)
    assert any(row["row_version"] > 1 for row in repriced)  # those that had been shipped without a price
    ages = {
        row["service_name"]: row["started_at"] for row in sorted(here.values(), key=lambda row: str(row["started_at"]))
    }
    assert ages["search"] < ages["shop"]

    eventually(lambda: rows_of(central) == here, "the account in serve is not the sum of the machines' own")

    def differences() -> list[Any]:
        """Columns of rows that are not in ClickHouse as they are here, or what it says instead of rows."""
        machine = machines["clickhouse"].name
        command = ["ip", "netns", "exec", machine, sys.executable, "-c", ROWS_IN_CLICKHOUSE, at_clickhouse]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        if done.returncode:
            return [done.stderr]
        found = {(row["trace_id"], row["span_id"]): row for row in json.loads(done.stdout)}
        return [*found.keys() ^ here.keys()] + [
            (key, name, value, found[key][name])
            for key in found.keys() & here.keys()
            for name, value in in_clickhouse(here[key]).items()
            if found[key][name] != value and not same_amount(name, found[key][name], value)
        ]

    eventually(lambda: not differences(), "the account in ClickHouse is not the sum of the machines' own")
