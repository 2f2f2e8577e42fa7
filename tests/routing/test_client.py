"""The plain OpenAI client of a profile, over real HTTP."""

from __future__ import annotations

import io
from typing import Any

import openai
import pytest

from otel_llm.conventions import semconv
from otel_llm.routing import LimitReached
from tests.conftest import LocalOpenAI
from tests.instrumentation.conftest import Spans
from tests.routing.conftest import HELLO, MODEL, Clock, Make


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "fast", "messages": HELLO, **options})


def models(server: LocalOpenAI) -> list[tuple[str | None, int]]:
    return [(call.model, call.status) for call in server.requests]


@pytest.mark.parametrize("failing", ["error-429", "error-500", "error-503", "error-html"])
def test_another_deployment_is_asked(failing: str, provider: Make, openai_server: LocalOpenAI) -> None:
    client = provider(bad=failing, good=MODEL).client("fast")
    assert isinstance(client, openai.OpenAI)
    assert ask(client).choices[0].message.content.startswith("You asked: Hello")
    assert [model for model, _ in models(openai_server)] == [failing, MODEL]


def test_a_refused_connection_and_a_time_out_give_way(
    provider: Make, openai_server: LocalOpenAI, closed_port: int
) -> None:
    down = {"base_url": f"http://127.0.0.1:{closed_port}/v1"}
    client = provider(down=down, late={"model": "slow", "timeout": 0.2}, good=MODEL).client("fast")
    assert ask(client).model.startswith(MODEL)
    openai_server.release()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_the_callers_mistake_is_the_callers(status: int, provider: Make, openai_server: LocalOpenAI) -> None:
    client = provider(bad=f"error-{status}", good=MODEL).client("fast")
    for _ in range(2):  # nor is the deployment left alone
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client)
        assert caught.value.status_code == status
    assert models(openai_server) == [(f"error-{status}", status)] * 2


def test_where_all_fail_the_app_sees_the_providers_error(provider: Make, openai_server: LocalOpenAI) -> None:
    client = provider(one="error-500", two="error-429").client("fast")
    with pytest.raises(openai.RateLimitError):
        ask(client)
    assert [status for _, status in models(openai_server)] == [500, 429]


def test_retry_after_keeps_a_deployment_out_until_it_is_over(
    provider: Make, openai_server: LocalOpenAI, clock: Clock
) -> None:
    client = provider(limited="error-429-after-20", good=MODEL).client("fast")
    for _ in range(3):
        ask(client)
        clock.now += 9
    ask(client)
    assert [status for _, status in models(openai_server)] == [429, 200, 200, 200, 429, 200]


def test_the_clients_own_retries_come_first(provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    client = provider(bad={"model": "error-500", "max_retries": 2}, good=MODEL).client("fast")
    ask(client)
    assert [status for _, status in models(openai_server)] == [500, 500, 500, 200]
    assert [span.attributes[semconv.ATTEMPTS] for span in traced.all()] == [3, 1]


def test_a_stream_gives_way_until_it_begins(provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    client = provider(bad="error-429", good={"stream_usage": True}).client("fast")
    stream = ask(client, stream=True)
    assert isinstance(stream, openai.Stream)
    chunks = list(stream)
    assert chunks[-1].usage.prompt_tokens == openai_server.ledger[0].input_tokens
    assert [span.attributes[semconv.STATUS] for span in traced.all()] == ["error", "ok"]


def test_a_stream_that_begins_with_an_error_gives_way(
    provider: Make, openai_server: LocalOpenAI, traced: Spans
) -> None:
    client = provider(bad="stream-error-first", good={"stream_usage": True}).client("fast")
    chunks = list(ask(client, stream=True))
    assert chunks[-1].usage.prompt_tokens == openai_server.ledger[-1].input_tokens
    assert [span.attributes[semconv.STATUS] for span in traced.all()] == ["error", "ok"]
    assert list(ask(client, stream=True))  # the first one rests now
    assert models(openai_server) == [("stream-error-first", 200), (MODEL, 200), (MODEL, 200)]


def test_where_all_streams_begin_with_an_error_it_is_the_clients_own(provider: Make) -> None:
    client = provider(bad="stream-error-first", worse="stream-error-first").client("fast")
    with pytest.raises(openai.APIError, match=r"The server had an error\.") as caught:
        list(ask(client, stream=True))
    assert caught.value.body == {
        "message": "The server had an error.",
        "type": "server_error",
        "param": None,
        "code": None,
    }


def test_a_failure_in_mid_stream_is_the_apps_to_see(provider: Make, openai_server: LocalOpenAI) -> None:
    client = provider(bad="stream-broken", good=MODEL).client("fast")
    seen = []
    with pytest.raises(openai.APIConnectionError):
        for chunk in ask(client, stream=True):
            seen.append(chunk)
    assert seen
    assert models(openai_server) == [("stream-broken", 200)]


def test_the_profiles_name_stands_for_the_model_and_its_parameters(provider: Make, openai_server: LocalOpenAI) -> None:
    client = provider(main={"parameters": {"temperature": 0.5, "seed": 3, "extra_body": {"top_k": 2}}}).client("fast")
    ask(client, seed=4)
    ask(client, model="gpt-4.1")
    client.embeddings.create(model="fast", input="x")
    client.responses.create(model="fast", input="x")
    bodies = [call.body for call in openai_server.ledger]
    assert [body["model"] for body in bodies] == [MODEL, "gpt-4.1", MODEL, MODEL]
    assert {key: bodies[0][key] for key in ("temperature", "seed", "top_k")} == {
        "temperature": 0.5,
        "seed": 4,
        "top_k": 2,
    }
    assert not any("temperature" in body or "extra_body" in body for body in bodies[1:])


def test_options_hold_at_every_deployment(provider: Make, openai_server: LocalOpenAI) -> None:
    client = provider(bad="error-500", good=MODEL).client("fast")
    other = client.with_options(max_retries=1, default_headers={"x-app": "shop"})
    assert type(other) is type(client)
    ask(other)
    assert [status for _, status in models(openai_server)] == [500, 500, 200]
    assert all(call.headers["x-app"] == "shop" for call in openai_server.requests)
    openai_server.reset()
    ask(client)  # what the other has learnt of the failing one holds here too
    assert [status for _, status in models(openai_server)] == [200]
    assert "x-app" not in openai_server.ledger[0].headers
    with pytest.raises(TypeError, match="base_url belongs to the deployments of profile 'fast'"):
        client.with_options(base_url="http://127.0.0.1:1/v1")


def test_raw_and_streamed_responses_give_way_too(provider: Make) -> None:
    make = provider(bad="error-429", good=MODEL)
    client = make.client("fast")
    raw = client.chat.completions.with_raw_response.create(model="fast", messages=HELLO)  # type: ignore[arg-type]
    assert raw.status_code == 200 and raw.parse().model.startswith(MODEL)
    with client.chat.completions.with_streaming_response.create(model="fast", messages=HELLO) as response:  # type: ignore[arg-type]
        assert b"You asked" in response.read()


def test_what_was_read_from_a_file_is_not_sent_twice(
    provider: Make, openai_server: LocalOpenAI, closed_port: int
) -> None:
    client = provider(down={"base_url": f"http://127.0.0.1:{closed_port}/v1"}, good=MODEL).client("fast")
    with pytest.raises(openai.APIConnectionError):
        client.audio.transcriptions.create(model="fast", file=("a.wav", io.BytesIO(b"RIFF")))
    assert not openai_server.requests


def test_each_attempt_has_its_span_with_profile_and_deployment(
    provider: Make, openai_server: LocalOpenAI, traced: Spans, closed_port: int
) -> None:
    down = {"base_url": f"http://127.0.0.1:{closed_port}/v1"}
    ask(provider(down=down, limited="error-429", good=MODEL).client("fast"))
    found = [
        [span.attributes.get(key) for key in (semconv.PROFILE, semconv.DEPLOYMENT, semconv.STATUS, semconv.ERROR_TYPE)]
        for span in traced.all()
    ]
    assert found == [
        ["fast", "down", "error", "openai.APIConnectionError"],
        ["fast", "limited", "error", "429"],
        ["fast", "good", "ok", None],
    ]


def test_where_nothing_is_sent_the_app_is_told(provider: Make, openai_server: LocalOpenAI, clock: Clock) -> None:
    client = provider(
        a={"limits": {"requests_per_minute": 1}}, b={"limits": {"requests_per_minute": 1}, "model": "error-500"}
    ).client("fast")
    ask(client)
    with pytest.raises(openai.InternalServerError):
        ask(client)
    with pytest.raises(LimitReached):
        ask(client)
    assert len(openai_server.requests) == 2
    clock.now += 61
    ask(client)


async def test_the_async_client_does_the_same(provider: Make, openai_server: LocalOpenAI, traced: Spans) -> None:
    async with provider(bad="error-429", good={"stream_usage": True}).async_client("fast") as client:
        assert isinstance(client, openai.AsyncOpenAI)
        answer = await client.chat.completions.create(model="fast", messages=HELLO)  # type: ignore[arg-type]
        assert answer.model.startswith(MODEL)
        stream = await client.with_options(timeout=9).chat.completions.create(
            model="fast",
            messages=HELLO,  # type: ignore[arg-type]
            stream=True,
        )
        assert [chunk async for chunk in stream][-1].usage is not None
        async with provider(bad="stream-error-first", good=MODEL).async_client("fast") as other:
            stream = await other.chat.completions.create(model="fast", messages=HELLO, stream=True)  # type: ignore[arg-type]
            assert len([chunk async for chunk in stream]) > 2
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="error-400", messages=HELLO)  # type: ignore[arg-type]
        assert [page async for page in client.models.list()]
    assert {span.attributes[semconv.PROFILE] for span in traced.all()} == {"fast"}
