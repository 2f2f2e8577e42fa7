"""What goes out with a request, and what comes in. A model provider gets nothing of ours; nobody's hostile baggage is believed."""

from __future__ import annotations

import re
from functools import cache
from logging import getLogger
from typing import Any

from opentelemetry import context as otel
from opentelemetry import propagate
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from otel_llm.calls import request
from otel_llm.support import faults

_logger = getLogger("otel_llm")

_HEADER = "baggage"
_LONGEST_HEADER = 8192
_MOST_MEMBERS = 180
_LONGEST_MEMBER = 4096
_TOKEN = r"[ \t]*[!#$%&'*+\-.0-9A-Z^_`a-z|~]+[ \t]*"
_VALUE = r"[ \t]*[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*[ \t]*"
_MEMBER = re.compile(rf"{_TOKEN}={_VALUE}(?:;(?:{_TOKEN}={_VALUE}|{_TOKEN}))*")


class WithholdingPropagator(TextMapPropagator):
    """Propagates as `inner` does, but not on the request to a model provider: user ids and trace ids stay with us.

    Of the baggage that comes in it hands on what W3C allows. OpenTelemetry's own propagator would as well, with a line in the
    log for every bad member: a single header could write thousands.
    """

    def __init__(self, inner: TextMapPropagator) -> None:
        self.inner = inner

    def extract(
        self, carrier: CarrierT, context: otel.Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> otel.Context:
        return self.inner.extract(carrier, context, _Cleaning(getter))

    def inject(
        self, carrier: CarrierT, context: otel.Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        if not request.withholds(context):
            self.inner.inject(carrier, context, setter)

    @property
    def fields(self) -> set[str]:
        return self.inner.fields


class _Cleaning(Getter[Any]):
    """Gets what `inner` gets, of baggage the members that are well-formed."""

    def __init__(self, inner: Getter[Any]) -> None:
        self._inner = inner

    def get(self, carrier: Any, key: str) -> list[str] | None:
        values = self._inner.get(carrier, key)
        if not values or key.lower() != _HEADER:
            return values
        try:
            header = next(iter(values))
            cleaned = _well_formed(header)
            return values if cleaned == header else [cleaned] if cleaned else None
        except Exception as error:
            faults.report("read a baggage header", error)
            return None

    def keys(self, carrier: Any) -> list[str]:
        return self._inner.keys(carrier)


def _well_formed(header: str) -> str:
    """The members of a baggage header that keep to W3C's format and limits."""
    if len(header) > _LONGEST_HEADER:
        _warn_of_header()
        return ""
    members = header.split(",")
    kept = [member for member in members if len(member) <= _LONGEST_MEMBER and _MEMBER.fullmatch(member)][
        :_MOST_MEMBERS
    ]
    if len(kept) == len(members):
        return header
    _warn_of_header()
    return ",".join(kept)


@cache
def _warn_of_header() -> None:
    _logger.warning(
        "a request came with a baggage header that W3C does not allow; what is wrong in it is ignored. Said once."
    )


def withhold() -> None:
    """Keeps trace context and baggage from being sent to model providers."""
    current = propagate.get_global_textmap()
    if not isinstance(current, WithholdingPropagator):
        propagate.set_global_textmap(WithholdingPropagator(current))


def restore() -> None:
    """Undoes `withhold`, unless somebody else has set a propagator since."""
    current = propagate.get_global_textmap()
    if isinstance(current, WithholdingPropagator):
        propagate.set_global_textmap(current.inner)
