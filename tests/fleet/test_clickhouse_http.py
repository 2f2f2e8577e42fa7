"""What a ClickHouse may answer over HTTP beside what was asked for."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from otel_llm.account.clickhouse_engine import ClickHouseEngine
from otel_llm.account.engine import AccountError
from otel_llm.fleet.clickhouse.http_client import ClickHouseClient, ClickHouseError
from otel_llm.fleet.clickhouse.server_url import ClickHouseURL

HEAD = b'["n"]\n["UInt8"]\n'


class _Server(HTTPServer):
    answer: bytes = HEAD
    headers: dict[str, str] = {}  # noqa: RUF012  (replaced as a whole)
    asked: tuple[str, bytes] = ("", b"")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked = (
            self.path,
            gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body,
        )
        self.send_response(200)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        if "Transfer-Encoding" not in self.server.headers and "Content-Length" not in self.server.headers:
            self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)
        self.close_connection = "Connection" in self.server.headers

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(server: _Server) -> Iterator[ClickHouseClient]:
    client = ClickHouseClient(ClickHouseURL("127.0.0.1", server.server_address[1]))
    yield client
    client.close()


def chunked(*parts: bytes, whole: bool = True) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if whole else b"")


@pytest.mark.parametrize(
    "tail",
    [
        b"Code: 395. DB::Exception: no luck: while executing 'FUNCTION throwIf'. (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)",
        b"\r\n__exception__\r\nabcdefgh\r\nCode: 395. DB::Exception: no luck. (FUNCTION_THROW)\r\n60 abcdefgh\r\n__exception__\r\n",
        b'{"exception": "Code: 395. DB::Exception: no luck. (FUNCTION_THROW)"}\n',
    ],
)
def test_an_error_in_the_middle_of_an_answer_is_one(tail: bytes, server: _Server, client: ClickHouseClient) -> None:
    """As three generations of servers tell it, after a status that was good."""
    server.answer = HEAD + b"[1]\n" + tail
    found = client.rows("SELECT 1")
    assert [next(found) for _ in range(3)] == [["n"], ["UInt8"], [1]]
    with pytest.raises(ClickHouseError, match="no luck") as raised:
        next(found)
    assert raised.value.code == 395 and "\n" not in str(raised.value)


def test_an_answer_that_breaks_off_is_no_whole_one(server: _Server, client: ClickHouseClient) -> None:
    server.headers, server.answer = (
        {"Transfer-Encoding": "chunked", "Connection": "close"},
        chunked(HEAD, b"[1]\n[", whole=False),
    )
    with pytest.raises(ClickHouseError, match="broke off in the middle of an answer"):
        list(client.rows("SELECT 1"))
    server.headers, server.answer = {"Content-Length": "500", "Connection": "close"}, HEAD + b"[1]\n"
    with pytest.raises(ClickHouseError, match="broke off in the middle of an answer"):
        list(client.rows("SELECT 1"))
    server.headers, server.answer = {}, HEAD + b"[2]\n"
    assert list(client.rows("SELECT 2"))[2] == [2]  # over another connection


@pytest.mark.parametrize("sizes", [(1,), (7, 3), (1000,)])
def test_rows_may_be_cut_anywhere(sizes: tuple[int, ...], server: _Server, client: ClickHouseClient) -> None:
    whole = HEAD + b"".join(b'[%d,"a\\nb"]\n' % number for number in range(50))
    parts, at = [], 0
    while at < len(whole):
        size = sizes[len(parts) % len(sizes)]
        parts.append(whole[at : at + size])
        at += size
    server.headers, server.answer = {"Transfer-Encoding": "chunked"}, chunked(*parts)
    assert list(client.rows("SELECT 1"))[2:] == [[number, "a\nb"] for number in range(50)]


def test_what_is_long_is_packed_both_ways(server: _Server, client: ClickHouseClient) -> None:
    server.headers, server.answer = {"Content-Encoding": "gzip"}, gzip.compress(HEAD + b"[1]\n" * 10_000)
    query = f"SELECT '{'x' * 5000}'"
    assert len(list(client.rows(query))) == 10_002
    assert server.asked[1] == query.encode()
    client.execute("INSERT INTO t FORMAT JSONEachRow", b'{"a": 1}\n' * 1000)
    path, body = server.asked
    assert parse_qs(urlsplit(path).query)["query"] == ["INSERT INTO t FORMAT JSONEachRow"]
    assert body == b'{"a": 1}\n' * 1000


def test_who_stops_reading_is_asked_again(server: _Server, client: ClickHouseClient) -> None:
    server.answer = HEAD + b"[1]\n" * 100_000
    assert next(client.rows("SELECT 1")) == ["n"]
    server.answer = HEAD + b"[7]\n"
    assert list(client.rows("SELECT 7"))[2] == [7]


def test_no_password_is_in_what_a_proxy_writes_down(
    server: _Server, client: ClickHouseClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "hunter2")
    list(client.rows("SELECT 1", values={"v0": "a\tb\\"}))
    assert "hunter2" not in server.asked[0]
    assert parse_qs(urlsplit(server.asked[0]).query)["param_v0"] == ["a\\tb\\\\"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine: engine.ask("SELECT 1"),
        lambda engine: list(engine.run("SELECT 1").rows),
        lambda engine: engine.condition("true"),
        lambda engine: list(engine.stream("SELECT 1", {})),
        lambda engine: engine.names(),
    ],
)
def test_nothing_but_its_own_error_comes_out_of_the_engine(ask: Callable[[ClickHouseEngine], object]) -> None:
    with pytest.raises(AccountError, match="cannot be reached"):
        ask(ClickHouseEngine(ClickHouseClient(ClickHouseURL("127.0.0.1", 1))))
