"""A ClickHouse for tests: its engine, chdb, behind a few lines of HTTP that stand for the server. In a process of its own.

`python clickhouse_server.py '{"ship": {"password": "secret", "may": "INSERT"}}'` prints its port; an address and a port may follow.
Beside those users there is `default`, without a password. The tables are those of collector-config/clickhouse, in a directory that
goes when the process ends.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

SCHEMA = Path(__file__).resolve().parents[2] / "collector-config" / "clickhouse"
_OF_HTTP = ("database", "default_format", "query", "query_id", "wait_end_of_query", "readonly")
_READS = re.compile(r"\s*\(*\s*(SELECT|WITH|FROM|SHOW|DESC|DESCRIBE|EXPLAIN|EXISTS)\b", re.IGNORECASE)


# --- the process ------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """What the server answers in place of rows."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class StandIn(ThreadingHTTPServer):
    """One engine, one statement at a time."""

    def __init__(self, users: Mapping[str, Mapping[str, str]], address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, _Handler)
        from chdb.session import Session

        self.users = {"default": {"password": ""}, **users}
        self.session = Session()
        self.lock = threading.Lock()
        self.set_before: set[str] = set()
        for statement in statements():
            self.session.query(statement)

    def answer(self, sql: str, parameters: Mapping[str, str], user: str) -> bytes:
        of_whom = self.users[user]
        verb = sql.split(None, 1)[0].upper() if sql.strip() else ""
        if of_whom.get("may", verb) != verb:
            raise Refused(403, f"Code: 497. DB::Exception: {user}: Not enough privileges. (ACCESS_DENIED)")
        if parameters.get("readonly", "0") != "0" and not _READS.match(sql) and verb not in ("", "SET"):
            raise Refused(500, f"Code: 164. DB::Exception: {user}: Cannot execute query in readonly mode. (READONLY)")
        values = {name[6:]: value for name, value in parameters.items() if name.startswith("param_")}
        settings = {k: v for k, v in parameters.items() if k not in _OF_HTTP and not k.startswith("param_")}
        with self.lock:
            try:
                for name in self.set_before - settings.keys():
                    self.session.query(f"SET {name} = DEFAULT")
                if settings:
                    self.session.query("SET " + ", ".join(f"{k} = '{v}'" for k, v in settings.items()))
                self.set_before = {*settings}
                self.session.query(f"USE `{parameters.get('database', 'default')}`")
                if verb != "INSERT":  # the engine takes several statements, a server one
                    self.session.query(f"SELECT formatQuery({literal(sql)})")
                for name, value in values.items():
                    self.session.query(f"SET param_{name} = {literal(value)}")
                return bytes(self.session.query(sql, parameters.get("default_format", "TabSeparated")).bytes())
            except Exception as error:
                raise Refused(500, str(error)) from error


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        sql = body.decode()
        if (query := parameters.get("query")) is not None:
            sql = f"{query}\n{sql}"
        status = 200
        try:
            answer = self.server.answer(sql, parameters, self._user())
        except Refused as refused:
            status, answer = refused.status, str(refused).encode()
        packed = "gzip" in self.headers.get("Accept-Encoding", "") and parameters.get("enable_http_compression") == "1"
        self.send_response(status)
        if packed:
            answer = gzip.compress(answer, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _user(self) -> str:
        user, _, password = base64.b64decode(self.headers.get("Authorization", "")[6:]).decode().partition(":")
        if self.server.users.get(user, {}).get("password") != password:
            raise Refused(403, f"Code: 516. DB::Exception: {user}: Authentication failed. (AUTHENTICATION_FAILED)")
        return user

    def log_message(self, *_: object) -> None:
        pass


def statements(*files: str) -> list[str]:
    """The statements of the schema, as `clickhouse-client` cuts them; those that any server reads at its start by default."""
    texts = [SCHEMA / file for file in files] or sorted(SCHEMA.glob("*.sql"))
    found = []
    for file in texts:
        text = re.sub(r"--.*", "", file.read_text(encoding="utf-8"))
        found += [statement.strip() for statement in text.split(";") if statement.strip()]
    return found


# --- for tests --------------------------------------------------------------------------------------------------------


def require() -> None:
    """Skips a test where neither chdb nor a server is at hand, and says how to have one."""
    import pytest

    if "CLICKHOUSE_URL" not in os.environ:
        pytest.importorskip("chdb", reason="ClickHouse is NOT TESTED here: pip install chdb, or set CLICKHOUSE_URL")


@contextmanager
def server(users: Mapping[str, Mapping[str, str]] | None = None) -> Iterator[str]:
    """The URL of a ClickHouse with the tables and nothing in them: the stand-in, or the real one of CLICKHOUSE_URL."""
    if url := os.environ.get("CLICKHOUSE_URL"):
        yield url
        return
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), json.dumps(users or {})], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the stand-in has not started"
        yield f"clickhouse://default@127.0.0.1:{port}/otel"
    finally:
        process.terminate()
        process.wait()


def empty(url: str) -> None:
    """Takes all rows away."""
    from otel_llm.fleet.clickhouse.http_client import ClickHouseClient
    from otel_llm.fleet.clickhouse.server_url import ClickHouseURL

    client = ClickHouseClient(ClickHouseURL.parse(url))
    for table in ("llm_usage", "spans", "llm_running", "otel_logs", "otel_traces"):
        client.execute(f"TRUNCATE TABLE {table}")
    client.close()


def main(arguments: Sequence[str]) -> None:
    users: dict[str, Any] = json.loads(arguments[0]) if arguments else {}
    address = (arguments[1], int(arguments[2])) if arguments[1:] else ("127.0.0.1", 0)
    with StandIn(users, address) as stand_in:
        print(stand_in.server_address[1], flush=True)
        stand_in.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
