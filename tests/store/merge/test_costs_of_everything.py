"""A cost is a fact or it is NULL: everything billed in an answer has a price in the cost, or the row says which has none."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import TOKEN_COLUMNS
from otel_llm.settings import reload
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.jobs.repricing import Choice
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import query, write_call

IN, OUT = semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS
READ, WRITTEN, HOUR = semconv.CACHE_READ_TOKENS, semconv.CACHE_WRITE_TOKENS, semconv.CACHE_WRITE_1H_TOKENS
REASONING, SPOKEN, DRAWN = semconv.REASONING_TOKENS, semconv.AUDIO_OUTPUT_TOKENS, semconv.IMAGE_OUTPUT_TOKENS
HEARD, SEEN = semconv.AUDIO_INPUT_TOKENS, semconv.IMAGE_INPUT_TOKENS
HEARD_CACHED, SEEN_CACHED = semconv.AUDIO_CACHE_READ_TOKENS, semconv.IMAGE_CACHE_READ_TOKENS
OPERATION, MODEL, PROVIDER = semconv.OPERATION, semconv.REQUEST_MODEL, semconv.PROVIDER
TIER = semconv.OPENAI_RESPONSE_SERVICE_TIER
AUTUMN = 1_793_500_000 * 10**9
"""When the library had prices of their own for batches and tiers: 2026-11-01."""
TABLE = """
[[price]]
model = "text"
input = 1
output = 2

[[price]]
model = "output-unknown"
input = 1

[[price]]
model = "seconds"
units = { audio_seconds = 0.01 }

[[price]]
model = "gpt-5.5"
units = { code_interpreter_sessions = 0.03 }
"""


@pytest.fixture
def own_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a text the user's own price table."""

    def use(text: str) -> None:
        table = tmp_path / "prices.toml"
        table.write_text(text)
        monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
        reload()

    use(TABLE)
    return use


def unit(name: str) -> str:
    return semconv.UNIT_PREFIX + name


def cost(journal: Journal, path: Path, attributes: dict[str, Any]) -> tuple[Decimal | None, str]:
    call = write_call(journal, attributes, st=AUTUMN)
    found: tuple[Decimal | None, str] = query(
        path, f"SELECT cost_usd, price_source FROM llm_usage WHERE span_id = '{call['s']}'"
    )[0]
    return found


BILL: list[tuple[dict[str, Any], str]] = [
    # USD per million tokens unless said otherwise, from the price pages as genai-prices 0.2.3 has them for 2026-11-01.
    # gpt-4o-mini: 0.15, cached 0.075, 0.60; batch half of it; priority 0.25, 0.125, 1.
    ({MODEL: "gpt-4o-mini", IN: 1_001, OUT: 333}, "1001 * 0.15 + 333 * 0.60"),
    ({MODEL: "gpt-4o-mini", IN: 7_777, OUT: 41, READ: 4_096}, "3681 * 0.15 + 4096 * 0.075 + 41 * 0.60"),
    ({MODEL: "gpt-4o-mini", IN: 7_777, OUT: 41, READ: 4_096, TIER: "batch"}, "3681 * 0.075 + 4096 * 0.075 + 41 * 0.30"),
    ({MODEL: "gpt-4o-mini", IN: 7_777, OUT: 41, READ: 4_096, TIER: "priority"}, "3681 * 0.25 + 4096 * 0.125 + 41 * 1"),
    ({MODEL: "gpt-4o-mini", IN: 1, OUT: 0}, "1 * 0.15"),
    # gpt-5-mini, flex: 0.125, cached 0.0125, 1. Reasoning is output.
    (
        {MODEL: "gpt-5-mini", IN: 999, OUT: 1_500, READ: 512, REASONING: 1_024, TIER: "flex"},
        "487 * 0.125 + 512 * 0.0125 + 1500 * 1",
    ),
    # gpt-5.5: 5, cached 0.50, 30; beyond 272,000 tokens 10, 1, 45. A search is 0.01 USD, one in files 0.0025.
    ({MODEL: "gpt-5.5", IN: 272_000, OUT: 11, READ: 1_000}, "271000 * 5 + 1000 * 0.5 + 11 * 30"),
    ({MODEL: "gpt-5.5", IN: 272_001, OUT: 11, READ: 1_000}, "271001 * 10 + 1000 * 1 + 11 * 45"),
    ({MODEL: "gpt-5.5", IN: 1_000, OUT: 100, unit("web_search_calls"): 3}, "1000 * 5 + 100 * 30 + 3 * 10000"),
    ({MODEL: "gpt-5.5", IN: 10, OUT: 1, unit("file_search_calls"): 2}, "10 * 5 + 1 * 30 + 2 * 2500"),
    (
        {MODEL: "gpt-5.5", IN: 10, OUT: 1, unit("file_search_calls"): 1, unit("web_search_calls"): 1},
        "10 * 5 + 1 * 30 + 1 * 2500 + 1 * 10000",
    ),
    # A container of the code interpreter is 0.03 USD by the table above.
    ({MODEL: "gpt-5.5", IN: 10, OUT: 1, unit("code_interpreter_sessions"): 1}, "10 * 5 + 1 * 30 + 1 * 30000"),
    ({MODEL: "gpt-4o", IN: 100, OUT: 10, READ: 64}, "36 * 2.5 + 64 * 1.25 + 10 * 10"),
    ({MODEL: "text-embedding-3-small", OPERATION: "embeddings", IN: 8_191}, "8191 * 0.02"),
    # claude-sonnet-4-5: 3, cached 0.30, written 3.75, for an hour 6, 15; beyond 200,000 tokens 6, 0.60, 7.50, 12, 22.50.
    (
        {PROVIDER: "anthropic", MODEL: "claude-sonnet-4-5", IN: 100_010, OUT: 5, WRITTEN: 100_000},
        "10 * 3 + 100000 * 3.75 + 5 * 15",
    ),
    (
        {PROVIDER: "anthropic", MODEL: "claude-sonnet-4-5", IN: 9_000, OUT: 7, READ: 3_000, WRITTEN: 4_000, HOUR: 1_500},
        "2000 * 3 + 3000 * 0.3 + 2500 * 3.75 + 1500 * 6 + 7 * 15",
    ),
    (
        {PROVIDER: "anthropic", MODEL: "claude-sonnet-4-5", IN: 200_001, OUT: 7, READ: 1, WRITTEN: 2, HOUR: 2},
        "199998 * 6 + 1 * 0.6 + 2 * 12 + 7 * 22.5",
    ),
    # gpt-realtime: 4, cached 0.40, 16; audio 32, cached 0.40, 64; images 5, cached 0.50.
    (
        {MODEL: "gpt-realtime", IN: 100, OUT: 10, READ: 64, HEARD: 100, HEARD_CACHED: 64, SPOKEN: 10},
        "36 * 32 + 64 * 0.4 + 10 * 64",
    ),
    (
        {MODEL: "gpt-realtime", IN: 1_000, OUT: 90, READ: 300, HEARD: 400, HEARD_CACHED: 100, SPOKEN: 60},
        "400 * 4 + 200 * 0.4 + 300 * 32 + 100 * 0.4 + 30 * 16 + 60 * 64",
    ),
    (
        {
            MODEL: "gpt-realtime", IN: 1_000, OUT: 10, READ: 300, HEARD: 100, SEEN: 500,
            HEARD_CACHED: 50, SEEN_CACHED: 150,
        },
        "300 * 4 + 100 * 0.4 + 50 * 32 + 50 * 0.4 + 350 * 5 + 150 * 0.5 + 10 * 16",
    ),
    # gpt-image-1.5: text 5, cached 1.25, 10; images 8, cached 2, 32.
    (
        {OPERATION: "image_generation", MODEL: "gpt-image-1.5", IN: 50, OUT: 4_160, unit("images"): 1},
        "50 * 5 + 4160 * 32",
    ),
    (
        {OPERATION: "image_generation", MODEL: "gpt-image-1.5", IN: 850, OUT: 4_200, SEEN: 800, DRAWN: 4_160},
        "50 * 5 + 800 * 8 + 40 * 10 + 4160 * 32",
    ),
    (
        {OPERATION: "image_generation", MODEL: "gpt-image-1", IN: 850, OUT: 4_160, SEEN: 800, READ: 100, SEEN_CACHED: 100},
        "50 * 5 + 700 * 10 + 100 * 2.5 + 4160 * 40",
    ),
    # gpt-4o-transcribe: 2.50, audio 6, 10. whisper-1: 0.36 USD an hour. tts-1: 15 USD per million characters.
    ({OPERATION: "transcription", MODEL: "gpt-4o-transcribe", IN: 610, HEARD: 600, OUT: 120}, "10 * 2.5 + 600 * 6 + 120 * 10"),
    ({OPERATION: "transcription", MODEL: "whisper-1", unit("audio_seconds"): 60}, "60 * 100"),
    ({OPERATION: "transcription", MODEL: "whisper-1", unit("audio_seconds"): 8.47}, "8.47 * 100"),
    ({OPERATION: "speech", MODEL: "tts-1", unit("characters"): 1_234}, "1234 * 15"),
    # gemini-2.5-flash: 0.30, cached 0.03, 2.50; audio 1, cached 0.10; images as text.
    (
        {
            PROVIDER: "gcp.gemini", MODEL: "gemini-2.5-flash", IN: 2_000, OUT: 600,
            READ: 500, HEARD: 700, HEARD_CACHED: 200, SEEN: 258,
        },
        "1000 * 0.3 + 300 * 0.03 + 500 * 1 + 200 * 0.1 + 600 * 2.5",
    ),
    # sonar: 1, 1, and 12 USD per 1,000 requests.
    ({PROVIDER: "perplexity", MODEL: "sonar", IN: 20, OUT: 300}, "20 * 1 + 300 * 1 + 1 * 12000"),
    # What the provider says goes before all of it.
    (
        {PROVIDER: "openrouter", MODEL: "anthropic/claude-sonnet-4.5", IN: 194, OUT: 2, semconv.REPORTED_COST_USD: 0.0123},
        "12300 * 1",
    ),
]  # fmt: skip


def test_a_bill_by_hand(journal: Journal, store_path: Path, own_prices: object) -> None:
    assert len(BILL) == 30
    for attributes, _ in BILL:
        write_call(journal, {semconv.RESPONSE_MODEL: None, OUT: None} | attributes, st=AUTUMN)
    found = query(store_path, "SELECT request_model, cost_usd, price_source FROM llm_usage ORDER BY span_id")
    by_hand = []
    for attributes, sum_of_products in BILL:
        terms = [[Decimal(factor) for factor in term.split(" * ")] for term in sum_of_products.split(" + ")]
        exact = sum((number * price for number, price in terms), Decimal(0)) / 1_000_000
        by_hand.append((attributes[MODEL], exact.quantize(Decimal("1e-9"), ROUND_HALF_UP)))
    assert [row[:2] for row in found] == by_hand
    assert query(store_path, "SELECT sum(cost_usd) FROM llm_usage") == [(sum(amount for _, amount in by_hand),)]


NONE = "no price for {} of openai/{}"


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({MODEL: "gpt-4o-audio-preview", IN: 100, HEARD: 90, OUT: 10}, NONE.format("audio_input_tokens", "gpt-4o-audio-preview")),
        ({MODEL: "gpt-4o", IN: 100, OUT: 10, SPOKEN: 1}, NONE.format("audio_output_tokens", "gpt-4o")),
        ({MODEL: "gpt-4o", IN: 100, OUT: 10, SEEN: 1}, NONE.format("image_input_tokens", "gpt-4o")),
        ({MODEL: "gpt-5.5", IN: 9, OUT: 1, unit("teleport_calls"): 1}, NONE.format("teleport_calls", "gpt-5.5")),
        ({MODEL: "gpt-5.5", IN: 9, OUT: 1, unit("web_search_calls"): "x"}, NONE.format("web_search_calls", "gpt-5.5")),
        ({MODEL: "gpt-5.5", unit("web_search_calls"): 1}, "no usage reported"),
        ({MODEL: "gpt-5.5", unit("images"): 1}, "no usage reported"),
        ({MODEL: "dall-e-3", unit("images"): 1}, "no price for openai/dall-e-3"),
        ({MODEL: "whisper-1", IN: 9, OUT: 1}, NONE.format("input_tokens", "whisper-1")),
        ({MODEL: "output-unknown", IN: 9, OUT: 1}, NONE.format("output_tokens", "output-unknown")),
        ({MODEL: "seconds", unit("images"): 1}, NONE.format("images", "seconds")),
        (
            {MODEL: "gpt-realtime", IN: 100, OUT: 1, READ: 30, HEARD: 50, OPERATION: "chat"},
            "cached audio not told from cached text",
        ),
        ({MODEL: "gpt-4o", IN: 100, OUT: 10, READ: 60, WRITTEN: 60}, "reported parts exceed their whole"),
        ({MODEL: "gpt-4o", IN: 100, OUT: 10, READ: 60, SEEN: 60, SEEN_CACHED: 10}, "reported parts exceed their whole"),
        ({MODEL: "gpt-4o", IN: 100, OUT: 10, WRITTEN: 10, HOUR: 11}, "reported parts exceed their whole"),
        ({MODEL: "gpt-4o", IN: 100, OUT: 10, REASONING: 6, SPOKEN: 6}, "reported parts exceed their whole"),
        ({MODEL: "gpt-4o", IN: 100, OUT: 10, semconv.USAGE_SOURCE: "inconsistent"}, "the reported tokens do not add up"),
    ],
)  # fmt: skip
def test_what_has_no_price_is_said(
    attributes: dict[str, Any], reason: str, journal: Journal, store_path: Path, own_prices: object
) -> None:
    assert cost(journal, store_path, attributes) == (None, reason)


def test_what_costs_nothing_is_no_gap(journal: Journal, store_path: Path, own_prices: object) -> None:
    """None of it, and what other models are billed by."""
    none = dict.fromkeys([*TOKEN_COLUMNS.values(), unit("teleport_calls")], 0) | {IN: 10, OUT: 1}
    assert cost(journal, store_path, {MODEL: "text"} | none) == (Decimal("0.000012"), "override")
    beside = {MODEL: "text", IN: 10, OUT: 1, unit("images"): 1, unit("characters"): 50}
    assert cost(journal, store_path, beside) == (Decimal("0.000012"), "override")


@pytest.mark.parametrize(
    ("model", "used", "fees"),
    [
        ("gpt-5.5", {unit("web_search_preview_calls"): 2}, "0.02"),
        ("gpt-4.1", {unit("web_search_calls"): 2}, "0.02"),
        ("gpt-4.1-2025-04-14", {unit("web_search_preview_calls"): 2}, "0.05"),
        ("gpt-4o-mini", {unit("web_search_preview_calls"): 1}, "0.025"),
        # A block of 8,000 tokens is billed with each, of which nobody says whether they are in the usage.
        ("gpt-4o-mini", {unit("web_search_calls"): 1}, None),
        ("gpt-4o-search-preview", {}, "0.025"),
        ("gpt-4o-mini-search-preview-2025-03-11", {}, "0.025"),
        ("gpt-5-search-api", {}, "0.01"),
        ("gpt-4o", {}, "0"),
    ],
)
def test_what_openai_takes_for_searches(
    model: str, used: dict[str, int], fees: str | None, journal: Journal, store_path: Path
) -> None:
    found, source = cost(journal, store_path, {MODEL: model, IN: 0, OUT: 0} | used)
    assert found == (None if fees is None else Decimal(fees))
    assert fees is not None or source == NONE.format("web_search_calls", model)


@pytest.mark.parametrize(("seconds", "billed"), [(0, 0), (3.2, 10), (10, 10), (61.5, 61.5)])
def test_what_groq_bills_at_least(seconds: float, billed: float, journal: Journal, store_path: Path) -> None:
    """Its whisper is 0.111 USD an hour, and ten seconds at least."""
    call = {PROVIDER: "groq", MODEL: "whisper-large-v3", OPERATION: "transcription", unit("audio_seconds"): seconds}
    exact = Decimal(str(billed)) * Decimal("0.111") / 3600
    assert cost(journal, store_path, call)[0] == exact.quantize(Decimal("1e-9"), ROUND_HALF_UP)


def test_the_cached_audio_of_a_call_that_is_all_audio(journal: Journal, store_path: Path) -> None:
    told = {MODEL: "gpt-realtime", IN: 100, OUT: 0, READ: 64, HEARD: 100}
    assert cost(journal, store_path, told) == cost(journal, store_path, told | {HEARD_CACHED: 64})


@pytest.mark.parametrize("wrong", [-1, "much", 1e300, float("nan"), True, None])
def test_a_reported_cost_that_is_none(wrong: object, journal: Journal, store_path: Path) -> None:
    usage = {MODEL: "gpt-4o-mini", IN: 1_000_000, OUT: 0}
    found, source = cost(journal, store_path, usage | {semconv.REPORTED_COST_USD: wrong})
    assert (found, source.split()[0]) == (Decimal("0.15"), "genai-prices")


@pytest.mark.parametrize(
    ("told", "stored"), [(0, "0"), (1.5e-7, "0.00000015"), (123456.789, "123456.789"), ("0.0000000005", "0.000000001")]
)
def test_a_reported_cost_is_kept(told: object, stored: str, journal: Journal, store_path: Path) -> None:
    usage = {MODEL: "nobody-s", semconv.REPORTED_COST_USD: told}
    assert cost(journal, store_path, usage) == (Decimal(stored), "reported")


def test_a_reported_cost_is_not_priced_again(
    journal: Journal, store_path: Path, own_prices: Callable[[str], None]
) -> None:
    write_call(journal, {MODEL: "text", IN: 10, OUT: 1, semconv.REPORTED_COST_USD: 5})
    write_call(journal, {MODEL: "text", IN: 10, OUT: 1, unit("web_search_calls"): 1})
    merge(store_path)
    own_prices('[[price]]\nmodel = "text"\ninput = 1\noutput = 2\nunits = { web_search_calls = 1 }')
    with exclusive.alone(StorePaths.of(store_path)) as connection:
        repricing.reprice(connection, Choice(priced_too=True))
    found = query(store_path, "SELECT cost_usd, price_source, row_version FROM llm_usage ORDER BY started_at")
    assert found == [(Decimal(5), "reported", 1), (Decimal("1.000012"), "override", 2)]


def test_what_litellm_has_computed_counts(
    journal: Journal, store_path: Path, own_prices: Callable[[str], None]
) -> None:
    """But for what the provider told, and a price of the user's own; and not where LiteLLM has guessed the tokens."""
    theirs = {MODEL: "gpt-4o-mini", IN: 1_000_000, OUT: 0, semconv.LITELLM_COST_USD: 0.25}
    assert cost(journal, store_path, theirs) == (Decimal("0.25"), "litellm")
    assert cost(journal, store_path, theirs | {semconv.REPORTED_COST_USD: 0.5}) == (Decimal("0.5"), "reported")
    assert cost(journal, store_path, {MODEL: "nobody-s", semconv.LITELLM_COST_USD: 0.25}) == (None, "no usage reported")
    own_prices('[[price]]\nmodel = "gpt-4o-mini"\ninput = 1\noutput = 2')
    assert cost(journal, store_path, theirs) == (Decimal(1), "override")


def test_the_reported_cost_of_a_background_response(journal: Journal, store_path: Path) -> None:
    """It is told when the result is asked for, and belongs to the call that began it, whichever is merged first."""
    ours = {"sc": f"{semconv.SPAN_SCOPES}.openai"}
    for order, (first, second) in enumerate(itertools.permutations(("chat", semconv.RETRIEVE))):
        told = {semconv.RETRIEVE: {IN: 9, OUT: 1, semconv.REPORTED_COST_USD: 0.25}, "chat": {}}
        for operation in (first, second):
            begin = 1_000 * (order + 1) + (operation == semconv.RETRIEVE)
            named = {OPERATION: operation, semconv.RESPONSE_ID: f"resp_{order}", unit("web_search_calls"): 1}
            write_call(journal, {**named, **told[operation]}, number=begin, **ours)
            merge(store_path)
    rows = query(store_path, "SELECT operation, cost_usd, price_source, units FROM llm_usage ORDER BY started_at")
    assert rows == [("chat", Decimal("0.25"), "reported", {"web_search_calls": 1.0})] * 2


KINDS = {
    READ: "cache_read", WRITTEN: "cache_write", HOUR: "cache_write_1h", HEARD: "audio_input", SEEN: "image_input",
    HEARD_CACHED: "audio_cache_read", SEEN_CACHED: "image_cache_read",
    REASONING: "reasoning", SPOKEN: "audio_output", DRAWN: "image_output",
}  # fmt: skip
UNITS = ("web_search_calls", "file_search_calls", "images", "teleport_calls")


def test_no_term_is_left_out_without_a_word(
    journal: Journal, store_path: Path, tmp_path: Path, own_prices: Callable[[str], None]
) -> None:
    """Of random answers at random prices, each cost is that of a sum over the single tokens and units, or NULL and says why."""
    random_ = random.Random(13)
    tables, calls = [], []
    for number in range(400):
        stated = {"input": random_.randint(1, 99), "output": random_.randint(1, 99)}
        stated |= {kind: random_.randint(1, 99) for kind in KINDS.values()}
        units = {name: random_.randint(1, 9) for name in UNITS if random_.random() < 0.6}
        lines = [f"{kind} = {price}" for kind, price in stated.items()]
        lines.append(f"units = {{ {', '.join(f'{name} = {price}' for name, price in units.items())} }}")
        tables.append("\n".join([f'[[price]]\nmodel = "m{number}"', *lines]))

        def some(most: int) -> int:
            return random_.choice([0, random_.randint(0, most)])

        cells = {
            kind: some(20) for kind in ("text", "read", "heard", "heard_read", "seen", "seen_read", "five", "hour")
        }
        made = {kind: some(20) for kind in ("text", "reasoning", "spoken", "drawn")}
        used = {name: random_.choice([0, 1, 2]) for name in UNITS if random_.random() < 0.5}
        price = stated
        known = (
            cells["text"] * price["input"] + cells["read"] * price["cache_read"] + cells["heard"] * price["audio_input"]
            + cells["heard_read"] * price["audio_cache_read"] + cells["seen"] * price["image_input"]
            + cells["seen_read"] * price["image_cache_read"] + cells["five"] * price["cache_write"]
            + cells["hour"] * price["cache_write_1h"] + made["text"] * price["output"] + made["reasoning"] * price["reasoning"]
            + made["spoken"] * price["audio_output"] + made["drawn"] * price["image_output"]
        )  # fmt: skip
        gaps = [name for name, times in used.items() if times and name not in units and name != "images"]
        fees = sum(times * units[name] for name, times in used.items() if name in units)
        expected = None if gaps else (Decimal(known) / 1_000_000 + fees).quantize(Decimal("1e-9"))
        attributes = {
            MODEL: f"m{number}", IN: sum(cells.values()), OUT: sum(made.values()),
            READ: cells["read"] + cells["heard_read"] + cells["seen_read"], WRITTEN: cells["five"] + cells["hour"],
            HOUR: cells["hour"], HEARD: cells["heard"] + cells["heard_read"], HEARD_CACHED: cells["heard_read"],
            SEEN: cells["seen"] + cells["seen_read"], SEEN_CACHED: cells["seen_read"],
            REASONING: made["reasoning"], SPOKEN: made["spoken"], DRAWN: made["drawn"],
            **{unit(name): times for name, times in used.items()},
        }  # fmt: skip
        calls.append((attributes, expected, gaps))
    own_prices("\n".join(tables))
    for attributes, _, _ in calls:
        write_call(journal, attributes)
    rows = query(store_path, "SELECT cost_usd, price_source FROM llm_usage ORDER BY started_at")
    for (attributes, expected, gaps), (found, source) in zip(calls, rows, strict=True):
        assert found == expected, attributes
        assert source == "override" if not gaps else any(f"no price for {gap} of" in source for gap in gaps), attributes
    assert 20 < sum(expected is None for _, expected, _ in calls) < 380
