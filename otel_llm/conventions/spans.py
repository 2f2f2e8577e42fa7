"""Reading the SDK's spans. The app's thread does it at the start and the end of every model call, so it must cost little.

Where the SDK's public properties copy, the plain field behind them is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import ReadableSpan

from otel_llm.conventions import semconv
from otel_llm.support import otel_private

Attributes = Mapping[str, Any]


@lru_cache(256)  # asked for again and again, of few scopes
def is_ours(scope: str | None) -> bool:
    """Whether an instrumentation scope is one of our spans'."""
    return scope is not None and scope.startswith(semconv.SPAN_SCOPES)


def attributes_of(span: ReadableSpan, given: Attributes | None = None) -> Attributes:
    """The span's attributes, without a copy where the SDK is as we know it.

    Where its limits have cut them, those that a span of ours was `given` are whole again.
    """
    held, plain = otel_private.attributes_of(span)
    if given is None:
        return plain
    longest = getattr(held, "max_value_len", None)
    if longest is None and not getattr(held, "dropped", 0) and len(plain) >= len(given):
        return plain
    whole = dict(BoundedAttributes(attributes=given))
    for name, value in plain.items():
        # What differs and was not cut is what the app has set there since.
        if name not in whole or not _is_cut(value, longest):
            whole[name] = value
    return whole


def _is_cut(value: Any, longest: int | None) -> bool:
    """Whether a value may be the beginning of a longer one. Those in a list are cut one by one."""
    if isinstance(value, str | bytes):
        return len(value) == longest
    return isinstance(value, Sequence | Mapping) and longest is not None
