"""A server that webhooks are sent to, for tests: it has what it was sent, and answers what it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[], int | tuple[int, Mapping[str, str]]]


@dataclass
class WebhookServer:
    """Answers 200, or what the next of `answers` says, which may wait."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    received: list[Mapping[str, Any]] = field(default_factory=list)
    """Bodies, as they came."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    """The ids of what was answered with 200 and the client was there to hear it."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, holds: Callable[[], bool], seconds: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, seconds), (self.received, self.answered)


@contextmanager
def webhook_server() -> Iterator[WebhookServer]:
    """A server that listens."""
    server = WebhookServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.changed:
                server.received.append(body)
                server.headers.append(dict(self.headers))
                answer = server.answers.pop(0) if server.answers else lambda: 200
                server.changed.notify_all()
            found = answer()
            status, headers = found if isinstance(found, tuple) else (found, {})
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"fine" if status == 200 else b"busy")
            except OSError:  # who asked has gone
                return
            with server.changed:
                if status == 200:
                    server.answered.append(self.headers["Idempotency-Key"])
                server.changed.notify_all()

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server.url = f"http://127.0.0.1:{listening.server_port}/hook"
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
