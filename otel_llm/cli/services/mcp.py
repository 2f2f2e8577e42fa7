"""`otel-llm mcp`: the account as tools for an agent."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from otel_llm.cli.errors import INTERRUPTED, CommandError
from otel_llm.cli.options.access import locate, remote
from otel_llm.cli.options.common import store_option

if TYPE_CHECKING:
    from otel_llm.account.in_duckdb.fence import Fence
    from otel_llm.account.questions import Account
    from otel_llm.account.shared_clickhouse import ClickHouseFence
    from otel_llm.cli.options.access import Place
    from otel_llm.fleet.clickhouse.server_url import ClickHouseURL

_NEEDED: Final = ("mcp", "mcp_types", "pydantic", "anyio")


@click.command()
@store_option
def mcp(store: Place | None) -> int:
    """Offer the account to an agent, as tools of the Model Context Protocol.

    \b
    Examples:
      otel-llm mcp
      otel-llm mcp --store clickhouse://reader@warehouse:8123/otel
      claude mcp add otel-llm -- otel-llm mcp

    An MCP client starts it and talks to it over its stdin and stdout; it ends when the client goes. Its tools are usage, calls,
    trace, search, sql and schema, its resources recipes in SQL. They read, and change nothing. Needs otel-llm[mcp].
    """
    try:
        from otel_llm.cli.services.agent_server import AccountServer
        from otel_llm.cli.services.agent_tools import AgentTools
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise CommandError("an MCP server needs more: pip install 'otel-llm[mcp]'") from error
    place = remote(store) or locate(store)
    account, fence = _opened(place)

    def leave(number: int, _: object) -> None:
        fence.close()
        # A thread waits at stdin, which only its other end can close. There is nothing to be written any more.
        os._exit(INTERRUPTED if number == signal.SIGINT else 0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        AccountServer(AgentTools(account, fence), str(place), in_duckdb=isinstance(place, Path)).run("stdio")
    finally:
        fence.close()
    return 0


def _opened(place: Path | ClickHouseURL) -> tuple[Account, Fence | ClickHouseFence]:
    from otel_llm.account.in_duckdb.fence import Fence, Limits
    from otel_llm.account.in_duckdb.shared import SharedDuckDBEngine
    from otel_llm.account.questions import Account
    from otel_llm.cli.services.agent_tools import MOST_BYTES, MOST_ROWS

    limits = Limits(rows=MOST_ROWS, bytes=MOST_BYTES)
    if isinstance(place, Path):
        return Account(SharedDuckDBEngine(place)), Fence(place, limits)
    from otel_llm.account.shared_clickhouse import ClickHouseFence, SharedClickHouseEngine

    engine = SharedClickHouseEngine(place)
    return Account(engine), ClickHouseFence(engine, limits)
