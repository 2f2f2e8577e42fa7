"""What genai-prices has said, kept in a file for the processes to come.

To import its data takes a tenth of a second, and most processes ask for the same few models. So what it said of one is kept for as
long as it would say the same: until the package is another, or the day has come on which the price changes. A price that changes
with the time of day is not kept.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import orjson

from otel_llm.prices import library
from otel_llm.prices.rates import Quote, Rate
from otel_llm.version import __version__

_logger = logging.getLogger("otel_llm")

_MOST: Final = 256
"""So many prices are kept: the last ones that were new."""
_LIBRARY: Final = "genai_prices"

_Key = tuple[str | None, str, str | None]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A quote, None where the library knows no price, from `first` until before `last` (nanoseconds since 1970)."""

    first: int
    last: int
    quote: Quote | None


@dataclass(slots=True)
class RememberedQuotes:
    """The library's quotes, from the file at `path` where it has them and the library is not here yet."""

    path: Path | None = None
    _read_from: Path | None = None
    _kept: dict[_Key, _Kept] = field(default_factory=dict)
    _is_new: bool = False

    def quote(self, provider: str | None, model: str, tier: str | None, at_ns: int) -> Quote | None:
        """What calls at `at_ns` cost; None where no price is known. Raises what the library does."""
        if self.path is None:
            return library.quote(provider, model, tier, at_ns)
        key = (provider, model, tier)
        self._read()
        kept = self._kept.get(key)
        holds = kept is not None and kept.first <= at_ns < kept.last
        if holds and _LIBRARY not in sys.modules:
            assert kept is not None
            return kept.quote
        quote = library.quote(provider, model, tier, at_ns)
        if not holds and (span := library.holds(provider, model, at_ns)) is not None:
            self._kept.pop(key, None)
            self._kept[key] = _Kept(*span, quote)
            self._is_new = True
        return quote

    def save(self) -> None:
        """Writes what is new. Raises nothing: what cannot be kept is looked up again."""
        path = self.path
        if not self._is_new or path is None or (stamp := _stamp()) is None:
            return
        self._is_new = False
        rows = [(*key, kept.first, kept.last, _plain(kept.quote)) for key, kept in [*self._kept.items()][-_MOST:]]
        from otel_llm.support import files

        beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with os.fdopen(files.create(beside), "wb") as file:
                file.write(orjson.dumps({"of": stamp, "quotes": rows}))
            beside.replace(path)
        except (OSError, TypeError) as error:
            _logger.debug("the prices of this process are not kept: %s", error)
            beside.unlink(missing_ok=True)

    def _read(self) -> None:
        if self._read_from == self.path:
            return
        self._read_from, self._kept, self._is_new = self.path, {}, False
        assert self.path is not None
        from otel_llm.support import files

        try:
            content = orjson.loads(files.read_own(self.path))
            if content["of"] == _stamp():
                self._kept = dict(_entries(content["quotes"]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, ArithmeticError) as error:
            _logger.debug("the prices that are kept in %s cannot be read: %s", self.path, error)


def _stamp() -> list[Any] | None:
    """What the quotes are of: this library, as read by this version. None where that cannot be told, as in a frozen app."""
    try:
        spec = find_spec(_LIBRARY)
        if spec is None or spec.origin is None:
            return None
        stats = [path.stat() for path in (Path(spec.origin).with_name("data.py"), Path(library.__file__))]
    except (OSError, ValueError):
        return None
    return [__version__, *([stat.st_mtime_ns, stat.st_size] for stat in stats)]


def _plain(quote: Quote | None) -> list[Any] | None:
    return None if quote is None else [quote.source, [_plain_rate(rate) for rate in quote.rates]]


def _plain_rate(rate: Rate) -> list[Any]:
    tokens, units = (
        {name: price and str(price) for name, price in each.items()} for each in (rate.per_token, rate.per_unit)
    )
    return [tokens, units, str(rate.per_call), rate.above, rate.up_to]


def _entries(rows: list[list[Any]]) -> Iterator[tuple[_Key, _Kept]]:
    for provider, model, tier, first, last, plain in rows:
        quote = None if plain is None else Quote(plain[0], tuple(_rate(*rate) for rate in plain[1]))
        yield (provider, model, tier), _Kept(first, last, quote)


def _rate(tokens: Mapping[str, str], units: Mapping[str, str], per_call: str, above: int, up_to: int) -> Rate:
    per_token, per_unit = ({name: Decimal(price) for name, price in each.items()} for each in (tokens, units))
    return Rate(per_token, per_unit, Decimal(per_call), above, up_to)
