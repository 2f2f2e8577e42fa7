"""Three machines ship to one ClickHouse, over a line that breaks: its account is the sum of theirs, row by row."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from otel_llm.account.call_filter import CallFilter
from otel_llm.account.engine import Row
from otel_llm.account.opening import open_clickhouse, open_store
from otel_llm.account.sums import MEASURES, Dimension
from otel_llm.conventions import semconv
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.ship.clickhouse import ClickHouseDestination
from otel_llm.fleet.ship.destination import Block, NotNow, Receipt
from otel_llm.fleet.ship.shipper import Shipper
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.fleet import clickhouse_server
from tests.fleet.ship import conftest as local
from tests.fleet.ship.test_clickhouse import as_there, stored
from tests.store.conftest import NOON, USAGE, end, start, write_call

MACHINES = 3
SUMMED = ("calls", "errors", "input_tokens", "output_tokens", "cached", "cost_usd", "unpriced", "estimated_usd")


class BreakingLine(ClickHouseDestination):
    """Half of what is sent is not confirmed: it has arrived, or it has not."""

    most_rows = 7
    dice = random.Random(15)

    def send(self, block: Block) -> Receipt:
        luck = self.dice.random()
        if luck < 0.25:
            raise NotNow("the line is broken")
        receipt = super().send(block)
        if luck < 0.5:
            raise NotNow("the line broke before the answer came")
        return receipt


class Machine:
    """A store, who writes it, and who ships it."""

    def __init__(self, directory: Path, url: ClickHouseURL, clock: int) -> None:
        self.paths = StorePaths.of(directory / "usage.duckdb")
        self.url = url
        self.clock = clock
        """How wrong it is, in nanoseconds."""
        self.journal = Journal(self.paths.journal)
        self.journal.resource = {"service.name": directory.name}
        self.shipper = self._new_shipper()

    def _new_shipper(self) -> Shipper:
        return Shipper(lambda: self.paths, BreakingLine(self.url), ("llm_usage",))

    def call(self, number: int, model: str = "gpt-4o-mini") -> None:
        attributes = {**USAGE, semconv.RESPONSE_MODEL: model, "user.id": f"user-{number % 3}"}
        write_call(self.journal, attributes, st=NOON + number * 3_600_000_000_000 + self.clock)

    def merged(self) -> Machine:
        assert merge(self.paths.database).complete
        return self

    def reprice(self) -> None:
        with exclusive.alone(self.paths) as connection:  # as if some prices had not been known
            connection.execute(
                "UPDATE llm_usage SET cost_usd = NULL, price_source = 'no price' WHERE user_id = 'user-1'"
            )
            assert repricing.reprice(connection, repricing.Choice()).changed

    def ship(self, attempts: int) -> bool:
        """Whether all has arrived."""
        for _ in range(attempts):
            try:
                if self.shipper.ship():
                    return True
            except NotNow:
                pass
        return False

    def die(self) -> None:
        """Another process ships from here on."""
        self.shipper.let_go()
        self.shipper = self._new_shipper()


@pytest.fixture
def url(clickhouse: str) -> ClickHouseURL:
    clickhouse_server.empty(clickhouse)
    return ClickHouseURL.parse(clickhouse)


@pytest.fixture
def machines(tmp_path: Path, url: ClickHouseURL) -> Iterator[list[Machine]]:
    year = 365 * 24 * 3_600 * 10**9
    made = [Machine(tmp_path / f"machine-{number}", url, clock) for number, clock in enumerate((0, 0, -3 * year))]
    yield made
    for machine in made:
        machine.journal.close()
        machine.shipper.let_go()


def sums(rows: Sequence[Row]) -> dict[object, list[object]]:
    at = [1 + list(MEASURES).index(name) for name in SUMMED]
    return {row[0]: [row[column] for column in at] for row in rows}


def together(parts: Sequence[dict[object, list[object]]]) -> dict[object, list[object]]:
    whole: dict[object, list[object]] = {}
    for part in parts:
        for key, values in part.items():
            known = whole.get(key, [None] * len(values))
            whole[key] = [
                one if other is None else other + (one or 0) for one, other in zip(known, values, strict=True)
            ]  # type: ignore[operator]
    return whole


def test_the_account_of_all_is_the_sum_of_theirs(machines: list[Machine], url: ClickHouseURL) -> None:
    late = []
    for machine in machines:
        for number in range(20):
            machine.call(number, "gpt-4o-mini" if number % 4 else "no-such-model")
        late.append(start(st=NOON + machine.clock))  # its end comes much later
        machine.journal.append(late[-1])
        machine.merged().ship(attempts=4)  # some of it
        machine.die()
    for machine, call in zip(machines, late, strict=True):
        machine.reprice()
        machine.ship(attempts=2)
        machine.journal.append(end(call))
        for number in range(20, 30):
            machine.call(number)
        machine.merged()
        machine.die()
    for machine in machines:
        assert machine.ship(attempts=300)

    rows = [row for machine in machines for row in local.stored(machine.paths).values()]
    expected = sorted(map(as_there, rows), key=lambda row: (row["trace_id"], row["span_id"]))
    assert len(expected) == MACHINES * 31
    assert stored(url) == expected
    assert max(row["row_version"] for row in expected) > 1
    with open_clickhouse(url) as whole:
        for by in ("model", "user", "day", "service"):
            parts = []
            for machine in machines:
                with open_store(machine.paths.database) as part:
                    parts.append(sums(part.sums([Dimension(by)])))
            found = sums(whole.sums([Dimension(by)]))
            assert found == together(parts), by
        assert len(found) == MACHINES and isinstance(whole.costs().computed, Decimal | None)
        wrong = CallFilter(
            until=datetime(2025, 1, 1, tzinfo=UTC)
        )  # whose clock is wrong is in its own time, and in no other's
        assert sum(row[1] for row in whole.sums([Dimension("service")], wrong)) == 31
