"""Statements to a ClickHouse, over HTTP and with the standard library alone."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote, urlencode

from otel_llm.fleet.clickhouse.server_url import PASSWORD, ClickHouseURL

_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 300.0
_BLOCK: Final = 256 * 1024
_WORTH_COMPRESSING: Final = 1024
_CODE: Final = re.compile(
    r"Code: (\d+)\. DB::(?:Net)?Exception: (?:Received from [^ ]+ DB::Exception: )?(.*)", re.DOTALL
)
_TAIL: Final = re.compile(
    r"\s*\(version [^()]*(\([^()]*\))?\)\s*$|:? ?While executing \w+\.?|\.? ?Stack trace:.*", re.DOTALL
)
_LONGEST: Final = 600
_CANNOT_ENTER: Final = (192, 193, 194, 516)
_NO_RIGHT: Final = 497
_UNKNOWN_TABLE: Final = (60, 81)
_UNKNOWN_COLUMN: Final = (16, 47)

TABLES_REMEDY: Final = "an administrator makes the tables with collector-config/clickhouse/"


class ClickHouseError(Exception):
    """ClickHouse cannot be reached, or will not do it: one line with the remedy."""

    def __init__(
        self, text: str, *, code: int | None = None, status: int | None = None, retry_after: float | None = None
    ):
        super().__init__(text)
        self.code = code
        """ClickHouse's number of the error; None where it has said none."""
        self.status = status
        """That of HTTP; None where nothing came back."""
        self.retry_after = retry_after


class ClickHouseClient:
    """One server, over a connection that is kept. For one thread at a time."""

    def __init__(self, url: ClickHouseURL, *, answer_seconds: float = _ANSWER_SECONDS) -> None:
        self.url = url
        self.answer_seconds = answer_seconds
        """How long to wait for an answer, at most."""
        self._connection: http.client.HTTPConnection | None = None
        self._unread: http.client.HTTPResponse | None = None
        """The answer that has not been read to its end: nothing else goes over the connection before that."""

    def rows(
        self, sql: str, *, values: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None
    ) -> Iterator[list[Any]]:
        """What a statement answers: the names of the columns, their types, then the rows, as JSON has them. Raises ClickHouseError.

        Whoever does not read to the end has the query cancelled by `close`.
        """
        lines = self._lines(
            self.send(sql, form="JSONCompactEachRowWithNamesAndTypes", values=values, settings=settings)
        )
        for line in lines:
            if not line.startswith(b"["):  # an error in the middle of the answer, whose status was good
                if text := b"\n".join((line, *lines)).decode(errors="replace").strip():
                    raise _told(text, 200, None, str(self.url))
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ClickHouseError(f"{self.url} broke off in the middle of an answer") from error

    def execute(
        self,
        sql: str,
        data: bytes | None = None,
        *,
        values: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Has a statement done, with `data` for an INSERT, and waits for its end. Raises ClickHouseError."""
        for _ in self.send(sql, data, values=values, settings={"wait_end_of_query": 1, **(settings or {})}):
            pass

    def send(
        self,
        sql: str,
        data: bytes | None = None,
        *,
        form: str | None = None,
        values: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """The answer in the format `form`, some at a time. Raises ClickHouseError."""
        parameters: dict[str, Any] = {"database": self.url.database, "enable_http_compression": 1}
        if form is not None:
            parameters["default_format"] = form
        parameters |= settings or {}
        parameters |= {f"param_{name}": _escaped(value) for name, value in (values or {}).items()}
        headers = {"Accept-Encoding": "gzip", "Content-Type": "text/plain; charset=utf-8", **self._credentials()}
        body = sql.encode()
        if data is not None:
            parameters["query"] = sql
            body = data
        if len(body) >= _WORTH_COMPRESSING:
            packer = zlib.compressobj(1, wbits=31)
            body = packer.compress(body) + packer.flush()
            headers["Content-Encoding"] = "gzip"
        response = self._request(f"/?{urlencode(parameters, quote_via=quote)}", body, headers)
        if response.status != 200:
            text = b"".join(self._unpacked(response)).decode(errors="replace")
            raise _told(text, response.status, response.getheader("Retry-After"), str(self.url))
        return self._unpacked(response)

    def close(self) -> None:
        """Lets go of the connection, and of an answer that was not read; the next statement opens another."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
        self._connection = self._unread = None

    def _credentials(self) -> dict[str, str]:
        secret = base64.b64encode(f"{self.url.user}:{self.url.password}".encode()).decode()
        return {"Authorization": f"Basic {secret}"}

    def _request(self, target: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._unread is not None:
            self.close()
        kept = self._connection is not None
        try:
            return self._ask(target, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A connection that was kept may have been closed at the other end meanwhile. To send twice is no harm: a row that
            # comes again counts once.
            if not kept or isinstance(error, TimeoutError):
                raise self._unreachable(error) from error
        try:
            return self._ask(target, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error

    def _ask(self, target: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        connection = self._connection
        if connection is None:
            if self.url.tls:
                connection = http.client.HTTPSConnection(
                    self.url.host, self.url.port, timeout=_CONNECT_SECONDS, context=ssl.create_default_context()
                )
            else:
                connection = http.client.HTTPConnection(self.url.host, self.url.port, timeout=_CONNECT_SECONDS)
            connection.connect()
            self._connection = connection
        if connection.sock is not None:  # else it is opened anew, as after an answer that closed it
            connection.sock.settimeout(self.answer_seconds)
        connection.request("POST", target, body, dict(headers))
        self._unread = response = connection.getresponse()
        return response

    def _unreachable(self, error: Exception) -> ClickHouseError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return ClickHouseError(
                f"{self.url} cannot be trusted: {error.verify_message}; SSL_CERT_FILE names the authorities to trust"
            )
        if isinstance(error, ssl.SSLError):
            return ClickHouseError(f"{self.url} does not speak TLS there ({error.reason}); clickhouse:// is without")
        if isinstance(error, TimeoutError):
            return ClickHouseError(f"{self.url} does not answer in time")
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return ClickHouseError(f"{self.url} cannot be reached: {reason}")

    def _unpacked(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        unpack: Callable[[bytes], bytes] = bytes
        if response.getheader("Content-Encoding") == "gzip":
            unpack = zlib.decompressobj(wbits=47).decompress
        try:
            while block := response.read1(_BLOCK):
                yield unpack(block)
            if response.length:  # which read1 says nothing of
                raise http.client.IncompleteRead(b"", response.length)
            response.close()  # which read1 leaves undone where it knows the length
            self._unread = None
        except (OSError, http.client.HTTPException, zlib.error) as error:
            self.close()
            raise ClickHouseError(f"{self.url} broke off in the middle of an answer: {error}") from error

    def _lines(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        rest = b""
        for block in blocks:
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        if rest:
            yield rest


def _escaped(text: str) -> str:
    """A parameter's value as ClickHouse reads it: with the escapes of its TSV."""
    return (
        text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")
    )


def _told(text: str, status: int, retry_after: str | None, where: str) -> ClickHouseError:
    """The error that a server has told."""
    found = _CODE.search(text)
    code = int(found[1]) if found else None
    said = " ".join(_TAIL.sub("", found[2] if found else text).split())[:_LONGEST] or f"it answers {status}"
    if code in _CANNOT_ENTER or (status in (401, 403) and code != _NO_RIGHT):
        said = f"{where} does not let us in: check the user in the URL, and {PASSWORD}"
    elif code == _NO_RIGHT:
        said = f"{where}: {said}; an administrator grants a role of collector-config/clickhouse/admin/roles.sql"
    elif code in _UNKNOWN_TABLE:
        said = f"{where}: {said}; {TABLES_REMEDY}"
    elif code is None and status == 200:
        said = f"{where} answers in a format of its own: leave FORMAT out of the SQL"
    elif code is None:
        said = f"{where} answers {status}: {said}"
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    return ClickHouseError(said, code=code, status=status, retry_after=wait)
