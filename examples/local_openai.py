"""A local server that speaks the OpenAI API over real HTTP, for the demo, the tests and the benchmarks.

    python examples/local_openai.py --port 8080            # prints its base URL, serves until stopped
    python examples/local_openai.py --port 0 --port-file F # a free port; its number is in F once it accepts calls

    with LocalOpenAI() as server:                          # its own process, so it shares no GIL with the test
        client = openai.OpenAI(base_url=server.base_url, api_key="local")
        ...
        server.ledger                                      # what was billed: one `Call` each, oldest first

No model runs here: answers and token counts are made from the request's text alone, so the same request always gets
the same answer (in which the prompt is quoted, to make leaks visible) and the same usage. Only the ids differ.

Endpoints: `/v1/chat/completions`, `/v1/responses` (and `GET /v1/responses/{id}` for background ones),
`/v1/completions`, `/v1/embeddings`, `/v1/models`; and Azure's `/openai/deployments/{deployment}/...?api-version=...`
and `/openai/responses`. Streams end as OpenAI's do, `stream_options.include_usage` included. Tools are called when the
last message is the user's; once a tool result is there, the answer is text. A JSON schema gets JSON that fits it.

Behaviours: give one as the model's name, or in the header `x-local-behaviour` (several with commas) to keep the model:

    error-429, error-500, error-NNN   that status, with OpenAI's error body (`retry-after-ms: 1` where it is retried)
    error-400-echo, error-NNN-echo    the same, the error message quoting the prompt
    error-NNN-after-S                 the same, with `retry-after: S` (seconds)
    error-html                        502 with an HTML body, as a proxy sends it
    flaky-2, flaky-N                  N times 429 and 500 in turn for the same body, then the answer
    slow                              no answer before a release; ends by itself after the cap (`--cap`, 30 s)
    words-N                           an answer of N words (so N content chunks)
    stream-slow                       the first content at once, every further chunk only by a release (or the cap)
    stream-pause                      10 ms between chunks
    stream-broken                     connection dropped half-way, no terminator
    stream-error-event                an error event half-way, then the end
    stream-error-first                an error event before any token, as an overloaded provider sends it after its 200
    stream-failed                     Responses only: ends with `response.failed`, which carries no usage
    no-usage                          the answer carries no usage (it is billed all the same)
    no-stream-options                 400 where the request has `stream_options`, as some compatible servers do
    parallel-tools                    calls every tool given, not only the first

The header `x-local-usage: <JSON>` replaces the usage object on the wire (not in the ledger).

Control: `GET /_ledger` (billed calls; `?all=1` also what was refused; `?brief=1` without headers and bodies),
`DELETE /_ledger` (forget all, hang up on who waits), `GET /_release` (everyone who waits; `?n=1` for the oldest only;
`?open=1` nobody waits any more until the ledger is deleted), `GET /_waiting?n=1` (answers when so many wait).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import itertools
import json
import logging
import os
import random
import re
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

JSON = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

# ---------------------------------------------------------------------------------------------------------------------
# What was billed
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Call:
    """One request as the server saw it."""

    number: int
    endpoint: str
    """`chat.completions`, `responses`, `completions`, `embeddings`, or the path of what is none of these."""
    path: str
    model: str | None
    """As asked for; on Azure, the deployment."""
    response_model: str | None
    response_id: str | None
    stream: bool
    status: int
    """HTTP status."""
    outcome: str
    """`ok`, `error`, `broken` (dropped by a behaviour) or `disconnected` (the client left before the end)."""
    billed: bool
    usage: JSON | None
    """What was billed, in the shape of the endpoint; None where nothing was."""
    reported: bool
    """Whether the usage went over the wire."""
    headers: dict[str, str] = field(default_factory=dict)
    """Request headers, names in lower case."""
    body: Any = None
    """Request body: parsed JSON, or text where it is none."""
    at_once: int = 1
    """Requests for its model that were in progress when it came, itself included."""

    @property
    def input_tokens(self) -> int | None:
        """Input tokens billed, cached ones included."""
        return None if self.usage is None else self.usage.get("prompt_tokens", self.usage.get("input_tokens"))

    @property
    def output_tokens(self) -> int | None:
        """Output tokens billed, reasoning included; None for embeddings."""
        return None if self.usage is None else self.usage.get("completion_tokens", self.usage.get("output_tokens"))

    @property
    def cached_tokens(self) -> int | None:
        """The cached part of the input."""
        return self._detail(("prompt_tokens_details", "input_tokens_details", "input_token_details"), "cached_tokens")

    @property
    def reasoning_tokens(self) -> int | None:
        """The reasoning part of the output."""
        return self._detail(
            ("completion_tokens_details", "output_tokens_details", "output_token_details"), "reasoning_tokens"
        )

    def _detail(self, names: tuple[str, ...], key: str) -> int | None:
        for name in names:
            if self.usage and name in self.usage:
                value: int | None = self.usage[name].get(key)
                return value
        return None


# ---------------------------------------------------------------------------------------------------------------------
# In tests and in the demo: the server as a child process
# ---------------------------------------------------------------------------------------------------------------------


class LocalOpenAI:
    """The server in a process of its own; it ends with this one, even by `kill -9`.

    `keep="brief"` keeps no headers and bodies, for runs of very many calls. `cap` (seconds) bounds every wait for a
    release, so that a forgotten one costs a test its time, not the run.
    """

    _script = Path(__file__).resolve()
    """What runs in the process; a server with more endpoints is another file."""

    def __init__(self, *, port: int = 0, cap: float = 30.0, keep: str = "all") -> None:
        self._arguments = ["--port", str(port), "--cap", str(cap), "--keep", keep, "--child"]
        self._process: subprocess.Popen[str] | None = None
        self.port = port

    @property
    def origin(self) -> str:
        """`http://host:port`: `azure_endpoint` of an Azure client."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """`base_url` of an OpenAI client."""
        return f"{self.origin}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """What a client in another process reads to find this server."""
        here = "127.0.0.1"
        return {
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_KEY": "sk-local-not-a-real-key",
            "NO_PROXY": here,
            "no_proxy": here,
        }

    @property
    def ledger(self) -> list[Call]:
        """Billed calls, oldest first."""
        return self._calls("/_ledger")

    @property
    def brief_ledger(self) -> list[Call]:
        """The same without headers and bodies."""
        return self._calls("/_ledger?brief=1")

    @property
    def requests(self) -> list[Call]:
        """Every request to the API, refused ones too."""
        return self._calls("/_ledger?all=1")

    def reset(self) -> None:
        """Empties the ledger, forgets flaky counts, hangs up on whoever still waits."""
        self._control("DELETE", "/_ledger")

    def release(self, n: int | None = None) -> None:
        """Lets `n` waiting calls or chunks go on, the oldest first; all that wait now where `n` is not given."""
        self._control("GET", "/_release" if n is None else f"/_release?n={n}")

    def open(self) -> None:
        """Nobody waits any more until `reset()`."""
        self._control("GET", "/_release?open=1")

    def wait_for(self, n: int = 1) -> None:
        """Returns when at least `n` calls or chunks wait for a release. Raises TimeoutError after the cap."""
        if not self._control("GET", f"/_waiting?n={n}")["ok"]:
            raise TimeoutError(f"fewer than {n} calls came to wait")

    def start(self) -> Self:
        """Starts the process and returns when it accepts connections."""
        # -E: under `opentelemetry-instrument` PYTHONPATH would have the server instrument itself.
        self._process = subprocess.Popen(
            [sys.executable, "-E", str(self._script), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the local OpenAI server did not start (exit code {self._process.wait()})")
        self.port = int(line.rsplit(":", 1)[1].split("/")[0])
        return self

    def stop(self) -> None:
        """Ends the process; whoever still waits for an answer loses the connection."""
        if self._process is None:
            return
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _calls(self, path: str) -> list[Call]:
        return [Call(**item) for item in self._control("GET", path)]

    def _control(self, method: str, path: str) -> Any:
        # A connection per request, of the standard library: no HTTP client that a test may have instrumented.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


# ---------------------------------------------------------------------------------------------------------------------
# What is answered: text, tokens, tool calls
# ---------------------------------------------------------------------------------------------------------------------

_SENTENCES = (
    "The short answer is yes, with one condition – measure before you change anything.",
    "Three things matter here: what was asked, who asked, and what it cost.",
    "Start with the smallest case that still fails, then work outwards.",
    "It depends on the load; below a thousand calls a day either way is fine.",
    "Most people choose the simpler of the two and never look back.",
)

_DATED = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "o3": "o3-2025-04-16",
    "o4-mini": "o4-mini-2025-04-16",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "gpt-5-nano": "gpt-5-nano-2025-08-07",
}
_MODELS = (*_DATED, "gpt-3.5-turbo-instruct", "text-embedding-3-small", "text-embedding-3-large")
_BEHAVIOUR = re.compile(
    r"error-\d{3}(-echo|-after-\d+)?|error-html|flaky-\d+|words-\d+|slow|no-usage|no-stream-options|parallel-tools"
    r"|stream-(slow|pause|broken|error-event|error-first|failed)"
)
_REASONING = re.compile(r"o\d|gpt-5")
_WORDS = re.compile(r"\w+|[^\w\s]")
_PIECES = re.compile(r"\s*\S+")
_ID = f"\N{LATIN SMALL LETTER O WITH STROKE}{secrets.token_hex(8)}"
"""Stands for the call's id in a prepared answer; no request contains it."""


def _count(text: str) -> int:
    """Tokens of a text: words and punctuation marks."""
    return len(_WORDS.findall(text))


def _text(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def _conversation(asked: Any) -> JSON | None:
    """As the answer tells of it: an object, however the request said it."""
    return {"id": asked} if isinstance(asked, str) else asked


def _answer(prompt: str, number: int = 0) -> str:
    sentence = _SENTENCES[(zlib.crc32(prompt.encode()) + number) % len(_SENTENCES)]
    return f"You asked: {prompt[:200]} {sentence}" if prompt else sentence


def _cut(text: str, limit: Any) -> tuple[str, bool]:
    """The text within a token limit, and whether something was cut off."""
    if not isinstance(limit, int) or _count(text) <= limit:
        return text, False
    kept = ""
    for piece in _PIECES.findall(text):
        if _count(kept + piece) > limit:
            break
        kept += piece
    return kept, True


def _fit(schema: JSON, prompt: str) -> Any:
    """A value that fits a JSON schema; numbers and names are taken from the prompt as far as they go."""
    numbers = iter(re.findall(r"\d+", prompt))
    names = re.findall(r"(?<=\s)[A-ZÄÖÜ]\w+", prompt)
    name = names[-1] if names else prompt[:40] or "something"

    def fit(node: JSON, depth: int) -> Any:
        if "$ref" in node:
            target: Any = schema
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            return fit(target, depth + 1)
        for key in ("const", "default"):
            if key in node:
                return node[key]
        if node.get("enum"):
            return node["enum"][0]
        for key in ("anyOf", "oneOf", "allOf"):
            if node.get(key):
                choices = [choice for choice in node[key] if choice.get("type") != "null"]
                # Recursive schemas end somewhere: below a few levels, null where it is allowed.
                return None if depth > 6 and len(choices) < len(node[key]) else fit(choices[0], depth + 1)
        kind = node.get("type", "object" if "properties" in node else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "object":
                return {key: fit(value, depth + 1) for key, value in node.get("properties", {}).items()}
            case "array":
                least = max(node.get("minItems", 0), 0 if depth > 6 else 1)
                return [fit(node.get("items", {}), depth + 1) for _ in range(least)]
            case "integer" | "number":
                return int(next(numbers, node.get("minimum", 1)))
            case "boolean":
                return True
            case "null":
                return None
        return {"date": "2026-11-21", "date-time": "2026-11-21T12:00:00Z"}.get(node.get("format", ""), name)

    return fit(schema, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Plans: everything about an answer except its id, prepared once for each different request
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Plan:
    endpoint: str
    model: str | None = None
    response_model: str | None = None
    stream: bool = False
    status: int = 200
    id_prefix: str = ""
    content_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    usage: JSON | None = None
    body: list[bytes] = field(default_factory=list)
    """The answer, cut at each place of the id."""
    frames: list[list[bytes]] = field(default_factory=list)
    """The same for each event of a stream."""
    usage_frame: int | None = None
    """The event that reports the usage; None where none does."""
    reported: bool = False
    behaviours: frozenset[str] = frozenset()
    later: list[bytes] = field(default_factory=list)
    """What `GET /v1/responses/{id}` will give for a background response."""
    reported_later: bool = False
    """Whether there is usage in that."""


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _cut_at_id(data: bytes) -> list[bytes]:
    return data.split(_ID.encode())


def _sse(data: Any, event: str | None = None) -> list[bytes]:
    head = f"event: {event}\n".encode() if event else b""
    return _cut_at_id(head + b"data: " + (data if isinstance(data, bytes) else _dump(data)) + b"\n\n")


def _error(plan: _Plan, status: int, message: str, kind: str, code: str | None) -> _Plan:
    plan.status = status
    plan.body = [_dump({"error": {"message": message, "type": kind, "param": None, "code": code}})]
    if status in (408, 409, 429) or status >= 500:
        # In milliseconds: the client waits half a second or more where it is told `retry-after: 0`.
        plan.headers = [(b"retry-after-ms", b"1"), (b"retry-after", b"0")]
    return plan


_ERRORS = {
    400: ("Invalid request.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("You are not allowed to use this model.", "invalid_request_error", None),
    404: ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    429: ("Rate limit reached.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request.", "server_error", None),
}


class _Request:
    """A request to one of the endpoints, taken apart."""

    def __init__(self, endpoint: str, body: JSON, deployment: str | None, azure: bool, behaviours: str) -> None:
        model = body.get("model")
        self.azure = azure
        self.body = body
        self.model = deployment or (model if isinstance(model, str) else None)
        names = [name.strip() for name in behaviours.split(",") if name.strip()]
        if self.model and _BEHAVIOUR.fullmatch(self.model):
            names.append(self.model)
        self.behaviours = frozenset(names)
        known = _DATED.get(self.model or "", self.model)
        # Azure names the model behind the deployment, not the deployment.
        self.response_model = _DATED["gpt-4o-mini"] if azure and known == self.model else known
        self.stream = body.get("stream") is True
        self.plan = _Plan(endpoint, self.model, self.response_model, self.stream, behaviours=self.behaviours)

    def has(self, name: str) -> bool:
        return name in self.behaviours

    def number(self, name: str) -> int | None:
        """N of a behaviour `name-N`."""
        found = [one for one in self.behaviours if re.fullmatch(rf"{name}-\d+", one)]
        return int(found[0].rsplit("-", 1)[1]) if found else None

    def answer(self, prompt: str, number: int = 0) -> str:
        words = self.number("words")
        return _answer(prompt, number) if words is None else " ".join(f"word{n}" for n in range(words))

    def reasoning(self) -> int:
        """Reasoning tokens: for reasoning models, and where the request asks for some."""
        asked = self.body.get("reasoning_effort") or (self.body.get("reasoning") or {}).get("effort")
        return 64 if asked not in (None, "none", "minimal") or _REASONING.match(self.model or "") else 0

    def refusal(self, prompt: str) -> _Plan | None:
        """The plan of a behaviour that refuses the call."""
        for name in self.behaviours:
            if found := re.fullmatch(r"error-(\d{3})(-echo)?(?:-after-(\d+))?", name):
                status = int(found[1])
                message, kind, code = _ERRORS.get(status, _ERRORS[500 if status >= 500 else 400])
                _error(self.plan, status, f"{message} Request: {prompt}" if found[2] else message, kind, code)
                if found[3]:
                    self.plan.headers = [(b"retry-after", found[3].encode())]
                return self.plan
        if self.has("error-html"):
            self.plan.status, self.plan.content_type = 502, b"text/html"
            self.plan.headers = [(b"retry-after-ms", b"1")]
            self.plan.body = [b"<html><body><h1>502 Bad Gateway</h1></body></html>"]
            return self.plan
        if self.has("no-stream-options") and self.body.get("stream_options"):
            return _error(
                self.plan, 400, "Unrecognized request argument: stream_options", "invalid_request_error", None
            )
        return None


def _tool_calls(request: _Request, tools: list[tuple[str, JSON]], prompt: str) -> list[tuple[str, str]]:
    """(name, arguments as JSON) of the tools to call: the one that `tool_choice` names, the first, or all."""
    choice = request.body.get("tool_choice")
    if choice == "none":
        return []
    if isinstance(choice, dict):
        wanted = (choice.get("function") or choice).get("name")
        tools = [tool for tool in tools if tool[0] == wanted] or tools
    chosen = tools if request.has("parallel-tools") else tools[:1]
    return [(name, json.dumps(_fit(schema, prompt), ensure_ascii=False)) for name, schema in chosen]


def _plan_chat(request: _Request, wire_usage: Any) -> _Plan:
    body, plan = request.body, request.plan
    messages = [message for message in body.get("messages") or [] if isinstance(message, dict)]
    if not messages or not request.model:
        return _error(plan, 400, "Missing required parameter.", "invalid_request_error", "missing_required_parameter")
    prompt = _text(next((m.get("content") for m in reversed(messages) if m.get("role") == "user"), ""))
    if refused := request.refusal(prompt):
        return refused
    last = messages[-1]
    tools = [
        (tool["function"]["name"], tool["function"].get("parameters") or {})
        for tool in body.get("tools") or []
        if tool.get("type") == "function"
    ]
    calls = _tool_calls(request, tools, prompt) if last.get("role") == "user" else []
    results = [_text(message.get("content")) for message in messages if message.get("role") == "tool"]
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")

    # [text, finish_reason] of each choice
    choices: list[tuple[str | None, str]] = []
    for number in range(body.get("n") or 1):
        if calls:
            choices.append((None, "tool_calls"))
        elif schema is not None:
            choices.append((json.dumps(_fit(schema, prompt), ensure_ascii=False), "stop"))
        else:
            text = f"The tool says: {results[-1]}" if results else request.answer(prompt, number)
            text, cut = _cut(text, limit)
            choices.append((text, "length" if cut else "stop"))

    prompt_tokens = 3 + sum(3 + _count(_text(m.get("content"))) for m in messages)
    prompt_tokens += _count(json.dumps(body["tools"])) if body.get("tools") else 0
    reasoning = request.reasoning()
    output = sum(_count(said or "") for said, _ in choices)
    output += len(choices) * sum(4 + _count(name) + _count(arguments) for name, arguments in calls)
    usage = plan.usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output + reasoning,
        "total_tokens": prompt_tokens + output + reasoning,
        "prompt_tokens_details": {"cached_tokens": prompt_tokens // 4, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    plan.id_prefix = "chatcmpl-"
    head: JSON = {"id": f"chatcmpl-{_ID}", "object": "chat.completion", "created": int(time.time())}
    head |= {"model": plan.response_model, "service_tier": "default", "system_fingerprint": "fp_local"}
    made = [
        {"id": f"call_{_ID}_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    filters = {"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
    on_wire = usage if wire_usage is None else wire_usage

    if not request.stream:
        answer = head | {"choices": []}
        for number, (said, finish) in enumerate(choices):
            message: JSON = {"role": "assistant", "content": said, "refusal": None, "annotations": []}
            if made:
                message["tool_calls"] = made
            answer["choices"].append({"index": number, "message": message, "logprobs": None, "finish_reason": finish})
        if not request.has("no-usage"):
            answer["usage"] = on_wire
            plan.reported = True
        if request.azure:
            answer["prompt_filter_results"] = [filters]
        plan.body = _cut_at_id(_dump(answer))
        return plan

    # OpenAI's way: with include_usage every chunk has `usage: null`, and one more chunk without choices carries it.
    include_usage = (body.get("stream_options") or {}).get("include_usage") is True
    chunk_head = head | {"object": "chat.completion.chunk"} | ({"usage": None} if include_usage else {})

    def chunk(number: int, delta: JSON, finish: str | None = None) -> list[bytes]:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _sse(chunk_head | {"choices": [choice]})

    if request.azure:
        plan.frames.append(_sse(chunk_head | {"id": "", "choices": [], "prompt_filter_results": [filters]}))
    for number, (said, _) in enumerate(choices):
        plan.frames.append(
            chunk(number, {"role": "assistant", "content": None if said is None else "", "refusal": None})
        )
    pieces = [_PIECES.findall(said or "") for said, _ in choices]
    for row in itertools.zip_longest(*pieces):
        plan.frames += [chunk(number, {"content": piece}) for number, piece in enumerate(row) if piece is not None]
    for number in range(len(choices)):
        for index, call in enumerate(made):
            function: Any = call["function"]
            opening = call | {"index": index, "function": {"name": function["name"], "arguments": ""}}
            plan.frames.append(chunk(number, {"tool_calls": [opening]}))
            for at in range(0, len(function["arguments"]), 8):
                part = {"index": index, "function": {"arguments": function["arguments"][at : at + 8]}}
                plan.frames.append(chunk(number, {"tool_calls": [part]}))
    plan.frames += [chunk(number, {}, finish) for number, (_, finish) in enumerate(choices)]
    if include_usage and not request.has("no-usage"):
        plan.usage_frame = len(plan.frames)
        plan.frames.append(_sse(chunk_head | {"choices": [], "usage": on_wire}))
    plan.frames.append(_sse(b"[DONE]"))
    error = {"error": {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}}
    return _misbehave(request, plan, _sse(error))


def _plan_responses(request: _Request, wire_usage: Any) -> _Plan:
    body, plan = request.body, request.plan
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
    items = [item for item in items if isinstance(item, dict)]
    if not items or not request.model:
        return _error(plan, 400, "Missing required parameter.", "invalid_request_error", "missing_required_parameter")
    prompt = _text(next((item.get("content") for item in reversed(items) if item.get("role") == "user"), ""))
    if refused := request.refusal(prompt):
        return refused
    tools = [
        (tool["name"], tool.get("parameters") or {})
        for tool in body.get("tools") or []
        if tool.get("type") == "function"
    ]
    calls = _tool_calls(request, tools, prompt) if items[-1].get("role") == "user" else []
    results = [_text(item.get("output")) for item in items if item.get("type") == "function_call_output"]
    text_format = (body.get("text") or {}).get("format") or {"type": "text"}
    cut = False
    text: str | None = None
    if not calls:
        if text_format.get("type") == "json_schema":
            text = json.dumps(_fit(text_format["schema"], prompt), ensure_ascii=False)
        else:
            text = f"The tool says: {results[-1]}" if results else request.answer(prompt)
            text, cut = _cut(text, body.get("max_output_tokens"))

    input_tokens = 3 + _count(body.get("instructions") or "")
    input_tokens += sum(3 + _count(_text(item.get("content")) + _text(item.get("output"))) for item in items)
    input_tokens += _count(json.dumps(body["tools"])) if body.get("tools") else 0
    reasoning = request.reasoning()
    output_tokens = _count(text or "") + sum(4 + _count(name) + _count(arguments) for name, arguments in calls)
    output_tokens += reasoning
    usage = plan.usage = {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": input_tokens // 4, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }
    on_wire: Any = None if request.has("no-usage") else usage if wire_usage is None else wire_usage

    output: list[JSON] = []
    if reasoning:
        output.append({"id": f"rs_{_ID}", "type": "reasoning", "summary": []})
    for number, (name, arguments) in enumerate(calls):
        call = {"id": f"fc_{_ID}_{number}", "type": "function_call", "status": "completed", "name": name}
        output.append(call | {"call_id": f"call_{_ID}_{number}", "arguments": arguments})
    status = "incomplete" if cut else "completed"
    if text is not None:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
        output.append({"id": f"msg_{_ID}", "type": "message", "status": status, "content": [part], "role": "assistant"})

    plan.id_prefix = "resp_"
    now = int(time.time())
    blank: JSON = {
        "id": f"resp_{_ID}",
        "object": "response",
        "created_at": now,
        "status": "in_progress",
        "background": body.get("background") is True,
        "conversation": _conversation(body.get("conversation")),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": plan.response_model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": text_format, "verbosity": "medium"},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": body.get("metadata") or {},
    }
    done = blank | {"status": status, "completed_at": now, "output": output, "usage": on_wire}
    if cut:
        done |= {"completed_at": None, "incomplete_details": {"reason": "max_output_tokens"}}

    if not request.stream:
        if blank["background"]:
            plan.later, plan.reported_later = _cut_at_id(_dump(done)), on_wire is not None
            plan.body = _cut_at_id(_dump(blank | {"status": "queued"}))
        else:
            plan.reported = on_wire is not None
            plan.body = _cut_at_id(_dump(done))
        return plan

    sequence = itertools.count()

    def event(kind: str, **values: Any) -> None:
        plan.frames.append(_sse({"type": kind, **values, "sequence_number": next(sequence)}, kind))

    event("response.created", response=blank)
    event("response.in_progress", response=blank)
    for index, item in enumerate(output):
        where: JSON = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            event(
                "response.output_item.added", item=item | {"status": "in_progress", "content": []}, output_index=index
            )
            where["content_index"] = 0
            part = item["content"][0]
            event("response.content_part.added", **where, part=part | {"text": ""})
            for piece in _PIECES.findall(part["text"]):
                event("response.output_text.delta", **where, delta=piece, logprobs=[])
            event("response.output_text.done", **where, text=part["text"], logprobs=[])
            event("response.content_part.done", **where, part=part)
        elif item["type"] == "function_call":
            event(
                "response.output_item.added", item=item | {"status": "in_progress", "arguments": ""}, output_index=index
            )
            for at in range(0, len(item["arguments"]), 8):
                event("response.function_call_arguments.delta", **where, delta=item["arguments"][at : at + 8])
            event("response.function_call_arguments.done", **where, name=item["name"], arguments=item["arguments"])
        else:
            event("response.output_item.added", item=item, output_index=index)
        event("response.output_item.done", item=item, output_index=index)
    if request.has("stream-failed"):
        failure = {"code": "server_error", "message": "The model failed."}
        event("response.failed", response=blank | {"status": "failed", "error": failure})
        return _misbehave(request, plan, [])
    if on_wire is not None:
        plan.usage_frame = len(plan.frames)
    event(f"response.{status}", response=done)
    error = {"type": "error", "code": "server_error", "message": "The server had an error.", "param": None}
    return _misbehave(request, plan, _sse(error | {"sequence_number": len(plan.frames) // 2}, "error"))


def _plan_completions(request: _Request, wire_usage: Any) -> _Plan:
    body, plan = request.body, request.plan
    prompts = body.get("prompt")
    prompts = [prompts] if isinstance(prompts, str) else [p for p in prompts or [] if isinstance(p, str)]
    if refused := request.refusal(" ".join(prompts)):
        return refused
    texts = []
    for prompt in prompts or [""]:
        texts += [_cut(request.answer(prompt, n), body.get("max_tokens", 64)) for n in range(body.get("n") or 1)]
    prompt_tokens = sum(map(_count, prompts))
    output = sum(_count(text) for text, _ in texts)
    usage = plan.usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output,
        "total_tokens": prompt_tokens + output,
    }
    plan.id_prefix = "cmpl-"
    head: JSON = {"id": f"cmpl-{_ID}", "object": "text_completion", "created": int(time.time())}
    head |= {"model": plan.response_model, "system_fingerprint": "fp_local"}
    on_wire = usage if wire_usage is None else wire_usage

    def choice(number: int, text: str, finish: str | None) -> JSON:
        return {"index": number, "text": text, "logprobs": None, "finish_reason": finish}

    finishes = ["length" if cut else "stop" for _, cut in texts]
    if not request.stream:
        answer = head | {"choices": [choice(n, text, finishes[n]) for n, (text, _) in enumerate(texts)]}
        if not request.has("no-usage"):
            answer["usage"] = on_wire
            plan.reported = True
        plan.body = _cut_at_id(_dump(answer))
        return plan
    include_usage = (body.get("stream_options") or {}).get("include_usage") is True
    head |= {"usage": None} if include_usage else {}
    for row in itertools.zip_longest(*(_PIECES.findall(text) for text, _ in texts)):
        plan.frames += [_sse(head | {"choices": [choice(n, p, None)]}) for n, p in enumerate(row) if p is not None]
    plan.frames += [_sse(head | {"choices": [choice(n, "", finish)]}) for n, finish in enumerate(finishes)]
    if include_usage and not request.has("no-usage"):
        plan.usage_frame = len(plan.frames)
        plan.frames.append(_sse(head | {"choices": [], "usage": on_wire}))
    plan.frames.append(_sse(b"[DONE]"))
    error = {"error": {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}}
    return _misbehave(request, plan, _sse(error))


def _plan_embeddings(request: _Request, wire_usage: Any) -> _Plan:
    body, plan = request.body, request.plan
    given = body.get("input")
    # A string, a list of tokens, or a list of either.
    inputs: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given or []
    if refused := request.refusal(" ".join(one for one in inputs if isinstance(one, str))):
        return refused
    size = body.get("dimensions") or (3072 if request.model == "text-embedding-3-large" else 1536)
    data = []
    for index, one in enumerate(inputs):
        source = random.Random(zlib.crc32(one.encode() if isinstance(one, str) else repr(one).encode()))
        vector: Any = [round(source.uniform(-0.05, 0.05), 8) for _ in range(size)]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(_count(one) if isinstance(one, str) else len(one) for one in inputs)
    usage = plan.usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer: JSON = {"object": "list", "data": data, "model": plan.response_model}
    if not request.has("no-usage"):
        answer["usage"] = usage if wire_usage is None else wire_usage
        plan.reported = True
    plan.body = [_dump(answer)]
    return plan


def _misbehave(request: _Request, plan: _Plan, error: list[bytes]) -> _Plan:
    """Cuts a prepared stream short where a behaviour asks for it."""
    plan.content_type = b"text/event-stream; charset=utf-8"
    if any(map(request.has, ("stream-broken", "stream-error-event", "stream-error-first"))):
        del plan.frames[0 if request.has("stream-error-first") else max(len(plan.frames) // 2, 1) :]
        plan.usage_frame = None
        if not request.has("stream-broken"):
            plan.frames.append(error)
    return plan


_ENDPOINTS: dict[str, tuple[str, Callable[[_Request, Any], _Plan]]] = {
    "/chat/completions": ("chat.completions", _plan_chat),
    "/responses": ("responses", _plan_responses),
    "/completions": ("completions", _plan_completions),
    "/embeddings": ("embeddings", _plan_embeddings),
}


def _plan(path: str, body: bytes, behaviours: str, wire_usage: str) -> _Plan:
    """The plan of a request. `path` may be OpenAI's or Azure's."""
    found = re.fullmatch(r"(/openai)?(?:/deployments/([^/]+))?(?:/v1)?(/.*)", path)
    assert found is not None
    azure, deployment, rest = found[1] is not None, found[2], found[3]
    if rest not in _ENDPOINTS:
        return _error(_Plan(rest), 404, f"Unknown request URL: {path}", "invalid_request_error", "unknown_url")
    endpoint, make = _ENDPOINTS[rest]
    try:
        parsed = json.loads(body)
        assert isinstance(parsed, dict)
    except (ValueError, AssertionError):
        return _error(_Plan(endpoint), 400, "We could not parse the JSON body.", "invalid_request_error", None)
    request = _Request(endpoint, parsed, deployment, azure, behaviours)
    try:
        return make(request, json.loads(wire_usage) if wire_usage else None)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return _error(request.plan, 400, f"Invalid request: {error!r}", "invalid_request_error", None)


# ---------------------------------------------------------------------------------------------------------------------
# The ASGI application
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Entry:
    """A ledger entry as it is kept; headers and body are taken apart only when somebody reads them."""

    plan: _Plan
    path: str
    response_id: str | None
    status: int
    outcome: str
    reported: bool
    headers: list[tuple[bytes, bytes]]
    body: bytes
    is_forgotten: bool = False
    """Deleted from the ledger: who still waits for its answer is hung up on, and never counts among those who wait."""
    at_once: int = 1

    def to_json(self, number: int, brief: bool) -> JSON:
        plan = self.plan
        billed = self.status == 200 and plan.usage is not None
        text = "" if brief else self.body.decode(errors="replace")
        try:
            body = json.loads(text) if text else None
        except ValueError:
            body = text
        values = {
            "number": number,
            "endpoint": plan.endpoint,
            "path": self.path,
            "model": plan.model,
            "response_model": plan.response_model if billed else None,
            "response_id": self.response_id,
            "stream": plan.stream,
            "status": self.status,
            "outcome": self.outcome,
            "billed": billed,
            "usage": plan.usage if billed else None,
            "reported": self.reported,
            "headers": {} if brief else {k.decode("latin-1"): v.decode("latin-1") for k, v in self.headers},
            "body": body,
            "at_once": self.at_once,
        }
        assert values.keys() == {one.name for one in fields(Call)}
        return values


class App:
    """The server as an ASGI application. State: the ledger, who waits, how often a flaky call has failed."""

    def __init__(self, *, cap: float = 30.0, keep: str = "all") -> None:
        self._cap = cap
        self._keep_all = keep == "all"
        self._entries: list[_Entry] = []
        self._plans: dict[tuple[str, bytes, str, str], _Plan] = {}
        self._failed: dict[bytes, int] = {}
        self._running: Counter[str | None] = Counter()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._arrived = asyncio.Condition()
        self._is_open = False
        self._later: dict[str, tuple[bytes, _Entry]] = {}
        self._run = secrets.token_hex(6)
        self._ids = itertools.count(1)

    async def __call__(self, scope: JSON, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path.startswith("/_"):
            await self._control(scope["method"], path, scope["query_string"].decode(), send)
            return
        message = await receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        if scope["method"] == "GET":
            await self._get(path, scope["headers"], send)
            return
        behaviours = wire_usage = ""
        for name, value in scope["headers"]:
            if name == b"x-local-behaviour":
                behaviours = value.decode()
            elif name == b"x-local-usage":
                wire_usage = value.decode()
        key = (path, body, behaviours, wire_usage)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= 512:
                self._plans.clear()
            plan = self._plans[key] = self._plan(*key)
        self._running[plan.model] += 1
        try:
            await self._answer(plan, path, scope["headers"], body, receive, send)
        finally:
            self._running[plan.model] -= 1

    def _plan(self, path: str, body: bytes, behaviours: str, wire_usage: str) -> _Plan:
        return _plan(path, body, behaviours, wire_usage)

    async def _answer(
        self, plan: _Plan, path: str, headers: list[tuple[bytes, bytes]], body: bytes, receive: Receive, send: Send
    ) -> None:
        entry = _Entry(plan, path, None, plan.status, "error", False, [], b"")
        if self._keep_all:
            entry.headers, entry.body = headers, body
        entry.at_once = self._running[plan.model]
        self._entries.append(entry)
        number = f"{self._run}{next(self._ids):08x}"
        if plan.behaviours and (flaky := self._flaky(plan, body)) is not None:
            entry.status = flaky.status
            await self._send_body(flaky, b"".join(flaky.body), number, send)
            return
        if plan.status != 200:
            await self._send_body(plan, b"".join(plan.body), number, send)
            return
        if plan.id_prefix:
            entry.response_id = plan.id_prefix + number
        entry.outcome = "disconnected"
        if "slow" in plan.behaviours and not await self._gate(entry, receive):
            return
        ident = number.encode()
        if not plan.frames:
            if plan.later:
                self._later[plan.id_prefix + number] = ident.join(plan.later), entry
            entry.outcome, entry.reported = "ok", plan.reported
            await self._send_body(plan, ident.join(plan.body), number, send)
            return
        await self._stream(plan, entry, ident, receive, send)

    async def _stream(self, plan: _Plan, entry: _Entry, ident: bytes, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _headers(plan, ident.decode())})
        last = len(plan.frames) - 1
        broken = "stream-broken" in plan.behaviours
        failed = not plan.behaviours.isdisjoint({"stream-error-event", "stream-failed"})
        slow = "stream-slow" in plan.behaviours
        pause = "stream-pause" in plan.behaviours
        for index, frame in enumerate(plan.frames):
            # The first two events (of Responses, four) come before any content, the next is the first content.
            if slow and index > (4 if plan.endpoint == "responses" else 1) and not await self._gate(entry, receive):
                return
            if pause:
                await asyncio.sleep(0.01)
            if index == plan.usage_frame:
                entry.reported = True
            if index == last:
                # Before the last byte: who has read it may ask for the ledger at once.
                entry.outcome = "broken" if broken else "error" if failed else "ok"
            await send({"type": "http.response.body", "body": ident.join(frame), "more_body": broken or index != last})
        # Where the stream is to break, the application ends here without an end of the body, and uvicorn hangs up.

    def _flaky(self, plan: _Plan, body: bytes) -> _Plan | None:
        """The refusal of a flaky call that has not failed often enough yet."""
        limit = next((int(name[6:]) for name in plan.behaviours if name.startswith("flaky-")), 0)
        failed = self._failed.get(body, 0)
        if failed >= limit:
            self._failed.pop(body, None)
            return None
        self._failed[body] = failed + 1
        status = 500 if failed % 2 else 429
        return _error(_Plan(plan.endpoint, plan.model), status, *_ERRORS[status])

    async def _gate(self, entry: _Entry, receive: Receive) -> bool:
        """Waits for a release; False where the client has left instead, or the ledger was deleted."""
        if entry.is_forgotten:
            return False
        if self._is_open:
            return True
        released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(released)
        async with self._arrived:
            self._arrived.notify_all()
        left = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({released, left}, timeout=self._cap, return_when=asyncio.FIRST_COMPLETED)
            return not entry.is_forgotten and (not left.done() or left.result()["type"] != "http.disconnect")
        finally:
            if released in self._waiting:
                self._waiting.remove(released)
            left.cancel()

    def _release(self, n: int) -> int:
        n = min(n, len(self._waiting))
        for _ in range(n):
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
        return n

    async def _control(self, method: str, path: str, query: str, send: Send) -> None:
        arguments = {name: values[0] for name, values in parse_qs(query).items()}
        answer: Any
        match method, path:
            case "GET", "/_ledger":
                # Numbers are places in the whole list, so that they are the same in both.
                rows: Iterator[JSON] = (
                    entry.to_json(number, "brief" in arguments) for number, entry in enumerate(self._entries)
                )
                answer = [row for row in rows if row["billed"] or "all" in arguments]
            case "DELETE", "/_ledger":
                for entry in self._entries:
                    entry.is_forgotten = True
                answer = {"deleted": len(self._entries), "released": self._release(len(self._waiting))}
                self._entries.clear()
                self._failed.clear()
                self._later.clear()
                self._is_open = False
            case "GET", "/_release":
                self._is_open = self._is_open or "open" in arguments
                answer = {"released": self._release(int(arguments.get("n", len(self._waiting))))}
            case "GET", "/_waiting":
                wanted = int(arguments.get("n", 1))
                async with self._arrived:
                    try:
                        async with asyncio.timeout(self._cap):
                            await self._arrived.wait_for(lambda: len(self._waiting) >= wanted)
                    except TimeoutError:
                        pass
                answer = {"ok": len(self._waiting) >= wanted, "waiting": len(self._waiting)}
            case _:
                answer = {"error": f"unknown control {method} {path}"}
        await self._send_body(_Plan("control"), _dump(answer), "control", send)

    async def _get(self, path: str, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        plan = _Plan(path.removeprefix("/v1"))
        rest = plan.endpoint.removeprefix("/openai")
        if rest == "/models":
            data = [_model(name) for name in _MODELS]
            plan.body = [_dump({"object": "list", "data": data})]
        elif rest.startswith("/models/") and rest[8:] in _MODELS:
            plan.body = [_dump(_model(rest[8:]))]
        elif rest.rpartition("/")[2] in self._later:
            body, entry = self._later[rest.rpartition("/")[2]]
            plan.body, entry.reported = [body], entry.plan.reported_later
        else:
            _error(plan, 404, f"Not found: {path}", "invalid_request_error", None)
        outcome = "ok" if plan.status == 200 else "error"
        self._entries.append(_Entry(plan, path, None, plan.status, outcome, False, headers, b""))
        await self._send_body(plan, b"".join(plan.body), "get", send)

    async def _send_body(self, plan: _Plan, body: bytes, number: str, send: Send) -> None:
        headers = [*_headers(plan, number), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": plan.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(plan: _Plan, number: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", plan.content_type),
        (b"x-request-id", f"req_{number}".encode()),
        (b"openai-processing-ms", b"1"),
        (b"openai-version", b"2020-10-01"),
        *plan.headers,
    ]


def _model(name: str) -> JSON:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "local"}


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def main(make: Callable[..., App] = App) -> None:
    """Serves until stopped. `make` builds the application."""
    import uvicorn

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="gets the port's number once calls are accepted")
    parser.add_argument("--cap", type=float, default=30.0, help="longest wait for a release, in seconds")
    parser.add_argument("--keep", choices=("all", "brief"), default="all", help="what the ledger keeps of a request")
    parser.add_argument("--child", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()

    listening = socket.create_server(("127.0.0.1", arguments.port), backlog=1024)
    # asyncio does this only for sockets made with IPPROTO_TCP, which this one is not. An answer took 40 ms without it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    port = listening.getsockname()[1]
    app = make(cap=arguments.cap, keep=arguments.keep)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="critical",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=3600,
            timeout_graceful_shutdown=1,
        )
    )
    if arguments.child:
        # The pipe ends with the parent, however that ends. Nothing here is worth an orderly farewell.
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    # It listens already: a call that comes before uvicorn runs waits in the backlog.
    if arguments.port_file is not None:
        partial = arguments.port_file.with_name(arguments.port_file.name + ".part")
        partial.write_text(f"{port}\n")
        partial.replace(arguments.port_file)
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    # It warns of writing to clients that have left, as clients of this server do all the time.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(server.serve(sockets=[listening]))


if __name__ == "__main__":
    main()
