"""Finding the `OTEL_*` variables with which OpenTelemetry cannot be set up, and going on without them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Final, TypeVar
from urllib.parse import urlsplit

from otel_llm.support import masking

_logger = logging.getLogger("otel_llm")
_T = TypeVar("_T")

_PREFIXES: Final = ("OTEL_", "_OTEL_")
_OURS: Final = "OTEL_LLM_"
_QUOTED: Final = re.compile(r"""'([^']+)'|"([^"]+)"|got (\S+)""")
_NO_ENDPOINT: Final = "is no URL like http://localhost:4318"


def make_importable() -> None:
    """Imports the modules of OpenTelemetry that read variables as they are imported, and cannot be with a wrong one.

    Once they are imported, they are so for everybody. Raises what is wrong where it is not a variable.
    """
    for module in ("opentelemetry.propagate", "opentelemetry.sdk.trace", "opentelemetry.sdk._logs"):
        try:
            import_module(module)
        except ImportError:
            raise
        except Exception as error:
            names = to_blame(error)
            with hidden(names or _all()):
                import_module(module)
            warn(names, error, "it counts as not set")
    for name, module, getter in _GLOBAL_PROVIDERS:
        if name not in os.environ:
            continue
        try:
            getattr(import_module(module), getter)()
        except Exception as error:
            warn([name], error, "it counts as not set")
            # The API asks for it, and fails, each time that it is asked for the provider.
            del os.environ[name]


_GLOBAL_PROVIDERS: Final = (
    ("OTEL_PYTHON_TRACER_PROVIDER", "opentelemetry.trace", "get_tracer_provider"),
    ("OTEL_PYTHON_METER_PROVIDER", "opentelemetry.metrics", "get_meter_provider"),
    ("OTEL_PYTHON_LOGGER_PROVIDER", "opentelemetry._logs", "get_logger_provider"),
)

_told: set[str] = set()


def warn(names: list[str], error: BaseException | None, instead: str) -> None:
    """One line, once: which variables are wrong, what was said about them, and what happens instead."""
    if names and _told.issuperset(names):
        return
    _told.update(names)
    _logger.warning(
        "OpenTelemetry cannot be set up as %s asks%s; %s",
        ", ".join(f"{name}={masking.setting(name, os.environ.get(name, ''))}" for name in names)
        or "an OTEL_* variable",
        "" if error is None else f" ({masking.error(error)})",
        instead,
    )


def endpoint_fault(value: str) -> str | None:
    """What is wrong with an OTLP endpoint; None where it can be one."""
    if not value.isprintable() or re.search(r"\s", value.strip()):
        return _NO_ENDPOINT
    try:
        parts = urlsplit(value if "//" in value else f"//{value}")
        if not parts.hostname or parts.port == 0 or not re.fullmatch(r"[\w.:%-]+", parts.hostname):
            return _NO_ENDPOINT
        parts.hostname.encode("idna" if not parts.hostname.isascii() else "ascii")
    except ValueError:
        return _NO_ENDPOINT
    return None


def drop_endless_timeouts() -> None:
    """Takes away OTLP timeouts that are longer than a day, so that the default counts. Of one without end the gRPC exporter thinks
    that it is over, tries again for ever, and keeps the program from ending."""
    for name in _TIMEOUTS:
        try:
            is_endless = not float(os.environ.get(name, "0")) <= _LONGEST_TIMEOUT  # nor is what is no number
        except ValueError:
            continue  # the exporter says so
        if is_endless:
            warn([name], None, "it is longer than a day, and counts as not set")
            del os.environ[name]


_TIMEOUTS: Final = tuple(f"OTEL_EXPORTER_OTLP_{signal}TIMEOUT" for signal in ("", "TRACES_", "METRICS_", "LOGS_"))
_LONGEST_TIMEOUT: Final = 86_400
"""Seconds."""


def to_blame(error: BaseException) -> list[str]:
    """The variables that `error` speaks of: by their names, or else by their values."""
    said = f"{error} {error.__cause__ or ''}"
    values = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) and value.strip()}
    named = [name for name in values if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
    if named:
        return named
    malformed = [name for name in values if name.endswith("_ENDPOINT") and endpoint_fault(values[name])]
    quoted = [piece for found in _QUOTED.findall(said) for piece in found if piece.strip()]
    return malformed or [
        name
        for name, value in values.items()
        if not name.startswith(_OURS) and any(_has(value, piece) for piece in quoted)
    ]


def _has(value: str, piece: str) -> bool:
    """Whether `piece` is the value, or one of those that it lists."""
    folded = piece.strip().casefold()
    return folded in {one.strip().casefold() for one in (value, *value.split(","))}


def with_what_works(build: Callable[[], _T]) -> _T:
    """What `build` makes, without the variables that keep it from being made; what is wrong with them has been said by then."""
    try:
        return build()
    except Exception:
        names = _all()
    for name in names:
        try:
            with hidden([name]):
                return build()
        except Exception:
            continue
    with hidden(names):
        return build()


def _all() -> list[str]:
    return [name for name in os.environ if name.startswith(_PREFIXES) and not name.startswith(_OURS)]


@contextmanager
def hidden(names: list[str]) -> Iterator[None]:
    """Takes variables out of the environment for a moment."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def port_of(endpoint: str) -> int | None:
    """The port of an endpoint in which there is no fault."""
    return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").port
