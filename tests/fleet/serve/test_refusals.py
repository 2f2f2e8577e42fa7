"""What cannot be taken gets an answer that says why, and whether to send it again. Nothing is lost, and the receiver goes on."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_llm.fleet.serve.admission import Address
from otel_llm.fleet.serve.counters import Counters
from otel_llm.fleet.serve.intake import MAX_AT_ONCE, Intake, Refused
from otel_llm.store import Store
from tests.fleet.serve.conftest import Server, logs, row, span, traces

Serve = Callable[..., Server]
PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
SPANS = traces(span(1)).SerializeToString()
METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def post(server: Server, content: bytes, headers: dict[str, str], path: str = "/v1/traces") -> httpx.Response:
    return httpx.post(server.url(path), content=content, headers=headers)


@contextmanager
def refused(server: Server, content: bytes, method: str = METHOD, **options: Any) -> Iterator[grpc.RpcError]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(content, **options)
    yield caught.value


def still_works(server: Server) -> None:
    assert post(server, SPANS, PROTOBUF).status_code == 200
    assert len(server.rows("span_id")) == 1


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"\xff\xff\xff", PROTOBUF, 400, "it is no ExportTraceServiceRequest"),
        (SPANS[:-7], PROTOBUF, 400, "it is no ExportTraceServiceRequest"),
        (b"{", JSON, 400, "it is no ExportTraceServiceRequest"),
        (b"[]", JSON, 400, "no JSON object"),
        (b'{"resourceSpans": 7}', JSON, 400, "it is no ExportTraceServiceRequest"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}', JSON, 400, "traceId is not hexadecimal"),
        (b"[" * 100_000, JSON, 400, "it is no ExportTraceServiceRequest"),
        (SPANS, {"Content-Type": "text/plain"}, 415, "text/plain"),
        (SPANS, PROTOBUF | {"Content-Encoding": "br"}, 415, "br"),
        (SPANS, PROTOBUF | {"Content-Encoding": "gzip"}, 400, "gzip"),
        (gzip.compress(SPANS)[:-4], PROTOBUF | {"Content-Encoding": "gzip"}, 400, "gzip"),
        (gzip.compress(SPANS) + b"more", PROTOBUF | {"Content-Encoding": "gzip"}, 400, "gzip"),
        (bytes(2**20 + 1), PROTOBUF, 413, "OTEL_LLM_SERVE_MAX_REQUEST"),
        (gzip.compress(bytes(2**26)), PROTOBUF | {"Content-Encoding": "gzip"}, 413, "OTEL_LLM_SERVE_MAX_REQUEST"),
    ],
)  # fmt: skip
def test_what_is_no_request(content: bytes, headers: dict[str, str], status: int, said: str, server: Server) -> None:
    answer = post(server, content, headers)
    message = answer.json()["message"] if headers == JSON else Status.FromString(answer.content).message
    assert (answer.status_code, said in message, "\n" in message) == (status, True, False), message
    assert "retry-after" not in answer.headers
    still_works(server)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all that it refuses: it goes on."""
    started = Server(tmp_path_factory.mktemp("store") / "usage.duckdb", env={"OTEL_LLM_SERVE_MAX_REQUEST": "1MB"})
    yield started
    started.kill()


def test_a_body_without_a_length_is_not_read_for_ever(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield bytes(2**20)

    try:
        assert httpx.post(server.url("/v1/traces"), content=endless(), headers=PROTOBUF).status_code == 413
    except httpx.WriteError:
        pass  # it was hung up on, in the middle of its sentence
    still_works(server)


def test_what_is_no_request_over_grpc(server: Server) -> None:
    with refused(server, b"\xff\xff\xff") as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "it is no ExportTraceServiceRequest" in error.details()
    for compression in (None, grpc.Compression.Gzip):
        with refused(server, bytes(2**26), compression=compression) as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "grpc-status-details-bin" not in dict(error.trailing_metadata() or ())  # so nobody sends it again
    with refused(server, b"", "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export") as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    still_works(server)


def test_metrics_have_no_place_here(server: Server) -> None:
    answer = post(server, b"", PROTOBUF, "/v1/metrics")
    assert (answer.status_code, "/v1/traces, /v1/logs" in answer.text) == (404, True)
    assert httpx.get(server.url("/v1/traces")).status_code == 405


def test_parts_that_can_never_be_taken_are_told_and_the_rest_is_stored(serve: Serve) -> None:
    server = serve()
    bad = [span(2), span(3), span(4)]
    bad[0].trace_id = bytes(16)
    bad[1].span_id = b"short"
    bad[2].start_time_unix_nano = bad[2].end_time_unix_nano = 0
    answer = post(server, traces(span(1), *bad).SerializeToString(), PROTOBUF)
    told = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert told.rejected_spans == 3
    assert told.error_message == "3 spans could not be taken: it has no trace id of 16 bytes, and 2 other reasons"
    request = logs(row(5000), row(6000, input_tokens=None))
    records = request.resource_logs[0].scope_logs[0].log_records
    records[1].attributes.add(key="input_tokens").value.string_value = "many"
    records.add(event_name="gen_ai.client.inference.operation.details")
    answer = post(server, request.SerializeToString(), PROTOBUF, "/v1/logs")
    told_of_logs = ExportLogsServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, told_of_logs.rejected_log_records) == (200, 2)
    assert told_of_logs.error_message.startswith("2 log records could not be taken: its input_tokens is not BIGINT")
    assert server.rows("span_id") == [(f"{1:016x}",), (f"{5000:016x}",)]
    page = httpx.get(server.url("/metrics")).text
    assert 'item="spans",outcome="rejected"} 3\n' in page
    assert 'item="account_records",outcome="rejected"} 2\n' in page


# --- not now ----------------------------------------------------------------------------------------------------------


def test_merges_that_do_not_keep_up_slow_the_senders_down(serve: Serve) -> None:
    server = serve(env={"OTEL_LLM_SERVE_MAX_WAITING": "1", "OTEL_LLM_FLUSH_INTERVAL": "1h"})
    assert post(server, SPANS, PROTOBUF).status_code == 200
    answer = post(server, SPANS, PROTOBUF)
    while answer.status_code == 200:  # how much waits is looked at once a second
        answer = post(server, SPANS, PROTOBUF)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    with refused(server, SPANS) as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        (packed,) = (value for name, value in error.trailing_metadata() if name == "grpc-status-details-bin")
        retry = RetryInfo()
        assert Status.FromString(packed).details[0].Unpack(retry) and retry.retry_delay.seconds > 0
    assert len(server.rows("span_id")) == 1  # who reads has merged


def test_a_real_exporter_sends_again_what_was_put_off(serve: Serve, tmp_path: Path) -> None:
    """The journal cannot be written for a while. The exporter gets told when to come again, and does."""
    server = serve()
    journal = tmp_path / "usage.duckdb.journal"
    journal.write_text("in the way")
    answer = post(server, SPANS, PROTOBUF)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "cannot be written" in Status.FromString(answer.content).message
    with refused(server, SPANS) as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(GrpcExporter(endpoint=f"http://127.0.0.1:{server.grpc}", timeout=60))
    )
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    provider.get_tracer("t").start_span("chat m", attributes=chat).end()
    import threading

    freeing = threading.Timer(1, journal.unlink)
    freeing.start()
    provider.shutdown()
    freeing.join()
    assert server.rows("request_model") == [("m",)]


def test_only_so_many_are_worked_on_at_once(tmp_path: Path) -> None:
    intake = Intake(Store(tmp_path / "usage.duckdb"), Counters(), only_genai=False, max_waiting=2**30)
    from contextlib import ExitStack

    with ExitStack() as held:
        for _ in range(MAX_AT_ONCE):
            held.enter_context(intake.place())
        with pytest.raises(Refused) as caught, intake.place():
            pass
        assert caught.value.busy and caught.value.retry_after > 0
    with intake.place():
        pass


# --- who may send -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [("--grpc", "0.0.0.0:0"), ("--http", "0.0.0.0:0"), ("--grpc", "[::]:0")])
def test_beyond_loopback_something_must_be_shown(where: tuple[str, str], serve: Serve) -> None:
    server = serve(*where)
    assert (server.said, server.process.returncode, server.error.count("\n")) == ("", 2, 1)
    assert "can be reached from other machines: set OTEL_LLM_SERVE_TOKEN" in server.error
    assert not server.store.with_name("usage.duckdb.journal").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--grpc", "4317"), "is not an address like 127.0.0.1:4317"),
        (("--http", "localhost:99999"), "is not an address like 127.0.0.1:4317"),
        (("--grpc", "none", "--http", "none"), "leave nothing to listen at"),
        (("--tls-cert", "c.pem"), "TLS needs both --tls-cert and --tls-key"),
        (("--tls-cert", "c.pem", "--tls-key", "k.pem"), "there is no file c.pem"),
        (("--token-file", "missing"), "the token cannot be read from missing"),
        (("--store", "/dev/null/x"), "/dev/null"),
    ],
)
def test_what_cannot_be_served_is_one_line(options: tuple[str, ...], said: str, serve: Serve) -> None:
    server = serve(*options)
    assert (server.said, server.process.returncode, server.error.count("\n")) == ("", 2, 1), server.error
    assert said in server.error


def test_a_port_in_use_is_one_line(serve: Serve) -> None:
    server = serve()
    for option, port in (("--grpc", server.grpc), ("--http", server.http)):
        other = serve(option, f"127.0.0.1:{port}")
        assert (other.said, other.process.returncode, other.error.count("\n")) == ("", 2, 1), other.error
        assert f"cannot listen at 127.0.0.1:{port}: it is in use" in other.error
    still_works(server)


def test_a_token(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    for server in (
        serve("--http", "0.0.0.0:0", "--grpc", "0.0.0.0:0", env={"OTEL_LLM_SERVE_TOKEN": "s3cret"}),
        serve("--token-file", str(file)),
    ):
        for given in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "s3cret"},
            {"Authorization": "Basic s3cret"},
        ):
            answer = post(server, SPANS, PROTOBUF | given)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert httpx.get(server.url("/metrics"), headers=given).status_code == 401
            metadata = tuple((name.lower(), value) for name, value in given.items())
            with refused(server, SPANS, metadata=metadata) as error:
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert httpx.get(server.url("/health")).status_code == 200
        shown = {"Authorization": "Bearer s3cret"}
        assert httpx.get(server.url("/metrics"), headers=shown).status_code == 200
        assert post(server, SPANS, PROTOBUF | shown).status_code == 200
        exporter = GrpcExporter(endpoint=f"http://127.0.0.1:{server.grpc}", headers={"authorization": "Bearer s3cret"})
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        from tests.fleet.serve.test_receiving import CHAT

        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("t").start_span("chat", attributes=CHAT).end()
        provider.shutdown()
    assert len(server.rows("span_id")) == 3
    assert "s3cret" not in server.stop()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and certificates of a server and a client that it has signed."""
    folder = tmp_path_factory.mktemp("pki")

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    run(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=ca",
        "-addext",  # Python 3.13 wants to see what it may be used for (RFC 5280)
        "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    )
    (folder / "names").write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    )
    for name in ("server", "client"):
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
        )
        run(
            *[
                "x509",
                "-req",
                "-days",
                "2",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-extfile",
                "names",
            ],
            "-in",
            f"{name}.csr",
            "-out",
            f"{name}.pem",
        )
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(mutual: bool, pki: Path, serve: Serve) -> None:
    options = ["--tls-cert", str(pki / "server.pem"), "--tls-key", str(pki / "server.key")]
    if mutual:
        options += ["--client-ca", str(pki / "ca.pem"), "--http", "0.0.0.0:0", "--grpc", "0.0.0.0:0"]
    server = serve(*options)
    assert server.said, server.error
    import ssl

    def post_over_tls(*certificate: str) -> int:
        context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
        if certificate:
            context.load_cert_chain(*(str(pki / name) for name in certificate))
        return httpx.post(
            server.url("/v1/traces", "https"), content=SPANS, headers=PROTOBUF, verify=context
        ).status_code

    def export_over_tls(*certificate: str) -> None:
        key, chain = ((pki / name).read_bytes() for name in certificate) if certificate else (None, None)
        credentials = grpc.ssl_channel_credentials((pki / "ca.pem").read_bytes(), key, chain)
        with grpc.secure_channel(f"localhost:{server.grpc}", credentials) as channel:
            channel.unary_unary(METHOD)(SPANS, timeout=30)

    assert post_over_tls("client.pem", "client.key") == 200
    export_over_tls("client.key", "client.pem")
    if mutual:
        with pytest.raises(httpx.HTTPError):
            post_over_tls()
        with pytest.raises(grpc.RpcError):
            export_over_tls()
    else:
        assert post_over_tls() == 200
        export_over_tls()
    with pytest.raises(httpx.HTTPError):
        post(server, SPANS, PROTOBUF)
    assert len(server.rows("span_id")) == 1


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True), ("127.8.8.8:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False),
        ("[::]:1", False), ("10.0.0.1:1", False), ("example.com:1", False), ("localhost.example.com:1", False),
        ("[::ffff:10.0.0.1]:1", False),
    ],
)  # fmt: skip
def test_what_is_loopback(text: str, loopback: bool) -> None:
    assert Address.parse(text).is_loopback is loopback
    assert str(Address.parse(text)) == text


def test_a_store_that_cannot_be_written_is_one_line(serve: Serve, tmp_path: Path) -> None:
    """An app keeps its account elsewhere then; who answers for others must not."""
    (tmp_path / "usage.duckdb").mkdir()
    server = serve()
    assert (server.said, server.process.returncode, server.error.count("\n")) == ("", 2, 1), server.error
    assert "usage.duckdb" in server.error
