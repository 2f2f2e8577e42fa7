"""Every `OTEL_LLM_*` variable, read once, typed. A value that is wrong gets one line in the log and the default.

The values are read when first asked for. `reload()` reads them again (tests, notebooks).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

_logger = logging.getLogger("otel_llm")
_T = TypeVar("_T")


Fsync = Literal["none", "interval", "always"]
StreamUsage = Literal["auto", "always", "never"]
MetricNames = Literal["current", "legacy", "both", "none"]
_FSYNC: Mapping[str, Fsync] = {"none": "none", "interval": "interval", "always": "always"}
_STREAM_USAGE: Mapping[str, StreamUsage] = {"auto": "auto", "always": "always", "never": "never"}
_METRIC_NAMES: Mapping[str, MetricNames] = {
    "current": "current",
    "legacy": "legacy",
    "both": "both",
    "none": "none",
}


class Capture(Enum):
    """Where message content goes: `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`."""

    NO_CONTENT = "NO_CONTENT"
    SPAN_ONLY = "SPAN_ONLY"
    EVENT_ONLY = "EVENT_ONLY"
    SPAN_AND_EVENT = "SPAN_AND_EVENT"

    @property
    def in_span(self) -> bool:
        return self in (Capture.SPAN_ONLY, Capture.SPAN_AND_EVENT)

    @property
    def in_event(self) -> bool:
        return self in (Capture.EVENT_ONLY, Capture.SPAN_AND_EVENT)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for. Sizes are in bytes, times in seconds."""

    store: Path | None
    """The DuckDB file; None where `OTEL_LLM_STORE=none` turns the account off."""
    flush_interval: float
    """How often the background thread merges the journal into DuckDB."""
    fsync: Fsync
    segment_size: int
    """A journal segment that has grown past this is sealed and a new one begun."""
    segment_age: float
    stream_usage: StreamUsage
    """Whether `stream_options.include_usage` is asked for on chat streams that do not set it."""
    capture: Capture
    captures_content: bool
    """Whether `capture` is any mode but `NO_CONTENT`: what the hooks ask for every call."""
    content_limit: int
    """Characters of one text (a message part, a tool's argument) that are kept; an attribute keeps 16 times as many in all."""
    redact: str | None
    """`module:function` that sees every message before it is recorded."""
    redact_builtin: bool
    """Whether API keys, e-mail addresses and card numbers are masked in what is captured."""
    metrics: MetricNames
    """The names that GenAI metrics go by: those of today's conventions, the former ones, both; or no metrics."""
    trust_baggage: bool
    """Whether baggage that came in from another process names the user, the module and so on."""
    context_keys: frozenset[str]
    """Further baggage keys that are taken over as tags."""
    propagate_to: tuple[str, ...]
    """Model hosts that may receive `traceparent` and baggage; none by default."""
    thread_context: bool
    """Whether the context follows work into threads, pools and processes."""
    prices: Path | None
    profiles: Path | None
    """The TOML file that `LLMProvider.from_env()` reads."""
    retention: float | None
    """Spans and calls that began longer ago are removed from the store."""
    max_size: int | None
    """The oldest are removed, spans before calls, when the store is larger than this."""
    jaeger_url: str | None
    """Where people open Jaeger in a browser: the command line names a trace's page there."""
    sdk_disabled: bool


def settings() -> Settings:
    """The settings of this process. Raises nothing: a wrong value is logged and replaced by its default."""
    return _read()


def reload() -> Settings:
    """Reads the environment again and returns what it says now."""
    _read.cache_clear()
    return _read()


@cache
def _read() -> Settings:
    env: Mapping[str, str] = os.environ
    capture = _get(
        env,
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        lambda text: Capture(text.upper()),
        "NO_CONTENT, SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT",
        lambda: Capture.NO_CONTENT,
    )
    return Settings(
        store=_get(env, "OTEL_LLM_STORE", _store, "a file path, or none", default_store),
        flush_interval=_get(env, "OTEL_LLM_FLUSH_INTERVAL", _duration, "a time like 0.5 or 500ms", lambda: 0.8),
        fsync=_choice(env, "OTEL_LLM_FSYNC", _FSYNC, "none"),
        segment_size=_get(env, "OTEL_LLM_SEGMENT_SIZE", _size, "a size like 16MB", lambda: 16 * 2**20),
        segment_age=_get(env, "OTEL_LLM_SEGMENT_AGE", _duration, "a time like 60 or 5min", lambda: 60.0),
        stream_usage=_choice(env, "OTEL_LLM_STREAM_USAGE", _STREAM_USAGE, "auto"),
        capture=capture,
        captures_content=capture is not Capture.NO_CONTENT,
        content_limit=_get(
            env, "OTEL_LLM_CONTENT_LIMIT", _characters, "a number of characters like 16384", lambda: 2**14
        ),
        redact=env.get("OTEL_LLM_REDACT", "").strip() or None,
        redact_builtin=_get(env, "OTEL_LLM_REDACT_BUILTIN", _bool, "on or off", lambda: True),
        metrics=_choice(env, "OTEL_LLM_METRICS", _METRIC_NAMES, "current"),
        trust_baggage=_get(env, "OTEL_LLM_TRUST_BAGGAGE", _bool, "true or false", lambda: False),
        context_keys=frozenset(_list(env.get("OTEL_LLM_CONTEXT_KEYS", ""))),
        propagate_to=tuple(_list(env.get("OTEL_LLM_PROPAGATE_TO", ""))),
        thread_context=_get(env, "OTEL_LLM_THREAD_CONTEXT", _bool, "true or false", lambda: True),
        prices=_get(env, "OTEL_LLM_PRICES", lambda text: Path(text).expanduser(), "a file path", lambda: None),
        profiles=_get(env, "OTEL_LLM_PROFILES", lambda text: Path(text).expanduser(), "a file path", lambda: None),
        retention=_get(env, "OTEL_LLM_RETENTION", parse_age, f"{AGE}; nothing is removed", lambda: None),
        max_size=_get(env, "OTEL_LLM_MAX_SIZE", parse_limit, f"{LIMIT}; nothing is removed", lambda: None),
        jaeger_url=_get(env, "OTEL_LLM_JAEGER_URL", _url, "a URL like http://localhost:16686", lambda: None),
        sdk_disabled=env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
    )


def default_store() -> Path:
    """`usage.duckdb` in the user's data directory."""
    from platformdirs import user_data_path

    return user_data_path("otel-llm", appauthor=False) / "usage.duckdb"


def _get(env: Mapping[str, str], name: str, parse: Callable[[str], _T], expected: str, default: Callable[[], _T]) -> _T:
    text = env.get(name, "").strip()
    if not text:
        return default()
    try:
        return parse(text)
    except ValueError:
        fallback = default()
        used = fallback.value if isinstance(fallback, Enum) else fallback
        _logger.warning("%s=%s is not %s; using %s", name, text[:80], expected, used)
        return fallback


def _store(text: str) -> Path | None:
    return None if text.lower() == "none" else Path(text).expanduser().absolute()


def _url(text: str) -> str | None:
    if not re.fullmatch(r"https?://[^\s/]+\S*", text):
        raise ValueError(text)
    return text.rstrip("/")


def _bool(text: str) -> bool:
    match text.lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
    raise ValueError(text)


def _choice(env: Mapping[str, str], name: str, choices: Mapping[str, _T], default: str) -> _T:
    def parse(text: str) -> _T:
        if text.lower() not in choices:
            raise ValueError(text)
        return choices[text.lower()]

    return _get(env, name, parse, " or ".join(choices), lambda: choices[default])


def _list(text: str) -> list[str]:
    return [item for item in (part.strip() for part in text.split(",")) if item]


_TIME_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"": 1, "b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}


def _characters(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def _duration(text: str) -> float:
    return _with_unit(text, _TIME_UNITS)


def _size(text: str) -> int:
    return int(_with_unit(text, {unit: float(factor) for unit, factor in _SIZE_UNITS.items()}))


AGE = "an age like 90d, 12h or 4w"
LIMIT = "a size like 2GB, 1MB at least"
_AGE_UNITS = {"min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_LEAST_LIMIT = 2**20


def parse_age(text: str) -> float:
    """`AGE` in seconds. The unit must be there: a number meant as days must not be read as seconds. Raises ValueError."""
    return _with_unit(text, _AGE_UNITS)


def parse_limit(text: str) -> int:
    """`LIMIT` in bytes, with a unit for the same reason. Raises ValueError."""
    size = int(_with_unit(text, {unit: float(factor) for unit, factor in _SIZE_UNITS.items() if unit}))
    if size < _LEAST_LIMIT:
        raise ValueError(text)
    return size


def _with_unit(text: str, units: Mapping[str, float]) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise ValueError(text)
    return float(match[1]) * units[match[2]]
