"""The account in a DuckDB store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_llm.account.engine import AccountError, BadCondition, ColumnKind, FileFormat, QueryAnswer, Row, Values
from otel_llm.account.formulas import FORMULA, PLAIN_NUMBER
from otel_llm.account.in_duckdb.local_time import local
from otel_llm.account.spoken_words import in_ascii_json, in_json, pattern, without_surrogates
from otel_llm.account.sql_words import without_end

if TYPE_CHECKING:
    import duckdb

_SAID: Final = ("input_messages", "output_messages")
_SOME_ROWS: Final = 1_000
_ZONE: Final = "TIME ZONE"
_KINDS: Final = {"JSON": ColumnKind.json, "TIMESTAMP WITH TIME ZONE": ColumnKind.time}
_OPTIONS: Final = {
    FileFormat.parquet: "FORMAT parquet, COMPRESSION zstd",
    FileFormat.csv: "FORMAT csv, HEADER",
    FileFormat.json: "FORMAT json, ARRAY true",
    FileFormat.jsonl: "FORMAT json",
}


class DuckDBEngine:
    """Asks a connection that sees every call that has ended."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, store: Path) -> None:
        self.connection = connection
        self.store = store
        self.place = str(store)

    def ask(self, sql: str, values: Mapping[str, str] | None = None) -> list[Row]:
        found: list[Row] = self.connection.execute(sql, dict(values) if values else None).fetchall()
        return found

    def run(self, sql: str, most: int | None = None) -> QueryAnswer | None:
        statements = self.connection.extract_statements(sql)
        if not statements:
            raise AccountError("the SQL is empty; for example: otel-llm sql 'from llm_usage limit 5'")
        result = self.connection.sql(sql)
        if result is None:  # a statement without an answer, such as SET; some versions of DuckDB say so
            return None
        names, types = result.columns, [str(kind) for kind in result.types]
        result = _without_zones(result, types)
        rows = self._stream(result, statements[-1]) if most is None else result.limit(most).fetchall()
        return QueryAnswer(names, [_KINDS.get(kind, ColumnKind.other) for kind in types], rows)

    def statements(self, sql: str) -> list[str]:
        return [without_end(statement.query) for statement in self.connection.extract_statements(sql)]

    def _stream(self, result: duckdb.DuckDBPyRelation, statement: duckdb.Statement) -> Iterator[Sequence[Any]]:
        """The rows, some at a time: they may be more than fit in memory. (A relation hands out all of them, or the first.)"""
        import duckdb

        if statement.type != duckdb.StatementType.SELECT:  # EXPLAIN, PRAGMA, COPY: run already, and a few rows at most
            yield from result.fetchall()
            return
        cursor = self.connection.execute(result.sql_query())
        while rows := cursor.fetchmany(_SOME_ROWS):
            yield from rows

    def condition(self, text: str) -> str:
        """It has to be an expression by itself, so that it cannot close our brackets and go on with SQL of its own; and it gets
        at nothing but the store. What it says of columns is for the query to find out."""
        import duckdb

        try:
            # On its own, and with nothing after it: a remark must not swallow what we write behind it.
            duckdb.SQLExpression(text)
            self.connection.execute("SET enable_external_access = false")
        except duckdb.Error as error:
            raise BadCondition(f"{text[:80]!r} is not a condition: {error}") from error
        return f"(\n{text}\n)"

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
        from otel_llm.store.file import database

        ((rows,),) = self.ask(
            f"COPY (SELECT {self._columns(table, kind, raw=raw, zones=zones)} FROM {table} WHERE {where}) "
            f"TO {database.literal(file)} ({_OPTIONS[kind]}, USE_TMP_FILE false)",
            values,
        )
        return int(rows)

    def _columns(self, table: str, kind: FileFormat, *, raw: bool, zones: bool) -> str:
        """The columns as they are written: CSV has no lists and maps, and its texts must not be formulas unless they are `raw`."""
        if kind is not FileFormat.csv:
            return "*"
        columns = self.ask(f"SELECT column_name, column_type FROM (DESCRIBE {table})")
        changed = {
            name: f"to_json({name})"
            for name, type_ in columns
            if type_.endswith("[]") or type_.startswith(("MAP", "STRUCT"))
        }
        for name, type_ in columns:
            if type_ == "TIMESTAMP WITH TIME ZONE" and not zones:
                changed[name] = f"{name}::TIMESTAMP"
            if type_ == "VARCHAR" and not raw:
                formula = f"regexp_matches({name}, '{FORMULA}') AND NOT regexp_matches({name}, '{PLAIN_NUMBER}')"
                changed[name] = f"CASE WHEN {formula} THEN chr(39) || {name} ELSE {name} END"
        return f"* REPLACE ({', '.join(f'{value} AS {name}' for name, value in changed.items())})" if changed else "*"

    def names(self) -> list[str]:
        found = self.ask(
            "SELECT table_name FROM information_schema.tables UNION SELECT column_name FROM information_schema.columns"
        )
        return [name for (name,) in found]

    def value(self, name: str) -> str:
        return f"${name}"

    def moment(self, name: str) -> str:
        return f"${name}::TIMESTAMPTZ"  # as text: DuckDB takes a datetime with a zone only where pytz is installed

    def moment_text(self, column: str) -> str:
        return f"{column}::VARCHAR"

    def local(self, column: str, unit: str) -> str:
        return f"date_trunc('{unit}', {local(self.ask, column, 'llm_usage')})"

    def written(self, local: str, format: str) -> str:
        return f"strftime({local}, '{format}')"

    def tag(self, key: str) -> str:
        return f"tags[${key}]"

    def attribute(self, column: str, name: str) -> str:
        return f"""({column} ->> '$."{name}"')"""

    def microseconds(self, column: str) -> str:
        return f"epoch_us({column})"

    def slot(self, column: str, seconds: int) -> str:
        return f"epoch_us({column}) // {seconds * 10**6}"

    def quantile(self, column: str, share: float) -> str:
        return f"quantile_cont({column}, {share})"

    def tag_keys(self) -> str:
        return "unnest(map_keys(tags))"

    def glob(self, columns: Sequence[str], pattern: str, values: Values) -> str:
        name = values.add(pattern)
        return f"({' OR '.join(f'{column} GLOB ${name}' for column in columns)})"

    def said(self, word: str, values: Values) -> str:
        # Each text by itself: to join or to change them takes longer than to look. Of words in ASCII RE2 finds all cases at once.
        either = []
        for columns, text in ((_SAID, in_json(word)), (("error_message",), without_surrogates(word))):
            found = "regexp_matches({}, ${})" if word.isascii() else "contains(lower({}), lower(${}))"
            name = values.add(pattern(text) if word.isascii() else text)
            either += [found.format(column, name) for column in columns]
        for form in map(values.add, in_ascii_json(word)):
            either += [f"(contains({column}, '\\u') AND contains(lower({column}), ${form}))" for column in _SAID]
        return f"({' OR '.join(either)})"


def _without_zones(result: duckdb.DuckDBPyRelation, types: Sequence[str]) -> duckdb.DuckDBPyRelation:
    """The same rows with times as text in local time: DuckDB makes a datetime with a zone only where pytz is installed."""
    if not any(_ZONE in kind for kind in types):
        return result
    return result.project(
        ", ".join(
            f"#{position}::VARCHAR" if _ZONE in kind else f"#{position}" for position, kind in enumerate(types, 1)
        )
    )


def nothing_recorded() -> duckdb.DuckDBPyConnection:
    """The tables of a store, all empty, in memory: a query can be tried before there is anything to ask about."""
    import duckdb

    from otel_llm.store.file import database

    connection = duckdb.connect(config={"python_enable_replacements": False})
    database.migrate(connection)
    return connection
