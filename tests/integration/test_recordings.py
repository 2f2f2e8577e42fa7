"""The recorded exchanges with api.openai.com, replayed over HTTP: the app's results are untouched, the account is exact.

The recordings are not part of this repository. They are found beside it or by OTEL_LLM_RECORDINGS; elsewhere the test skips.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
import yaml

import otel_llm
from otel_llm.store import connect

_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "recordings"
RECORDINGS = Path(os.environ.get("OTEL_LLM_RECORDINGS", _BESIDE))
# Other providers' recordings stand beside them: what those send is another matter.
FILES = sorted(file for file in RECORDINGS.rglob("*.yaml") if "https://api.openai.com/v1" in file.read_text())

pytestmark = pytest.mark.skipif(
    not FILES, reason="no recordings: set OTEL_LLM_RECORDINGS to a folder of recorded OpenAI exchanges (YAML)"
)


class Exchange(NamedTuple):
    """One recorded request and its answer."""

    path: str
    request: dict[str, Any]
    status: int
    content_type: str
    body: bytes

    @property
    def stream(self) -> bool:
        return bool(self.request.get("stream"))

    @property
    def usage(self) -> dict[str, Any] | None:
        """The `usage` that the provider reported, read from the recording without any code of ours."""
        if not self.content_type.startswith("text/event-stream"):
            return json.loads(self.body).get("usage") if self.status == 200 else None
        found = None
        for line in self.body.decode().splitlines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                found = event.get("usage") or (event.get("response") or {}).get("usage") or found
        return found


def load(file: Path) -> list[Exchange]:
    exchanges = []
    for interaction in yaml.safe_load(file.read_text())["interactions"]:
        request, response = interaction["request"], interaction["response"]
        body = response["body"]["string"]
        headers = {name.lower(): values for name, values in response["headers"].items()}
        sent = request["body"]
        exchanges.append(
            Exchange(
                request["uri"].removeprefix("https://api.openai.com/v1"),
                json.loads(sent if isinstance(sent, str) else sent.decode()),
                response["status"]["code"],
                headers["content-type"][0],
                body.encode() if isinstance(body, str) else body,
            )
        )
    return exchanges


class Replay:
    """An HTTP server that gives the answer that is due."""

    def __init__(self) -> None:
        self.due: list[Exchange] = []
        replay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 2**16  # head and body in one packet: no waiting for an acknowledgement in between

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                exchange = replay.due.pop(0)
                assert self.path == exchange.path
                self.send_response(exchange.status)
                self.send_header("content-type", exchange.content_type)
                self.send_header("content-length", str(len(exchange.body)))
                self.end_headers()
                self.wfile.write(exchange.body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    replay = Replay()
    yield replay
    replay.stop()


_RESOURCES = {
    "/chat/completions": lambda client: client.chat.completions,
    "/responses": lambda client: client.responses,
    "/embeddings": lambda client: client.embeddings,
}


def run_all(base_url: str, exchanges: list[Exchange], way: str) -> list[Any]:
    """What the app sees of each: the answer, every chunk, or the error; as plain data."""
    if way.startswith("async"):
        return asyncio.run(_run_all_async(base_url, exchanges, way))
    with openai.OpenAI(base_url=base_url, api_key="test", max_retries=0) as client:
        return [_run(client, exchange, way) for exchange in exchanges]


async def _run_all_async(base_url: str, exchanges: list[Exchange], way: str) -> list[Any]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="test", max_retries=0) as client:
        return [await _run_async(client, exchange, way) for exchange in exchanges]


def _run(client: openai.OpenAI, exchange: Exchange, way: str) -> Any:
    resource, arguments = _request(client, exchange)
    try:
        raw = way == "raw"
        result = resource.with_raw_response.create(**arguments).parse() if raw else resource.create(**arguments)
        return [chunk.model_dump() for chunk in result] if exchange.stream else result.model_dump()
    except openai.APIStatusError as error:
        return type(error).__name__, error.status_code, error.body


async def _run_async(client: openai.AsyncOpenAI, exchange: Exchange, way: str) -> Any:
    resource, arguments = _request(client, exchange)
    try:
        if way == "async raw":
            result = (await resource.with_raw_response.create(**arguments)).parse()
        else:
            result = await resource.create(**arguments)
        return [chunk.model_dump() async for chunk in result] if exchange.stream else result.model_dump()
    except openai.APIStatusError as error:
        return type(error).__name__, error.status_code, error.body


def _request(client: Any, exchange: Exchange) -> tuple[Any, dict[str, Any]]:
    """The resource and the arguments that send this request; what the method has no parameter for goes into `extra_body`."""
    resource = _RESOURCES[exchange.path](client)
    known = inspect.signature(resource.create).parameters
    arguments = {key: value for key, value in exchange.request.items() if key in known}
    extra = {key: value for key, value in exchange.request.items() if key not in known}
    return resource, arguments | {"extra_body": extra}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # base64 embeddings, dumped as they came
@pytest.mark.parametrize("way", ["sync", "async", "raw", "async raw"])
def test_every_recording(way: str, replay: Replay, tmp_path: Path) -> None:
    exchanges = [exchange for file in FILES for exchange in load(file)]
    replay.due = list(exchanges)
    bare = run_all(replay.base_url, exchanges, way)

    store = tmp_path / "usage.duckdb"
    otel_llm.instrument(store=store)
    try:
        replay.due = list(exchanges)
        seen = run_all(replay.base_url, exchanges, way)
    finally:
        otel_llm.uninstrument()
    assert seen == bare

    with connect(store) as connection:
        rows = connection.execute(
            """select request_model, stream, input_tokens, output_tokens, cache_read_tokens, reasoning_tokens,
                      status, error_type, response_id
               from llm_usage order by started_at"""
        ).fetchall()
    expected = []
    for exchange in exchanges:
        usage = exchange.usage or {}
        inputs = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        outputs = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        expected.append(
            (
                exchange.request["model"],
                exchange.stream,
                usage.get("prompt_tokens", usage.get("input_tokens")),
                usage.get("completion_tokens", usage.get("output_tokens")),
                inputs.get("cached_tokens"),
                outputs.get("reasoning_tokens"),
                "ok" if exchange.status == 200 else "error",
                None if exchange.status == 200 else str(exchange.status),
            )
        )
    assert [row[:-1] for row in rows] == expected
    assert len(rows) == len(exchanges)
