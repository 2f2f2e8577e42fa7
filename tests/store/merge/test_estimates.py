"""What was billed and not reported is estimated from what was, and told apart from it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import semconv
from otel_llm.settings import reload
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.jobs.repricing import Choice
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge import estimates
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import CHAT, USAGE, end, identity, merging, query, start, write_call

OURS = "otel_llm.instrumentation.openai"
FIRST_CHUNK = {semconv.TIME_TO_FIRST_CHUNK: 0.1}
LEFT = {semconv.STATUS: semconv.PARTIAL, **FIRST_CHUNK}
REST = "SELECT input_tokens, output_tokens, usage_source FROM llm_usage WHERE status <> 'ok'"
UNKNOWN = [(None, None, None)]
ESTIMATED = [(250, 10, "estimated")]
"""Of what asked with 1,000 characters and had 50 of the answer, by `experience`."""


def tokens(asked: int, answered: int, **more: Any) -> dict[str, Any]:
    return {semconv.INPUT_TOKENS: asked, semconv.OUTPUT_TOKENS: answered, **more}


def lengths(asked: int | None, answered: int | None = None, reasoning: int | None = None) -> dict[str, Any]:
    return {"sc": OURS, "ci": asked, "co": answered, "cr": reasoning}


def experience(journal: Journal, calls: int = estimates.LEAST, attributes: dict[str, Any] | None = None) -> None:
    """Calls with four characters to a token of input, and five to one of output."""
    for number in range(calls):
        told = tokens(100 + number, 40 + number) | {semconv.USAGE_SOURCE: "reported"} | (attributes or {})
        write_call(journal, told, **lengths(400 + 4 * number, 200 + 5 * number))


def begin(journal: Journal, **fields: Any) -> dict[str, Any]:
    begun = start(**fields)
    journal.append(begun, start_of=identity(begun))
    return begun


def test_a_stream_that_was_left(journal: Journal, store_path: Path) -> None:
    experience(journal)
    write_call(journal, LEFT, **lengths(1000, 50))
    assert query(store_path, REST) == ESTIMATED
    ((cost, source),) = query(store_path, "SELECT cost_usd, price_source FROM llm_usage WHERE status <> 'ok'")
    assert cost == Decimal("0.0000435") and source.startswith("genai-prices")
    reported = query(store_path, "SELECT DISTINCT usage_source FROM llm_usage WHERE status = 'ok'")
    assert reported == [("reported",)]


@pytest.mark.parametrize("calls", [1, 3, 2 * estimates.LEAST])
def test_it_does_not_matter_when_what_is_learned_from_was_merged(
    calls: int, journal: Journal, store_path: Path
) -> None:
    experience(journal, calls)
    merge(store_path)
    experience(journal, 2 * estimates.LEAST - calls)
    write_call(journal, LEFT, **lengths(1000, 50))
    assert query(store_path, REST) == ESTIMATED


@pytest.mark.parametrize(
    ("attributes", "estimated"),
    {
        "left": (LEFT, True),
        "cancelled": ({**LEFT, semconv.STATUS: semconv.CANCELLED}, True),
        "broken": ({**LEFT, semconv.STATUS: semconv.ERROR, semconv.ERROR_TYPE: "httpx.ReadError"}, True),
        "failed before it began": ({semconv.STATUS: semconv.ERROR, semconv.ERROR_TYPE: "httpx.ReadTimeout"}, False),
        "refused": ({**FIRST_CHUNK, semconv.STATUS: semconv.ERROR, semconv.ERROR_TYPE: "429"}, False),
        "never sent": ({**FIRST_CHUNK, semconv.STATUS: semconv.ERROR, semconv.NOT_SENT: True}, False),
        "from a cache": ({**LEFT, semconv.CACHE_HIT: True}, False),
        "reported after all": ({**LEFT, **tokens(7, 8)}, False),
        "its cost reported": ({**LEFT, semconv.REPORTED_COST_USD: 0.5}, False),
        "reported in part": ({**LEFT, semconv.INPUT_TOKENS: 7}, False),
    }.values(),
)
def test_which_calls(attributes: dict[str, Any], estimated: bool, journal: Journal, store_path: Path) -> None:
    experience(journal)
    write_call(journal, attributes, **lengths(1000, 50))
    assert (query(store_path, REST) == ESTIMATED) is estimated


def test_a_call_whose_process_died(journal: Journal, store_path: Path) -> None:
    """With what had come of its stream by the last line about it."""
    experience(journal)
    begun = begin(journal, **lengths(1000))
    journal.append({**begun, "co": 20}, start_of=identity(begun))
    journal.append({**begun, "co": 50}, start_of=identity(begun))
    journal.close()
    assert query(store_path, REST) == ESTIMATED


def test_a_call_that_ended_well_stays_as_it_is(journal: Journal, store_path: Path) -> None:
    """That its server tells no usage has a remedy, and is said elsewhere."""
    experience(journal)
    write_call(journal, FIRST_CHUNK, **lengths(1000, 50))
    assert query(store_path, "SELECT count(*) FROM llm_usage WHERE usage_source IS NULL") == [(1,)]


class TestTooLittleExperience:
    def test_too_few_calls(self, journal: Journal, store_path: Path) -> None:
        experience(journal, estimates.LEAST - 1)
        write_call(journal, LEFT, **lengths(1000, 50))
        assert query(store_path, REST) == UNKNOWN

    @pytest.mark.parametrize(
        "other",
        [
            {semconv.REQUEST_MODEL: "gpt-4o"},
            {semconv.PROVIDER: "azure.ai.openai"},
            {semconv.OPERATION: semconv.TEXT_COMPLETION},
            {semconv.STATUS: semconv.PARTIAL},  # which may have told the whole of what had come in part
            {semconv.AUDIO_INPUT_TOKENS: 50},
            {semconv.IMAGE_INPUT_TOKENS: 50},
            {semconv.USAGE_SOURCE: "inconsistent"},
        ],
    )
    def test_calls_of_another_kind(self, other: dict[str, Any], journal: Journal, store_path: Path) -> None:
        experience(journal, attributes=other)
        write_call(journal, LEFT, **lengths(1000, 50), number=10**6)
        assert query(store_path, REST + " ORDER BY started_at DESC LIMIT 1") == UNKNOWN

    @pytest.mark.parametrize("asked", [30, 5_000])
    def test_a_request_of_another_size(self, asked: int, journal: Journal, store_path: Path) -> None:
        experience(journal)
        write_call(journal, LEFT, **lengths(asked, 50))
        assert query(store_path, REST) == [(None, 10, "estimated")]
        assert query(store_path, "SELECT price_source FROM llm_usage WHERE status <> 'ok' AND cost_usd IS NULL") == [
            ("no input usage reported",)
        ]

    def test_an_estimate_is_no_experience(self, journal: Journal, store_path: Path) -> None:
        experience(journal)
        for _ in range(50):
            write_call(journal, LEFT, **lengths(1000, 50))
        merge(store_path)
        with exclusive.alone(StorePaths.of(store_path)) as connection:
            connection.execute("DELETE FROM llm_usage WHERE status = 'ok'")
        write_call(journal, {**LEFT, semconv.STATUS: semconv.CANCELLED}, **lengths(1000, 50))
        assert query(store_path, REST.replace("<> 'ok'", "= 'cancelled'")) == UNKNOWN


def test_what_has_no_length_is_not_estimated(journal: Journal, store_path: Path) -> None:
    experience(journal)
    write_call(journal, LEFT, sc=OURS)
    assert query(store_path, REST) == UNKNOWN


def test_without_an_answer_there_is_an_input_and_no_cost(journal: Journal, store_path: Path) -> None:
    experience(journal)
    write_call(journal, {semconv.STATUS: semconv.CANCELLED}, **lengths(1000))
    assert query(store_path, REST) == [(250, None, "estimated")]
    assert query(store_path, "SELECT cost_usd, price_source FROM llm_usage WHERE status <> 'ok'") == [
        (None, "no output usage reported")
    ]


class TestReasoning:
    def test_beside_the_text(self, journal: Journal, store_path: Path) -> None:
        for _ in range(estimates.LEAST):
            write_call(journal, tokens(100, 340, **{semconv.REASONING_TOKENS: 300}), **lengths(400, 200))
        write_call(journal, LEFT, **lengths(400, 50))
        assert query(store_path, REST) == [(100, 310, "estimated")]

    def test_before_there_is_text(self, journal: Journal, store_path: Path) -> None:
        for _ in range(estimates.LEAST):
            write_call(journal, tokens(100, 340, **{semconv.REASONING_TOKENS: 300}), **lengths(400, 200))
        write_call(journal, LEFT, **lengths(400, 0))
        assert query(store_path, REST) == [(100, None, "estimated")]

    def test_as_text(self, journal: Journal, store_path: Path) -> None:
        for _ in range(estimates.LEAST):
            told = tokens(100, 340, **{semconv.REASONING_TOKENS: 300})
            write_call(journal, told, **lengths(400, 1700, 1500))
        write_call(journal, LEFT, **lengths(400, 50, 50))
        assert query(store_path, REST) == [(100, 10, "estimated")]

    def test_none_and_no_text(self, journal: Journal, store_path: Path) -> None:
        experience(journal)
        write_call(journal, LEFT, **lengths(1000, 0))
        assert query(store_path, REST) == [(250, 0, "estimated")]


def test_those_nearest_in_length_count(journal: Journal, store_path: Path) -> None:
    """Short messages have more tokens to a character than long ones: what is around the text weighs more."""
    for number in range(25):
        write_call(journal, tokens(30, 10), **lengths(50 + number, 40))
        write_call(journal, tokens(250, 10), **lengths(1000 + number, 40))
    write_call(journal, LEFT, **lengths(50, 40))
    write_call(journal, LEFT, **lengths(1000, 40))
    asked = query(store_path, f"{REST} ORDER BY started_at")
    assert asked == [(24, 10, "estimated"), (247, 10, "estimated")]


def test_what_is_around_the_text_is_told_from_the_text(journal: Journal, store_path: Path) -> None:
    for number in range(estimates.LEAST):  # a token for four characters, and seven for the message
        write_call(journal, tokens(12 + 10 * number, 10), **lengths(20 + 40 * number, 40))
    write_call(journal, LEFT, **lengths(40, 40))
    write_call(journal, LEFT, **lengths(200, 40))
    assert query(store_path, f"{REST} ORDER BY started_at") == [(17, 10, "estimated"), (57, 10, "estimated")]


def test_one_that_is_far_off_does_not_count(journal: Journal, store_path: Path) -> None:
    experience(journal, 10)
    write_call(journal, tokens(10**9, 10**9), **lengths(900, 60))
    write_call(journal, LEFT, **lengths(1000, 50))
    assert query(store_path, REST) == ESTIMATED


class TestALaterReport:
    @pytest.mark.parametrize("overlaid", [False, True])
    def test_a_late_end(self, overlaid: bool, journal: Journal, store_path: Path) -> None:
        experience(journal)
        begun = begin(journal, **lengths(1000))
        journal.append({**begun, "co": 50}, start_of=identity(begun))
        journal.close()
        assert query(store_path, REST) == ESTIMATED
        late = end(begun, tokens(7, 8))
        if overlaid:
            with merging(StorePaths.of(store_path)):
                journal.append(late, end_of=identity(begun))
                assert query(store_path, f"{REST} OR input_tokens = 7") == [(7, 8, "reported")]
        else:
            journal.append(late, end_of=identity(begun))
            assert query(store_path, f"{REST} OR input_tokens = 7") == [(7, 8, "reported")]

    @pytest.mark.parametrize("at_once", [False, True])
    def test_the_result_of_a_background_response(self, at_once: bool, journal: Journal, store_path: Path) -> None:
        experience(journal)
        write_call(journal, {**LEFT, semconv.RESPONSE_ID: "resp_1"}, **lengths(1000, 50))
        if not at_once:
            assert query(store_path, REST) == ESTIMATED
        retrieved = USAGE | {semconv.OPERATION: semconv.RETRIEVE, semconv.RESPONSE_ID: "resp_1"}
        write_call(journal, retrieved, sc=OURS)
        told = query(
            store_path,
            "SELECT operation, input_tokens, usage_source, input_chars, output_chars FROM llm_usage "
            "WHERE response_id = 'resp_1'",
        )
        # What had come of it by then is not the length of what was billed.
        assert told == [("chat", 1000, "reported", 1000, None)]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_call_that_others_report_too_is_counted_once(at_once: bool, journal: Journal, store_path: Path) -> None:
    """They agree in that nobody told them any tokens, whatever we have estimated."""
    experience(journal)
    ours = write_call(journal, {**LEFT, semconv.RESPONSE_MODEL: "m"}, **lengths(1000, 50))
    if not at_once:
        merge(store_path)
    write_call(
        journal,
        {**CHAT, semconv.STATUS: semconv.PARTIAL},
        sc="opentelemetry.instrumentation.openai_v2",
        st=ours["st"] + 1,
    )
    assert query(store_path, REST) == ESTIMATED


def test_a_reader_sees_what_a_merge_would_make(journal: Journal, store_path: Path) -> None:
    experience(journal)
    merge(store_path)
    with merging(StorePaths.of(store_path)):
        write_call(journal, LEFT, **lengths(1000, 50))
        assert query(store_path, REST) == ESTIMATED
    assert query(store_path, REST) == ESTIMATED


def test_off(journal: Journal, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_ESTIMATE", "off")
    reload()
    experience(journal)
    write_call(journal, LEFT, **lengths(1000, 50))
    assert query(store_path, REST) == UNKNOWN


class TestPricingAgain:
    def reprice(self, path: Path, *, priced_too: bool = False) -> None:
        with exclusive.alone(StorePaths.of(path)) as connection:
            repricing.reprice(connection, Choice(priced_too=priced_too))

    @pytest.mark.parametrize("priced_too", [False, True])
    def test_estimates_what_can_be_by_now(self, priced_too: bool, journal: Journal, store_path: Path) -> None:
        write_call(journal, LEFT, **lengths(1000, 50))
        assert query(store_path, REST) == UNKNOWN
        experience(journal)
        assert query(store_path, REST) == UNKNOWN
        self.reprice(store_path, priced_too=priced_too)
        assert query(store_path, REST) == ESTIMATED
        assert query(store_path, "SELECT cost_usd FROM llm_usage WHERE status <> 'ok'") == [(Decimal("0.0000435"),)]
        versions = query(store_path, "SELECT row_version, count(*) FROM llm_usage GROUP BY 1 ORDER BY 1")
        assert versions == [(1, estimates.LEAST), (2, 1)]

    def test_keeps_what_was_estimated(
        self, journal: Journal, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        experience(journal)
        write_call(journal, LEFT, **lengths(1000, 50))
        merge(store_path)
        with exclusive.alone(StorePaths.of(store_path)) as connection:
            connection.execute("DELETE FROM llm_usage WHERE status = 'ok'")
        table = tmp_path / "prices.toml"
        table.write_text('[[price]]\nmodel = "*"\ninput = 1000\noutput = 1000\n')
        monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
        reload()
        self.reprice(store_path, priced_too=True)
        assert query(store_path, REST) == ESTIMATED
        assert query(store_path, "SELECT cost_usd, price_source FROM llm_usage") == [(Decimal("0.26"), "override")]
