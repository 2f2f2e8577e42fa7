"""Prices that an earlier process has looked up are taken from its file, for as long as the library would say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from otel_llm.prices import library
from otel_llm.prices.billing import SLOT_NS
from otel_llm.prices.remembered import RememberedQuotes

ASK = """
import sys
from pathlib import Path
from otel_llm.prices.book import PriceBook
from otel_llm.prices.remembered import RememberedQuotes
book = PriceBook(library=RememberedQuotes(Path(sys.argv[1])))
for row in book.rows([("openai", model, None, None, int(sys.argv[2])) for model in sys.argv[3:]]):
    print(row)
print("imported" if "genai_prices" in sys.modules else "remembered")
"""
NOON = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()) * 10**9 // SLOT_NS


def ask(file: Path, *models: str, slot: int = NOON) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(file), str(slot), *models], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    *rows, how = done.stdout.splitlines()
    return rows, how


def test_the_next_process_says_the_same_without_the_library(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    models = ("gpt-4o-mini", "o4-mini", "no-such-model", "gpt-4o-search-preview")
    first, how = ask(file, *models)
    assert how == "imported"
    assert ask(file, *models) == (first, "remembered")
    assert ask(file, *models, "gpt-4.1")[1] == "imported"  # of one that nobody has asked for
    assert ask(file, *models, "gpt-4.1")[1] == "remembered"
    assert file.stat().st_mode & 0o777 == 0o600


def other_library(content: dict[str, Any]) -> None:
    content["of"][1][0] += 1


def other_version(content: dict[str, Any]) -> None:
    content["of"][0] = "0.0.1"


def other_shape(content: dict[str, Any]) -> None:
    content["quotes"] = [["openai", "gpt-4o-mini"]]


def other_time(content: dict[str, Any]) -> None:
    for row in content["quotes"]:
        row[3:5] = [0, 1]


@pytest.mark.parametrize("change", [other_library, other_version, other_shape, other_time, None])
def test_what_is_not_of_this_library_is_looked_up_again(tmp_path: Path, change: Any) -> None:
    file = tmp_path / "prices.json"
    first, _ = ask(file, "gpt-4o-mini")
    content = json.loads(file.read_bytes())
    content["quotes"][0][-1][0] = "from the file"
    if change is None:
        file.write_bytes(file.read_bytes()[:-20])
    else:
        change(content)
        file.write_text(json.dumps(content))
    assert ask(file, "gpt-4o-mini") == (first, "imported")


def test_the_library_is_asked_where_it_is_here_already(tmp_path: Path) -> None:
    """The app may have given it other prices."""
    file = tmp_path / "prices.json"
    ask(file, "gpt-4o-mini")
    file.write_text(file.read_text().replace("genai-prices", "from the file"))
    assert "genai_prices" in sys.modules or library.find("openai", "gpt-4o-mini")
    quote = RememberedQuotes(file).quote("openai", "gpt-4o-mini", None, NOON * SLOT_NS)
    assert quote is not None and quote.source.startswith("genai-prices")


def test_prices_of_the_app_are_not_kept() -> None:
    from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot

    set_custom_snapshot(DataSnapshot(providers=[*get_snapshot().providers], from_auto_update=False))
    try:
        assert library.holds("openai", "gpt-4o-mini", NOON * SLOT_NS) is None
    finally:
        set_custom_snapshot(None)


def models_with_dates() -> Iterator[tuple[str, str]]:
    from genai_prices import data

    for provider in data.providers:
        for model in provider.models:
            variants = getattr(model, "price_variants", None) or ()
            if isinstance(model.prices, list) or any(variant.constraint for variant in variants):
                yield provider.id, model.id


def test_a_price_is_kept_no_longer_than_it_holds() -> None:
    """Of every model whose price has changed, or does each day: at any time of what is kept the library says what it said first."""
    found = 0
    for provider, model in models_with_dates():
        _, days = library.dates(provider, model)
        moments = {NOON * SLOT_NS, 0} | {
            int(datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp() - before) * 10**9
            for day in days
            for hour in range(0, 24, 3)
            for before in (0, 1)
        }
        for tier in (None, "batch", "priority"):
            for at in moments:
                if (span := library.holds(provider, model, at)) is None:
                    continue
                found += 1
                assert span[0] <= at < span[1]
                within = [other for other in moments if span[0] <= other < span[1]]
                said = {repr(library.quote(provider, model, tier, other)) for other in within}
                assert len(said) == 1, (provider, model, tier, span)
    assert found
