"""What is said through the OpenAI client, on the span: in the form of the conventions, and only where it is asked for."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from otel_llm.content import openai as content_of_openai
from otel_llm.content.parts import SLACK
from otel_llm.conventions import semconv as s
from otel_llm.conventions.semconv import CONTENT
from otel_llm.instrumentation.openai._answer import Answer
from otel_llm.support import faults
from tests.instrumentation.conftest import Capture, Spans

MODEL = "gpt-4o-mini"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def said(spans: Spans, name: str) -> Any:
    """The content attribute of the only span; None where it is not there."""
    value = spans.attributes().get(name)
    return None if value is None else json.loads(value)


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


@pytest.fixture(autouse=True)
def _no_fault():
    before = faults.counts.copy()
    yield
    assert faults.counts == before


def test_nothing_by_default(instrumented: Spans, client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=user("hello"), tools=[TOOL])
    assert not [name for name in instrumented.attributes() if name in CONTENT]


def test_a_chat(instrumented: Spans, client: openai.OpenAI, capture: Capture) -> None:
    capture()
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": "Weather in Rome?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    assert said(instrumented, s.INPUT_MESSAGES) == [
        {"role": "system", "parts": [text("Be brief.")]},
        {"role": "user", "name": "ann", "parts": [text("Weather in Rome?")]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Rome"}}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
    ]
    assert said(instrumented, s.OUTPUT_MESSAGES) == [
        {"role": "assistant", "parts": [text("The tool says: sunny")], "finish_reason": "stop"}
    ]
    assert said(instrumented, s.TOOL_DEFINITIONS) == [
        {"type": "function", "name": "weather", **{k: TOOL["function"][k] for k in ("description", "parameters")}}
    ]
    assert said(instrumented, s.SYSTEM_INSTRUCTIONS) is None  # part of the history, where the chat API has it


@pytest.mark.parametrize("raw", [False, True])
def test_a_stream_says_what_the_whole_answer_says(
    raw: bool, instrumented: Spans, client: openai.OpenAI, capture: Capture
) -> None:
    capture()
    asked: Any = {"model": MODEL, "messages": user("Weather in Rome?"), "tools": [TOOL], "n": 2}
    client.chat.completions.create(**asked)
    (whole,) = instrumented.all()
    instrumented.clear()
    if raw:
        stream: Any = client.chat.completions.with_raw_response.create(**asked, stream=True).parse()
    else:
        stream = client.chat.completions.create(**asked, stream=True)
    for _ in stream:
        pass
    streamed = said(instrumented, s.OUTPUT_MESSAGES)
    assert len(streamed) == 2
    expected = json.loads(whole.attributes[s.OUTPUT_MESSAGES])
    for message in (*streamed, *expected):
        message["parts"][0].pop("id")  # another one in every answer
    assert streamed == expected


async def test_a_text_stream_async(instrumented: Spans, async_client: openai.AsyncOpenAI, capture: Capture) -> None:
    capture()
    heard = ""
    async for chunk in await async_client.chat.completions.create(model=MODEL, messages=user("hello"), stream=True):
        heard += chunk.choices[0].delta.content or "" if chunk.choices else ""
    (message,) = said(instrumented, s.OUTPUT_MESSAGES)
    assert message == {"role": "assistant", "parts": [text(heard)], "finish_reason": "stop"}


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_stream_that_is_left_tells_what_was_heard(
    api: str, instrumented: Spans, client: openai.OpenAI, capture: Capture
) -> None:
    capture()
    heard = ""
    if api == "chat":
        stream: Any = client.chat.completions.create(model="words-30", messages=user("x"), stream=True)
        for chunk in stream:
            heard += chunk.choices[0].delta.content or ""
            if "word3" in heard:
                break
    else:
        stream = client.responses.create(model="words-30", input="x", stream=True)
        for event in stream:
            if event.type == "response.output_text.delta":
                heard += event.delta
            if "word3" in heard:
                break
    stream.close()
    (message,) = said(instrumented, s.OUTPUT_MESSAGES)
    assert message["parts"] == [text(heard)]
    assert instrumented.attributes()[s.STATUS] == "partial"


@pytest.mark.parametrize("stream", [False, True])
def test_responses(stream: bool, instrumented: Spans, client: openai.OpenAI, capture: Capture) -> None:
    capture()
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather in Rome?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I need the tool."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "user", "content": "And in Oslo?"},
    ]
    answer: Any = client.responses.create(model=MODEL, instructions="Be brief.", input=items, stream=stream)
    if stream:
        for event in answer:
            if event.type == "response.completed":
                answer = event.response
    assert said(instrumented, s.SYSTEM_INSTRUCTIONS) == [text("Be brief.")]
    assert said(instrumented, s.INPUT_MESSAGES) == [
        {"role": "user", "parts": [text("Weather in Rome?")]},
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "I need the tool."}]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Rome"}}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
        {"role": "user", "parts": [text("And in Oslo?")]},
    ]
    (message,) = said(instrumented, s.OUTPUT_MESSAGES)
    assert (message["role"], message["finish_reason"]) == ("assistant", "stop")
    assert message["parts"][-1] == text(answer.output_text)


def test_a_function_that_a_response_calls(instrumented: Spans, client: openai.OpenAI, capture: Capture) -> None:
    capture()
    tool: Any = {"type": "function", **TOOL["function"]}
    client.responses.create(model=MODEL, input="Weather in Rome?", tools=[tool])
    (message,) = said(instrumented, s.OUTPUT_MESSAGES)
    (part,) = message["parts"]
    assert (part["type"], part["name"], list(part["arguments"])) == ("tool_call", "weather", ["city"])
    assert message["finish_reason"] == "tool_calls"


def test_a_completion(instrumented: Spans, client: openai.OpenAI, capture: Capture) -> None:
    capture()
    answer = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=["one", "two"])
    assert [message["parts"] for message in said(instrumented, s.INPUT_MESSAGES)] == [[text("one")], [text("two")]]
    assert [message["parts"] for message in said(instrumented, s.OUTPUT_MESSAGES)] == [
        [text(choice.text)] for choice in answer.choices
    ]


def test_what_is_embedded_is_not_recorded(instrumented: Spans, client: openai.OpenAI, capture: Capture) -> None:
    capture()
    client.embeddings.create(model="text-embedding-3-small", input="a secret of mine")
    assert "a secret of mine" not in repr(instrumented.attributes())
    assert not CONTENT & set(instrumented.attributes())


def test_binary_parts_are_named_and_not_kept(instrumented: Spans, client: openai.OpenAI, capture: Capture) -> None:
    capture()
    content: Any = [
        {"type": "text", "text": f"See ![x](data:image/png;base64,{PNG})"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png?signature=abc"}},
        {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PNG}", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "image", "image": PNG},
    ]
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    ((message),) = said(instrumented, s.INPUT_MESSAGES)
    assert message["parts"] == [
        text(f"See ![x](data:image/png;base64,[{len(PNG)} characters])"),
        {"type": "blob", "modality": "image", "mime_type": "image/png", "size": 70},
        {"type": "uri", "modality": "image", "uri": "https://example.org/cat.png"},
        {"type": "blob", "modality": "audio", "mime_type": "audio/wav", "size": 70},
        {"type": "blob", "modality": "document", "mime_type": "application/pdf", "size": 70},
        {"type": "file", "modality": "document", "file_id": "file-1"},
        {"type": "blob", "modality": "image", "size": 70},
    ]
    assert PNG[:20] not in repr(instrumented.attributes())


def test_the_apps_objects_stay_as_they_are(
    instrumented: Spans, client: openai.OpenAI, capture: Capture, openai_server
) -> None:
    capture()
    messages = user("write to ann@example.org")
    client.chat.completions.create(model=MODEL, messages=messages)
    assert messages == user("write to ann@example.org")
    assert openai_server.ledger[0].body["messages"] == messages
    assert "ann@example.org" not in repr(instrumented.attributes())


@pytest.mark.parametrize(("mode", "told"), [("NO_CONTENT", False), ("EVENT_ONLY", False), ("SPAN_ONLY", True)])
def test_an_errors_text(mode: str, told: bool, instrumented: Spans, client: openai.OpenAI, capture: Capture) -> None:
    capture(mode)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="error-400-echo", messages=user("quoted, says ann@example.org"))
    span = instrumented.one()
    texts = [span.status.description or "", *(str(dict(event.attributes or {})) for event in span.events)]
    assert all(("quoted, says" in text) is told for text in texts)
    assert "ann@example.org" not in repr(texts)
    assert len(span.events) == told


def test_memory_is_bounded(capture: Capture) -> None:
    """A stream keeps what will be recorded, not all that comes."""
    capture(OTEL_LLM_CONTENT_LIMIT="10")
    answer = Answer()
    for _ in range(1_000):
        answer.see({"choices": [{"index": 0, "delta": {"content": "x" * 100}}]})
    (message,) = answer.content.messages({})
    assert len(message["parts"][0]["content"]) <= 10 + SLACK + 100


@pytest.mark.parametrize(
    "payload",
    [
        {"choices": [None, 3, {"delta": 7}, {"message": []}]},
        {"choices": [{"delta": {"tool_calls": [None, {"index": "x", "function": 3}]}}]},
        {"type": "response.output_text.delta", "output_index": "x", "delta": 3},
        {"type": "response.output_item.done", "item": {"type": "message", "content": 3}},
        {"type": "response.completed", "response": {"output": [None, {"type": 3}, {"type": "x_call", "results": 3}]}},
        {"object": "response", "output": [{"type": "reasoning", "summary": [3], "content": None}]},
        {"data": [None, {"b64_json": 3}]},
        {"choices": [{"message": {"role": "assistant", "content": "hi", "tool_calls": 5}}]},
        {"choices": [{"delta": {"content": "hi", "tool_calls": 5}}]},
        {"object": "response", "output": [{"type": "reasoning", "summary": 5, "content": 7}]},
    ],
)
def test_payloads_that_no_api_documents(payload: Any, capture: Capture) -> None:
    capture()
    before = faults.counts.copy()
    answer = Answer()
    answer.see(payload)
    told = answer.content.messages({0: "stop"})
    assert ["hi" in repr(told), isinstance(told, list)] == ["hi" in repr(payload), True]
    assert faults.counts == before


def test_an_answer_whose_words_cannot_be_read_has_its_usage(
    instrumented: Spans, client: openai.OpenAI, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("ours")

    capture()
    monkeypatch.setattr(content_of_openai, "chat_message", broken)
    with pytest.MonkeyPatch.context() as quiet:
        quiet.setattr(faults, "report", lambda *_: None)
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
    told = instrumented.attributes()
    assert told["gen_ai.usage.input_tokens"] and told["gen_ai.response.id"]
    assert s.OUTPUT_MESSAGES not in told
