"""The dashboard's queries in a real Prometheus: over the metrics of instrumented apps, and over series as the Collector names them.

Needs the program `prometheus` (Debian's package of that name); skipped, and said so, where it is not installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.conftest import EXAMPLES, ROOT, LocalOpenAI
from tests.integration.collector import Collector, needs_collector
from tests.integration.otlp_receiver import OtlpReceiver
from tests.integration.ports import free_ports
from tests.integration.test_collector import send, span, spans_of

PROMETHEUS = shutil.which("prometheus")
DIRECTORY = ROOT / "collector-config"
DASHBOARD = DIRECTORY / "grafana" / "dashboards" / "model-calls.json"
ALL = ".*"
PATIENCE = 60

APP = """
import runpy
import sys

for _ in sys.stdin:
    runpy.run_path(sys.argv[1], run_name="__main__")
    runpy.run_path(sys.argv[2])["to_the_end"]()
    print("all called", flush=True)
"""
SERVICES = {"on-current-names": "current", "on-legacy-names": "legacy", "on-both-names": "both"}
"""Services by what their `OTEL_LLM_METRICS` says: a team changes its names service by service."""
NAMESPACE = {"on-both-names": "shop/"}
"""What stands before `service.name` in the label `job` where the service has a `service.namespace`."""


pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="NOT SEEN IN PROMETHEUS: no program `prometheus` on PATH")


# --- a real Prometheus -----------------------------------------------------------------------------------------------

Sample = tuple[dict[str, str], float]


class Prometheus:
    """A Prometheus with `collector-config/prometheus.yaml`, whose targets are `targets` (by job); ended with the `with`."""

    def __init__(self, directory: Path, targets: dict[str, int]) -> None:
        configuration = yaml.safe_load((DIRECTORY / "prometheus.yaml").read_text("utf-8"))
        configuration["global"] = {"scrape_interval": "200ms"}
        known = {job["job_name"]: job for job in configuration["scrape_configs"]}
        configuration["scrape_configs"] = [
            {
                **known.get(name, {"job_name": name}),
                "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
            }
            for name, port in targets.items()
        ]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
        (self._port,) = free_ports(1)
        self._directory = directory

    def __enter__(self) -> Self:
        self._log = (self._directory / "prometheus.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={self._directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._directory / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing in its database is wanted again.
        self._process.kill()
        self._process.wait()
        self._log.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of the API's answer; None while Prometheus is not up. An error in a query fails the test."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it still reads its database
                return None
            pytest.fail(f"{json.load(error)['error']}\n{parameters}")
        except (urllib.error.URLError, ConnectionError):
            if self._process.poll() is not None:
                self._log.seek(0)
                pytest.fail(f"Prometheus ended with {self._process.returncode}:\n{self._log.read()[-4000:]}")
            return None

    def ask(self, query: str) -> list[Sample]:
        """The instant vector that the query gives now, without what is no number."""
        samples = [
            (sample["metric"], float(sample["value"][1]))
            for sample in (self.get("query", query=query) or {"result": ()})["result"]
        ]
        return [(labels, value) for labels, value in samples if value == value]

    def wait_for(self, query: str, condition: Callable[[list[Sample]], bool]) -> list[Sample]:
        deadline = time.monotonic() + PATIENCE
        while not condition(samples := self.ask(query)):
            assert time.monotonic() < deadline, f"{query}\ngives {samples}"
            time.sleep(0.05)
        return samples


# --- the dashboard ---------------------------------------------------------------------------------------------------


def panels() -> Iterator[tuple[str, str]]:
    """Title and query of each."""
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def filled(query: str, service: str = ALL, model: str = ALL) -> str:
    """The query as Grafana sends it."""
    for variable, value in (("$__rate_interval", "1m"), ("$service", service), ("$model", model)):
        query = query.replace(variable, value)
    assert "$" not in query
    return query


def since_the_start(query: str) -> str:
    """The same over the counters themselves: what was counted in all, where a rate is an estimate of the last minute."""
    text, count = re.subn(r"rate\((.+?)\[1m\]\)", r"\1", query)
    assert count
    return text


def by(label: str, samples: list[Sample]) -> dict[str, float]:
    found = {labels.get(label, ""): value for labels, value in samples}
    assert len(found) == len(samples)
    return found


def is_in_all(number: float, samples: list[Sample]) -> bool:
    return [value for _, value in samples] == [number]


def all_positive(samples: list[Sample]) -> bool:
    return bool(samples) and all(value > 0 for _, value in samples)


# --- the metrics that applications send ------------------------------------------------------------------------------

TOKENS = ("Input tokens", "Output tokens")


def test_the_panels_on_client_metrics_show_what_was_billed(
    openai_server: LocalOpenAI, start_instrumented: Any, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.exporter.prometheus")
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    apps = {
        service: start_instrumented(
            APP,
            str(EXAMPLES / "chat.py"),
            str(EXAMPLES / "streaming.py"),
            env={
                "OTEL_SERVICE_NAME": service,
                "OTEL_METRICS_EXPORTER": "prometheus",
                "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(ports[service]),
                "OTEL_LLM_METRICS": names,
                "OPENAI_ORG_ID": service,  # the ledger has it, as a header
            },
        )
        for service, names in SERVICES.items()
    }

    def call_all() -> None:
        for app in apps.values():
            app.stdin.write("again\n")
            app.stdin.flush()
        for app in apps.values():
            while (line := app.stdout.readline()) != "all called\n":
                assert line, app.stderr.read()

    def billed(service: str) -> tuple[dict[str, float], dict[str, float]]:
        """Input and output tokens by model."""
        tokens: tuple[dict[str, float], dict[str, float]] = defaultdict(float), defaultdict(float)
        for call in openai_server.ledger:
            if service in (ALL, call.headers["openai-organization"]):
                for total, count in zip(tokens, (call.input_tokens, call.output_tokens), strict=True):
                    if count is not None:
                        total[str(call.model)] += count
        return tokens

    queries = {title: query for title, query in panels() if "gen_ai_client_" in query}
    assert list(queries) == [*TOKENS, "Time to first chunk, 95th percentile"]
    with Prometheus(tmp_path, {NAMESPACE.get(name, "") + name: port for name, port in ports.items()}) as prometheus:

        def all_scraped(service: str) -> None:
            for title, tokens in zip(TOKENS, billed(service), strict=True):
                query = since_the_start(filled(queries[title], service))
                prometheus.wait_for(query, partial(shows, tokens))

        call_all()
        # A counter's first value is no increase: something has to be there before.
        for service in SERVICES:
            all_scraped(service)
        call_all()
        for service in (*SERVICES, ALL):
            all_scraped(service)
            for title, tokens in zip(TOKENS, billed(service), strict=True):
                rates = prometheus.wait_for(filled(queries[title], service), all_positive)
                assert by("gen_ai_request_model", rates).keys() == tokens.keys()
            query = filled(queries["Time to first chunk, 95th percentile"], service)
            seconds = by("gen_ai_request_model", prometheus.wait_for(query, all_positive))
            assert seconds.keys() == {"gpt-4o-mini"}  # the one that was streamed
            assert seconds["gpt-4o-mini"] < PATIENCE


def shows(tokens: dict[str, float], samples: list[Sample]) -> bool:
    return by("gen_ai_request_model", samples) == tokens


# --- the metrics that the gateway makes of spans, and its own --------------------------------------------------------

MODEL_CALL = {
    "service_name": "weather",
    "span_kind": "SPAN_KIND_CLIENT",
    "status_code": "STATUS_CODE_UNSET",
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "openai",
    "gen_ai_request_model": "gpt-4o-mini",
    "gen_ai_response_model": "gpt-4o-mini-2024-07-18",
    "otel_llm_module": "travel",
}
FAILED = {**MODEL_CALL, "status_code": "STATUS_CODE_ERROR", "error_type": "RateLimitError"}
SPANS = [
    ("chat gpt-4o-mini", MODEL_CALL, 6, 0.75),
    ("chat gpt-4o-mini", FAILED, 2, 0.01),
    (
        "execute_tool weather",
        {
            "service_name": "weather",
            "span_kind": "SPAN_KIND_INTERNAL",
            "status_code": "STATUS_CODE_UNSET",
            "gen_ai_operation_name": "execute_tool",
            "gen_ai_tool_name": "weather",
        },
        3,
        0.2,
    ),
    (
        "invoke_agent weather-agent",
        {
            "service_name": "weather",
            "span_kind": "SPAN_KIND_INTERNAL",
            "status_code": "STATUS_CODE_UNSET",
            "gen_ai_operation_name": "invoke_agent",
            "gen_ai_provider_name": "openai",
        },
        4,
        1.5,
    ),
]
"""Name, labels, how often, seconds each: as the `span_metrics` connector with the dimensions of gateway.yaml tells them apart."""
SPELLINGS = ("", "_total", "__spans__total")
"""How versions of the Collector end the names of its own counters."""
EXPECTED: dict[str, dict[tuple[str, ...], float]] = {
    "Calls": {("openai", "gpt-4o-mini"): 8},
    "Failing calls": {("gpt-4o-mini",): 0.25},
    "Errors by type": {("RateLimitError", "openai"): 2},
    "Calls by module": {("travel",): 8},
    "Tool calls": {("weather",): 3},
    "Tool duration, 95th percentile": {("weather",): 0.2425},
    "Agent runs, 95th percentile": {("invoke_agent weather-agent",): 1.95},
    "Duration, 95th percentile": {("gpt-4o-mini",): 0.9667},
    "Duration, median": {("gpt-4o-mini",): 0.6667},
    "Spans that wait": {("clickhouse",): 5, ("otlp_grpc/jaeger",): 7},
    "Spans in and out": {(): 3 * 11, ("0",): 10, ("1",): 10, ("2",): 10},
    "Refused spans": {(): 3 * 2, ("0",): 1, ("1",): 1, ("2",): 1},
}
"""By panel: the values of the labels that it groups by, and the sum since the start."""


def series(name: str, labels: dict[str, str], value: float) -> str:
    return f"{name}{{{','.join(f'{label}={json.dumps(text)}' for label, text in labels.items())}}} {value}\n"


def span_metrics(times: int) -> str:
    """What the Collector's `prometheus` exporter shows for SPANS, each of them `times` as often."""
    connector = yaml.safe_load((DIRECTORY / "gateway.yaml").read_text("utf-8"))["connectors"]["span_metrics"]
    prefix = connector["namespace"].replace(".", "_")
    bounds = [
        float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))
        for text in connector["histogram"]["explicit"]["buckets"]
    ]
    labels_known = {"service_name", "span_name", "span_kind", "status_code"}
    labels_known |= {dimension["name"].replace(".", "_") for dimension in connector["dimensions"]}
    text = f"# TYPE {prefix}_calls_total counter\n# TYPE {prefix}_duration_seconds histogram\n"
    for name, known, count, seconds in SPANS:
        assert known.keys() <= labels_known
        labels = {"job": known["service_name"], "span_name": name, **known}
        text += series(f"{prefix}_calls_total", labels, count * times)
        for bound in (*bounds, "+Inf"):
            inside = count * times if bound == "+Inf" or seconds <= float(bound) else 0
            text += series(f"{prefix}_duration_seconds_bucket", {**labels, "le": str(bound)}, inside)
        text += series(f"{prefix}_duration_seconds_sum", labels, count * times * seconds)
        text += series(f"{prefix}_duration_seconds_count", labels, count * times)
    return text


def own_metrics(times: int) -> str:
    """What the Collector shows of itself, in each spelling at once."""
    text = series("otelcol_exporter_queue_size", {"exporter": "clickhouse"}, 5)
    text += series("otelcol_exporter_queue_size__batches_", {"exporter": "otlp_grpc/jaeger"}, 7)
    for number, ending in enumerate(map(str, SPELLINGS)):
        for name, label, count in (
            ("otelcol_receiver_accepted_spans", "receiver", 11),
            ("otelcol_receiver_refused_spans", "receiver", 2),
            ("otelcol_exporter_sent_spans", "exporter", 10),
            ("otelcol_exporter_enqueue_failed_spans", "exporter", 1),
        ):
            text += series(name + ending, {label: str(number)}, count * times)
    return text


def told_apart(sample: Sample) -> tuple[tuple[str, ...], float]:
    """The values of the labels, in the order of their names, and the value."""
    labels, value = sample
    return tuple(labels[name] for name in sorted(labels)), value


class Shown:
    """A text on a free port of loopback."""

    def __init__(self, text: str) -> None:
        shown = self
        self.text = text

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = shown.text.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_the_panels_on_the_gateways_metrics_have_data(tmp_path: Path) -> None:
    queries = [(title, filled(query)) for title, query in panels() if "gen_ai_client_" not in query]
    assert {title for title, _ in queries} == EXPECTED.keys()
    with (
        Shown(span_metrics(1)) as spans,
        Shown(own_metrics(1)) as own,
        Prometheus(tmp_path, {"model-calls": spans.port, "gateway": own.port}) as prometheus,
    ):
        prometheus.wait_for("traces_span_metrics_calls_total", bool)
        prometheus.wait_for("otelcol_receiver_accepted_spans", bool)
        spans.text, own.text = span_metrics(2), own_metrics(2)
        found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        for title, query in queries:
            rates = dict(map(told_apart, prometheus.wait_for(query, all_positive)))
            in_all = dict(map(told_apart, prometheus.ask(since_the_start(query) if "rate(" in query else query)))
            assert rates.keys() == in_all.keys(), title
            found[title] |= in_all

        is_ratio = re.compile(r"histogram_quantile|\) / sum")
        doubled = {title for title, query in queries if "rate(" in query and not is_ratio.search(query)}
        for title, expected in EXPECTED.items():
            wanted = {key: value * (2 if title in doubled else 1) for key, value in expected.items()}
            assert found[title] == pytest.approx(wanted, abs=1e-4), title

        for variable in json.loads(DASHBOARD.read_text("utf-8"))["templating"]["list"]:
            metric, label = re.findall(r"label_values\((\w+), (\w+)\)", variable["definition"])[0]
            assert prometheus.get(f"label/{label}/values", **{"match[]": metric}) == [
                {"service_name": "weather", "gen_ai_request_model": "gpt-4o-mini"}[label]
            ]


@needs_collector
def test_a_real_gateway_gives_the_panels_what_they_ask_for(tmp_path: Path) -> None:
    """The same spans, as spans: what a Collector makes of them is what stands above."""
    dimensions = yaml.safe_load((DIRECTORY / "gateway.yaml").read_text("utf-8"))["connectors"]["span_metrics"][
        "dimensions"
    ]
    attributes = {dimension["name"].replace(".", "_"): dimension["name"] for dimension in dimensions}
    made = [
        span(
            {attributes[label]: value for label, value in labels.items() if label in attributes},
            name=name,
            kind=labels["span_kind"],
            seconds=seconds,
            failed=labels["status_code"] == "STATUS_CODE_ERROR",
        )
        for name, labels, count, seconds in SPANS
        for _ in range(count)
    ]
    queries = [(title, filled(query)) for title, query in panels() if "gen_ai_client_" not in query]
    flush = "connectors::span_metrics::metrics_flush_interval: 100ms"
    with OtlpReceiver() as jaeger:
        environment = {"JAEGER_ENDPOINT": jaeger.endpoint("grpc").removeprefix("http://"), "JAEGER_INSECURE": "true"}
        with (
            Collector(tmp_path / "gateway", "gateway.yaml", changes=(flush,), **environment) as gateway,
            Prometheus(tmp_path, {"model-calls": gateway.metrics_port, "gateway": gateway.own_port}) as prometheus,
        ):
            received, sent = (query for title, query in queries if title == "Spans in and out")
            for times in (1, 2):  # a counter's first value is no increase
                send(gateway.endpoint("http/protobuf"), spans_of(*made, service="weather"))
                for counter in ("sum(traces_span_metrics_calls_total)", since_the_start(received)):
                    prometheus.wait_for(counter, partial(is_in_all, len(made) * times))
            for title, query in queries:
                if "traces_span_metrics" in query:
                    prometheus.wait_for(query, all_positive)
                    found = dict(map(told_apart, prometheus.ask(since_the_start(query))))
                    ratio = re.search(r"histogram_quantile|\) / sum", query)
                    wanted = {key: value * (1 if ratio else 2) for key, value in EXPECTED[title].items()}
                    assert found == pytest.approx(wanted, abs=1e-4), title
            # The Collector's own, by the names that this version has.
            prometheus.wait_for(received, all_positive)
            prometheus.wait_for(sent.replace("[1m]", "[5m]"), bool)
            (waiting,) = (query for title, query in queries if title == "Spans that wait")
            assert [labels["exporter"] for labels, _ in prometheus.wait_for(waiting, bool)] == ["otlp_grpc/jaeger"]
