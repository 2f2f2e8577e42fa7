"""The cells of LangChain and LangGraph: every way to reach a model through them, and direct calls among them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any, TypedDict

import openai
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI, OpenAI, OpenAIEmbeddings
from langgraph.graph import END, START, StateGraph

from tests.matrix.cell import KEY, MODEL, Cell, Env, Run, cancel, drain, each, first, settle
from tests.matrix.openai_cells import CHAT, HELLO, City, plain, stream

PROMPT = ChatPromptTemplate.from_messages([("user", "About {topic}, please.")])


def options(env: Env, **more: Any) -> dict[str, Any]:
    return {"base_url": env.server.base_url, "api_key": KEY, "max_retries": 0, **env.http_clients, **more}


def chat(env: Env, **more: Any) -> Any:
    """Chat Completions, with usage on streams."""
    return ChatOpenAI(model=more.pop("model", MODEL), stream_usage=True, **options(env, **more))


def responses(env: Env, **more: Any) -> Any:
    return ChatOpenAI(model=more.pop("model", MODEL), use_responses_api=True, **options(env, **more))


def azure(env: Env, **more: Any) -> Any:
    given = {**options(env, **more), "azure_endpoint": env.server.origin, "api_version": "2025-03-01-preview"}
    del given["base_url"]
    return AzureChatOpenAI(azure_deployment=MODEL, stream_usage=True, **given)


def completions(env: Env, **more: Any) -> Any:
    return OpenAI(model="gpt-3.5-turbo-instruct", **options(env, **more))


def behaving(behaviour: str) -> dict[str, Any]:
    return {"default_headers": {"x-local-behaviour": behaviour}}


def run(thing: Any, name: str, env: Env, *arguments: Any, **more: Any) -> Any:
    """A runnable's method, or its asynchronous one; to be settled or iterated."""
    return getattr(thing, f"a{name}" if env.is_async else name)(*arguments, **more)


# --- a model on its own ----------------------------------------------------------------------------------------------
def model_cells() -> Iterator[Cell]:
    async def invoke(env: Env, make: Any) -> None:
        await settle(run(make(env), "invoke", env, HELLO))

    async def streamed(env: Env, make: Any) -> None:
        await drain(run(make(env), "stream", env, HELLO))

    async def batch(env: Env, make: Any) -> None:
        await settle(run(make(env), "batch", env, [HELLO, "And another", "And a third"]))

    async def as_completed(env: Env, make: Any) -> None:
        await drain(run(make(env), "batch_as_completed", env, [HELLO, "And another"]))

    async def generate(env: Env, make: Any) -> None:
        await settle(run(make(env), "generate", env, [[HumanMessage(HELLO)], [HumanMessage("And another")]]))

    async def events(env: Env, make: Any) -> None:
        kinds = [event["event"] async for event in make(env).astream_events(HELLO, version="v2")]
        assert "start" in kinds[0] and "end" in kinds[-1]

    async def by_setting(env: Env, make: Any) -> None:
        await settle(run(make(env, streaming=True), "invoke", env, HELLO))

    ways: dict[str, tuple[Any, int]] = {
        "invoke": (invoke, 1),
        "stream": (streamed, 1),
        "batch": (batch, 3),
        "batch_as_completed": (as_completed, 2),
    }
    for is_async in (False, True):
        a = "a" if is_async else ""
        for kind, make in (("chat", chat), ("responses", responses), ("azure", azure), ("completions", completions)):
            for name, (way, calls) in ways.items():
                # Completions of several prompts are one request.
                number = 1 if kind == "completions" and name == "batch" else calls
                yield Cell(f"langchain-{kind}-{a}{name}", "LangChain", partial(way, make=make), is_async, number)
            if kind != "completions":
                yield Cell(
                    f"langchain-{kind}-{a}invoke-streaming", "LangChain", partial(by_setting, make=make), is_async
                )
                yield Cell(f"langchain-{kind}-{a}generate", "LangChain", partial(generate, make=make), is_async, 2)
            if is_async:  # there is no synchronous `stream_events`
                yield Cell(f"langchain-{kind}-astream_events", "LangChain", partial(events, make=make), is_async)


# --- chains ----------------------------------------------------------------------------------------------------------
def chain_cells() -> Iterator[Cell]:
    async def lcel(env: Env, *, way: str) -> None:
        chain = PROMPT | chat(env) | StrOutputParser()
        given = {"topic": "rain"}
        match way:
            case "invoke":
                await settle(run(chain, "invoke", env, given))
            case "stream":
                await drain(run(chain, "stream", env, given))
            case "batch":
                await settle(run(chain, "batch", env, [given, {"topic": "snow"}]))
            case "astream_events":
                await drain(chain.astream_events(given, version="v2"))

    async def parallel(env: Env) -> None:
        both = RunnableParallel(one=PROMPT | chat(env), other=PROMPT | responses(env))
        await settle(run(both, "invoke", env, {"topic": "rain"}))

    async def two_in_a_row(env: Env) -> None:
        chain = PROMPT | chat(env) | StrOutputParser() | chat(env)
        await settle(run(chain, "invoke", env, {"topic": "rain"}))

    async def fallbacks(env: Env, *, way: str) -> None:
        model = chat(env, **behaving("error-500")).with_fallbacks([chat(env)])
        if way == "invoke":
            await settle(run(model, "invoke", env, HELLO))
        else:
            await drain(run(model, "stream", env, HELLO))

    async def retry(env: Env) -> None:
        model = chat(env, **behaving("flaky-1"))
        again = model.with_retry(
            retry_if_exception_type=(openai.APIError,), wait_exponential_jitter=False, stop_after_attempt=3
        )
        await settle(run(again, "invoke", env, HELLO))

    async def client_retries(env: Env) -> None:
        await settle(run(chat(env, max_retries=2, **behaving("flaky-2")), "invoke", env, HELLO))

    async def structured(env: Env, *, make: Any, method: str) -> None:
        model = make(env).with_structured_output(City, method=method)
        assert await settle(run(model, "invoke", env, HELLO))

    async def cached(env: Env) -> None:
        model = chat(env, cache=InMemoryCache())
        for _ in range(3):
            await settle(run(model, "invoke", env, HELLO))

    async def cached_stream(env: Env) -> None:
        model = chat(env, cache=InMemoryCache())
        for _ in range(2):
            await drain(run(model, "stream", env, HELLO))

    async def direct_after(env: Env) -> None:
        await settle(run(chat(env), "invoke", env, HELLO))
        await plain(env.client(), "chat.completions.create", CHAT)

    async def direct_after_stream(env: Env) -> None:
        await drain(run(chat(env), "stream", env, HELLO))
        await stream(env.client(), "responses.create", {"model": MODEL, "input": HELLO})

    async def direct_between(env: Env) -> None:
        chunks = run(chat(env), "stream", env, HELLO)
        await first(chunks)
        await plain(env.client(), "chat.completions.create", CHAT)
        await drain(chunks)

    async def direct_within(env: Env) -> None:
        async def call(_: Any) -> str:
            await plain(env.client(), "chat.completions.create", CHAT)
            return HELLO

        def call_now(_: Any) -> str:
            env.client().chat.completions.create(**CHAT)
            return HELLO

        chain = RunnableLambda(call if env.is_async else call_now) | chat(env)
        await settle(run(chain, "invoke", env, HELLO))

    async def gathered(env: Env) -> None:
        model, client = chat(env), env.client()
        await asyncio.gather(
            *(model.ainvoke(f"{HELLO} {number}") for number in range(3)),
            *(plain(client, "chat.completions.create", CHAT) for _ in range(3)),
        )

    for is_async in (False, True):
        a = "a" if is_async else ""

        def cell(name: str, way: Run, calls: int = 1, is_async: bool = is_async) -> Cell:
            return Cell(f"langchain-{name}", "LangChain", way, is_async, calls)

        for name, calls in (("invoke", 1), ("stream", 1), ("batch", 2)):
            yield cell(f"lcel-{a}{name}", partial(lcel, way=name), calls)
        yield cell(f"parallel-{a}invoke", parallel, 2)
        yield cell(f"sequence-{a}invoke", two_in_a_row, 2)
        for name in ("invoke", "stream"):
            yield cell(f"with_fallbacks-{a}{name}", partial(fallbacks, way=name), 2)
        yield cell(f"with_retry-{a}invoke", retry, 2)
        yield cell(f"max_retries-{a}invoke", client_retries)
        for kind, make in (("chat", chat), ("responses", responses)):
            for method in ("json_schema", "function_calling"):  # in `json_mode` the local server answers in prose
                way = partial(structured, make=make, method=method)
                yield cell(f"{kind}-structured-{method}-{a}invoke", way)
        yield cell(f"cache-hit-{a}invoke", cached)
        yield cell(f"cache-hit-{a}stream", cached_stream, 2)  # a chat model that streams asks no cache
        yield cell(f"direct-after-{a}invoke", direct_after, 2)
        yield cell(f"direct-after-{a}stream", direct_after_stream, 2)
        yield cell(f"direct-between-{a}stream", direct_between, 2)
        yield cell(f"direct-within-{a}invoke", direct_within, 2)
    yield Cell("langchain-lcel-astream_events", "LangChain", partial(lcel, way="astream_events"), True)
    yield Cell("langchain-gathered-with-direct", "LangChain", gathered, True, calls=6)


# --- agents, graphs, retrieval ---------------------------------------------------------------------------------------
class State(TypedDict):
    """Of the graphs."""

    text: str


def agent_cells() -> Iterator[Cell]:
    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    question = {"messages": [("user", "How is the weather in Bergen?")]}

    def with_direct_call(env: Env) -> Any:
        @tool
        def ask(city: str) -> str:
            """Asks another model."""
            env.client().chat.completions.create(**CHAT)
            return f"Rain in {city}."

        @tool("ask")
        async def ask_async(city: str) -> str:
            """Asks another model."""
            await plain(env.client(), "chat.completions.create", CHAT)
            return f"Rain in {city}."

        return ask_async if env.is_async else ask

    def with_model(env: Env) -> Any:
        @tool
        def ask(city: str) -> str:
            """Asks another model."""
            return str(chat(env).invoke(city).content)

        @tool("ask")
        async def ask_async(city: str) -> str:
            """Asks another model."""
            return str((await chat(env).ainvoke(city)).content)

        return ask_async if env.is_async else ask

    async def agent(env: Env, *, way: str, make: Any = chat, tools: Any = None) -> None:
        made = create_agent(make(env), [weather if tools is None else tools(env)], name="meteorologist")
        match way:
            case "invoke":
                await settle(run(made, "invoke", env, question))
            case "stream":
                await drain(run(made, "stream", env, question))
            case "stream-messages":
                await drain(run(made, "stream", env, question, stream_mode="messages"))
            case "batch":
                await settle(run(made, "batch", env, [question, question]))
            case "astream_events":
                await drain(made.astream_events(question, version="v2"))

    async def agent_fails(env: Env) -> None:
        made = create_agent(chat(env, **behaving("error-500")), [weather])
        try:
            await settle(run(made, "invoke", env, question))
        except openai.InternalServerError:
            return
        raise AssertionError("no error")

    async def graph(env: Env, *, way: str) -> None:
        model = chat(env)

        def ask(state: State) -> State:
            return {"text": str(model.invoke(state["text"]).content)}

        async def ask_async(state: State) -> State:
            return {"text": str((await model.ainvoke(state["text"])).content)}

        async def direct_async(state: State) -> State:
            await plain(env.client(), "chat.completions.create", CHAT)
            return state

        def direct(state: State) -> State:
            env.client().chat.completions.create(**CHAT)
            return state

        drawn = StateGraph(State)
        drawn.add_node("ask", ask_async if env.is_async else ask)
        drawn.add_node("direct", direct_async if env.is_async else direct)
        drawn.add_edge(START, "ask")
        drawn.add_edge("ask", "direct")
        drawn.add_edge("direct", END)
        compiled = drawn.compile()
        if way == "invoke":
            await settle(run(compiled, "invoke", env, {"text": HELLO}))
        else:
            await drain(run(compiled, "stream", env, {"text": HELLO}))

    async def parallel_nodes(env: Env) -> None:
        # Nodes of one step, so in threads or tasks at once.
        def node(name: str) -> Any:
            def ask(state: Any) -> dict[str, str]:
                return {name: str(chat(env).invoke(name).content)}

            async def ask_async(state: Any) -> dict[str, str]:
                return {name: str((await chat(env).ainvoke(name)).content)}

            return ask_async if env.is_async else ask

        drawn = StateGraph(TypedDict("Both", {"one": str, "other": str}))  # type: ignore[arg-type]
        for name in ("one", "other"):
            drawn.add_node(f"ask_{name}", node(name))
            drawn.add_edge(START, f"ask_{name}")
        await settle(run(drawn.compile(), "invoke", env, {}))

    for is_async in (False, True):
        a = "a" if is_async else ""
        for way in ("invoke", "stream", "stream-messages"):
            yield Cell(f"agent-{a}{way}", "agents", partial(agent, way=way), is_async, calls=2)
        yield Cell(
            f"agent-responses-{a}invoke", "agents", partial(agent, way="invoke", make=responses), is_async, calls=2
        )
        yield Cell(f"agent-{a}batch", "agents", partial(agent, way="batch"), is_async, calls=4)
        for name, tools in (("direct-call", with_direct_call), ("model", with_model)):
            for way in ("invoke", "stream"):
                do = partial(agent, way=way, tools=tools)
                yield Cell(f"agent-{name}-in-tool-{a}{way}", "agents", do, is_async, calls=3)
        yield Cell(f"agent-{a}invoke-fails", "agents", agent_fails, is_async)
        for way in ("invoke", "stream"):
            yield Cell(f"graph-{a}{way}", "agents", partial(graph, way=way), is_async, calls=2)
        yield Cell(f"graph-parallel-{a}invoke", "agents", parallel_nodes, is_async, calls=2)
    yield Cell("agent-astream_events", "agents", partial(agent, way="astream_events"), True, calls=2)


class Notes(BaseRetriever):
    """Finds what it embeds the question for."""

    embeddings: OpenAIEmbeddings

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.embeddings.embed_query(query)
        return [Document("A city has inhabitants.")]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        await self.embeddings.aembed_query(query)
        return [Document("A city has inhabitants.")]


def retrieval_cells() -> Iterator[Cell]:
    def embeddings(env: Env) -> OpenAIEmbeddings:
        # Without the length check, which downloads a tokenizer's tables.
        given = options(env, check_embedding_ctx_length=False)
        return OpenAIEmbeddings(model="text-embedding-3-small", **given)

    async def query(env: Env) -> None:
        await settle(run(embeddings(env), "embed_query", env, HELLO))

    async def documents(env: Env) -> None:
        await settle(run(embeddings(env), "embed_documents", env, [HELLO, "again"]))

    async def retriever(env: Env) -> None:
        await settle(run(Notes(embeddings=embeddings(env)), "invoke", env, HELLO))

    async def rag(env: Env) -> None:
        notes = Notes(embeddings=embeddings(env))
        chain = {"topic": notes} | PROMPT | chat(env) | StrOutputParser()
        await settle(run(chain, "invoke", env, HELLO))

    for is_async in (False, True):
        a = "a" if is_async else ""
        yield Cell(f"langchain-{a}embed_query", "LangChain", query, is_async)
        yield Cell(f"langchain-{a}embed_documents", "LangChain", documents, is_async)
        yield Cell(f"langchain-retriever-{a}invoke", "LangChain", retriever, is_async)
        yield Cell(f"langchain-rag-{a}invoke", "LangChain", rag, is_async, calls=2)


# --- outcomes --------------------------------------------------------------------------------------------------------
def outcome_cells() -> Iterator[Cell]:
    async def failing(env: Env, make: Any, behaviour: str, way: str) -> None:
        try:
            model = make(env, **behaving(behaviour))
            if way == "invoke":
                await settle(run(model, "invoke", env, HELLO))
            else:
                await drain(run(model, "stream", env, HELLO))
        except Exception:
            return
        raise AssertionError("no error")

    async def batch_half_failing(env: Env) -> None:
        model = chat(env, **behaving("error-500"))
        answers = await settle(run(model, "batch", env, [HELLO, "again"], return_exceptions=True))
        assert all(isinstance(answer, openai.InternalServerError) for answer in answers)

    async def left(env: Env, make: Any, in_chain: bool) -> None:
        model = make(env, **behaving("stream-slow"))
        chunks = run(PROMPT | model if in_chain else model, "stream", env, {"topic": "rain"} if in_chain else HELLO)
        async for _ in each(chunks):
            break
        await settle(chunks.aclose() if env.is_async else chunks.close())

    async def dropped(env: Env, make: Any) -> None:
        await first(run(make(env, **behaving("stream-slow")), "stream", env, HELLO))

    async def cancelled(env: Env, make: Any, way: str) -> None:
        model = make(env, **behaving("slow" if way == "invoke" else "stream-slow"))
        task = asyncio.ensure_future(model.ainvoke(HELLO) if way == "invoke" else drain(model.astream(HELLO)))
        await env.until_waiting()
        await cancel(task)

    async def agent_cancelled(env: Env) -> None:
        made = create_agent(chat(env, **behaving("slow")), [])
        task = asyncio.ensure_future(made.ainvoke({"messages": [("user", HELLO)]}))
        await env.until_waiting()
        await cancel(task)

    for is_async in (False, True):
        a = "a" if is_async else ""
        for kind, make in (("chat", chat), ("responses", responses)):
            for behaviour, way in (
                ("error-400", "invoke"),
                ("error-500", "invoke"),
                ("error-500", "stream"),
                ("stream-broken", "stream"),
            ):
                do = partial(failing, make=make, behaviour=behaviour, way=way)
                yield Cell(f"langchain-{kind}-{a}{way}-{behaviour}", "errors", do, is_async)
            do = partial(left, make=make, in_chain=False)
            yield Cell(f"langchain-{kind}-{a}stream-left", "left early", do, is_async)
            do = partial(left, make=make, in_chain=True)
            yield Cell(f"langchain-{kind}-chain-{a}stream-left", "left early", do, is_async)
            yield Cell(f"langchain-{kind}-{a}stream-dropped", "left early", partial(dropped, make=make), is_async)
        yield Cell(f"langchain-chat-{a}batch-errors", "errors", batch_half_failing, is_async, calls=2)
    for kind, make in (("chat", chat), ("responses", responses)):
        for way in ("invoke", "stream"):
            do = partial(cancelled, make=make, way=way)
            yield Cell(f"langchain-{kind}-a{way}-cancelled", "left early", do, True, left_as="cancelled")
    yield Cell("agent-ainvoke-cancelled", "left early", agent_cancelled, True, left_as="cancelled")


def cells() -> Iterator[Cell]:
    """All of them."""
    yield from model_cells()
    yield from chain_cells()
    yield from agent_cells()
    yield from retrieval_cells()
    yield from outcome_cells()
