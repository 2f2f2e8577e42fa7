"""Calls that were priced too early, or wrongly, are priced again: all of them or none."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from otel_llm.conventions import semconv
from otel_llm.settings import reload
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.jobs.repricing import Choice, Repriced
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import NOON, query, write_call

OWN = {semconv.PROVIDER: "azure.ai.openai", semconv.REQUEST_MODEL: "my-deployment"}
TOKENS = {semconv.INPUT_TOKENS: 1_000_000, semconv.OUTPUT_TOKENS: 1_000_000}
TABLE = '[[price]]\nmodel = "my-*"\ninput = 2\noutput = 8\n[[price]]\nmodel = "my-*"\ninput = 1\noutput = 4\ntier = "batch"\n'
"""The first entry matches first: the second is for another order, below."""


def set_prices(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(text)
    monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
    reload()


def again(path: Path, *, dry_run: bool = False, **choice: Any) -> Repriced:
    with exclusive.alone(StorePaths.of(path)) as connection:
        return repricing.reprice(connection, Choice(**choice), dry_run=dry_run)


def costs(path: Path) -> list[tuple[Decimal | None, str]]:
    return [row[:2] for row in query(path, "SELECT cost_usd, price_source, started_at FROM llm_usage ORDER BY 3, 1")]


@pytest.fixture
def three(journal: Journal, store_path: Path) -> Path:
    """A call that has a price, one whose price is not known, and one that told no usage."""
    write_call(journal, TOKENS, number=1)
    write_call(journal, TOKENS | OWN, number=2)
    write_call(journal, OWN, number=3)
    merge(store_path)
    return store_path


def test_what_had_no_price_gets_one(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = costs(three)
    assert [cost for cost, _ in before][1:] == [None, None]
    set_prices(TABLE, tmp_path, monkeypatch)
    expected = Repriced(2, 1, Decimal(0), Decimal(10), {"no usage reported": 1})
    assert again(three, dry_run=True) == expected
    assert costs(three) == before
    assert again(three) == expected
    assert costs(three) == [before[0], (Decimal(10), "override"), (None, "no usage reported")]
    assert again(three) == Repriced(1, 0, unpriced={"no usage reported": 1})


def test_all_of_a_model_since_a_time(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_prices('[[price]]\nmodel = "*"\ninput = 1\noutput = 1\n', tmp_path, monkeypatch)
    began = datetime.fromtimestamp(NOON / 1e9, UTC).replace(microsecond=2_000)
    assert again(three, priced_too=True, since=began, dry_run=True).calls == 2
    assert again(three, priced_too=True, model="gpt-4o*", dry_run=True) == Repriced(
        1, 1, costs(three)[0][0], Decimal(2)
    )
    assert again(three, priced_too=True, model="gpt-4o", dry_run=True).calls == 0
    assert again(three, priced_too=True).changed == 2
    assert [cost for cost, _ in costs(three)] == [Decimal(2), Decimal(2), None]


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_in_steps(step: int, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repricing, "_STEP", step)
    set_prices('[[price]]\nmodel = "*"\ninput = 1\noutput = 1\n', tmp_path, monkeypatch)
    assert again(three, priced_too=True).calls == 3
    assert [cost for cost, _ in costs(three)] == [Decimal(2), Decimal(2), None]


def test_a_fault_half_way_changes_nothing(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = costs(three)
    set_prices('[[price]]\nmodel = "*"\ninput = 1\noutput = 1\n', tmp_path, monkeypatch)
    monkeypatch.setattr(repricing, "_STEP", 1)
    measure = repricing._measure

    def fail(*arguments: Any) -> None:
        measure(*arguments)
        if arguments[1].calls == 2:
            raise RuntimeError("half way")

    monkeypatch.setattr(repricing, "_measure", fail)
    with pytest.raises(RuntimeError, match="half way"):
        again(three, priced_too=True)
    assert costs(three) == before
    monkeypatch.undo()


def test_tiers_and_cache_hits_stay_what_they_are(journal: Journal, store_path: Path) -> None:
    at = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * 10**9
    for number, tier in enumerate(("default", "batch", "priority", "flex"), start=1):
        write_call(journal, TOKENS | {semconv.OPENAI_RESPONSE_SERVICE_TIER: tier}, st=at + number * 10**6)
    write_call(journal, TOKENS | {semconv.CACHE_HIT: True}, st=at + 9 * 10**6)
    merge(store_path)
    before = costs(store_path)
    standard = before[0][0]
    assert standard is not None
    assert [cost for cost, _ in before] == [standard, standard / 2, Decimal("1.25"), None, Decimal(0)]
    assert before[3][1] == "no flex price for openai/gpt-4o-mini"
    assert again(store_path, priced_too=True).changed == 0
    assert costs(store_path) == before


def test_the_tier_of_a_call_of_an_older_version_is_read_from_its_span(store_path: Path) -> None:
    with duckdb.connect(str(store_path), config={"storage_compatibility_version": "v1.5.0"}) as connection:
        connection.execute((Path(__file__).parents[1] / "file" / "schema_2.sql").read_text())
        flex = """replace(attributes, '"openai.response.service_tier":"default"', '"openai.response.service_tier":"flex"')"""
        connection.execute(f"UPDATE spans SET attributes = {flex} WHERE name = 'chat gpt-5-mini'")
    of_flex = "FROM llm_usage WHERE request_model = 'gpt-5-mini'"
    (before,) = query(store_path, f"SELECT cost_usd {of_flex}")
    again(store_path, priced_too=True)
    assert query(store_path, f"SELECT cost_usd, service_tier {of_flex}") == [
        ((before[0] / 2).quantize(Decimal("1e-9"), ROUND_HALF_UP), "flex")
    ]
