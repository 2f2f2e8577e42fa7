"""What `otel-llm tail` tells of the end of a chain: the sums over the model calls in it, in whatever process they were made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from otel_llm.store.paths import StorePaths

Row = dict[str, Any]
Key = tuple[str, str]
"""Trace id and span id."""
_T = TypeVar("_T")

CHAIN_ENDS: Final = ("ChainCompleted", "ChainError")
_MAX_REMEMBERED: Final = 20_000
"""Parts that run, and costs: what never ends must not fill the memory."""
_MAX_WAITING: Final = 1_000
"""Calls are priced once a chain ends, or when there are so many of them."""


class _Part:
    """The calls that have ended in a span."""

    __slots__ = ("calls", "input_tokens", "output_tokens", "parent")

    def __init__(self, parent: Key | None = None) -> None:
        self.parent = parent
        self.calls: list[Key] = []
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    @classmethod
    def of_call(cls, key: Key, row: Row) -> _Part:
        part = cls()
        part.calls, part.input_tokens, part.output_tokens = [key], row["input_tokens"], row["output_tokens"]
        return part

    def add(self, other: _Part) -> None:
        self.calls += other.calls
        self.input_tokens = _plus(self.input_tokens, other.input_tokens)
        self.output_tokens = _plus(self.output_tokens, other.output_tokens)


class ChainSums:
    """Adds up the calls of the chains whose start was seen. What was in any other before is not known here: it has no sums."""

    def __init__(self, paths: StorePaths) -> None:
        self._paths = paths
        self._running: OrderedDict[Key, _Part] = OrderedDict()
        self._held: OrderedDict[Key, _Part] = OrderedDict()
        """What is in spans whose start nobody has told: those that are not about GenAI tell of their end alone."""
        self._waiting: dict[Key, Mapping[str, Any]] = {}
        """Records of the calls that have ended and were not priced."""
        self._costs: OrderedDict[Key, Decimal] = OrderedDict()

    def add(self, heard: Sequence[tuple[Mapping[str, Any], list[Row]]]) -> None:
        """Takes records in the order of their times, each with the events that it tells of, and adds to these."""
        due: list[tuple[Row, _Part]] = []
        for record, rows in heard:
            key = (record["t"], record["s"])
            if record["k"] == "s":
                _remember(self._running, key, _Part(_parent(record)))
                continue
            part = self._running.pop(key, None)
            if (held := self._held.pop(key, None)) is not None:
                self._add_above(record, held)
            for row in rows:
                if row["event"] == "ProviderCompleted" and _parent(record) is not None:
                    self._waiting[key] = record
                    self._add_above(record, _Part.of_call(key, row))
                elif row["event"] in CHAIN_ENDS and part is not None:
                    due.append((row, part))
        if due or len(self._waiting) >= _MAX_WAITING:
            self._price()
        for row, part in due:
            known = [self._costs[call] for call in part.calls if call in self._costs]
            row |= {
                "model_calls": len(part.calls),
                "input_tokens": part.input_tokens,
                "output_tokens": part.output_tokens,
                "cost_usd": sum(known) if known else None,
            }

    def _add_above(self, record: Mapping[str, Any], part: _Part) -> None:
        """Adds what has ended to all that it is in, as far up as that is known."""
        key, seen = _parent(record), set()
        while key is not None and key not in seen:
            seen.add(key)
            above = self._running.get(key)
            if above is None:
                held = self._held.get(key) or _Part()
                held.add(part)
                _remember(self._held, key, held)
                break
            above.add(part)
            key = above.parent

    def _price(self) -> None:
        import duckdb

        from otel_llm.store.errors import StoreError
        from otel_llm.store.merge.costs import costs_of

        waiting, self._waiting = self._waiting, {}
        try:
            found = costs_of(self._paths, waiting.values())
        except (duckdb.Error, StoreError, OSError):  # no room for its files, say: then it is not known here
            return
        for key, cost in found.items():
            _remember(self._costs, key, cost)


def add_stored(connection: DuckDBPyConnection, rows: Sequence[Row]) -> None:
    """Adds what the store knows to the ends of chains."""
    ends = {(row["trace_id"], row["span_id"]): row for row in rows if row["event"] in CHAIN_ENDS}
    if not ends:
        return
    traces = sorted({trace_id for trace_id, _ in ends})
    found = connection.execute(
        """SELECT trace_id, span_id, CAST(attributes ->> '$.model_calls' AS BIGINT), input_tokens, output_tokens, cost_usd
        FROM llm_events WHERE event IN ('ChainCompleted', 'ChainError') AND trace_id IN (SELECT unnest(?))""",
        [traces],
    ).fetchall()
    for trace_id, span_id, *sums in found:
        if (row := ends.get((trace_id, span_id))) is not None:
            row |= dict(zip(("model_calls", "input_tokens", "output_tokens", "cost_usd"), sums, strict=True))


def _parent(record: Mapping[str, Any]) -> Key | None:
    parent = record.get("p")
    return (record["t"], parent) if parent else None


def _plus(one: int | None, other: int | None) -> int | None:
    return one if other is None else other + (one or 0)


def _remember(memory: OrderedDict[Key, _T], key: Key, value: _T) -> None:
    memory[key] = value
    if len(memory) > _MAX_REMEMBERED:
        memory.popitem(last=False)
