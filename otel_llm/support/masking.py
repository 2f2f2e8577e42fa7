"""What is shown of a setting, and of an error that may quote one. Everything that a command or a log line shows passes here.

Endpoints, headers, proxies and resource attributes carry passwords and keys. Host, port and path of a URL are shown; user and
password, its query, the values of fields that are called like secrets, and the secrets in environment variables are not. Nothing
that is shown can steer a terminal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, unquote

HIDDEN: Final = "***"
LONGEST: Final = 600

_SECRET_VARIABLE: Final = re.compile(r"HEADERS|KEY|SECRET|TOKEN|PASSW|CREDENTIAL|AUTH(?!OR)|COOKIE", re.IGNORECASE)
"""What is never shown, by the name of its variable."""
_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
_HARMLESS: Final = frozenset(
    {"service.name", "service.version", "service.namespace", "deployment.environment", "deployment.environment.name"}
)
"""Resource attributes whose value is shown."""
_URL: Final = re.compile(r"""//([^\s'"<>`]*)""")
_HOST: Final = re.compile(r"[\w.%-]+(?::\d*)?|\[[\da-fA-F:.%\w]*\]?(?::\d*)?")
_AT: Final = r"(?:@|%40)"
_BARE_USER: Final = re.compile(
    rf"""(?<![^\s'"<>`,;=(])[^\s'"<>`/,;=(]+(?::|%3[Aa])(?!//)[^\s'"<>`]*{_AT}(?=[\w\[%.])"""
)
"""`user:password@host` without a scheme before it, as gRPC has it."""
_BARE_TOKEN: Final = re.compile(rf"""(?<![^\s'"<>`,;=(])[^\s'"<>`/,;=(]+{_AT}(?=[\w.-]+:\d)""")
_FIELD: Final = re.compile(
    r"""((?:(?<![\w.-])[\w.-]*(?:key|token|secret|passw(?:or)?d|passphrase|pwd|credentials?|signature|sig|cookie)|authorization)\b["']?\s*[=:]\s*)
    ["']?(?!\*\*\*)(?:(?:bearer|basic)\s+)?[^\s"',;&<>]+""",
    re.IGNORECASE | re.VERBOSE,
)
_STEERING: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
_SHORTEST_SECRET: Final = 4
_LOOKED_AT: Final = 3 * LONGEST
"""Characters that are gone through: more than are shown, so that a secret is not cut before what tells that it is one."""


def setting(name: str, value: str) -> str:
    """The value of the environment variable `name`, as it may be shown."""
    if _SECRET_VARIABLE.search(name):
        return "(set)"
    if name.upper() == _ATTRIBUTES:
        return text(",".join(_attribute(item) for item in value.split(",") if item.strip()))
    return text(value)


def text(said: object) -> str:
    """What an error says, or a part of a message, on one line."""
    shown = str(said)
    for secret in _secrets():
        shown = shown.replace(secret, HIDDEN)
    shown = shown[:_LOOKED_AT]
    shown = _URL.sub(lambda found: f"//{_without_secrets(found[1])}", shown)
    if "@" in shown or "%40" in shown:
        shown = _BARE_TOKEN.sub(f"{HIDDEN}@", _BARE_USER.sub(f"{HIDDEN}@", shown))
    shown = _FIELD.sub(rf"\1{HIDDEN}", shown)
    shown = _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), shown)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def error(fault: BaseException) -> str:
    """An error, with its class."""
    said = text(fault)
    return f"{type(fault).__name__}: {said}" if said else type(fault).__name__


def _attribute(item: str) -> str:
    name, equals, _ = item.partition("=")
    return item if name.strip().lower() in _HARMLESS or not equals else f"{name}={HIDDEN}"


def _without_secrets(rest: str) -> str:
    """What stands behind the `//` of a URL, without user, password, query and fragment."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    behind = re.split(_AT, authority)
    if len(behind) > 1:
        rest = behind[-1] + rest[len(authority) :]
    elif _HOST.fullmatch(authority) is None:
        # A password with a `/` in it that should have been escaped: up to the last `@` all of it may be secret.
        rest = re.split(_AT, rest)[-1]
    path, mark, _ = _cut(rest)
    return path + (f"?{HIDDEN}" if mark == "?" else "")


def _cut(rest: str) -> tuple[str, str, str]:
    found = re.search(r"[?#]", rest)
    return (rest, "", "") if found is None else (rest[: found.start()], found[0], rest[found.end() :])


def _secrets() -> list[str]:
    """What the variables of this process hold that must not be shown, however an error quotes it; the longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if name.startswith(("OTEL_", "_OTEL_")) or name.lower().endswith("_proxy"):
            found.update(_secrets_of(name, value))
    shapes = {shape for secret in found for shape in (secret, unquote(secret), quote(secret, safe=""))}
    return sorted((one for one in shapes if len(one) >= _SHORTEST_SECRET), key=len, reverse=True)


def _secrets_of(name: str, value: str) -> Iterator[str]:
    if name.endswith("HEADERS"):
        yield from (pair.partition("=")[2].strip() for pair in value.split(","))
    if "//" in value or "@" in value:
        rest = value.partition("//")[2] or value
        user, at, _ = rest.rpartition("@")
        if at and (password := user.partition(":")[2]):
            yield password
        query = _cut(rest)[2]
        yield from (pair.partition("=")[2] for pair in re.split(r"[&;]", query))
