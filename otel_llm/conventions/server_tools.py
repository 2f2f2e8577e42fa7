"""What a provider's own tools did for an answer: searches, code, images. They are billed beside the tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import fields

_KIND: Final = re.compile(r"[a-z0-9_]{1,60}_call", re.ASCII)
_CONTAINERS: Final = "code_interpreter_call"


def server_tools(output: Iterable[Mapping[str, Any]], tools: object = None) -> dict[str, float]:
    """How often each was used, by attribute, from the items of a Responses object, where what the client runs has a `call_id`,
    or from the blocks of a message of Anthropic's, where what he runs is a `server_tool_use`.

    A kind that nobody has told us of is counted under its own name: whether it costs anything is for the price book to say.
    `tools` are those that the answer says it had: the preview of web searches has other prices, and its calls the same name.
    """
    found: dict[str, float] = {}
    containers: set[object] = set()
    for item in output:
        kind = item.get("type")
        if kind == "server_tool_use":
            kind = f"{item.get('name')}_call"
        if kind == "message" or not isinstance(kind, str) or "call_id" in item or _KIND.fullmatch(kind) is None:
            continue
        name = f"{semconv.UNIT_PREFIX}{kind}s"
        if kind == _CONTAINERS:  # billed by the container, for as long as that lives
            name = semconv.CODE_SESSIONS
            container = item.get("container_id")
            if isinstance(container, str):
                if container in containers:
                    continue
                containers.add(container)
        elif name == semconv.WEB_SEARCHES and not _is_search(item.get("action")):
            continue
        found[name] = found.get(name, 0.0) + 1.0
    if semconv.WEB_SEARCHES in found and _had_preview(tools):
        found[semconv.WEB_SEARCH_PREVIEWS] = found.pop(semconv.WEB_SEARCHES)
    return found


def _had_preview(tools: object) -> bool:
    """Whether the searches were those of the preview."""
    kinds = [fields(tool).get("type") for tool in tools] if isinstance(tools, list | tuple) else []
    return any(isinstance(kind, str) and kind.startswith("web_search_preview") for kind in kinds)


def _is_search(action: object) -> bool:
    """Opening a page that was found, and finding in it, is no search, and not billed as one."""
    kind = action.get("type") if isinstance(action, Mapping) else getattr(action, "type", None)
    return kind in (None, "search")
