"""The LangChain runnable of a profile, over real HTTP."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import openai
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel

from otel_llm import LLMInvoker
from otel_llm.calls.ending import error_type_of
from otel_llm.conventions import semconv
from otel_llm.routing import LimitReached, StepLimitReached
from otel_llm.support import faults
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans
from tests.routing.conftest import MODEL, Make


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@tool
def stock(article: str) -> str:
    """How many there are."""
    raise LookupError(f"no {article}")


async def every(invoker: LLMInvoker) -> list[str]:
    """What each way of calling gives."""
    return [
        (await asyncio.to_thread(invoker.invoke, "Hello")).text,
        (await invoker.ainvoke("Hello")).text,
        "".join([chunk.text for chunk in await asyncio.to_thread(lambda: list(invoker.stream("Hello")))]),
        "".join([chunk.text async for chunk in invoker.astream("Hello")]),
    ]


def attempts(traced: Spans) -> list[tuple[Any, ...]]:
    return [
        tuple(span.attributes.get(key) for key in (semconv.PROFILE, semconv.DEPLOYMENT, semconv.STATUS))
        for span in traced.all()
        if span.attributes[semconv.OPERATION] == "chat"
    ]


async def test_every_way_of_calling_gives_way(provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    before = faults.counts.copy()
    answers = await every(provider(bad="error-500", good={"stream_usage": True}).create_invoker("fast"))
    assert len(set(answers)) == 1 and answers[0].startswith("You asked: Hello")
    assert attempts(traced) == [("fast", "bad", "error"), *[("fast", "good", "ok")] * 4][: len(attempts(traced))]
    # Each request is one span, whatever became of it.
    assert len(attempts(traced)) == len(openai_server.requests)
    spans = [span for span in traced.all() if span.attributes.get(semconv.STATUS) == "ok"]
    counted = [span.attributes[semconv.INPUT_TOKENS] for span in spans if semconv.INPUT_TOKENS in span.attributes]
    assert counted == [call.input_tokens for call in openai_server.ledger]
    assert faults.counts == before


async def test_it_works_where_nothing_is_instrumented(provider: Make, openai_server: LocalOpenAI) -> None:
    invoker = provider(bad="error-429", good=MODEL).create_invoker("fast", streaming=True)
    assert len(set(await every(invoker))) == 1
    assert len(openai_server.ledger) == 4 and all(call.stream for call in openai_server.ledger)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_the_callers_mistake_is_the_callers(status: int, provider: Make, openai_server: LocalOpenAI) -> None:
    invoker = provider(bad=f"error-{status}", good=MODEL).create_invoker("fast")
    with pytest.raises(openai.APIStatusError) as caught:
        invoker.invoke("Hello")
    assert caught.value.status_code == status
    assert len(openai_server.requests) == 1


async def test_a_stream_that_begins_with_an_error_gives_way(provider: Make, openai_server: LocalOpenAI) -> None:
    def invoker() -> LLMInvoker:
        return provider(bad="stream-error-first", good=MODEL).create_invoker("fast")

    assert "".join(chunk.text for chunk in invoker().stream("Hello")).startswith("You asked: Hello")
    assert "".join([chunk.text async for chunk in invoker().astream("Hello")]).startswith("You asked: Hello")
    assert [call.model for call in openai_server.requests] == ["stream-error-first", MODEL] * 2


class Heard(BaseCallbackHandler):
    """Counts the models that it is told of."""

    def __init__(self) -> None:
        self.models = 0

    def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.models += 1


async def test_callbacks_by_keyword(provider: Make) -> None:
    always, config, call = Heard(), Heard(), Heard()
    invoker = provider(main=MODEL).create_invoker("fast", callbacks=[always])
    invoker.invoke("Hello", {"callbacks": [config]}, callbacks=[call])
    await invoker.ainvoke("Hello", callbacks=[call])
    assert list(invoker.stream("Hello", callbacks=[call]))
    assert [chunk async for chunk in invoker.astream("Hello", callbacks=[call])]
    invoker.batch(["a", "b"], callbacks=[call])
    await invoker.bind_tools([weather]).ainvoke("Hello", callbacks=[call])
    invoker.invoke_with_tools("Hello", [], callbacks=[call])
    await invoker.ainvoke_with_tools("Hello", [], callbacks=[call])
    assert (always.models, config.models, call.models) == (9, 1, 9)


async def test_a_failure_in_mid_stream_is_the_apps_to_see(provider: Make, openai_server: LocalOpenAI) -> None:
    invoker = provider(bad="stream-broken", good=MODEL).create_invoker("fast")
    seen = []
    with pytest.raises(openai.APIConnectionError):
        for chunk in invoker.stream("Hello"):
            seen.append(chunk)
    with pytest.raises(openai.APIConnectionError):
        async for chunk in invoker.astream("Hello"):
            seen.append(chunk)
    assert seen
    assert [call.model for call in openai_server.requests] == ["stream-broken"] * 2


async def test_a_stream_leaves_no_context_with_its_reader(provider: Make, traced: Spans) -> None:
    invoker = provider(good=MODEL, other=MODEL).create_invoker("fast")
    direct = provider(main=MODEL)
    stream = invoker.stream("Hello")
    next(stream)
    astream = invoker.astream("Hello")
    await anext(astream)
    openai.OpenAI(api_key="x", base_url=str(direct.client("fast").base_url)).embeddings.create(model="e", input="x")
    (outside,) = [span for span in traced.all() if span.attributes[semconv.OPERATION] == "embeddings"]
    assert semconv.PROFILE not in outside.attributes and semconv.DEPLOYMENT not in outside.attributes
    stream.close()  # type: ignore[attr-defined]
    await astream.aclose()  # type: ignore[attr-defined]
    # `with_fallbacks` leaves its inner generator to the event loop, which closes it in a task of its own.
    async with asyncio.timeout(30):
        while len(attempts(traced)) < 2:
            await asyncio.sleep(0.01)
    assert [status for *_, status in attempts(traced)] == ["partial", "partial"]


def test_parameters_reach_the_provider(provider: Make, openai_server: LocalOpenAI) -> None:
    parameters = {
        "temperature": 0.5,
        "seed": 3,
        "max_completion_tokens": 5,
        "prompt_cache_key": "k",
        "verbosity": "low",
    }
    provider(main={"parameters": parameters}).create_invoker("fast").invoke("Hello")
    body = openai_server.ledger[0].body
    assert {key: body[key] for key in parameters} == parameters


def test_it_composes(provider: Make, openai_server: LocalOpenAI) -> None:
    class City(BaseModel):
        name: str

    invoker = provider(bad="error-429-after-60", good=MODEL).create_invoker("fast")
    chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | invoker | StrOutputParser()
    assert chain.invoke({"q": "Hello"}).startswith("You asked: Hello")
    assert "".join(chain.stream({"q": "Hello"})).startswith("You asked: Hello")
    assert [message.text[:12] for message in invoker.batch(["one", "two"])] == ["You asked: o", "You asked: t"]
    assert invoker.with_structured_output(City).invoke("I live in Lisbon") == City(name="Lisbon")
    assert [call.status for call in openai_server.requests] == [429, *[200] * 5]


def test_an_agent_takes_it_for_a_model(provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    agents = pytest.importorskip("langchain.agents")
    if not hasattr(agents, "create_agent"):
        pytest.skip("create_agent came with langchain 1.0")
    invoker = provider(bad="error-429-after-60", good=MODEL).create_invoker("fast")
    agent = agents.create_agent(invoker, [weather], name="forecaster")
    answer = agent.invoke({"messages": [HumanMessage("In Lisbon")]})
    assert answer["messages"][-1].text == "The tool says: sunny in Lisbon"
    assert [call.status for call in openai_server.requests] == [429, 200, 200]
    assert {span.attributes[semconv.AGENT_NAME] for span in traced.all()} == {"forecaster"}


@pytest.mark.parametrize("is_async", [False, True])
async def test_tools_run_to_the_end(is_async: bool, provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    invoker = provider(bad="error-500", good="parallel-tools").create_invoker("fast")
    transcript: list[BaseMessage] = []
    arguments: Any = ([HumanMessage("In Lisbon")], [weather, stock])
    if is_async:
        answer = await invoker.ainvoke_with_tools(*arguments, transcript=transcript)
    else:
        answer = invoker.invoke_with_tools(*arguments, transcript=transcript)
    assert isinstance(answer, AIMessage) and answer.text.startswith("The tool says: Error: LookupError: no Lisbon")
    asked, sunny, failed, last = transcript
    assert isinstance(asked, AIMessage) and [call["name"] for call in asked.tool_calls] == ["weather", "stock"]
    assert isinstance(sunny, ToolMessage) and (sunny.status, sunny.text) == ("success", "sunny in Lisbon")
    assert isinstance(failed, ToolMessage) and failed.status == "error"
    assert last is answer

    spans = traced.all()
    tools = {span.name: span.attributes[semconv.STATUS] for span in spans if span.name.startswith("execute_tool")}
    assert tools == {"execute_tool weather": "ok", "execute_tool stock": "error"}
    assert attempts(traced) == [("fast", "bad", "error"), *[("fast", "good", "ok")] * 2][: len(attempts(traced))]
    assert len({span.context.trace_id for span in spans}) == 1
    assert len(attempts(traced)) == len(openai_server.requests) == 3


def test_a_tool_that_is_not_there_is_told_to_the_model() -> None:
    from otel_llm.routing.tools import by_name, run, steps

    class Scripted:
        def __init__(self, *answers: AIMessage) -> None:
            self.answers = list(answers)
            self.seen: list[list[BaseMessage]] = []

        def invoke(self, messages: list[BaseMessage], config: Any) -> AIMessage:
            self.seen.append(messages)
            return self.answers.pop(0)

    wrong = AIMessage(
        "",
        tool_calls=[{"name": "wether", "args": {}, "id": "1"}, {"name": "weather", "args": {"town": 1}, "id": "2"}],
        invalid_tool_calls=[{"name": "weather", "args": "{", "id": "3", "error": "", "type": "invalid_tool_call"}],
    )
    model = Scripted(wrong, AIMessage("done"))
    assert run(steps(model, by_name([weather]), "Hello", 5, None), {}).text == "done"
    answers = [message for message in model.seen[1] if isinstance(message, ToolMessage)]
    assert [(one.tool_call_id, one.status) for one in answers] == [("1", "error"), ("2", "error"), ("3", "error")]
    assert answers[0].text == "Error: there is no tool 'wether'; there is weather"
    assert "valid JSON" in answers[2].text


def test_errors_are_named_as_apps_import_them() -> None:
    """`error.type` has this name, and rows are found by it: a move inside the package must not change it."""
    for error in (LimitReached, StepLimitReached):
        assert error_type_of(error()) == f"otel_llm.routing.{error.__name__}"
        assert type(pickle.loads(pickle.dumps(error("x")))) is error


async def test_the_steps_are_limited(provider: Make, openai_server: LocalOpenAI) -> None:
    invoker = provider(good=MODEL).create_invoker("fast")
    transcript: list[BaseMessage] = []
    with pytest.raises(StepLimitReached, match="after 1 steps; raise max_steps"):
        await invoker.ainvoke_with_tools("In Lisbon", [weather], max_steps=1, transcript=transcript)
    assert [message.type for message in transcript] == ["ai", "tool"]
    assert len(openai_server.ledger) == 1
    with pytest.raises(ValueError, match="two tools are named 'weather'"):
        invoker.invoke_with_tools("In Lisbon", [weather, weather])


async def test_cancelling_leaves_nothing_behind(provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    invoker = provider(slow="slow", good=MODEL).create_invoker("fast")
    task = asyncio.create_task(invoker.ainvoke("Hello"))
    await asyncio.to_thread(openai_server.wait_for, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempts(traced) == [("fast", "slow", "cancelled")]
