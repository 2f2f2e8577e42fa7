"""Streams are asked for their usage: every server, with a way back, and what each takes is remembered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from otel_llm.calls import stream_usage
from otel_llm.conventions import semconv as s
from otel_llm.instrumentation.openai._request import server_at
from otel_llm.settings import reload
from otel_llm.support import faults
from tests.instrumentation.openai.clients import http

HELLO: Any = [{"role": "user", "content": "Say hello."}]
MODEL = "gpt-4o-mini"
USAGE = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
NAMED = "Unrecognized request argument supplied: stream_options"
UNNAMED = "Bad request"


def piece(**more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, **more}


def refusal(status: int, message: str) -> Any:
    return http.Response(status, json={"error": {"message": message, "type": "invalid_request_error"}})


class Server:
    """Answers with a stream, which tells its usage if asked; `before` may answer in its place, or raise."""

    def __init__(self, before: Callable[[dict[str, Any]], Any] = lambda body: None) -> None:
        self.before = before
        self.bodies: list[dict[str, Any]] = []
        self.urls: list[str] = []

    def __call__(self, request: Any) -> Any:
        body = json.loads(request.content)
        self.bodies.append(body)
        self.urls.append(str(request.url))
        answer = self.before(body)
        if answer is not None:
            return answer
        chunks = [piece(choices=[{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}])]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append(piece(choices=[], usage=USAGE))
        content = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return http.Response(200, headers={"content-type": "text/event-stream"}, content=content.encode())

    @property
    def asked(self) -> list[bool]:
        """Whether each request asked for usage."""
        return ["stream_options" in body for body in self.bodies]


def refusing(status: int = 400, message: str = NAMED, **when: Any) -> Callable[[dict[str, Any]], Any]:
    """Refuses `stream_options`, in requests that say `when`."""

    def before(body: dict[str, Any]) -> Any:
        if "stream_options" in body and all(body.get(name) == value for name, value in when.items()):
            return refusal(status, message)
        return None

    return before


WAYS: dict[str, Any] = {
    "plain": lambda c, **more: c.chat.completions.create(**more),
    "raw": lambda c, **more: c.chat.completions.with_raw_response.create(**more),
    "with_options": lambda c, **more: c.with_options(timeout=20).chat.completions.create(**more),
    "completions": lambda c, **more: c.completions.create(**{**more, "messages": None, "prompt": "hi"}),
}


class Caller:
    """Makes streams at one server, sync or async, and reads them to their end."""

    def __init__(self, server: Server, is_async: bool) -> None:
        self.server = server
        self.is_async = is_async

    def __call__(self, way: str = "plain", *, client: Any = None, **more: Any) -> list[Any]:
        given = {"model": MODEL, "messages": HELLO, "stream": True, **more}
        if way == "completions":
            del given["messages"]
        cls = openai.AsyncOpenAI if self.is_async else openai.OpenAI
        return self.read(cls, lambda made: _WAYS[way](made, **given), **(client or {}))

    def read(self, cls: Any, make: Callable[[Any], Any], **options: Any) -> list[Any]:
        options = {"api_key": "x", "base_url": "http://local/v1", "max_retries": 0, **options}
        if "azure_endpoint" in options:
            del options["base_url"]
        transport = http.MockTransport(self.server)
        if not self.is_async:
            with http.Client(transport=transport) as session:
                result = make(cls(http_client=session, **options))
                return list(result.parse() if hasattr(result, "parse") else result)

        async def run() -> list[Any]:
            async with http.AsyncClient(transport=transport) as session:
                result = await make(cls(http_client=session, **options))
                return [chunk async for chunk in (result.parse() if hasattr(result, "parse") else result)]

        return asyncio.run(run())


_WAYS: dict[str, Any] = {
    **WAYS,
    "completions": lambda c, **more: c.completions.create(prompt="hi", **more),
}


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest, instrumented: Any) -> Caller:
    return Caller(Server(), request.param == "async")


@pytest.fixture(autouse=True)
def _no_fault() -> Iterator[None]:
    before = faults.counts.copy()
    yield
    assert faults.counts == before
    reload()


# --- the way back ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("message", [NAMED, UNNAMED])
@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_refused_is_sent_again_as_the_app_made_it(way, status, message, caller, instrumented):
    caller.server.before = refusing(status, message)
    assert len(caller(way)) == 1
    assert caller.server.asked == [True, False]
    found = instrumented.attributes()  # one span
    assert (found[s.STATUS], found[s.ATTEMPTS]) == ("ok", 2)
    assert s.INPUT_TOKENS not in found
    # and remembered
    assert len(caller(way)) == 1
    assert caller.server.asked == [True, False, False]
    assert instrumented.all()[-1].attributes[s.ATTEMPTS] == 1


def test_a_request_that_is_wrong_anyway_fails_as_it_would_have(caller, instrumented):
    caller.server.before = lambda body: refusal(400, f"too long, try {len(caller.server.bodies)}")
    with pytest.raises(openai.BadRequestError) as raised:
        caller()
    assert "try 2" in str(raised.value)  # the answer to what the app made
    assert not isinstance(raised.value.__context__, openai.APIError)  # nothing tells of the one before
    assert caller.server.asked == [True, False]
    found = instrumented.attributes()
    assert (found[s.STATUS], found[s.ERROR_TYPE], found[s.ATTEMPTS]) == ("error", "400", 2)
    # It was not what we asked: the next stream is asked.
    caller.server.before = lambda body: None
    caller()
    assert instrumented.all()[-1].attributes[s.INPUT_TOKENS] == 5


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500, 503])
def test_no_other_answer_has_us_send_again(status, caller):
    caller.server.before = lambda body: refusal(status, NAMED)
    with pytest.raises(openai.APIStatusError):
        caller()
    assert len(caller.server.bodies) == 1


def test_a_server_that_has_taken_it_answers_for_the_app(caller, instrumented):
    caller()
    caller.server.before = lambda body: refusal(400, UNNAMED) if body["model"] == "none" else None
    for model in ("none", "none"):
        with pytest.raises(openai.BadRequestError):
            caller(model=model)
    assert caller.server.asked == [True, True, True]
    assert instrumented.all()[-1].attributes[s.ATTEMPTS] == 1
    caller()
    assert caller.server.asked[-1]


def test_openai_itself_is_known_to_take_it(caller):
    caller.server.before = lambda body: refusal(400, UNNAMED)
    for _ in range(5):
        with pytest.raises(openai.BadRequestError):
            caller(client={"base_url": "https://api.openai.com/v1"})
    assert caller.server.asked == [True] * 5


def test_a_gateway_takes_it_for_one_model_and_not_for_another(caller, instrumented):
    caller.server.before = refusing(model="strict")
    for model in ("open", "strict", "strict", "open"):
        assert len(caller(model=model)) == 1
    assert caller.server.asked == [True, True, False, False, True]
    told = [s.INPUT_TOKENS in span.attributes for span in instrumented.all()]
    assert told == [True, False, False, True]


def test_a_gateway_that_refuses_for_one_model_first(caller, instrumented):
    caller.server.before = refusing(model="strict")
    for model in ("strict", "open"):
        assert len(caller(model=model)) == 1
    assert caller.server.asked == [True, False, True]


def test_a_server_that_refuses_for_whatever_model(caller):
    caller.server.before = refusing()
    for model in ("a", "b", "c", "d"):
        assert len(caller(model=model)) == 1
    assert caller.server.asked == [True, False, True, False, False, False]


def test_it_is_refused_in_some_requests_only(caller, instrumented):
    """Each of those is sent again; the others go on being asked."""
    caller.server.before = refusing(seed=1)
    for more in ({}, {"seed": 1}, {}, {"seed": 1}, {}):
        assert len(caller(**more)) == 1
    assert caller.server.asked == [True, True, False, True, True, False, True]


@pytest.mark.parametrize("way", ["plain", "raw"])
@pytest.mark.parametrize("as_stream", [True, False])
def test_what_is_refused_inside_a_200_is_not_asked_again(as_stream, way, caller):
    """The first is the app's already; the streams that follow are as it made them."""

    def before(body: dict[str, Any]) -> Any:
        if "stream_options" not in body:
            return None
        error = {"error": {"message": NAMED, "code": 400}}
        if as_stream:
            kind = {"content-type": "text/event-stream"}
            return http.Response(200, headers=kind, content=f"data: {json.dumps(error)}\n\n".encode())
        return http.Response(200, json=error)

    caller.server.before = before
    with contextlib.suppress(openai.APIError):
        caller(way)
    assert [len(caller(way)) for _ in range(2)] == [1, 1]
    assert caller.server.asked == [True, False, False]


def test_another_failure_inside_a_200_is_no_refusal(caller):
    error = b'data: {"error": {"message": "overloaded", "code": 529}}\n\n'
    kind = {"content-type": "text/event-stream"}
    caller.server.before = lambda body: http.Response(200, headers=kind, content=error)
    for _ in range(2):
        with pytest.raises(openai.APIError):
            caller()
    assert caller.server.asked == [True, True]


@pytest.mark.parametrize("raises", ["for the status", "its own"])
def test_a_refusal_that_a_hook_of_the_http_client_raises(raises, instrumented):
    """It never gets to the client, which would make its own error of it."""

    def hook(response: Any) -> None:
        if raises == "for the status":
            response.raise_for_status()
        if response.status_code >= 400:
            raise LookupError("the app's")

    server = Server(refusing())
    with http.Client(transport=http.MockTransport(server), event_hooks={"response": [hook]}) as session:
        client = openai.OpenAI(api_key="x", base_url="http://local/v1", http_client=session, max_retries=0)
        assert len(list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))) == 1
    assert server.asked == [True, False]
    assert instrumented.one().attributes[s.STATUS] == "ok"


def test_another_server_at_the_same_address(caller):
    """It took the question and now refuses every request, without a word why: not for ever the app's own errors."""
    caller()
    caller.server.before = refusing(400, UNNAMED)
    failed = 0
    for _ in range(8):
        try:
            caller()
        except openai.BadRequestError:
            failed += 1
    assert failed == 3
    assert caller.server.asked[-2:] == [False, False]


def test_many_threads_at_a_server_that_nobody_knows(instrumented):
    ready = threading.Barrier(6)

    def before(body: dict[str, Any]) -> Any:
        if "stream_options" in body:
            ready.wait(20)
            return refusal(400, UNNAMED)
        return None

    caller = Caller(Server(before), is_async=False)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(len(caller()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [1] * 6
    assert sorted(caller.server.asked) == [False] * 6 + [True] * 6
    assert len(instrumented.all()) == 6


def test_the_clients_own_retry_goes_as_the_app_made_it(caller, instrumented):
    """A server that breaks down over what it does not know: 500, or a closed connection."""
    caller.server.before = lambda body: refusal(500, "oops") if "stream_options" in body else None
    assert len(caller(client={"max_retries": 2})) == 1
    assert caller.server.asked == [True, False]
    assert instrumented.attributes()[s.ATTEMPTS] == 2
    caller(client={"max_retries": 2})
    assert caller.server.asked == [True, False, False]


def test_the_clients_own_retry_at_a_server_that_is_known(caller, instrumented):
    caller()
    answers = [refusal(500, "oops"), refusal(429, "wait")]
    caller.server.before = lambda body: answers.pop() if answers else None
    caller(client={"max_retries": 2})
    assert caller.server.asked == [True] * 4
    found = instrumented.all()[-1].attributes
    assert (found[s.ATTEMPTS], found[s.INPUT_TOKENS]) == (3, 5)


def test_a_server_that_closes_the_connection_is_not_asked_the_next_time(caller):
    def before(body: dict[str, Any]) -> Any:
        if "stream_options" in body:
            raise http.RemoteProtocolError("Server disconnected without sending a response.")

    caller.server.before = before
    with pytest.raises(openai.APIConnectionError):
        caller()
    assert len(caller()) == 1
    assert len(caller()) == 1
    assert caller.server.asked == [True, False, False]


def test_a_server_that_was_down_is_asked_again(caller):
    caller.server.before = lambda body: refusal(503, "down")
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            caller()
    caller.server.before = lambda body: None
    caller()
    assert caller.server.asked == [True, False, True]


@pytest.mark.parametrize("how", ["header", "option"])
def test_a_request_with_an_idempotency_key_is_not_sent_in_two_ways(how, caller):
    caller.server.before = refusing()
    if how == "header":
        caller(extra_headers={"Idempotency-Key": "k"})
    else:
        body = {"model": MODEL, "messages": HELLO, "stream": True}
        cls, stream = (openai.AsyncOpenAI, openai.AsyncStream) if caller.is_async else (openai.OpenAI, openai.Stream)
        options = {"idempotency_key": "k"}
        caller.read(
            cls,
            lambda c: c.post(
                "/chat/completions", cast_to=object, body=body, options=options, stream=True, stream_cls=stream[object]
            ),
        )
    assert caller.server.asked == [False]


def test_a_fault_of_ours_costs_the_question_alone(caller, instrumented, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(faults, "report", lambda *_: None)
    for owner, name in (
        (stream_usage, "server"),
        (stream_usage.KnownServer, "took"),
        (stream_usage.KnownServer, "blames_the_app"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            assert len(caller()) == 1
    told = [(span.attributes[s.STATUS], span.attributes.get(s.INPUT_TOKENS)) for span in instrumented.all()]
    assert told == [("ok", None), ("ok", 5), ("ok", 5)]


# --- what is known beforehand ----------------------------------------------------------------------------------------
DATA = {"data_sources": [{"type": "azure_search", "parameters": {}}]}


@pytest.mark.parametrize(
    ("version", "more", "is_asked"),
    [
        ("2023-05-15", {}, False),
        ("2024-02-01", {}, False),
        ("2024-06-01", {}, False),
        ("2024-07-01-preview", {}, False),
        ("2024-08-01-preview", {}, True),
        ("2024-10-21", {}, True),
        ("preview", {}, True),
        ("2024-10-21", {"extra_body": DATA}, False),
        ("2024-10-21", {"extra_query": {"api-version": "2024-02-01"}}, False),
        ("2024-02-01", {"extra_query": {"api-version": "2024-10-21"}}, True),
    ],
)
def test_azure(version, more, is_asked, caller):
    cls = openai.AsyncAzureOpenAI if caller.is_async else openai.AzureOpenAI
    given = {"model": "d", "messages": HELLO, "stream": True, **more}
    where = {"azure_endpoint": "https://x.openai.azure.com", "api_version": version}
    assert len(caller.read(cls, lambda c: c.chat.completions.create(**given), **where)) == 1
    assert caller.server.asked == [is_asked]


@pytest.mark.parametrize("host", ["x.openai.azure.com", "x.services.ai.azure.com", "x.cognitiveservices.azure.us"])
def test_azure_by_a_plain_client(host, caller, instrumented):
    caller(client={"base_url": f"https://{host}/openai/v1"})
    caller(client={"base_url": f"https://{host}/openai/v1", "default_query": {"api-version": "2024-02-01"}})
    caller(client={"base_url": f"https://{host}/openai/v1"}, extra_body=DATA)
    assert caller.server.asked == [True, False, False]
    assert {span.attributes[s.PROVIDER].partition(".")[0] for span in instrumented.all()} == {"azure"}


@pytest.mark.parametrize("version", ["2024-09-01", "2025-01-01"])
def test_what_one_api_version_refuses_another_may_take(version, caller):
    caller.server.before = lambda body: (
        refusal(400, NAMED) if "stream_options" in body and "2024-09" in caller.server.urls[-1] else None
    )
    old, other = ({"base_url": "http://local/v1", "default_query": {"api-version": v}} for v in ("2024-09-01", version))
    caller(client=old)
    caller(client=other)
    assert caller.server.asked == ([True, False, False] if other == old else [True, False, True])


def test_a_server_that_tells_its_usage_unasked(caller):
    caller(client={"base_url": "https://openrouter.ai/api/v1"})
    assert caller.server.asked == [False]


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("eu.api.openai.com", "openai"),
        ("x.openai.azure.us", "azure.ai.openai"),
        ("x.openai.azure.cn", "azure.ai.openai"),
        ("x.cognitiveservices.azure.com", "azure.ai.openai"),
        ("eastus.api.cognitive.microsoft.com", "azure.ai.openai"),
        ("x.services.ai.azure.com", "azure.ai.inference"),
        ("notopenai.com", "openai"),
    ],
)
def test_the_hosts(host, provider):
    server = server_at(host, 443)
    assert server.provider == provider
    assert server.takes_usage == host.endswith("api.openai.com")


# --- what is really sent ---------------------------------------------------------------------------------------------
def test_what_is_recorded_is_what_extra_body_says(caller, instrumented):
    extra = {"model": "gpt-5.1", "max_tokens": 1024, "service_tier": "flex", "temperature": 1, "n": 2}
    caller(extra_body=extra, max_tokens=1, temperature=0)
    found = instrumented.attributes()
    names = (s.REQUEST_MODEL, s.REQUEST_MAX_TOKENS, s.OPENAI_REQUEST_SERVICE_TIER, s.REQUEST_TEMPERATURE)
    assert [found[name] for name in (*names, s.REQUEST_CHOICE_COUNT)] == ["gpt-5.1", 1024, "flex", 1.0, 2]
    assert instrumented.one().name == "chat gpt-5.1"


@pytest.mark.parametrize(
    ("given", "sent", "sees_usage"),
    [
        ({"extra_body": {"stream_options": {"include_usage": True}}}, {"include_usage": True}, True),
        ({"extra_body": {"stream_options": {"include_usage": False}}}, {"include_usage": False}, False),
        (
            {"extra_body": {"stream_options": {"include_obfuscation": False}}},
            {"include_obfuscation": False, "include_usage": True},
            False,
        ),
        # The second is not merged into the first: it takes its place.
        (
            {"stream_options": {"include_usage": True}, "extra_body": {"stream_options": {}}},
            {"include_usage": True},
            False,
        ),
        ({"stream_options": {}, "extra_body": {"seed": 1}}, {"include_usage": True}, False),
        ({"stream_options": {"continuous_usage_stats": True}}, {"continuous_usage_stats": True}, False),
    ],
)
@pytest.mark.parametrize("way", ["plain", "raw"])
def test_the_usage_that_the_app_asks_for_is_the_apps(way, given, sent, sees_usage, caller):
    before = json.dumps(given)
    chunks = caller(way, **given)
    assert caller.server.bodies[0]["stream_options"] == sent
    assert [chunk.usage is not None for chunk in chunks] == ([False, True] if sees_usage else [False])
    assert json.dumps(given) == before


def test_a_stream_that_extra_body_makes_none(caller):
    caller.server.before = lambda body: http.Response(200, json={"id": "c"})
    caller(extra_body={"stream": False})
    assert caller.server.asked == [False]


def test_a_stream_that_only_extra_body_asks_for(instrumented):
    server = Server()
    client = openai.OpenAI(
        api_key="x", base_url="http://local/v1", http_client=http.Client(transport=http.MockTransport(server))
    )
    extra = {"stream": True, "stream_options": {"include_usage": True}}
    client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=extra)
    found = instrumented.attributes()
    assert found[s.REQUEST_STREAM] is True
    assert found[s.INPUT_TOKENS] == 5


def test_what_was_said_through_extra_body_is_captured(caller, instrumented, capture):
    capture()
    caller(extra_body={"messages": [{"role": "user", "content": "From extra_body."}]})
    assert "From extra_body." in str(instrumented.attributes()[s.INPUT_MESSAGES])
    assert "Say hello." not in str(instrumented.attributes())


def test_the_deployment_in_the_path_is_the_model_on_azure(caller, instrumented):
    cls = openai.AsyncAzureOpenAI if caller.is_async else openai.AzureOpenAI
    given = {"model": "d", "messages": HELLO, "stream": True, "extra_body": {"model": "passed over"}}
    where = {"azure_endpoint": "https://x.openai.azure.com", "api_version": "2024-10-21"}
    caller.read(cls, lambda c: c.chat.completions.create(**given), **where)
    assert "/deployments/d/" in caller.server.urls[0]
    assert instrumented.attributes()[s.REQUEST_MODEL] == "d"


def test_a_whole_url_is_another_server(caller, instrumented):
    cls, stream = (openai.AsyncOpenAI, openai.AsyncStream) if caller.is_async else (openai.OpenAI, openai.Stream)
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    url = "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-02-01"
    caller.read(cls, lambda c: c.post(url, cast_to=object, body=body, stream=True, stream_cls=stream[object]))
    assert caller.server.asked == [False]
    assert instrumented.attributes()[s.SERVER_ADDRESS] == "x.openai.azure.com"
    assert instrumented.attributes()[s.PROVIDER] == "azure.ai.openai"


# --- raw responses ---------------------------------------------------------------------------------------------------
def test_the_usage_of_a_parsed_raw_stream_is_hidden(caller, instrumented):
    chunks = caller("raw")
    assert caller.server.asked == [True]
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)
    assert instrumented.attributes()[s.INPUT_TOKENS] == 5


def _client(server: Server) -> openai.OpenAI:
    session = http.Client(transport=http.MockTransport(server))
    return openai.OpenAI(api_key="x", base_url="http://local/v1", http_client=session, max_retries=0)


def test_the_lines_of_a_raw_stream_are_as_they_came(instrumented):
    server = Server()
    raw = _client(server).chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, stream=True)
    lines = list(raw.http_response.iter_lines())
    assert any(json.dumps(USAGE) in line for line in lines)
    assert instrumented.attributes()[s.INPUT_TOKENS] == 5


def test_whoever_reads_the_lines_alone_is_not_asked_for(instrumented):
    server = Server()
    create = _client(server).chat.completions.with_streaming_response.create
    with create(model=MODEL, messages=HELLO, stream=True) as response:
        list(response.iter_lines())
    assert server.asked == [False]


def test_a_raw_stream_parsed_twice_or_to_another_type(instrumented):
    server = Server()
    raw = _client(server).chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, stream=True)
    assert raw.parse() is raw.parse()
    assert len(list(raw.parse())) == 1
    raw = _client(server).chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, stream=True)
    chunks = list(raw.parse(to=openai.Stream[object]))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": "hi"}]
    assert [span.attributes[s.INPUT_TOKENS] for span in instrumented.all()] == [5, 5]


# --- the setting, and what outlives the process ----------------------------------------------------------------------
@pytest.fixture
def memory(tmp_path) -> Iterator[Any]:
    directory = tmp_path / "usage.duckdb.journal"
    directory.mkdir(mode=0o700)
    path = directory / "stream-usage.json"
    stream_usage.keep_at(path)
    yield path
    stream_usage.keep_at(None)


def next_process() -> None:
    stream_usage.save()
    stream_usage.forget()


def test_the_next_process_knows(caller, memory):
    caller.server.before = refusing()
    caller()
    next_process()
    caller()
    assert caller.server.asked == [True, False, False]
    assert memory.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in memory.parent.iterdir()] == [memory.name]


def test_the_next_process_does_not_trust_what_one_before_saw_taken(caller, memory):
    """Another server may be behind the address by now."""
    caller()
    next_process()
    caller.server.before = refusing(400, UNNAMED)
    assert len(caller()) == 1
    # but once it has been wrong about the question, the server is as good as known
    stream_usage.forget()
    memory.unlink()
    caller.server.before = lambda body: None
    caller()
    next_process()
    caller.server.before = lambda body: refusal(400, UNNAMED)
    before = len(caller.server.bodies)
    for _ in range(2):
        with pytest.raises(openai.BadRequestError):
            caller()
    assert caller.server.asked[before:] == [True, False, True]


def test_a_refusal_does_not_count_for_ever(caller, memory, monkeypatch):
    caller.server.before = refusing()
    caller()
    now = stream_usage.time.time()
    next_process()
    monkeypatch.setattr(stream_usage.time, "time", lambda: now + stream_usage.REFUSED_SECONDS + 1)
    caller.server.before = lambda body: None
    caller()
    assert caller.server.asked == [True, False, True]


def test_always_asks_anew_once_a_process(caller, memory, monkeypatch):
    caller.server.before = refusing()
    caller()
    next_process()
    monkeypatch.setenv("OTEL_LLM_STREAM_USAGE", "always")
    reload()
    caller()
    caller()
    assert caller.server.asked == [True, False, True, False, False]


def test_never_asks_nobody(caller, instrumented, monkeypatch):
    monkeypatch.setenv("OTEL_LLM_STREAM_USAGE", "never")
    reload()
    caller(client={"base_url": "https://api.openai.com/v1"})
    caller("raw")
    assert caller.server.asked == [False, False]


SOUND = {"server": "local", "taken": None, "refused": {MODEL: 2e9}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"{",
        b"[]",
        b"null",
        b'{"servers": 1}',
        b"[" * 100_000,
        b'{"servers": ' + b" " * stream_usage.MAX_BYTES + b"{}}",
        *(
            json.dumps({"servers": {"d": told, "e": SOUND}}).encode()
            for told in (None, [], {}, {"server": 1}, {"server": "x", "taken": "now"}, {"server": "x", "refused": [1]})
        ),
        json.dumps({"servers": {"d": {"server": "x", "taken": 1e400, "refused": {"m": None, "n": 1e400}}}}).encode(),
    ],
)
def test_a_damaged_file_is_none(content, caller, memory):
    memory.write_bytes(content)
    caller()
    next_process()
    assert "local:80" in {server.name for server in stream_usage.read(memory).values()}


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_is_no_file_of_ours_is_not_read(kind, caller, memory, tmp_path):
    other = tmp_path / "other"
    other.write_text("precious")
    if kind == "link":
        memory.symlink_to(other)
    elif kind == "fifo":
        stream_usage.os.mkfifo(memory)
    else:
        memory.mkdir()
    caller()
    if kind == "directory":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faults, "report", lambda *_: None)
            next_process()
    else:
        next_process()
        assert memory.is_file() and not memory.is_symlink()
    assert other.read_text() == "precious"


def test_nothing_is_written_where_others_may_write(caller, memory):
    memory.parent.chmod(0o777)
    caller()
    next_process()
    assert not memory.exists()


def test_the_file_is_bounded_and_merged(memory):
    for number in range(stream_usage.MAX_SERVERS + 50):
        stream_usage.server(f"http://{number}", str(number)).took(MODEL)
        if number % 100 == 0:
            next_process()
    next_process()
    assert len(stream_usage.read(memory)) == stream_usage.MAX_SERVERS
    for number in range(stream_usage.MAX_MODELS + 5):
        stream_usage.server("http://x", "x").answered_unasked(f"m{number}" + "y" * 5_000, said_so=True)
    next_process()
    assert memory.stat().st_size <= stream_usage.MAX_BYTES


def test_writers_at_once(memory):
    def learn(number: int) -> None:
        for each in range(20):
            stream_usage.server(f"http://{number}.{each}", "x").took(MODEL)
            stream_usage.save()

    threads = [threading.Thread(target=learn, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    next_process()
    assert len(stream_usage.read(memory)) > 20  # what two write at once, one may lose: it is learned again
    assert [entry.name for entry in memory.parent.iterdir()] == [memory.name]


def test_no_secret_of_an_address_is_kept(caller, memory):
    caller(client={"base_url": "http://user:secret@local/key-secret/v1"}, extra_query={"key": "secret"})
    next_process()
    assert b"secret" not in memory.read_bytes()


def test_the_call_path_reads_the_file_once_and_never_writes(instrumented, memory, monkeypatch):
    opened: list[str] = []
    real = stream_usage.os.open

    def watched(path: Any, *args: Any, **kwargs: Any) -> int:
        if memory.name in str(path):
            opened.append(str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(stream_usage.os, "open", watched)
    caller = Caller(Server(refusing()), is_async=False)
    for model in ("a", "b", "c", "a"):
        caller(model=model)
    assert opened == [str(memory)]
