"""The id of a run: what continues it names it by, in another request, process or trace.

4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7    ids of the trace and of the root, `Scope.run_id`
00f067aa0ba902b7                                     of the root alone, `Event.run`
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from opentelemetry.trace import Link, SpanContext, TraceFlags

from otel_llm.conventions import semconv

_logger = logging.getLogger("otel_llm")

_ID: Final = re.compile(r"(?:([0-9a-f]{32})-)?([0-9a-f]{16})")
_LONGEST_SHOWN: Final = 100


def run_id(root: SpanContext) -> str:
    """The id of the run whose root is this span."""
    return f"{root.trace_id:032x}-{root.span_id:016x}"


def root_of(run: object) -> int | None:
    """The span id of the root of a run; None for what is no id of one."""
    found = _ID.fullmatch(run) if isinstance(run, str) else None
    return None if found is None else int(found[2], 16) or None


def continuing(run: object) -> dict[str, Any]:
    """The attributes of a chain that continues a run. What is no id (it may come from a client) is said, and continues none."""
    if run is None:
        return {}
    given = run.strip().lower() if isinstance(run, str) else run
    if root_of(given) is None:
        _logger.warning(
            "chain(continues=%s) names no run, so it begins one of its own; give the run_id of the chain that it continues.",
            repr(run)[:_LONGEST_SHOWN],
        )
        return {}
    return {semconv.RUN_CONTINUES: given}


def links(run: object) -> tuple[Link, ...]:
    """A link to the run that is continued, where its trace is known."""
    found = _ID.fullmatch(run) if isinstance(run, str) else None
    if found is None or found[1] is None:
        return ()
    root = SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return (Link(root),) if root.is_valid else ()
