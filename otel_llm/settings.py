"""Every `OTEL_LLM_*` variable, read once, typed. A value that is wrong gets one line in the log and the default.

Nothing here raises, whatever the environment says and whether or not there is a home directory.

The values are read when first asked for. `reload()` reads them again (tests, notebooks).
"""

from __future__ import annotations

import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

from otel_llm.support import masking

_logger = logging.getLogger("otel_llm")
_T = TypeVar("_T")


Fsync = Literal["none", "interval", "always"]
StreamUsage = Literal["auto", "always", "never"]
ServeSpans = Literal["all", "genai"]
MetricNames = Literal["current", "legacy", "both", "none"]
_FSYNC: Mapping[str, Fsync] = {"none": "none", "interval": "interval", "always": "always"}
_STREAM_USAGE: Mapping[str, StreamUsage] = {"auto": "auto", "always": "always", "never": "never"}
_SERVE_SPANS: Mapping[str, ServeSpans] = {"all": "all", "genai": "genai"}
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
    """The DuckDB file; None where `OTEL_LLM_STORE=none` turns the account off, or where there is no place for one."""
    store_note: str | None
    """Why the account is not kept where it is by default; for `announce_store`, `doctor` and whoever finds no store."""
    account_url: str | None
    """The ClickHouse that commands read, where `OTEL_LLM_STORE` names one. Programs keep their account in the default store."""
    flush_interval: float | None
    """How often the background thread merges the journal into DuckDB; None: as `otel_llm.store.jobs.merge_rhythm` has it."""
    fsync: Fsync
    segment_size: int
    """A journal segment that has grown past this is sealed and a new one begun."""
    segment_age: float
    stream_usage: StreamUsage
    """Whether `stream_options.include_usage` is asked for on chat streams that do not set it."""
    estimate: bool
    """Whether the tokens of calls that were billed and told no usage are estimated, and characters counted for that."""
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
    budgets: Path | None
    """The TOML file that says what may be spent."""
    retention: float | None
    """Spans and calls that began longer ago are removed from the store."""
    max_size: int | None
    """The oldest are removed, spans before calls, when the store is larger than this."""
    replay_missing: bool
    """Whether what earlier processes could not send over OTLP is sent when one begins."""
    ship_to: tuple[str, ...]
    """URLs that the process which merges ships the account to."""
    ship_spans: bool
    """Whether it ships spans as well."""
    ship_headers: str | None
    """What goes with each request to an OTLP endpoint among them, as `OTEL_EXPORTER_OTLP_HEADERS` has it."""
    jaeger_url: str | None
    """Where people open Jaeger in a browser: the command line names a trace's page there."""
    serve_spans: ServeSpans
    """Which spans `otel-llm serve` keeps: all, or those about generative AI alone."""
    serve_token: str | None
    """What senders must show to `otel-llm serve`."""
    serve_max_request: int
    serve_max_waiting: int
    """Of the journal, before senders are told to wait."""
    sdk_disabled: bool


def reload() -> Settings:
    """Reads the environment again and returns what it says now."""
    settings.cache_clear()
    return settings()


@cache  # itself, for each call asks for them a dozen times
def settings() -> Settings:
    """The settings of this process. Raises nothing: a wrong value is logged and replaced by its default."""
    env: Mapping[str, str] = os.environ
    store = _store_place(env)
    capture = _get(
        env,
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        lambda text: Capture(text.upper()),
        "NO_CONTENT, SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT",
        lambda: Capture.NO_CONTENT,
    )
    return Settings(
        store=store.path,
        store_note=store.note,
        account_url=store.url,
        flush_interval=_get(env, "OTEL_LLM_FLUSH_INTERVAL", _duration, "a time like 0.5 or 500ms", lambda: None),
        fsync=_choice(env, "OTEL_LLM_FSYNC", _FSYNC, "none"),
        segment_size=_get(env, "OTEL_LLM_SEGMENT_SIZE", _size, "a size like 16MB", lambda: 16 * 2**20),
        segment_age=_get(env, "OTEL_LLM_SEGMENT_AGE", _duration, "a time like 60 or 5min", lambda: 60.0),
        stream_usage=_choice(env, "OTEL_LLM_STREAM_USAGE", _STREAM_USAGE, "auto"),
        estimate=_get(env, "OTEL_LLM_ESTIMATE", _bool, "on or off", lambda: True),
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
        prices=_get(env, "OTEL_LLM_PRICES", file_path, "a file path", lambda: None),
        profiles=_get(env, "OTEL_LLM_PROFILES", file_path, "a file path", lambda: None),
        budgets=_get(env, "OTEL_LLM_BUDGETS", file_path, "a file path", lambda: None),
        retention=_get(env, "OTEL_LLM_RETENTION", parse_age, f"{AGE}; nothing is removed", lambda: None),
        max_size=_get(env, "OTEL_LLM_MAX_SIZE", parse_limit, f"{LIMIT}; nothing is removed", lambda: None),
        replay_missing=_get(env, "OTEL_LLM_REPLAY_MISSING", _bool, "true or false", lambda: True),
        ship_to=tuple(_list(env.get("OTEL_LLM_SHIP_TO", ""))),
        ship_spans=_get(env, "OTEL_LLM_SHIP_SPANS", _bool, "true or false", lambda: False),
        ship_headers=env.get("OTEL_LLM_SHIP_HEADERS", "").strip() or None,
        jaeger_url=_get(env, "OTEL_LLM_JAEGER_URL", _url, "a URL like http://localhost:16686", lambda: None),
        serve_spans=_choice(env, "OTEL_LLM_SERVE_SPANS", _SERVE_SPANS, "all"),
        serve_token=env.get("OTEL_LLM_SERVE_TOKEN", "").strip() or None,
        serve_max_request=_get(env, "OTEL_LLM_SERVE_MAX_REQUEST", _size, "a size like 16MB", lambda: 16 * 2**20),
        serve_max_waiting=_get(env, "OTEL_LLM_SERVE_MAX_WAITING", _size, "a size like 1GB", lambda: 2**30),
        sdk_disabled=env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
    )


class _Place(NamedTuple):
    path: Path | None
    note: str | None = None
    url: str | None = None

    def __str__(self) -> str:
        return str(self.path)


def _store_place(env: Mapping[str, str]) -> _Place:
    def parse(text: str) -> _Place:
        if not names_clickhouse(text):
            return _Place(store_path(text))
        here = default_store()
        kept = "no account is kept here" if here.path is None else f"the account is kept in {masking.text(here.path)}"
        note = f"OTEL_LLM_STORE names a ClickHouse, which commands read: {kept}, and OTEL_LLM_SHIP_TO sends it on"
        return _Place(here.path, note, text)

    return _get(env, "OTEL_LLM_STORE", parse, "a file path, or none", default_store)


def names_clickhouse(text: str) -> bool:
    """Whether it is the URL of a ClickHouse and no path."""
    return text.lower().startswith(("clickhouse://", "clickhouses://"))


def announce_store() -> None:
    """Says once why the account is not where it is by default, to whoever has not said where it shall be."""
    note = settings().store_note
    if note is not None:
        _announce(note)


@cache
def _announce(note: str) -> None:
    _logger.warning("%s", note)


def default_store() -> _Place:
    """`usage.duckdb` in the user's data directory; where there is none that can be written, in a private one for temporary files.

    No home directory is no error: a container's user may have none.
    """
    why = _why_not_the_data_directory()
    if isinstance(why, Path):
        return _Place(why / "usage.duckdb")
    remedy = "set OTEL_LLM_STORE to a path that can be written and lasts"
    path = temporary_store()
    if path is None:
        return _Place(None, f"{why}, and there is no directory for temporary files: no account is kept; {remedy}")
    return _Place(path, f"{why}: the account is kept in {masking.text(path)}; {remedy}")


def _why_not_the_data_directory() -> Path | str:
    """The user's data directory, or why it cannot be used."""
    try:
        from platformdirs import user_data_path

        directory = user_data_path("otel-llm", appauthor=False)
        if not directory.is_absolute():
            return f"the user's data directory is {masking.text(directory)}, which is no absolute path"
        _check_path(directory)
        nearest = next(parent for parent in (directory, *directory.parents) if parent.exists())
        if not nearest.is_dir():
            return f"{masking.text(nearest)}, where the user's data directory is to be, is no directory"
        if not os.access(nearest, os.W_OK | os.X_OK):
            return f"{masking.text(nearest)}, where the user's data directory is to be, cannot be written"
    except Exception as error:
        return f"the user's data directory cannot be found ({masking.error(error)})"
    return directory


def temporary_store() -> Path | None:
    """`usage.duckdb` in a directory for temporary files that is this user's alone; None where there is no such."""
    try:
        parent = Path(tempfile.gettempdir()).absolute()
        user = os.getuid() if hasattr(os, "getuid") else 0
        directory = parent / f"otel-llm-{user}"
        try:
            found = directory.lstat()
        except FileNotFoundError:
            directory.mkdir(mode=0o700)
            found = directory.lstat()
        # What another user has made there would be read, or steered, by him.
        is_ours = stat.S_ISDIR(found.st_mode) and not (hasattr(os, "getuid") and found.st_uid != user)
        return directory / "usage.duckdb" if is_ours and not found.st_mode & 0o077 else None
    except Exception:
        return None


def store_path(text: str | os.PathLike[str]) -> Path | None:
    """The path that names a store; None for `none` and for `/dev/null`, which mean that no account is kept.

    Raises ValueError where no file can have it.
    """
    named = os.fsdecode(text)
    if named.lower() == "none":
        return None
    path = file_path(named)
    return None if os.path.realpath(path) == os.devnull else path


def file_path(text: str) -> Path:
    """A path as a variable gives it, absolute, `~` expanded. Raises ValueError where no file can have it."""
    try:
        path = Path(text).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # ~ without a home directory, no current directory
        raise ValueError(str(error)) from error
    _check_path(path)
    return path


_LONGEST_NAME: Final = 255 - len(".journal.xxxxxxxx")
_LONGEST_PATH: Final = 3800
"""What file systems take, with some room for the names of what lies beside."""


def _check_path(path: Path) -> None:
    """Raises ValueError where there can be no file at `path`, or one that DuckDB cannot be told of."""
    text = str(path)
    if any(character < " " or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("there are characters in it that a path cannot have")
    if len(text.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
        raise ValueError("it is too long")


def _get(env: Mapping[str, str], name: str, parse: Callable[[str], _T], expected: str, default: Callable[[], _T]) -> _T:
    text = env.get(name, "").strip()
    if not text:
        return default()
    try:
        return parse(text)
    except (ValueError, OverflowError):
        fallback = default()
        used = fallback.value if isinstance(fallback, Enum) else fallback
        _logger.warning("%s=%s is not %s; using %s", name, masking.setting(name, text[:80]), expected, used)
        return fallback


def _url(text: str) -> str | None:
    if not re.fullmatch(r"https?://[^\s/]+\S*", text) or not text.isprintable():
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
    if not 0 < number <= _MOST:
        raise ValueError(text)
    return number


def _duration(text: str) -> float:
    seconds = _with_unit(text, _TIME_UNITS)
    if not _SHORTEST <= seconds <= _LONGEST:
        raise ValueError(text)
    return seconds


def _size(text: str) -> int:
    return int(_with_unit(text, {unit: float(factor) for unit, factor in _SIZE_UNITS.items()}))


AGE = "an age like 90d, 12h or 4w"
LIMIT = "a size like 2GB, 1MB at least"
_AGE_UNITS = {"min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_LEAST_LIMIT = 2**20


def parse_age(text: str) -> float:
    """`AGE` in seconds. The unit must be there: a number meant as days must not be read as seconds. Raises ValueError."""
    seconds = _with_unit(text, _AGE_UNITS)
    if seconds > _LONGEST:
        raise ValueError(text)
    return seconds


def parse_limit(text: str) -> int:
    """`LIMIT` in bytes, with a unit for the same reason. Raises ValueError."""
    size = int(_with_unit(text, {unit: float(factor) for unit, factor in _SIZE_UNITS.items() if unit}))
    if size < _LEAST_LIMIT:
        raise ValueError(text)
    return size


def _with_unit(text: str, units: Mapping[str, float]) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units or not 0 < float(match[1]) * units[match[2]] <= _MOST:
        raise ValueError(text)
    return float(match[1]) * units[match[2]]


_MOST: Final = 2.0**53
"""Beyond it a number is a slip, and no file system has it."""
_SHORTEST: Final = 0.001
_LONGEST: Final = 100 * 366 * 86400.0
"""Seconds that one can wait for: nothing spins, and no clock overflows."""
