"""`otel_llm.df`: rows of the account as a data frame."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from otel_llm.store import connect

# pandas alone has a way of its own. The others take rows as Arrow has them, in C: DuckDB hands those out without pyarrow.
_MADE: Final[dict[str, tuple[str, Callable[[Any, Any], Any]]]] = {
    "pandas": ("pandas", lambda relation, _: relation.df()),
    "polars": ("polars", lambda relation, polars: polars.DataFrame(relation)),
    "arrow": ("pyarrow", lambda relation, pyarrow: pyarrow.table(relation)),
}
"""What a frame can be: the module that it needs, and how it is made."""


def df(
    query: str = "from llm_usage order by started_at",
    *,
    to: str | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Any:
    """The rows that SQL on the account answers, as a data frame: every call that has ended by now, of whatever process.

    `to` is `pandas`, `polars` or `arrow`; without it the first of them that is installed. `store` is another DuckDB store than
    the one in use. Raises StoreNotFound and StoreError as `connect` does, DuckDB's own errors for what is wrong in the SQL.
    """
    if to is not None and to not in _MADE:
        raise ValueError(f"otel_llm.df makes no {to!r}; it makes {', '.join(_MADE)}")
    kind = to or next((name for name, (module, _) in _MADE.items() if find_spec(module) is not None), None)
    if kind is None:
        raise ModuleNotFoundError("otel_llm.df needs pandas, polars or pyarrow: pip install pandas", name="pandas")
    needed, make = _MADE[kind]
    try:
        module = import_module(needed)
    except ModuleNotFoundError as error:
        if error.name != needed:
            raise
        raise ModuleNotFoundError(f"a frame of {kind} needs {needed}: pip install {needed}", name=needed) from None
    with connect(store) as connection:
        relation = connection.sql(query)
        if relation is None:
            raise ValueError(f"{query[:80]!r} answers no rows: otel_llm.df takes a query")
        return make(relation, module)
