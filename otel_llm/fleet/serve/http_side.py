"""OTLP over HTTP, and two pages about the receiver itself: `/metrics` and `/health`."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import uvicorn
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from otel_llm.fleet.serve import otlp_json
from otel_llm.fleet.serve.admission import Address, Admission, NotAllowed
from otel_llm.fleet.serve.counters import Counters
from otel_llm.fleet.serve.intake import Intake, Refused
from otel_llm.fleet.serve.signal_kinds import SIGNALS, SignalKind

_PROTOBUF: Final = "application/x-protobuf"
_JSON: Final = "application/json"
_GZIP: Final = 31
"""zlib's word for it."""
_CODES: Final = {400: 3, 401: 16, 413: 8, 415: 3, 429: 8, 503: 14}
"""Of a status of HTTP that of gRPC, which stands in the message of an answer."""


class _Answer(Exception):
    """What a request is answered that is not taken."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class HttpSide:
    """Listens at `address` from its construction on; raises NotAllowed where it cannot."""

    def __init__(
        self,
        address: Address,
        admission: Admission,
        intake: Intake,
        counters: Counters,
        gauges: Callable[[], Mapping[str, float]],
        *,
        max_request: int,
    ) -> None:
        self._admission = admission
        self._intake = intake
        self._counters = counters
        self._gauges = gauges
        self._max_request = max_request
        self._socket = _listen(address)
        self.port: int = self._socket.getsockname()[1]
        routes = [Route(signal.path, self._endpoint(signal), methods=["POST"]) for signal in SIGNALS]
        routes += [Route("/metrics", self._metrics), Route("/health", self._health)]
        tls = admission.tls
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=routes, exception_handlers={404: _no_such_page}),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
                ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
                ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.client_ca is None else ssl.CERT_REQUIRED,
            )
        )
        try:
            self._server.config.load()
        except (OSError, ssl.SSLError) as error:
            self._socket.close()
            raise NotAllowed(f"the certificate or its key cannot be used: {error}") from error
        # (In a thread of its own uvicorn leaves signals alone.)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="otel-llm-http", daemon=True
        )

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Takes no more requests; those at work have `grace` seconds for their answer."""
        self._server.config.timeout_graceful_shutdown = max(int(grace), 1)
        self._server.should_exit = True
        self._thread.join(grace + 1)
        self._socket.close()

    # --- telemetry ----------------------------------------------------------------------------------------------------

    def _endpoint(self, signal: SignalKind) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            began = time.monotonic()
            size = 0
            as_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == _JSON
            try:
                self._require_admission(request)
                body = await self._body(request)
                size = len(body)
                plain = request.headers.get("content-encoding", "identity").strip().lower() in ("identity", "")
                message = await run_in_threadpool(self._take, signal, body, plain=plain, as_json=as_json)
                response = _response(message, 200, as_json=as_json)
            except _Answer as error:
                status = Status(code=_CODES.get(error.status, 2), message=str(error))
                response = _response(status, error.status, as_json=as_json, headers=error.headers)
            except ClientDisconnect:
                response = Response(status_code=400)
            self._counters.request("http", signal.name, str(response.status_code), size, time.monotonic() - began)
            return response

        return answer

    def _require_admission(self, request: Request) -> None:
        if not self._admission.admits(request.headers.get("authorization")):
            raise _Answer(401, "it needs the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (_PROTOBUF, _JSON):
            raise _Answer(415, f"the Content-Type {kind or '(none)'} is neither {_PROTOBUF} nor {_JSON}")
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("gzip", "identity", ""):
            raise _Answer(415, f"the Content-Encoding {encoding} is neither gzip nor identity")
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > self._max_request:
            raise self._too_large()
        blocks = []
        size = 0
        async for block in request.stream():
            size += len(block)
            if size > self._max_request:
                raise self._too_large()
            blocks.append(block)
        return b"".join(blocks)

    def _take(self, signal: SignalKind, body: bytes, *, plain: bool, as_json: bool) -> Any:
        """The answer to a request, which is journalled by then. Raises _Answer."""
        try:
            with self._intake.place():
                request = signal.request()
                whole = body if plain else self._unpacked(body)
                try:
                    if as_json:
                        otlp_json.read(whole, request)
                    else:
                        request.ParseFromString(whole)
                except (DecodeError, ValueError) as error:
                    raise _Answer(400, f"it is no {type(request).__name__}: {error}") from error
                return signal.response(signal.take(self._intake, request))
        except Refused as error:
            raise _Answer(429 if error.busy else 503, str(error), {"Retry-After": str(error.retry_after)}) from error

    def _unpacked(self, body: bytes) -> bytes:
        """What was compressed; never more than a request may have."""
        unpacking = zlib.decompressobj(_GZIP)
        try:
            whole = unpacking.decompress(body, self._max_request + 1)
        except zlib.error as error:
            raise _Answer(400, f"it is not in gzip's format: {error}") from error
        if len(whole) > self._max_request:
            raise self._too_large()
        if not unpacking.eof or unpacking.unused_data:
            raise _Answer(400, "it is not in gzip's format: there is less of it than it says, or more")
        return whole

    def _too_large(self) -> _Answer:
        limit = f"{self._max_request:,} bytes (OTEL_LLM_SERVE_MAX_REQUEST)"
        return _Answer(413, f"a request may have {limit}, unpacked; send fewer at once")

    # --- about itself -------------------------------------------------------------------------------------------------

    async def _metrics(self, request: Request) -> Response:
        try:
            self._require_admission(request)
        except _Answer as error:
            return PlainTextResponse(f"{error}\n", error.status, error.headers)
        page = await run_in_threadpool(self._counters.page, self._gauges)
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
    except OSError as error:
        listening.close()
        why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise NotAllowed(f"cannot listen at {address}: {why}") from error
    return listening


def _response(message: Any, status: int, *, as_json: bool, headers: Mapping[str, str] | None = None) -> Response:
    content = otlp_json.write(message) if as_json else message.SerializeToString()
    return Response(content, status, headers, media_type=_JSON if as_json else _PROTOBUF)


async def _no_such_page(request: Request, error: Exception) -> Response:
    paths = ", ".join(signal.path for signal in SIGNALS)
    return PlainTextResponse(f"there is no {request.url.path} here: {paths}, /metrics and /health are\n", 404)
