"""What we rely on that nobody promises is there in the installed client: a new version that has it no more fails here first."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import openai
import pytest

from otel_llm.instrumentation.openai import private
from tests.instrumentation.openai.clients import http

INSTALLED = f"openai {openai.__version__}"
BODY = b'{"id": "1", "object": "chat.completion", "choices": []}'
EVENTS = b'data: {"id": "1", "object": "chat.completion.chunk", "choices": []}\n\ndata: [DONE]\n\n'


def client() -> openai.OpenAI:
    def answer(request: Any) -> Any:
        is_stream = b'"stream":true' in request.content.replace(b" ", b"")
        kind = "text/event-stream" if is_stream else "application/json"
        return http.Response(200, headers={"content-type": kind}, content=EVENTS if is_stream else BODY)

    transport = http.Client(transport=http.MockTransport(answer))
    return openai.OpenAI(api_key="x", base_url="http://local/v1", http_client=transport, max_retries=0)


def test_every_request_goes_through_one_method() -> None:
    base = import_module(private.BASE_CLIENT)
    for module, (sync, not_sync) in private.CLIENTS.items():
        classes = import_module(module)
        assert issubclass(getattr(classes, sync), base.SyncAPIClient), INSTALLED
        assert issubclass(getattr(classes, not_sync), base.AsyncAPIClient), INSTALLED
    for one in (base.SyncAPIClient, base.AsyncAPIClient):
        assert list(inspect.signature(one.request).parameters)[1:3] == ["cast_to", "options"], INSTALLED
        assert callable(getattr(one, private.before_retry(one), None)), INSTALLED


def test_options_tell_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    api, seen = client(), []
    request = type(api).request

    def watched(self: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        seen.append(options)
        return request(self, cast_to, options, **kwargs)

    monkeypatch.setattr(openai.OpenAI, "request", watched)
    api.chat.completions.create(model="m", messages=[])
    missing = [name for name in private.OPTIONS if not hasattr(seen[0], name)]
    assert not missing, INSTALLED
    assert (seen[0].method.lower(), seen[0].url) == ("post", "/chat/completions"), INSTALLED


def test_a_client_says_whom_it_asks() -> None:
    url = private.base_url(client())
    assert (url.scheme, url.host, url.path.rstrip("/")) == ("http", "local", "/v1"), INSTALLED
    asking = openai.OpenAI(api_key="x", default_query={"api-version": "1"})
    assert dict(private.default_query(asking)) == {"api-version": "1"}, INSTALLED


def test_a_stream_has_an_iterator_that_can_be_replaced() -> None:
    stream = client().chat.completions.create(model="m", messages=[], stream=True)
    assert hasattr(private.iterator(stream), "__next__"), INSTALLED
    private.replace_iterator(stream, iter(["ours"]))
    assert list(stream) == ["ours"], INSTALLED
    assert private.iterator(object()) is None


def test_a_response_tells_whether_it_is_read() -> None:
    response = http.Response(200, stream=http.ByteStream(b"x"))
    assert not private.is_read(response), http.__version__
    response.read()
    assert private.is_read(response), http.__version__


def test_websocket_connections() -> None:
    found = 0
    for name in private.WEBSOCKETS:
        try:
            module = import_module(name)
        except ImportError:  # an older client
            continue
        for cls in vars(module).values():
            if isinstance(cls, type) and "recv_bytes" in vars(cls):
                found += 1
                source = "".join(
                    inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("openai.")
                )
                assert "self._connection" in source, INSTALLED
                # Older ones do not connect anew, and so need not know.
                assert "self._intentionally_closed" in source or "reconnect" not in source, INSTALLED
    assert found or not hasattr(openai.OpenAI, "realtime"), INSTALLED
