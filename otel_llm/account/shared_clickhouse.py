"""The account in a ClickHouse for a program that asks for a long time, from many threads."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Final, Self

import orjson

from otel_llm.account.clickhouse_engine import ClickHouseEngine
from otel_llm.account.engine import AccountError, QueryAnswer, Row
from otel_llm.account.in_duckdb.fence import Fenced, FenceError, Limits
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL

_LOOK_SECONDS: Final = 2.0
"""How often the server is asked whether calls have arrived, while somebody watches."""


class SharedClickHouseEngine(ClickHouseEngine):
    """Asks a server, each thread over a connection of its own."""

    def __init__(self, url: ClickHouseURL) -> None:
        self.url = url
        self.place = str(url)
        self._conditions = set()
        self._of_thread = threading.local()
        self._clients: list[ClickHouseClient] = []

    @property
    def client(self) -> ClickHouseClient:  # type: ignore[override]
        found: ClickHouseClient | None = getattr(self._of_thread, "client", None)
        if found is None:
            found = self._of_thread.client = ClickHouseClient(self.url)
            self._clients.append(found)
        return found

    def run_fenced(self, sql: str, *, seconds: float, rows: int, memory_mb: int) -> QueryAnswer | None:
        """What SQL of the user's answers, within limits that the server keeps. What it may read is what its user may."""
        limits: dict[str, Any] = {
            "max_execution_time": seconds,
            "max_memory_usage": memory_mb * 2**20,
            "max_result_rows": rows + 1,
            "result_overflow_mode": "break",
        }
        return self.run(sql, rows + 1, settings=limits)

    def close(self) -> None:
        """Closes all connections."""
        for client in self._clients:
            client.close()


class ClickHouseFence:
    """Runs SQL of somebody else's on a server, as `Fence` does on a store; what it may read is what the user of the URL may."""

    def __init__(self, engine: SharedClickHouseEngine, limits: Limits | None = None) -> None:
        self._engine = engine
        self.limits = limits or Limits()

    def warm_up(self) -> None:
        """Nothing: the server is there."""

    def run(self, sql: str) -> Fenced:
        """What it answers. Raises `FenceError`."""
        limits = self.limits
        try:
            answer = self._engine.run_fenced(sql, seconds=limits.seconds, rows=limits.rows, memory_mb=limits.memory_mb)
            rows: list[Row] = []
            size, cut = 0, False
            for row in () if answer is None else answer.rows:
                size += len(orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS))
                if len(rows) >= limits.rows or size > limits.bytes:
                    cut = True
                    break
                rows.append(tuple(row))
        except AccountError as error:
            raise FenceError(" ".join(str(error).split())) from error
        return Fenced([] if answer is None else [*answer.names], rows, cut)

    def close(self) -> None:
        """Nothing: the engine is closed by whoever has it."""


class ArrivalFollower:
    """Knows whether calls have arrived in a ClickHouse since it was asked last."""

    def __init__(self, engine: SharedClickHouseEngine) -> None:
        self._engine = engine
        self._seen: Any = None
        self._looked = 0.0

    def __enter__(self) -> Self:
        self._seen = self._state()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def poll(self) -> list[dict[str, Any]]:
        """One empty record where something is new."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return []
        state = self._state()
        is_new, self._seen = state is not None and state != self._seen, state
        return [{}] if is_new else []

    def _state(self) -> Any:
        self._looked = time.monotonic()
        try:
            return self._engine.ask(
                "SELECT count(*), max(started_at), sum(row_version) FROM llm_usage WHERE started_at >= now() - INTERVAL 1 HOUR"
            )
        except AccountError:  # it is asked again; who looks at a page is told there
            return None
