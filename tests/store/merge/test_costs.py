from __future__ import annotations

import logging
import os
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import TOKEN_COLUMNS
from otel_llm.prices import library
from otel_llm.prices.billing import SLOT_NS
from otel_llm.prices.book import PriceBook
from otel_llm.settings import reload
from otel_llm.store.journal.writer import Journal
from tests.store.conftest import NOON, query, write_call

genai_prices = pytest.importorskip("genai_prices")

LIBRARY_KEYS = {
    semconv.INPUT_TOKENS: "input_tokens",
    semconv.OUTPUT_TOKENS: "output_tokens",
    semconv.CACHE_READ_TOKENS: "cache_read_tokens",
    semconv.CACHE_WRITE_TOKENS: "cache_write_tokens",
    semconv.CACHE_WRITE_1H_TOKENS: "cache_write_1h_tokens",
    semconv.AUDIO_INPUT_TOKENS: "input_audio_tokens",
    semconv.AUDIO_OUTPUT_TOKENS: "output_audio_tokens",
    semconv.AUDIO_CACHE_READ_TOKENS: "cache_audio_read_tokens",
}


def cost(journal: Journal, path: Path, attributes: dict[str, Any], **more: Any) -> tuple[Decimal | None, str]:
    call = write_call(journal, attributes, **more)
    found: tuple[Decimal | None, str] = query(
        path, f"SELECT cost_usd, price_source FROM llm_usage WHERE span_id = '{call['s']}'"
    )[0]
    return found


@pytest.mark.parametrize(
    ("provider", "library_provider", "model"),
    [
        ("openai", "openai", "gpt-4o-mini"),
        ("openai", "openai", "gpt-4o-mini-2024-07-18"),
        ("openai", "openai", "text-embedding-3-small"),
        ("azure.ai.openai", "azure", "gpt-4o"),
        ("anthropic", "anthropic", "claude-sonnet-4-5"),
        ("gcp.gemini", "google", "gemini-2.5-pro"),
        ("x_ai", "x-ai", "grok-3"),
        ("mistral_ai", "mistral", "mistral-large-latest"),
        ("deepseek", "deepseek", "deepseek-chat"),
    ],
)
@pytest.mark.parametrize(
    "usage",
    [
        {semconv.INPUT_TOKENS: 1, semconv.OUTPUT_TOKENS: 0},
        {semconv.INPUT_TOKENS: 1234, semconv.OUTPUT_TOKENS: 567, semconv.CACHE_READ_TOKENS: 1000},
        {semconv.INPUT_TOKENS: 200_000, semconv.OUTPUT_TOKENS: 10},
        {semconv.INPUT_TOKENS: 200_001, semconv.OUTPUT_TOKENS: 10, semconv.CACHE_WRITE_TOKENS: 100_000},
        {
            semconv.INPUT_TOKENS: 900_000,
            semconv.OUTPUT_TOKENS: 8000,
            semconv.CACHE_WRITE_TOKENS: 9,
            semconv.CACHE_WRITE_1H_TOKENS: 5,
        },
        {
            semconv.INPUT_TOKENS: 900_000,
            semconv.OUTPUT_TOKENS: 8000,
            semconv.CACHE_READ_TOKENS: 9,
            semconv.AUDIO_INPUT_TOKENS: 5,
            semconv.AUDIO_CACHE_READ_TOKENS: 3,
        },
    ],
    ids=["least", "cached", "tier's edge", "next tier", "big", "audio"],
)
def test_the_same_as_the_library_says(provider: str, library_provider: str, model: str, usage: dict[str, int]) -> None:
    """The database multiplies; the library's own arithmetic must come out."""
    from datetime import UTC, datetime

    at = NOON // SLOT_NS * SLOT_NS
    quote = PriceBook().quote(provider, model, None, None, at)
    tokens = usage[semconv.INPUT_TOKENS]
    (rate,) = [rate for rate in quote.rates if rate.above < tokens <= rate.up_to]
    columns = {attribute: column for column, attribute in TOKEN_COLUMNS.items()}
    factors = {columns[name]: rate.factors()[columns[name]] for name in usage}
    if unknown := {column for column, factor in factors.items() if factor is None}:
        # Here the library takes the price of the whole, which nobody has said.
        assert unknown <= {"output_tokens", "audio_input_tokens", "audio_cache_read_tokens", "cache_write_1h_tokens"}
        return
    ours = rate.per_call + sum((factors[columns[name]] or 0) * number for name, number in usage.items())
    theirs = genai_prices.calc_price(
        genai_prices.Usage(**{LIBRARY_KEYS[name]: number for name, number in usage.items()}),
        model,
        provider_id=library_provider,
        genai_request_timestamp=datetime.fromtimestamp(at // 10**9, UTC),
    ).total_price
    assert ours == theirs


def test_a_row_gets_its_cost(journal: Journal, store_path: Path) -> None:
    usage = {semconv.INPUT_TOKENS: 1_000_000, semconv.OUTPUT_TOKENS: 0}
    expected = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1_000_000, output_tokens=0), "gpt-4o-mini", provider_id="openai"
    ).total_price
    found, source = cost(journal, store_path, usage)
    assert found == expected and source == f"genai-prices {genai_prices.__version__}"


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({}, "no usage reported"),
        ({semconv.OUTPUT_TOKENS: 5}, "no input usage reported"),
        ({semconv.INPUT_TOKENS: 5}, "no output usage reported"),
        (
            {semconv.INPUT_TOKENS: 5, semconv.OUTPUT_TOKENS: 5, semconv.CACHE_READ_TOKENS: 6},
            "reported parts exceed their whole",
        ),
        (
            {
                semconv.INPUT_TOKENS: 5,
                semconv.OUTPUT_TOKENS: 5,
                semconv.PROVIDER: "azure.ai.openai",
                semconv.REQUEST_MODEL: "my-deployment",
            },
            "no price for azure.ai.openai/my-deployment",
        ),
        (
            {semconv.INPUT_TOKENS: 5, semconv.OUTPUT_TOKENS: 5, semconv.PROVIDER: "nobody", semconv.REQUEST_MODEL: "m"},
            "no price for nobody/m",
        ),
        ({semconv.INPUT_TOKENS: 5, semconv.OUTPUT_TOKENS: 5, semconv.REQUEST_MODEL: None}, "no model named"),
    ],
)
def test_unknown_is_null_with_a_reason(
    journal: Journal, store_path: Path, attributes: dict[str, Any], reason: str
) -> None:
    assert cost(journal, store_path, attributes) == (None, reason)


def test_the_response_model_goes_before_the_request_model(journal: Journal, store_path: Path) -> None:
    usage = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 1000}
    cheap, _ = cost(journal, store_path, usage)
    dear, _ = cost(journal, store_path, usage | {semconv.RESPONSE_MODEL: "gpt-4o-2024-08-06"})
    fallback, _ = cost(journal, store_path, usage | {semconv.RESPONSE_MODEL: "never-heard-of-it"})
    assert cheap is not None and dear is not None and cheap < dear and fallback == cheap


def test_a_cache_hit_is_not_billed(journal: Journal, store_path: Path) -> None:
    usage = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 1000, semconv.CACHE_HIT: True}
    assert cost(journal, store_path, usage) == (Decimal(0), "cache hit, not billed")


ERROR = {semconv.STATUS: "error"}
NOT_BILLED = (None, "refused, not billed")
UNKNOWN = (None, "no usage reported")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (ERROR | {semconv.ERROR_TYPE: "429"}, NOT_BILLED),
        (ERROR | {semconv.ERROR_TYPE: "500"}, NOT_BILLED),
        (ERROR | {semconv.ERROR_TYPE: "openai.RateLimitError"}, NOT_BILLED),  # as other instrumentations name it
        (ERROR | {semconv.ERROR_TYPE: "openai.APIConnectionError", semconv.NOT_SENT: True}, NOT_BILLED),
        (
            ERROR | {semconv.ERROR_TYPE: "openai.APIConnectionError"},
            UNKNOWN,
        ),  # it may have broken after the request was read
        (ERROR | {semconv.ERROR_TYPE: "openai.APITimeoutError"}, UNKNOWN),
        (ERROR | {semconv.ERROR_TYPE: "server_error"}, UNKNOWN),
        ({semconv.STATUS: "cancelled", semconv.ERROR_TYPE: "asyncio.exceptions.CancelledError"}, UNKNOWN),
        ({semconv.STATUS: "partial"}, UNKNOWN),
        ({semconv.STATUS: "ok"}, UNKNOWN),
    ],
)
def test_a_refused_call_is_told_from_one_whose_tokens_are_unknown(
    journal: Journal, store_path: Path, attributes: dict[str, Any], expected: tuple[None, str]
) -> None:
    assert cost(journal, store_path, attributes) == expected
    unpriced = query(store_path, "SELECT calls, unpriced FROM llm_daily")
    assert unpriced == [(1, int(expected == UNKNOWN))]


def test_what_a_failed_call_used_is_priced(journal: Journal, store_path: Path) -> None:
    used = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 10}
    assert cost(journal, store_path, used | ERROR | {semconv.ERROR_TYPE: "429"}) == cost(journal, store_path, used)


def test_the_users_own_table(
    journal: Journal, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(
        """
        [[price]]
        provider = "azure.ai.*"
        model = "my-*"
        input = 2.5
        output = 10
        cache_read = 1.25
        call = 0.01

        [[price]]
        model = "gpt-4o-mini"
        input = 1
        output = 0
        """
    )
    monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
    reload()
    azure = {semconv.PROVIDER: "azure.ai.openai", semconv.REQUEST_MODEL: "my-deployment"}
    usage = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 100}
    assert cost(journal, store_path, azure | usage) == (Decimal("0.0135"), "override")
    assert cost(journal, store_path, azure | usage | {semconv.CACHE_READ_TOKENS: 1000}) == (
        Decimal("0.01225"),
        "override",
    )
    assert cost(journal, store_path, usage) == (Decimal("0.001"), "override")
    # A change is seen without a restart.
    table.write_text('[[price]]\nmodel = "gpt-4o-mini"\ninput = 2\noutput = 0\n')
    os.utime(table, ns=(1, 1))
    assert cost(journal, store_path, usage) == (Decimal("0.002"), "override")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[price", "cannot be read"),
        ('[[price]]\nmodel = "m"\ninput = -1', "entry 1"),
        ('[[price]]\nmodel = "m"\ninput = 1\ninputs = 2', "unknown key inputs"),
        ("[[price]]\ninput = 1", "model and input are needed"),
    ],
)
def test_a_wrong_table_is_said_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, complaint: str
) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(text)
    with caplog.at_level(logging.WARNING, "otel_llm"):
        book = PriceBook(table)
        book.rows([("p", "m", None, None, 0)])
        book.rows([("p", "m", None, None, 0)])
    assert len(caplog.records) == 1 and complaint in caplog.text and str(table) in caplog.text


def test_a_missing_table_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = PriceBook(tmp_path / "none.toml")
    with caplog.at_level(logging.WARNING, "otel_llm"):
        book.rows([])
        book.rows([])
    assert len(caplog.records) == 1


def test_a_look_up_is_made_once_per_model_and_time() -> None:
    library.quote.cache_clear()
    keys = [("openai", "gpt-4o-mini", None, None, NOON // SLOT_NS)] * 1000
    began = time.process_time()
    PriceBook().rows(keys)
    assert library.quote.cache_info().misses == 1
    assert time.process_time() - began < 5  # a runaway, not a slow machine


AUTUMN = 1_793_500_000 * 10**9
"""When the library had prices of their own for batches and tiers: 2026-11-01."""
KINDS = {
    semconv.INPUT_TOKENS: 1_000_000,
    semconv.OUTPUT_TOKENS: 100_000,
    semconv.CACHE_READ_TOKENS: 400_000,
    semconv.REASONING_TOKENS: 50_000,
}


@pytest.mark.parametrize(
    ("model", "tier", "usage", "by_hand"),
    [
        # 0.15 and 0.60 USD per million tokens, 0.075 for cached ones; reasoning costs what output costs.
        ("gpt-4o-mini", None, KINDS, "0.6 * 0.15 + 0.4 * 0.075 + 0.1 * 0.60"),
        ("gpt-4o-mini", "default", KINDS, "0.6 * 0.15 + 0.4 * 0.075 + 0.1 * 0.60"),
        ("gpt-4o-mini", "batch", KINDS, "0.6 * 0.075 + 0.4 * 0.075 + 0.1 * 0.30"),
        ("gpt-4o-mini", "priority", KINDS, "0.6 * 0.25 + 0.4 * 0.125 + 0.1 * 1"),
        ("gpt-5-mini", "flex", KINDS, "0.6 * 0.125 + 0.4 * 0.0125 + 0.1 * 1"),
        ("gpt-5-mini", "batch", KINDS, "0.6 * 0.125 + 0.4 * 0.0125 + 0.1 * 1"),
        ("gpt-4o-mini", "flex", KINDS, None),
        ("text-embedding-3-small", "batch", {semconv.INPUT_TOKENS: 1_000_000, semconv.OUTPUT_TOKENS: 0}, None),
        # 5 and 30 USD; beyond 272,000 input tokens 10 and 45.
        ("gpt-5.5", None, {semconv.INPUT_TOKENS: 272_000, semconv.OUTPUT_TOKENS: 1_000}, "0.272 * 5 + 0.001 * 30"),
        ("gpt-5.5", None, {semconv.INPUT_TOKENS: 272_001, semconv.OUTPUT_TOKENS: 1_000}, "0.272001 * 10 + 0.001 * 45"),
        ("gpt-5.5", "flex", {semconv.INPUT_TOKENS: 272_000, semconv.OUTPUT_TOKENS: 1_000}, "0.272 * 2.5 + 0.001 * 15"),
    ],
)
def test_by_hand(
    model: str, tier: str | None, usage: dict[str, int], by_hand: str | None, journal: Journal, store_path: Path
) -> None:
    known = {semconv.REQUEST_MODEL: model, semconv.OPENAI_RESPONSE_SERVICE_TIER: tier}
    found, source = cost(journal, store_path, usage | known, st=AUTUMN)
    if by_hand is None:
        assert (found, source) == (None, f"no {tier} price for openai/{model}")
        return
    terms = [[Decimal(factor) for factor in term.split(" * ")] for term in by_hand.split(" + ")]
    assert found == sum(one * other for one, other in terms)


def test_a_batch_before_the_library_knew_what_batches_cost(journal: Journal, store_path: Path) -> None:
    usage = {semconv.INPUT_TOKENS: 1000, semconv.OUTPUT_TOKENS: 1000, semconv.OPENAI_RESPONSE_SERVICE_TIER: "batch"}
    assert cost(journal, store_path, usage) == (None, "no batch price for openai/gpt-4o-mini")


def test_the_kinds_of_tokens_by_hand(
    journal: Journal, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind with a price of its own, so that no two can be mixed up; and a tier with one entry for all."""
    table = tmp_path / "prices.toml"
    table.write_text(
        """
        [[price]]
        model = "m"
        tier = "batch"
        input = 1
        output = 1

        [[price]]
        model = "m"
        input = 1
        output = 2
        cache_read = 3
        cache_write = 5
        reasoning = 7
        audio_input = 11
        audio_output = 13
        image_input = 17
        image_output = 19
        cache_write_1h = 23
        audio_cache_read = 29
        image_cache_read = 31
        """
    )
    monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
    reload()
    named = {semconv.REQUEST_MODEL: "m"}
    parts = {name: 1_000 for column, name in TOKEN_COLUMNS.items() if column not in ("input_tokens", "output_tokens")}
    of_parts = (semconv.CACHE_WRITE_1H_TOKENS, semconv.AUDIO_CACHE_READ_TOKENS, semconv.IMAGE_CACHE_READ_TOKENS)
    usage = {semconv.INPUT_TOKENS: 10_000, semconv.OUTPUT_TOKENS: 10_000} | parts | dict.fromkeys(of_parts, 100)
    # Of the 1,000 cached tokens 100 are audio and 100 images, of the 1,000 written ones 100 are kept for an hour.
    cached = 800 * 3 + 100 * 29 + 100 * 31
    by_hand = 6_200 * 1 + cached + 900 * 5 + 100 * 23 + 900 * 11 + 900 * 17 + 7_000 * 2 + 1_000 * (7 + 13 + 19)
    by_hand = by_hand / Decimal(1_000_000)
    assert cost(journal, store_path, named | usage) == (by_hand, "override")
    batch = named | usage | {semconv.OPENAI_RESPONSE_SERVICE_TIER: "batch"}
    assert cost(journal, store_path, batch) == (Decimal("0.02"), "override")


def test_a_price_is_worked_out_once_however_long_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    library.quote.cache_clear()
    library._computed.clear()
    worked_out: list[object] = []
    by_size = library._by_size
    monkeypatch.setattr(library, "_by_size", lambda *arguments: worked_out.append(arguments) or by_size(*arguments))
    PriceBook().rows([("openai", "gpt-4o-mini", None, None, NOON // SLOT_NS + slot) for slot in range(20)])
    assert len(worked_out) == 1


def test_a_price_list_that_cannot_be_read_is_said_once(
    journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A packed app without the library's metadata, a half-installed library: the calls are there, and why they cost nothing."""

    def broken(*_: object) -> None:
        raise ModuleNotFoundError("no price list")

    monkeypatch.setattr(library, "quote", broken)
    monkeypatch.setattr("otel_llm.support.faults.counts", Counter())
    for model in ("gpt-4o-mini", "gpt-4o"):
        usage = {semconv.INPUT_TOKENS: 1, semconv.OUTPUT_TOKENS: 1}
        found = cost(journal, store_path, {semconv.REQUEST_MODEL: model} | usage)
        assert found == (None, "price look-up failed: ModuleNotFoundError")
    assert [record.getMessage() for record in caplog.records if "no price list" in record.getMessage()] == [
        "otel-llm could not look up a price (ModuleNotFoundError: no price list); the app's call is not affected. "
        "Further faults of this kind are only counted."
    ]
