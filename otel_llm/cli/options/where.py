"""`--where`: a condition that the user wrote in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_llm.cli.errors import CommandError, one_line

if TYPE_CHECKING:
    import duckdb


def condition(connection: duckdb.DuckDBPyConnection, text: str | None) -> str:
    """`text` as it can stand in a WHERE, `true` for None. Raises `CommandError` where it is not one condition.

    It has to be an expression by itself, so that it cannot close our brackets and go on with SQL of its own; and it gets at
    nothing but the store. What it says of columns is for the query to find out.
    """
    import duckdb

    if text is None:
        return "true"
    try:
        # On its own, and with nothing after it: a remark must not swallow what we write behind it.
        duckdb.SQLExpression(text)
        connection.execute("SET enable_external_access = false")
    except duckdb.Error as error:
        raise CommandError(f"--where {text[:80]!r} is not a condition: {one_line(error)}") from error
    return f"(\n{text}\n)"
