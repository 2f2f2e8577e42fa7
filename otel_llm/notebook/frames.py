"""`otel_llm.df`: rows of the account as a data frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_llm.settings import names_clickhouse, settings
from otel_llm.store import StoreError, connect

if TYPE_CHECKING:
    from otel_llm.account.engine import QueryAnswer


class _Kind(NamedTuple):
    """A kind of frame: the module that it needs, and how that makes one of a relation of DuckDB's and of columns of values."""

    needed: str
    of_relation: Callable[[Any, Any], Any]
    of_columns: Callable[[Any, dict[str, list[Any]]], Any]


# pandas alone has a way of its own. The others take rows as Arrow has them, in C: DuckDB hands those out without pyarrow.
_KINDS: Final = {
    "pandas": _Kind(
        "pandas",
        lambda _, relation: relation.df(),
        lambda pandas, columns: pandas.DataFrame({name: [*map(_as_float, values)] for name, values in columns.items()}),
    ),
    "polars": _Kind(
        "polars",
        lambda polars, relation: polars.DataFrame(relation),
        lambda polars, columns: polars.DataFrame(columns, infer_schema_length=None),
    ),
    "arrow": _Kind(
        "pyarrow",
        lambda pyarrow, relation: pyarrow.table(relation),
        lambda pyarrow, columns: pyarrow.table(columns),
    ),
}


def df(
    query: str = "select * from llm_usage order by started_at",
    *,
    to: str | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Any:
    """The rows that SQL on the account answers, as a data frame: every call that has ended by now, of whatever process.

    `to` is `pandas`, `polars` or `arrow`; without it the first of them that is installed. `store` is another place than the one
    in use: a DuckDB file, or the URL of a ClickHouse. Raises StoreNotFound and StoreError as `connect` does, and DuckDB's own
    errors for what is wrong in the SQL (StoreError where a ClickHouse is asked).
    """
    if to is not None and to not in _KINDS:
        raise ValueError(f"otel_llm.df makes no {to!r}; it makes {', '.join(_KINDS)}")
    name = to or next((name for name, kind in _KINDS.items() if find_spec(kind.needed) is not None), None)
    if name is None:
        raise ModuleNotFoundError("otel_llm.df needs pandas, polars or pyarrow: pip install pandas", name="pandas")
    kind = _KINDS[name]
    try:
        module = import_module(kind.needed)
    except ModuleNotFoundError as error:
        if error.name != kind.needed:
            raise
        raise ModuleNotFoundError(
            f"a frame of {name} needs {kind.needed}: pip install {kind.needed}", name=kind.needed
        ) from None
    place = settings().account_url if store is None else os.fspath(store)
    if place is not None and names_clickhouse(place):
        return kind.of_columns(module, _asked(place, query))
    with connect(store) as connection:
        relation = connection.sql(query)
        if relation is None:
            raise ValueError(f"{query[:80]!r} answers no rows: otel_llm.df takes a query")
        return kind.of_relation(module, relation)


def _asked(url: str, query: str) -> dict[str, list[Any]]:
    """The columns that a ClickHouse answers."""
    from otel_llm.account.engine import AccountError
    from otel_llm.account.opening import open_clickhouse
    from otel_llm.fleet.clickhouse.server_url import BadURL, ClickHouseURL

    try:
        with open_clickhouse(ClickHouseURL.parse(url)) as account:
            found = account.query(query)
            if found is None:
                raise ValueError(f"{query[:80]!r} answers no rows: otel_llm.df takes a query")
            return _columns(found)
    except (AccountError, BadURL) as error:
        raise StoreError(str(error)) from error


def _columns(found: QueryAnswer) -> dict[str, list[Any]]:
    columns: Sequence[list[Any]] = [[] for _ in found.names]
    for row in found.rows:
        for values, value, kind in zip(columns, row, found.kinds, strict=True):
            is_moment = kind == "time" and value is not None
            values.append(datetime.fromisoformat(value).astimezone(UTC) if is_moment else value)
    return dict(zip(found.names, columns, strict=True))


def _as_float(value: Any) -> Any:
    """As DuckDB makes them for pandas."""
    return float(value) if isinstance(value, Decimal) else value
