"""`create_agent`: the agent, its model calls and its tools, however the tools go about it."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.tools import BaseTool, ToolException, tool
from langchain_openai import ChatOpenAI

from otel_llm.conventions import semconv
from tests.instrumentation.langchain.conftest import MODEL, Traced, create_agent, needs_agents

pytestmark = needs_agents

QUESTION: Any = {"messages": [("user", "What is the weather in Oslo?")]}
WITH_A_TOOL = f"""\
invoke_agent weather
  chat {MODEL}
  execute_tool look_up
  chat {MODEL}"""


@tool
def look_up(city: str) -> str:
    """Looks up the weather."""
    return f"sunny in {city}"


@tool("look_up")
async def look_up_async(city: str) -> str:
    """Looks up the weather."""
    return f"sunny in {city}"


def _agent(model: ChatOpenAI, *tools: BaseTool, **options: Any) -> Any:
    return create_agent(model, list(tools) or [look_up], **{"name": "weather", **options})


async def _invoke(agent: Any) -> None:
    agent.invoke(QUESTION)


async def _stream(agent: Any) -> None:
    list(agent.stream(QUESTION))


async def _stream_messages(agent: Any) -> None:
    list(agent.stream(QUESTION, stream_mode="messages"))


async def _batch(agent: Any) -> None:
    agent.batch([QUESTION])


async def _ainvoke(agent: Any) -> None:
    await agent.ainvoke(QUESTION)


async def _astream(agent: Any) -> None:
    _ = [part async for part in agent.astream(QUESTION)]


async def _astream_messages(agent: Any) -> None:
    _ = [part async for part in agent.astream(QUESTION, stream_mode="messages")]


async def _astream_events(agent: Any) -> None:
    _ = [event async for event in agent.astream_events(QUESTION, version="v2")]


async def _abatch(agent: Any) -> None:
    await agent.abatch([QUESTION])


SYNC = [_invoke, _stream, _stream_messages, _batch]
ASYNC = [_ainvoke, _astream, _astream_messages, _astream_events, _abatch]


@pytest.mark.parametrize(
    ("way", "lookup"),
    [(way, look_up) for way in SYNC + ASYNC] + [(way, look_up_async) for way in ASYNC],
    ids=lambda value: value.__name__ if callable(value) and hasattr(value, "__name__") else type(value).__name__,
)
async def test_an_agent_with_a_tool(way: Any, lookup: BaseTool, traced: Traced, model: ChatOpenAI) -> None:
    await way(_agent(model, lookup))
    assert traced.tree() == WITH_A_TOOL
    traced.check_account()
    assert {span.attributes[semconv.AGENT_NAME] for span in traced.all()} == {"weather"}
    executed = dict(traced.named("execute_tool look_up").attributes or {})
    assert executed.pop(semconv.TOOL_CALL_ID).startswith("call_")
    assert executed == {
        semconv.OPERATION: "execute_tool",
        semconv.TOOL_NAME: "look_up",
        semconv.TOOL_TYPE: "function",
        semconv.TOOL_DESCRIPTION: "Looks up the weather.",
        semconv.AGENT_NAME: "weather",
        semconv.STATUS: "ok",
    }


@pytest.mark.parametrize("way", [_invoke, _ainvoke])
async def test_a_direct_call_in_a_tool(way: Any, traced: Traced, model: ChatOpenAI, client: openai.OpenAI) -> None:
    @tool
    def ask(city: str) -> str:
        """Asks another model."""
        answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": city}])
        return str(answer.choices[0].message.content)

    await way(_agent(model, ask))
    assert traced.tree() == (
        f"invoke_agent weather\n  chat {MODEL}\n  execute_tool ask\n    chat gpt-4o\n  chat {MODEL}"
    )
    assert traced.named("chat gpt-4o").attributes[semconv.AGENT_NAME] == "weather"
    traced.check_account()


async def test_a_direct_async_call_in_a_tool(
    traced: Traced, model: ChatOpenAI, async_client: openai.AsyncOpenAI
) -> None:
    @tool
    async def ask(city: str) -> str:
        """Asks another model."""
        answer = await async_client.responses.create(model="gpt-4o", input=city)
        return answer.output_text

    await _agent(model, ask).ainvoke(QUESTION)
    assert traced.tree() == (
        f"invoke_agent weather\n  chat {MODEL}\n  execute_tool ask\n    chat gpt-4o\n  chat {MODEL}"
    )
    traced.check_account()


@pytest.mark.parametrize("way", [_invoke, _ainvoke, _astream_messages])
async def test_an_agent_that_calls_an_agent(way: Any, traced: Traced, model: ChatOpenAI) -> None:
    inner = _agent(model, name="inner")

    @tool
    def delegate(city: str) -> str:
        """Asks the other agent."""
        return str(inner.invoke(QUESTION)["messages"][-1].content)

    await way(_agent(model, delegate, name="outer"))
    assert traced.tree() == "\n".join(
        [
            "invoke_agent outer",
            f"  chat {MODEL}",
            "  execute_tool delegate",
            "    invoke_agent inner",
            f"      chat {MODEL}",
            "      execute_tool look_up",
            f"      chat {MODEL}",
            f"  chat {MODEL}",
        ]
    )
    traced.check_account()
    agents = [span.attributes[semconv.AGENT_NAME] for span in traced.models()]
    assert sorted(agents) == ["inner", "inner", "outer", "outer"]


def test_an_agent_without_a_name(traced: Traced, model: ChatOpenAI) -> None:
    _agent(model, name=None).invoke(QUESTION)
    assert traced.tree().splitlines()[0] == "invoke_agent"
    assert not any(semconv.AGENT_NAME in span.attributes for span in traced.all())
    traced.check_account()


def test_a_run_name_does_not_rename_the_agent(traced: Traced, model: ChatOpenAI) -> None:
    _agent(model).invoke(QUESTION, config={"run_name": "turn 17 of session 4"})
    assert traced.tree() == WITH_A_TOOL


def test_several_tools_at_once(traced: Traced, model: ChatOpenAI, chat_model: Any) -> None:
    @tool
    def other(city: str) -> str:
        """Something else."""
        return "nothing"

    _agent(chat_model("parallel-tools"), look_up, other).invoke(QUESTION)
    assert sorted(traced.tree().splitlines()) == sorted(
        [
            "invoke_agent weather",
            "  chat parallel-tools",
            "  execute_tool look_up",
            "  execute_tool other",
            "  chat parallel-tools",
        ]
    )
    traced.check_account()


def test_middleware_shows_as_a_step(traced: Traced, model: ChatOpenAI) -> None:
    from langchain.agents.middleware import AgentMiddleware

    class Guard(AgentMiddleware[Any, Any]):
        def before_model(self, state: Any, runtime: Any) -> None:
            model.invoke("is this safe?")

    _agent(model, middleware=[Guard()]).invoke(QUESTION)
    assert traced.tree() == "\n".join(
        [
            "invoke_agent weather",
            "  step Guard.before_model",
            f"    chat {MODEL}",
            f"  chat {MODEL}",
            "  execute_tool look_up",
            "  step Guard.before_model",
            f"    chat {MODEL}",
            f"  chat {MODEL}",
        ]
    )
    traced.check_account()


def test_a_tool_on_its_own(traced: Traced) -> None:
    assert look_up.invoke({"city": "Oslo"}) == "sunny in Oslo"
    assert traced.tree() == "execute_tool look_up"


def test_a_tool_that_fails(traced: Traced, model: ChatOpenAI) -> None:
    @tool
    def broken(city: str) -> str:
        """Fails."""
        raise LookupError("a SECRET")

    with pytest.raises(LookupError):
        _agent(model, broken).invoke(QUESTION)
    for name in ("execute_tool broken", "invoke_agent weather"):
        span = traced.named(name)
        assert not span.status.is_ok
        assert span.status.description is None
        assert span.attributes[semconv.ERROR_TYPE] == "LookupError"
        assert not span.events
    traced.check_account()


def test_a_tool_that_handles_its_error(traced: Traced, model: ChatOpenAI) -> None:
    @tool
    def broken(city: str) -> str:
        """Fails."""
        raise ToolException("not today")

    broken.handle_tool_error = True
    _agent(model, broken).invoke(QUESTION)
    assert traced.named("execute_tool broken").attributes[semconv.ERROR_TYPE] == "tool_error"
    assert traced.named("invoke_agent weather").attributes[semconv.STATUS] == "ok"
    traced.check_account()
