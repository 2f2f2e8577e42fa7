"""ClickHouse's engine, chdb, behind as much of its HTTP as the Collector's exporter speaks. A process of its own.

`python native_clickhouse.py PORT`. What comes in is read by the engine's own reader of the format Native; what goes out are the few
strings and numbers that the client asks for before it writes. `POST /sql` answers the statement in its body as JSON, for the test.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fleet.clickhouse_server import statements

_INSERT = re.compile(r"\s*INSERT INTO (\S+)\s*\(([^)]*)\)", re.IGNORECASE)


class NativeClickHouse(ThreadingHTTPServer):
    """One engine, one statement at a time."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        from chdb.session import Session

        self.session = Session()
        self.lock = threading.Lock()
        for statement in statements():
            self.session.query(statement)

    def insert(self, query: str, block: bytes) -> None:
        """Writes a block in the format Native."""
        found = _INSERT.match(query)
        assert found, query
        with tempfile.NamedTemporaryFile(suffix=".native") as file, self.lock:
            file.write(block)
            file.flush()
            columns = found[2]
            self.session.query(
                f"INSERT INTO {found[1]} ({columns}) SELECT {columns} FROM file('{file.name}', 'Native')"
            )

    def ask(self, sql: str) -> Any:
        with self.lock:
            return json.loads(bytes(self.session.query(sql, "JSONCompact").bytes()))


def block_of(answer: Any) -> bytes:
    """The answer as one block of Native, as it is since the protocol knows columns that are written in ways of their own."""
    rows = answer["data"]
    text = b"\x01\x00\x02\xff\xff\xff\xff\x00" + _number(len(answer["meta"])) + _number(len(rows))
    for place, column in enumerate(answer["meta"]):
        kind = column["type"] if column["type"] == "UInt32" else "String"
        text += _string(column["name"]) + _string(kind) + b"\x00"
        for row in rows:
            text += struct.pack("<I", int(row[place])) if kind == "UInt32" else _string(str(row[place]))
    return text


def _number(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _number(len(encoded)) + encoded


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: NativeClickHouse

    def do_POST(self) -> None:
        body = self._body()
        where = urlsplit(self.path)
        query = dict(parse_qsl(where.query, keep_blank_values=True)).get("query")
        status = 200
        try:
            if where.path == "/sql":
                answer = json.dumps(self.server.ask(body.decode())["data"]).encode()
            elif query is not None:
                self.server.insert(query, body)
                answer = b""
            else:
                answer = block_of(self.server.ask(body.decode()))
        except Exception as error:
            status, answer = 500, str(error).encode()
            print(error, file=sys.stderr, flush=True)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass


class Client:
    """The engine as a test asks it."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"

    def rows(self, sql: str) -> list[list[Any]]:
        with urllib.request.urlopen(f"{self.endpoint}/sql", sql.encode(), timeout=60) as answer:
            found: list[list[Any]] = json.load(answer)
            return found


@contextmanager
def native_clickhouse(port: int) -> Iterator[Client]:
    with subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "it has not started"
            yield Client(port)
        finally:
            process.terminate()


if __name__ == "__main__":
    with NativeClickHouse(int(sys.argv[1])) as server:
        print("up", flush=True)
        server.serve_forever()
