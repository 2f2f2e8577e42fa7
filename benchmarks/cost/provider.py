"""The provider of the benchmarks: what it answers, as a transport inside the process, and as a server for whole processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "gpt-4o-mini"
MESSAGES = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "Why is the sky blue?"},
]
LONG_PROMPT = "Why is the sky blue? Take your time, and say what you are not sure of. " * 200
"""14 kB."""
ANSWER = "Because air scatters short waves of light more than long ones."
LONG, SHORT = "long", "short"
"""Sent as `user`: which of its two streams the provider is to answer with."""

_CHAT_USAGE = {
    "prompt_tokens": 24,
    "completion_tokens": 13,
    "total_tokens": 37,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def _chat(message: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "finish_reason": finish_reason, "logprobs": None, "message": message}],
        "usage": _CHAT_USAGE,
    }


_SAID: dict[str, Any] = {"role": "assistant", "content": ANSWER, "refusal": None, "annotations": []}
_TOOL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1_760_000_000,
    "status": "completed",
    "model": "gpt-4o-mini-2024-07-18",
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 24,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 13,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 37,
    },
}
_EMBEDDING = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0123] * 64}],
    "usage": {"prompt_tokens": 6, "total_tokens": 6},
}


def _stream(chunks: int) -> bytes:
    """A chat stream of `chunks` chunks with content, and those that OpenAI sends round them."""
    common = {**_chat(_SAID), "object": "chat.completion.chunk"}
    del common["choices"], common["usage"]

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**common, "choices": [choice], "usage": None}

    events = [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": " word"}) for _ in range(chunks)),
        chunk({}, "stop"),
        {**common, "choices": [], "usage": _CHAT_USAGE},
    ]
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


class Answers:
    """What is sent back for a request: the content type, and the body."""

    def __init__(self, chunks: int = 50) -> None:
        bodies = {"/v1/chat/completions": _chat(_SAID), "/v1/responses": _RESPONSE, "/v1/embeddings": _EMBEDDING}
        self._answers = {path: json.dumps(body).encode() for path, body in bodies.items()}
        self._asks_for_tool = json.dumps(
            _chat({**_SAID, "content": None, "tool_calls": [_TOOL]}, "tool_calls")
        ).encode()
        self._streams = {f'"user":"{kind}"'.encode(): _stream(length) for kind, length in ((LONG, chunks), (SHORT, 0))}

    def to(self, path: str, body: bytes) -> tuple[str, bytes]:
        if b'"stream":true' in body:
            return "text/event-stream", next(self._streams[kind] for kind in self._streams if kind in body)
        if b'"tools":' in body and b'"role":"tool"' not in body:
            return "application/json", self._asks_for_tool
        return "application/json", self._answers[path]


def transport(answers: Answers) -> Any:
    """The provider as a transport of the HTTP library that the installed openai stands on."""
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx  # type: ignore[no-redef]

    def answer(request: Any) -> Any:
        kind, content = answers.to(request.url.path, request.content)
        return httpx.Response(200, headers={"content-type": kind}, content=content)

    return httpx.MockTransport(answer)


@contextmanager
def server() -> Iterator[str]:
    """The provider on a port of this machine; yields its base URL."""
    answers = Answers()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            kind, content = answers.to(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}/v1"
        finally:
            serving.shutdown()
