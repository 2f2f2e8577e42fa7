"""The account in a ClickHouse: the tables of `collector-config/clickhouse`, which many machines send their calls to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from otel_llm.account.engine import AccountError, BadCondition, ColumnKind, FileFormat, QueryAnswer, Row, Values
from otel_llm.account.formulas import FORMULA, PLAIN_NUMBER
from otel_llm.account.spoken_words import in_ascii_json, in_json, without_surrogates
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient, ClickHouseError
from otel_llm.fleet.wire_row import SPAN_COLUMNS, USAGE_COLUMNS, Kind

_READ: Final[Mapping[str, Any]] = {
    "readonly": 2,  # nothing is written; settings may be given
    "final": 1,  # of the rows of one call the newest counts, whatever the query says
    "join_use_nulls": 1,
    "distributed_product_mode": "global",  # tables of a cluster may be joined
    "date_time_output_format": "iso",
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_quote_decimals": 1,  # all digits
    "output_format_json_quote_denormals": 1,
    "output_format_decimal_trailing_zeros": 1,  # as DuckDB has them
    "output_format_json_escape_forward_slashes": 0,
    "cancel_http_readonly_queries_on_client_close": 1,
}
_WHOLE: Final[Mapping[str, Any]] = {**_READ, "wait_end_of_query": 1}
"""For answers of a few rows: an error is told before the first of them."""
RUNNING: Final = (
    "host",
    "pid",
    "started_at",
    "seconds",
    "name",
    "operation",
    "model",
    "user",
    "module",
    "trace_id",
    "span_id",
)
"""The columns of what runs."""
_LATELY_SECONDS: Final = 25
"""What has not been told of for longer has ended, or its machine has: they tell every 10 seconds."""
_TABLES: Final = ("llm_usage", "spans", "llm_conversations", "llm_daily")
_FORMATS: Final[Mapping[FileFormat, tuple[str, Mapping[str, Any]]]] = {
    FileFormat.parquet: ("Parquet", {"output_format_parquet_compression_method": "zstd"}),
    FileFormat.csv: ("CSVWithNames", {"format_csv_null_representation": ""}),
    FileFormat.json: ("JSONEachRow", {"output_format_json_array_of_rows": 1, "output_format_json_quote_decimals": 0}),
    FileFormat.jsonl: ("JSONEachRow", {"output_format_json_quote_decimals": 0}),
}
_COUNT: Final = {
    FileFormat.parquet: "SELECT count(*) FROM read_parquet(?)",
    FileFormat.csv: "SELECT count(*) FROM read_csv(?, header = true, all_varchar = true)",
    FileFormat.json: "SELECT count(*) FROM read_json_objects(?, format = 'array')",
    FileFormat.jsonl: "SELECT count(*) FROM read_json_objects(?, format = 'newline_delimited')",
}
_JSON: Final = frozenset(name for name, kind in {**USAGE_COLUMNS, **SPAN_COLUMNS}.items() if kind is Kind.JSON)
"""The columns of the account that are JSON, which are text there."""
_NOTHING: Final = re.compile(r"(\s|;|--[^\n]*(\n|$)|/\*.*?\*/)*", re.DOTALL)
_WRAPPER: Final = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)")


class ClickHouseEngine:
    """Asks a server. What is grouped is grouped there: only what is shown crosses the wire."""

    store = None

    def __init__(self, client: ClickHouseClient) -> None:
        self.client = client
        self.place = str(client.url)
        self._conditions: set[str] = set()

    def ask(self, sql: str, values: Mapping[str, str] | None = None) -> list[Row]:
        _, types, *rows = self._told(self.client.rows(sql, values=values, settings=_WHOLE))
        # A list or a mapping cannot be NULL there.
        of_many = [kind.startswith(("Array(", "Map(")) for kind in types]
        return [
            tuple(value or None if many else value for value, many in zip(row, of_many, strict=True))
            for row in _python(types, rows)
        ]

    def stream(self, sql: str, values: Mapping[str, str]) -> Iterator[list[Any]]:
        """The rows of one of our own statements, as JSON has them: there may be more than fit in memory."""
        return itertools.islice(self._told(self.client.rows(sql, values=values, settings=_READ)), 2, None)

    def run(
        self, sql: str, most: int | None = None, *, settings: Mapping[str, Any] | None = None
    ) -> QueryAnswer | None:
        if _NOTHING.fullmatch(sql):
            raise AccountError("the SQL is empty; for example: otel-llm sql 'select * from llm_usage limit 5'")
        found = self._told(self.client.rows(sql, settings={**_READ, **(settings or {})}))
        names, types = next(found, None), next(found, None)
        if names is None or types is None:  # a statement without an answer
            return None
        kinds = [_kind(name, _plain(type_)) for name, type_ in zip(names, types, strict=True)]
        return QueryAnswer(names, kinds, itertools.islice(_python(types, found), most))

    def statements(self, sql: str) -> list[str]:
        return [sql]

    def _told(self, found: Iterator[list[Any]]) -> Iterator[list[Any]]:
        try:
            yield from found
        except ClickHouseError as error:
            raise AccountError(str(error)) from error

    def condition(self, text: str) -> str:
        """It has to be a condition by itself and between brackets, so that it cannot close ours and go on with SQL of its own."""
        if text not in self._conditions:
            try:
                for sql in (f"SELECT 1 WHERE\n{text}\n", f"SELECT (\n{text}\n)"):
                    self.client.execute(f"EXPLAIN AST {sql}", settings=_READ)
            except ClickHouseError as error:
                if error.code is None:
                    raise AccountError(str(error)) from error
                raise BadCondition(f"{text[:80]!r} is not a condition: {error}") from error
            self._conditions.add(text)
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
        if table not in _TABLES:
            raise AccountError(f"{table} is in a DuckDB store alone; a ClickHouse has {', '.join(_TABLES)}")
        form, settings = _FORMATS[kind]
        bound = Values(values)
        columns = self._columns(table, kind, bound, raw=raw, zones=zones)
        sql = f"SELECT {columns} FROM {table} WHERE {where}"
        try:
            # Waiting for the end: an error in the middle of a file would be part of it.
            blocks = self.client.send(sql, form=form, values=bound, settings={**_WHOLE, **settings})
            with file.open("r+b") as output:
                output.writelines(blocks)
        except ClickHouseError as error:
            raise AccountError(str(error)) from error
        return _rows_of(file, kind)

    def _columns(self, table: str, kind: FileFormat, values: Values, *, raw: bool, zones: bool) -> str:
        """The columns as they are written: CSV has no lists and maps, and its texts must not be formulas unless they are `raw`."""
        names, types = self._told(self.client.rows(f"SELECT * FROM {table} LIMIT 0", settings=_WHOLE))
        guarded = kind is FileFormat.csv and not raw
        if guarded:
            formula, number = (self.value(values.add(pattern)) for pattern in (FORMULA, PLAIN_NUMBER))
        written = []
        for name, type_ in zip(names, types, strict=True):
            if name == "retracted":  # such rows are not there
                continue
            if kind is FileFormat.csv and type_.startswith(("Array(", "Map(")):
                written.append(f"if(empty({name}), NULL, toJSONString({name})) AS {name}")
            elif kind is FileFormat.csv and not zones and _plain(type_).startswith("DateTime"):
                written.append(f"toString({table}.{name}, '{self._zone}') AS {name}")
            elif guarded and _plain(type_) == "String":
                calculated = f"match({table}.{name}, {formula}) AND NOT match({table}.{name}, {number})"
                written.append(f"if({calculated}, concat('\\'', {table}.{name}), {table}.{name}) AS {name}")
            else:
                written.append(name)
        return ", ".join(written)

    def names(self) -> list[str]:
        found = self.ask(
            "SELECT name FROM system.tables WHERE database = currentDatabase() "
            "UNION DISTINCT SELECT name FROM system.columns WHERE database = currentDatabase()"
        )
        return [name for (name,) in found]

    def running(self) -> list[Row]:
        """What runs, with the columns `RUNNING`, the oldest first: what was told lately, without the calls that have ended."""
        lately = f"seen_at > now64(3) - INTERVAL {_LATELY_SECONDS} SECOND"
        return self.ask(
            f"""SELECT host, pid, started_at, round(seconds + dateDiff('millisecond', seen_at, now64(3)) / 1000, 1), name,
                operation, model, user_id, module, trace_id, span_id
            FROM llm_running WHERE {lately} AND (trace_id, span_id) NOT IN (
                SELECT trace_id, span_id FROM llm_usage WHERE trace_id IN (SELECT trace_id FROM llm_running WHERE {lately}))
            ORDER BY seconds DESC, span_id"""
        )

    def version(self) -> str:
        """The server's."""
        return str(self.ask("SELECT version()")[0][0])

    def columns(self, table: str) -> list[str]:
        """Of one of its tables; none where there is no such."""
        return [
            name
            for (name,) in self.ask(
                "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = {table:String} ORDER BY position",
                {"table": table},
            )
        ]

    def value(self, name: str) -> str:
        return f"{{{name}:String}}"

    def moment(self, name: str) -> str:
        return f"parseDateTime64BestEffort({{{name}:String}}, 6, 'UTC')"

    def moment_text(self, column: str) -> str:
        return column  # moments come as text anyhow

    def local(self, column: str, unit: str) -> str:
        return f"toStartOf{unit.capitalize()}({column}, '{self._zone}')"

    def written(self, local: str, format: str) -> str:
        return f"formatDateTime({local}, '{format}', '{self._zone}')"

    def tag(self, key: str) -> str:
        return f"tags[{{{key}:String}}]"  # NULL where there is none, as values may be NULL

    def attribute(self, column: str, name: str) -> str:
        return f"JSONExtract({column}, '{name}', 'Nullable(String)')"

    def microseconds(self, column: str) -> str:
        return f"toUnixTimestamp64Micro({column})"

    def slot(self, column: str, seconds: int) -> str:
        return f"intDiv(toUnixTimestamp64Micro({column}), {seconds * 10**6})"

    def quantile(self, column: str, share: float) -> str:
        return f"quantileExactInclusive({share})({column})"

    def tag_keys(self) -> str:
        return "arrayJoin(mapKeys(tags))"

    def glob(self, columns: Sequence[str], pattern: str, values: Values) -> str:
        name = values.add(_expression(pattern))
        return f"({' OR '.join(f'match({column}, {{{name}:String}})' for column in columns)})"

    def said(self, word: str, values: Values) -> str:
        messages = ("input_messages", "output_messages")
        forms = [(messages, in_json(word)), (("error_message",), without_surrogates(word))]
        forms += [(messages, form) for form in in_ascii_json(word)]
        either = []
        for columns, form in forms:
            name = values.add(form)
            either += [
                f"positionCaseInsensitiveUTF8(ifNull({column}, ''), {{{name}:String}}) > 0" for column in columns
            ]
        return f"({' OR '.join(either)})"

    @cached_property
    def _zone(self) -> str:
        """Local time by its name, as DuckDB has it: days are the same in both engines."""
        import duckdb

        with duckdb.connect() as connection:
            zone: str = connection.execute("SELECT current_setting('TimeZone')").fetchall()[0][0]
        return zone


def _rows_of(file: Path, kind: FileFormat) -> int:
    import duckdb

    if not file.stat().st_size:  # JSON lines of no rows
        return 0
    with duckdb.connect() as connection:
        return int(connection.execute(_COUNT[kind], [str(file)]).fetchall()[0][0])


def _plain(type_: str) -> str:
    """The type without what says how it is kept."""
    while found := _WRAPPER.fullmatch(type_):
        type_ = found[1]
    return type_


def _kind(name: str, type_: str) -> ColumnKind:
    if type_.startswith("DateTime"):
        return ColumnKind.time
    return ColumnKind.json if name in _JSON and type_ == "String" else ColumnKind.other


def _python(types: Sequence[str], rows: Iterator[list[Any]] | Sequence[list[Any]]) -> Iterator[Row]:
    """Rows of JSON with the values that Python has for their types."""
    readers = [
        (position, reader) for position, type_ in enumerate(types) if (reader := _reader(_plain(type_))) is not None
    ]
    for row in rows:
        for position, reader in readers:
            if (value := row[position]) is not None:
                row[position] = reader(value)
        yield tuple(row)


def _reader(type_: str) -> Callable[[Any], Any] | None:
    if type_.startswith("Decimal"):
        return Decimal
    if type_.startswith("DateTime"):
        return _local_text
    if type_.startswith("Float"):
        return float  # `nan` and `inf` come as text
    return None


def _local_text(moment: str) -> str:
    """A moment in ISO 8601 as DuckDB writes it: in local time, without noughts at the end."""
    local = datetime.fromisoformat(moment).astimezone()
    fraction = f".{local.microsecond:06}".rstrip("0").rstrip(".")
    offset = f"{local:%z}"
    offset = f"{offset[:3]}:{offset[3:]}" if offset[3:] != "00" else offset[:3]
    return f"{local:%Y-%m-%d %H:%M:%S}{fraction}{offset}"


def _expression(pattern: str) -> str:
    """The regular expression (RE2's) that matches what `pattern` does."""
    parts = {"*": ".*", "?": "."}
    return f"(?s)^{''.join(parts.get(letter) or re.escape(letter) for letter in pattern)}$"
