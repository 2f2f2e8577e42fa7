"""What is said through LangChain: by the client's own request where there is one, else by LangChain's messages; tools always."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManager, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM, FakeMessagesListChatModel, GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from otel_llm.content.redaction import use
from otel_llm.conventions import semconv as s
from otel_llm.conventions.semconv import CONTENT
from tests.content.test_values import VALUES
from tests.instrumentation.conftest import Capture
from tests.instrumentation.langchain.conftest import Traced, create_agent, needs_agents


class Reason(enum.IntEnum):
    """As Google's client has it."""

    MAX_TOKENS = 2


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


def test_messages_that_were_streamed_are_told_like_any_other(traced: Traced, capture: Capture) -> None:
    capture()
    GenericFakeChatModel(messages=iter([AIMessage("hello")])).invoke(
        [
            SystemMessageChunk("Be brief."),
            HumanMessageChunk("Weather?"),
            AIMessageChunk("", tool_calls=HISTORY[2].tool_calls),  # type: ignore[union-attr]
            ToolMessageChunk("sunny", tool_call_id="c1"),
        ]
    )
    (span,) = traced.models()
    told = said(span, s.INPUT_MESSAGES)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "tool"]
    assert [message["parts"][0]["type"] for message in told] == ["text", "text", "tool_call", "tool_call_response"]


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
    assert [name for span in traced.all() for name in span.attributes if name in CONTENT] == []


# --- agents, workflows and retrievers ---------------------------------------------------------------------------------
def only(traced: Traced, operation: str) -> Any:
    (span,) = [span for span in traced.all() if span.attributes[s.OPERATION] == operation]
    return span


def user(content: str) -> list[dict[str, Any]]:
    return [{"role": "user", "parts": [text(content)]}]


def answered(content: str, **more: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "parts": [text(content)], **more}]


@needs_agents
@pytest.mark.parametrize("given", [[HumanMessage("Hi")], [("user", "Hi")], "Hi", [{"role": "user", "content": "Hi"}]])
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_agent_is_asked_and_answers(stream: bool, given: Any, traced: Traced, capture: Capture) -> None:
    capture()
    answers = iter([AIMessage("Hello", response_metadata={"finish_reason": "stop"})])
    agent = create_agent(GenericFakeChatModel(messages=answers), [])
    if stream:
        list(agent.stream({"messages": given}))
    else:
        agent.invoke({"messages": given})
    span = only(traced, s.INVOKE_AGENT)
    if given == "Hi":  # a text in place of the messages
        assert said(span, s.INPUT_MESSAGES)[0]["parts"] == [text("Hi")]
    else:
        assert said(span, s.INPUT_MESSAGES) == user("Hi")
    assert said(span, s.OUTPUT_MESSAGES) == answered("Hello", finish_reason="stop")


def test_a_state_whose_last_message_says_nothing(traced: Traced, capture: Capture) -> None:
    capture()
    RunnableLambda(lambda given: {"messages": [*given["messages"], AIMessage("")]}).invoke(
        {"messages": [HumanMessage("Hi")]}
    )
    span = only(traced, s.INVOKE_WORKFLOW)
    assert (said(span, s.INPUT_MESSAGES), said(span, s.OUTPUT_MESSAGES)) == (user("Hi"), None)


def chain_of(answer: str) -> Any:
    model = GenericFakeChatModel(messages=iter([AIMessage(answer)]))
    prompt = ChatPromptTemplate.from_messages([("system", "Be {how}."), ("user", "{question}")])
    return (prompt | model | StrOutputParser()).with_config(run_name="ask")


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_what_a_workflow_is_asked_and_answers(way: str, traced: Traced, capture: Capture) -> None:
    capture()
    given = {"how": "brief", "question": "Who?"}
    if way == "invoke":
        chain_of("Ann").invoke(given)
    else:
        list(chain_of("Ann").stream(given))
    span = only(traced, s.INVOKE_WORKFLOW)
    ((message),) = said(span, s.INPUT_MESSAGES)
    assert message["role"] == "user"
    assert json.loads(message["parts"][0]["content"]) == given
    assert said(span, s.OUTPUT_MESSAGES) == answered("Ann")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Who?", user("Who?")),
        (HumanMessage("Who?"), user("Who?")),
        ([SystemMessage("Be brief."), HumanMessage("Who?")], [{"role": "system", "parts": [text("Be brief.")]}, *user("Who?")]),
        (ChatPromptValue(messages=[HumanMessage("Who?")]), user("Who?")),
        ({"question": "Who?"}, user("Who?")),
        ({"chat_history": [AIMessage("Hello")], "input": "Who?"}, [*answered("Hello"), *user("Who?")]),
        ({"image": b"PNG not kept", "n": 3}, user('{"image":{"type":"blob","size":12},"n":3}')),
        ({"api_key": "abc", "n": 3}, user('{"api_key":"[redacted: api key]","n":3}')),
        ({"password": "abc"}, user('{"password":"[redacted: api key]"}')),
        (7, user("7")),
        (None, None),
        ({}, None),
    ],
)  # fmt: skip
def test_whatever_a_run_is_given(given: Any, told: Any, traced: Traced, capture: Capture) -> None:
    capture()
    RunnableLambda(lambda _: "done").invoke(given)
    span = only(traced, s.INVOKE_WORKFLOW)
    assert said(span, s.INPUT_MESSAGES) == told
    assert said(span, s.OUTPUT_MESSAGES) == answered("done")


def test_an_agent_of_the_former_kind(traced: Traced, capture: Capture) -> None:
    capture()
    executor = RunnableLambda(lambda given: {**given, "output": "Hello"}).with_config(run_name="AgentExecutor")
    executor.invoke({"input": "Hi"})
    span = only(traced, s.INVOKE_AGENT)
    assert (said(span, s.INPUT_MESSAGES), said(span, s.OUTPUT_MESSAGES)) == (user("Hi"), answered("Hello"))


def test_a_run_that_fails_has_its_input(traced: Traced, capture: Capture) -> None:
    capture()

    def fail(_: Any) -> None:
        raise ValueError("no")

    for way in (RunnableLambda(fail).invoke, lambda given: list(RunnableLambda(fail).stream(given))):
        with pytest.raises(ValueError, match="no"):
            way("Who?")
    told = [(said(span, s.INPUT_MESSAGES), said(span, s.OUTPUT_MESSAGES)) for span in traced.all()]
    assert told == [(user("Who?"), None)] * 2


class Shelf(BaseRetriever):
    found: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.found


PAGES = [
    Document("One page, of ann@example.com", id="p1", metadata={"source": "a.pdf", "score": 0.5}),
    Document("Another"),
]


async def test_what_a_retriever_is_asked_and_finds(traced: Traced, capture: Capture) -> None:
    capture()
    Shelf(found=PAGES).invoke("Which page?")
    await Shelf(found=PAGES).ainvoke("Which page?")
    for span in traced.all():
        assert span.attributes[s.RETRIEVAL_QUERY] == "Which page?"
        assert said(span, s.RETRIEVAL_DOCUMENTS) == [
            {
                "id": "p1",
                "score": 0.5,
                "content": "One page, of [redacted: email]",
                "metadata": {"source": "a.pdf", "score": 0.5},
            },
            {"content": "Another"},
        ]


def test_of_many_documents_the_best_are_kept(traced: Traced, capture: Capture) -> None:
    capture(OTEL_LLM_CONTENT_LIMIT="100")
    Shelf(found=[Document(f"{number} " + "x" * 500) for number in range(50)]).invoke("q")
    found = said(only(traced, s.RETRIEVAL), s.RETRIEVAL_DOCUMENTS)
    assert found[0]["content"].startswith("0 ")
    assert len(found[0]["content"]) < 120
    assert found[-1] == {"omitted": 50 - (len(found) - 1)}
    assert len(found) < 20


def test_the_redactor_sees_all_of_it(traced: Traced, capture: Capture) -> None:
    capture()
    seen: list[Any] = []

    def redactor(message: dict[str, Any]) -> dict[str, Any] | None:
        seen.append(message["role"])
        for part in message["parts"]:
            part["content"] = part["content"].replace("Blue", "[project]")
        return None if "Another" in repr(message) else message

    use(redactor)
    try:
        RunnableLambda(lambda _: "Blue it is").invoke({"question": "Blue?", "n": 1})
        Shelf(found=[Document("On Blue"), Document("Another")]).invoke("Blue?")
    finally:
        use(None)
    assert seen == ["user", "assistant", "user", "tool", "tool"]
    told = [dict(span.attributes) for span in traced.all()]
    assert "Blue" not in repr(told)
    assert repr(told).count("[project]") == 4
    assert json.loads(told[1][s.RETRIEVAL_DOCUMENTS]) == [{"content": "On [project]"}]


@pytest.mark.parametrize("mode", ["NO_CONTENT", "EVENT_ONLY"])
def test_no_run_is_read_unless_it_is_asked_for(mode: str, traced: Traced, capture: Capture) -> None:
    capture(mode)
    chain_of("Ann").invoke({"how": "brief", "question": "Who?"})
    list(chain_of("Ann").stream({"how": "brief", "question": "Who?"}))
    Shelf(found=PAGES).invoke("Which page?")
    assert [name for span in traced.all() for name in span.attributes if name in CONTENT] == []


@pytest.mark.parametrize("number", range(len(VALUES)))
async def test_any_value_may_pass_through(number: int, traced: Traced, capture: Capture) -> None:
    """`traced` sees to it that none causes a fault of ours, and that every run has ended."""
    value, _ = VALUES[number]
    capture()

    # By the managers themselves: other parts of LangChain would look closely at these.
    manager: Any = CallbackManager.configure().on_tool_start({"name": "by hand"}, "", inputs={"value": value})
    manager.on_tool_end(value)
    manager = CallbackManager.configure().on_retriever_start({"name": "by hand"}, "")
    manager.on_retriever_end([value])
    for state in ([value], {"messages": value}, {"messages": [value]}, {"one": value}, value):
        manager = CallbackManager.configure().on_chain_start({"name": "chain"}, state)
        manager.on_chain_end(state)
    assert len(traced.all()) == 7
    assert all(span.attributes[s.STATUS] == "ok" for span in traced.all())
    json.loads(traced.named("execute_tool by hand").attributes[s.TOOL_CALL_ARGUMENTS])


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"finish_reason": "stop"}, "stop"),
        ({"stop_reason": "end_turn"}, "end_turn"),
        ({"done_reason": "length"}, "length"),
        ({"stopReason": "guardrail_intervened"}, "guardrail_intervened"),
        ({"finish_reason": "STOP"}, "STOP"),
        ({"finish_reason": Reason.MAX_TOKENS}, "MAX_TOKENS"),
        ({"finish_reason": None, "stop_reason": "max_tokens"}, "max_tokens"),
        ({"status": "completed"}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "failed"}, "error"),
        ({"finish_reason": 3}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("where", ["response_metadata", "generation_info"])
def test_how_an_answer_ended_is_the_same_everywhere(
    told: dict[str, Any], reason: str | None, where: str, traced: Traced, capture: Capture
) -> None:
    capture()
    answer = AIMessage("hello", response_metadata=told if where == "response_metadata" else {})
    info = told if where == "generation_info" else None

    class Model(FakeMessagesListChatModel):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=answer, generation_info=info)])

    (RunnableLambda(lambda value: value, name="run") | Model(responses=[])).with_config(run_name="run").invoke("hi")
    (call,) = traced.models()
    assert call.attributes.get(s.FINISH_REASONS) == (None if reason is None else (reason,))
    (message,) = said(call, s.OUTPUT_MESSAGES)
    assert message.get("finish_reason") == reason
    if where == "response_metadata":
        (message,) = said(traced.named("invoke_workflow run"), s.OUTPUT_MESSAGES)
        assert message.get("finish_reason") == reason
