"""Streams that have no usage in the account: how many, whose, and what can be done. Told by `usage` and by `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_llm.calls import stream_usage
from otel_llm.cli.checks import Finding
from otel_llm.cli.screen.output import counted, text
from otel_llm.settings import settings
from otel_llm.store.paths import StorePaths

if TYPE_CHECKING:
    from otel_llm.account.call_filter import CallFilter
    from otel_llm.account.questions import Account

_VARIABLE: Final = "OTEL_LLM_STREAM_USAGE"
_SERVERS_SHOWN: Final = 3


def without_usage(account: Account, calls: CallFilter | None = None) -> Finding | None:
    """What to say of the streams without usage; None where there are none."""
    by_server = account.streams_without_usage(calls) if calls else account.streams_without_usage()
    if not by_server:
        return None
    shown = [f"{text(server)} ({number:,})" for server, number in by_server[:_SERVERS_SHOWN]]
    if len(by_server) > _SERVERS_SHOWN:
        shown.append("...")
    number = sum(streams for _, streams in by_server)
    what = f"{counted(number, 'stream')} came without usage, so without tokens and cost: {', '.join(shown)}"
    return Finding(what, _remedy({server for server, _ in by_server}, account.store))


def _remedy(servers: set[str | None], store: Path | None) -> str:
    if settings().stream_usage == "never":
        return f"{_VARIABLE}=never asks for none: unset it"
    remembered = [] if store is None else refused_by(StorePaths.of(store).stream_usage)
    refusing = sorted(name for name in remembered if name in servers or name.rpartition(":")[0] in servers)
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
    """The servers that are not asked, as the store with this `memory` remembers it."""
    return sorted({server.name for server in stream_usage.read(memory).values() if server.refused})
