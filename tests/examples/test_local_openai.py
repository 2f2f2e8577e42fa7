"""The local server answers as OpenAI does, as seen by the real client; other tests trust its ledger."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from local_openai import LocalOpenAI
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
ASK: list[Any] = [{"role": "user", "content": "How old is Anna, 33?"}]


class Person(BaseModel):
    name: str
    age: int


TOOL: dict[str, Any] = {
    "name": "person",
    "strict": True,
    "parameters": Person.model_json_schema() | {"additionalProperties": False},
}


@pytest.fixture
def client(openai_server: LocalOpenAI) -> openai.OpenAI:
    return openai.OpenAI(base_url=openai_server.base_url, api_key="k", max_retries=0)


def test_a_chat_call_and_its_ledger_entry_agree(openai_server: LocalOpenAI, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=ASK, extra_headers={"X-Mine": "1"})
    again = client.chat.completions.create(model="gpt-4o-mini", messages=ASK)

    assert answer.id != again.id
    assert answer.choices == again.choices
    assert answer.usage == again.usage
    assert answer.model == "gpt-4o-mini-2024-07-18"
    assert "Anna" in (answer.choices[0].message.content or "")
    call = openai_server.ledger[0]
    assert answer.usage is not None and call.usage == answer.usage.model_dump(exclude_unset=True)
    assert (call.input_tokens, call.output_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert (call.endpoint, call.model, call.response_id) == ("chat.completions", "gpt-4o-mini", answer.id)
    assert (call.status, call.outcome, call.billed, call.reported) == (200, "ok", True, True)
    assert call.headers["x-mine"] == "1" and call.headers["authorization"] == "Bearer k"
    assert call.body == {"messages": ASK, "model": "gpt-4o-mini"}


@pytest.mark.parametrize("include_usage", [True, False, None])
@pytest.mark.parametrize("n", [1, 2])
def test_chat_streams_report_usage_only_when_asked(
    openai_server: LocalOpenAI, client: openai.OpenAI, include_usage: bool | None, n: int
) -> None:
    plain = client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=n)
    options: Any = openai.omit if include_usage is None else {"include_usage": include_usage}
    chunks = list(
        client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=n, stream=True, stream_options=options)
    )

    for number in range(n):
        of_choice = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == number]
        text = "".join(choice.delta.content or "" for choice in of_choice)
        assert text == plain.choices[number].message.content
        assert [choice.finish_reason for choice in of_choice if choice.finish_reason] == ["stop"]
    assert {chunk.id for chunk in chunks} == {openai_server.ledger[-1].response_id}
    assert openai_server.ledger[-1].reported is bool(include_usage)
    if include_usage:
        assert all(chunk.choices and "usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
        assert (chunks[-1].choices, chunks[-1].usage) == ([], plain.usage)
    else:
        assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI, stream: bool) -> None:
    messages = list(ASK)
    arguments: Any = {"model": "gpt-4o-mini", "tools": [{"type": "function", "function": TOOL}]}
    if stream:
        with client.chat.completions.stream(messages=messages, **arguments) as events:
            message: Any = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(messages=messages, **arguments).choices[0].message
    (call,) = message.tool_calls
    assert message.content is None
    assert json.loads(call.function.arguments) == {"name": "Anna", "age": 33}

    messages += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "33!"}]
    answer = client.chat.completions.create(messages=messages, **arguments)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.tool_calls) == ("stop", None)
    assert "33!" in (answer.choices[0].message.content or "")


def test_structured_output_fits_its_schema(client: openai.OpenAI) -> None:
    chat = client.chat.completions.parse(model="gpt-4o-mini", messages=ASK, response_format=Person)
    response = client.responses.parse(model="gpt-4o-mini", input="How old is Anna, 33?", text_format=Person)
    assert chat.choices[0].message.parsed == response.output_parsed == Person(name="Anna", age=33)


def test_a_response_streams_the_real_sequence_of_events(openai_server: LocalOpenAI, client: openai.OpenAI) -> None:
    plain = client.responses.create(model="gpt-4o-mini", input="Hello")
    events = list(client.responses.create(model="gpt-4o-mini", input="Hello", stream=True))

    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(deltas) == plain.output_text
    last = events[-1]
    assert last.type == "response.completed" and last.response.usage == plain.usage
    assert last.response.id == openai_server.ledger[-1].response_id


def test_a_response_calls_functions_reasons_and_stops_at_its_limit(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **TOOL}
    with client.responses.stream(model="gpt-5-mini", input="How old is Anna, 33?", tools=[tool]) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "function_call"]
    assert final.usage is not None and final.usage.output_tokens_details.reasoning_tokens == 64

    cut = client.responses.create(model="gpt-4o-mini", input="Hello", max_output_tokens=3)
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage is not None and cut.usage.output_tokens == 3


def test_a_background_response_has_its_usage_later(openai_server: LocalOpenAI, client: openai.OpenAI) -> None:
    queued = client.responses.create(model="gpt-4o-mini", input="Hello", background=True)
    assert (queued.status, queued.usage) == ("queued", None)
    done = client.responses.retrieve(queued.id)
    (call,) = openai_server.ledger
    assert (done.status, done.id) == ("completed", queued.id)
    assert done.usage is not None and done.usage.output_tokens == call.output_tokens


def test_embeddings_completions_and_models(openai_server: LocalOpenAI, client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="text-embedding-3-small", input=["one", "two words"], dimensions=8)
    plain = client.embeddings.create(
        model="text-embedding-3-small", input=["one", "two words"], dimensions=8, encoding_format="float"
    )
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens == 3
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)

    texts = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"], n=2)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    chunks = list(
        client.completions.create(
            model="gpt-3.5-turbo-instruct", prompt="a", stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == texts.choices[0].text
    assert chunks[-1].usage is not None

    assert "gpt-4o-mini" in [model.id for model in client.models.list()]
    assert [call.endpoint for call in openai_server.ledger] == ["embeddings"] * 2 + ["completions"] * 2


def test_azure_paths(openai_server: LocalOpenAI) -> None:
    client = openai.AzureOpenAI(azure_endpoint=openai_server.origin, api_key="k", api_version="2024-10-21")
    answer = client.chat.completions.create(model="my-deployment", messages=ASK)
    first = next(iter(client.chat.completions.create(model="my-deployment", messages=ASK, stream=True)))
    response = client.responses.create(model="my-deployment", input="Hello")

    assert answer.model == response.model == "gpt-4o-mini-2024-07-18"
    # Azure opens a stream with a chunk that has no choices: not to be taken for the one with the usage.
    assert (first.choices, first.id) == ([], "")
    assert [call.model for call in openai_server.ledger] == ["my-deployment"] * 3
    assert openai_server.ledger[0].path == "/openai/deployments/my-deployment/chat/completions"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
def test_errors(openai_server: LocalOpenAI, client: openai.OpenAI, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=f"error-{status}", messages=ASK)
    assert caught.value.status_code == status
    assert "Anna" not in str(caught.value)
    with pytest.raises(openai.APIStatusError, match="Anna"):
        client.responses.create(model=f"error-{status}-echo", input="Anna")
    assert openai_server.ledger == []
    assert [(call.status, call.billed, call.outcome) for call in openai_server.requests] == [
        (status, False, "error")
    ] * 2


def test_a_flaky_model_answers_after_its_failures(openai_server: LocalOpenAI, client: openai.OpenAI) -> None:
    for _ in range(2):
        assert client.with_options(max_retries=2).chat.completions.create(model="flaky-2", messages=ASK).choices
    assert [call.status for call in openai_server.requests] == [429, 500, 200] * 2
    assert len(openai_server.ledger) == 2


def test_a_behaviour_in_the_header_leaves_the_model(openai_server: LocalOpenAI, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="gpt-4o", messages=ASK, extra_headers={"x-local-behaviour": "words-5, no-usage"}
    )
    assert answer.choices[0].message.content == "word0 word1 word2 word3 word4"
    assert answer.usage is None
    (call,) = openai_server.ledger
    assert (call.model, call.reported, call.output_tokens) == ("gpt-4o", False, 5)


def test_usage_can_be_anything_on_the_wire(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="gpt-4o", messages=ASK, extra_headers={"x-local-usage": '{"prompt_tokens": -1}'}
    )
    assert answer.usage is not None and answer.usage.prompt_tokens == -1


def _chat(client: openai.OpenAI, behaviour: str) -> Any:
    return client.chat.completions.create(model=behaviour, messages=ASK, stream=True)


def _respond(client: openai.OpenAI, behaviour: str) -> Any:
    return client.responses.create(model=behaviour, input="Hello", stream=True)


def _complete(client: openai.OpenAI, behaviour: str) -> Any:
    return client.completions.create(model=behaviour, prompt="Hello", stream=True)


@pytest.mark.parametrize("start", [_chat, _respond, _complete])
def test_a_broken_stream_breaks(
    openai_server: LocalOpenAI, client: openai.OpenAI, start: Callable[[openai.OpenAI, str], Any]
) -> None:
    seen = []
    with pytest.raises(openai.APIConnectionError):
        seen.extend(start(client, "stream-broken"))
    (call,) = openai_server.ledger
    assert (call.outcome, call.reported) == ("broken", False)


@pytest.mark.parametrize("start", [_chat, _complete])
def test_an_error_event_ends_a_stream(client: openai.OpenAI, start: Callable[[openai.OpenAI, str], Any]) -> None:
    with pytest.raises(openai.APIError, match="The server had an error"):
        list(start(client, "stream-error-event"))


@pytest.mark.parametrize(("behaviour", "last"), [("stream-error-event", "error"), ("stream-failed", "response.failed")])
def test_a_failing_response_stream(
    openai_server: LocalOpenAI, client: openai.OpenAI, behaviour: str, last: str
) -> None:
    assert list(_respond(client, behaviour))[-1].type == last
    assert not openai_server.ledger[0].reported


def test_slow_waits_for_its_release(openai_server: LocalOpenAI, client: openai.OpenAI) -> None:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.chat.completions.create(model="slow", messages=ASK)))
    thread.start()
    openai_server.wait_for(1)
    assert answers == []
    assert openai_server.ledger[0].outcome == "disconnected"
    openai_server.release()
    thread.join()
    assert len(answers) == 1
    assert openai_server.ledger[0].outcome == "ok"


async def test_a_cancelled_call_is_seen_to_leave(openai_server: LocalOpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=openai_server.base_url, api_key="k") as client:
        task = asyncio.ensure_future(client.chat.completions.create(model="slow", messages=ASK))
        await asyncio.to_thread(openai_server.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (call,) = openai_server.ledger
    assert (call.outcome, call.billed, call.reported) == ("disconnected", True, False)


@pytest.mark.parametrize("start", [_chat, _respond])
def test_a_slow_stream_gives_a_chunk_a_release(
    openai_server: LocalOpenAI, client: openai.OpenAI, start: Callable[[openai.OpenAI, str], Any]
) -> None:
    stream = start(client, "stream-slow")
    events = iter(stream)
    before = [next(events) for _ in range(2 if start is _chat else 5)]
    assert "You" in repr(before[-1])
    openai_server.wait_for(1)
    openai_server.release(1)
    assert "asked" in repr(next(events))
    openai_server.open()
    assert len(list(events)) > 2
    assert openai_server.ledger[0].outcome == "ok"


def test_it_ends_with_whoever_started_it() -> None:
    """Even by `kill -9`: an abandoned server would keep its port and a core's worth of memory."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "from local_openai import LocalOpenAI\n"
        "import os, signal\n"
        "server = LocalOpenAI().start()\n"
        "print(server.base_url, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    # The server has inherited no end of this pipe; its own death shows on its port.
    process.stdout.close()
    process.wait()
    while True:
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).close()
        except OSError:
            break


def test_as_a_command(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [sys.executable, ROOT / "examples" / "local_openai.py", "--port", "0", "--port-file", port_file],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port_file.read_text().strip()}/v1"
        with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
            assert json.load(answer)["object"] == "list"
    finally:
        process.terminate()
        process.communicate()
