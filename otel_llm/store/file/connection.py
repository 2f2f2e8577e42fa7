"""A DuckDB connection that is brought up to now before each statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as _DuckDB
else:
    _DuckDB = object  # it takes no subclasses


class View(Protocol):
    """What a connection shows."""

    def refresh(self, plain: _DuckDB) -> None:
        """Has `plain` show what has ended by now, if it is not in the middle of a transaction."""

    def for_another(self) -> View:
        """The view of another connection to the same."""


_STATEMENTS: Final = frozenset(
    ("execute", "executemany", "sql", "query", "from_query", "table", "view", "table_function", "get_table_names")
)
"""What reads the tables."""
_CURSORS: Final = frozenset(("cursor", "duplicate"))


class StoreConnection(_DuckDB):  # type: ignore[misc]  # where DuckDB's types are not followed
    """A read-only DuckDB connection to the account, with everything that one has.

    Each statement sees every call that has ended by then; those between `begin()` and `commit()` all see one moment. A relation
    that was made earlier sees what the last statement saw, or `refresh()`. Temporary tables, settings and data frames stay.

    DuckDB's own functions take a plain connection only: `duckdb.sql(query, connection=store.plain)`. It sees what `store` saw last.
    """

    def __init__(self, plain: _DuckDB, view: View, *, follows: bool = True) -> None:
        """`follows`: each statement brings it up to now; else it stays at the moment of `view`."""
        self.plain = plain
        self._view = view
        self._follows = follows

    def refresh(self) -> StoreConnection:
        """Has relations that are there already see every call that has ended by now. Raises StoreError."""
        self._view.refresh(self.plain)
        return self

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.plain, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._follows and name in _STATEMENTS:
                self.refresh()
            result = value(*args, **kwargs)
            if name in _CURSORS:
                return StoreConnection(result, self._view.for_another(), follows=self._follows).refresh()
            return self if result is self.plain else result

        call.__name__, call.__doc__ = name, value.__doc__
        return call

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> type:
            """For `isinstance`: whoever asks whether this is a connection of DuckDB's means what it can do."""
            return type(self.plain)

    def __enter__(self) -> StoreConnection:
        return self

    def __exit__(self, *raised: object) -> None:
        self.plain.close()

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self.plain)})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.plain!r}>"
