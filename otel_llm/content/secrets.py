"""The built-in patterns: what looks like a key, a password, an e-mail address or a card number, in texts and in structures.

Three ways to know a secret, in this order:

1. by the name of its field, in a structure or in a text that is written like one (JSON, however deep it is escaped; `NAME=value`)
2. by its own look: `_FORMATS`, one line a provider, which is where a new one is added
3. by where it stands: `scheme://user:password@host`, `Bearer …`, `curl -u user:password`

Sources of the formats: the documentation of each provider, and the rules of gitleaks, detect-secrets and GitHub's secret scanning.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from otel_llm.content.ordinary_words import COMMANDS, SHORTEST_KEY, STEMS, has_one_case, suspects_of
from otel_llm.settings import settings
from otel_llm.support import fast_json

API_KEY: Final = "[redacted: api key]"
EMAIL: Final = "[redacted: email]"
CARD: Final = "[redacted: card number]"

_DEEPEST: Final = 8
"""So many texts inside texts are taken apart; what lies deeper is still looked at as text."""
_LONG: Final = 30
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
    ("discord", r"discord(?:app)?\.com(?:\\*/)api(?:\\*/)(?:v\d+(?:\\*/))?webhooks(?:\\*/)\d{10,}(?:\\*/)[\w-]{40,}"),
    (".webhook.office.com", r"[\w-]+\.webhook\.office\.com(?:\\*/)[\w@/\\-]{60,}"),  # Teams
    ("office.com", r"office\.com(?:\\*/)webhook(?:\\*/)[\w@/\\-]{40,}"),
    ("hooks.zapier.com", r"hooks\.zapier\.com(?:\\*/)hooks(?:\\*/)catch(?:\\*/)[\w/\\-]{8,}"),
    ("maker.ifttt.com", r"maker\.ifttt\.com(?:\\*/)[\w/\\-]+?(?:\\*/)key(?:\\*/)[\w-]{16,}"),
    (":AA", r"(?:bot)?\d{6,12}:AA[A-Za-z0-9_-]{32,}"),  # Telegram
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
    ("$", r"\$(?:1|2[abxy]|5|6|7|g?y|apr1|argon2(?:i|d|id))\$[A-Za-z0-9./+=,$-]{12,}"),  # hashes of passwords
    # base64 of a private key of any kind, as Kubernetes has them
    ("LS0tLS1CRUdJTiB", r"LS0tLS1CRUdJTiB(?:QUklW|SU0Eg|FQyBQ|FTkNS|PUEVO|EU0Eg|QR1AgUFJJ)[A-Za-z0-9+/]{4,}={0,2}"),
    ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    ("eyJ", r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*)*"),  # JSON web tokens
)
_EDGE: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2})|(?<=%25[0-9A-Fa-f]{2}))"
"""Where a key can begin; the letter of an escaped line break before it does not belong to it."""
_LOOKS: Final = tuple((mark, re.compile(f"{_EDGE}(?:{pattern})")) for mark, pattern in _FORMATS)
_PRIVATE_KEY: Final = re.compile(
    r"----[- ]BEGIN(?: |%20|\+)[A-Z0-9 %+]*PRIVATE(?: |%20|\+)KEY(?:(?: |%20|\+)BLOCK)?[- ]----.*?"
    r"(?:----[- ]END(?: |%20|\+)[A-Z0-9 %+]*PRIVATE(?: |%20|\+)KEY(?:(?: |%20|\+)BLOCK)?[- ]----|\Z)"
    r"|PuTTY-User-Key-File-\d+:.*?(?:Private-MAC: ?[0-9a-fA-F]+|\Z)",
    re.DOTALL,
)

# --- by its name ------------------------------------------------------------------------------------------------------
_STRONG: Final = (
    r"api[_.\s-]?key|secret[_-]?(?:access[_-]?)?key|client[_-]?secret|passw(?:or)?[dt]|passphrase|authorization|private[_-]?key"
    r"|(?:access|account|storage|signing|encryption|master|service[_-]?role|shared[_-]?access|auth|hmac|consumer|subscription"
    r"|license|deploy|openai|anthropic|azure|gemini|mistral|cohere|groq)[_-]?key|client[_-]?key[_-]?data"
    r"|(?:access|refresh|auth|bearer|session|security|api|bot|id|identity|personal|csrf|xsrf|sas)[_-]?token|connection[_-]?string"
    r"|(?:signing|webhook|app|oauth|jwt)[_-]?secret|shared[_-]?access[_-]?signature"
)
"""Names that stand for a secret wherever they stand, as part of a longer name too."""
_WEAK: Final = r"token|secret|pwd|psw|pswd|pw|jwt|pass|passcode|credential|cred|cookie"
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
    rf".*(?:{_STRONG})s?(?:[_-]?(?:base|value|str|string|plain|raw|old|new|prod|dev|test|staging|hash|digest|confirm|confirmation|again|\d+))?",
    re.IGNORECASE | re.DOTALL,
)
_STEM_ANY_CASE: Final = re.compile("|".join(STEMS), re.IGNORECASE)
_IN_NAMES: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-\u017f\u212a")
_LONGEST_NAME: Final = 100
_DIGIT: Final = re.compile("[0-9]")
_BEGUN: Final = re.compile(r"^(?:u00[0-9a-fA-F]{2}|[nrtbf]|(?:25)*[0-9A-F]{2})(?=[A-Za-z_-])")
"""What an escaped character before a name leaves of itself in it."""
_QUOTE: Final = re.compile(
    r"""\\*(?:\"{3}|'{3}|""(?=[^"\s,;:}\])])|["'`])|\\+u002[27]|%(?:25)*2[27]|&(?:amp;)?(?:quot|apos|#3[49]|#[xX]2[27]);"""
)
"""A quotation mark, as it stands in a text inside a text inside a text, in a URL, in HTML, in CSV or round several lines."""
_GAP: Final = r"(?:\s|%(?:25)*20|[*~]|</?(?:b|i|em|strong|code|span|tt|kbd)>)*"
"""What may stand about a sign: blanks, and what makes letters bold."""
_SIGN: Final = re.compile(
    rf"(?P<closed>\"\"(?=\s*[:=])|{_QUOTE.pattern}|[”’])?(?:\s*\])?{_GAP}"
    r"(?P<sign>[=-]>|[=!]==?|:?=|:|[：＝→]|%(?:25)*3[AaDd]|\\+u003[AaDd]|(?<=\s)is:?(?=\s)"
    rf"|\|(?!\|)|(?<=\s)[–—](?=\s)|</(?:key|name|t[dh]|dt)>\s*<(?:string|value|t[dh]|dd)\b[^<>]{{0,40}}>)"
    r"(?:[ \t]|%(?:25)*20|[*~]|</?(?:b|i|em|strong|code|span|tt|kbd)>)*"
)
"""What stands between the name of a secret and the secret."""
_PAIRED: Final = re.compile(
    rf"(?P<closed>{_QUOTE.pattern})?(?:\s*/?>\s*<value>|[\s,]*(?:\\+[rnt])*\s*(?:{_QUOTE.pattern})?(?i:value|val)(?:{_QUOTE.pattern})?\s*[:=]\s*"
    rf"|\s*\{{\s*default\s*=\s*)"
)
"""Behind a name that is itself a value: `name: DB_PASSWORD, value: …`, in YAML, JSON, XML and HCL."""
_NAMED_PART: Final = re.compile(
    r"""["'](?:[^\S\r\n]*/?>|[^\r\n\\]{0,80}(?:(?:\r?\n|\\+r\\+n)[\w-]+:[^\r\n\\]{0,80})*(?:\r?\n|\\+r\\+n){2})"""
)
"""Behind `name="password`: what follows is the content of an element, or of a part of a form."""
_ATTRIBUTE: Final = re.compile(r"""\b(?:name|key)=\\*["'][\w.-]{0,40}\Z""")
_UNTIL_NEXT: Final = re.compile(r"[^<\r\n\\]+")
_BEFORE_QUOTE: Final = re.compile(rf"(?:(?:[A-Za-z_][\w.]{{0,60}})?\(\s*)?(?:[bBrRuUfF]{{1,2}})?(?={_QUOTE.pattern})")
"""Code between the sign and a literal: a call, a bracket, the prefix of a string."""
_TYPED: Final = re.compile(r"[A-Za-z_][A-Za-z_.\[\], |]{0,40}=\s*(?=[bBrRuUfF]{0,2}[\"'`])")
_CODE: Final = re.compile(r"[A-Za-z_]+(?:\.[A-Za-z_]+)*[(\[]")
_PAIR: Final = re.compile(
    rf"(?P<closed>{_QUOTE.pattern})\s*,\s*(?P<quote>{_QUOTE.pattern})(?P<quoted>[^\"'\\\s]{{8,}}?)(?P=quote)\s*[\])]"
)
"""`("password", "…")`, where what stands in it can be no other name."""
_TAG: Final = re.compile(r"(?:\s[^<>]{0,200})?(?<!/)>")
_YAML_BLOCK: Final = re.compile(r"(?:[!&][\w!]*[ \t]+)*[|>][-+\d]{0,2}[ \t]*(?=\r?\n|\\+r?\\*n)")
_YAML_MARKS: Final = re.compile(r"(?:[!&][\w!]+[ \t]+)+")
_NEXT_LINE: Final = re.compile(r"(?:\r?\n|(?:\\+r)?\\+n)(?P<indent>[ \t]*)(?P<item>-[ \t]+)?(?P<said>[^\r\n\\]*)")
_TWO_WORDS: Final = re.compile(r"(?i)(?:api|secret|access|auth|private|client|bearer|master|account|encryption)\s\Z")
_SPOKEN: Final = re.compile(r"[ \t]+")
_QUOTED: Final = re.compile(
    rf"(?:(?P<quote>{_QUOTE.pattern})(?P<quoted>.*?)(?:(?<!\\)(?P=quote)|\Z))|[“‘«„](?P<curly>[^”’»“\n]*)", re.DOTALL
)
_IN_LIST: Final = re.compile(rf"{_QUOTED.pattern}|(?P<plain>[^\s,\\]+)", re.DOTALL)
_PLAIN: Final = re.compile(
    r"""(?:(?:basic|bearer|digest|token|negotiate|apikey)\s+)?(?P<value>[^\s"'`,;&<>\\(){}\[\]%|]{1,1024})""",
    re.IGNORECASE,
)
_REST: Final = re.compile(r"""[^\s"'`,;&<>\\(){}\[\]%|]*""")
"""What follows in a value that is that long; only looked at where it is one."""
_LINE: Final = re.compile(r"""[^\n"'`\\]+""")
_SCHEME: Final = re.compile(
    r"(?:digest|aws4-[\w-]+|hawk|oauth|hmac|signature|sharedkey(?:lite)?|sharedaccesssignature|ntlm|mac)\s[^\n\\]+",
    re.IGNORECASE,
)
"""The rest of an `Authorization` header of several parts."""
_NOTHING: Final = frozenset(("none", "null", "true", "false", "undefined", "nil"))

# --- by its place -----------------------------------------------------------------------------------------------------
_BEARER: Final = re.compile(r"\b(bearer\s+)(?!\[redacted)([^\s\"'`,;&<>\\]{8,})", re.IGNORECASE)
_IN_URL: Final = re.compile(
    r"((?::|%(?:25)*3[aA])(?:\\*/|%(?:25)*2[fF]){2}[^\s/@:%\"'\\]{0,256}(?::|%(?:25)*3[aA]))([^\s/\"'\\]{1,256})(@|%(?:25)*40)"
)
_IN_QUERY: Final = re.compile(
    r"([?&;\s](?:sig|signature|x-(?:amz|goog)-signature|x-amz-security-token|key|code|sas|apikey|auth)=)([^&\s\"'\\<>]{10,})",
    re.IGNORECASE,
)
_CURL: Final = re.compile(
    r"(\bcurl\b[^\n]{0,400}?\s(?:-u|--user|--proxy-user)[=\s]?\s*[\"']?[^\s:\"']{1,128}:)([^\s\"']+)"
)
_COMMAND: Final = re.compile(
    r"(\b(?:(?:sshpass|(?:docker|podman|az|oc|registry)\s+login)\b[^\n|;]{0,200}?\s-p[ =]?"
    r"|(?:mysql|mariadb)\w*\b[^\n|;]{0,200}?\s-p|redis-cli\b[^\n|;]{0,200}?\s-a\s|ldap\w+\b[^\n|;]{0,200}?\s-w\s|\bun?zip\b[^\n|;]{0,200}?\s-P\s|https?\s-a\s[^\s:]{1,128}:)"
    r"\s?[\"']?)([^\s\"']+)"
)
_SQL: Final = re.compile(
    r"(\bidentified\s+(?:with\s+\S{1,64}\s+)?(?:by|as)\s+(?:password\s+)?|\bwith\s+(?:encrypted\s+)?password\s+|\blogin\s+\S{1,256}\s+password\s+)"
    r"(?:(\\*[\"'])(.{1,256}?)(\2)|([^\s\"'=:]{4,}))",
    re.IGNORECASE,
)
"""SQL, and netrc."""
_PGPASS: Final = re.compile(
    r"^((?=[^:\n]*[g-zG-Z.*])[\w.*-]{1,253}:(?:\d{4,5}|\*):[^:\s]{1,63}:[^:\s]{1,63}:)(\S+)$", re.MULTILINE
)
_BASIC: Final = re.compile(
    r"""(\bbasic\s+|(?:\b|_)auth["'\\]*\s*[=:]\s*["'\\]*|dockerconfigjson["'\\]*\s*[=:]\s*["'\\]*)([A-Za-z0-9+/]{6,}={0,2})(?![\w+/=])""",
    re.IGNORECASE,
)
_UNICODE: Final = re.compile(r"(?<!\\)\\u00([46][1-9a-fA-F]|[57][0-9aA]|3[0-9])")
"""A letter or digit that need not have been escaped."""
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
            if type(item) is not str or len(item) > longest:
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
        named = next((value[name] for name in _NAMES if name in value), None)
        harmless = "logprob" in value  # a token of a model's vocabulary
        private = _IN_JWK if "kty" in value else ()
        for name, item in value.items():
            secret = (
                (is_secret(name) and not harmless)
                or (name in ("value", "Value") and isinstance(named, str) and is_secret(named))
                or name in private
                or (name in ("auth", "_auth") and isinstance(item, str) and _is_basic(item))
            )
            if secret:
                value[name] = _masked(item, depth)
            elif type(item) is not str or len(item) >= _SHORTEST:
                value[name] = _without_secrets(item, depth)
    elif isinstance(value, list):
        if len(value) == 2 and _is_pair(*value):
            value[1] = API_KEY
        for number, item in enumerate(value):
            value[number] = _without_secrets(item, depth)
    elif type(value) is int and value >= 10**12 and _is_card(str(value)) and _CARD.fullmatch(str(value)):
        return CARD
    return value


def _is_pair(name: Any, value: Any) -> bool:
    """Whether this is a header or a setting with its value, and not two names."""
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    return kind_of(name) is not None and len(value) >= _SHORTEST and _DIGIT.search(value) is not None


def _is_basic(value: str) -> bool:
    """Whether this is base64 of `user:password`, or of the settings of a program that hold such."""
    try:
        told = base64.b64decode(value, validate=True).decode()
    except ValueError:
        return False
    return ":" in told and told.isprintable()


_NAMES: Final = ("name", "key", "Name", "Key", "header")
_IN_JWK: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "k", "oth"))
"""The private parts of a JSON web key (RFC 7518)."""
_SCHEMA: Final = frozenset(
    (
        "$ref",
        "anyOf",
        "oneOf",
        "allOf",
        "enum",
        "const",
        "description",
        "properties",
        "title",
        "format",
        "minLength",
        "maxLength",
    )
)
_TYPES: Final = frozenset(("string", "number", "integer", "boolean", "array", "object", "null"))


def _masked(value: Any, depth: int) -> Any:
    """What stands under the name of a secret: all of it, but for what describes it (JSON Schema, of a tool's parameters)."""
    if isinstance(value, dict):
        kind = value.get("type")
        if not _SCHEMA.isdisjoint(value) or isinstance(kind, list) or (isinstance(kind, str) and kind in _TYPES):
            return _without_secrets(value, depth)
        return {name: _masked(item, depth) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, depth) for item in value]
    if value is None or isinstance(value, bool | float) or value == "":
        return value
    return API_KEY


class SecretKind(Enum):
    """How sure a name is to stand for a secret."""

    STRONG = 1
    WEAK = 2
    """As the name of a field; in a sentence it is a word like others."""


@lru_cache(maxsize=1024)
def kind_of(name: str) -> SecretKind | None:
    """Whether what stands in a field of this name is a secret."""
    if len(name) > _LONGEST_NAME:
        return None
    if _STRONG_NAME.fullmatch(name):
        return SecretKind.STRONG
    return SecretKind.WEAK if _WEAK_NAME.fullmatch(name) else None


def is_secret(name: str) -> bool:
    """Whether what stands in a field of this name is a secret."""
    return kind_of(name) is not None


_LONG_TEXT: Final = 256
_MOST_CLEAN: Final = 4_096
_clean: set[int] = set()
"""Hashes of long texts in which nothing was found: what a system says, and what was said before, goes out with every call."""


def scrub_text(text: str, depth: int = 0) -> str:
    """`text` without keys, passwords, e-mail addresses and card numbers. `depth`: how many texts it stands inside."""
    is_remembered = depth == 0 and len(text) >= _LONG_TEXT
    if is_remembered and hash(text) in _clean:
        return text
    masked = _masked_text(text, depth)
    if is_remembered and masked == text:
        if len(_clean) >= _MOST_CLEAN:
            _clean.clear()
        _clean.add(hash(text))
    return masked


def _masked_text(text: str, depth: int) -> str:
    if len(text) < _SHORTEST or not (suspects := suspects_of(text)):
        return text
    if "\\u00" in text and (unescaped := _UNICODE.sub(lambda found: chr(int(found[1], 16)), text)) != text:
        scrubbed = scrub_text(unescaped, depth)
        return text if scrubbed == unescaped else scrubbed
    # What is not in these words is nowhere in the text, and they are shorter.
    told = "\n".join(suspects)
    folded = told.casefold()
    stems = [stem for stem in STEMS if stem in folded]
    is_named = bool(stems or '"kty"' in told)
    if is_named and depth < _DEEPEST and (of_json := _scrub_json(text, depth)) is not None:
        return of_json
    if "key" in stems and (("PRIVATE" in text and "BEGIN" in text) or "PuTTY-User-Key" in text):
        text = _PRIVATE_KEY.sub(API_KEY, text)
    for word in suspects:
        if len(word) >= SHORTEST_KEY and (masked := _scrub_word(word)) != word:
            text = text.replace(word, masked)
    if "bearer" in folded:
        text = _BEARER.sub(rf"\1{API_KEY}", text)
    if "//" in told or "/\\/" in told or "2f" in folded:
        text = _in_lines(_IN_URL, rf"\1{API_KEY}\3", text, ("//", "/\\/", "2f", "2F"))
    if _HAS_QUERY.search(folded):
        text = _IN_QUERY.sub(rf"\1{API_KEY}", text)
    if "-a" in suspects or any(command in folded for command in COMMANDS):
        text = _COMMAND.sub(rf"\1{API_KEY}", text)
    if "identified" in folded or "password" in folded:
        text = _SQL.sub(lambda found: f"{found[1]}{found[2] or ''}{API_KEY}{found[4] or ''}", text)
    if any(word.count(":") >= 4 for word in suspects):
        text = _PGPASS.sub(rf"\1{API_KEY}", text)
    if "basic" in folded or "auth" in folded or "dockerconfigjson" in folded:
        text = _BASIC.sub(lambda found: found[1] + API_KEY if _is_basic(found[2]) else found[0], text)
    if "curl" in folded:
        text = _CURL.sub(rf"\1{API_KEY}", text)
    if stems:
        text = "".join(_scrub_named(text, stems))
    if "@" in told or "%40" in told:
        text = _in_lines(_EMAIL, EMAIL, text, ("@", "%40"))
    if _may_hold_card(text, told):
        text = _CARD.sub(lambda found: CARD if _is_card(found[0]) else found[0], text)
    return text


def _in_lines(pattern: re.Pattern[str], mask: str, text: str, marks: tuple[str, ...]) -> str:
    """`text` masked, where the pattern finds something in one of the lines with a mark; the others are not searched."""
    return "\n".join(
        pattern.sub(mask, line) if any(mark in line for mark in marks) else line for line in text.split("\n")
    )


_HAS_QUERY: Final = re.compile(r"(?:sig|signature|-token|key|code|sas|auth)=")
_DIGITS: Final = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_OTHER_DIGIT: Final = re.compile(r"(?![0-9])\d")
_OF_CARD: Final = b"0" * 13


def _may_hold_card(text: str, suspects: str) -> bool:
    """Whether there are as many digits in a row as a card has at the least, with what may stand between them."""
    if not suspects.isascii() and _OTHER_DIGIT.search(suspects) is not None:
        return True
    return _DIGIT.search(suspects) is not None and _OF_CARD in text.encode("utf-8", "surrogatepass").translate(
        _DIGITS, b" -"
    )


def _scrub_json(text: str, depth: int) -> str | None:
    """A text that is JSON as a whole, without secrets; None where it is no JSON. To the letter where there is nothing to mask."""
    bare = text.strip()
    if bare[0:1] + bare[-1:] not in ("{}", "[]", '""'):
        return None
    try:
        told = fast_json.loads(bare)
        before = fast_json.dumps(told)
        told = _without_secrets(told, depth + 1)
        return text if fast_json.dumps(told) == before else json.dumps(told, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return None


def _scrub_word(word: str) -> str:
    if not _DIGIT.search(word) and has_one_case(word):
        return word
    for mark, pattern in _LOOKS:
        if mark in word:
            word = pattern.sub(API_KEY, word)
    return word


def _scrub_named(text: str, stems: list[str]) -> Iterator[str]:
    """The pieces of a text, with what stands behind the name of a secret masked. `stems`: those that are in it."""
    done = looked = 0
    for begin, end in _places(text, stems):
        if begin < looked:
            continue
        start = begin
        while start > looked and begin - start < _LONGEST_NAME and text[start - 1] in _IN_NAMES:
            start -= 1
        while end < len(text) and end - start < _LONGEST_NAME and text[end] in _IN_NAMES:
            end += 1
        looked = end
        name = text[start:end]
        if start and text[start - 1] in "\\%":
            name = _BEGUN.sub("", name, count=1)
        kind = kind_of(name.strip("-_"))
        if (
            kind is None
            and name.lower() in ("key", "token", "secret")
            and _TWO_WORDS.search(text, max(0, start - 12), start)
        ):
            kind = SecretKind.WEAK
        if kind is None:
            continue
        for first, last in _values(text, start, end, kind, is_option=name.startswith("-")):
            yield text[done:first]
            yield API_KEY
            done = looked = last
    yield text[done:]


def _places(text: str, stems: list[str]) -> list[tuple[int, int]]:
    """Where the stems stand, from the left."""
    folded = text.casefold()
    if len(folded) != len(text):
        return [found.span() for found in _STEM_ANY_CASE.finditer(text)]
    places = []
    for stem in stems:  # one after the other: a pattern of all of them takes ten times as long
        at = folded.find(stem)
        while at >= 0:
            places.append((at, at + len(stem)))
            at = folded.find(stem, at + len(stem))
    places.sort()
    return places


def _values(text: str, start: int, at: int, kind: SecretKind, *, is_option: bool) -> Iterator[tuple[int, int]]:
    """Where the secrets stand whose name is between `start` and `at`."""
    name_end = at
    sign = _SIGN.match(text, at)
    if (paired := _PAIRED.match(text, at)) is not None:
        at, sign = paired.end(), None
    elif sign is not None:
        at = sign.end()
        if sign["closed"] is not None:  # JSON may be written over several lines
            at += len(text[at : at + 200]) - len(text[at : at + 200].lstrip())
    elif is_option and text.startswith(" ", at):
        at += 1
    elif _ATTRIBUTE.search(text, max(0, start - 60), start) is not None:
        if (part := _NAMED_PART.match(text, at)) and (content := _UNTIL_NEXT.match(text, part.end())):
            yield content.span()
        return
    elif (tag := _TAG.match(text, at)) is not None and (tag[0] == ">" or "<" in text[max(0, start - 20) : start]):
        # XML, where the closing tag has the same name
        if (close := text.find("</", tag.end(), tag.end() + 8192)) > tag.end():
            yield tag.end(), close
        return
    elif (pair := _PAIR.match(text, at)) is not None:
        if _DIGIT.search(pair["quoted"]):
            yield pair.span("quoted")
        return
    else:
        yield from _spoken(text, start, at, kind)
        return
    if text.startswith("[redacted: ", at):
        return
    said = sign["sign"] if sign is not None and sign["closed"] is None else "="
    if said in ":=" and sign is not None:
        if (block := _YAML_BLOCK.match(text, at)) is not None:
            yield from _lines(text, start, block.end(), kind, is_block=True)
            return
        if (marks := _YAML_MARKS.match(text, at)) is not None:
            at = marks.end()
        if said == ":" and text.startswith(("\n", "\r", "\\"), at):
            yield from _lines(text, start, at, kind, is_block=False)
            return
    if text.startswith("[", at):
        end = text.find("]", at)
        for one in _IN_LIST.finditer(text, at + 1, len(text) if end < 0 else end):
            group = next((group for group in ("quoted", "curly") if one[group]), "plain")
            if group != "plain" or (one["plain"] and _is_value(one["plain"], kind, ":")):
                yield one.span(group)
        return
    of_header = text[start:name_end].casefold().endswith("authorization")
    if of_header and (line := _SCHEME.match(text, at)) is not None:
        yield line.span()
        return
    if said == ":" and (typed := _TYPED.match(text, at)) is not None:
        at = typed.end()
    code = _BEFORE_QUOTE.match(text, at)
    is_call = code is not None and code[0] != ""
    if (item := _QUOTED.match(text, at if code is None else code.end())) is not None:
        group = "quoted" if item["quoted"] is not None else "curly"
        if item[group] and not item[group].startswith("[redacted: ") and not (is_call and _is_name(item[group])):
            yield item.span(group)
        return
    if (
        said == ":"
        and text[start:name_end].casefold().endswith("cookie")
        and (line := _LINE.match(text, at)) is not None
    ):
        yield line.span()
    elif _CODE.match(text, at) is None and (plain := _PLAIN.match(text, at)) and _is_value(plain["value"], kind, said):
        yield plain.start("value"), _end_of(text, plain.end())


def _end_of(text: str, at: int) -> int:
    """Where a value ends that goes on at `at`."""
    rest = _REST.match(text, at)
    return at if rest is None else rest.end()


def _is_name(value: str) -> bool:
    """Whether this is what a secret is called where it is kept, as in `getenv("API_KEY")`."""
    return _DIGIT.search(value) is None and kind_of(value) is not None


def _spoken(text: str, start: int, at: int, kind: SecretKind) -> Iterator[tuple[int, int]]:
    """Where a secret follows its name without a sign: `set DB_PASSWORD …`, `PASSWORD '…'`, `setPassword("…")`."""
    name = text[start:at]
    if (
        text.startswith("(", at)
        and (code := _BEFORE_QUOTE.match(text, at))
        and (item := _QUOTED.match(text, code.end()))
    ):
        if item["quoted"] and not _is_name(item["quoted"]):
            yield item.span("quoted")
        return
    if (gap := _SPOKEN.match(text, at)) is None or text.startswith("[redacted: ", gap.end()):
        return
    loud = name.isupper()
    item = _QUOTED.match(text, gap.end())
    if item is not None and item["quoted"] and (loud or _DIGIT.search(item["quoted"])) and len(item["quoted"]) <= 256:
        yield item.span("quoted")
    elif item is None and (plain := _PLAIN.match(text, gap.end())) and _CODE.match(text, gap.end()) is None:
        value = plain["value"]
        mixed = value != value.lower() and value != value.upper() and ("/" not in value or len(value) > _LONG)
        if len(value) >= _SHORTEST and _is_value(value, SecretKind.WEAK, ":") and (mixed or (loud and "_" in name)):
            yield plain.start("value"), _end_of(text, plain.end())


def _lines(text: str, start: int, at: int, kind: SecretKind, *, is_block: bool) -> Iterator[tuple[int, int]]:
    """Where the secrets stand in the lines below a name in YAML: those that stand further to the right."""
    before = max(
        start - _LONGEST_NAME,
        text.rfind("\n", max(0, start - _LONGEST_NAME), start),
        text.rfind("\\n", max(0, start - _LONGEST_NAME), start) + 1,
        -1,
    )
    margin = len(text[before + 1 : start]) - len(text[before + 1 : start].lstrip(" \t"))
    while (line := _NEXT_LINE.match(text, at)) is not None:
        said = line["said"].strip()
        at = line.end()
        if said and len(line["indent"]) <= margin and not (line["item"] and len(line["indent"]) == margin):
            return
        if is_block:
            if said and (kind is SecretKind.STRONG or _DIGIT.search(said)):
                yield line.span("said")
        elif (
            " " in said
            or said.endswith(":")
            or ": " in said
            or not (_DIGIT.search(said) and _is_value(said, kind, ":"))
        ):
            return
        else:
            yield line.span("said")


def _is_value(value: str, kind: SecretKind, sign: str) -> bool:
    """Whether a word without quotation marks, after this sign, is a secret rather than the next word of a sentence, or a number."""
    if value.casefold() in _NOTHING:
        return False
    has_digit = _DIGIT.search(value) is not None
    if sign.startswith("is"):
        return has_digit and len(value) > 5
    if sign in ("==", "===", "!=", "!==") or value[0] in "$<":
        return False
    if sign not in (":", "=", ":=", "=>", "：", "＝") and not sign.startswith(("%", "\\", "</")):
        return has_digit and len(value) >= _SHORTEST and not value.isdigit()
    if kind is SecretKind.STRONG:
        return len(value) >= (_SHORTEST if sign == ":" else 4)
    return (
        has_digit and len(value) >= (_SHORTEST if sign == ":" else 4) and not value.isdigit() and value[0] not in "/~"
    )


def _is_card(text: str) -> bool:
    """Whether the digits add up as those of a payment card do (Luhn)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = (digit * 2 for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(digit // 10 + digit % 10 for digit in doubled)) % 10 == 0
