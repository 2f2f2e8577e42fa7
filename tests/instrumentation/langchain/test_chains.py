"""LCEL: the outermost chain is the workflow, plumbing stays out, and every model call hangs in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnableParallel, RunnablePassthrough, chain
from langchain_openai import ChatOpenAI
from opentelemetry.trace import get_tracer
from pydantic import BaseModel

from otel_llm import llm_context
from otel_llm.conventions import semconv
from tests.instrumentation.langchain.conftest import MODEL, Traced

Model = Callable[..., ChatOpenAI]

PROMPT = ChatPromptTemplate.from_template("Tell me about {topic}.")
INPUT = {"topic": "tides"}
ONE = f"""\
invoke_workflow RunnableSequence
  chat {MODEL}"""


async def _invoke(runnable: Any) -> None:
    runnable.invoke(INPUT)


async def _ainvoke(runnable: Any) -> None:
    await runnable.ainvoke(INPUT)


async def _stream(runnable: Any) -> None:
    list(runnable.stream(INPUT))


async def _astream(runnable: Any) -> None:
    _ = [chunk async for chunk in runnable.astream(INPUT)]


async def _astream_events(runnable: Any) -> None:
    _ = [event async for event in runnable.astream_events(INPUT)]


async def _astream_log(runnable: Any) -> None:
    _ = [patch async for patch in runnable.astream_log(INPUT)]


async def _thread(runnable: Any) -> None:
    await asyncio.to_thread(runnable.invoke, INPUT)


WAYS = pytest.mark.parametrize("way", [_invoke, _ainvoke, _stream, _astream, _astream_events, _astream_log, _thread])


@WAYS
async def test_prompt_model_parser(way: Any, traced: Traced, model: ChatOpenAI) -> None:
    await way(PROMPT | model | StrOutputParser())
    assert traced.tree() == ONE
    workflow, call = traced.named("invoke_workflow RunnableSequence"), traced.named(f"chat {MODEL}")
    assert dict(workflow.attributes or {}) == {semconv.OPERATION: "invoke_workflow", semconv.STATUS: "ok"}
    assert semconv.WORKFLOW_NAME not in call.attributes  # nobody has given it a name
    traced.check_account()


@pytest.mark.parametrize(
    ("chain", "name"),
    [
        (RunnableLambda(lambda value: value), None),
        (RunnableParallel(a=RunnablePassthrough(), b=RunnablePassthrough()), None),
        (RunnablePassthrough.assign(c=lambda value: 1), None),
        (RunnableLambda(lambda value: value).with_retry(), None),
        (RunnableLambda(lambda value: value).with_fallbacks([RunnablePassthrough()]), None),
        (RunnablePassthrough().with_config(run_name="answer"), "answer"),
        (RunnableLambda(lambda value: value, name="look"), "look"),
        (RunnablePassthrough().with_config(run_name="Runnable of mine"), "Runnable of mine"),
    ],
)
def test_a_workflow_has_the_name_that_its_author_gave_it(traced: Traced, chain: Any, name: str | None) -> None:
    chain.invoke({"a": 1})
    (workflow,) = traced.all()
    assert workflow.attributes.get(semconv.WORKFLOW_NAME) == name


@WAYS
async def test_branches_run_side_by_side(way: Any, traced: Traced, model: ChatOpenAI) -> None:
    def format_docs(text: Any) -> Any:
        return text

    short = PROMPT | model | StrOutputParser() | format_docs
    named = (PROMPT | model).with_config(run_name="long")
    await way(RunnableParallel(short=short, long=named, same=RunnablePassthrough()))
    assert sorted(traced.tree().splitlines()) == sorted(
        [
            "invoke_workflow RunnableParallel<short,long,same>",
            f"  chat {MODEL}",
            "  step long",
            f"    chat {MODEL}",
        ]
    )
    traced.check_account()


async def test_batches_are_a_workflow_each(traced: Traced, model: ChatOpenAI) -> None:
    runnable = PROMPT | model
    runnable.batch([INPUT] * 3)
    await runnable.abatch([INPUT] * 3)
    assert traced.tree() == "\n".join([ONE] * 6)
    traced.check_account()


async def test_as_completed(traced: Traced, model: ChatOpenAI) -> None:
    runnable = PROMPT | model
    list(runnable.batch_as_completed([INPUT] * 2))
    _ = [item async for item in runnable.abatch_as_completed([INPUT] * 2)]
    assert traced.tree() == "\n".join([ONE] * 4)
    traced.check_account()


@WAYS
async def test_functions_show_where_something_happens_in_them(way: Any, traced: Traced, model: ChatOpenAI) -> None:
    @chain
    def route(value: Any) -> Any:
        return model.invoke("inside")

    await way(RunnableLambda(lambda value: value) | route | StrOutputParser())
    assert traced.tree() == f"invoke_workflow RunnableSequence\n  step route\n    chat {MODEL}"
    traced.check_account()


async def test_a_direct_call_in_a_function(
    traced: Traced, client: openai.OpenAI, async_client: openai.AsyncOpenAI
) -> None:
    def direct(value: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])

    async def direct_async(value: Any) -> Any:
        return await async_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])

    runnable = RunnablePassthrough() | RunnableLambda(direct, afunc=direct_async, name="direct")
    runnable.invoke(1)
    await runnable.ainvoke(1)
    runnable.batch([1, 2])
    await runnable.abatch([1, 2])
    assert traced.tree() == "\n".join([f"invoke_workflow RunnableSequence\n  step direct\n    chat {MODEL}"] * 6)
    traced.check_account()


def test_structured_output(traced: Traced, model: ChatOpenAI) -> None:
    class Answer(BaseModel):
        text: str

    assert isinstance(model.with_structured_output(Answer).invoke("hi"), Answer)
    assert traced.tree() == ONE
    traced.check_account()


def test_a_branch(traced: Traced, model: ChatOpenAI) -> None:
    RunnableBranch((lambda value: True, PROMPT | model), PROMPT).invoke(INPUT)
    assert traced.tree() == f"invoke_workflow RunnableBranch\n  chat {MODEL}"
    traced.check_account()


@WAYS
async def test_fallbacks(way: Any, traced: Traced, model: ChatOpenAI, chat_model: Model) -> None:
    runnable = PROMPT | chat_model("error-500").with_fallbacks([model])
    await way(runnable)
    assert traced.tree() == f"invoke_workflow RunnableSequence\n  chat error-500\n  chat {MODEL}"
    failed, answered = traced.models()
    assert (failed.attributes[semconv.STATUS], failed.attributes[semconv.ERROR_TYPE]) == ("error", "500")
    assert answered.attributes[semconv.STATUS] == "ok"
    assert traced.named("invoke_workflow RunnableSequence").attributes[semconv.STATUS] == "ok"


def test_retries(traced: Traced, chat_model: Model) -> None:
    model = chat_model("flaky-2").with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    (PROMPT | model).invoke(INPUT)
    assert [span.attributes[semconv.STATUS] for span in traced.models()] == ["error", "error", "ok"]
    # LangChain calls the run of the retries `ChatOpenAI`, too.
    assert traced.tree() == "invoke_workflow RunnableSequence\n" + "\n".join(["  chat flaky-2"] * 3)


def test_a_prompt_or_parser_alone_is_no_workflow(traced: Traced) -> None:
    PROMPT.invoke(INPUT)
    StrOutputParser().invoke("x")
    assert traced.tree() == ""


def test_under_the_apps_own_span(traced: Traced, model: ChatOpenAI) -> None:
    tracer = get_tracer("app", tracer_provider=traced.provider)

    def rerank(value: Any) -> Any:
        with tracer.start_as_current_span("rerank", attributes={semconv.OPERATION: "step"}):
            return model.invoke("x")

    with tracer.start_as_current_span("request", attributes={semconv.OPERATION: "step"}):
        RunnableLambda(rerank).invoke(1)
        RunnableLambda(lambda value: model.invoke("y")).invoke(1)
    assert traced.tree() == "\n".join(
        [
            "request",
            "  invoke_workflow rerank",
            "  rerank",
            f"    chat {MODEL}",
            "  invoke_workflow RunnableLambda",
            f"    chat {MODEL}",
        ]
    )
    traced.check_account()


async def test_the_context_reaches_every_span(traced: Traced, model: ChatOpenAI) -> None:
    def part(value: Any) -> Any:
        with llm_context(user_id="inner"):
            return model.invoke("x")

    with llm_context("search", user_id="outer"):
        await (RunnablePassthrough() | part).ainvoke(1)
    users = {span.name: span.attributes[semconv.USER_ID] for span in traced.all()}
    assert users == {"invoke_workflow RunnableSequence": "outer", "step part": "outer", f"chat {MODEL}": "inner"}
    assert {span.attributes[semconv.MODULE] for span in traced.all()} == {"search"}


async def test_explicit_callbacks_do_not_cut_the_tree(traced: Traced, model: ChatOpenAI) -> None:
    """`config={"callbacks": []}` cuts LangChain's own parents; the account keeps them."""

    async def part(value: Any) -> Any:
        return await (PROMPT | model).ainvoke(INPUT, config={"callbacks": []})

    await (RunnablePassthrough() | part).ainvoke(1)
    assert traced.tree() == f"invoke_workflow RunnableSequence\n  step part\n    chat {MODEL}"
    traced.check_account()


def test_the_apps_list_of_callbacks_stays_as_it_was(traced: Traced, model: ChatOpenAI) -> None:
    from langchain_core.callbacks import BaseCallbackHandler, CallbackManager

    mine: list[BaseCallbackHandler] = [BaseCallbackHandler()]
    (PROMPT | model).invoke(INPUT, config={"callbacks": mine})
    CallbackManager(handlers=mine, inheritable_handlers=mine)
    assert len(mine) == 1


def test_nothing_of_the_content_is_recorded(traced: Traced, model: ChatOpenAI) -> None:
    def fails(value: Any) -> Any:
        raise ValueError("quotes a SECRET")

    with pytest.raises(ValueError):
        (ChatPromptTemplate.from_template("SECRET {topic}") | model | fails).invoke({"topic": "SECRET"})
    assert "SECRET" not in "".join(span.to_json() for span in traced.all())
