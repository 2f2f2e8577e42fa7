"""The built-in patterns: what looks like a key, a password, an e-mail address or a card number, in texts and in structures.

Three ways to know a secret, in this order:

1. by the name of its field, in a structure or in a text that is written like one (JSON, however deep it is escaped; `NAME=value`)
2. by its own look: `_FORMATS`, one line a provider, which is where a new one is added
3. by where it stands: `scheme://user:password@host`, `Bearer …`, `curl -u user:password`

Sources of the formats: the documentation of each provider, and the rules of gitleaks, detect-secrets and GitHub's secret scanning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from otel_llm import jsons
from otel_llm.settings import settings

API_KEY: Final = "[redacted: api key]"
EMAIL: Final = "[redacted: email]"
CARD: Final = "[redacted: card number]"

_DEEPEST: Final = 8
"""So many texts inside texts are taken apart; what lies deeper is still looked at as text."""
_SHORTEST: Final = 8
"""No secret that can be told from a word is shorter than this."""

# --- by its look ------------------------------------------------------------------------------------------------------
_BODY: Final = "[A-Za-z0-9_-]"
_FORMATS: Final[tuple[tuple[str, str], ...]] = (
    # what stands in each of them to the letter, and the whole
    # models
    ("sk-", rf"sk-{_BODY}{{16,}}"),  # OpenAI, Anthropic, OpenRouter, DeepSeek, Langfuse and many others
    ("rk-", rf"rk-{_BODY}{{16,}}"),
    ("sess-", r"sess-[A-Za-z0-9]{32,}"),  # OpenAI's sessions
    ("hf_", rf"hf_{_BODY}{{20,}}"),  # Hugging Face
    ("hf-", rf"hf-{_BODY}{{20,}}"),
    ("api_org_", r"api_org_[A-Za-z]{20,}"),
    ("gsk", rf"gsk[_-]{_BODY}{{20,}}"),  # Groq
    ("xai", rf"xai[_-]{_BODY}{{20,}}"),
    ("pplx", rf"pplx[_-]{_BODY}{{20,}}"),  # Perplexity
    ("csk-", r"csk-[a-z0-9]{32,}"),  # Cerebras
    ("r8", rf"r8[_-]{_BODY}{{20,}}"),  # Replicate
    ("tgp_v1_", rf"tgp_v1_{_BODY}{{20,}}"),  # Together
    ("fw_", r"fw_[A-Za-z0-9]{20,}"),  # Fireworks
    ("nvapi-", rf"nvapi-{_BODY}{{40,}}"),  # NVIDIA
    ("jina_", r"jina_[A-Za-z0-9_-]{32,}"),
    ("pa-", r"pa-[A-Za-z0-9_-]{40,}"),  # Voyage
    ("tvly-", rf"tvly-{_BODY}{{16,}}"),  # Tavily
    ("pcsk_", r"pcsk_[A-Za-z0-9_]{32,}"),  # Pinecone
    ("sk_", r"sk_[a-f0-9]{32,}"),  # ElevenLabs
    ("e2b_", r"e2b_[a-f0-9]{32,}"),
    ("fc-", r"fc-[a-f0-9]{32,}"),  # Firecrawl
    ("esecret_", r"esecret_[A-Za-z0-9]{20,}"),  # Anyscale
    ("wandb_v1_", r"wandb_v1_[A-Za-z0-9_]{20,}"),
    ("lsv2_", rf"lsv2_[a-z]{{2}}[_-]{_BODY}{{20,}}"),  # LangSmith
    ("ls__", r"ls__[a-f0-9]{24,}"),
    ("pylf_v", r"pylf_v\d+_[a-z]{2,8}_[A-Za-z0-9]{20,}"),  # Logfire
    ("sk-lf-", r"sk-lf-[a-f0-9-]{32,}"),  # Langfuse
    ("ABSK", r"ABSK[A-Za-z0-9+/]{60,}={0,2}"),  # Amazon Bedrock
    ("bedrock-api-key-", r"bedrock-api-key-[A-Za-z0-9+/=_-]{20,}"),
    ("JQQJ99", r"[A-Za-z0-9]{40,60}JQQJ99[A-Za-z0-9]{20,40}"),  # Azure OpenAI and AI services
    # clouds
    *((mark, rf"{mark}[A-Z0-9]{{16}}(?![A-Za-z0-9])") for mark in ("AKIA", "ASIA", "ABIA", "ACCA")),  # AWS
    ("AIza", rf"AIza{_BODY}{{30,}}"),  # Google
    ("ya29.", rf"ya29\.{_BODY}{{20,}}"),
    ("GOCSPX-", rf"GOCSPX-{_BODY}{{20,}}"),
    ("1//0", rf"1//0{_BODY}{{30,}}"),
    ("AzSe", r"[A-Za-z0-9+/]{33}AzSe[A-D][A-Za-z0-9+/]{5}={0,2}"),  # Azure services whose keys carry a signature
    ("AzFu", r"[A-Za-z0-9_-]{44}AzFu[A-Za-z0-9_-]{4}={0,2}"),
    ("AzCa", r"[A-Za-z0-9+/]{33}AzCa[A-Za-z0-9+/]{6}="),
    ("+ASt", r"[A-Za-z0-9+/]{76}\+ASt[A-Za-z0-9+/]{6}=="),  # Azure Storage
    ("+ACR", r"[A-Za-z0-9+/]{42}\+ACR[A-D][A-Za-z0-9+/]{5}"),
    ("ACDb", r"[A-Za-z0-9+/]{76}ACDb[A-Za-z0-9+/]{6}=="),
    ("Q~", r"[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}"),  # Entra ID
    ("LTAI", r"LTAI[A-Za-z0-9]{12,20}(?![A-Za-z0-9])"),  # Alibaba Cloud
    ("AKID", r"AKID[A-Za-z0-9]{13,40}"),  # Tencent Cloud
    ("AQVN", rf"AQVN{_BODY}{{35,}}"),  # Yandex Cloud
    ("_v1", r"do[opr]_v1[_-][A-Za-z0-9_]{20,}"),  # DigitalOcean
    ("dapi", r"dapi[a-f0-9]{32}(?:-\d)?"),  # Databricks
    ("HRKU-", rf"HRKU-{_BODY}{{30,}}"),  # Heroku
    ("fo1_", rf"fo1_{_BODY}{{40,}}"),  # Fly.io
    ("fm", r"fm[12][ar]?_[A-Za-z0-9+/]{40,}={0,3}"),
    ("pscale_", r"pscale_(?:tkn|oauth|pw)_[\w.=-]{30,}"),
    ("sbp_", r"sbp_[a-f0-9]{40}"),  # Supabase
    ("sb_secret_", rf"sb_secret_{_BODY}{{20,}}"),
    ("napi_", r"napi_[a-z0-9]{30,}"),  # Neon
    ("hv", r"hv[sb]\.[A-Za-z0-9_-]{24,}"),  # Vault
    (".atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}"),  # Terraform Cloud
    ("pul-", r"pul-[a-f0-9]{40}"),  # Pulumi
    ("dp.", r"dp\.(?:pt|ct|st(?:\.[a-z0-9_-]{2,35})?|sa|scim|audit)\.[A-Za-z0-9]{40,44}"),  # Doppler
    ("sha256~", rf"sha256~{_BODY}{{43}}"),  # OpenShift
    # code, builds, packages
    *((f"gh{kind}_", rf"gh{kind}_[A-Za-z0-9_.-]{{16,}}") for kind in "pousr"),  # GitHub
    ("github_pat_", rf"github_pat_{_BODY}{{16,}}"),
    ("gl", r"gl(?:pat|dt|cbt|ptt|rt|imt|ft|soat|ffct|agent|oas|rtr)-[\w.-]{16,}"),  # GitLab
    ("GR1348941", rf"GR1348941{_BODY}{{16,}}"),
    ("ATATT3", r"ATATT3[A-Za-z0-9_=-]{60,}"),  # Atlassian
    ("ATCTT3", r"ATCTT3[A-Za-z0-9_=-]{60,}"),
    ("npm", rf"npm[_-]{_BODY}{{20,}}"),
    ("pypi-", rf"pypi-{_BODY}{{16,}}"),
    ("rubygems_", r"rubygems_[a-f0-9]{40,}"),
    ("CLOJARS_", r"CLOJARS_[A-Za-z0-9]{40,}"),
    ("oy2", r"oy2[a-z0-9]{43}(?![a-z0-9])"),  # NuGet
    ("dckr_", rf"dckr_(?:pat|oat)_{_BODY}{{20,}}"),  # Docker
    ("cio", r"cio[A-Za-z0-9]{32}(?![A-Za-z0-9])"),  # crates.io
    ("sgp_", r"sgp_[A-Za-z0-9_]{40,}"),  # Sourcegraph
    ("squ_", r"squ_[a-f0-9]{40}"),  # SonarQube
    ("sqp_", r"sqp_[a-f0-9]{40}"),
    ("PMAK-", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}"),  # Postman
    ("AKCp", r"AKCp[A-Za-z0-9]{60,}"),  # Artifactory
    # chat, mail, money and the rest
    ("xox", r"xox[abeprsco](?:\.xox[bp])?-[A-Za-z0-9-]{10,}"),  # Slack
    ("xapp-", r"xapp-[A-Za-z0-9-]{10,}"),
    ("xwfp-", r"xwfp-[A-Za-z0-9-]{10,}"),
    ("hooks.slack.com", r"hooks\.slack\.com(?:\\*/)(?:services|workflows|triggers)(?:\\*/)[\w+/\\-]{20,}"),
    ("discord", r"discord(?:app)?\.com(?:\\*/)api(?:\\*/)webhooks(?:\\*/)\d{10,}(?:\\*/)[\w-]{40,}"),
    (".webhook.office.com", r"[\w-]+\.webhook\.office\.com(?:\\*/)[\w@/\\-]{60,}"),  # Teams
    (":AA", r"\d{6,12}:AA[A-Za-z0-9_-]{32,}"),  # Telegram
    (".", r"[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}"),  # Discord's bots
    ("SG.", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),  # SendGrid
    ("xkeysib-", r"xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16}"),  # Brevo
    ("key-", r"key-[a-f0-9]{32}"),  # Mailgun
    ("-us", r"[a-f0-9]{32}-us\d{1,2}(?!\d)"),  # Mailchimp
    ("SK", r"SK[a-f0-9]{32}(?![A-Za-z0-9])"),  # Twilio
    ("_live_", r"(?:[srpw]k|wh)_live_[A-Za-z0-9]{10,}"),  # Stripe
    ("_test_", r"(?:[srpw]k|wh)_test_[A-Za-z0-9]{10,}"),
    ("sec_", r"whsec_[A-Za-z0-9+/=]{10,}"),
    ("sq0", rf"sq0(?:atp|csp)-{_BODY}{{20,}}"),  # Square
    ("EAAA", r"EAAA[a-zA-Z0-9_-]{56,}"),
    ("EAA", r"EAA[MC][A-Za-z0-9]{60,}"),  # Facebook
    ("shp", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),  # Shopify
    ("access_token$", r"access_token\$(?:production|sandbox)\$[a-z0-9]{16}\$[a-f0-9]{32}"),  # PayPal
    ("ntn_", r"ntn_[A-Za-z0-9]{40,}"),  # Notion
    ("secret_", r"secret_[A-Za-z0-9]{40,}"),
    ("lin_", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,}"),  # Linear
    ("figd_", rf"figd_{_BODY}{{30,}}"),  # Figma
    ("sntry", r"sntry[su]_[A-Za-z0-9+/=_-]{40,}"),  # Sentry
    ("gl", r"glsa_[A-Za-z0-9]{32}_[a-fA-F0-9]{8}|glc_[A-Za-z0-9+/=]{32,}"),  # Grafana
    ("NR", r"NR(?:AK|JS|II|AA)-[A-Za-z0-9_-]{16,}"),  # New Relic
    ("dt0", r"dt0[a-z]\d\d\.[A-Z0-9]{24}\.[A-Z0-9]{64}"),  # Dynatrace
    ("pnu_", r"pnu_[A-Za-z0-9]{36}"),  # Prefect
    ("rdme_", r"rdme_[a-z0-9]{70}"),
    ("pat", r"pat[A-Za-z0-9]{14}\.[a-f0-9]{64}"),  # Airtable
    ("sl.", r"sl\.(?:u\.)?[A-Za-z0-9_-]{100,}"),  # Dropbox
    ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    ("eyJ", r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*)*"),  # JSON web tokens
)
_EDGE: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))"
"""Where a key can begin; the letter of an escaped line break before it does not belong to it."""
_LOOKS: Final = tuple((mark, re.compile(f"{_EDGE}(?:{pattern})")) for mark, pattern in _FORMATS)
_SHORTEST_KEY: Final = 14
"""Of an ordinary text next to nothing has as many characters between two blanks."""
_PRIVATE_KEY: Final = re.compile(
    r"----[- ]BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?[- ]----.*?(?:----[- ]END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?[- ]----|\Z)"
    r"|PuTTY-User-Key-File-\d+:.*?(?:Private-MAC: ?[0-9a-fA-F]+|\Z)",
    re.DOTALL,
)

# --- by its name ------------------------------------------------------------------------------------------------------
_STRONG: Final = (
    r"api[_-]?key|secret[_-]?(?:access[_-]?)?key|client[_-]?secret|passw(?:or)?[dt]|passphrase|authorization|private[_-]?key"
    r"|(?:access|account|storage|signing|encryption|master|service[_-]?role|shared[_-]?access)[_-]?key"
    r"|(?:access|refresh|auth|bearer|session|security|api|bot|id|personal|csrf|xsrf)[_-]?token|connection[_-]?string"
    r"|(?:signing|webhook|app|oauth|jwt)[_-]?secret|shared[_-]?access[_-]?signature"
)
"""Names that stand for a secret wherever they stand, as part of a longer name too."""
_WEAK: Final = r"token|secret|pwd|pass|passcode|credential|cred|cookie"
"""Words that are names of secrets as the last word of a name; alone in a sentence they are words."""
_HARMLESS: Final = (
    r"(?:next|prev|previous|page|paging|continuation|continue|cursor|sync|eos|bos|pad|unk|mask|sep|cls|stop|start|end|special|first|last)"
    r"(?:[_-]?page)?[_-]?token"
)
"""Tokens that are none of these: of pages, of a model's vocabulary."""
_WEAK_NAME: Final = re.compile(
    rf"(?!{_HARMLESS}$)(?:(?:.*[_.\s-]|(?-i:.*[a-z0-9](?=[A-Z])))?(?:{_WEAK})|(?:.*[_-])?(?:secret|pwd|credential|cred|cookie)s)",
    re.IGNORECASE | re.DOTALL,
)
_STRONG_NAME: Final = re.compile(
    rf".*(?:{_STRONG})s?(?:[_-]?(?:base|value|str|string|plain|raw|old|new|prod|dev|test|staging|\d+))?",
    re.IGNORECASE | re.DOTALL,
)
_STEMS: Final = ("key", "secret", "pass", "token", "pwd", "cred", "cookie", "authorization", "connection", "signature")
"""One of these is in each of the names: the only thing that a whole text is searched for."""
_STEM: Final = re.compile("|".join(_STEMS))
_STEM_ANY_CASE: Final = re.compile("|".join(_STEMS), re.IGNORECASE)
_IN_NAMES: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-\u017f\u212a")
_LONGEST_NAME: Final = 100
_DIGIT: Final = re.compile("[0-9]")
_BEGUN: Final = re.compile(r"^(?:u00[0-9a-fA-F]{2}|[nrtbf]|[0-9A-F]{2})(?=[A-Za-z_-])")
"""What an escaped character before a name leaves of itself in it."""
_QUOTE: Final = re.compile(r"""\\*["'`]|\\+u002[27]|%2[27]|&quot;|&#3[49];""")
"""A quotation mark, as it stands in a text inside a text inside a text, or in a URL, or in HTML."""
_SIGN: Final = re.compile(
    rf"(?P<closed>{_QUOTE.pattern})?\s*(?P<sign>=>|:?=|:|%3[AaDd]|\\+u003[AaDd]|(?<=\s)is:?(?=\s))[ \t]*"
)
"""What stands between the name of a secret and the secret."""
_QUOTED: Final = re.compile(rf"(?P<quote>{_QUOTE.pattern})(?P<quoted>.*?)(?:(?<!\\)(?P=quote)|\Z)", re.DOTALL)
_IN_LIST: Final = re.compile(rf"{_QUOTED.pattern}|(?P<plain>[^\s,\\]+)", re.DOTALL)
_PLAIN: Final = re.compile(
    r"""(?:(?:basic|bearer|digest|token|negotiate)\s+)?(?P<value>[^\s"'`,;&<>\\(){}\[\]%]+)""", re.IGNORECASE
)
_LINE: Final = re.compile(r"""[^\n"'`\\]+""")
_NOTHING: Final = frozenset(("none", "null", "true", "false", "undefined", "nil"))

# --- by its place -----------------------------------------------------------------------------------------------------
_BEARER: Final = re.compile(r"\b(bearer\s+)(?!\[redacted)([^\s\"'`,;&<>\\]{8,})", re.IGNORECASE)
_IN_URL: Final = re.compile(r"((?::|%3[aA])(?:\\*/){2}[^\s/@:\"'\\]{0,256}:)([^\s/@\"'\\]{1,256})(@|%40)")
_IN_QUERY: Final = re.compile(
    r"([?&;](?:sig|signature|x-(?:amz|goog)-signature|x-amz-security-token|key|code|sas|apikey|auth)=)([^&\s\"'\\<>]{10,})",
    re.IGNORECASE,
)
_CURL: Final = re.compile(
    r"(\bcurl\b[^\n]{0,400}?\s(?:-u|--user|--proxy-user)[=\s]\s*[\"']?[^\s:\"']{1,128}:)([^\s\"']+)"
)
_EMAIL: Final = re.compile(r"(?<![\w.%+-])[\w.%+-]+(?:@|%40)(?:[\w-]+\.)+[^\W\d_]{2,}")
_CARD: Final = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-]|\.\d)")


def scrub(value: Any, longest: int, truncated: str) -> Any:
    """`value` (made by `plain`, and changed in place) without what the patterns find, its texts at most `longest` characters."""
    if settings().redact_builtin:
        value = _without_secrets(value)
    return _cut(value, longest, truncated)


def _cut(value: Any, longest: int, truncated: str) -> Any:
    if isinstance(value, str):
        return value[:longest] + truncated if len(value) > longest + len(truncated) else value
    if isinstance(value, dict):
        for name, item in value.items():
            value[name] = _cut(item, longest, truncated)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            value[number] = _cut(item, longest, truncated)
    return value


def _without_secrets(value: Any, depth: int = 0) -> Any:
    """`value`, changed in place, without secrets. `depth`: how many texts it lies inside."""
    if isinstance(value, str):
        return scrub_text(value, depth)
    if isinstance(value, dict):
        named = value.get("name", value.get("key"))
        harmless = "logprob" in value  # a token of a model's vocabulary
        private = _IN_JWK if "kty" in value else ()
        for name, item in value.items():
            secret = (
                (is_secret(name) and not harmless)
                or (name == "value" and isinstance(named, str) and is_secret(named))
                or name in private
            )
            value[name] = _masked(item, depth) if secret else _without_secrets(item, depth)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            value[number] = _without_secrets(item, depth)
    elif type(value) is int and value >= 10**12 and _is_card(str(value)) and _CARD.fullmatch(str(value)):
        return CARD
    return value


_IN_JWK: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "k", "oth"))
"""The private parts of a JSON web key (RFC 7518)."""
_SCHEMA: Final = frozenset(("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "description", "properties"))


def _masked(value: Any, depth: int) -> Any:
    """What stands under the name of a secret: all of it, but for what describes it (JSON Schema, of a tool's parameters)."""
    if isinstance(value, dict):
        if not _SCHEMA.isdisjoint(value):
            return _without_secrets(value, depth)
        return {name: _masked(item, depth) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, depth) for item in value]
    if value is None or isinstance(value, bool | float) or value == "":
        return value
    return API_KEY


class Kind(Enum):
    """How sure a name is to stand for a secret."""

    STRONG = 1
    WEAK = 2
    """As the name of a field; in a sentence it is a word like others."""


@lru_cache(maxsize=1024)
def kind_of(name: str) -> Kind | None:
    """Whether what stands in a field of this name is a secret."""
    if len(name) > _LONGEST_NAME:
        return None
    if _STRONG_NAME.fullmatch(name):
        return Kind.STRONG
    return Kind.WEAK if _WEAK_NAME.fullmatch(name) else None


def is_secret(name: str) -> bool:
    """Whether what stands in a field of this name is a secret."""
    return kind_of(name) is not None


def scrub_text(text: str, depth: int = 0) -> str:
    """`text` without keys, passwords, e-mail addresses and card numbers. `depth`: how many texts it stands inside."""
    if len(text) < _SHORTEST:
        return text
    folded = text.casefold()
    named = any(stem in folded for stem in _STEMS) or '"kty"' in text
    if named and depth < _DEEPEST and (told := _scrub_json(text, depth)) is not None:
        return told
    if "PRIVATE KEY" in text or "PuTTY-User-Key" in text:
        text = _PRIVATE_KEY.sub(API_KEY, text)
    for word in {*text.split()}:
        if len(word) >= _SHORTEST_KEY and (masked := _scrub_word(word)) != word:
            text = text.replace(word, masked)
    if "bearer" in folded:
        text = _BEARER.sub(rf"\1{API_KEY}", text)
    if "//" in text or "/\\/" in text:
        text = _IN_URL.sub(rf"\1{API_KEY}\3", text)
        if "=" in text:
            text = _IN_QUERY.sub(rf"\1{API_KEY}", text)
    if "curl" in folded:
        text = _CURL.sub(rf"\1{API_KEY}", text)
    if named:
        text = "".join(_scrub_named(text))
    if "@" in text or "%40" in text:
        text = _EMAIL.sub(EMAIL, text)
    return _CARD.sub(lambda found: CARD if _is_card(found[0]) else found[0], text)


def _scrub_json(text: str, depth: int) -> str | None:
    """A text that is JSON as a whole, without secrets; None where it is no JSON. To the letter where there is nothing to mask."""
    bare = text.strip()
    if bare[0:1] + bare[-1:] not in ("{}", "[]", '""'):
        return None
    try:
        told = jsons.loads(bare)
        before = jsons.dumps(told)
        told = _without_secrets(told, depth + 1)
        return text if jsons.dumps(told) == before else json.dumps(told, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return None


def _scrub_word(word: str) -> str:
    if not _DIGIT.search(word) and (word == word.lower() or word == word.upper()):
        return word  # a name, a path: no key has letters of one case alone
    for mark, pattern in _LOOKS:
        if mark in word:
            word = pattern.sub(API_KEY, word)
    return word


def _scrub_named(text: str) -> Iterator[str]:
    """The pieces of a text, with what stands behind the name of a secret masked."""
    folded = text.casefold()
    stems = _STEM.finditer(folded) if len(folded) == len(text) else _STEM_ANY_CASE.finditer(text)
    done = looked = 0
    for stem in stems:
        if stem.start() < looked:
            continue
        start, end = stem.span()
        while start > looked and stem.start() - start < _LONGEST_NAME and text[start - 1] in _IN_NAMES:
            start -= 1
        while end < len(text) and end - start < _LONGEST_NAME and text[end] in _IN_NAMES:
            end += 1
        looked = end
        name = text[start:end]
        if start and text[start - 1] in "\\%":
            name = _BEGUN.sub("", name, count=1)
        kind = kind_of(name.lstrip("-"))
        if kind is None:
            continue
        for first, last in _values(text, end, kind, is_option=name.startswith("-")):
            yield text[done:first]
            yield API_KEY
            done = looked = last
    yield text[done:]


def _values(text: str, at: int, kind: Kind, *, is_option: bool) -> Iterator[tuple[int, int]]:
    """Where the secrets stand whose name ends at `at`."""
    name_end = at
    sign = _SIGN.match(text, at)
    if sign is not None:
        at = sign.end()
    elif is_option and text.startswith(" ", at):
        at += 1
    elif text.startswith(">", at):  # XML, where the closing tag has the same name
        if (close := text.find("</", at)) > at + 1:
            yield at + 1, close
        return
    else:
        return  # a word in a sentence
    if text.startswith("[redacted: ", at):
        return
    if text.startswith("[", at):
        end = text.find("]", at)
        for one in _IN_LIST.finditer(text, at + 1, len(text) if end < 0 else end):
            if one["quoted"] or (one["plain"] and _is_value(one["plain"], kind, ":")):
                yield one.span("quoted" if one["quoted"] else "plain")
        return
    if (item := _QUOTED.match(text, at)) is not None:
        if item["quoted"] and not item["quoted"].startswith("[redacted: "):
            yield item.span("quoted")
        return
    said = sign["sign"] if sign is not None and sign["closed"] is None else "="
    if said == ":" and text[:name_end].casefold().endswith("cookie") and (line := _LINE.match(text, at)) is not None:
        yield line.span()
    elif (plain := _PLAIN.match(text, at)) is not None and _is_value(plain["value"], kind, said):
        yield plain.span("value")


def _is_value(value: str, kind: Kind, sign: str) -> bool:
    """Whether a word without quotation marks, after this sign, is a secret rather than the next word of a sentence, or a number."""
    if value.casefold() in _NOTHING:
        return False
    has_digit = _DIGIT.search(value) is not None
    if sign.startswith("is"):
        return has_digit and len(value) > 5
    if kind is Kind.STRONG:
        return len(value) >= (_SHORTEST if sign == ":" else 4)
    return (
        has_digit and len(value) >= (_SHORTEST if sign == ":" else 4) and not value.isdigit() and value[0] not in "/~"
    )


def _is_card(text: str) -> bool:
    """Whether the digits add up as those of a payment card do (Luhn)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = (digit * 2 for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(digit // 10 + digit % 10 for digit in doubled)) % 10 == 0
