"""Each provider × each way of asking: the tokens, the cost and the units of every cell are right, or not there.

Real clients over real HTTP, to a server on loopback that stands in for all hosts.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_openai import ChatOpenAI

from otel_llm.conventions import semconv as s
from otel_llm.conventions.hosts import PROVIDERS, provider_name
from otel_llm.instrumentation.langchain import LangChainInstrumentor
from otel_llm.instrumentation.langchain._result import ModelResult
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation.conftest import Spans
from tests.instrumentation.providers.payloads import PARTNERS, SAID, Said

MESSAGES: Any = [{"role": "user", "content": "hi"}]


class _Standin(BaseHTTPRequestHandler):
    """Answers each request with what the test has put up."""

    protocol_version = "HTTP/1.1"
    said: Said
    recorded: bytes | None = None

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        stream = bool(body.get("stream"))
        if self.recorded is not None:
            content = self.recorded
        else:
            content = _stream(self.said) if stream else json.dumps(_whole(self.said)).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if stream else "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _whole(said: Said) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    answer = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": said.model,
        "choices": [choice],
        **said.extra,
    }
    if said.place == "timings":
        return answer | {"usage": None, "timings": said.usage}
    return answer if said.usage is None else answer | {"usage": said.usage}


def _stream(said: Said) -> bytes:
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": said.model}
    usage: Any = said.usage
    first: dict[str, Any] = base | {"choices": [_delta({"role": "assistant", "content": "h"})]}
    second: dict[str, Any] = base | {"choices": [_delta({"content": "i"})]}
    last: dict[str, Any] = base | {"choices": [_delta({}, "stop")]}
    chunks = [first, second, last]
    match said.place:
        case "trailing":
            chunks.append(base | {"choices": [], "usage": usage})
        case "last":
            last |= {"usage": usage}
        case "every":
            first |= {"usage": {**usage, "completion_tokens": 1, "total_tokens": usage["prompt_tokens"] + 1}}
            last |= {"usage": usage}
        case "x_groq":
            first |= {"x_groq": {"id": "req"}}
            last |= {"x_groq": {"id": "req", "usage": usage}}
        case "choice":
            last["choices"][0] |= {"usage": usage}
        case "timings":
            last |= {"timings": usage}
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def _delta(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


@pytest.fixture(scope="module")
def standin() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Standin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def http(standin: ThreadingHTTPServer) -> Iterator[httpx2.Client]:
    """A client for which every host is on loopback."""

    class ToLoopback(httpx2.HTTPTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=standin.server_port)
            return super().handle_request(request)

    with httpx2.Client(transport=ToLoopback()) as client:
        yield client


@pytest.fixture
def instrumented(spans: Spans) -> Iterator[Spans]:
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield spans
    instrumentor.uninstrument()


def _client(said: Said, http: httpx2.Client) -> Any:
    return openai.OpenAI(api_key="x", base_url=said.base_url, http_client=http, max_retries=0).chat.completions


def _streamed(said: Said, http: httpx2.Client) -> None:
    for _ in _client(said, http).create(model=said.model, messages=MESSAGES, stream=True):
        pass


def _raw_stream(said: Said, http: httpx2.Client) -> None:
    for _ in _client(said, http).with_raw_response.create(model=said.model, messages=MESSAGES, stream=True).parse():
        pass


def _langchain(said: Said, http: httpx2.Client) -> ChatOpenAI:
    return ChatOpenAI(model=said.model, base_url=said.base_url, api_key="x", http_client=http, max_retries=0)  # type: ignore[arg-type]


WAYS: dict[str, Callable[[Said, httpx2.Client], object]] = {
    "plain": lambda said, http: _client(said, http).create(model=said.model, messages=MESSAGES),
    "streamed": _streamed,
    "raw": lambda said, http: _client(said, http).with_raw_response.create(model=said.model, messages=MESSAGES),
    "raw stream": _raw_stream,
    "LangChain": lambda said, http: _langchain(said, http).invoke("hi"),
    "LangChain stream": lambda said, http: list(_langchain(said, http).stream("hi")),
}


def _told(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of tokens, cost and units."""
    return {
        name: value
        for name, value in attributes.items()
        if name.startswith(("gen_ai.usage.", "otel_llm.tokens.", s.UNIT_PREFIX))
        or name in (s.REPORTED_COST_USD, s.USAGE_SOURCE, s.OPENAI_RESPONSE_SERVICE_TIER)
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("said", SAID, ids=[f"{said.provider}-{number}" for number, said in enumerate(SAID)])
def test_a_cell(said: Said, way: str, http: httpx2.Client, instrumented: Spans) -> None:
    _Standin.said, _Standin.recorded = said, None
    if said.place == "timings" and "stream" not in way:
        pytest.skip("llama.cpp tells `usage` where it does not stream")
    WAYS[way](said, http)
    attributes = instrumented.attributes()
    assert attributes[s.PROVIDER] == said.provider
    assert _told(attributes) == said.told


@pytest.mark.parametrize(
    ("base_url", "provider"), [("http://relay.internal/v1", "x_ai"), ("https://api.groq.com/openai/v1", "groq")]
)
def test_langchain_names_who_is_behind_an_address_that_nobody_knows(
    base_url: str, provider: str, http: httpx2.Client, instrumented: Spans
) -> None:
    class ChatSomebody(ChatOpenAI):
        def _get_ls_params(self, *args: Any, **kwargs: Any) -> Any:
            return {**super()._get_ls_params(*args, **kwargs), "ls_provider": "xai"}

    _Standin.said, _Standin.recorded = SAID[0], None
    langchain = LangChainInstrumentor()
    langchain.instrument(tracer_provider=instrumented.provider)
    try:
        ChatSomebody(model="m", base_url=base_url, api_key="x", http_client=http, max_retries=0).invoke("hi")  # type: ignore[arg-type]
    finally:
        langchain.uninstrument()
    assert instrumented.attributes()[s.PROVIDER] == provider


def test_most_providers_of_the_table_are_in_the_matrix() -> None:
    assert len({said.provider for said in SAID}) >= 40
    at_hosts = {one.name for one in PROVIDERS if one.at}
    assert at_hosts - {said.provider for said in SAID} <= {"baichuan", "lingyiwanwu", "voyageai", "ollama"}


_BESIDE = Path(__file__).resolve().parents[4] / "shared" / "recordings"
EXCHANGES = Path(os.environ.get("OTEL_LLM_RECORDINGS", _BESIDE)) / "providers"
REPLAYED = (
    ("azure_chat_reasoning", "azure.ai.openai", [(11, 203, 192)]),
    ("deepseek_stream", "deepseek", [(12, 89, None)]),
    ("groq_chat", "groq", [(18, 43, None), (18, 76, None), (18, 67, None)]),
    ("groq_stream", "groq", [(12, 26, None)]),
    ("openrouter_stream_reasoning", "openrouter", [(13, 1003, None)]),
    ("portkey_chat", "portkey", [(12, 51, 0)]),
    ("together_chat", "together_ai", [(46, 42, None)]),
)
"""Recorded exchange, who answers, and the input, output and reasoning of its first answers, read with the eyes."""


@pytest.mark.skipif(not EXCHANGES.is_dir(), reason="no recordings: they are not part of this repository")
@pytest.mark.parametrize(("name", "provider", "counts"), REPLAYED, ids=[name for name, *_ in REPLAYED])
def test_a_recorded_exchange(
    name: str, provider: str, counts: list[Any], http: httpx2.Client, instrumented: Spans
) -> None:
    exchanges = yaml.safe_load((EXCHANGES / f"{name}.yaml").read_text())["interactions"]
    for exchange in exchanges[: len(counts)]:
        body = exchange["response"]["body"]["string"]
        content = body.encode() if isinstance(body, str) else body
        _Standin.recorded = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        asked = json.loads(exchange["request"]["body"])
        client = openai.OpenAI(api_key="x", base_url=exchange["request"]["uri"].partition("/chat")[0], http_client=http)
        answer = client.chat.completions.create(**{"extra_body": {}, **_known_parameters(asked)})
        if asked.get("stream"):
            list(answer)
    spans = [dict(span.attributes or {}) for span in instrumented.all()]
    names = (s.INPUT_TOKENS, s.OUTPUT_TOKENS, s.REASONING_TOKENS)
    assert [tuple(span.get(one) for one in names) for span in spans] == counts
    assert {(span[s.PROVIDER], span[s.USAGE_SOURCE]) for span in spans} == {(provider, "reported")}


def _known_parameters(asked: dict[str, Any]) -> dict[str, Any]:
    """The request without what OpenRouter alone takes."""
    return {name: value for name, value in asked.items() if name != "reasoning"}


RECORDED = json.loads(Path(__file__).with_name("partner_packages.json").read_text())
PACKAGES = [(name, way) for name in RECORDED for way in ("plain", "streamed") if way in RECORDED[name]]


@pytest.mark.parametrize(("name", "way"), PACKAGES)
def test_a_partner_package(name: str, way: str) -> None:
    """What each hands over to LangChain, recorded with its newest release, read without the client's hook."""
    recorded = RECORDED[name][way]
    message = AIMessage("hi", response_metadata=recorded["response_metadata"] or {})
    message.usage_metadata = recorded["usage_metadata"]
    generation = ChatGeneration(message=message, generation_info=recorded["generation_info"])
    result = ModelResult({s.PROVIDER: provider_name(recorded["ls_provider"]), s.REQUEST_MODEL: recorded["model"]})
    result.see(LLMResult(generations=[[generation]], llm_output=recorded["llm_output"]))
    told = result.attributes() | ({} if result.usage is None else result.usage.attributes())
    if result.usage is not None:
        told.setdefault(s.USAGE_SOURCE, "reported")
    assert _told(told) == dict(PARTNERS[name][way == "streamed"])
