"""The table of providers: whole in itself, and in the words of the price list that is installed."""

from __future__ import annotations

from collections import Counter

import pytest
from genai_prices.data_snapshot import get_snapshot

from otel_llm.conventions import hosts


def test_a_name_or_a_host_is_one_provider() -> None:
    said = [word for one in hosts._PROVIDERS for word in (one.name, *one.also, *one.hosts)]
    assert [word for word, times in Counter(said).items() if times > 1] == []


def test_the_price_list_has_those_that_it_is_said_to_have() -> None:
    known = {provider.id for provider in get_snapshot().providers}
    assert {one.price_list for one in hosts._PROVIDERS if one.price_list} <= known


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("openai.com", "openai"),
        ("notopenai.com", None),
        ("openai.com.example", None),
        ("mine.openai.azure.com", "azure.ai.openai"),
        ("bedrock-runtime.eu-west-1.amazonaws.com", "aws.bedrock"),
        ("localhost", None),
        (None, None),
    ],
)
def test_who_answers_at_a_host(host: str | None, provider: str | None) -> None:
    assert hosts.provider_at(host) == provider


@pytest.mark.parametrize(
    ("called", "name", "in_the_price_list"),
    [
        ("bedrock_converse", "aws.bedrock", "aws"),
        ("mistralai", "mistral_ai", "mistral"),
        ("openai", "openai", "openai"),
        ("gcp.vertex_ai", "gcp.vertex_ai", "google"),
        ("somebody new", "somebody new", "somebody new"),
    ],
)
def test_what_a_provider_is_called(called: str, name: str, in_the_price_list: str) -> None:
    assert hosts.provider_name(called) == name
    assert hosts.price_list_name(called) == in_the_price_list
