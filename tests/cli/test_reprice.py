"""`otel-llm reprice`."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tests.cli.conftest import Fill, Run
from tests.cli.test_life import rows

CALL = {"request_model": "my-model", "input_tokens": 1_000_000, "output_tokens": 1_000_000, "price_source": "no price"}


@pytest.fixture
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('[[price]]\nmodel = "my-*"\ninput = 2\noutput = 8\n')
    monkeypatch.setenv("OTEL_LLM_PRICES", str(table))


def test_what_it_says_and_does(fill: Fill, run: Run, prices: None) -> None:
    store = fill(CALL, CALL | {"cost_usd": Decimal(1)}, {"request_model": "my-model"})
    costs = "SELECT cost_usd, price_source FROM llm_usage ORDER BY span_id"
    before = rows(store, costs)
    said = "1 of 2 calls {} another price.\nThey cost 0.000000 USD before, 10.000000 USD now.\n"
    said += "Without a price: 1 call (no usage reported).\n"
    assert run("reprice", "--dry-run").out == said.format("would get")
    assert rows(store, costs) == before
    assert run("reprice").out == said.format("got")
    assert run("reprice", "--model", "mine").out == "0 of 0 calls got another price.\n"
    assert run("reprice", "--all", "--since", "2026-11-20").out.startswith("1 of 3 calls got another price.\n")
    assert [cost for cost, _ in rows(store, costs)] == [Decimal(10), Decimal(10), None]


def test_without_a_store(run: Run) -> None:
    result = run("reprice")
    assert (result.code, result.out) == (2, "") and "there is no store" in result.err
