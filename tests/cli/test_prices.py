"""`otel-llm prices`."""

from __future__ import annotations

import json
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import StartDateConstraint

from tests.cli.conftest import Fill, Run

SOURCE = f"genai-prices {metadata.version('genai-prices')}"
TABLE = """
[[price]]
provider = "azure.ai.openai"
model = "my-*"
input = 2.5
cache_read = 1.25
output = 10
call = 0.01
"""


def rows(run: Run, *arguments: str) -> list[dict[str, Any]]:
    result = run("prices", "--json", *arguments)
    assert (result.code, result.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def test_a_model_of_the_library(run: Run) -> None:
    (row,) = rows(run, "gpt-4o-mini")
    assert row == {
        "model": "gpt-4o-mini", "provider": "openai", "since": None, "above": None, "input": 0.15, "output": 0.6,
        "cache_read": 0.075, "cache_write": 0.15, "cache_write_1h": 0.15, "reasoning": 0.6, "audio_input": None,
        "audio_output": None, "audio_cache_read": None, "image_input": None, "image_output": None, "image_cache_read": None,
        "call": None, "units": {"file_search_calls": 0.0025, "web_search_preview_calls": 0.025}, "source": SOURCE,
    }  # fmt: skip
    assert rows(run, "gpt-4o-mini", "--provider", "openai") == [row]


def test_a_table_leaves_out_what_costs_the_same_as_the_whole(run: Run) -> None:
    heading, _, row = run("prices", "gpt-4o-mini").out.splitlines()
    assert heading.split() == ["model", "provider", "input", "output", "cache_read", "units", "source"]
    units = "file_search_calls 0.0025, web_search_preview_calls 0.025"
    assert row.split() == ["gpt-4o-mini", "openai", "0.15", "0.6", "0.075", *units.split(), *SOURCE.split()]


def test_a_model_whose_name_does_not_give_away_its_provider(run: Run) -> None:
    (row,) = rows(run, "text-embedding-3-small")
    assert (row["provider"], row["input"], row["output"]) == ("openai", 0.02, None)


def dated_model() -> tuple[str, str, list[date]]:
    """A model of the library whose price has changed; which ones there are changes with its versions."""
    for provider in get_snapshot().providers:
        for model in provider.models:
            if isinstance(model.prices, list):
                starts = [price.constraint for price in model.prices]
                dates = [start.start_date for start in starts if isinstance(start, StartDateConstraint)]
                first = model.prices[0].prices
                if dates and len(dates) == len(starts) - 1 and isinstance(getattr(first, "input_mtok", None), object):
                    return provider.id, model.id, sorted(dates)
    pytest.skip("no price of the installed genai-prices has changed")


def test_dated_prices(run: Run) -> None:
    provider, model, dates = dated_model()
    found = rows(run, model, "--provider", provider)
    assert list(dict.fromkeys(row["since"] for row in found)) == [None, *map(str, dates)]
    (last, *_) = [row for row in found if row["since"] == str(dates[-1])]
    (then, *_) = rows(run, model, "--provider", provider, "--at", f"{dates[-1]}T12:00Z")
    assert (then["input"], then["output"], then["since"]) == (last["input"], last["output"], None)


def test_prices_of_ones_own(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(TABLE)
    monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
    (row,) = rows(run, "my-deployment", "--provider", "azure.ai.openai")
    assert (row["source"], row["input"], row["cache_read"], row["cache_write"], row["output"], row["call"]) == (
        "override", 2.5, 1.25, 2.5, 10, 0.01,
    )  # fmt: skip
    assert run("prices", "my-deployment", "--provider", "openai").code == 2


def test_who_sells_a_model_is_looked_up_in_the_store(
    tmp_path: Path, fill: Fill, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(TABLE)
    monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
    fill({"provider": "azure.ai.openai", "request_model": "my-deployment"})
    assert [row["provider"] for row in rows(run, "my-deployment")] == ["azure.ai.openai"]


def test_without_a_model_those_of_the_store(fill: Fill, run: Run) -> None:
    assert run("prices").out.startswith("No model calls recorded yet in ")
    answered = {"request_model": "gpt-4o-mini", "response_model": "gpt-4o-mini-2024-07-18"}
    fill(answered, answered, {"request_model": "mystery", "provider": "here"}, {"request_model": None})
    mini, mystery = rows(run)
    assert (mini["model"], mini["input"], mini["source"]) == ("gpt-4o-mini-2024-07-18", 0.15, SOURCE)
    assert (mystery["input"], mystery["source"]) == (None, "no price for here/mystery")
    assert [row["model"] for row in rows(run, "--provider", "here")] == ["mystery"]
    assert "no price for here/mystery" in run("prices").out
