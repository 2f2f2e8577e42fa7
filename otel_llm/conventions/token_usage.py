"""Token counts: one type for what every provider sends. Who says it how is in `accents`, and read by `usage_reading`.

A count is what the provider reported. What it did not report, or reported as something that is not a token count
(text, a negative number, a number beyond 64 bits), is None: never 0 and never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from otel_llm.conventions import dialects, semconv
from otel_llm.support import faults

MAX_TOKENS: Final = 10**12
"""A token count beyond this is a fault of whoever wrote it: the account takes it as unknown."""
_LARGEST: Final = 2**63 - 1
_NOTHING: Mapping[str, Any] = {}


class Usage(NamedTuple):
    """Tokens of one model call. Cached tokens are part of `input`, reasoning tokens part of `output`."""

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None
    cache_write_1h: int | None = None
    audio_cache_read: int | None = None
    image_cache_read: int | None = None

    def attributes(self) -> dict[str, int]:
        """The span attributes of the counts that are known."""
        return {name: count for name, count in zip(_ATTRIBUTES, self, strict=True) if count is not None}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Usage:
        """The counts that a span has, in whichever dialect."""
        return cls(*(count(dialects.read(attributes, name)) for name in _ATTRIBUTES))

    def plus(self, other: Usage) -> Usage:
        """The sum of what is known of both."""
        return Usage(*(b if a is None else a if b is None else a + b for a, b in zip(self, other, strict=True)))

    def __bool__(self) -> bool:
        """Whether anything at all was reported."""
        return self != _NOTHING_REPORTED


_NOTHING_REPORTED: Final = Usage()

_ATTRIBUTES: Final[tuple[str, ...]] = tuple(getattr(semconv, f"{name.upper()}_TOKENS") for name in Usage._fields)
TOKEN_COLUMNS: Final[Mapping[str, str]] = {
    f"{name}_tokens": attribute for name, attribute in zip(Usage._fields, _ATTRIBUTES, strict=True)
}
"""The columns of the counts in `llm_usage` -> the attributes that they come from. A new count goes into `Usage` and `semconv`."""
WHOLE_OF: Final[Mapping[str, str]] = {
    column: attribute.rpartition(".")[2]
    for column, attribute in TOKEN_COLUMNS.items()
    if column not in ("input_tokens", "output_tokens")
}
"""The column of a part -> that of the whole which it is counted in: input or output, as its attribute ends with."""
PARTS_OF_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "cache_write_1h_tokens": ("cache_write_tokens",),
    "audio_cache_read_tokens": ("audio_input_tokens", "cache_read_tokens"),
    "image_cache_read_tokens": ("image_input_tokens", "cache_read_tokens"),
}
"""The column of what is counted in several parts -> those."""


def count(value: Any) -> int | None:
    """`value` if it is a token count that fits BIGINT, else None."""
    if type(value) is int:  # not a bool, which is an int too
        return value if 0 <= value <= _LARGEST else None
    if value is None:  # most of the counts of most calls
        return None
    if issubclass(type(value), float) and value.is_integer() and 0 <= value <= 2**53:
        return int(value)
    return None


def fields(payload: object) -> Mapping[str, Any]:
    """The fields of a JSON object or of a client's (pydantic) model object, without copying either.

    Any value may stand where one is expected: a class, an object that answers for every attribute or raises for each. Those have
    none.
    """
    kind = type(payload)  # not `__class__`, which an object may lie about
    if kind is dict:
        return payload  # type: ignore[return-value]
    if payload is None:
        return _NOTHING
    if issubclass(kind, dict):
        return payload  # type: ignore[return-value]
    if kind.__dictoffset__:
        try:
            own = payload.__dict__
            extra = getattr(payload, _EXTRA, None) if hasattr(kind, _EXTRA) else None
        except Exception as error:
            faults.pass_on(error)
            return _NOTHING
        if type(own) is dict:  # a class has a proxy, which is none
            if extra:
                return {**extra, **own} if type(extra) is dict else own
            if own:
                return own
    return payload if issubclass(kind, Mapping) else _NOTHING  # type: ignore[return-value]


_EXTRA: Final = "__pydantic_extra__"
