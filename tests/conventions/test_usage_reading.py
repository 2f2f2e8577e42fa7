from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.responses import ResponseUsage

from otel_llm.conventions import accents, semconv
from otel_llm.conventions.token_usage import Usage, count
from otel_llm.conventions.usage_reading import Reading, read_usage


def tokens(payload, **known):
    return read_usage(payload, **known).usage


CHAT = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 1, "cache_write_tokens": 2, "image_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 6},
}
RESPONSES = {
    "input_tokens": 20,
    "output_tokens": 9,
    "total_tokens": 29,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 5},
}


@pytest.mark.parametrize("payload", [CHAT, CompletionUsage.model_validate(CHAT)])
def test_chat(payload):
    assert tokens(payload) == Usage(20, 9, 4, 2, 5, 1, 6, 3, None)


@pytest.mark.parametrize("payload", [RESPONSES, ResponseUsage.model_validate(RESPONSES)])
def test_responses(payload):
    assert tokens(payload) == Usage(20, 9, 4, 0, 5)


def test_embeddings_have_no_output():
    assert tokens({"prompt_tokens": 8, "total_tokens": 8}) == Usage(input=8)


def test_unknown_is_none_never_zero():
    assert tokens(None) is None
    assert tokens({}) is None
    assert tokens({"prompt_tokens": None, "completion_tokens": "many"}) is None
    assert tokens("usage") is None


def test_a_reported_zero_is_a_fact():
    usage = tokens({"prompt_tokens": 0})
    assert usage == Usage(input=0)
    assert usage.attributes() == {semconv.INPUT_TOKENS: 0}


def test_langchain():
    metadata = {
        "input_tokens": 20,
        "output_tokens": 9,
        "total_tokens": 29,
        "input_token_details": {"cache_read": 4, "cache_creation": 1, "audio": 2},
        "output_token_details": {"reasoning": 5},
    }
    assert tokens(metadata) == Usage(20, 9, 4, 1, 5, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, None), (-1, None), (2**63, None), (2**63 - 1, 2**63 - 1), (3.0, 3), (3.5, None), ("3", None)],
)
def test_count(value, expected):
    assert count(value) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*CHAT, *RESPONSES, "cached_tokens", "reasoning_tokens"]), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from([None, "gcp.gemini", "openrouter"]))
def test_any_payload_gives_counts_that_fit_or_nothing(payload, provider):
    reading = read_usage(payload, provider)
    usage = reading.usage
    assert reading.cost_usd is None or reading.cost_usd >= 0
    assert all(0 < number < 2**53 for number in reading.units.values())
    assert usage is None or all(one is None or (type(one) is int and 0 <= one < 2**63) for one in usage)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (  # realtime
            {
                "input_tokens": 20,
                "output_tokens": 10,
                "input_token_details": {"text_tokens": 5, "audio_tokens": 12, "image_tokens": 3, "cached_tokens": 4},
                "output_token_details": {"text_tokens": 3, "audio_tokens": 7},
            },
            Usage(20, 10, 4, audio_input=12, audio_output=7, image_input=3),
        ),
        (  # an assistant's run
            {"prompt_tokens": 7, "completion_tokens": 3, "prompt_token_details": {"cached_tokens": 4}},
            Usage(7, 3, 4),
        ),
        ({"type": "duration", "seconds": 2.0}, None),  # a transcription that is billed by its length
    ],
)
def test_further_dialects(payload, expected):
    assert tokens(payload) == expected


def usage(asked=None, answered=None, total=None, **details):
    names = ("prompt_tokens", asked), ("completion_tokens", answered), ("total_tokens", total)
    return {name: value for name, value in names if value is not None} | details


@pytest.mark.parametrize(
    ("payload", "known", "expected"),
    [
        # Beside the output, by the sum: xAI.
        (usage(32, 9, 135, completion_tokens_details={"reasoning_tokens": 94}), {}, Usage(32, 103, reasoning=94)),
        # Inside: OpenAI, and xAI's Responses.
        (usage(32, 103, 135, completion_tokens_details={"reasoning_tokens": 94}), {}, Usage(32, 103, reasoning=94)),
        # More than the output, and no sum.
        (usage(32, 9, completion_tokens_details={"reasoning_tokens": 94}), {}, Usage(32, 103, reasoning=94)),
        # Named nowhere: Gemini, by the host, or by the model behind a gateway.
        (usage(20, 198, 623), {"provider": "gcp.gemini"}, Usage(20, 603, reasoning=405)),
        (usage(20, 198, 623), {"model": "google/gemini-2.5-flash"}, Usage(20, 603, reasoning=405)),
        # Everything was thought, and nothing said.
        (usage(20, None, 623), {"provider": "gcp.gemini"}, Usage(20, 603, reasoning=603)),
        # Neither in the output nor in the sum: Perplexity.
        (usage(33, 7, 40, citation_tokens=9, num_search_queries=2, reasoning_tokens=5), {}, Usage(33, 12, reasoning=5)),
        (usage(33, 11, 44, citation_tokens=19, reasoning_tokens=193), {}, Usage(33, 204, reasoning=193)),
        # A flat name of somebody else's, inside.
        (usage(33, 11, 44, reasoning_tokens=5), {}, Usage(33, 11, reasoning=5)),
        # Anthropic: what is cached is beside the input.
        (
            {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 100},
            {},
            Usage(117, 5, 7, 100),
        ),
        # The same names, added up already by a gateway.
        (usage(117, 5, 122, cache_read_input_tokens=7, cache_creation_input_tokens=100), {}, Usage(117, 5, 7, 100)),
        (usage(117, 5, cache_read_input_tokens=7, cache_creation_input_tokens=100), {}, Usage(117, 5, 7, 100)),
        # And not added up, with a sum that has them, or has them not.
        (usage(10, 5, 122, cache_read_input_tokens=7, cache_creation_input_tokens=100), {}, Usage(117, 5, 7, 100)),
        (usage(10, 5, 15, cache_read_input_tokens=7, cache_creation_input_tokens=100), {}, Usage(117, 5, 7, 100)),
        # Two things stand beside.
        (
            usage(
                10,
                5,
                122,
                prompt_tokens_details={"cached_tokens": 100},
                completion_tokens_details={"reasoning_tokens": 7},
            ),
            {},
            Usage(110, 12, 100, reasoning=7),
        ),
        # An hour's writes, told apart by a sum of their own.
        (
            {
                "input_tokens": 1,
                "output_tokens": 5,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
            },
            {},
            Usage(31, 5, None, 30, cache_write_1h=20),
        ),
        # langchain-anthropic puts 0 where it tells them apart.
        (
            {
                "input_tokens": 31,
                "output_tokens": 5,
                "total_tokens": 36,
                "input_token_details": {
                    "cache_creation": 0,
                    "ephemeral_5m_input_tokens": 10,
                    "ephemeral_1h_input_tokens": 20,
                },
            },
            {},
            Usage(31, 5, None, 30, cache_write_1h=20),
        ),
        # langchain-aws: a total without what is cached.
        (
            {
                "input_tokens": 110,
                "output_tokens": 5,
                "total_tokens": 15,
                "input_token_details": {"cache_read": 100, "cache_creation": 0},
            },
            {},
            Usage(110, 5, 100, 0),
        ),
        # langchain-google-vertexai: reasoning beside the output.
        (
            {"input_tokens": 10, "output_tokens": 5, "total_tokens": 25, "output_token_details": {"reasoning": 10}},
            {},
            Usage(10, 15, reasoning=10),
        ),
        # langchain-openai, of calls in a tier of their own.
        (
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "total_tokens": 15,
                "input_token_details": {"flex_cache_read": 4, "flex": 6},
                "output_token_details": {"priority_reasoning": 3, "priority": 2},
            },
            {},
            Usage(10, 5, 4, reasoning=3),
        ),
        # Gemini's own API: tools put something into the prompt.
        (
            {
                "promptTokenCount": 10,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 20,
                "toolUsePromptTokenCount": 7,
                "totalTokenCount": 42,
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 4}, {"modality": "AUDIO", "tokenCount": 6}],
            },
            {},
            Usage(17, 25, reasoning=20, audio_input=6),
        ),
        # Bedrock's own API.
        (
            {
                "inputTokens": 4,
                "outputTokens": 3,
                "totalTokens": 37,
                "cacheWriteInputTokens": 30,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 20}, {"ttl": "5m", "inputTokens": 10}],
            },
            {},
            Usage(34, 3, None, 30, cache_write_1h=20),
        ),
        # llama.cpp's timings.
        ({"prompt_n": 3, "cache_n": 7, "predicted_n": 5, "prompt_ms": 1.5}, {}, Usage(10, 5, 7)),
        # Realtime: cached and audio.
        (
            {
                "input_tokens": 100,
                "output_tokens": 10,
                "total_tokens": 110,
                "input_token_details": {
                    "audio_tokens": 100,
                    "cached_tokens": 64,
                    "cached_tokens_details": {"audio_tokens": 64, "text_tokens": 0},
                },
            },
            {},
            Usage(100, 10, 64, audio_input=100, audio_cache_read=64),
        ),
        # A bare total, of an answer that has no output.
        ({"total_tokens": 8}, {"embeds": True}, Usage(8)),
        ({"total_tokens": 8}, {}, None),
        # A total of 0 is none.
        (usage(3, 4, 0), {}, Usage(3, 4)),
    ],
)
def test_what_stands_beside_is_put_into_its_whole(payload, known, expected):
    reading = read_usage(payload, **known)
    assert reading.usage == expected
    assert reading.adds_up
    assert semconv.USAGE_SOURCE not in reading.attributes()


@pytest.mark.parametrize(
    "payload",
    [
        usage(20, 198, 623),  # a host that nobody knows
        usage(20, 198, 200),
        usage(20, 198, 623, completion_tokens_details={"reasoning_tokens": 400}),
        usage(20, 10, 30, completion_tokens_details={"reasoning_tokens": 11}),  # said to be inside, and larger
    ],
)
def test_what_cannot_be_explained_is_told_and_left_as_it_is(payload):
    reading = read_usage(payload)
    assert reading.usage[:2] == (payload["prompt_tokens"], payload["completion_tokens"])
    assert reading.attributes() == {semconv.USAGE_SOURCE: "inconsistent"}


@pytest.mark.parametrize(
    ("said", "provider", "cost"),
    [
        ({"cost_in_usd_ticks": 37_756_000}, None, 0.0037756),
        ({"cost": 0.0123}, "openrouter", 0.0123),
        ({"cost": 0}, "openrouter", 0.0),
        ({"cost": 0.0123}, None, None),  # a number of something
        ({"cost": 0.0123, "cost_details": {}}, None, 0.0123),  # a relay before OpenRouter
        ({"cost": 0.01, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.01}}, None, 0.01),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, None, 0.21),
        ({"cost": 0.01, "is_byok": True}, "openrouter", None),  # what its own key was billed is not told
        ({"cost": {"total_cost": 0.04629, "request_cost": 0.006}}, None, 0.04629),
        ({"cost": {"total_cost": 0.04629, "currency": "EUR"}}, None, None),
        ({"estimated_cost": 1.7e-05}, "deepinfra", 1.7e-05),
        ({"estimated_cost": 1.7e-05}, None, None),
        ({"cost": -1}, "openrouter", None),
        ({"cost": True}, "openrouter", None),
        ({"cost": float("nan")}, "openrouter", None),
        ({"cost_in_usd_ticks": "12"}, None, None),
    ],
)
def test_a_cost_is_read_where_its_unit_is_known(said, provider, cost):
    found = read_usage(usage(1, 2, 3, **said), provider).attributes().get(semconv.REPORTED_COST_USD)
    assert found == pytest.approx(cost) if cost is not None else found is None


def test_what_else_is_billed_is_counted():
    told = usage(
        1,
        2,
        3,
        num_search_queries=4,
        num_sources_used=0,
        server_tool_use={"web_search_requests": 3},
        server_side_tool_usage_details={"x_search_calls": 2, "web_search_calls": 0},
        seconds=1.5,
    )
    assert read_usage(told).units == {
        "otel_llm.usage.search_queries": 4.0,
        "otel_llm.usage.web_search_calls": 3.0,
        "otel_llm.usage.x_search_calls": 2.0,
        semconv.AUDIO_SECONDS: 1.5,
    }


def test_what_two_readings_of_an_answer_know_is_put_together():
    one = Reading(Usage(10, 5, None, 0, 0))
    more = Reading(Usage(10, 5, 4, 3), cost_usd=0.5, units={"u": 1.0})
    assert one.completed_by(more) == Reading(Usage(10, 5, 4, 3, 0), True, 0.5, {"u": 1.0})
    other = Reading(Usage(11, 5, 4))  # of another answer, or a sum
    assert one.completed_by(other).usage == one.usage


def test_a_name_means_the_same_in_every_accent():
    meanings = {}
    for accent in accents.ACCENTS:
        for path, meaning in {**accent.counts, **accent.units, **accent.money}.items():
            assert meanings.setdefault(path, meaning) == meaning, path
        assert set(accent.counts.values()) <= set(accents.SLOTS)
        assert set(accent.money.values()) <= set(accents.MONEY)
        assert accent.source
    outer = {path.rpartition(".")[0] for path in meanings if "." in path}
    assert outer & set(meanings) == set()  # an object in one, a number in another


counts = st.integers(0, 10**6)


@given(
    st.fixed_dictionaries(dict.fromkeys(("fresh", "read", "written", "said", "thought"), counts)),
    st.sets(st.sampled_from(["read", "written", "thought"])),
    st.booleans(),
)
def test_whatever_stands_beside_the_whole_is_found_by_the_sum(parts, beside, responses):
    """What was used is known; which parts are told inside their whole and which beside it differs from server to server."""
    # Two parts, or sums of them, that are the same number cannot be told from each other.
    sums = [
        sum(some)
        for size in (1, 2, 3)
        for some in combinations([parts[one] for one in ("read", "written", "thought")], size)
    ]
    assume(len(set(sums)) == len(sums))
    asked = parts["fresh"] + parts["read"] + parts["written"]
    answered = parts["said"] + parts["thought"]
    told_in = asked - sum(parts[one] for one in beside & {"read", "written"})
    told_out = answered - (parts["thought"] if "thought" in beside else 0)
    assume(asked + answered > 0)
    into, out = ("input", "output") if responses else ("prompt", "completion")
    payload = {
        f"{into}_tokens": told_in,
        f"{out}_tokens": told_out,
        "total_tokens": asked + answered,
        f"{into}_tokens_details": {"cached_tokens": parts["read"], "cache_write_tokens": parts["written"]},
        f"{out}_tokens_details": {"reasoning_tokens": parts["thought"]},
    }
    reading = read_usage(payload)
    assert reading.usage == Usage(asked, answered, parts["read"], parts["written"], parts["thought"])
    assert reading.adds_up
