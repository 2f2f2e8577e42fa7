from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.responses import ResponseUsage

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import Usage, count, from_langchain, from_openai

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
    assert from_openai(payload) == Usage(20, 9, 4, 2, 5, 1, 6, 3, None)


@pytest.mark.parametrize("payload", [RESPONSES, ResponseUsage.model_validate(RESPONSES)])
def test_responses(payload):
    assert from_openai(payload) == Usage(20, 9, 4, 0, 5)


def test_embeddings_have_no_output():
    assert from_openai({"prompt_tokens": 8, "total_tokens": 8}) == Usage(input=8)


def test_unknown_is_none_never_zero():
    assert from_openai(None) is None
    assert from_openai({}) is None
    assert from_openai({"prompt_tokens": None, "completion_tokens": "many"}) is None
    assert from_openai("usage") is None


def test_a_reported_zero_is_a_fact():
    usage = from_openai({"prompt_tokens": 0})
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
    assert from_langchain(metadata) == Usage(20, 9, 4, 1, 5, 2)


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


@given(json_values)
def test_any_payload_gives_counts_that_fit_or_nothing(payload):
    usage = from_openai(payload)
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
    assert from_openai(payload) == expected
