"""What is taken out of content before it is recorded: by a function of the app's, then by built-in patterns.

Fails closed: a function that cannot be found, raises or returns something else than a message means that nothing is recorded.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from otel_llm import faults
from otel_llm.settings import settings

Message = dict[str, Any]
Redactor = Callable[[Message], Message | None]

_logger = logging.getLogger("otel_llm")


class RedactionFailed(Exception):
    """Why a message was not recorded; never what was in it."""


_given: Redactor | None = None
_loaded: tuple[str, Redactor | None] | None = None
"""What `OTEL_LLM_REDACT` named when it was last looked at, and what was found there."""


def use(redactor: Redactor | None) -> None:
    """Has `redactor` see every message, in place of the one that `OTEL_LLM_REDACT` names; None goes back to that.

    Raises TypeError where it cannot be called.
    """
    global _given
    if redactor is not None and not callable(redactor):
        raise TypeError(f"redact must be a function that takes a message and returns one or None, not {redactor!r}")
    _given = redactor


def current() -> Redactor | None:
    """The app's function, None where it has none."""
    return _given if _given is not None else _named(settings().redact)


def redact(redactor: Redactor, message: Message) -> Message | None:
    """The message as `redactor` wants it recorded; None where it is not to be. Raises RedactionFailed."""
    failed = None
    answer: Any = None
    try:
        answer = redactor(message)
    except Exception as error:
        failed = type(error).__name__
    if (
        failed is not None
    ):  # outside the `except`: the log must not tell of the error itself, which may quote the message
        raise RedactionFailed(f"the redactor raised {failed}")
    if answer is None:
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("role"), str):
        raise RedactionFailed(f"the redactor returned a {type(answer).__name__}, not a message or None")
    parts = answer.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RedactionFailed("the redactor returned a message whose parts are not a list of dict")
    return answer


def _named(name: str | None) -> Redactor | None:
    global _loaded
    if name is None:
        return None
    if _loaded is None or _loaded[0] != name:
        _loaded = name, _load(name)
    return _loaded[1] or _drop


def _load(name: str) -> Redactor | None:
    module, _, function = name.partition(":")
    if not module or not function:
        why = "is not module:function"
    else:
        try:
            found: Any = importlib.import_module(module)
            for attribute in function.split("."):
                found = getattr(found, attribute)
            if callable(found):
                return found  # type: ignore[no-any-return]
            why = "names something that is no function"
        except (Exception, SystemExit) as error:  # a script that ends itself must not end the app
            why = f"cannot be loaded ({type(error).__name__}: {error})"
    _logger.warning("OTEL_LLM_REDACT=%s %s; no content is recorded. Give module:function, importable.", name[:200], why)
    return None


def _drop(message: Message) -> None:
    return None


# --- built-in patterns -----------------------------------------------------------------------------------------------
_KEYS: Final = re.compile(
    r"""
      \b[sr]k-[A-Za-z0-9_-]{16,}                                   # OpenAI, Anthropic, OpenRouter and many others
    | \b[srw](?:k|h)(?:_live|_test|sec)_[A-Za-z0-9]{10,}           # Stripe
    | \b(?:gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}        # GitHub, GitLab
    | \b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b                      # AWS
    | \bAIza[A-Za-z0-9_-]{30,} | \bya29\.[A-Za-z0-9_-]{20,}        # Google
    | \bxox[abeprs]-[A-Za-z0-9-]{10,}                              # Slack
    | \b(?:hf|gsk|npm|r8|dop_v1|lsv2_[a-z]{2}|xai|pplx)[_-][A-Za-z0-9_]{20,}  # Hugging Face, Groq, npm, LangSmith, xAI …
    | \bpypi-[A-Za-z0-9_-]{16,}
    | \beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*)?   # JSON web tokens
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_IN_KEYS: Final = (
    *("sk-", "rk-", "_live_", "_test_", "sec_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-"),
    *("AKIA", "ASIA", "ABIA", "ACCA", "AIza", "ya29.", "xox", "hf_", "hf-", "gsk_", "npm_", "npm-", "r8_", "r8-"),
    *("dop_v1", "lsv2_", "xai_", "xai-", "pplx", "pypi-", "eyJ", "PRIVATE KEY"),
)
"""One of these is in whatever `_KEYS` finds; to look for them first takes a tenth of the time where there is none."""
_NAMED: Final = re.compile(
    r"""
    ( \b (?:bearer | authorization["']?\s*[:=]\s*["']?(?:basic|bearer)) \s+
    | (?:api[_-]?key | secret[_-]?(?:access[_-]?)?key | client[_-]?secret | password | passwd
        | (?:access|refresh|auth)[_-]?token) ["']? \s* [:=] \s* ["']?
    ) (?! \[redacted:\ api\ key\] ) ( [^\s"',;&<>]{8,} )
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What is a secret by the word before it."""
_IN_NAMED: Final = ("bearer", "authorization", "apikey", "api_key", "api-key", "secret", "passw", "token")
_SECRET_NAME: Final = re.compile(
    r".*(?:api[_-]?key|secret[_-]?key|access[_-]?key|client[_-]?secret|password|passwd|(?:access|refresh|auth)[_-]?token)"
    r"|authorization",
    re.IGNORECASE,
)
"""What is a secret by the name of its field."""
_EMAIL: Final = re.compile(r"(?<![\w.%+-])[\w.%+-]+@(?:[\w-]+\.)+[^\W\d_]{2,}")
_CARD: Final = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-]|\.\d)")

API_KEY: Final = "[redacted: api key]"
EMAIL: Final = "[redacted: email]"
CARD: Final = "[redacted: card number]"


def scrub(value: Any, longest: int, truncated: str) -> Any:
    """`value` (made by `plain`, and changed in place) without what the patterns find, its texts at most `longest` characters."""
    return _scrub(value, longest, truncated, settings().redact_builtin)


def _scrub(value: Any, longest: int, truncated: str, patterns: bool) -> Any:
    if isinstance(value, str):
        if patterns:
            value = scrub_text(value)
        return value[:longest] + truncated if len(value) > longest + len(truncated) else value
    if isinstance(value, dict):
        for name, item in value.items():
            if patterns and isinstance(item, str | int) and not isinstance(item, bool) and is_secret(name):
                value[name] = API_KEY
            else:
                value[name] = _scrub(item, longest, truncated, patterns)
        return value
    if isinstance(value, list):
        for number, item in enumerate(value):
            value[number] = _scrub(item, longest, truncated, patterns)
        return value
    if patterns and type(value) is int and value >= 10**12 and _is_card(str(value)) and _CARD.fullmatch(str(value)):
        return CARD
    return value


@lru_cache(maxsize=1024)
def is_secret(name: str) -> bool:
    """Whether what stands in a field of this name is a secret."""
    return _SECRET_NAME.fullmatch(name) is not None


def scrub_text(text: str) -> str:
    """`text` without API keys, e-mail addresses and card numbers."""
    if len(text) < 8:
        return text
    if any(mark in text for mark in _IN_KEYS):
        text = _KEYS.sub(API_KEY, text)
    folded = text.casefold()
    if any(mark in folded for mark in _IN_NAMED):
        text = _NAMED.sub(rf"\1{API_KEY}", text)
    if "@" in text:
        text = _EMAIL.sub(EMAIL, text)
    return _CARD.sub(lambda found: CARD if _is_card(found[0]) else found[0], text)


def _is_card(text: str) -> bool:
    """Whether the digits add up as those of a payment card do (Luhn)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = (digit * 2 for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(digit // 10 + digit % 10 for digit in doubled)) % 10 == 0


def fail(error: RedactionFailed) -> None:
    """Says once, and counts, that content was not recorded."""
    faults.report("redact what was said; it is not recorded", error)
