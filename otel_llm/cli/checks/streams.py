"""Streams that have no usage in the account: how many, whose, and what can be done. Told by `usage` and by `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from otel_llm.calls import stream_usage
from otel_llm.cli.checks import Finding
from otel_llm.cli.screen.output import counted, text
from otel_llm.settings import settings

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

_VARIABLE: Final = "OTEL_LLM_STREAM_USAGE"
_SERVERS_SHOWN: Final = 3
_WITHOUT_USAGE: Final = """status = 'ok' AND time_to_first_chunk_ms IS NOT NULL AND input_tokens IS NULL AND output_tokens IS NULL
    AND operation IN ('chat', 'text_completion') AND coalesce(instrumentation, 'openai') LIKE '%openai'"""
"""Only the streams of the OpenAI client are asked by us, and one that was left early has no end to tell it at."""


def without_usage(
    connection: duckdb.DuckDBPyConnection, memory: Path, condition: str = "true", parameters: Sequence[Any] = ()
) -> Finding | None:
    """What to say of the streams without usage; None where there are none. `memory` is the store's file of servers."""
    by_server = connection.execute(
        f"""
        SELECT server_address, count(*) FROM llm_usage WHERE {_WITHOUT_USAGE} AND {condition}
        GROUP BY 1 ORDER BY 2 DESC, 1
        """,
        list(parameters),
    ).fetchall()
    if not by_server:
        return None
    shown = [f"{text(server)} ({calls:,})" for server, calls in by_server[:_SERVERS_SHOWN]]
    if len(by_server) > _SERVERS_SHOWN:
        shown.append("...")
    number = sum(calls for _, calls in by_server)
    what = f"{counted(number, 'stream')} came without usage, so without tokens and cost: {', '.join(shown)}"
    return Finding(what, _remedy({server for server, _ in by_server}, memory))


def _remedy(servers: set[str | None], memory: Path) -> str:
    if settings().stream_usage == "never":
        return f"{_VARIABLE}=never asks for none: unset it"
    refusing = sorted(name for name in refused_by(memory) if name in servers or name.rpartition(":")[0] in servers)
    if refusing:
        return (
            f"{', '.join(refusing)} refuses stream_options.include_usage, and is asked again after a week: at once, where "
            f"{_VARIABLE}=always is set"
        )
    return (
        f"with {_VARIABLE}=auto, the default, streams are asked from now on; what with_streaming_response reads, only if the app "
        "itself gives stream_options={'include_usage': True}; some servers tell none"
    )


def refused_by(memory: Path) -> list[str]:
    """The servers that are not asked, as the store at hand remembers it."""
    return sorted({server.name for server in stream_usage.read(memory).values() if server.refused})
