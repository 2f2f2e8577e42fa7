"""What the browser page stands on: a DuckDB store, or a ClickHouse."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, PlainTextResponse, Response

from otel_llm.account.engine import AccountError, Engine, FileFormat, Values
from otel_llm.account.in_duckdb.fence import Fence, FenceError
from otel_llm.account.in_duckdb.shared import SharedDuckDBEngine
from otel_llm.budgets import rules
from otel_llm.budgets.alerts import crossings
from otel_llm.budgets.rules import Rules
from otel_llm.cli.errors import one_line
from otel_llm.cli.manage.doctor import examine
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
from otel_llm.lifecycle.scoring import BadScore, checked
from otel_llm.prices.billing import SLOT_NS
from otel_llm.prices.book import PriceBook
from otel_llm.prices.lists import PriceLists
from otel_llm.prices.rates import Quote
from otel_llm.settings import settings
from otel_llm.store import Store, StoreError
from otel_llm.store.journal import record
from otel_llm.store.journal.follow import JournalFollower
from otel_llm.store.journal.segments import running_calls
from otel_llm.store.paths import StorePaths
from otel_llm.ui.live import Live
from otel_llm.ui.scope import BadRequest, PageScope
from otel_llm.ui.views.view import Backend, ScoreTold

if TYPE_CHECKING:
    from otel_llm.account.shared_clickhouse import ClickHouseFence

_ERRORS: Final = (StoreError, AccountError, duckdb.Error, OSError)


def backend_at(place: Path | ClickHouseURL, token: str | None) -> tuple[Backend, Callable[[], None]]:
    """What the page stands on at that place, and what closes it."""
    return _of_store(place, token) if isinstance(place, Path) else _of_clickhouse(place, token)


def _of_store(path: Path, token: str | None) -> tuple[Backend, Callable[[], None]]:
    paths = StorePaths.of(path)
    engine = SharedDuckDBEngine(path)
    fence = Fence(path)
    live = Live(lambda: JournalFollower(paths), engine.has_news)

    written_to: set[Store] = set()

    def score(trace_id: str, span_id: str, told: ScoreTold) -> None:
        try:
            given = checked(
                trace_id, span_id, None, told.name, told.value, label=told.label, comment=told.comment, source="ui"
            )
        except BadScore as error:
            raise BadRequest(f"that is no score: {error}") from error
        written = Store.open(path)
        if written.paths != written.requested:
            raise BadRequest(f"scores cannot be kept: {path} is not to be written by this user")
        written_to.add(written)
        written.write_whole(record.encode(record.score_record(given)), 1)
        engine.has_news()

    def close() -> None:
        live.close()
        fence.close()
        engine.close()
        for written in written_to:
            written.close()

    backend = Backend(
        engine,
        str(path),
        live=live,
        run_sql=lambda text: _sql(fence, text),
        health=lambda: examine(path),
        running=lambda: running_calls(paths.journal),
        export=lambda scope, kind: _exported(engine, scope, kind),
        score=score,
        quote=_quotes(PriceBook(settings().prices, PriceLists(paths.prices))),
        rules=_rules(),
        crossings=lambda: crossings.read(paths),
        one_moment=engine.one_moment,
        jaeger_url=settings().jaeger_url,
        token=token,
        errors=_ERRORS,
    )
    return backend, close


def _of_clickhouse(url: ClickHouseURL, token: str | None) -> tuple[Backend, Callable[[], None]]:
    from otel_llm.account.shared_clickhouse import ArrivalFollower, ClickHouseFence, SharedClickHouseEngine

    engine = SharedClickHouseEngine(url)
    fence = ClickHouseFence(engine)
    live = Live(lambda: ArrivalFollower(engine), lambda: None)

    def close() -> None:
        live.close()
        engine.close()

    backend = Backend(
        engine,
        str(url),
        live=live,
        run_sql=lambda text: _sql(fence, text),
        health=lambda: examine(url),
        export=lambda scope, kind: _exported(engine, scope, kind),
        quote=_quotes(PriceBook(settings().prices)),
        rules=_rules(),
        jaeger_url=settings().jaeger_url,
        token=token,
        errors=_ERRORS,
    )
    return backend, close


def _quotes(book: PriceBook) -> Callable[[Mapping[str, Any]], Quote]:
    """What calls like a row of `llm_usage` cost, asked from any thread."""
    mutex = threading.Lock()

    def quote(call: Mapping[str, Any]) -> Quote:
        slot = round(call["started_at"].timestamp() * 1e9) // SLOT_NS
        names = (call["provider"], call["request_model"], call["response_model"], call["service_tier"])
        with mutex:
            book.read()
            return book.quote(*names, slot * SLOT_NS)

    return quote


def _sql(fence: Fence | ClickHouseFence, text: str) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        answer = fence.run(text)
    except FenceError as error:
        return {"error": one_line(error)}
    ms = 1000 * (time.perf_counter() - begun)
    return {"columns": [*answer.names], "rows": [*map(list, answer.rows)], "cut": answer.cut, "ms": ms}


def _rules() -> Callable[[], Rules] | None:
    """What reads the file of budgets, if one is named."""
    file = settings().budgets
    return None if file is None else lambda: rules.load(file)


def _exported(engine: Engine, scope: PageScope, kind: str) -> Response:
    """The calls of a scope as a file for the browser to keep."""
    values = Values()
    where = scope.condition(engine, values)
    if kind == "sql":
        literals = {engine.value(name): "'" + value.replace("'", "''") + "'" for name, value in values.items()}
        written = re.sub(r"\$v\d+|\{v\d+:String\}", lambda found: literals[found[0]], where)
        statement = f"SELECT *\nFROM llm_usage\nWHERE {written}\nORDER BY started_at DESC\n"
        return PlainTextResponse(statement, headers={"content-disposition": 'attachment; filename="calls.sql"'})
    descriptor, name = tempfile.mkstemp(suffix=f".{kind}", prefix="otel-llm-")
    os.close(descriptor)
    file = Path(name)
    try:
        engine.export("llm_usage", where, values, file, FileFormat(kind), raw=False)
    except BaseException:
        file.unlink()
        raise
    return FileResponse(file, filename=f"calls.{kind}", background=BackgroundTask(file.unlink))
