"""A context for each request, by the real servers' protocols: FastAPI and plain ASGI, WSGI by the standard's own validator."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from opentelemetry import context as otel

from otel_llm.context import attributes
from otel_llm.conventions import semconv
from otel_llm.middleware import LLMContextMiddleware, LLMContextWSGIMiddleware, Request
from otel_llm.support import faults


def user() -> str:
    return attributes().get(semconv.USER_ID, "nobody")


def said() -> dict[str, str]:
    return {name: value for name, value in attributes().items() if name != semconv.REQUEST_ID}


# --- ASGI -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.get("/said")
    async def said_() -> dict[str, str]:
        return said()

    @app.get("/thread")
    def in_thread() -> dict[str, str]:
        return said()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            for _ in range(3):
                await asyncio.sleep(0)
                yield user()

        return StreamingResponse(body())

    @app.get("/sync-stream")
    def sync_stream() -> StreamingResponse:
        return StreamingResponse(user() for _ in range(3))

    @app.websocket("/ws")
    async def websocket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(user())
        await socket.close()

    return app


def client_of(app: FastAPI, **asked: Any) -> TestClient:
    app.add_middleware(LLMContextMiddleware, **asked)
    return TestClient(app, headers={"X-User": "alice"})


def by_header(request: Request) -> str | None:
    return request.headers.get("x-user")


@pytest.mark.parametrize("path", ["/said", "/thread"])
def test_values_and_functions(path, app):
    client = client_of(
        app,
        module="api",
        user_id=by_header,
        session_id=lambda request: request.query["s"],
        conversation_id=lambda request: None,
        route=lambda request: f"{request.method} {request.path}",
        host=lambda request: request.raw["server"][0],
    )
    assert client.get(f"{path}?s=1&s=a+b").json() == {
        semconv.MODULE: "api",
        semconv.USER_ID: "alice",
        semconv.SESSION_ID: "a b",
        semconv.TAG_PREFIX + "route": f"GET {path}",
        semconv.TAG_PREFIX + "host": "testserver",
    }
    assert attributes() == {}


@pytest.mark.parametrize("path", ["/stream", "/sync-stream"])
def test_a_response_that_streams_keeps_it(path, app):
    assert client_of(app, user_id=by_header).get(path).text == "alice" * 3


def test_websockets_and_lifespan(app):
    asked: list[str] = []
    with client_of(app, user_id=lambda request: asked.append(request.path) or by_header(request)) as client:
        assert asked == []  # the lifespan is nobody's
        with client.websocket_connect("/ws") as socket:
            assert socket.receive_text() == "alice"
    assert asked == ["/ws"]


def test_state_of_other_middleware(app):
    client = client_of(app, user_id=lambda request: request.state["user"])

    @app.middleware("http")  # added later, so it runs before
    async def authenticate(request: Any, call_next: Any) -> Any:
        request.state.user = "by token"
        return await call_next(request)

    assert client.get("/said").json() == {semconv.USER_ID: "by token"}


def test_a_function_that_raises_is_reported_once_and_the_request_goes_on(app, caplog, monkeypatch):
    monkeypatch.setattr(faults, "counts", faults.Counter())
    client = client_of(app, module="api", user_id=lambda request: request.headers["missing"])
    for _ in range(2):
        assert client.get("/said").json() == {semconv.MODULE: "api"}
    assert [record.name for record in caplog.records if record.name == "otel_llm"] == ["otel_llm"]
    assert "user_id=" in caplog.text


@pytest.mark.parametrize("middleware", [LLMContextMiddleware, LLMContextWSGIMiddleware])
def test_the_app_may_be_given_by_its_name(middleware: Any) -> None:
    """As older versions of Starlette do."""
    assert middleware(app=user, module="web").app is middleware(user, "web").app is user
    for missing in ({}, {"module": "web"}, {"app": None}):
        with pytest.raises(TypeError, match=f"the app is missing: {middleware.__name__}"):
            middleware(**missing)


def test_an_async_function_is_refused(app):
    async def ask(request: Request) -> str:
        return "x"

    with pytest.raises(TypeError, match=r"user_id=.*ask is an async function"):
        LLMContextMiddleware(app, user_id=ask)


async def test_requests_at_once_keep_apart(app):
    app.add_middleware(LLMContextMiddleware, user_id=by_header)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:

        async def ask(name: str) -> str:
            return (await client.get("/stream", headers={"x-user": name})).text

        assert await asyncio.gather(*(ask(name) for name in "abc")) == ["aaa", "bbb", "ccc"]


# --- WSGI -------------------------------------------------------------------------------------------------------------
class Streaming:
    """A response that says at each step who asks."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen
        self._left = 3

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._left:
            raise StopIteration
        self._left -= 1
        return user().encode()

    def close(self) -> None:
        self._seen.append(f"closed by {user()}")


def environ_of(**more: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {
        "SCRIPT_NAME": "",
        "HTTP_X_USER": "alice",
        "QUERY_STRING": "q=a+b",
        "PATH_INFO": "/caf\xc3\xa9",
        **more,
    }
    setup_testing_defaults(environ)
    return environ


def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
    return lambda _: None


def test_wsgi_keeps_it_while_the_response_is_sent():
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        seen.append(user())
        return Streaming(seen)

    before = otel.get_current()
    response = validator(LLMContextWSGIMiddleware(validator(app), user_id=by_header))(environ_of(), start)
    chunks = []
    for chunk in response:
        assert otel.get_current() is before
        chunks.append(chunk)
    response.close()
    assert chunks == [b"alice"] * 3
    assert seen == ["alice", "closed by alice"]
    assert otel.get_current() is before


def test_wsgi_hands_on_what_a_server_looks_for():
    one = [b"text"]
    file = FileWrapper(io.BytesIO(b"file"))
    for response in (one, file):
        app = LLMContextWSGIMiddleware(lambda environ, start_response, response=response: response)
        assert app(environ_of(**{"wsgi.file_wrapper": FileWrapper}), start) is response


def test_wsgi_errors_are_the_app_s():
    def generates(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b"a"
        raise KeyError("body")

    def fails(environ: dict[str, Any], start_response: Any) -> Any:
        raise KeyError("app")

    before = otel.get_current()
    with pytest.raises(KeyError, match="app"):
        LLMContextWSGIMiddleware(fails, user_id="u")(environ_of(), start)
    response = iter(LLMContextWSGIMiddleware(generates, user_id="u")(environ_of(), start))
    assert next(response) == b"a"
    with pytest.raises(KeyError, match="body"):
        next(response)
    assert otel.get_current() is before


def test_wsgi_requests():
    found: list[Any] = []

    def look(request: Request) -> None:
        found.append((request.method, request.path, request.query, request.headers["x-user"], dict(request.state)))

    LLMContextWSGIMiddleware(lambda environ, start_response: [], module=look)(environ_of(), start)
    assert found == [("GET", "/café", {"q": "a b"}, "alice", {})]


def test_wsgi_on_a_server():
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for _ in range(2):
            yield user().encode()

    server: WSGIServer = make_server("127.0.0.1", 0, LLMContextWSGIMiddleware(app, user_id=by_header))
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        assert httpx.get(f"http://127.0.0.1:{server.server_port}/", headers={"x-user": "bob"}).text == "bobbob"
    finally:
        thread.join()
        server.server_close()
