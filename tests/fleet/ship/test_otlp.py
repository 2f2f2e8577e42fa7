"""OTLP endpoints as destinations: which URL means what, what goes with a request, and TLS."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)

from otel_llm.fleet.ship.destination import Block, Never, NotNow
from otel_llm.fleet.ship.otlp import OtlpDestination, OtlpTarget
from otel_llm.fleet.ship.urls import destination_at
from otel_llm.fleet.wire_row import Row
from tests.fleet.rows import bare_call
from tests.integration.otlp_receiver import OtlpReceiver, Protocol


@pytest.mark.parametrize(
    ("url", "environment", "name"),
    [
        ("http://collector:4318", {}, "http://collector:4318"),
        ("http://collector:4318/", {}, "http://collector:4318"),
        ("collector:4318", {}, "http://collector:4318"),
        ("http://collector:4318/v1/logs", {}, "http://collector:4318"),
        ("https://host/otlp/v1/traces", {}, "https://host/otlp"),
        ("http://collector:4317", {}, "grpc://collector:4317"),
        ("https://collector:4317", {}, "grpcs://collector:4317"),
        ("collector:4317", {}, "grpc://collector:4317"),
        ("grpc://collector:9999", {}, "grpc://collector:9999"),
        ("grpcs://collector", {}, "grpcs://collector"),
        ("http://collector:9999", {}, "http://collector:9999"),
        ("http://collector:9999", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc://collector:9999"),
        (
            "http://collector:9999",
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf"},
            "http://collector:9999",
        ),
        ("http://collector:4318", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://collector:4318"),
        ("https://user:secret@collector:4318", {}, "https://collector:4318"),
    ],
)
def test_what_a_url_means(url: str, environment: dict[str, str], name: str) -> None:
    assert OtlpTarget.of(url, environment).name == name


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:4318?token=1", "kafka://x"])
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(ValueError, match="is not an endpoint like"):
        OtlpTarget.of(url, {})


@pytest.mark.parametrize(
    ("own", "environment", "sent"),
    [
        (None, {}, {}),
        ("a=1", {"OTEL_EXPORTER_OTLP_HEADERS": "b=2"}, {"a": "1"}),
        (None, {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x"}, {"authorization": "Bearer x"}),
        (None, {"OTEL_EXPORTER_OTLP_HEADERS": "b=2", "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "c=3"}, {"c": "3"}),
        (None, {"OTEL_EXPORTER_OTLP_HEADERS": "b=2", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector"}, {"b": "2"}),
        (None, {"OTEL_EXPORTER_OTLP_HEADERS": "key=s3cret", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://vendor"}, {}),
    ],
)
def test_a_secret_goes_to_whom_it_is_meant_for(
    own: str | None, environment: dict[str, str], sent: dict[str, str]
) -> None:
    assert OtlpTarget.of("http://collector:4318", {}).headers(own, environment) == sent


def destination(receiver: OtlpReceiver, protocol: Protocol, **options: Any) -> OtlpDestination:
    url = receiver.endpoint(protocol).replace("http", "grpc" if protocol == "grpc" else "http")
    made = destination_at(url, **{"environment": {}} | options)
    assert isinstance(made, OtlpDestination)
    return made


def block(*rows: Row) -> Block:
    return Block("llm_usage", [*rows] or [bare_call(1)])


def test_what_goes_with_a_request(receiver: OtlpReceiver, protocol: Protocol) -> None:
    destination(receiver, protocol, headers="Authorization=Bearer%20x,X-Team=blue").send(block())
    (sent,) = receiver.headers
    assert (sent["authorization"], sent["x-team"]) == ("Bearer x", "blue")
    assert "otel-llm" in sent["user-agent"] or protocol != "grpc"
    if protocol != "grpc":
        assert sent["content-encoding"] == "gzip"
    assert len(receiver.logs) == 1


def test_without_compression(receiver: OtlpReceiver, protocol: Protocol) -> None:
    environment = {"OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "none", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    destination(receiver, protocol, environment=environment).send(block())
    assert "content-encoding" not in receiver.headers[0]
    assert len(receiver.logs) == 1


def test_a_request_is_no_larger_than_receivers_take(receiver: OtlpReceiver, protocol: Protocol) -> None:
    large = "x" * 2_500_000
    rows = [bare_call(number, input_messages=large) for number in (1, 2)]
    with pytest.raises(Never, match="too many for one request"):
        destination(receiver, protocol).send(block(*rows))
    destination(receiver, protocol).send(block(rows[0]))
    assert len(receiver.logs) == 1


def test_it_does_not_wait_for_ever(receiver: OtlpReceiver) -> None:
    receiver.answers.clear()
    slow = destination(receiver, "http/protobuf", environment={"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2"})
    with pytest.raises(NotNow, match="timed out"):
        slow.send(block())
    receiver.answers.set()


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server and a client that it vouches for: `ca.pem`, `server.pem`, `server.key`, and so on."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not there")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # which Python 3.13 wants to see (RFC 5280)
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority", *usage)
    (folder / "names").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        vouch = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(*vouch, "-out", f"{name}.pem", "-days", "2", "-extfile", "names")
    return folder


class _Logs(LogsServiceServicer):
    def __init__(self, received: list[bytes]) -> None:
        self._received = received

    def Export(self, request: ExportLogsServiceRequest, context: grpc.ServicerContext) -> ExportLogsServiceResponse:
        self._received.append(request.SerializeToString())
        return ExportLogsServiceResponse()


@pytest.fixture
def secure(protocol: Protocol, certificates: Path) -> Iterator[tuple[str, list[bytes]]]:
    """The URL of a receiver that demands a client's certificate, and what it has received."""
    received: list[bytes] = []
    if protocol == "grpc":
        from concurrent.futures import ThreadPoolExecutor

        server = grpc.server(ThreadPoolExecutor(1))
        add_LogsServiceServicer_to_server(_Logs(received), server)
        key, own, authority = ((certificates / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(key, own)], authority, require_client_auth=True)
        )
        server.start()
        yield f"grpcs://127.0.0.1:{port}", received
        server.stop(None).wait()
        return

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{http.server_port}", received
        http.shutdown()
        thread.join()


def tls(certificates: Path, *names: str) -> dict[str, str]:
    files = {"CERTIFICATE": "ca.pem", "CLIENT_CERTIFICATE": "client.pem", "CLIENT_KEY": "client.key"}
    return {f"OTEL_EXPORTER_OTLP_{name}": str(certificates / files[name]) for name in names}


def test_both_sides_show_their_certificates(secure: tuple[str, list[bytes]], certificates: Path) -> None:
    url, received = secure
    whole = tls(certificates, "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    destination_at(url, environment=whole).send(block())
    assert len(received) == 1


@pytest.mark.parametrize("names", [(), ("CERTIFICATE",), ("CLIENT_CERTIFICATE", "CLIENT_KEY")])
def test_who_is_not_vouched_for_gets_nothing(
    secure: tuple[str, list[bytes]], certificates: Path, names: tuple[str, ...]
) -> None:
    url, received = secure
    with pytest.raises(NotNow):
        destination_at(url, environment=tls(certificates, *names)).send(block())
    assert received == []


def test_a_certificate_that_is_not_there(protocol: Protocol) -> None:
    environment = {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem"}
    with pytest.raises(NotNow, match="nowhere"):
        destination_at(f"{'grpcs' if protocol == 'grpc' else 'https'}://127.0.0.1:1", environment=environment).send(
            block()
        )
