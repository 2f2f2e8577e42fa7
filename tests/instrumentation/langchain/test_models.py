"""A model on its own, in every way of calling it: one span, whoever records it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel, FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_openai import AzureChatOpenAI, ChatOpenAI, OpenAI

from otel_llm import llm_context
from otel_llm.conventions import semconv
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from tests.conftest import LocalOpenAI
from tests.instrumentation.langchain.conftest import MODEL, Traced

Model = Callable[..., ChatOpenAI]


async def _invoke(model: Any) -> None:
    model.invoke("hi")


async def _ainvoke(model: Any) -> None:
    await model.ainvoke("hi")


async def _stream(model: Any) -> None:
    assert len(list(model.stream("hi"))) > 1


async def _astream(model: Any) -> None:
    assert len([chunk async for chunk in model.astream("hi")]) > 1


async def _astream_events(model: Any) -> None:
    events = [event["event"] async for event in model.astream_events("hi")]
    assert events[0] == "on_chat_model_start"


async def _generate(model: Any) -> None:
    model.generate([[HumanMessage("hi")]])


async def _agenerate(model: Any) -> None:
    await model.agenerate([[HumanMessage("hi")]])


async def _stream_events(model: Any) -> None:
    if not hasattr(model, "stream_events"):
        pytest.skip("langchain-core 1.x")
    assert len(list(model.stream_events("hi", version="v3"))) > 1


async def _astream_events_v3(model: Any) -> None:
    if not hasattr(model, "stream_events"):
        pytest.skip("langchain-core 1.x")
    assert len([event async for event in await model.astream_events("hi", version="v3")]) > 1
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # its producer has a task of its own


WAYS = [
    _invoke,
    _ainvoke,
    _stream,
    _astream,
    _astream_events,
    _stream_events,
    _astream_events_v3,
    _generate,
    _agenerate,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:.*in beta")
@pytest.mark.parametrize("responses_api", [False, True])
async def test_one_call_is_one_span(way: Any, responses_api: bool, traced: Traced, chat_model: Model) -> None:
    await way(chat_model(use_responses_api=responses_api, stream_usage=True))
    assert traced.tree() == f"chat {MODEL}"
    traced.check_account()
    attributes = traced.named(f"chat {MODEL}").attributes
    assert attributes.get(semconv.REQUEST_STREAM) == (True if "stream" in way.__name__ else None)
    assert attributes[semconv.RECORDED_BY] == "otel_llm.instrumentation.openai"


async def test_batches_are_a_span_each(traced: Traced, model: ChatOpenAI) -> None:
    model.batch(["a", "b b", "c c c"])
    await model.abatch(["d", "e e", "f f f"])
    assert traced.tree() == "\n".join([f"chat {MODEL}"] * 6)
    traced.check_account()


async def test_several_prompts_in_one_generate(traced: Traced, model: ChatOpenAI) -> None:
    prompts: list[list[BaseMessage]] = [[HumanMessage("word " * n)] for n in range(1, 5)]
    model.generate(prompts)
    await model.agenerate(prompts)
    assert len(traced.models()) == 8
    traced.check_account()


async def test_a_direct_call_after_a_run_is_its_own(
    traced: Traced, model: ChatOpenAI, client: openai.OpenAI, async_client: openai.AsyncOpenAI
) -> None:
    await model.ainvoke("hi")
    await async_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "direct"}])
    model.invoke("hi")
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "direct"}])
    assert traced.tree() == "\n".join([f"chat {MODEL}"] * 4)
    traced.check_account()


async def test_a_direct_call_between_the_chunks_is_its_own(
    traced: Traced, model: ChatOpenAI, client: openai.OpenAI
) -> None:
    for number, _ in enumerate(model.stream("hi")):
        if number == 1:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "direct"}])
    assert traced.tree() == "\n".join([f"chat {MODEL}"] * 2)
    traced.check_account()


def test_the_models_own_name_for_itself_does_not_matter(traced: Traced, openai_server: LocalOpenAI) -> None:
    """Azure: LangChain reports model and version, the client sends another name."""
    AzureChatOpenAI(
        azure_endpoint=openai_server.origin,
        api_key="x",
        api_version="2024-10-21",
        azure_deployment="mine",
        model="gpt-4o",
        model_version="2024-08-06",
    ).invoke("hi")
    (span,) = traced.models()
    assert span.attributes[semconv.PROVIDER] == "azure.ai.openai"
    traced.check_account()


class _Custom(BaseChatModel):
    """A model class of an app's own, around the OpenAI client."""

    client: Any
    model: str = "fast"
    requests: int = 1
    embeds: bool = False

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        if self.embeds:
            self.client.embeddings.create(model="text-embedding-3-small", input="hi")
        for number in range(self.requests):
            answer = self.client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": f"prompt {number}"}]
            )
        message = AIMessage(answer.choices[0].message.content)
        return ChatResult(generations=[ChatGeneration(message=message)])

    @property
    def _llm_type(self) -> str:
        return "custom"


def test_a_custom_model_with_an_alias(traced: Traced, client: openai.OpenAI) -> None:
    _Custom(client=client).invoke("hi")
    assert traced.tree() == f"chat {MODEL}"
    assert traced.models()[0].attributes[semconv.REQUEST_MODEL] == MODEL
    traced.check_account()


def test_a_model_run_that_makes_several_requests(traced: Traced, client: openai.OpenAI) -> None:
    _Custom(client=client, requests=3).invoke("hi")
    assert traced.tree() == "\n".join([f"chat {MODEL}"] * 3)
    traced.check_account()


def test_embeddings_on_the_way_do_not_take_the_call(traced: Traced, client: openai.OpenAI) -> None:
    _Custom(client=client, embeds=True).invoke("hi")
    assert traced.tree() == f"chat {MODEL}\nembeddings text-embedding-3-small"
    traced.check_account()


def test_further_requests_of_a_model_stay_in_their_workflow(traced: Traced, client: openai.OpenAI) -> None:
    chain = ChatPromptTemplate.from_template("{x}") | _Custom(client=client, requests=2, embeds=True)
    chain.batch([{"x": "1"}, {"x": "2"}])
    one = f"invoke_workflow RunnableSequence\n  chat {MODEL}\n  embeddings text-embedding-3-small\n  chat {MODEL}"
    assert traced.tree() == f"{one}\n{one}"
    traced.check_account()


# --- models that nothing else instruments ----------------------------------------------------------------------------
def _answer(**fields: Any) -> AIMessage:
    return AIMessage(
        "text",
        id="msg-1",
        usage_metadata={
            "input_tokens": 10,
            "output_tokens": 5,
            "total_tokens": 15,
            "input_token_details": {"cache_read": 4, "cache_creation": 1},
            "output_token_details": {"reasoning": 2},
        },
        response_metadata={"model_name": "claude-x-1", "stop_reason": "end_turn"},
        **fields,
    )


def test_a_model_of_another_provider(traced: Traced) -> None:
    class ChatAnthropic(GenericFakeChatModel):
        model: str = "claude-x"
        temperature: float = 0.5

    ChatAnthropic(messages=iter([_answer()])).invoke("a secret")
    span = traced.named("chat claude-x")
    attributes = dict(span.attributes or {})
    assert attributes.pop(semconv.OPERATION) == "chat"
    assert attributes == {
        semconv.PROVIDER: "anthropic",
        semconv.REQUEST_MODEL: "claude-x",
        semconv.REQUEST_TEMPERATURE: 0.5,
        semconv.RESPONSE_ID: "msg-1",
        semconv.RESPONSE_MODEL: "claude-x-1",
        semconv.FINISH_REASONS: ("end_turn",),
        semconv.INPUT_TOKENS: 10,
        semconv.OUTPUT_TOKENS: 5,
        semconv.CACHE_READ_TOKENS: 4,
        semconv.CACHE_WRITE_TOKENS: 1,
        semconv.REASONING_TOKENS: 2,
        semconv.USAGE_SOURCE: "reported",
        semconv.STATUS: "ok",
    }


async def test_fake_models(traced: Traced) -> None:
    model = FakeListChatModel(responses=["one", "two"])
    model.invoke("hi")
    await model.ainvoke("hi")
    assert list(model.stream("hi"))
    assert [chunk async for chunk in model.astream("hi")]
    model.batch(["a", "b"])
    await model.abatch(["a", "b"])
    assert traced.tree() == "\n".join(["chat"] * 8)
    streamed = [span for span in traced.models() if span.attributes.get(semconv.REQUEST_STREAM)]
    assert len(streamed) == 2
    assert all(span.attributes[semconv.TIME_TO_FIRST_CHUNK] > 0 for span in streamed)
    assert not any(semconv.USAGE_SOURCE in span.attributes for span in traced.models())


def test_a_direct_call_while_another_model_streams_is_its_own(traced: Traced, client: openai.OpenAI) -> None:
    for number, _ in enumerate(FakeListChatModel(responses=["text"]).stream("hi")):
        if number == 0:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "direct"}])
    assert traced.tree() == f"chat\nchat {MODEL}"
    assert len(traced.models()) == 2


def test_without_the_openai_hook_langchain_records(traced: Traced, chat_model: Model) -> None:
    OpenAIInstrumentor().uninstrument()
    try:
        model = chat_model(stream_usage=True)
        model.invoke("hi")
        list(model.stream("hi"))
        with pytest.raises(openai.NotFoundError):
            chat_model("error-404").invoke("hi")
    finally:
        OpenAIInstrumentor().instrument(tracer_provider=traced.provider)
    plain, streamed, failed = traced.models()
    assert plain.attributes[semconv.PROVIDER] == "openai"
    assert plain.attributes[semconv.RESPONSE_MODEL].startswith(MODEL)
    assert streamed.attributes[semconv.REQUEST_STREAM] is True
    assert failed.attributes[semconv.ERROR_TYPE] == "404"
    assert failed.status.description is None
    failed_less = [span for span in traced.models() if span is not failed]
    assert [span.attributes[semconv.FINISH_REASONS] for span in failed_less] == [("stop",), ("stop",)]
    traced_tokens = [(s.attributes[semconv.INPUT_TOKENS], s.attributes[semconv.OUTPUT_TOKENS]) for s in failed_less]
    assert traced_tokens == [(call.input_tokens, call.output_tokens) for call in traced.ledger]


# --- completion models ------------------------------------------------------------------------------------------------
async def test_completion_models(traced: Traced, openai_server: LocalOpenAI) -> None:
    model = OpenAI(base_url=openai_server.base_url, api_key="x", model="gpt-3.5-turbo-instruct")
    model.invoke("hi")
    await model.ainvoke("hi")
    assert list(model.stream("hi"))
    assert len(traced.models()) == len(openai_server.ledger) == 3
    assert traced.tree() == "\n".join(["text_completion gpt-3.5-turbo-instruct"] * 3)


async def test_prompts_that_share_a_request_are_one_call(traced: Traced, openai_server: LocalOpenAI) -> None:
    model = OpenAI(base_url=openai_server.base_url, api_key="x", model="gpt-3.5-turbo-instruct")
    model.generate(["one", "two two", "three three three"])
    await model.abatch(["one", "two two", "three three three"])
    assert len(openai_server.ledger) == 2
    traced.check_account()


async def test_prompts_that_share_a_request_without_the_hook(traced: Traced, openai_server: LocalOpenAI) -> None:
    OpenAIInstrumentor().uninstrument()
    try:
        model = OpenAI(base_url=openai_server.base_url, api_key="x", model="gpt-3.5-turbo-instruct")
        model.generate(["one", "two two"])
    finally:
        OpenAIInstrumentor().instrument(tracer_provider=traced.provider)
    (span,) = traced.models()
    (billed,) = openai_server.ledger
    assert (span.attributes[semconv.INPUT_TOKENS], span.attributes[semconv.OUTPUT_TOKENS]) == (
        billed.input_tokens,
        billed.output_tokens,
    )


async def test_a_model_that_answers_one_prompt_at_a_time(traced: Traced) -> None:
    model = FakeListLLM(responses=["a", "b", "c"])
    model.generate(["one", "two"])
    await model.agenerate(["one", "two", "three"])
    assert traced.tree() == "\n".join(["text_completion"] * 5)


# --- caches -----------------------------------------------------------------------------------------------------------
async def test_a_cache_hit_bills_nothing(traced: Traced, chat_model: Model) -> None:
    model = chat_model(cache=InMemoryCache())
    first = model.invoke("hi")
    assert model.invoke("hi").content == first.content
    await model.ainvoke("hi")
    billed, *hits = traced.models()
    assert semconv.CACHE_HIT not in billed.attributes
    for hit in hits:
        assert hit.attributes[semconv.CACHE_HIT] is True
        assert hit.attributes[semconv.STATUS] == "ok"
        assert not any(name in hit.attributes for name in (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS))
    assert len(hits) == 2
    traced.check_account()


async def test_a_partial_cache_hit_in_one_generate(traced: Traced, chat_model: Model) -> None:
    model = chat_model(cache=InMemoryCache())
    model.invoke("two two")
    prompts: list[list[BaseMessage]] = [[HumanMessage(text)] for text in ("one", "two two", "three")]
    model.generate(prompts)
    model.cache = InMemoryCache()
    model.invoke("one")
    await model.agenerate(prompts)
    assert len([span for span in traced.models() if span.attributes.get(semconv.CACHE_HIT)]) == 2
    traced.check_account()


# --- context ----------------------------------------------------------------------------------------------------------
async def test_the_context_is_on_every_span(traced: Traced, model: ChatOpenAI) -> None:
    with llm_context("checkout", user_id="u-1"):
        await (model | (lambda message: message)).ainvoke("hi")
    await asyncio.gather(*(model.ainvoke("x") for _ in range(2)))
    named = [span.attributes.get(semconv.USER_ID) for span in traced.all()]
    assert sorted(named, key=str) == [None, None, "u-1", "u-1"]


# --- a model inside a model -------------------------------------------------------------------------------------------
class Router(BaseChatModel):
    """A model that hands its prompt on, first to one that fails if so told."""

    inner: Any
    first: Any = None

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        if self.first is not None:
            with contextlib.suppress(Exception):
                self.first.invoke(messages)
        return ChatResult(generations=[ChatGeneration(message=self.inner.invoke(messages))])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=await self.inner.ainvoke(messages))])

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self.inner.stream(messages):
            yield ChatGenerationChunk(message=chunk)

    @property
    def _llm_type(self) -> str:
        return "router"


@pytest.mark.parametrize("way", [_invoke, _ainvoke, _stream, _astream])
@pytest.mark.parametrize("hooked", [True, False])
async def test_a_model_that_hands_on_makes_one_call(way: Any, hooked: bool, traced: Traced, model: ChatOpenAI) -> None:
    if not hooked:
        OpenAIInstrumentor().uninstrument()
    try:
        await way(Router(inner=model))
    finally:
        if not hooked:
            OpenAIInstrumentor().instrument(tracer_provider=traced.provider)
    assert traced.tree() == f"chat {MODEL}"
    (span,), (billed,) = traced.models(), traced.ledger
    assert span.attributes[semconv.PROVIDER] == "openai"
    assert span.attributes[semconv.INPUT_TOKENS] == billed.input_tokens
    assert span.attributes[semconv.OUTPUT_TOKENS] == billed.output_tokens


async def test_a_model_that_hands_on_twice(traced: Traced, model: ChatOpenAI, chat_model: Model) -> None:
    RunnableLambda(lambda text: Router(inner=model, first=chat_model("error-500")).invoke(text)).invoke("hi")
    assert traced.tree() == f"invoke_workflow RunnableLambda\n  chat error-500\n  chat {MODEL}"
    assert [span.attributes[semconv.STATUS] for span in traced.models()] == ["error", "ok"]


def test_models_side_by_side_adopt_nothing(traced: Traced) -> None:
    one, other = FakeListChatModel(responses=["one"]), FakeListChatModel(responses=["two"])
    list(zip(one.stream("hi"), other.stream("hi"), strict=False))
    one.generate([[HumanMessage("a")], [HumanMessage("b")]])
    assert len(traced.models()) == 4
