"""Tool calls by id: on the span whose answer asks, on the span whose request brings the result, and a link between the two."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from otel_llm.conventions import semconv, tool_calls
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans

PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT_TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("weather", "time")
]
TOOLS: Any = [{"type": "function", "name": name, "parameters": PARAMETERS} for name in ("weather", "time")]
PARALLEL = "parallel-tools"

pytestmark = pytest.mark.usefixtures("traced")


@pytest.fixture
def client(openai_server: LocalOpenAI) -> openai.OpenAI:
    return openai.OpenAI(base_url=openai_server.base_url, api_key="x")


def check_linked(asked: ReadableSpan, returned: ReadableSpan, ids: list[str]) -> None:
    assert (asked.attributes or {})[semconv.REQUESTED_TOOL_IDS] == tuple(ids)
    assert (asked.attributes or {})[semconv.REQUESTED_TOOL_NAMES] == ("weather", "time")[: len(ids)]
    assert (returned.attributes or {})[semconv.RETURNED_TOOL_IDS] == tuple(ids)
    assert [link.context for link in returned.links] == [asked.context] * len(ids)
    assert [dict(link.attributes or {}) for link in returned.links] == [{semconv.TOOL_CALL_ID: one} for one in ids]
    assert not asked.links


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_chat(client: openai.OpenAI, spans: Spans, stream: bool, raw: bool) -> None:
    question: Any = {"role": "user", "content": "Lisbon?"}
    create: Any = client.chat.completions.with_raw_response.create if raw else client.chat.completions.create
    answer = create(model=PARALLEL, messages=[question], tools=CHAT_TOOLS, stream=stream)
    answer = answer.parse() if raw else answer
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer if chunk.choices]
        ids = [call.id for delta in deltas for call in delta.tool_calls or () if call.id]
    else:
        ids = [call.id for call in answer.choices[0].message.tool_calls]
    assert len(ids) == 2
    calls: Any = [{"id": one, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for one in ids]
    results: Any = [{"role": "tool", "tool_call_id": one, "content": "secret"} for one in ids]
    asked: Any = {"role": "assistant", "tool_calls": calls}
    client.chat.completions.create(model="gpt-4o-mini", messages=[question, asked, *results])
    check_linked(*spans.all(), ids)
    # The next request brings nothing new, though the results are in its history.
    more: Any = [question, asked, *results, {"role": "assistant", "content": "sunny"}, question]
    client.chat.completions.create(model="gpt-4o-mini", messages=more)
    last = spans.all()[-1]
    assert semconv.RETURNED_TOOL_IDS not in (last.attributes or {})
    assert not last.links
    assert all("secret" not in span.to_json() for span in spans.all())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("turns", [False, True], ids=["results last", "taking turns"])
def test_responses(client: openai.OpenAI, spans: Spans, stream: bool, turns: bool) -> None:
    answer: Any = client.responses.create(model=PARALLEL, input="Lisbon?", tools=TOOLS, stream=stream)
    output = list(answer)[-1].response.output if stream else answer.output
    calls = [item for item in output if item.type == "function_call"]
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "secret"} for call in calls]
    items: Any = [{"role": "user", "content": "Lisbon?"}]
    items += [item for pair in zip(calls, results, strict=True) for item in pair] if turns else [*calls, *results]
    client.responses.create(model="gpt-4o-mini", input=items)
    check_linked(*spans.all(), [call.call_id for call in calls])


async def test_langchain_through_the_client(openai_server: LocalOpenAI, spans: Spans) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=openai_server.base_url, api_key="x", model=PARALLEL)  # type: ignore[arg-type]
    question = HumanMessage("Lisbon?")
    answer: Any = await model.bind_tools(CHAT_TOOLS).ainvoke([question])
    results = [ToolMessage("secret", tool_call_id=call["id"]) for call in answer.tool_calls]
    await model.ainvoke([question, answer, *results])
    check_linked(*spans.all(), [call["id"] for call in answer.tool_calls])


def test_langchain_with_a_model_of_its_own(spans: Spans) -> None:
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    calls: Any = [{"id": "call_1", "name": "weather", "args": {}}, {"id": "call_2", "name": "time", "args": {}}]
    asked = AIMessage("", tool_calls=calls)
    model = GenericFakeChatModel(messages=iter([asked, AIMessage("sunny")]))
    model.invoke([HumanMessage("Lisbon?")])
    results = [ToolMessage("secret", tool_call_id=call["id"]) for call in calls]
    model.invoke([HumanMessage("Lisbon?"), asked, *results])
    check_linked(*spans.all(), ["call_1", "call_2"])


def test_langchain_after_an_answer_that_was_streamed(spans: Spans) -> None:
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage, ToolMessageChunk

    asked: Any = AIMessageChunk("", tool_calls=[{"id": "call_2", "name": "time", "args": {}}])
    history = [HumanMessage("Lisbon?"), AIMessage(""), ToolMessage("secret", tool_call_id="call_1")]
    for result in (ToolMessage, ToolMessageChunk):
        GenericFakeChatModel(messages=iter([AIMessage("noon")])).invoke(
            [*history, asked, result("secret", tool_call_id="call_2")]
        )
    assert [(span.attributes or {})[semconv.RETURNED_TOOL_IDS] for span in spans.all()] == [("call_2",)] * 2


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "text",
        [None, 3, {"role": ["tool"]}],
        [{"role": "tool"}, {"role": "tool", "tool_call_id": 7}],
        [{"role": "tool", "tool_call_id": "x" * 300}],
        [{"role": "tool", "tool_call_id": "a\ud800"}],
        [{"role": "tool", "tool_call_id": "two\nlines"}],
    ],
)
def test_what_is_no_id_is_passed_over(messages: object) -> None:
    assert tool_calls.returned_in_chat(messages) == []
    assert tool_calls.returned_in_input(messages) == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.trace import SpanContext

    monkeypatch.setattr(tool_calls, "_MAX_ASKED", 3)
    monkeypatch.setattr(tool_calls, "_asked", type(tool_calls._asked)())
    span = SpanContext(1, 2, is_remote=False)
    for number in range(5):
        tool_calls.remember({semconv.REQUESTED_TOOL_IDS: [f"call_{number}", ""]}, span)
    assert list(tool_calls._asked) == ["call_2", "call_3", "call_4"]
    requests = tool_calls.ToolRequests()
    for number in range(1000):
        requests.add(f"call_{number}", "f")
    assert len(requests.attributes()[semconv.REQUESTED_TOOL_IDS]) == tool_calls.MAX_CALLS
    many = [{"role": "tool", "tool_call_id": f"call_{number}"} for number in range(1000)]
    assert len(tool_calls.returned_in_chat(many)) == tool_calls.MAX_CALLS
