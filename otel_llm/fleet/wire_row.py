"""How a row of the store looks on its way to another: plain values that any engine and any protocol can write.

| column is                    | value                                                            |
|------------------------------|------------------------------------------------------------------|
| VARCHAR, JSON                | `str`                                                            |
| BIGINT, INTEGER, UTINYINT    | `int`                                                            |
| DOUBLE                       | `float`                                                          |
| DECIMAL                      | `str`, all its digits: `0.001234500`                             |
| BOOLEAN                      | `bool`                                                           |
| TIMESTAMPTZ                  | `str`, in UTC with microseconds: `2026-11-29T14:00:00.000000Z`   |
| VARCHAR[]                    | `list` of `str`                                                  |
| MAP(VARCHAR, …)              | `dict`                                                           |

NULL is None, in lists and maps as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from otel_llm.store.merge.rows import SPAN_TYPES, USAGE_TYPES

Row = dict[str, Any]
"""By column; every column is there."""


class Kind(Enum):
    """What a column holds. The value is its type in DuckDB."""

    TEXT = "VARCHAR"
    JSON = "JSON"
    BIG_INTEGER = "BIGINT"
    INTEGER = "INTEGER"
    SMALL_INTEGER = "UTINYINT"
    NUMBER = "DOUBLE"
    DECIMAL = "DECIMAL(18, 9)"
    BOOLEAN = "BOOLEAN"
    TIME = "TIMESTAMPTZ"
    TEXTS = "VARCHAR[]"
    TEXT_MAP = "MAP(VARCHAR, VARCHAR)"
    NUMBER_MAP = "MAP(VARCHAR, DOUBLE)"


def _kinds(types: Mapping[str, str]) -> Mapping[str, Kind]:
    return {column: Kind(kind) for column, kind in types.items()}


USAGE_COLUMNS: Final = _kinds(USAGE_TYPES)
"""The columns of `llm_usage` that travel, in their order: all but `commit_number`, which means something in its own store alone."""
SPAN_COLUMNS: Final = _kinds(SPAN_TYPES)
"""Those of `spans`."""
RETRACTED: Final = "retracted"
"""One more of a row of `llm_usage` on its way: true where the store has taken the row out, because another stands for the call.

Such a row has its identity, `started_at`, a higher `row_version` than it had before, and nothing else.
"""

_READ: Final = {
    Kind.DECIMAL: "CAST({0} AS VARCHAR)",
    Kind.JSON: "CAST({0} AS VARCHAR)",
    # DuckDB hands a time with a zone to Python as slowly as nothing else.
    Kind.TIME: "strftime(make_timestamp(epoch_us({0})), '%Y-%m-%dT%H:%M:%S.%fZ')",
}


def select_list(columns: Mapping[str, Kind]) -> str:
    """The SQL, for DuckDB, that reads columns as they travel."""
    return ", ".join(f"{_READ.get(kind, '{0}').format(name)} AS {name}" for name, kind in columns.items())
