"""Who answers a model call: the one table of providers, by the hosts that they answer at and what others call them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class _Provider:
    name: str
    """`gen_ai.provider.name`: a well-known value of the conventions where they have one."""
    hosts: tuple[str, ...] = ()
    """Domains; what is below one is the provider's too."""
    also: tuple[str, ...] = ()
    """What LangChain (`ls_provider`) and older conventions call it."""
    price_list: str | None = None
    """What genai-prices calls it, where that is another name."""


_PROVIDERS: Final = (
    _Provider("openai", hosts=("openai.com",)),
    _Provider(
        "azure.ai.openai",
        hosts=(
            *("openai.azure.com", "openai.azure.us", "openai.azure.cn"),
            *("cognitiveservices.azure.com", "cognitiveservices.azure.us", "cognitiveservices.azure.cn"),
            *("api.cognitive.microsoft.com", "api.cognitive.microsoft.us", "api.cognitive.azure.cn"),
        ),
        also=("azure", "azure_openai", "az.ai.openai"),
        price_list="azure",
    ),
    _Provider(
        "azure.ai.inference",
        hosts=("services.ai.azure.com", "services.ai.azure.us", "services.ai.azure.cn", "models.ai.azure.com"),
        also=("azure_ai", "az.ai.inference"),
        price_list="azure",
    ),
    _Provider("anthropic", hosts=("anthropic.com",)),
    _Provider(
        "gcp.gemini",
        hosts=("generativelanguage.googleapis.com",),
        also=("google_genai", "google", "gemini", "gcp.gen_ai"),
        price_list="google",
    ),
    _Provider(
        "gcp.vertex_ai",
        hosts=("aiplatform.googleapis.com",),
        also=("google_vertexai", "vertexai", "vertex_ai"),
        price_list="google",
    ),
    _Provider(
        "aws.bedrock",
        hosts=("amazonaws.com",),
        also=("amazon_bedrock", "aws_bedrock", "bedrock", "bedrock_converse"),
        price_list="aws",
    ),
    _Provider("cohere", hosts=("cohere.com", "cohere.ai")),
    _Provider("deepseek", hosts=("deepseek.com",)),
    _Provider("groq", hosts=("groq.com",)),
    _Provider("mistral_ai", hosts=("mistral.ai",), also=("mistral", "mistralai"), price_list="mistral"),
    _Provider("perplexity", hosts=("perplexity.ai",)),
    _Provider("x_ai", hosts=("x.ai",), also=("xai",), price_list="x-ai"),
    _Provider("openrouter", hosts=("openrouter.ai",)),
    _Provider("together_ai", hosts=("together.xyz", "together.ai"), also=("together",), price_list="together"),
    _Provider("fireworks_ai", hosts=("fireworks.ai",), also=("fireworks",), price_list="fireworks"),
    _Provider("cerebras", hosts=("cerebras.ai",)),
    _Provider("huggingface", hosts=("huggingface.co",)),
    _Provider("moonshot_ai", hosts=("moonshot.ai", "moonshot.cn"), also=("moonshot",), price_list="moonshotai"),
    _Provider("ibm.watsonx.ai", also=("ibm", "watsonx")),
)

_BY_HOST: Final = {host: provider.name for provider in _PROVIDERS for host in provider.hosts}
_BY_OTHER_NAME: Final = {name: provider.name for provider in _PROVIDERS for name in provider.also}
_IN_PRICE_LIST: Final = {provider.name: provider.price_list for provider in _PROVIDERS}


def provider_at(host: str | None) -> str | None:
    """The provider that answers at a host; None for one that is not known."""
    return next((name for domain, name in _BY_HOST.items() if is_at(host, domain)), None)


def is_at(host: str | None, domain: str) -> bool:
    """Whether a host is in a domain."""
    return host is not None and (host == domain or host.endswith("." + domain))


def provider_name(name: str) -> str:
    """The conventions' name for a provider; its own where they have none."""
    return _BY_OTHER_NAME.get(name, name)


def price_list_name(provider: str) -> str:
    """What genai-prices calls a provider, by any name of it."""
    name = provider_name(provider)
    return _IN_PRICE_LIST.get(name) or name
