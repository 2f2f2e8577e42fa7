"""The events of a run: typed, in order, the same whoever made the spans."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import openai
import pytest
from opentelemetry.trace import SpanKind

from otel_llm import chain, llm_context, step, tool
from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import Usage
from otel_llm.lifecycle import (
    ChainCompleted,
    ChainError,
    ProviderCompleted,
    ProviderStarted,
    ToolCall,
    ToolCompleted,
    ToolsRequested,
    ToolsStarted,
    subscribe,
)
from otel_llm.lifecycle.from_record import at_end
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Capture, Spans
from tests.lifecycle.conftest import Recorder

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def run_agent(client: openai.OpenAI, model: str = "gpt-4o-mini", **options: Any) -> str | None:
    """A hand-written agent, as small as they come."""
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Lisbon?"}]
    with chain("weather-agent", agent=True):
        while True:
            completion = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], **options)
            message = completion.choices[0].message
            messages.append(message)
            if not message.tool_calls:
                return message.content
            for call in message.tool_calls:
                with tool(call.function.name, call_id=call.id):
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})


AGENT = [
    "ChainStarted",
    "ProviderStarted",
    "ProviderCompleted",
    "ToolsRequested",
    "ToolsStarted",
    "ToolCompleted",
    "ProviderStarted",
    "ProviderCompleted",
    "ChainCompleted",
]


@pytest.mark.usefixtures("traced")
def test_a_hand_written_agent(client: openai.OpenAI, openai_server: LocalOpenAI, recorder: Recorder) -> None:
    before = time.time_ns()
    with llm_context("travel", user_id="ada", trip="7"):
        run_agent(client)
    events = recorder.all()
    assert recorder.types() == AGENT
    first, last = events[0], events[-1]
    assert {event.run for event in events} == {first.span_id}
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len({event.id for event in events}) == len(events)
    assert {event.trace_id for event in events} == {first.trace_id}
    assert all(before <= event.time_ns <= time.time_ns() for event in events)
    assert abs(first.time - datetime.fromtimestamp(first.time_ns / 1e9, UTC)).total_seconds() < 1e-5
    for event in events:
        context = dict(event.context)
        assert context.pop(semconv.REQUEST_ID)
        assert context == {semconv.MODULE: "travel", semconv.USER_ID: "ada", "otel_llm.tag.trip": "7"}

    billed = openai_server.ledger
    ends = [event for event in events if isinstance(event, ProviderCompleted)]
    assert [end.usage and end.usage.input for end in ends] == [call.input_tokens for call in billed]
    assert [end.response_id for end in ends] == [call.response_id for call in billed]
    assert [end.finish_reasons for end in ends] == [("tool_calls",), ("stop",)]
    assert [end.cost_usd for end in ends] == [None, None]
    asked, started, ended = (
        next(event for event in events if isinstance(event, kind))
        for kind in (ToolsRequested, ToolsStarted, ToolCompleted)
    )
    (call,) = asked.calls
    assert call.name == "weather"
    assert call.id
    assert started.calls == (call,)
    assert ended.call == call
    assert asked.span_id == ends[0].span_id
    assert isinstance(last, ChainCompleted)
    assert (last.name, last.status, last.model_calls) == ("weather-agent", "ok", 2)
    assert last.usage.input == sum(call.input_tokens or 0 for call in billed)
    assert last.usage.output == sum(call.output_tokens or 0 for call in billed)


@pytest.mark.usefixtures("traced")
def test_an_event_as_json(client: openai.OpenAI, recorder: Recorder) -> None:
    run_agent(client)
    events = recorder.all()
    assert len({type(event) for event in events}) > 5
    for event in events:
        told = event.to_dict()
        assert json.loads(json.dumps(told)) == told
        assert told.keys() == {"type", "time", *(field.name for field in dataclasses.fields(event))}
        assert (told["type"], told["sequence"]) == (event.type, event.sequence)
        assert datetime.fromisoformat(told["time"]) == event.time
    end = next(event for event in events if isinstance(event, ProviderCompleted))
    assert end.usage is not None
    told = dataclasses.replace(end, cost_usd=Decimal("0.25"), usage=Usage(input=3, output=0)).to_dict()
    assert (told["cost_usd"], told["usage"], told["finish_reasons"]) == (
        0.25,
        {"input": 3, "output": 0},
        ["tool_calls"],
    )


@pytest.mark.usefixtures("traced")
def test_what_was_said_where_content_is_captured(client: openai.OpenAI, capture: Capture, recorder: Recorder) -> None:
    """What is needed to run a tool elsewhere, and to show a failure."""
    capture()
    run_agent(client)
    with pytest.raises(openai.BadRequestError), chain("c"):
        client.chat.completions.create(model="error-400", messages=[{"role": "user", "content": "hi"}])

    @tool("look-up")
    def look_up(key: str) -> str:
        return f"{key} it is"

    look_up("x")
    events = recorder.all()
    (call,) = next(event for event in events if isinstance(event, ToolsRequested)).calls
    assert json.loads(str(call.arguments)).keys() == {"city"} and call.result is None
    failed, chain_failed = [event for event in events if getattr(event, "status", "ok") == "error"]
    assert isinstance(failed, ProviderCompleted) and isinstance(chain_failed, ChainError)
    assert failed.error_message == chain_failed.error_message == "Error code: 400 - Invalid request."
    *_, ended = [event for event in events if isinstance(event, ToolCompleted)]
    assert ended.call == ToolCall("look-up", arguments='{"key":"x"}', result="x it is")


@pytest.mark.usefixtures("traced")
def test_nothing_was_said_where_content_is_not_captured(client: openai.OpenAI, recorder: Recorder) -> None:
    run_agent(client)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="error-400", messages=[{"role": "user", "content": "hi"}])
    said = [str(event) for event in recorder.all()]
    assert not [event for event in said if "Lisbon" in event or "Invalid request" in event]


@pytest.mark.usefixtures("traced")
def test_langchain_gives_the_same(openai_server: LocalOpenAI, recorder: Recorder) -> None:
    agents = pytest.importorskip("langchain.agents", reason="create_agent came with langchain 1.0")
    from langchain_core.tools import tool as langchain_tool
    from langchain_openai import ChatOpenAI

    @langchain_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return "sunny"

    model = ChatOpenAI(base_url=openai_server.base_url, api_key="x", model="gpt-4o-mini", stream_usage=True)  # type: ignore[arg-type]
    agents.create_agent(model, tools=[weather], name="weather-agent").invoke({"messages": [("user", "Lisbon?")]})
    assert recorder.types() == AGENT
    events = recorder.all()
    asked, started = (next(e for e in events if isinstance(e, kind)) for kind in (ToolsRequested, ToolsStarted))
    assert asked.calls == started.calls
    assert events[-1].name == "weather-agent"


@pytest.mark.usefixtures("traced")
def test_a_call_of_its_own_is_a_run(client: openai.OpenAI, recorder: Recorder) -> None:
    stream = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], tools=[WEATHER], stream=True
    )
    for _ in stream:
        pass
    started, ended, asked = recorder.all()
    assert isinstance(started, ProviderStarted)
    assert (started.provider, started.model, started.stream) == ("openai", "gpt-4o-mini", True)
    assert started.input_messages is None
    assert isinstance(ended, ProviderCompleted)
    assert isinstance(asked, ToolsRequested)
    assert [call.name for call in asked.calls] == ["weather"]
    assert started.run == started.span_id


@pytest.mark.usefixtures("traced")
def test_a_chain_that_fails(client: openai.OpenAI, recorder: Recorder) -> None:
    with pytest.raises(openai.RateLimitError), chain("c"):
        with step("prepare"):
            pass
        with step("ask"):
            client.chat.completions.create(model="error-429", messages=[{"role": "user", "content": "hi"}])
    error = recorder.all()[-1]
    assert isinstance(error, ChainError)
    assert (error.status, error.error_type, error.where) == ("error", "openai.RateLimitError", "chat error-429")
    assert error.completed == ("step prepare",)
    assert error.model_calls == 1
    assert recorder.names() == [
        "ChainStarted c",
        "StepStarted prepare",
        "StepCompleted prepare",
        "StepStarted ask",
        "ProviderStarted error-429",
        "ProviderCompleted error-429",
        "StepCompleted ask",
        "ChainError c",
    ]


def test_a_failure_that_was_handled_is_not_where_the_chain_failed(recorder: Recorder) -> None:
    with pytest.raises(LookupError), chain("c"):
        try:
            with step("first try"):
                raise ValueError
        except ValueError:
            pass
        with step("second try"):
            pass
        raise LookupError
    error = recorder.all()[-1]
    assert isinstance(error, ChainError)
    assert (error.where, error.error_type) == ("invoke_workflow c", "LookupError")
    assert error.where_span_id == error.span_id


def test_cancelled(recorder: Recorder) -> None:
    with pytest.raises(KeyboardInterrupt), chain("c"), step("s"):
        raise KeyboardInterrupt
    error = recorder.all()[-1]
    assert isinstance(error, ChainError)
    assert (error.status, error.where) == ("cancelled", "step s")


def test_spans_of_others(spans: Spans, recorder: Recorder) -> None:
    """Another instrumentation's spans, in its own words; a span that is not about GenAI stands in between."""
    tracer = spans.provider.get_tracer("another")
    with (
        tracer.start_as_current_span("GET /", kind=SpanKind.SERVER),
        tracer.start_as_current_span("run", attributes={"openinference.span.kind": "CHAIN"}),
        tracer.start_as_current_span("db"),
        tracer.start_as_current_span("ask", attributes={"openinference.span.kind": "LLM", semconv.INPUT_TOKENS: 5}),
    ):
        pass
    events = recorder.all()
    assert [event.type for event in events] == [
        "ChainStarted", "ProviderStarted", "ProviderCompleted", "ChainCompleted",
    ]  # fmt: skip
    assert {event.run for event in events} == {events[0].span_id}
    assert isinstance(events[-1], ChainCompleted)
    assert events[-1].usage == Usage(input=5)


def test_nested_chains_count_what_is_in_them(spans: Spans, recorder: Recorder) -> None:
    tracer = spans.provider.get_tracer("another")

    def call(tokens: int) -> None:
        tracer.start_span("chat", attributes={semconv.OPERATION: "chat", semconv.INPUT_TOKENS: tokens}).end()

    with chain("outer"):
        call(1)
        with chain("inner"):
            call(10)
            call(100)
    ends = {event.name: event for event in recorder.all() if isinstance(event, ChainCompleted)}
    assert (ends["inner"].usage.input, ends["inner"].model_calls) == (110, 2)
    assert (ends["outer"].usage.input, ends["outer"].model_calls) == (111, 3)


def test_what_began_before_anybody_listened(recorder: Recorder) -> None:
    recorder.all()
    with chain("c") as run, step("early"):
        late = Recorder()
        with step("late"):
            pass
    assert late.names() == ["StepStarted late", "StepCompleted late", "StepCompleted early", "ChainCompleted c"]
    assert run.span_id == late.all()[-1].span_id


def test_a_request_that_began_before_anybody_listened_is_no_run(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("web")
    with tracer.start_as_current_span("GET /ask") as request:
        recorder = Recorder()
        with chain("first"), step("search"):
            pass
        with chain("second"):
            pass
    told = recorder.all()
    roots = [event.span_id for event in told if event.type == "ChainStarted"]
    assert [event.run for event in told] == [roots[0]] * 4 + [roots[1]] * 2
    assert [event.sequence for event in told] == [1, 2, 3, 4, 1, 2]
    assert told[0].parent_span_id == f"{request.get_span_context().span_id:016x}"


def test_what_ends_before_anything_begins(recorder: Recorder) -> None:
    recorder.all()
    with chain("c") as run:
        with step("early"):
            late = Recorder()
        with step("late"):
            pass
    assert late.names() == ["StepCompleted early", "StepStarted late", "StepCompleted late", "ChainCompleted c"]
    assert {event.run for event in late.all()} == {run.span_id}


def test_a_run_that_is_remote_begins_here(spans: Spans, recorder: Recorder) -> None:
    from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

    remote = SpanContext(trace_id=1, span_id=2, is_remote=True)
    tracer = spans.provider.get_tracer("t")
    attributes = {semconv.OPERATION: "chat"}
    tracer.start_span("chat", set_span_in_context(NonRecordingSpan(remote)), attributes=attributes).end()
    started, _ = recorder.all()
    assert started.run == started.span_id
    assert started.parent_span_id == f"{2:016x}"


def test_nothing_is_remembered_of_spans_while_nobody_listens(spans: Spans) -> None:
    from otel_llm.setup import wiring

    processor: Any = wiring._wirings[spans.provider].observer
    with chain("c"):
        pass
    assert not processor._running
    with subscribe(print, types=ChainError), chain("c"):
        assert processor._running
    assert not processor._running


def test_tool_call_of_no_name() -> None:
    def asked(ids: object, names: object) -> list[Any]:
        said = {semconv.OPERATION: "chat", semconv.REQUESTED_TOOL_IDS: ids, semconv.REQUESTED_TOOL_NAMES: names}
        _, *requested = at_end({"t": "1", "s": "2", "n": "chat", "st": 1, "et": 2, "a": said})
        return [event.fields["calls"] for event in requested]

    assert asked(["", "b"], ["x", ""]) == [(ToolCall("x", None), ToolCall(None, "b"))]
    assert asked(None, ["x"]) == []
