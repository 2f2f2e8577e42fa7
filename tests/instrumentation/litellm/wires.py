"""A server on loopback that answers in the wire formats of Anthropic, Gemini and Ollama, and for images, audio and ranking.

What is OpenAI's chat, the local server of the examples answers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Billed = tuple[int | None, int | None]
"""Input and output tokens."""

_ANTHROPIC = {"input_tokens": 21, "output_tokens": 9, "cache_read_input_tokens": 7, "cache_creation_input_tokens": 5}
_IMAGE = {"input_tokens": 13, "output_tokens": 40, "total_tokens": 53}
_TRANSCRIPT = {
    "type": "tokens",
    "input_tokens": 14,
    "output_tokens": 5,
    "total_tokens": 19,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
}


class Wires:
    """The server, and what it has billed."""

    def __init__(self) -> None:
        self.billed: list[Billed] = []
        wires = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                asked = json.loads(raw) if raw.startswith(b"{") else {}
                kind, body = wires._answer(self.path.partition("?")[0], asked)
                self.send_response(200 if kind else 404)
                self.send_header("content-type", kind or "text/plain")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, asked: dict[str, Any]) -> tuple[str, bytes]:
        is_stream = bool(asked.get("stream"))
        if path.endswith("/messages"):
            self.billed.append((33, 9))
            return _anthropic(asked["model"], is_stream)
        if "enerateContent" in path:
            self.billed.append((11, 12))
            return _gemini(is_stream="stream" in path)
        if path.endswith(("/api/chat", "/api/generate")):
            self.billed.append((26, 6))
            return _ollama(asked["model"], is_chat=path.endswith("chat"), is_stream=is_stream)
        if path.endswith("/images/generations"):
            self.billed.append((13, 40))
            return _json({"created": 1, "data": [{"b64_json": "eA=="}], "usage": _IMAGE})
        if path.endswith("/audio/transcriptions"):
            self.billed.append((14, 5))
            return _json({"text": "Hello", "usage": _TRANSCRIPT})
        if path.endswith("/audio/speech"):
            self.billed.append((None, None))
            return "audio/wav", b"RIFF"
        if path.endswith("/rerank"):
            self.billed.append((None, None))
            units = {"billed_units": {"search_units": 1}}
            return _json({"id": "r1", "results": [{"index": 0, "relevance_score": 0.9}], "meta": units})
        return "", b"no such path"


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()


def _events(events: Iterable[dict[str, Any]]) -> tuple[str, bytes]:
    lines = (
        [f"event: {event.get('type')}"] * ("type" in event) + [f"data: {json.dumps(event)}", "", ""] for event in events
    )
    return "text/event-stream", "".join("\n".join(one) for one in lines).encode()


def _anthropic(model: str, is_stream: bool) -> tuple[str, bytes]:
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": "Hello there"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": _ANTHROPIC,
    }
    if not is_stream:
        return _json(whole)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**_ANTHROPIC, "output_tokens": 1}}
    pieces = (
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        for text in ("Hello", " there")
    )
    stopped = {"stop_reason": "end_turn", "stop_sequence": None}
    return _events(
        (
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *pieces,
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": stopped, "usage": {"output_tokens": 9}},
            {"type": "message_stop"},
        )
    )


def _gemini(*, is_stream: bool) -> tuple[str, bytes]:
    def piece(text: str, *, is_last: bool) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        told = 8 if is_last else 3
        usage = {"promptTokenCount": 11, "candidatesTokenCount": told, "thoughtsTokenCount": 4}
        return {
            "candidates": [candidate | ({"finishReason": "STOP"} if is_last else {})],
            "responseId": "g1",
            "modelVersion": "gemini-2.5-flash",
            "usageMetadata": {**usage, "totalTokenCount": sum(usage.values())},
        }

    if not is_stream:
        return _json(piece("Hello there", is_last=True))
    return _events((piece("Hello", is_last=False), piece(" there", is_last=True)))


def _ollama(model: str, *, is_chat: bool, is_stream: bool) -> tuple[str, bytes]:
    def piece(text: str, *, is_last: bool) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"response": text}
        ended = {"done_reason": "stop", "total_duration": 5, "prompt_eval_count": 26, "eval_count": 6}
        told = {"model": model, "created_at": "2026-01-01T00:00:00Z", **said, "done": is_last}
        return told | (ended if is_last else {})

    if not is_stream:
        return _json(piece("Hello there", is_last=True))
    pieces = (piece("Hello", is_last=False), piece(" there", is_last=False), piece("", is_last=True))
    return "application/x-ndjson", b"".join(json.dumps(one).encode() + b"\n" for one in pieces)
