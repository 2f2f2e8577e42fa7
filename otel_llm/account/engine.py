"""An engine that holds the account: how it is asked, and the words of its SQL that differ from one to another.

The questions (`questions.py`) are written once, in the SQL that DuckDB and ClickHouse share. What they say differently is a method
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Row: TypeAlias = tuple[Any, ...]
"""What an engine answers, as Python has it: numbers, Decimals, text, lists, dictionaries; None where it is not known. A moment is
text in local time, as DuckDB writes it: `2026-11-20 12:00:00.25+01` (`iso` makes ISO 8601 of it)."""


class AccountError(Exception):
    """The account cannot be asked, or not that; its text says why."""


class BadCondition(AccountError):
    """What a user wrote is not a condition."""


class ColumnKind(StrEnum):
    """What is in a column, as far as whoever shows it wants to know."""

    time = "time"
    json = "json"
    """Text that is a JSON document, as far as its name says."""
    other = "other"
    """What its Python value says."""


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """Rows with the names and kinds of their columns. There may be more rows than fit in memory: they are read once."""

    names: Sequence[str]
    kinds: Sequence[ColumnKind]
    rows: Iterable[Sequence[Any]]


class FileFormat(StrEnum):
    """The files that an engine writes."""

    parquet = "parquet"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"


class Values(dict[str, str]):
    """What a statement is given beside its SQL: nothing that a user types becomes SQL, but for his own SQL."""

    def add(self, text: str) -> str:
        """The name by which the statement refers to it."""
        name = f"v{len(self)}"
        self[name] = text
        return name


class Engine(Protocol):
    """Raises `AccountError`, or DuckDB's own errors."""

    @property
    def place(self) -> str:
        """Where the account is, for messages."""

    @property
    def store(self) -> Path | None:
        """The DuckDB store that it is in, if it is in one."""

    # --- asking ---------------------------------------------------------------------------------------------------------
    def ask(self, sql: str, values: Mapping[str, str] | None = None) -> list[Row]:
        """The rows that one of our own statements answers."""

    def run(self, sql: str, most: int | None = None) -> QueryAnswer | None:
        """The rows, at `most` so many, that the user's SQL answers; None where it answers none. It changes nothing."""

    def statements(self, sql: str) -> list[str]:
        """The statements in the user's SQL, in their order, as far as the engine takes more than one."""

    def condition(self, text: str) -> str:
        """The condition that a user wrote, as it can stand in a WHERE. Raises `BadCondition` where it is not one."""

    def export(
        self,
        table: str,
        where: str,
        values: Mapping[str, str],
        file: Path,
        kind: FileFormat,
        *,
        raw: bool,
        zones: bool = True,
    ) -> int:
        """Writes rows to a file that is there already, and empty; returns how many. Without `raw`, no text in CSV is a formula;
        without `zones`, times in CSV are local ones that do not say so."""

    def names(self) -> list[str]:
        """Every table, view and column."""

    # --- words ----------------------------------------------------------------------------------------------------------
    def value(self, name: str) -> str:
        """How a statement refers to one of its values, which is text."""

    def moment(self, name: str) -> str:
        """The same for a value that is a moment, in ISO 8601."""

    def moment_text(self, column: str) -> str:
        """A column of moments as they are to be answered."""

    def local(self, column: str, unit: str) -> str:
        """When in local time the `day` or the `hour` of a moment began, for a column of `llm_usage`: to group by."""

    def written(self, local: str, format: str) -> str:
        """What `local` has answered, written by `format` (`%Y-%m-%d`, …)."""

    def tag(self, key: str) -> str:
        """The tag of a call; NULL where it has none. `key` is the name of a value."""

    def attribute(self, column: str, name: str) -> str:
        """An attribute in a column of spans as text; NULL where there is none."""

    def microseconds(self, column: str) -> str:
        """A column of moments as microseconds since 1970."""

    def slot(self, column: str, seconds: int) -> str:
        """The number of the stretch of so many seconds, counted from 1970, that a moment lies in."""

    def quantile(self, column: str, share: float) -> str:
        """What so large a share of the numbers does not exceed, interpolated; NULL where there are none."""

    def tag_keys(self) -> str:
        """A row for each key of the tags of a row."""

    def glob(self, columns: Sequence[str], pattern: str, values: Values) -> str:
        """Whether one of the columns matches a pattern with `*` and `?`."""

    def said(self, word: str, values: Values) -> str:
        """Whether a word stands in the messages or the error of a call, in whatever case, as it is."""


def iso(moment: str) -> str:
    """A moment that an engine has answered, as ISO 8601."""
    try:
        return datetime.fromisoformat(moment).isoformat()
    except ValueError:  # such as infinity
        return moment
