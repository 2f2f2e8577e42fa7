"""The files of `collector-config/` in a real Collector: what each promises, by what comes out at its other end."""

from __future__ import annotations

import http.client
import re
import secrets
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from otel_llm.conventions import dialects, semconv
from tests.integration.collector import PATIENCE, Collector, eventually, needs_collector
from tests.integration.otlp_receiver import OtlpReceiver, attributes_of
from tests.integration.ports import free_ports

pytestmark = needs_collector

Request = ExportTraceServiceRequest | ExportLogsServiceRequest | ExportMetricsServiceRequest
PATHS = {
    ExportTraceServiceRequest: "/v1/traces",
    ExportLogsServiceRequest: "/v1/logs",
    ExportMetricsServiceRequest: "/v1/metrics",
}
SOON = "processors::tail_sampling::decision_wait_after_root_received: 50ms"
NOW = "connectors::span_metrics::metrics_flush_interval: 50ms"
EMAIL = "ann@example.com"
KEY = "sk-proj-abcDEF0123456789_abcDEF"


# --- what is sent ----------------------------------------------------------------------------------------------------


def value(of: Any) -> AnyValue:
    match of:
        case bool():
            return AnyValue(bool_value=of)
        case int():
            return AnyValue(int_value=of)
        case float():
            return AnyValue(double_value=of)
        case list():
            made = AnyValue()
            made.array_value.values.extend(map(value, of))
            return made
        case Mapping():
            made = AnyValue()
            made.kvlist_value.values.extend(pairs(of))
            return made
        case _:
            return AnyValue(string_value=of)


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value(of)) for key, of in attributes.items()]


def spans_of(
    *spans: Span, service: str = "shop", resource: Mapping[str, Any] | None = None
) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    made = request.resource_spans.add()
    made.resource.attributes.extend(pairs({"service.name": service, **(resource or {})}))
    made.scope_spans.add().spans.extend(spans)
    return request


def span(
    attributes: Mapping[str, Any] | None = None,
    *,
    failed: bool = True,
    trace: bytes | None = None,
    name: str = "chat gpt-4o-mini",
    kind: str = "SPAN_KIND_CLIENT",
    seconds: float = 1,
) -> Span:
    """A root span that has ended. One that `failed` is kept by the sampling, whatever else is true of it."""
    now = time.time_ns()
    return Span(
        trace_id=trace or secrets.token_bytes(16),
        span_id=secrets.token_bytes(8),
        name=name,
        kind=Span.SpanKind.Value(kind),
        start_time_unix_nano=now - round(seconds * 10**9),
        end_time_unix_nano=now,
        attributes=pairs(attributes or {}),
        status=Status(code=Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET),
    )


def records_of(*records: LogRecord, service: str = "shop") -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    made = request.resource_logs.add()
    made.resource.attributes.extend(pairs({"service.name": service}))
    scope = made.scope_logs.add()
    scope.scope.name = "otel_llm"
    scope.log_records.extend(records)
    return request


def record(attributes: Mapping[str, Any] | None = None, event: str = "otel_llm.usage") -> LogRecord:
    """A call as `otel-llm ship` sends it."""
    return LogRecord(
        time_unix_nano=time.time_ns(),
        trace_id=secrets.token_bytes(16),
        span_id=secrets.token_bytes(8),
        event_name=event,
        attributes=pairs({"row_version": 1, **(attributes or {})}),
    )


def send(to: str, *requests: Request, token: str | None = None, context: ssl.SSLContext | None = None) -> None:
    """Sends each over HTTP; an answer other than "taken" is an `HTTPError`."""
    for request in requests:
        headers = {"Content-Type": "application/x-protobuf"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        post = urllib.request.Request(to + PATHS[type(request)], request.SerializeToString(), headers)
        with urllib.request.urlopen(post, timeout=30, context=context) as answer:
            assert answer.status == 200


@pytest.fixture
def jaeger() -> Iterator[OtlpReceiver]:
    """Where the gateway sends traces."""
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def account() -> Iterator[OtlpReceiver]:
    """Where it sends the account's records."""
    with OtlpReceiver(all_signals=True) as receiver:
        yield receiver


def to(**receivers: OtlpReceiver) -> dict[str, str]:
    """The environment that makes the gateway send to them."""
    environment: dict[str, str] = {}
    for name, receiver in receivers.items():
        environment[f"{name.upper()}_ENDPOINT"] = receiver.endpoint("grpc").removeprefix("http://")
        environment[f"{name.upper()}_INSECURE"] = "true"
    return environment


# --- it starts -------------------------------------------------------------------------------------------------------


def test_the_gateway_starts_and_takes_what_comes_with_nothing_behind_it(tmp_path: Path) -> None:
    (closed,) = free_ports(1)
    nowhere = {
        "JAEGER_ENDPOINT": f"localhost:{closed}",
        "ACCOUNT_ENDPOINT": f"localhost:{closed}",
        "CLICKHOUSE_ENDPOINT": f"tcp://localhost:{closed}",
    }
    # Neither ClickHouse nor its password, neither Jaeger nor `otel-llm serve`.
    with Collector(tmp_path, "gateway.yaml", "account.yaml", "clickhouse.yaml", **nowhere) as gateway:
        send(gateway.endpoint("http/protobuf"), spans_of(span()), records_of(record()))


def test_without_a_place_for_records_the_gateway_says_so_to_their_sender(tmp_path: Path) -> None:
    with Collector(tmp_path, "gateway.yaml") as gateway, pytest.raises(urllib.error.HTTPError) as refused:
        send(gateway.endpoint("http/protobuf"), records_of(record()))
    assert refused.value.code == 404


# --- redaction -------------------------------------------------------------------------------------------------------


def test_whom_the_team_accounts_to_is_not_masked_and_everything_else_is(tmp_path: Path, jaeger: OtlpReceiver) -> None:
    accounting = [
        semconv.MODULE,
        semconv.TAG_PREFIX + "customer",
        semconv.TAG_PREFIX + "api_key",  # by its name too
        *(
            name
            for ours in (semconv.USER_ID, semconv.SESSION_ID, semconv.CONVERSATION_ID, semconv.REQUEST_ID)
            for name in dialects.names(ours)
        ),
    ]
    sent = dict.fromkeys(accounting, EMAIL) | {
        "gen_ai.input.messages": f"write to {EMAIL}, the key is {KEY}",
        "http.request.header.authorization": "anything",
        "gen_ai.request.model": "gpt-4o-mini",
    }
    with Collector(tmp_path, "gateway.yaml", changes=(SOON,), **to(jaeger=jaeger)) as gateway:
        send(gateway.endpoint("http/protobuf"), spans_of(span(sent)))
        eventually(lambda: jaeger.spans, "no span arrives")
    (received,) = jaeger.spans
    assert {name: received.attributes[name] for name in sent} == dict.fromkeys(accounting, EMAIL) | {
        "gen_ai.input.messages": "write to ****, the key is ****",
        "http.request.header.authorization": "****",
        "gen_ai.request.model": "gpt-4o-mini",
    }


def test_an_account_record_passes_as_it_is_but_for_what_was_said(
    tmp_path: Path, jaeger: OtlpReceiver, account: OtlpReceiver
) -> None:
    columns = {
        "user_id": EMAIL,
        "session_id": EMAIL,
        "conversation_id": EMAIL,
        "request_id": EMAIL,
        "module": EMAIL,
        "tags": {"customer": EMAIL, "secret": "a"},
        "units": {"images": 2.5},
        "input_tokens": 2**53 + 1,
        "duration_ms": 0.1,
        "cost_usd": "0.000000001",
        "stream": False,
        "started_at": "2026-11-29T14:00:00.000001Z",
        "finish_reasons": ["stop", "length"],
        "row_version": 3,
    }
    said = {"error_message": f"Incorrect API key: {KEY}", "input_messages": f'[{{"content": "I am {EMAIL}"}}]'}
    sent = record(columns | said)
    environment = to(jaeger=jaeger, account=account) | {"ACCOUNT_TOKEN": "t0ken"}
    with Collector(tmp_path, "gateway.yaml", "account.yaml", **environment) as gateway:
        # What others log goes another way, and not to the account.
        send(gateway.endpoint("http/protobuf"), records_of(record(event="gen_ai.client.inference"), sent))
        eventually(lambda: account.logs, "no record arrives")
    (received,) = account.logs
    assert attributes_of(received.attributes) == columns | {
        "error_message": "Incorrect API key: ****",
        "input_messages": '[{"content": "I am ****"}]',
    }
    assert received.trace_id == sent.trace_id
    assert received.span_id == sent.span_id
    assert received.event_name == "otel_llm.usage"
    assert received.time_unix_nano == sent.time_unix_nano
    assert account.headers[0]["authorization"] == "Bearer t0ken"


# --- sampling --------------------------------------------------------------------------------------------------------


def test_the_sampler_drops_spans_and_never_a_record_of_the_account(
    tmp_path: Path, jaeger: OtlpReceiver, account: OtlpReceiver
) -> None:
    none_of_the_rest = (
        "processors::tail_sampling::policies: [{name: errors, type: status_code, status_code: {status_codes: [ERROR]}}]"
    )
    kept = span()
    records = [record() for _ in range(50)]
    with Collector(
        tmp_path, "gateway.yaml", "account.yaml",
        changes=(SOON, none_of_the_rest), **to(jaeger=jaeger, account=account),
    ) as gateway:  # fmt: skip
        for each in records:
            plain = span(failed=False, trace=each.trace_id)
            send(gateway.endpoint("http/protobuf"), records_of(each), spans_of(plain))
        send(gateway.endpoint("http/protobuf"), spans_of(kept))
        eventually(lambda: len(account.logs) >= 50, "not every record arrives")
        eventually(lambda: jaeger.spans, "no span arrives")
    assert sorted(each.trace_id for each in account.logs) == sorted(each.trace_id for each in records)
    assert [each.trace_id for each in jaeger.spans] == [kept.trace_id.hex()]


def test_a_trace_of_any_size_does_not_fill_the_memory(tmp_path: Path, jaeger: OtlpReceiver) -> None:
    bound = "processors::tail_sampling::maximum_trace_size_bytes: 20000"
    large, small = span({"text": "x" * 30_000}), span({"text": "x" * 3_000})
    with Collector(tmp_path, "gateway.yaml", changes=(SOON, bound), **to(jaeger=jaeger)) as gateway:
        send(gateway.endpoint("http/protobuf"), spans_of(large), spans_of(small))
        eventually(lambda: jaeger.spans, "no span arrives")
    # Stopping decides on whatever is still there.
    assert [each.trace_id for each in jaeger.spans] == [small.trace_id.hex()]


# --- metrics ---------------------------------------------------------------------------------------------------------


def series(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    found = re.findall(rf"^{name}\{{(.*?)\}} (\S+)", text, re.M)
    return [(dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)), float(number)) for labels, number in found]


def test_the_span_metrics_of_a_service_are_one_series_however_many_processes_it_has(
    tmp_path: Path, jaeger: OtlpReceiver
) -> None:
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o-mini", "user.id": "dora"}
    with Collector(tmp_path, "gateway.yaml", changes=(SOON, NOW), **to(jaeger=jaeger)) as gateway:

        def calls() -> list[tuple[dict[str, str], float]]:
            return series(gateway.scrape(), "traces_span_metrics_calls_total")

        for process in range(5):
            resource = {
                "service.instance.id": f"instance-{process}",
                "process.pid": process,
                "host.name": f"host-{process}",
                "k8s.pod.name": f"shop-{process}",
                "telemetry.sdk.version": f"1.{process}",
            }
            send(gateway.endpoint("http/protobuf"), spans_of(span(attributes), resource=resource))
        eventually(lambda: sum(number for _, number in calls()) == 5, "the five calls are not counted")
        ((labels, number),) = calls()
        buckets = series(gateway.scrape(), "traces_span_metrics_duration_seconds_bucket")
        eventually(lambda: len(jaeger.spans) == 5, "not every span arrives")
    assert number == 5
    assert labels.pop("otel_scope_name", None) is not None
    for scope in [label for label in labels if label.startswith("otel_scope_")]:
        del labels[scope]
    assert labels == {
        "job": "shop",
        "service_name": "shop",
        "span_name": "chat gpt-4o-mini",
        "span_kind": "SPAN_KIND_CLIENT",
        "status_code": "STATUS_CODE_ERROR",
        "gen_ai_operation_name": "chat",
        "gen_ai_request_model": "gpt-4o-mini",
    }
    assert {float(labels["le"]) for labels, _ in buckets} >= {0.05, 1, 300, float("inf")}
    # Jaeger still sees which process it was.
    assert {each.resource["service.instance.id"] for each in jaeger.spans} == {f"instance-{n}" for n in range(5)}


def test_a_counter_of_two_processes_is_two_series(tmp_path: Path) -> None:
    """Prometheus adds them up: in one series the one's count would stand for both."""

    def counted(process: int, count: int) -> ExportMetricsServiceRequest:
        request = ExportMetricsServiceRequest()
        made = request.resource_metrics.add()
        made.resource.attributes.extend(pairs({"service.name": "shop", "service.instance.id": f"instance-{process}"}))
        metric = made.scope_metrics.add().metrics.add()
        metric.name = "gen_ai.client.inference.usage.input_tokens"
        metric.unit = "{token}"
        metric.sum.is_monotonic = True
        metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        point = metric.sum.data_points.add()
        point.as_int = count
        point.start_time_unix_nano, point.time_unix_nano = time.time_ns() - 10**9, time.time_ns()
        return request

    name = "gen_ai_client_inference_usage_input_tokens_total"
    with Collector(tmp_path, "gateway.yaml") as gateway:
        send(gateway.endpoint("http/protobuf"), counted(1, 10), counted(2, 20))
        eventually(lambda: len(series(gateway.scrape(), name)) == 2, "there are no two series")
        found = series(gateway.scrape(), name)
    assert sorted((labels["job"], labels["instance"], number) for labels, number in found) == [
        ("shop", "instance-1", 10),
        ("shop", "instance-2", 20),
    ]


# --- other machines --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as tls.yaml expects one."""
    directory = tmp_path_factory.mktemp("certificate") / "tls"
    directory.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
               "-addext", "keyUsage=critical,digitalSignature,keyCertSign", "-days", "2",
               "-keyout", str(directory / "gateway.key"), "-out", str(directory / "gateway.pem")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (directory / "tokens").write_text("first-token\nsecond-token\n")
    return directory


def test_other_machines_need_tls_and_a_token(tmp_path: Path, certificate: Path, jaeger: OtlpReceiver) -> None:
    (tmp_path / "tls").symlink_to(certificate)
    trusted = ssl.create_default_context(cafile=str(certificate / "gateway.pem"))
    with Collector(tmp_path, "gateway.yaml", "tls.yaml", changes=(SOON,), **to(jaeger=jaeger)) as gateway:
        plain = gateway.endpoint("http/protobuf")
        encrypted = plain.replace("http:", "https:")
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            send(plain, spans_of(span()), token="first-token")
        for token in (None, "", "another-token", "first-token second-token"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                send(encrypted, spans_of(span()), token=token, context=trusted)
            assert refused.value.code == 401
        for token in ("first-token", "second-token"):
            send(encrypted, spans_of(span({"token": token})), token=token, context=trusted)
        eventually(lambda: len(jaeger.spans) == 2, "the two spans do not arrive")
    assert {each.attributes["token"] for each in jaeger.spans} == {"first-token", "second-token"}


def test_with_an_authority_for_applications_they_need_its_certificate_too(
    tmp_path: Path, certificate: Path, jaeger: OtlpReceiver
) -> None:
    (tmp_path / "tls").symlink_to(certificate)
    authority = str(certificate / "gateway.pem")
    without, having = (ssl.create_default_context(cafile=authority) for _ in range(2))
    having.load_cert_chain(authority, certificate / "gateway.key")
    with Collector(
        tmp_path, "gateway.yaml", "tls.yaml", changes=(SOON,), COLLECTOR_CLIENT_CA=authority, **to(jaeger=jaeger)
    ) as gateway:
        encrypted = gateway.endpoint("http/protobuf").replace("http:", "https:")
        with pytest.raises(OSError):  # as it is greeted, or (TLS 1.3) as it reads the answer
            send(encrypted, spans_of(span()), token="first-token", context=without)
        send(encrypted, spans_of(span()), token="first-token", context=having)
        eventually(lambda: jaeger.spans, "no span arrives")


@pytest.mark.parametrize("missing", ["gateway.pem", "gateway.key", "tokens"])
def test_without_its_certificate_or_tokens_the_gateway_does_not_start(
    missing: str, tmp_path: Path, certificate: Path
) -> None:
    (tmp_path / "tls").mkdir()
    for file in certificate.iterdir():
        if file.name != missing:
            (tmp_path / "tls" / file.name).write_bytes(file.read_bytes())
    at_once = "extensions::bearertokenauth/applications::retry_on_failure::interval: 1ms"
    gateway = Collector(tmp_path, "gateway.yaml", "tls.yaml", changes=(at_once,))
    gateway.launch()
    assert gateway.wait() != 0
    assert missing in gateway.log()


def test_of_several_gateways_each_sees_whole_traces(tmp_path: Path) -> None:
    traces = [secrets.token_bytes(16) for _ in range(40)]
    with OtlpReceiver(all_signals=True) as one, OtlpReceiver(all_signals=True) as other:
        addresses = [receiver.endpoint("grpc").removeprefix("http://") for receiver in (one, other)]
        environment = {"GATEWAYS": f"[{', '.join(addresses)}]", "GATEWAYS_INSECURE": "true", "GATEWAYS_TOKEN": "t0ken"}
        with Collector(tmp_path, "several-gateways.yaml", **environment) as front:
            for _ in range(5):  # spans of a trace come one by one, as from several processes
                send(front.endpoint("http/protobuf"), *(spans_of(span(trace=trace)) for trace in traces))
            send(front.endpoint("http/protobuf"), *(records_of(record()) for _ in range(20)))
            eventually(lambda: len(one.spans) + len(other.spans) >= 200, "not every span arrives")
            eventually(lambda: len(one.logs) + len(other.logs) >= 20, "not every record arrives")
    by_gateway = [{each.trace_id for each in receiver.spans} for receiver in (one, other)]
    assert by_gateway[0] and by_gateway[1]
    assert not by_gateway[0] & by_gateway[1]
    assert len(one.spans) + len(other.spans) == 200
    assert one.headers[0]["authorization"] == "Bearer t0ken"


def test_what_is_for_a_gateway_that_is_away_waits_for_it(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    soon = "exporters::load_balancing::retry_on_failure: {initial_interval: 10ms, max_interval: 100ms}"
    with OtlpReceiver(all_signals=True) as one:
        gateways = f"[{one.endpoint('grpc').removeprefix('http://')}, '127.0.0.1:{port}']"
        environment = {"GATEWAYS": gateways, "GATEWAYS_INSECURE": "true"}
        front = Collector(tmp_path, "several-gateways.yaml", changes=(soon,), **environment)
        with front:
            sent = [record() for _ in range(60)]
            send(front.endpoint("http/protobuf"), *(records_of(each) for each in sent))
            eventually(lambda: one.logs, "nothing arrives where there is a gateway")
            front.kill()
            front.start()
            with OtlpReceiver(all_signals=True, ports=(port, 0)) as other:
                everything = {each.span_id for each in sent}
                eventually(
                    lambda: everything == {each.span_id for receiver in (one, other) for each in receiver.logs},
                    "not every record arrives",
                )
                assert other.logs


# --- nothing is lost -------------------------------------------------------------------------------------------------


class Sender(threading.Thread):
    """Sends records one by one, each until it is answered for: what `otel-llm ship` does."""

    def __init__(self, gateway: Collector, number: int) -> None:
        super().__init__(daemon=True)
        self._gateway = gateway
        self._records = [record({"request_id": f"{number}"}) for _ in range(40)]
        self.answered: list[bytes] = []

    def run(self) -> None:
        for each in self._records:
            while True:
                try:
                    send(self._gateway.endpoint("http/protobuf"), records_of(each))
                except (urllib.error.URLError, ConnectionError, http.client.HTTPException, TimeoutError):
                    time.sleep(0.01)
                else:
                    self.answered.append(each.span_id)
                    break


def test_a_killed_gateway_and_an_absent_destination_lose_no_call(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    environment = {"ACCOUNT_ENDPOINT": f"127.0.0.1:{port}", "ACCOUNT_INSECURE": "true"}
    quickly = "exporters::otlp_grpc/account::retry_on_failure: {initial_interval: 10ms, max_interval: 100ms}"
    gateway = Collector(tmp_path, "gateway.yaml", "account.yaml", changes=(quickly,), **environment)
    arrived: list[bytes] = []

    def answered() -> int:
        return sum(len(sender.answered) for sender in senders)

    with gateway:
        senders = [Sender(gateway, number) for number in range(4)]
        for sender in senders:
            sender.start()
        eventually(lambda: answered() >= 20, "no record is taken while the destination is away")
        gateway.kill()
        gateway.start()
        with OtlpReceiver(all_signals=True, ports=(port, 0)) as destination:
            eventually(lambda: destination.logs, "nothing arrives once the destination is there")
            eventually(lambda: answered() >= 60, "the records do not go on")
            gateway.kill()  # with batches under way
            arrived += [each.span_id for each in destination.logs]
        gateway.start()
        eventually(lambda: answered() >= 100, "no record is taken while the destination is away")
        with OtlpReceiver(all_signals=True, ports=(port, 0)) as destination:
            for sender in senders:
                sender.join(PATIENCE)
                assert not sender.is_alive()
            everything = {span_id for sender in senders for span_id in sender.answered}
            assert len(everything) == 160
            eventually(
                lambda: everything <= {*arrived, *(each.span_id for each in destination.logs)}, "not every call arrives"
            )
            arrived += [each.span_id for each in destination.logs]
    # At least once; counted once by its trace and span.
    assert set(arrived) == everything


# --- a laptop --------------------------------------------------------------------------------------------------------


def test_the_collector_of_a_laptop_hands_on_what_it_gets(tmp_path: Path, jaeger: OtlpReceiver) -> None:
    sent = span({"gen_ai.request.model": "gpt-4o-mini", "user.id": EMAIL}, failed=False)
    with Collector(tmp_path, "dev.yaml", **to(jaeger=jaeger)) as collector:
        send(collector.endpoint("http/protobuf"), spans_of(sent))
        eventually(lambda: jaeger.spans, "no span arrives")
    (received,) = jaeger.spans
    assert received.trace_id == sent.trace_id.hex()
    assert received.attributes == {"gen_ai.request.model": "gpt-4o-mini", "user.id": EMAIL}
