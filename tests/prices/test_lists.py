"""Price lists of others: LiteLLM's map and models.dev's api.json, taken in from a file or from where they are published."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.prices import lists
from otel_llm.prices.book import PriceBook
from otel_llm.prices.lists import PriceLists
from otel_llm.prices.rates import Quote, Rate

NAMES = Path(__file__).with_name("model_names.txt")
NOW = time.time_ns()
LITELLM: dict[str, Any] = {
    "sample_spec": {"litellm_provider": "one of the providers", "input_cost_per_token": 0, "mode": "one of: chat"},
    "fallback_generalizations": {"rules": []},
    "dashscope/qwen-new": {
        "litellm_provider": "dashscope", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6,
        "cache_read_input_token_cost": 2e-7, "input_cost_per_token_above_128k_tokens": 2e-6,
        "output_cost_per_token_above_128k_tokens": 8e-6, "input_cost_per_token_batches": 5e-7,
        "output_cost_per_token_batches": 2e-6, "max_tokens": 8192,
        "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": 0.01},
    },
    "dashscope/by-range": {
        "litellm_provider": "dashscope", "mode": "chat", "tiered_pricing": [
            {"range": [0, 32000.0], "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6},
            {"range": [32000.0, 128000.0], "input_cost_per_token": 3e-6, "output_cost_per_token": 4e-6},
        ],
    },
    "dashscope/qwen-latest": {"alias_of": "dashscope/qwen-new"},
    "dashscope/search-by-size": {
        "litellm_provider": "dashscope", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6,
        "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": 0.03},
    },
    "dashscope/subscription": {
        "litellm_provider": "dashscope", "mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0.0,
    },
    "dashscope/nonsense": {"litellm_provider": "dashscope", "input_cost_per_token": -1, "output_cost_per_token": "free"},
    "us.anthropic.claude-new-v1:0": {
        "litellm_provider": "bedrock_converse", "mode": "chat", "input_cost_per_token": 3e-6, "output_cost_per_token": 1.5e-5,
        "cache_creation_input_token_cost": 3.75e-6, "cache_creation_input_token_cost_above_1hr": 6e-6,
    },
    "gpt-4o": {
        "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2.5e-6, "output_cost_per_token": 1e-5,
        "input_cost_per_audio_token": 4e-5, "output_cost_per_audio_token": 8e-5, "code_interpreter_cost_per_session": 0.03,
    },
    "gpt-4o-mini": {
        "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1, "output_cost_per_token": 1,
        "input_cost_per_audio_token": 1,
    },
    "gpt-4.1-mini": {
        "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 4e-7, "output_cost_per_token": 1.6e-6,
        "search_context_cost_per_query": {"search_context_size_low": 0.01},
    },
    "sound-new": {"litellm_provider": "openai", "mode": "audio_transcription", "input_cost_per_second": 0.0001},
    "film-new": {"litellm_provider": "openai", "mode": "video_generation", "output_cost_per_video_per_second": 0.1},
    "film-by-size": {
        "litellm_provider": "openai", "mode": "video_generation", "output_cost_per_video_per_second": 0.1,
        "output_cost_per_second_1080p": 0.7,
    },
    "draw-new": {"litellm_provider": "openai", "mode": "image_generation", "output_cost_per_image": 0.04},
}  # fmt: skip
MODELS_DEV = {
    "alibaba": {
        "id": "alibaba",
        "models": {
            "qwen-new": {"cost": {"input": 9, "output": 9}},
            "qwen-other": {
                "cost": {
                    "input": 0.5, "output": 1.5, "cache_read": 0.05, "input_audio": 3,
                    "context_over_200k": {"input": 1, "output": 3},
                },
            },
            "in-tiers": {
                "cost": {
                    "input": 1, "output": 2, "context_over_200k": {"input": 7, "output": 7},
                    "tiers": [{"tier": {"type": "context", "size": 272000}, "input": 2, "output": 4}],
                },
            },
            "by-the-hour": {"cost": {"input": 1, "output": 2, "tiers": [{"tier": {"type": "hour", "size": 3}, "input": 2}]}},
            "unpriced": {"name": "Unpriced"},
        },
    },
}  # fmt: skip


@pytest.fixture
def book(tmp_path: Path) -> PriceBook:
    """Both lists, imported."""
    for data in (LITELLM, MODELS_DEV):
        lists.save(tmp_path / "lists", *lists.parse(json.dumps(data)))
    book = PriceBook(lists=PriceLists(tmp_path / "lists"))
    book.read()
    return book


def million(rate: Rate) -> dict[str, str]:
    """USD per million tokens of the kinds that have a price of their own."""
    return {
        column.removesuffix("_tokens"): f"{(price * 1_000_000).normalize():f}"
        for column, price in rate.per_token.items()
        if price is not None and not column.startswith(("reasoning", "cache_write"))
    }


def test_litellm_s_map(book: PriceBook) -> None:
    quote = book.quote("dashscope", "qwen-new", None, None, NOW)
    assert quote.source.startswith("LiteLLM 2")
    small, large = quote.rates
    assert million(small) == {"input": "1", "output": "4", "cache_read": "0.2"}
    assert million(large) == {"input": "2", "output": "8", "cache_read": "0.2"}
    assert (small.above, small.up_to, large.above) == (-1, 128_000, 128_000)
    assert small.per_unit == {"web_search_calls": Decimal("0.01")}
    assert book.quote("dashscope", "QWEN-latest", None, None, NOW) == quote
    ranges = book.quote("dashscope", "by-range", None, None, NOW).rates
    assert [(rate.above, million(rate)["input"]) for rate in ranges] == [(-1, "1"), (32_000, "3")]
    (search,) = book.quote("dashscope", "search-by-size", None, None, NOW).rates
    assert search.per_unit == {}
    (claude,) = book.quote("aws.bedrock", "us.anthropic.claude-new-v1:0", None, None, NOW).rates
    assert claude.per_token["cache_write_1h_tokens"] == Decimal("0.000006")
    assert [book.quote("openai", name, None, None, NOW).rates[0].per_unit for name in ("sound-new", "draw-new", "film-new")] == [
        {"audio_seconds": Decimal("0.0001")}, {"images": Decimal("0.04")}, {"video_seconds": Decimal("0.1")},
    ]  # fmt: skip


def test_a_tier_has_prices_of_its_own_or_none(book: PriceBook) -> None:
    (batch,) = book.quote("dashscope", "qwen-new", None, "batch", NOW).rates
    assert million(batch) == {"input": "0.5", "output": "2"}  # what cached ones cost in a batch is not told
    assert book.quote("dashscope", "qwen-new", None, "default", NOW).rates[0].per_token["input_tokens"] == Decimal(
        "1e-6"
    )
    assert book.quote("dashscope", "qwen-new", None, "flex", NOW) == Quote("no flex price for dashscope/qwen-new")


def test_a_video_whose_price_depends_on_its_size(book: PriceBook) -> None:
    assert book.quote("openai", "film-by-size", None, None, NOW) == Quote("no price for openai/film-by-size")


@pytest.mark.parametrize("model", ["subscription", "nonsense", "by-the-hour", "unpriced", "never-heard-of"])
def test_what_a_list_does_not_know(model: str, book: PriceBook) -> None:
    """0 is what lists have for what they do not know, and for what a subscription pays."""
    assert book.quote("dashscope", model, None, None, NOW) == Quote(f"no price for dashscope/{model}")


def test_models_dev(book: PriceBook) -> None:
    quote = book.quote("dashscope", "qwen-other", None, None, NOW)
    assert quote.source.startswith("models.dev 2")
    assert [(rate.above, million(rate)) for rate in quote.rates] == [
        (-1, {"input": "0.5", "output": "1.5", "cache_read": "0.05", "audio_input": "3"}),
        (200_000, {"input": "1", "output": "3", "cache_read": "0.05", "audio_input": "3"}),
    ]
    tiers = book.quote("dashscope", "in-tiers", None, None, NOW).rates
    assert [(rate.above, million(rate)["input"]) for rate in tiers] == [(-1, "1"), (272_000, "2")]


def test_the_library_goes_first_and_a_list_fills_its_gaps(book: PriceBook) -> None:
    """Only where the list has the same prices of text: it means the same model at the same time."""
    bare = PriceBook().quote("openai", "gpt-4o", None, None, NOW)
    (rate,), (before,) = book.quote("openai", "gpt-4o", None, None, NOW).rates, bare.rates
    assert million(rate) == million(before) | {"audio_input": "40", "audio_output": "80"}
    assert rate.per_unit == {**before.per_unit, "code_interpreter_sessions": Decimal("0.03")}
    assert book.quote("openai", "gpt-4o", None, None, NOW).source.startswith(f"{bare.source}, LiteLLM 2")
    for model in (
        "gpt-4o-mini",
        "gpt-4.1-mini",
    ):  # of another price; and a search is known to cost more than the list says
        assert book.quote("openai", model, None, None, NOW) == PriceBook().quote("openai", model, None, None, NOW)


def test_a_list_that_is_replaced_is_read_again(book: PriceBook) -> None:
    assert book.lists.folder is not None
    dearer = {"dashscope/qwen-new": {**LITELLM["dashscope/qwen-new"], "input_cost_per_token": 7e-6}}
    lists.save(book.lists.folder, *lists.parse(json.dumps(dearer)))
    book.read()
    assert million(book.quote("dashscope", "qwen-new", None, None, NOW).rates[0])["input"] == "7"
    (book.lists.folder / "LiteLLM.json").unlink()
    book.read()
    assert book.quote("dashscope", "qwen-new", None, None, NOW).source.startswith("models.dev")


@pytest.mark.parametrize("damage", [b"", b"{", b'{"v": 2}', b'{"v": 1}', b"[]"])
def test_a_damaged_list_is_none(damage: bytes, book: PriceBook) -> None:
    assert book.lists.folder is not None
    (book.lists.folder / "LiteLLM.json").write_bytes(damage)
    book.read()
    assert book.quote("dashscope", "qwen-new", None, None, NOW).source.startswith("models.dev")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"a": 1}', '{"a": {"b": 1}}', "no JSON"])
def test_no_price_list(text: str) -> None:
    with pytest.raises(lists.NoPriceList):
        lists.parse(text)


def test_most_models_have_a_price_without_any_list() -> None:
    """Of 300 names. With LiteLLM's map of November 2026 it is nine in ten."""
    book = PriceBook()
    lines = [line.split() for line in NAMES.read_text().splitlines() if not line.startswith("#")]
    names = [(provider.rstrip(":"), model) for provider, *models in lines for model in models]
    assert len(names) == len(set(names)) == 300
    priced = [name for name in names if book.quote(name[0], name[1], name[1], None, NOW).rates]
    assert len(priced) >= 225
