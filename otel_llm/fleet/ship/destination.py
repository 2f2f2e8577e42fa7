"""What rows are sent to. `otlp` and `clickhouse` are destinations; `shipper` hands them blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from otel_llm.fleet.wire_row import Row

Source = Literal["llm_usage", "spans"]
"""The table of the store that rows are from."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one table, in the order in which they were committed."""

    source: Source
    rows: list[Row]
    """As `wire_row` has them: with the columns of `USAGE_COLUMNS` and `retracted`, or with those of `SPAN_COLUMNS`."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a block that has arrived."""

    refused: int = 0
    """Rows of it that the destination said it will never take. It took the others."""
    reason: str | None = None
    """What it said of them."""


class NotNow(Exception):
    """The destination cannot be reached, is too busy, or does not let us in: the block is sent again later, for ever. One line."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """The seconds that it asked to wait."""


class Never(Exception):
    """The destination says that it will not take this block, whenever it comes: it is malformed or too large. One line.

    The shipper sends its halves then, down to single rows, and so finds those that are to blame.
    """


class Destination(Protocol):
    """One place that rows are sent to. Used by one thread at a time."""

    timeout: float
    """Seconds that a request may take. At the end of a process the shipper lowers it to what is left."""

    @property
    def name(self) -> str:
        """By which the store remembers how far it has got: the URL, without what may be secret in it."""

    @property
    def most_rows(self) -> int:
        """Rows of a block at most."""

    @property
    def most_bytes(self) -> int:
        """About how many bytes of text a block has at most, unless it is one row."""

    def send(self, block: Block) -> Receipt:
        """Returns when all of it has arrived for good. What was sent before may come again, in other blocks.

        Raises NotNow or Never; some of it may have arrived then.
        """

    def close(self) -> None:
        """Lets go of connections; the next `send` opens others."""
