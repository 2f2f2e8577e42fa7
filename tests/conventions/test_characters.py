"""A length is of text alone, and none where there is anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm.conventions import characters

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
AS_JSON = len(json.dumps(TOOL, separators=(",", ":")))
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


LENGTHS: dict[str, tuple[dict[str, Any], int | None]] = {
    "a message": ({"messages": [user("hello")]}, 5),
    "characters, not bytes": ({"messages": [user("größe 你好")]}, 8),
    "several, and a name": ({"messages": [user("ab"), {"role": "user", "name": "Ann", "content": "c"}]}, 6),
    "parts": ({"messages": [user([{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}])]}, 3),
    "no content": ({"messages": [{"role": "assistant", "content": None}]}, 0),
    "a tool call and its result": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            ]
        },
        1 + 2 + 5,
    ),
    "tools": ({"messages": [user("ab")], "tools": [TOOL]}, 2 + AS_JSON),
    "a schema": (
        {"messages": [user("ab")], "response_format": SCHEMA},
        2 + len(json.dumps(SCHEMA, separators=(",", ":"))),
    ),
    "an image": ({"messages": [user([{"type": "text", "text": "ab"}, IMAGE])]}, None),
    "audio": ({"messages": [user([{"type": "input_audio", "input_audio": {"data": "AAAA"}}])]}, None),
    "a hosted tool": ({"input": "ab", "tools": [{"type": "web_search"}]}, None),
    "a response": ({"input": "ab", "instructions": "cde"}, 5),
    "items": (
        {
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "ab"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "sunny"},
                {"type": "reasoning", "id": "r", "encrypted_content": "AAAA", "summary": []},
            ]
        },
        2 + 3 + 5,
    ),
    "a file": ({"input": [user([{"type": "input_file", "file_id": "f"}])]}, None),
    "an item that stands elsewhere": ({"input": [{"type": "item_reference", "id": "r"}]}, None),
    "what was said before": ({"input": "ab", "previous_response_id": "resp_1"}, None),
    "a conversation": ({"input": "ab", "conversation": "conv_1"}, None),
    "a prompt that stands elsewhere": ({"prompt": {"id": "pmpt_1"}}, None),
    "a completion": ({"prompt": "abc"}, 3),
    "several prompts": ({"prompt": ["abc", "d"]}, 4),
    "an embedding": ({"input": ["abc", "d"]}, 4),
    "tokens": ({"input": [[1, 2, 3]]}, None),
    "tokens of one": ({"input": [1, 2, 3]}, None),
    "nothing": ({}, 0),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_the_length_of_a_request(name: str) -> None:
    body, length = LENGTHS[name]
    assert characters.of_request(body) == length


def test_of_very_many_messages_some_stand_for_all() -> None:
    """The app waits for it: what a thousand messages take is not a multiple of what a few hundred take."""
    seen = 0

    class Counted(dict[str, Any]):
        def get(self, *args: Any) -> Any:
            nonlocal seen
            seen += 1
            return super().get(*args)

    talk = [Counted(user("question") if number % 2 else user("a long answer")) for number in range(20_000)]
    length = characters.of_request({"messages": talk})
    assert length == pytest.approx(10_000 * (8 + 13), rel=0.05)
    assert seen < 1_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "content", "text", "role", "x"]), inner),
    max_leaves=20,
)


@given(json_values)
def test_any_value_has_a_length_or_none(value: Any) -> None:
    for name in ("messages", "input", "prompt", "tools", "response_format", "text", "instructions"):
        length = characters.of_request({name: value})
        assert length is None or length >= 0


def test_langchain_messages() -> None:
    messages = pytest.importorskip("langchain_core.messages")
    asked = [
        messages.SystemMessage("abc"),
        messages.HumanMessage([{"type": "text", "text": "de"}]),
        messages.AIMessage("f", tool_calls=[{"id": "c", "name": "weather", "args": {"a": 1}}]),
        messages.ToolMessage("sunny", tool_call_id="c"),
    ]
    assert characters.of_messages(asked) == 3 + 2 + 1 + len("weather") + len('{"a":1}') + 5
    assert characters.of_messages(["ab", "c"]) == 3
    assert characters.of_messages(asked, {"tools": [TOOL]}) == characters.of_messages(asked) + AS_JSON  # type: ignore[operator]
    assert characters.of_messages([messages.HumanMessage([IMAGE])]) is None


def test_a_langchain_answer() -> None:
    messages = pytest.importorskip("langchain_core.messages")
    assert characters.of_answer(messages.AIMessage("abc")) == (3, 0)
    thought = [{"type": "thinking", "thinking": "hmm"}, {"type": "text", "text": "ab"}]
    assert characters.of_answer(messages.AIMessage(thought)) == (5, 3)
    assert characters.of_answer(messages.AIMessage("ab", additional_kwargs={"reasoning_content": "hmm"})) == (5, 3)
    piece = messages.AIMessageChunk("", tool_call_chunks=[{"id": "c", "name": "f", "args": '{"a', "index": 0}])
    assert characters.of_answer(piece) == (4, 0)
