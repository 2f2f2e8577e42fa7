"""How LiteLLM's calls end, and which of them are one: failures, retries, fallbacks, streams that are left, ChatLiteLLM."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("litellm", reason="LiteLLM is not installed: `.ci/beside` has it")

import litellm
from litellm import completion as captured  # as an app does, before anything is instrumented
from opentelemetry.sdk.trace import TracerProvider

from otel_llm.calls import hand_over
from otel_llm.conventions import semconv
from otel_llm.instrumentation.litellm import LiteLLMInstrumentor, private
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans
from tests.instrumentation.litellm.conftest import Account
from tests.instrumentation.litellm.test_ways import MESSAGES

OWN = "groq/llama-3.3-70b-versatile"
"""LiteLLM sends the request itself."""
CLIENT = "openai/gpt-4o-mini"
"""The OpenAI client does."""
BOTH = pytest.mark.parametrize("model", [OWN, CLIENT])
Row = dict[str, Any]


def call(server: LocalOpenAI, model: str, behaviour: str | None = None, **more: Any) -> dict[str, Any]:
    asked = {"model": model, "messages": MESSAGES, "api_base": server.base_url, "api_key": "x", "max_retries": 0}
    headers = {} if behaviour is None else {"extra_headers": {"x-local-behaviour": behaviour}}
    return {**asked, **headers, **more}


def ended(rows: list[Row]) -> list[tuple[str, str | None]]:
    return [(row["status"], row["error_type"]) for row in rows]


def tokens(rows: list[Row]) -> list[tuple[int | None, int | None]]:
    return [(row["input_tokens"], row["output_tokens"]) for row in rows]


def billed(server: LocalOpenAI) -> list[tuple[int | None, int | None]]:
    return [(one.input_tokens, one.output_tokens) for one in server.ledger]


def run(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    result = function(**arguments)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


# --- failures ---------------------------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize("status", ["400", "429", "500"])
@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_a_refusal(name: str, status: str, model: str, openai_server: LocalOpenAI, account: Account) -> None:
    with pytest.raises(Exception, match="") as raised:
        run(getattr(litellm, name), call(openai_server, model, f"error-{status}"))
    assert type(raised.value).__module__ == "litellm.exceptions"
    assert ended(account()) == [(semconv.ERROR, status)]


@BOTH
@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_nobody_is_there(name: str, model: str, openai_server: LocalOpenAI, account: Account) -> None:
    nowhere = call(openai_server, model) | {"api_base": "http://127.0.0.1:9/v1"}
    with pytest.raises(litellm.exceptions.InternalServerError):
        run(getattr(litellm, name), nowhere)
    (row,) = account()
    assert row["status"] == semconv.ERROR
    assert not row["error_type"].isdigit()  # LiteLLM says 500, and nobody has answered that
    assert row["price_source"] == "refused, not billed"


@BOTH
def test_a_call_that_is_cancelled(model: str, openai_server: LocalOpenAI, account: Account) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(litellm.acompletion(**call(openai_server, model, "slow")))
        await asyncio.to_thread(openai_server.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    openai_server.release()
    assert [row["status"] for row in account()] == [semconv.CANCELLED]


@BOTH
def test_a_stream_that_breaks(model: str, openai_server: LocalOpenAI, account: Account) -> None:
    with pytest.raises(Exception, match=""):
        list(litellm.completion(**call(openai_server, model, "stream-broken", stream=True)))
    (row,) = account()
    assert row["status"] == semconv.ERROR
    assert not row["error_type"].isdigit()


def test_a_stream_that_is_dropped(openai_server: LocalOpenAI, account: Account) -> None:
    stream = litellm.completion(**call(openai_server, OWN, stream=True))
    next(iter(stream))
    del stream
    assert ended(account()) == [(semconv.PARTIAL, None)]


def test_a_stream_that_is_cancelled(openai_server: LocalOpenAI, account: Account) -> None:
    async def cancel() -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in await litellm.acompletion(**call(openai_server, OWN, "stream-slow", stream=True)):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    openai_server.release()
    assert [row["status"] for row in account()] == [semconv.CANCELLED]


def test_a_mocked_answer_is_no_call(openai_server: LocalOpenAI, account: Account) -> None:
    litellm.completion(**call(openai_server, OWN, mock_response="Hello"))
    litellm.completion(**call(openai_server, OWN))  # so that there is a store
    assert len(account()) == 1


# --- what is asked of a stream ----------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_a_server_that_refuses_to_tell_usage(
    name: str, model: str, openai_server: LocalOpenAI, account: Account
) -> None:
    async def read(stream: Any) -> int:
        return len([chunk async for chunk in await stream])

    def ask() -> int:
        stream = getattr(litellm, name)(**call(openai_server, model, "no-stream-options", stream=True))
        return asyncio.run(read(stream)) if name == "acompletion" else len(list(stream))

    assert ask() == ask() > 1
    assert [(row["status"], row["attempts"]) for row in account()] == [(semconv.OK, 2), (semconv.OK, 1)]
    assert len(openai_server.requests) == 3


@pytest.mark.parametrize("model", [OWN, "deepseek/deepseek-chat", "hosted_vllm/my-model"])
def test_the_app_sees_the_same_chunks(model: str, openai_server: LocalOpenAI, account: Account) -> None:
    def chunks() -> list[Any]:
        told = [chunk.model_dump() for chunk in litellm.completion(**call(openai_server, model, stream=True))]
        return [{name: value for name, value in one.items() if name not in ("id", "created")} for one in told]

    ours = chunks()
    LiteLLMInstrumentor().uninstrument()
    assert chunks() == ours


def test_the_app_asks_for_usage_itself(openai_server: LocalOpenAI, account: Account) -> None:
    asked = call(openai_server, OWN, stream=True, stream_options={"include_usage": True})
    assert list(litellm.completion(**asked))
    assert tokens(account()) == billed(openai_server)


# --- several requests -------------------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_fallbacks(name: str, model: str, openai_server: LocalOpenAI, account: Account) -> None:
    bad = model.partition("/")[0] + "/error-500"
    run(getattr(litellm, name), call(openai_server, bad, fallbacks=[call(openai_server, model)]))
    assert ended(account()) == [(semconv.ERROR, "500"), (semconv.OK, None)]
    assert tokens(account())[1:] == billed(openai_server)


@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_retries(name: str, openai_server: LocalOpenAI, account: Account) -> None:
    run(getattr(litellm, name), call(openai_server, OWN, "flaky-1", num_retries=2))
    assert ended(account()) == [(semconv.ERROR, "429"), (semconv.OK, None)]
    assert tokens(account())[1:] == billed(openai_server)


def deployment(server: LocalOpenAI, name: str, model: str) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_base": server.base_url, "api_key": "x", "max_retries": 0},
    }


@BOTH
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_router_falls_back(
    is_async: bool, stream: bool, model: str, openai_server: LocalOpenAI, account: Account
) -> None:
    bad = model.partition("/")[0] + "/error-500"
    deployments = [deployment(openai_server, "bad", bad), deployment(openai_server, "good", model)]
    router = litellm.Router(deployments, fallbacks=[{"bad": ["good"]}], num_retries=0)

    async def ask() -> None:
        answer = await router.acompletion("bad", MESSAGES, stream=stream)
        if stream:
            assert [chunk async for chunk in answer]

    if is_async:
        asyncio.run(ask())
    else:
        answer = router.completion("bad", MESSAGES, stream=stream)
        assert not stream or list(answer)
    assert ended(account()) == [(semconv.ERROR, "500"), (semconv.OK, None)]
    assert tokens(account())[1:] == billed(openai_server)


def test_a_batch(openai_server: LocalOpenAI, account: Account) -> None:
    asked = call(openai_server, OWN)
    litellm.batch_completion(**asked | {"messages": [MESSAGES, MESSAGES]})
    assert tokens(account()) == billed(openai_server)
    assert len(account()) == 2


# --- LangChain above --------------------------------------------------------------------------------------------------
@BOTH
@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_one_row_under_langchain(how: str, model: str, openai_server: LocalOpenAI, account: Account) -> None:
    langchain = pytest.importorskip("langchain_litellm", reason="langchain-litellm is not installed")
    chat = langchain.ChatLiteLLM(model=model, api_base=openai_server.base_url, api_key="x")

    async def read() -> None:
        async for _ in chat.astream("hi"):
            pass

    if how == "astream":
        asyncio.run(read())
    elif how == "stream":
        list(chat.stream("hi"))
    else:
        run(getattr(chat, how), {"input": "hi"})
    rows = account()
    assert tokens(rows) == billed(openai_server)
    assert [row["provider"] for row in rows] == [model.partition("/")[0]]


def test_an_answer_out_of_the_cache_costs_langchain_nothing(openai_server: LocalOpenAI, account: Account) -> None:
    langchain = pytest.importorskip("langchain_litellm", reason="langchain-litellm is not installed")
    try:
        litellm.cache = litellm.Cache(type="local")
        chat = langchain.ChatLiteLLM(model=OWN, api_base=openai_server.base_url, api_key="x")
        chat.invoke("hi")
        chat.invoke("hi")
    except ImportError as error:
        pytest.skip(f"LiteLLM's cache needs what is not installed: {error}")
    finally:
        litellm.cache = None
    assert [row["price_source"] == "cache hit, not billed" for row in account()] == [False, True]
    assert tokens(account()) == [*billed(openai_server), (None, None)]


# --- how it is put on -------------------------------------------------------------------------------------------------
def test_a_function_that_the_app_had_before(openai_server: LocalOpenAI, account: Account) -> None:
    captured(**call(openai_server, OWN))
    assert tokens(account()) == billed(openai_server)


def test_everything_is_put_back() -> None:
    logging = sys.modules[private.LOGGING].Logging

    def patched() -> list[object]:
        functions = [
            getattr(sys.modules[module], prefix + name)
            for module, names in private.FUNCTIONS.items()
            for name in names
            for prefix in ("", "a")
        ]
        inner = [one.__closure__[one.__code__.co_freevars.index(private.INNER)].cell_contents for one in functions]
        return [*inner, *(vars(logging).get(name) for name in (private.BEFORE_REQUEST, private.AFTER_FAILURE))]

    before = patched()
    instrumentor = LiteLLMInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider())
    assert not [one for one, other in zip(patched(), before, strict=True) if one is other]
    instrumentor.uninstrument()
    assert [one for one, other in zip(patched(), before, strict=True) if one is not other] == []


def test_litellm_is_imported_by_the_app_alone() -> None:
    program = "import otel_llm, sys; otel_llm.instrument(); print('litellm' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


def test_our_faults_are_not_the_apps(
    openai_server: LocalOpenAI, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(private, "told", fail)
    assert litellm.completion(**call(openai_server, OWN)).choices
    monkeypatch.undo()
    monkeypatch.setattr(private, "is_stream", fail)
    assert litellm.completion(**call(openai_server, OWN)).choices
    monkeypatch.undo()
    assert [row["status"] for row in account()] == [semconv.OK]


def test_a_call_is_offered_once(spans: Spans) -> None:
    """Whoever passes a call on has claimed it; the next layer claims what is passed on, once."""
    from otel_llm.calls.model_call import ModelCall
    from otel_llm.calls.tracing import Tracer

    framework = ModelCall(Tracer("test", spans.provider), semconv.CHAT, "m", {})
    passed_on = hand_over.PassedOn(framework)
    assert hand_over.claim(semconv.EMBEDDINGS, [framework]) is None
    assert hand_over.claim(semconv.CHAT, [framework]) is framework
    assert hand_over.claim(semconv.CHAT, [framework]) is None
    assert hand_over.claim(semconv.TEXT_COMPLETION, [passed_on]) is framework
    assert hand_over.claim(semconv.CHAT, [passed_on]) is None
    framework.finish(semconv.OK)
