"""A local server for what `examples/local_openai.py` does not serve: sounds, images, decisions.

It hears, and draws, what it was made with.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"input_tokens": 14, "output_tokens": 9}


@contextmanager
def media_server(heard: str, drawn: bytes) -> Iterator[str]:
    """Gives the base URL. `heard`: every transcript. `drawn`: the bytes of every image, and of all speech."""
    image = base64.b64encode(drawn).decode()

    def answer(path: str, body: bytes) -> tuple[str, bytes]:
        streams = b'"stream": true' in body or b'"stream":true' in body or b'name="stream"\r\n\r\ntrue' in body
        match path.rpartition("/v1/")[2]:
            case "audio/speech":
                return "audio/mpeg", drawn
            case "audio/transcriptions" | "audio/translations" if streams:
                first, rest = heard[:4], heard[4:]
                return _events(
                    {"type": "transcript.text.delta", "delta": first},
                    {"type": "transcript.text.delta", "delta": rest},
                    {"type": "transcript.text.done", "text": heard, "usage": USAGE},
                )
            case "audio/transcriptions" | "audio/translations" if b'name="response_format"\r\n\r\ntext' in body:
                return "text/plain; charset=utf-8", heard.encode()
            case "audio/transcriptions" | "audio/translations":
                return "application/json", json.dumps({"text": heard, "usage": USAGE}).encode()
            case "decisions":
                return "application/json", json.dumps({"model": "gpt-5", "answers": [], "usage": USAGE}).encode()
            case "images/generations" | "images/edits" if streams:
                kind = "image_generation" if path.endswith("generations") else "image_edit"
                partial = {"type": f"{kind}.partial_image", "b64_json": image, "partial_image_index": 0}
                return _events(partial, {"type": f"{kind}.completed", "b64_json": image, "usage": USAGE})
            case "images/generations" | "images/edits":
                told = {"created": 1, "data": [{"b64_json": image}], "usage": USAGE}
                return "application/json", json.dumps(told).encode()
        raise ValueError(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            kind, content = answer(self.path.partition("?")[0], self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _events(*events: dict[str, Any]) -> tuple[str, bytes]:
    return "text/event-stream", b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events)
