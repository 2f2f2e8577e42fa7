"""A websocket server that plays a script to each client, over a real connection."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve


class WebsocketServer:
    """Answers each message of a client with the events that `script` gives for it, in a thread of its own.

    An event is sent as JSON; bytes as they are; an exception class drops the connection without a farewell, an int closes
    it with that code.
    """

    def __init__(self, script: Callable[[dict[str, Any]], list[Any]]) -> None:
        self._script = script
        self._server = serve(self._play, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.socket.getsockname()[1]}/v1"

    def _play(self, connection: ServerConnection) -> None:
        try:
            for message in connection:
                for event in self._script(json.loads(message)):
                    match event:
                        case bytes():
                            connection.send(event.decode())
                        case int():
                            connection.close(event)
                        case type():
                            connection.socket.close()
                            return
                        case _:
                            connection.send(json.dumps(event))
        except ConnectionClosed:
            pass

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
