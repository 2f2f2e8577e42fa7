"""Who answers a model call: the one table of providers, gateways and servers, by their hosts and by what others call them.

A rule for hosts is a domain, which everything below it belongs to, or a pattern for the whole host where others have hosts in
the same domain: one's own load balancer is at `amazonaws.com` too. How they say what was used is in `accents`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from otel_llm.conventions import accents
from otel_llm.conventions.accents import Accent


@dataclass(frozen=True)
class Provider:
    """One who answers model calls."""

    name: str
    """`gen_ai.provider.name`: a well-known value of the conventions where they have one."""
    hosts: tuple[str, ...] = ()
    """Domains; what is below one is the provider's too."""
    patterns: tuple[str, ...] = ()
    """Patterns of whole hosts, in domains that are not the provider's alone."""
    also: tuple[str, ...] = ()
    """What LangChain (`ls_provider`) and older conventions call it."""
    price_list: str | None = None
    """What genai-prices calls it, where that is another name."""
    speaks: tuple[Accent, ...] = ()
    """Accents beside OpenAI's own."""
    stream: str = "asked"
    """When a stream tells its usage: where it is `asked` by `stream_options`, `always`, or in `every chunk`."""
    resells: bool = False
    """Whether it sells models of other makers at their price, so that the name of the model says whose."""
    paid_in_usd: bool = False
    """Whether the bare number in `usage.cost` is in USD."""
    bills: str = ""
    """What it bills beside tokens."""
    source: str = ""
    """Where its hosts and what its answers have are written."""
    at: tuple[str, ...] = ()
    """Hosts out of the documentation."""
    not_at: tuple[str, ...] = ()
    """Hosts that look like its own, and are another's."""


_AZURE = r"[a-z0-9-]+"
_REGION = r"[a-z]{2}(-[a-z]+)+-\d"

PROVIDERS: Final = (
    Provider(
        "openai",
        hosts=("openai.com",),
        bills="web searches, file searches, code containers, images of tools; images, seconds or characters of some models",
        source="https://platform.openai.com/docs/guides/your-data (eu., us., in. hosts), https://openai.com/api/pricing",
        at=("api.openai.com", "eu.api.openai.com", "us.api.openai.com"),
        not_at=("evil-openai.com", "openai.com.example", "api.openai.com.evil.example", "notopenai.com"),
    ),
    Provider(
        "azure.ai.openai",
        patterns=(
            rf"{_AZURE}(\.privatelink)?\.openai\.azure\.(com|us|cn)",
            rf"{_AZURE}(\.privatelink)?\.cognitiveservices\.azure\.(com|us|cn)",
            rf"{_AZURE}\.api\.cognitive\.(microsoft\.com|microsoft\.us|azure\.cn)",
        ),
        also=("azure", "azure_openai", "az.ai.openai"),
        price_list="azure",
        bills="as OpenAI",
        source="https://learn.microsoft.com/azure/ai-services/openai/reference, https://learn.microsoft.com/azure/azure-government/compare-azure-government-global-azure",
        at=(
            "mine.openai.azure.com",
            "mine.openai.azure.us",
            "mine.openai.azure.cn",
            "mine.cognitiveservices.azure.com",
            "eastus.api.cognitive.microsoft.com",
        ),
        not_at=("openai.azure.com.example", "mine.azure-api.net", "mine.azurewebsites.net"),
    ),
    Provider(
        "azure.ai.inference",
        patterns=(
            rf"{_AZURE}\.services\.ai\.azure\.(com|us|cn)",
            rf"{_AZURE}(\.{_AZURE})?\.models\.ai\.azure\.com",
            rf"{_AZURE}(\.{_AZURE})?\.inference\.ml\.azure\.com",
        ),
        also=("azure_ai", "az.ai.inference"),
        price_list="azure",
        source="https://learn.microsoft.com/azure/ai-foundry/foundry-models/concepts/endpoints",
        at=("mine.services.ai.azure.com", "llama.eastus2.models.ai.azure.com"),
        not_at=("models.inference.ai.azure.com",),
    ),
    Provider(
        "anthropic",
        hosts=("anthropic.com",),
        also=("claude",),
        speaks=(accents.ANTHROPIC,),
        bills="web searches",
        source="https://docs.claude.com/en/api/openai-sdk",
        at=("api.anthropic.com",),
        not_at=("anthropic.com.example",),
    ),
    Provider(
        "gcp.gemini",
        hosts=("generativelanguage.googleapis.com",),
        also=("google_genai", "google", "gemini", "gcp.gen_ai"),
        price_list="google",
        speaks=(accents.GEMINI,),
        stream="every chunk",
        bills="grounding with Google Search",
        source="https://ai.google.dev/gemini-api/docs/openai",
        at=("generativelanguage.googleapis.com",),
        not_at=("storage.googleapis.com",),
    ),
    Provider(
        "gcp.vertex_ai",
        patterns=(
            r"([a-z0-9-]+-)?aiplatform\.googleapis\.com",
            r"aiplatform\.[a-z0-9-]+\.rep\.googleapis\.com",
            r"[a-z0-9.-]+\.prediction\.vertexai\.goog",
        ),
        also=("google_vertexai", "vertexai", "vertex_ai", "google_anthropic_vertex"),
        price_list="google",
        speaks=(accents.GEMINI, accents.ANTHROPIC),
        stream="every chunk",
        source="https://cloud.google.com/vertex-ai/generative-ai/docs/start/openai, https://cloud.google.com/vertex-ai/docs/general/locations",
        at=(
            "aiplatform.googleapis.com",
            "us-central1-aiplatform.googleapis.com",
            "europe-west4-aiplatform.googleapis.com",
            "aiplatform.eu.rep.googleapis.com",
        ),
        not_at=("notaiplatform.googleapis.com.example", "my-app.a.run.app", "bigquery.googleapis.com"),
    ),
    Provider(
        "aws.bedrock",
        patterns=(
            rf"([a-z0-9-]+\.)?bedrock-(runtime|mantle)(-fips)?\.{_REGION}(\.vpce)?\.amazonaws\.com(\.cn)?",
            rf"bedrock-(runtime|mantle)(-fips)?\.{_REGION}\.api\.(aws|amazonwebservices\.com\.cn)",
        ),
        also=("amazon_bedrock", "aws_bedrock", "bedrock", "bedrock_converse", "anthropic_bedrock"),
        price_list="aws",
        speaks=(accents.BEDROCK, accents.ANTHROPIC),
        source="https://docs.aws.amazon.com/bedrock/latest/userguide/inference-chat-completions.html, https://docs.aws.amazon.com/general/latest/gr/bedrock.html",
        at=(
            "bedrock-runtime.eu-west-1.amazonaws.com",
            "bedrock-runtime-fips.us-gov-west-1.amazonaws.com",
            "vpce-0a1b-abc.bedrock-runtime.us-east-1.vpce.amazonaws.com",
            "bedrock-mantle.us-east-1.api.aws",
        ),
        not_at=(
            "ec2-198-51-100-7.compute-1.amazonaws.com",
            "llm-123.us-east-1.elb.amazonaws.com",
            "abc.execute-api.us-east-1.amazonaws.com",
            "bedrock-runtime.evil.amazonaws.com.example",
        ),
    ),
    Provider(
        "cohere",
        hosts=("cohere.com", "cohere.ai"),
        speaks=(accents.COHERE,),
        bills="searches of rerank models",
        source="https://docs.cohere.com/docs/compatibility-api",
        at=("api.cohere.ai", "api.cohere.com"),
    ),
    Provider(
        "deepseek",
        hosts=("deepseek.com",),
        speaks=(accents.DEEPSEEK,),
        source="https://api-docs.deepseek.com; recording deepseek_stream.yaml",
        at=("api.deepseek.com",),
        not_at=("deepseek.com.example",),
    ),
    Provider(
        "groq",
        hosts=("groq.com",),
        speaks=(accents.GROQ,),
        stream="always",
        source="https://console.groq.com/docs/openai; recordings",
        at=("api.groq.com",),
        not_at=("notgroq.com",),
    ),
    Provider(
        "mistral_ai",
        hosts=("mistral.ai",),
        also=("mistral", "mistralai"),
        price_list="mistral",
        speaks=(accents.MISTRAL,),
        stream="always",
        bills="seconds of audio; connectors",
        source="https://docs.mistral.ai/api",
        at=("api.mistral.ai", "codestral.mistral.ai"),
    ),
    Provider(
        "perplexity",
        hosts=("perplexity.ai",),
        speaks=(accents.PERPLEXITY,),
        stream="every chunk",
        bills="a fee a request; searches. All of it is in the cost that it reports",
        source="https://docs.perplexity.ai/guides/chat-completions-guide",
        at=("api.perplexity.ai",),
    ),
    Provider(
        "x_ai",
        hosts=("x.ai",),
        also=("xai",),
        price_list="x-ai",
        speaks=(accents.XAI,),
        stream="every chunk",
        bills="searches, sources, code. All of it is in the cost that it reports",
        source="https://docs.x.ai/docs/api-reference",
        at=("api.x.ai", "us-east-1.api.x.ai"),
        not_at=("max.ai", "x.ai.example"),
    ),
    Provider(
        "openrouter",
        hosts=("openrouter.ai",),
        speaks=(accents.OPENROUTER, accents.ANTHROPIC),
        stream="always",
        paid_in_usd=True,
        bills="searches, files. All of it is in the cost that it reports, but what the own key of a provider is billed is added",
        source="https://openrouter.ai/docs/api-reference/overview; recording openrouter_stream_reasoning.yaml",
        at=("openrouter.ai",),
        not_at=("openrouter.ai.example",),
    ),
    Provider(
        "together_ai",
        hosts=("together.xyz", "together.ai"),
        also=("together",),
        price_list="together",
        speaks=(accents.MOONSHOT,),
        source="https://docs.together.ai/docs/openai-api-compatibility; recording together_chat.yaml",
        at=("api.together.xyz", "api.together.ai"),
    ),
    Provider(
        "fireworks_ai",
        hosts=("fireworks.ai",),
        also=("fireworks",),
        price_list="fireworks",
        stream="always",
        source="https://docs.fireworks.ai/tools-sdks/openai-compatibility",
        at=("api.fireworks.ai",),
    ),
    Provider(
        "cerebras",
        hosts=("cerebras.ai",),
        stream="always",
        source="https://inference-docs.cerebras.ai/resources/openai",
        at=("api.cerebras.ai",),
    ),
    Provider(
        "huggingface",
        hosts=("huggingface.co", "endpoints.huggingface.cloud"),
        also=("hugging_face", "huggingface_hub"),
        source="https://huggingface.co/docs/inference-providers",
        at=("router.huggingface.co", "abc.us-east-1.aws.endpoints.huggingface.cloud"),
        not_at=("someone-app.hf.space",),
    ),
    Provider(
        "moonshot_ai",
        hosts=("moonshot.ai", "moonshot.cn"),
        also=("moonshot", "moonshotai"),
        price_list="moonshotai",
        speaks=(accents.MOONSHOT,),
        stream="always",
        bills="web searches",
        source="https://platform.moonshot.ai/docs",
        at=("api.moonshot.ai", "api.moonshot.cn"),
    ),
    Provider(
        "ibm.watsonx.ai",
        patterns=(r"[a-z0-9-]+\.ml\.cloud\.ibm\.com",),
        also=("ibm", "watsonx"),
        speaks=(accents.WATSONX,),
        source="https://cloud.ibm.com/apidocs/watsonx-ai",
        at=("us-south.ml.cloud.ibm.com",),
        not_at=("mine.us-south.codeengine.appdomain.cloud",),
    ),
    # --- further providers -----------------------------------------------------------------------------------------
    Provider(
        "sambanova",
        hosts=("sambanova.ai",),
        stream="always",
        source="https://docs.sambanova.ai",
        at=("api.sambanova.ai",),
    ),
    Provider(
        "nebius",
        patterns=(r"api\.(studio|tokenfactory)(\.[a-z0-9-]+)*\.nebius\.(ai|com)",),
        source="https://docs.tokenfactory.nebius.com",
        at=("api.studio.nebius.com", "api.studio.nebius.ai", "api.tokenfactory.nebius.com"),
        not_at=("vm-1.compute.nebius.cloud",),
    ),
    Provider(
        "zhipu",
        hosts=("bigmodel.cn", "z.ai"),
        also=("zhipuai", "zai", "glm"),
        price_list="zai",
        bills="web searches",
        stream="always",
        source="https://docs.z.ai/api-reference, https://docs.bigmodel.cn",
        at=("api.z.ai", "open.bigmodel.cn"),
        not_at=("abz.ai",),
    ),
    Provider(
        "dashscope",
        patterns=(r"dashscope(-[a-z0-9-]+)?\.aliyuncs\.com", r"[a-z0-9-]+\.[a-z0-9-]+\.maas\.aliyuncs\.com"),
        also=("qwen", "tongyi", "alibaba"),
        speaks=(accents.DASHSCOPE,),
        source="https://www.alibabacloud.com/help/en/model-studio/compatibility-of-openai-with-dashscope",
        at=("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"),
        not_at=("mine.oss-cn-hangzhou.aliyuncs.com",),
    ),
    Provider(
        "minimax",
        hosts=("minimax.io", "minimaxi.com", "minimax.chat"),
        source="https://platform.minimax.io/docs/api-reference/text-openai-api",
        at=("api.minimax.io", "api.minimaxi.com"),
    ),
    Provider(
        "nvidia",
        patterns=(r"(integrate|ai)\.api\.nvidia\.com",),
        also=("nvidia_nim", "nim"),
        source="https://docs.api.nvidia.com/nim/reference/llm-apis",
        at=("integrate.api.nvidia.com",),
        not_at=("developer.nvidia.com",),
    ),
    Provider(
        "databricks",
        patterns=(
            r"[a-z0-9-]+(\.[0-9]+)?\.(cloud|gcp)\.databricks\.com",
            r"adb-[0-9]+\.[0-9]+\.azuredatabricks\.net",
            r"[0-9]+\.ai-gateway\.(cloud|gcp|azure)\.databricks\.com",
        ),
        also=("chatdatabricks",),
        speaks=(accents.ANTHROPIC,),
        source="https://docs.databricks.com/machine-learning/model-serving/score-foundation-models",
        at=("dbc-a1b2.cloud.databricks.com", "adb-1234567890123456.7.azuredatabricks.net"),
        not_at=("docs.databricks.com", "my-app-123.aws.databricksapps.com"),
    ),
    Provider(
        "deepinfra",
        hosts=("deepinfra.com",),
        speaks=(accents.DEEPINFRA,),
        source="https://deepinfra.com/docs/openai_api",
        at=("api.deepinfra.com",),
    ),
    Provider("hyperbolic", hosts=("hyperbolic.xyz",), source="https://docs.hyperbolic.xyz", at=("api.hyperbolic.xyz",)),
    Provider("novita", hosts=("novita.ai",), source="https://novita.ai/docs", at=("api.novita.ai",)),
    Provider(
        "siliconflow",
        hosts=("siliconflow.cn", "siliconflow.com"),
        stream="every chunk",
        source="https://docs.siliconflow.com",
        at=("api.siliconflow.cn", "api.siliconflow.com"),
    ),
    Provider(
        "volcengine",
        patterns=(r"ark(\.[a-z0-9-]+)*\.(volces|bytepluses)\.com",),
        also=("ark", "doubao"),
        source="https://www.volcengine.com/docs/82379",
        at=("ark.cn-beijing.volces.com", "ark.ap-southeast.bytepluses.com"),
        not_at=("bucket.tos-cn-beijing.volces.com",),
    ),
    Provider(
        "baidu",
        patterns=(r"qianfan\.([a-z0-9-]+\.)?baidubce\.com",),
        also=("qianfan",),
        source="https://cloud.baidu.com/doc/qianfan-api",
        at=("qianfan.baidubce.com",),
        not_at=("bj.bcebos.com",),
    ),
    Provider(
        "tencent",
        patterns=(r"api\.hunyuan\.cloud\.tencent\.com", r"api\.lkeap\.cloud\.tencent\.com"),
        also=("hunyuan",),
        source="https://cloud.tencent.com/document/product/1729",
        at=("api.hunyuan.cloud.tencent.com",),
    ),
    Provider(
        "stepfun",
        hosts=("stepfun.com", "stepfun.ai"),
        speaks=(accents.MOONSHOT,),
        source="https://platform.stepfun.com/docs",
        at=("api.stepfun.com",),
    ),
    Provider(
        "baichuan",
        hosts=("baichuan-ai.com",),
        source="https://platform.baichuan-ai.com/docs/api",
        at=("api.baichuan-ai.com",),
    ),
    Provider(
        "lingyiwanwu",
        hosts=("lingyiwanwu.com",),
        also=("yi", "01ai"),
        source="https://platform.lingyiwanwu.com/docs",
        at=("api.lingyiwanwu.com",),
    ),
    Provider("ai21", hosts=("ai21.com",), source="https://docs.ai21.com/reference", at=("api.ai21.com",)),
    Provider("upstage", hosts=("upstage.ai",), source="https://console.upstage.ai/docs", at=("api.upstage.ai",)),
    Provider(
        "voyageai",
        hosts=("voyageai.com",),
        also=("voyage",),
        source="https://docs.voyageai.com/reference/embeddings-api",
        at=("api.voyageai.com",),
    ),
    Provider("friendli", hosts=("friendli.ai",), source="https://friendli.ai/docs", at=("api.friendli.ai",)),
    Provider(
        "baseten",
        hosts=("baseten.co",),
        source="https://docs.baseten.co/development/model-apis/overview",
        at=("inference.baseten.co", "model-abc.api.baseten.co"),
    ),
    Provider(
        "lambda",
        hosts=("lambda.ai", "lambdalabs.com"),
        source="https://docs.lambda.ai/public-cloud/lambda-inference-api",
        at=("api.lambda.ai",),
    ),
    Provider(
        "scaleway",
        patterns=(r"api\.scaleway\.ai", r"[a-z0-9-]+\.ifr\.fr-par\.scaleway\.com"),
        source="https://www.scaleway.com/en/docs/generative-apis",
        at=("api.scaleway.ai",),
        not_at=("mine.s3.fr-par.scw.cloud",),
    ),
    Provider(
        "ovhcloud",
        patterns=(r"([a-z0-9-]+\.)*endpoints\.(kepler\.)?ai\.cloud\.ovh\.net",),
        also=("ovh",),
        source="https://help.ovhcloud.com/csm/en-public-cloud-ai-endpoints",
        at=("oai.endpoints.kepler.ai.cloud.ovh.net",),
        not_at=("vps-1.vps.ovh.net",),
    ),
    Provider(
        "meta",
        hosts=("llama.com",),
        also=("meta_llama", "llama_api"),
        source="https://llama.developer.meta.com/docs",
        at=("api.llama.com",),
    ),
    Provider(
        "inception", hosts=("inceptionlabs.ai",), source="https://docs.inceptionlabs.ai", at=("api.inceptionlabs.ai",)
    ),
    Provider(
        "snowflake",
        patterns=(r"[a-z0-9_.-]+\.snowflakecomputing\.(com|cn)",),
        also=("cortex",),
        source="https://docs.snowflake.com/en/user-guide/snowflake-cortex/open_ai_sdk",
        at=("org-account.snowflakecomputing.com",),
    ),
    # --- gateways --------------------------------------------------------------------------------------------------
    Provider(
        "vercel",
        hosts=("ai-gateway.vercel.sh",),
        also=("vercel_ai_gateway",),
        resells=True,
        source="https://vercel.com/docs/ai-gateway/openai-compat",
        at=("ai-gateway.vercel.sh",),
        not_at=("my-app.vercel.app", "other.vercel.sh"),
    ),
    Provider(
        "github",
        patterns=(r"models\.github\.ai", r"models\.inference\.ai\.azure\.com"),
        also=("github_models",),
        resells=True,
        source="https://docs.github.com/en/rest/models/inference",
        at=("models.github.ai", "models.inference.ai.azure.com"),
        not_at=("someone.github.io",),
    ),
    Provider(
        "cloudflare",
        patterns=(r"gateway\.ai\.cloudflare\.com", r"api\.cloudflare\.com"),
        also=("cloudflare_workers_ai", "workers_ai"),
        source="https://developers.cloudflare.com/workers-ai/configuration/open-ai-compatibility, https://developers.cloudflare.com/ai-gateway/usage/chat-completion",
        at=("gateway.ai.cloudflare.com", "api.cloudflare.com"),
        not_at=("my-worker.someone.workers.dev",),
        resells=True,
    ),
    Provider(
        "portkey",
        hosts=("portkey.ai",),
        resells=True,
        source="https://portkey.ai/docs/api-reference/inference-api/chat; recording portkey_chat.yaml",
        at=("api.portkey.ai",),
    ),
    Provider(
        "helicone",
        patterns=(r"(ai-gateway|oai|gateway)\.(helicone\.ai|hconeai\.com)",),
        resells=True,
        source="https://docs.helicone.ai/gateway/overview",
        at=("oai.helicone.ai", "ai-gateway.helicone.ai", "oai.hconeai.com"),
        not_at=("www.helicone.ai",),
    ),
    # --- servers, at hosts of anybody's ----------------------------------------------------------------------------
    Provider(
        "litellm",
        also=("litellm_proxy",),
        speaks=(accents.LITELLM, accents.ANTHROPIC),
        source="https://docs.litellm.ai/docs/proxy/user_keys",
    ),
    Provider(
        "vllm", also=("hosted_vllm",), source="https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html"
    ),
    Provider(
        "sglang",
        source="https://docs.sglang.ai/basic_usage/openai_api_completions.html (cached_tokens where `--enable-cache-report`)",
    ),
    Provider(
        "ollama",
        hosts=("ollama.com",),
        speaks=(accents.OLLAMA,),
        source="https://docs.ollama.com/api/openai-compatibility",
        at=("ollama.com",),
    ),
    Provider("lm_studio", also=("lmstudio",), source="https://lmstudio.ai/docs/developer/openai-compat"),
    Provider(
        "llama.cpp",
        also=("llamacpp",),
        speaks=(accents.LLAMA_CPP,),
        source="https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
    ),
)

DEEPINFRA: Final = "deepinfra"
_BY_NAME: Final = {provider.name: provider for provider in PROVIDERS}
_BY_HOST: Final = {host: provider.name for provider in PROVIDERS for host in provider.hosts}
_BY_PATTERN: Final = tuple((pattern, provider.name) for provider in PROVIDERS for pattern in provider.patterns)
"""Compiled as they are needed, once for each host: few apps ask one that no domain tells."""
_BY_OTHER_NAME: Final = {name: provider.name for provider in PROVIDERS for name in provider.also}
PAID_IN_USD: Final = frozenset(provider.name for provider in PROVIDERS if provider.paid_in_usd)
_GEMINI: Final = frozenset(provider.name for provider in PROVIDERS if provider.price_list == "google")
_MAKERS: Final = {
    "google": "google",
    "x-ai": "x-ai",
    "xai": "x-ai",
    "mistral-ai": "mistral",
    "mistralai": "mistral",
} | {name: name for name in ("openai", "anthropic", "deepseek", "cohere", "meta", "perplexity", "moonshotai", "zai")}
"""How gateways call the makers of models, before the slash -> as genai-prices does."""


@lru_cache(maxsize=256)
def provider_at(host: str | None) -> str | None:
    """The provider that answers at a host; None for one that is not known."""
    if host is None:
        return None
    host = host.lower().removesuffix(".")
    domain = host
    while domain:
        if (name := _BY_HOST.get(domain)) is not None:
            return name
        domain = domain.partition(".")[2]
    return next((name for pattern, name in _BY_PATTERN if re.fullmatch(pattern, host, re.ASCII)), None)


def is_at(host: str | None, domain: str) -> bool:
    """Whether a host is in a domain."""
    return host is not None and (host == domain or host.endswith("." + domain))


def provider_name(name: str) -> str:
    """The conventions' name for a provider; its own where they have none."""
    return _BY_OTHER_NAME.get(name, name)


def is_provider(name: object) -> bool:
    """Whether somebody in the table is called so."""
    return name in _BY_NAME


def counts_no_thoughts(provider: str | None, model: str | None) -> bool:
    """Whether what is missing in a sum is reasoning: Gemini's OpenAI endpoint names it nowhere else."""
    return provider in _GEMINI or (model is not None and "gemini" in model.lower())


def priced_as(provider: str, model: str) -> tuple[str, str] | None:
    """What genai-prices calls a provider, by any name of it, and a model of his; None where he does not sell it.

    A gateway that passes on the price of a model's maker leaves it to the name of the model whose that is.
    """
    name = provider_name(provider)
    if name == "openai" and model.rpartition("/")[2].startswith(_OPEN_WEIGHTS):
        return None
    known = _BY_NAME.get(name)
    price_list = (known and known.price_list) or name
    maker, _, bare = model.rpartition("/")
    makers = _MAKERS.get(maker)
    if known is None or not known.resells:
        return (price_list, bare) if makers == price_list else (price_list, model)
    if maker:
        return (makers, bare) if makers else (price_list, model)
    return "openai", model


_OPEN_WEIGHTS: Final = "gpt-oss"
"""OpenAI's models that everybody may run, and OpenAI does not sell."""
