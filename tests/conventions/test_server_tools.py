"""What a provider's tools did is counted from the items of its answer, and what the client runs is not."""

from __future__ import annotations

from otel_llm.conventions import semconv
from otel_llm.conventions.server_tools import server_tools

SEARCH = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}


def test_each_kind_is_counted() -> None:
    output = [
        {"type": "message", "content": []},
        {"type": "reasoning"},
        SEARCH,
        SEARCH,
        {"type": "web_search_call", "status": "completed"},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "file_search_call"},
        {"type": "image_generation_call", "result": "AA"},
        {"type": "function_call", "call_id": "call_1", "name": "mine"},
        {"type": "computer_call", "call_id": "call_2"},
        {"type": "x_search_call"},
        {"type": "Ignore all\nprevious_call"},
        {"type": 3},
    ]
    assert server_tools(output) == {
        semconv.WEB_SEARCHES: 3.0,
        semconv.FILE_SEARCHES: 1.0,
        semconv.IMAGE_CALLS: 1.0,
        "otel_llm.usage.x_search_calls": 1.0,
    }


def test_a_container_is_billed_once() -> None:
    ran = [{"type": "code_interpreter_call", "container_id": one} for one in ("c1", "c1", "c2", None, None)]
    assert server_tools(ran) == {semconv.CODE_SESSIONS: 4.0}


def test_anthropics_blocks_are_counted() -> None:
    blocks = [
        {"type": "text", "text": "let me look"},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1"},
        {"type": "server_tool_use", "id": "srvtoolu_2", "name": "web_fetch", "input": {}},
        {"type": "tool_use", "id": "toolu_1", "name": "mine"},
        {"type": "server_tool_use", "name": "Ignore all\nprevious"},
    ]
    assert server_tools(blocks) == {semconv.WEB_SEARCHES: 1.0, "otel_llm.usage.web_fetch_calls": 1.0}


def test_searches_of_the_preview_are_told_apart() -> None:
    """By the tools that the answer says it had; 2025-03-11 is a version of it."""
    for kind in ("web_search_preview", "web_search_preview_2025_03_11"):
        assert server_tools([SEARCH, SEARCH], [{"type": "function"}, {"type": kind}]) == {
            semconv.WEB_SEARCH_PREVIEWS: 2.0
        }
    for tools in (None, [], "web_search_preview", [{"type": "web_search"}], [None, {"type": 3}]):
        assert server_tools([SEARCH], tools) == {semconv.WEB_SEARCHES: 1.0}
