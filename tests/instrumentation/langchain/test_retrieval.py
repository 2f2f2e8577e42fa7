"""Retrievers, and the embeddings inside them."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from otel_llm.conventions import semconv
from tests.conftest import LocalOpenAI
from tests.instrumentation.langchain.conftest import MODEL, Traced

EMBEDDINGS = "text-embedding-3-small"


class Embedding(BaseRetriever):
    """Embeds the query, as the retriever of a vector store does."""

    embeddings: Any

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        assert self.embeddings.embed_query(query)
        return [Document("tides")]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        assert await self.embeddings.aembed_query(query)
        return [Document("tides")]


@pytest.fixture
def embeddings(openai_server: LocalOpenAI) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        base_url=openai_server.base_url,
        api_key="x",
        model=EMBEDDINGS,
        check_embedding_ctx_length=False,
        http_async_client=openai.DefaultAsyncHttpxClient(verify=False),
    )


@pytest.fixture
def retriever(embeddings: OpenAIEmbeddings) -> Embedding:
    return Embedding(embeddings=embeddings)


RETRIEVAL = f"retrieval Embedding\n  embeddings {EMBEDDINGS}"


async def test_a_retriever_on_its_own(traced: Traced, retriever: Embedding) -> None:
    retriever.invoke("tides")
    await retriever.ainvoke("tides")
    retriever.batch(["a", "b"])
    assert traced.tree() == "\n".join([RETRIEVAL] * 4)
    traced.check_account()


async def test_retrieval_in_a_chain(traced: Traced, retriever: Embedding, model: ChatOpenAI) -> None:
    def format_docs(documents: Any) -> str:
        return "\n".join(document.page_content for document in documents)

    chain: Any = (
        {"context": retriever | format_docs, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("{context} {question}")
        | model
        | StrOutputParser()
    )
    chain.invoke("tides?")
    await chain.ainvoke("tides?")
    list(chain.stream("tides?"))
    chain.batch(["tides?"])
    assert traced.tree() == "\n".join(
        [
            "invoke_workflow RunnableSequence",
            "  retrieval Embedding",
            f"    embeddings {EMBEDDINGS}",
            f"  chat {MODEL}",
        ]
        * 4
    )
    traced.check_account()


def test_a_call_after_the_retriever_is_not_under_it(
    traced: Traced, retriever: Embedding, embeddings: OpenAIEmbeddings, model: ChatOpenAI
) -> None:
    retriever.invoke("tides")
    embeddings.embed_query("waves")
    model.invoke("hi")
    assert traced.tree() == f"{RETRIEVAL}\nembeddings {EMBEDDINGS}\nchat {MODEL}"
    traced.check_account()


def test_a_retriever_that_asks_a_model(traced: Traced, model: ChatOpenAI) -> None:
    class Rewriting(BaseRetriever):
        model: Any

        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            self.model.invoke("rewrite", config={"callbacks": run_manager.get_child()})
            self.model.invoke("rewrite again")
            return []

    Rewriting(model=model).invoke("tides")
    assert traced.tree() == f"retrieval Rewriting\n  chat {MODEL}\n  chat {MODEL}"
    traced.check_account()


def test_a_retriever_that_fails(traced: Traced) -> None:
    class Broken(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            raise LookupError("SECRET")

    with pytest.raises(LookupError):
        Broken().invoke("tides")
    span = traced.named("retrieval Broken")
    assert (span.attributes[semconv.STATUS], span.attributes[semconv.ERROR_TYPE]) == ("error", "LookupError")
    assert span.status.description is None
