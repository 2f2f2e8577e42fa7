"""What is said through LangChain: by the client's own request where there is one, else by LangChain's messages; tools always."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from otel_llm import semconv as s
from otel_llm.content import NAMES
from tests.instrumentation.conftest import Capture
from tests.instrumentation.langchain.conftest import Traced, create_agent, needs_agents


def said(span: Any, name: str) -> Any:
    value = span.attributes.get(name)
    return None if value is None else json.loads(value)


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


HISTORY = [
    SystemMessage("Be brief."),
    HumanMessage([{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]),
    AIMessage("", tool_calls=[{"id": "c1", "name": "weather", "args": {"city": "Rome"}}]),
    ToolMessage("sunny", tool_call_id="c1"),
]  # fmt: skip


def test_a_model_that_no_client_hook_sees(traced: Traced, capture: Capture) -> None:
    capture()
    model = GenericFakeChatModel(messages=iter([AIMessage("hello", response_metadata={"finish_reason": "stop"})]))
    model.invoke(HISTORY)
    (span,) = traced.models()
    assert said(span, s.INPUT_MESSAGES) == [
        {"role": "system", "parts": [text("Be brief.")]},
        {
            "role": "user",
            "parts": [
                text("Look."),
                {"type": "blob", "modality": "image", "mime_type": "image/png", "size": 3},
            ],
        },
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Rome"}}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
    ]
    assert said(span, s.OUTPUT_MESSAGES) == [{"role": "assistant", "parts": [text("hello")], "finish_reason": "stop"}]


def test_a_model_of_prompts(traced: Traced, capture: Capture) -> None:
    capture()
    FakeListLLM(responses=["one", "two"]).batch(["first", "second"], config={"max_concurrency": 1})
    told = [(said(span, s.INPUT_MESSAGES), said(span, s.OUTPUT_MESSAGES)) for span in traced.models()]
    assert [(asked[0]["parts"], answered[0]["parts"]) for asked, answered in told] == [
        ([text("first")], [text("one")]),
        ([text("second")], [text("two")]),
    ]


def test_a_model_that_the_client_hook_records(traced: Traced, model: ChatOpenAI, capture: Capture) -> None:
    capture()
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage("hello")])
    (span,) = traced.models()
    assert [message["role"] for message in said(span, s.INPUT_MESSAGES)] == ["system", "user"]
    assert said(span, s.OUTPUT_MESSAGES)[0]["parts"] == [text(str(answer.content))]


def test_a_stream(traced: Traced, capture: Capture) -> None:
    capture()
    list(GenericFakeChatModel(messages=iter([AIMessage("one two three")])).stream("hello"))
    (span,) = traced.models()
    assert said(span, s.OUTPUT_MESSAGES)[0]["parts"] == [text("one two three")]


@tool
def weather(city: str) -> str:
    """Tells the weather."""
    if city == "Atlantis":
        raise ValueError(f"no such city: {city}")
    return f"sunny in {city}"


def test_a_tool(traced: Traced, capture: Capture) -> None:
    capture()
    weather.invoke({"city": "Rome"})
    (span,) = traced.all()
    assert said(span, s.TOOL_CALL_ARGUMENTS) == {"city": "Rome"}
    assert span.attributes[s.TOOL_CALL_RESULT] == "sunny in Rome"


@pytest.mark.parametrize(("mode", "told"), [("NO_CONTENT", False), ("EVENT_ONLY", False), ("SPAN_AND_EVENT", True)])
def test_a_tool_that_fails(mode: str, told: bool, traced: Traced, capture: Capture) -> None:
    capture(mode)
    with pytest.raises(ValueError, match="Atlantis"):
        weather.invoke({"city": "Atlantis"})
    (span,) = traced.all()
    assert ("Atlantis" in (span.status.description or "")) is told
    assert ("Atlantis" in repr([dict(event.attributes or {}) for event in span.events])) is told
    assert ("Atlantis" in repr(dict(span.attributes))) is told


@needs_agents
def test_an_agent(traced: Traced, chat_model: Callable[..., ChatOpenAI], capture: Capture) -> None:
    capture()
    create_agent(chat_model(), [weather]).invoke({"messages": [HumanMessage("Weather in Rome?")]})
    (ran,) = [span for span in traced.all() if span.attributes[s.OPERATION] == s.EXECUTE_TOOL]
    assert list(said(ran, s.TOOL_CALL_ARGUMENTS)) == ["city"]
    assert ran.attributes[s.TOOL_CALL_RESULT].startswith("sunny in")
    last = max(traced.models(), key=lambda span: span.start_time or 0)
    assert [part["type"] for message in said(last, s.INPUT_MESSAGES) for part in message["parts"]] == [
        "text",
        "tool_call",
        "tool_call_response",
    ]
    assert said(last, s.TOOL_DEFINITIONS)[0]["name"] == "weather"


def test_nothing_by_default(traced: Traced, model: ChatOpenAI) -> None:
    weather.invoke({"city": "Rome"})
    model.invoke(HISTORY[:1])
    GenericFakeChatModel(messages=iter([AIMessage("hello")])).invoke("hello")
    assert [name for span in traced.all() for name in span.attributes if name in NAMES] == []
