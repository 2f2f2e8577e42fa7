"""Any OTLP endpoint as a destination: a log record for each call, spans as spans; over gRPC, or HTTP with protobuf.

Certificates, the timeout and the compression come from OpenTelemetry's own variables, those for logs before those for all signals.
So do headers, but only where they are meant for this endpoint: the key for one backend is not sent to another.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.util.re import parse_env_headers

from otel_llm.fleet import usage_log_record
from otel_llm.fleet.ship.destination import Block, Never, NotNow, Receipt, Source
from otel_llm.fleet.wire_row import Row
from otel_llm.support import masking

if TYPE_CHECKING:
    import grpc
    import requests

Protocol = Literal["grpc", "http/protobuf"]

_PATHS: Final[Mapping[Source, str]] = {"llm_usage": "/v1/logs", "spans": "/v1/traces"}
_METHODS: Final[Mapping[Source, str]] = {
    "llm_usage": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "spans": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
}
_PORTS: Final[Mapping[int, Protocol]] = {4317: "grpc", 4318: "http/protobuf"}
_PROTOBUF: Final = "application/x-protobuf"
_MOST_ROWS: Final = 1000
_MOST_BYTES: Final = 2 * 2**20
_LARGEST: Final = 4 * 2**20 - 2**16
"""Bytes of a request: gRPC servers take 4 MiB where nobody has told them otherwise."""
_TIMEOUT: Final = 10.0
_REFUSED: Final = frozenset({400, 413, 422})
"""What HTTP says of a request that is at fault itself. Anything else may be mended at the destination, or in our settings."""
_TOO_LARGE: Final = re.compile("larger than max", re.IGNORECASE)


def variable(name: str, environment: Mapping[str, str]) -> str:
    """An `OTEL_EXPORTER_OTLP_*` variable, as it is for logs; empty where it is not set."""
    for prefix in ("OTEL_EXPORTER_OTLP_LOGS_", "OTEL_EXPORTER_OTLP_"):
        if text := environment.get(prefix + name, "").strip():
            return text
    return ""


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """Where records are sent, and how."""

    url: str
    """With the scheme `http` or `https`, and without the path of a signal."""
    protocol: Protocol

    @classmethod
    def of(cls, url: str, environment: Mapping[str, str]) -> OtlpTarget:
        """The target that a URL names: `http://collector:4318`, `grpcs://gateway:4317`. Raises ValueError for what is none.

        `http` may be gRPC all the same, as in OpenTelemetry's own variables: where the port is that of gRPC, or is neither's and
        `OTEL_EXPORTER_OTLP_PROTOCOL` says so.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        protocol = variable("PROTOCOL", environment)
        if parts.scheme in ("grpc", "grpcs"):
            protocol = "grpc"
            parts = parts._replace(scheme="https" if parts.scheme == "grpcs" else "http")
        elif parts.port in _PORTS or parts.path.strip("/"):
            protocol = _PORTS.get(parts.port or 0, "http/protobuf")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(
                f"{masking.text(url)} is not an endpoint like http://localhost:4318 or grpc://localhost:4317"
            )
        path = parts.path.rstrip("/")
        for signal in _PATHS.values():
            path = path.removesuffix(signal)
        return cls(parts._replace(path=path).geturl(), "grpc" if protocol == "grpc" else "http/protobuf")

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def name(self) -> str:
        """The URL as it is remembered: with the protocol, and without what may be secret in it."""
        scheme = self.parts.scheme if self.protocol != "grpc" else "grpcs" if self.parts.scheme == "https" else "grpc"
        return self.parts._replace(scheme=scheme, netloc=self.parts.netloc.rpartition("@")[2]).geturl()

    def headers(self, own: str | None, environment: Mapping[str, str]) -> Mapping[str, str]:
        """What is sent beside each request: `own`, else those that the environment has for this very host."""
        text = own
        if text is None:
            named = variable("ENDPOINT", environment)
            host = urlsplit(named if "://" in named else f"http://{named}").hostname if named else None
            text = variable("HEADERS", environment) if host in (None, self.parts.hostname) else ""
        return parse_env_headers(text, liberal=True)


class OtlpDestination:
    """Sends blocks to an OTLP receiver: a Collector, `otel-llm serve`, or any backend that keeps log records."""

    most_rows = _MOST_ROWS
    most_bytes = _MOST_BYTES

    def __init__(
        self, target: OtlpTarget, *, headers: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._target = target
        self.name = target.name
        self.timeout = _seconds(variable("TIMEOUT", environment))
        compressed = variable("COMPRESSION", environment).lower() != "none"
        carrier = _Grpc if target.protocol == "grpc" else _Http
        self._carrier: _Grpc | _Http = carrier(
            target, target.headers(headers, environment), _Certificates.of(environment), compressed=compressed
        )

    def send(self, block: Block) -> Receipt:
        """Raises NotNow, Never."""
        message = _spans(block.rows) if block.source == "spans" else usage_log_record.request(block.rows)
        body: bytes = message.SerializeToString()
        if len(body) > _LARGEST and len(block.rows) > 1:
            raise Never(f"{len(body):,} bytes are too many for one request")
        with suppress_instrumentation():
            answer = self._carrier.send(block.source, body, self.timeout)
        try:
            if block.source == "spans":
                of_spans = ExportTraceServiceResponse.FromString(answer).partial_success
                return Receipt(of_spans.rejected_spans, _line(of_spans.error_message) or None)
            of_records = ExportLogsServiceResponse.FromString(answer).partial_success
            return Receipt(of_records.rejected_log_records, _line(of_records.error_message) or None)
        except Exception as error:  # DecodeError
            raise NotNow(f"what {self.name} answers is not OTLP ({_line(error)})") from error

    def close(self) -> None:
        self._carrier.close()


def _spans(rows: Sequence[Row]) -> Any:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    from otel_llm.store.jobs.replaying import span_of

    return encode_spans([span_of(row) for row in rows])


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return _TIMEOUT
    return seconds if 0 < seconds < 3600 else _TIMEOUT


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]


@dataclass(frozen=True, slots=True)
class _Certificates:
    """Files for TLS, each an empty string where there is none."""

    of_authority: str
    own: str
    key: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> _Certificates:
        return cls(*(variable(name, environment) for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")))


class _Http:
    """OTLP over HTTP, with protobuf."""

    def __init__(
        self, target: OtlpTarget, headers: Mapping[str, str], certificates: _Certificates, *, compressed: bool
    ) -> None:
        self._url = target.url
        self._headers = {**headers, "Content-Type": _PROTOBUF} | ({"Content-Encoding": "gzip"} if compressed else {})
        self._certificates = certificates
        self._compressed = compressed
        self._session: requests.Session | None = None

    def send(self, source: Source, body: bytes, timeout: float) -> bytes:
        import requests

        if self._session is None:
            self._session = requests.Session()
        own, key = self._certificates.own, self._certificates.key
        try:
            answer = self._session.post(
                self._url + _PATHS[source],
                data=gzip.compress(body, 1) if self._compressed else body,
                headers=self._headers,
                timeout=timeout,
                # Of each request: what is a session's, variables of requests itself would replace.
                verify=self._certificates.of_authority or None,
                cert=(own, key) if own and key else own or None,
                allow_redirects=False,  # a POST would become a GET
            )
        except (requests.RequestException, OSError) as error:
            raise NotNow(_line(error)) from error
        if answer.status_code in _REFUSED:
            raise Never(_said(answer))
        if not 200 <= answer.status_code < 300:
            raise NotNow(_said(answer), _retry_after(answer.headers.get("Retry-After")))
        if answer.content and not answer.headers.get("Content-Type", "").startswith(_PROTOBUF):
            raise NotNow(f"what it answers is not OTLP, but {_line(answer.headers.get('Content-Type', 'something'))}")
        return answer.content

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def _said(answer: requests.Response) -> str:
    """The status, and what is said of it: in OTLP that is a `google.rpc.Status`."""
    from google.rpc.status_pb2 import Status

    text = ""
    if answer.headers.get("Content-Type", "").startswith(_PROTOBUF):
        try:
            text = Status.FromString(answer.content).message
        except Exception:  # DecodeError
            pass
    elif answer.headers.get("Content-Type", "").startswith(("text/plain", "application/json")):
        text = answer.text
    return _line(f"HTTP {answer.status_code} {answer.reason} {text}")


def _retry_after(text: str | None) -> float | None:
    try:
        return max(float(text or ""), 0.0)
    except ValueError:  # a date: the back-off does as well
        return None


class _Grpc:
    """OTLP over gRPC."""

    def __init__(
        self, target: OtlpTarget, headers: Mapping[str, str], certificates: _Certificates, *, compressed: bool
    ) -> None:
        self._address = target.parts.netloc.rpartition("@")[2]
        if target.parts.port is None:
            self._address += ":443" if target.parts.scheme == "https" else ":4317"
        self._is_secure = target.parts.scheme == "https"
        self._headers = tuple((name.lower(), value) for name, value in headers.items())
        self._certificates = certificates
        self._compressed = compressed
        self._channel: grpc.Channel | None = None
        if find_spec("grpc") is None:
            raise ValueError(f"{target.name} is sent to over gRPC, which needs pip install 'otel-llm[grpc]'")

    def send(self, source: Source, body: bytes, timeout: float) -> bytes:
        import grpc

        if self._channel is None:
            self._channel = self._open()
        call = self._channel.unary_unary(_METHODS[source])
        try:
            answer: bytes = call(body, timeout=timeout, metadata=self._headers)
        except grpc.RpcError as error:
            code, details = error.code(), _line(error.details())
            reason = f"{code.name} {details}"
            if code is grpc.StatusCode.INVALID_ARGUMENT or _TOO_LARGE.search(details):
                raise Never(reason) from error
            raise NotNow(reason, _retry_info(error)) from error
        return answer

    def _open(self) -> grpc.Channel:
        import grpc

        options = [("grpc.primary_user_agent", "otel-llm")]
        compression = grpc.Compression.Gzip if self._compressed else grpc.Compression.NoCompression
        if not self._is_secure:
            return grpc.insecure_channel(self._address, options, compression)
        given = self._certificates
        try:
            credentials = grpc.ssl_channel_credentials(
                *(Path(file).read_bytes() if file else None for file in (given.of_authority, given.key, given.own))
            )
        except OSError as error:
            raise NotNow(f"a certificate cannot be read: {error}") from error
        return grpc.secure_channel(self._address, credentials, options, compression)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def _retry_info(error: Any) -> float | None:
    """The seconds that a server asks to wait, as OTLP has it: `RetryInfo` in the details of the status."""
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    for key, value in error.trailing_metadata() or ():
        try:
            if key == "google.rpc.retryinfo-bin":
                details = [RetryInfo.FromString(value)]
            elif key == "grpc-status-details-bin":
                details = []
                for packed in Status.FromString(value).details:
                    if packed.Is(RetryInfo.DESCRIPTOR):
                        details.append(RetryInfo.FromString(packed.value))
            else:
                continue
        except Exception:  # DecodeError
            continue
        for detail in details:
            return float(detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9)
    return None
