"""The tools of an agent behind the Model Context Protocol: https://modelcontextprotocol.io, by its own package."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import anyio.to_thread
import duckdb
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resources import TextResource
from mcp_types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import ValidationError

from otel_llm.account.engine import AccountError
from otel_llm.account.in_duckdb.fence import FenceError
from otel_llm.account.recipes import RECIPES
from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.services.agent_tools import ABOUT_DATA, AgentTools, quoted
from otel_llm.store import StoreError
from otel_llm.version import __version__

_READS: Final = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
_OURS: Final = (CommandError, StoreError, OSError, ValueError)
_OF_ENGINES: Final = (AccountError, FenceError, duckdb.Error)
"""Errors that may quote what stands in the account."""
_OPTION: Final = re.compile(r"(?<!\S)--(?=[a-z])")
"""What commands write before the names that the tools have without it."""


class AccountServer(MCPServer[Any]):
    """Serves the account in `place`. Whatever is wrong with a question is told in one line."""

    def __init__(self, tools: AgentTools, place: str, *, in_duckdb: bool) -> None:
        super().__init__(
            "otel-llm",
            version=__version__,
            instructions=f"The account of all calls that programs made of language models, in {place}: calls, tokens, cost, "
            f"traces. It is read, and nothing in it changes. Times are local. {ABOUT_DATA}",
            log_level="ERROR",
        )
        for tool in (tools.usage, tools.calls, tools.trace, tools.search, tools.sql, tools.schema):
            self.add_tool(_in_thread(tool), annotations=_READS, structured_output=False)
        for number, recipe in enumerate(RECIPES, 1):
            if in_duckdb or recipe.everywhere:
                self.add_resource(
                    TextResource(
                        uri=f"otel-llm://recipes/{number}",
                        name=f"recipe-{number}",
                        title=recipe.title,
                        description=f"SQL for the tool `sql`: {recipe.title}.",
                        mime_type="application/sql",
                        text=recipe.sql,
                    )
                )

    async def call_tool(
        self, name: str, arguments: Mapping[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """As MCPServer does, but refuses arguments that the tool has not: they would be left out without a word."""
        known = {tool.name: tool.input_schema.get("properties", {}) for tool in await self.list_tools()}
        if name not in known:
            return _refused(f"there is no tool {name[:80]!r}; there are {', '.join(known)}")
        if unknown := [each for each in arguments if each not in known[name]]:
            return _refused(f"{name} takes no {unknown[0][:80]!r}; it takes {', '.join(known[name])}")
        try:
            return await super().call_tool(name, dict(arguments), context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError):
                return _refused("; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in cause.errors()))
            if isinstance(cause, _OF_ENGINES):
                return _refused(quoted(one_line(cause)))
            if isinstance(cause, _OURS):
                return _refused(_OPTION.sub("", str(cause)))
            return _refused(f"{error} ({type(cause).__name__}): this is a fault of otel-llm")


def _refused(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=one_line(text))], is_error=True)


def _in_thread(tool: Callable[..., object]) -> Callable[..., Any]:
    """The tool as the server calls it: who cancels it, or goes, does not wait for its end."""

    @functools.wraps(tool)
    async def asked(**arguments: Any) -> str:
        def answer() -> str:
            return str(tool(**arguments))

        return await anyio.to_thread.run_sync(answer, abandon_on_cancel=True)

    return asked
