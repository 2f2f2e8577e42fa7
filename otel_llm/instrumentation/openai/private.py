"""What we touch of the client and of what it stands on that nobody promises to keep: all of it, and nothing of it elsewhere.

Seen in openai 1.26, 2 and 3.57, on httpx 0.27 and 0.28, httpx2 2.16 and websockets 17. What is installed is asked for each by
`tests/instrumentation/openai/test_private.py`.
"""

from __future__ import annotations

from typing import Any

BASE_CLIENT = "openai._base_client"
"""The module of `SyncAPIClient` and `AsyncAPIClient`, whose `request` every resource method goes through."""
CLIENTS = {
    "openai._client": ("OpenAI", "AsyncOpenAI"),
    "openai.lib.azure": ("AzureOpenAI", "AsyncAzureOpenAI"),
}
"""The classes that apps make, sync and async, by their modules."""
OPTIONS = ("method", "url", "params", "headers", "json_data", "extra_json", "files", "idempotency_key", "post_parser")
"""What `request` is told in its `options`, of a private class."""
WEBSOCKETS = {
    "openai.resources.realtime.realtime": "realtime",
    "openai.resources.beta.realtime.realtime": "realtime",
    "openai.resources.responses.responses": "responses",
    "openai.resources.beta.responses.responses": "responses",
    "openai.resources.live.live": "live",
    "openai.resources.live.sideband": "live",
    "openai.resources.live.forks": "live",
}
"""Where the connection classes are, and the API they speak. Older clients have fewer of them."""


def before_retry(client: type) -> str:
    """The method that is called once before every further try; 1.68 and older have it under the second name."""
    return "_sleep_for_retry" if hasattr(client, "_sleep_for_retry") else "_retry_request"


def base_url(client: Any) -> Any:
    return client._base_url


def default_query(client: Any) -> Any:
    return getattr(client, "default_query", None) or client._custom_query  # 1.26 has the second only


def iterator(result: Any) -> Any:
    """What an `openai.Stream` or `openai.AsyncStream` takes its chunks from; None for anything else."""
    return getattr(result, "__dict__", {}).get("_iterator")


def replace_iterator(stream: Any, iterator: Any) -> None:
    stream._iterator = iterator


def is_read(response: Any) -> bool:
    """Whether an object of the HTTP library's is a response whose body has been read: without it, `content` raises."""
    return "_content" in getattr(response, "__dict__", {})


def handshake(connection: Any) -> Any:
    """The HTTP request that opened a websocket; None where that is not known."""
    return getattr(getattr(connection, "_connection", None), "request", None)


def is_closed_by_app(connection: Any) -> bool:
    """Whether a websocket that is closed was closed from this side."""
    return getattr(connection, "_intentionally_closed", False) is True
