"""ClickHouse as a destination: typed rows into the account's tables, over HTTP(S), with the right to insert and no other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from otel_llm.fleet.clickhouse.http_client import TABLES_REMEDY, ClickHouseClient, ClickHouseError
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.fleet.ship.destination import Block, Never, NotNow, Receipt
from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS, Row

_COLUMNS: Final = {"llm_usage": (*USAGE_COLUMNS, RETRACTED), "spans": (*SPAN_COLUMNS,)}
_SETTINGS: Final = {
    "date_time_input_format": "best_effort",  # for the `Z` at the end
    "distributed_foreground_insert": 1,  # in a cluster, what is answered is with its shard
    "input_format_null_as_default": 1,  # lists and mappings, which cannot be NULL there, are empty
}
_NO_SUCH_COLUMN: Final = 16
_TOO_MANY: Final = 252
_MALFORMED: Final = frozenset((6, 26, 27, 38, 41, 53, 69, 72, 117, 131, 407, 467))
"""ClickHouse's numbers for data that it cannot read: it will not be able to when it comes again."""
_TOO_LARGE: Final = 413
_SECONDS: Final = 60.0


class ClickHouseDestination:
    """A row may come several times: the one with the highest `row_version` counts there."""

    most_rows: Final = 50_000
    most_bytes: Final = 32 * 2**20

    def __init__(self, url: ClickHouseURL) -> None:
        self._client = ClickHouseClient(url)
        self.timeout = _SECONDS

    @property
    def name(self) -> str:
        return str(self._client.url)

    def send(self, block: Block) -> Receipt:
        self._insert(block.source, _COLUMNS[block.source], map(_sent, block.rows))
        return Receipt()

    def show_running(self, calls: Sequence[Mapping[str, Any]]) -> None:
        """Calls that run, for `otel-llm ps`: each as of now."""
        self._insert("llm_running", [*calls[0]], calls)

    def _insert(self, table: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        data = b"\n".join(map(orjson.dumps, rows))
        self._client.answer_seconds = self.timeout
        sql = f"INSERT INTO {table} ({', '.join(columns)}) FORMAT JSONEachRow"
        try:
            self._client.execute(sql, data, settings=_SETTINGS)
        except ClickHouseError as error:
            raise _verdict(error) from error

    def close(self) -> None:
        self._client.close()


def _sent(row: Row) -> dict[str, Any]:
    """What is said of a row: of most columns nothing, and then they are NULL, which takes a fifth less than to say so."""
    said = {name: value for name, value in row.items() if value is not None}
    if RETRACTED in said:
        said[RETRACTED] = int(said[RETRACTED])
    return said


def _verdict(error: ClickHouseError) -> NotNow | Never:
    # "Too many partitions for a single block" is of this block; "too many parts", with the same number, is the server's hour.
    too_wide = error.code == _TOO_MANY and "partitions" in str(error)
    if error.code in _MALFORMED or error.status == _TOO_LARGE or too_wide:
        return Never(str(error))
    if error.code == _NO_SUCH_COLUMN:
        return NotNow(f"{error}; {TABLES_REMEDY}", error.retry_after)
    return NotNow(str(error), error.retry_after)
