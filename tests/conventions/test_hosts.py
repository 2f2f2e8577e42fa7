"""The table of providers: whole in itself, in the words of the price list that is installed, and true of the hosts it names."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path

import pytest
from genai_prices.data_snapshot import get_snapshot

from otel_llm.conventions import accents, hosts


def test_a_name_or_a_host_is_one_provider() -> None:
    said = [word for one in hosts.PROVIDERS for word in (one.name, *one.also, *one.hosts, *one.patterns)]
    assert [word for word, times in Counter(said).items() if times > 1] == []


def test_the_price_list_has_those_that_it_is_said_to_have() -> None:
    known = {provider.id for provider in get_snapshot().providers}
    assert {one.price_list for one in hosts.PROVIDERS if one.price_list} <= known
    assert set(hosts._MAKERS.values()) <= known


def test_every_fact_has_its_source() -> None:
    assert [one.name for one in hosts.PROVIDERS if not one.source] == []
    assert [one.name for one in hosts.PROVIDERS if (one.hosts or one.patterns) and not one.at] == []
    assert [one.name for one in hosts.PROVIDERS if one.patterns and not one.not_at and one.name not in _ALONE] == []
    assert len(hosts.PROVIDERS) >= 40
    assert {one for provider in hosts.PROVIDERS for one in provider.speaks} <= set(accents.ACCENTS)


_ALONE = {"snowflake", "tencent"}
"""Whose patterns are of domains that nobody else has hosts in."""


@pytest.mark.parametrize(("host", "provider"), [(host, one.name) for one in hosts.PROVIDERS for host in one.at])
def test_who_answers_at_a_host(host: str, provider: str) -> None:
    assert hosts.provider_at(host) == provider
    assert hosts.provider_at(host.upper()) == hosts.provider_at(f"{host}.") == provider


@pytest.mark.parametrize(("host", "provider"), [(host, one.name) for one in hosts.PROVIDERS for host in one.not_at])
def test_who_does_not_answer_at_a_host(host: str, provider: str) -> None:
    assert hosts.provider_at(host) != provider


@pytest.mark.parametrize("host", [host for one in hosts.PROVIDERS for host in one.at])
def test_a_host_that_looks_like_another_is_not_the_other(host: str) -> None:
    """Whoever registers a domain puts any name before it, or makes one that ends or begins like it."""
    known = hosts.provider_at(host)
    for other in (f"{host}.evil.example", f"evil-{host}", host.replace(".", "-") + ".example", f"{host}evil"):
        assert hosts.provider_at(other) is None or (other.startswith("evil-") and hosts.provider_at(other) == known)
    domain = ".".join(host.split(".")[-2:])
    assert hosts.provider_at(f"evil{domain}") is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "com", "", "host.docker.internal", None])
def test_nobody_is_known_at(host: str | None) -> None:
    assert hosts.provider_at(host) is None


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("bedrock_converse", "aws.bedrock"),
        ("mistralai", "mistral_ai"),
        ("openai", "openai"),
        ("gcp.vertex_ai", "gcp.vertex_ai"),
        ("somebody new", "somebody new"),
    ],
)
def test_what_a_provider_is_called(called: str, name: str) -> None:
    assert hosts.provider_name(called) == name


@pytest.mark.parametrize(
    ("provider", "model", "priced"),
    [
        ("bedrock_converse", "amazon.nova-lite-v1:0", ("aws", "amazon.nova-lite-v1:0")),
        ("mistralai", "mistral-small-latest", ("mistral", "mistral-small-latest")),
        ("openai", "gpt-4o", ("openai", "gpt-4o")),
        ("openai", "gpt-oss-120b", None),  # everybody may run it, and OpenAI does not sell it
        ("openai", "openai/gpt-oss-20b", None),
        ("gcp.vertex_ai", "google/gemini-2.5-flash", ("google", "gemini-2.5-flash")),
        ("openrouter", "anthropic/claude-sonnet-4.5", ("openrouter", "anthropic/claude-sonnet-4.5")),
        ("github", "openai/gpt-4o-mini", ("openai", "gpt-4o-mini")),
        ("github", "microsoft/phi-4", ("github", "microsoft/phi-4")),
        ("portkey", "gpt-4o", ("openai", "gpt-4o")),
        ("cloudflare", "@cf/meta/llama-3.1-8b-instruct", ("cloudflare", "@cf/meta/llama-3.1-8b-instruct")),
        ("somebody new", "m", ("somebody new", "m")),
    ],
)
def test_what_a_price_is_looked_up_by(provider: str, model: str, priced: tuple[str, str] | None) -> None:
    assert hosts.priced_as(provider, model) == priced


def test_the_page_is_made_from_the_tables() -> None:
    docs = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(docs / "providers.py"))["page"]()
    assert (docs / "providers.md").read_text() == made, "run python docs/providers.py"
