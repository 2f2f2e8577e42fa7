"""The files in `collector-config/`: every component and setting is known by its current name, is used, and the parts agree.

`OTELCOL_BIN=/path/to/otelcol-contrib` and `JAEGER_BIN=/path/to/jaeger` have the real programs judge the files as well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_llm.conventions import dialects, semconv
from tests.collector_schema import COLLECTOR, COMPONENTS, JAEGER, unknown_keys

DIRECTORY = Path(__file__).resolve().parents[1] / "collector-config"
ADDED = ("account.yaml", "clickhouse.yaml", "tls.yaml")
"""What is added to gateway.yaml, in any combination."""
STARTED = ("dev.yaml", "gateway.yaml", "several-gateways.yaml", "jaeger.yaml")
"""What a program is started with by itself."""
SCHEMAS = {name: JAEGER if name == "jaeger.yaml" else COLLECTOR for name in (*STARTED, *ADDED)}
NAMES = sorted(SCHEMAS)
TOGETHER = [(name,) for name in STARTED] + [
    ("gateway.yaml", *some) for number in (1, 2, 3) for some in combinations(ADDED, number)
]
"""Every set of files that a program is started with."""
DASHBOARDS = sorted((DIRECTORY / "grafana" / "dashboards").glob("*.json"))
OF_CALLS, OF_ACCOUNT = (DIRECTORY / "grafana" / "dashboards" / name for name in ("model-calls.json", "account.json"))
NO_LIMIT = 2**63 - 1


def load(*names: str | Path) -> dict[str, Any]:
    """A file; several as the Collector takes them: a later one wins, setting by setting, and a list is replaced as a whole."""
    whole: dict[str, Any] = {}
    for name in names:
        loaded = yaml.safe_load((DIRECTORY / name).read_text(encoding="utf-8"))
        assert isinstance(loaded, dict)
        lay_over(whole, loaded)
    return whole


def lay_over(whole: dict[str, Any], change: dict[str, Any]) -> None:
    for key, setting in change.items():
        if isinstance(setting, dict) and isinstance(whole.get(key), dict):
            lay_over(whole[key], setting)
        else:
            whole[key] = setting


def set_from(value: str, environment: dict[str, str]) -> str:
    """`value` as the Collector reads it: `${env:NAME:-default}` from `environment`."""
    return re.sub(r"\$\{env:(\w+)(?::-([^}]*))?\}", lambda match: environment.get(match[1], match[2] or ""), value)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def test_each_file_has_a_schema() -> None:
    others = {"compose.yaml", "prometheus.yaml", "builder.yaml"}
    assert {path.name for path in DIRECTORY.glob("*.yaml")} == others | set(SCHEMAS)


@pytest.mark.parametrize("name", NAMES)
def test_every_component_and_every_setting_is_known(name: str) -> None:
    assert unknown_keys(load(name), SCHEMAS[name]) == []


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("exporters: {otlp: {endpoint: x}}", "exporters.otlp"),
        ("exporters: {otlphttp/jaeger: {endpoint: x}}", "exporters.otlphttp/jaeger"),
        ("exporters: {otlp_grpc: {sending_queue: {batch: {timeout: 1s}}}}", "exporters.otlp_grpc.sending_queue.batch.timeout"),
        ("processors: {batch: {}}", "processors.batch"),
        ("processors: {tail_sampling: {policies: [{latency: {ms: 1}}]}}", "processors.tail_sampling.policies[0].latency.ms"),
        ("processors: {tail_sampling: {policies: {name: a}}}", "processors.tail_sampling.policies"),
        ("connectors: {spanmetrics: {}}", "connectors.spanmetrics"),
        ("connectors: {span_metrics: {histogram: s}}", "connectors.span_metrics.histogram"),
        ("pipelines: {}", "pipelines"),
    ],
)  # fmt: skip
def test_the_schema_finds_what_is_unknown(text: str, unknown: str) -> None:
    assert unknown_keys(yaml.safe_load(text), COLLECTOR) == [unknown]


def used_by_pipelines(configuration: dict[str, Any]) -> dict[str, set[str]]:
    """The components that pipelines and the service name, by section."""
    connectors = set(configuration.get("connectors") or {})
    used: dict[str, set[str]] = {section: set() for section in COMPONENTS}
    used["extensions"].update(configuration["service"].get("extensions", ()))
    ends: dict[str, set[str]] = {"receivers": set(), "exporters": set()}
    assert configuration["service"]["pipelines"]
    for pipeline in configuration["service"]["pipelines"].values():
        assert pipeline["receivers"]
        assert pipeline["exporters"]
        for section in ("receivers", "processors", "exporters"):
            for component in pipeline.get(section, ()):
                # A connector ends one pipeline and begins another.
                is_connector = section != "processors" and component in connectors
                used["connectors" if is_connector else section].add(component)
                if is_connector:
                    ends[section].add(component)
    assert ends["receivers"] == ends["exporters"] == connectors
    return used


@pytest.mark.parametrize("names", TOGETHER, ids=" ".join)
def test_every_component_that_a_pipeline_names_is_defined_and_every_defined_one_is_used(names: tuple[str, ...]) -> None:
    configuration = load(*names)
    defined = {section: set(configuration.get(section) or {}) for section in COMPONENTS}
    used = used_by_pipelines(configuration)
    # Some of the gateway's processors are there for what is added to it.
    for_others = used_by_pipelines(load("gateway.yaml", *ADDED))["processors"] if "gateway.yaml" in names else set()
    assert {**used, "processors": used["processors"] | for_others} == defined
    for component, settings in configuration["receivers"].items():
        assert component == "otlp"
        for protocol in settings["protocols"].values():
            if "auth" in protocol:
                assert protocol["auth"]["authenticator"] in used["extensions"]


MODULES = {
    "otlp_grpc": "otlpexporter",
    "otlp_http": "otlphttpexporter",
    "file_storage": "filestorage",
}
"""Components whose Go module is not named like them."""


def test_the_slim_collector_has_what_the_files_use_and_nothing_else() -> None:
    manifest = load("builder.yaml")
    configurations = [load(name) for name in NAMES if name != "jaeger.yaml"] + [yaml.safe_load(it) for it in CHANGES]
    for section in COMPONENTS:
        used = {
            component.partition("/")[0]
            for configuration in configurations
            for component in configuration.get(section) or {}
        }
        kind = section.removesuffix("s")
        modules = [module["gomod"].split() for module in manifest[section]]
        names = [name.rpartition("/")[2] for name, _ in modules]
        assert sorted(names) == sorted(MODULES.get(it, it.replace("_", "") + kind) for it in used)
        # Components of different releases do not fit together.
        assert {version for _, version in modules} == {f"v{manifest['dist']['version']}"}
    images = {service["image"] for service in load("compose.yaml")["services"].values() if "image" in service}
    assert f"otel/opentelemetry-collector-contrib:{manifest['dist']['version']}" in images


@pytest.mark.parametrize("name", STARTED)
def test_it_listens_on_loopback_unless_told_otherwise(name: str) -> None:
    configuration = load(name)
    endpoints = [protocol["endpoint"] for protocol in configuration["receivers"]["otlp"]["protocols"].values()]
    for component, settings in (
        {**configuration["extensions"], **configuration["exporters"]}.items() if name != "dev.yaml" else ()
    ):
        if component == "jaeger_query":
            endpoints += [settings["http"]["endpoint"], settings["grpc"]["endpoint"]]
        elif component == "healthcheckv2":
            endpoints.append(settings["http"]["endpoint"])
        elif component in ("health_check", "prometheus"):
            endpoints.append(settings["endpoint"])
    for endpoint in endpoints:
        assert set_from(endpoint, {}).startswith("localhost:"), endpoint
        assert set_from(endpoint, {"COLLECTOR_HOST": "0.0.0.0", "JAEGER_HOST": "0.0.0.0"}).startswith("0.0.0.0:"), (
            endpoint
        )


@pytest.mark.parametrize("name", NAMES)
def test_secrets_come_from_the_environment(name: str) -> None:
    def walk(value: Any) -> Iterator[tuple[str, Any]]:
        for key, item in value.items() if isinstance(value, dict) else ():
            yield key, item
            yield from walk(item)

    for key, value in walk(load(name)):
        if re.fullmatch(r"password|username|token|api_key|authorization", key):
            assert re.fullmatch(r"(Bearer )?\$\{env:\w+(:-(default)?)?\}", value), (key, value)


def test_an_outage_of_a_backend_loses_nothing() -> None:
    whole = load("gateway.yaml", *ADDED)
    front = load("several-gateways.yaml")
    sending = {name: settings for name, settings in whole["exporters"].items() if name != "prometheus"}
    assert set(sending) == {"otlp_grpc/jaeger", "otlp_grpc/account", "clickhouse"}
    assert set(front["exporters"]) == {"load_balancing", "load_balancing/metrics"}
    for settings in [*sending.values(), *front["exporters"].values()]:
        queue = settings["sending_queue"]
        assert queue["storage"] == "file_storage"
        assert queue.get("enabled", True)
        # The default gives up after five minutes and drops the batch.
        assert settings["retry_on_failure"]["max_elapsed_time"] == 0
        assert queue["sizer"] == "items"
    for settings in sending.values():
        queue = settings["sending_queue"]
        assert queue["batch"]["min_size"] <= queue["batch"]["max_size"] <= queue["queue_size"]
        assert queue["batch"]["sizer"] == "items"
    # What stands for records that nobody sends again is on the disk before it is answered for.
    assert load("gateway.yaml", "account.yaml")["extensions"]["file_storage"]["fsync"] is True
    # What the gateway takes in one message Jaeger takes too.
    sizes = {
        name: load(name)["receivers"]["otlp"]["protocols"]["grpc"]["max_recv_msg_size_mib"]
        for name in ("several-gateways.yaml", "gateway.yaml", "jaeger.yaml")
    }
    assert sizes["jaeger.yaml"] >= sizes["gateway.yaml"] >= sizes["several-gateways.yaml"]


def test_memory_is_watched_first_and_nothing_unmasked_goes_out() -> None:
    pipelines = load("gateway.yaml", *ADDED)["service"]["pipelines"]
    for name, pipeline in pipelines.items():
        if "otlp" in pipeline["receivers"]:
            assert pipeline["processors"][0] == "memory_limiter"
            if not name.startswith("metrics"):
                assert pipeline["processors"][-1].startswith("redaction"), name
    for pipeline in load("several-gateways.yaml")["service"]["pipelines"].values():
        assert pipeline["processors"] == ["memory_limiter"]
    # Metrics and ClickHouse see every span, Jaeger what sampling leaves.
    assert {name for name, pipeline in pipelines.items() if "forward/redacted" in pipeline["receivers"]} == {
        "traces/metrics",
        "traces/sampled",
        "traces/clickhouse",
    }
    sampled = [name for name, pipeline in pipelines.items() if "tail_sampling" in pipeline.get("processors", ())]
    assert sampled == ["traces/sampled"]
    assert pipelines["traces/sampled"]["exporters"] == ["otlp_grpc/jaeger"]


def test_tail_sampling_keeps_what_is_worth_looking_at() -> None:
    policies = load("gateway.yaml")["processors"]["tail_sampling"]["policies"]
    by_type: dict[str, list[dict[str, Any]]] = {}
    for policy in policies:
        # The settings of a policy stand under its type and nowhere else.
        assert set(policy) == {"name", "type", policy["type"]}
        by_type.setdefault(policy["type"], []).append(policy[policy["type"]])
    assert len({policy["name"] for policy in policies}) == len(policies)
    assert by_type["status_code"] == [{"status_codes": ["ERROR"]}]
    (status,) = by_type["string_attribute"]
    assert status["key"] == semconv.STATUS
    assert set(status["values"]) == {"error", "cancelled", "partial", "interrupted"}
    assert by_type["latency"][0]["threshold_ms"] > 0
    tokens = {numeric["key"]: numeric for numeric in by_type["numeric_attribute"]}
    assert set(tokens) == {semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS}
    for numeric in tokens.values():
        assert 0 < numeric["min_value"] < numeric["max_value"] == NO_LIMIT
    assert 0 < by_type["probabilistic"][0]["sampling_percentage"] < 100


OUR_NAMES = {
    value
    for name, value in vars(semconv).items()
    if name.isupper() and isinstance(value, str) and "." in value and not value.endswith(".")
}
"""Every attribute name that otel-llm writes."""


def patterns(setting: str) -> list[re.Pattern[str]]:
    """Regular expressions of the redaction processor. Go's and Python's agree on all that these use."""
    texts = load("gateway.yaml")["processors"]["redaction"][setting]
    for text in texts:
        # In a configuration `$` begins a substitution; one that is meant is written `$$`.
        assert not re.search(r"(?<!\$)\$(?!\$)", text), text
    return [re.compile(text.replace("$$", "$")) for text in texts]


def masked_key(name: str) -> bool:
    if any(pattern.search(name) for pattern in patterns("ignored_key_patterns")):
        return False
    return any(pattern.search(name) for pattern in patterns("blocked_key_patterns"))


def redacted(value: str) -> str:
    for pattern in patterns("blocked_values"):
        value = pattern.sub("****", value)
    return value


def test_redaction_leaves_our_own_attributes_alone() -> None:
    assert {semconv.INPUT_TOKENS, semconv.OPERATION, semconv.STATUS} <= OUR_NAMES
    # But the texts of errors: an app may have them recorded, and the gateway of a team takes them out again.
    assert {name for name in OUR_NAMES if masked_key(name)} == {semconv.EXCEPTION_MESSAGE, semconv.EXCEPTION_STACKTRACE}
    # Under the current names and the older ones.
    assert [name for names in dialects.ALIASES.values() for name in names if masked_key(name)] == []


def test_redaction_looks_at_no_value_of_whom_the_team_accounts_to() -> None:
    """An e-mail address is a fine name for a customer, and masked all customers are one."""
    names = {semconv.MODULE, semconv.TAG_PREFIX + "customer"}
    for ours in (semconv.USER_ID, semconv.SESSION_ID, semconv.CONVERSATION_ID, semconv.REQUEST_ID):
        names.update(dialects.names(ours))
    ignored = patterns("ignored_key_patterns")
    assert {name for name in names if not any(pattern.search(name) for pattern in ignored)} == set()
    # And at everything else.
    said = {
        "gen_ai.input.messages",
        "gen_ai.tool.call.arguments",
        "http.url",
        "user.name",
        "otel_llm.modules",
        "message",
    }
    assert {name for name in said if any(pattern.search(name) for pattern in ignored)} == set()
    # In the account's records the columns of the same.
    account = load("gateway.yaml")["processors"]["redaction/account"]
    assert set(account["ignored_keys"]) == {
        "user_id",
        "session_id",
        "conversation_id",
        "request_id",
        "module",
        "tags",
    }
    spans = load("gateway.yaml")["processors"]["redaction"]
    for setting in ("blocked_values", "blocked_key_patterns"):
        assert account[setting] == spans[setting]


@pytest.mark.parametrize(
    "name",
    ["http.request.header.authorization", "http.request.header.x-api-key", "http.response.header.set-cookie", "db.password",
     "client_secret", "app.api_key", "exception.message", "exception.stacktrace"],
)  # fmt: skip
def test_redaction_masks_credentials_by_name(name: str) -> None:
    assert masked_key(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Incorrect API key provided: sk-proj-abcDEF0123456789_abcDEF.", "Incorrect API key provided: ****."),
        ("Authorization: Bearer abcdef0123456789", "Authorization: ****"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "****"),
        ('[{"role":"user","parts":[{"type":"text","content":"write to ann@example.co.uk"}]}]',
         '[{"role":"user","parts":[{"type":"text","content":"write to ****"}]}]'),
        ("card 4111 1111 1111 1111 please", "card **** please"),
    ],
)  # fmt: skip
def test_redaction_masks_secrets_and_personal_data_in_values(value: str, expected: str) -> None:
    assert redacted(value) == expected


@pytest.mark.parametrize(
    "value",
    ["chat gpt-4o-mini", "gpt-4o-mini-2024-07-18", "text-embedding-3-small", "chatcmpl-BqW8ZkQ0J2cV9nXy7Lr3sT1a", "azure.ai.openai",
     "resp_68af1b0c2d3e4f5061728394a5b6c7d8", "call_mszuSIzqtI65i1wAUOE8w5H4", "0af7651916cd43dd8448eb211c80319c", "weather-agent",
     "api.openai.com", "2026-11-21T04:43:00Z", "risk-assessment-of-the-whole-project", "It is 21 °C and sunny in Lisbon."],
)  # fmt: skip
def test_redaction_leaves_ordinary_values_alone(value: str) -> None:
    assert redacted(value) == value


DOCUMENT = DIRECTORY.parent / "docs" / "collector.md"
CHANGES = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_the_changes_that_the_document_shows_fit_the_gateway(change: str) -> None:
    whole, changes = load("gateway.yaml", "account.yaml"), yaml.safe_load(change)
    assert unknown_keys(changes, COLLECTOR) == []
    lay_over(whole, changes)
    used = used_by_pipelines(whole)
    for section in COMPONENTS:
        assert used[section] <= set(whole.get(section) or {})
        # Nothing is added that is not used.
        assert set(changes.get(section) or {}) <= used[section]


def test_the_documents_name_every_policy_and_every_variable() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for policy in load("gateway.yaml")["processors"]["tail_sampling"]["policies"]:
        assert f"`{policy['name']}`" in text
    jaeger = DOCUMENT.with_name("jaeger.md").read_text("utf-8")
    for name in set(NAMES) - {"dev.yaml"}:
        document = jaeger if name == "jaeger.yaml" else text
        rows = [line.split("|")[1:3] for line in document.splitlines() if line.startswith("| `")]
        for value in strings(load(name)):
            for variable, default in re.findall(r"\$\{env:(\w+):-([^}]*)\}", value):
                (cell,) = (defaults for variables, defaults in rows if f"`{variable}`" in variables)
                assert not default or f"`{default}`" in cell, variable


# --- compose ---------------------------------------------------------------------------------------------------------


def services(profile: str) -> dict[str, Any]:
    return {
        name: service for name, service in load("compose.yaml")["services"].items() if profile in service["profiles"]
    }


def test_each_service_is_of_one_profile() -> None:
    assert [
        service["profiles"] for service in load("compose.yaml")["services"].values() if len(service["profiles"]) != 1
    ] == []
    assert set(services("dev")) == {"collector", "jaeger"}
    assert set(services("team")) == {"gateway", "jaeger-team", "clickhouse", "prometheus", "grafana"}


@pytest.mark.parametrize("profile", ["dev", "team"])
def test_the_compose_file_publishes_on_loopback_and_mounts_what_is_there(profile: str) -> None:
    published = [port for service in services(profile).values() for port in service.get("ports", ())]
    assert {port.split(":")[0] for port in published} == {"127.0.0.1"}
    assert len({port.split(":")[1] for port in published}) == len(published)
    volumes = set(load("compose.yaml")["volumes"])
    for service in services(profile).values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DIRECTORY / source).exists() if source.startswith("./") else source in volumes, volume
        for other in service.get("depends_on", ()):
            assert other in services(profile)


@pytest.mark.parametrize(
    ("profile", "collector", "configuration", "jaeger"),
    [("dev", "collector", "dev.yaml", "jaeger"), ("team", "gateway", "gateway.yaml", "jaeger-team")],
)
def test_the_collector_of_a_profile_reaches_its_jaeger(
    profile: str, collector: str, configuration: str, jaeger: str
) -> None:
    collector_service, jaeger_service = services(profile)[collector], services(profile)[jaeger]
    assert f"./{configuration}:/etc/otelcol/config.yaml:ro" in collector_service["volumes"]
    mounted = [volume.split(":")[1] for volume in collector_service["volumes"] if volume.startswith("./")]
    assert collector_service["command"] == [f"--config={file}" for file in mounted]
    assert "./jaeger.yaml:/etc/jaeger/config.yaml:ro" in jaeger_service["volumes"]
    assert jaeger_service["command"] == ["--config=/etc/jaeger/config.yaml"]

    # Where the Collector sends is where Jaeger listens, in the compose file and without one.
    listening = load("jaeger.yaml")["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    sending = load(configuration)["exporters"]["otlp_grpc/jaeger"]["endpoint"]
    port = set_from(listening, jaeger_service["environment"]).rpartition(":")[2]
    assert set_from(sending, collector_service["environment"]) == f"{jaeger}:{port}"
    assert set_from(sending, {}) == set_from(listening, {})

    # What an application is told to send to is what the Collector listens on.
    protocols = load(configuration)["receivers"]["otlp"]["protocols"].values()
    heard = {set_from(protocol["endpoint"], collector_service["environment"]) for protocol in protocols}
    assert heard == {"0.0.0.0:4317", "0.0.0.0:4318"}
    assert {"127.0.0.1:4317:4317", "127.0.0.1:4318:4318"} <= set(collector_service["ports"])
    assert "127.0.0.1:16686:16686" in jaeger_service["ports"]
    assert set_from(load("jaeger.yaml")["extensions"]["jaeger_query"]["http"]["endpoint"], {}) == "localhost:16686"

    # Jaeger before 2.20 has no GenAI View.
    name, _, version = jaeger_service["image"].partition(":")
    assert name == "jaegertracing/jaeger"
    assert tuple(map(int, version.split("."))) >= (2, 20)


def test_what_the_compose_file_sets_is_what_the_configurations_read() -> None:
    for service in load("compose.yaml")["services"].values():
        mounted = [volume.removeprefix("./").partition(":")[0] for volume in service.get("volumes", ())]
        if files := [name for name in mounted if name in SCHEMAS]:
            read = {match for text in strings(load(*files)) for match in re.findall(r"\$\{env:(\w+)", text)}
            assert set(service["environment"]) <= read


def test_what_a_service_needs_is_asked_where_the_image_has_the_means() -> None:
    for name, service in services("team").items():
        # The Collector's image has the Collector and nothing else.
        assert ("healthcheck" in service) is (name != "gateway"), name
    asked = services("team")["jaeger-team"]["healthcheck"]["test"][-1]
    endpoint = set_from(load("jaeger.yaml")["extensions"]["healthcheckv2"]["http"]["endpoint"], {})
    assert f":{endpoint.rpartition(':')[2]}/" in asked
    # The gateway waits for nothing behind it.
    assert "depends_on" not in services("team")["gateway"]


def test_the_data_of_the_team_is_on_volumes() -> None:
    assert "grafana-data:/var/lib/grafana" in services("team")["grafana"]["volumes"]
    gateway, jaeger = services("team")["gateway"], services("team")["jaeger-team"]
    assert f"gateway-queue:{gateway['environment']['COLLECTOR_DATA']}" in gateway["volumes"]
    assert f"jaeger-traces:{jaeger['environment']['JAEGER_DATA']}" in jaeger["volumes"]
    assert jaeger["environment"]["JAEGER_EPHEMERAL"] == "false"
    queue = load("gateway.yaml")["extensions"]["file_storage"]
    assert set_from(queue["directory"], gateway["environment"]) == "/var/lib/otelcol"
    badger = load("jaeger.yaml")["extensions"]["jaeger_storage"]["backends"]["traces"]["badger"]
    assert {set_from(path, jaeger["environment"]) for path in badger["directories"].values()} == {
        "/var/lib/jaeger/keys",
        "/var/lib/jaeger/values",
    }


# --- Prometheus and Grafana ------------------------------------------------------------------------------------------


def test_prometheus_reads_what_the_gateway_serves() -> None:
    gateway = load("gateway.yaml")
    targets = {
        config["job_name"]: config["static_configs"][0]["targets"]
        for config in load("prometheus.yaml")["scrape_configs"]
    }
    metrics_port = set_from(gateway["exporters"]["prometheus"]["endpoint"], {}).rpartition(":")[2]
    own_port = gateway["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]["port"]
    assert targets == {"model-calls": [f"gateway:{metrics_port}"], "gateway": [f"gateway:{own_port}"]}


def test_grafana_finds_its_data_and_its_dashboards() -> None:
    sources = {
        source["uid"]: source for source in load("grafana/provisioning/datasources/datasources.yaml")["datasources"]
    }
    hosts = {
        uid: source["url"].split("//")[1].split(":")[0] if "url" in source else source["jsonData"]["host"]
        for uid, source in sources.items()
    }
    assert hosts == {"prometheus": "prometheus", "jaeger": "jaeger-team", "clickhouse": "clickhouse"}
    assert set(hosts.values()) <= set(services("team"))
    # Grafana 12.1.0 cannot read Jaeger (grafana#108651).
    version = services("team")["grafana"]["image"].rpartition(":")[2]
    assert tuple(map(int, version.split("."))) >= (12, 2)
    variables = set(
        re.findall(r"\$(\w+)", (DIRECTORY / "grafana/provisioning/datasources/datasources.yaml").read_text())
    )
    assert variables <= set(services("team")["grafana"]["environment"])
    (provider,) = load("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    mounts = services("team")["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
    assert sorted((OF_CALLS, OF_ACCOUNT)) == DASHBOARDS
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            assert panel["type"] == "row" or panel["datasource"]["uid"] in sources
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)


PROMETHEUS_OWN = {"le", "job", "instance", "__name__", "exporter"}
CLIENT_METRICS = {
    "gen_ai_client_inference_usage_input_tokens_total",
    "gen_ai_client_inference_usage_output_tokens_total",
    "gen_ai_client_embeddings_operation_input_tokens_sum",
    "gen_ai_client_token_usage_sum",
    "gen_ai_client_inference_time_to_first_chunk_seconds_bucket",
    "gen_ai_client_operation_time_to_first_chunk_seconds_bucket",
}
COLLECTOR_METRICS = {
    "otelcol_exporter_queue_size",
    "otelcol_exporter_enqueue_failed_spans",
    "otelcol_exporter_sent_spans",
    "otelcol_receiver_accepted_spans",
    "otelcol_receiver_refused_spans",
}
"""The Collector's own. Whether a unit (`__spans_`) and `_total` follow has changed between versions, so queries take either."""


def test_the_dashboard_of_calls_asks_for_what_there_is() -> None:
    connector = load("gateway.yaml")["connectors"]["span_metrics"]
    prefix = connector["namespace"].replace(".", "_")
    assert connector["histogram"]["unit"] == "s"
    metrics = {f"{prefix}_calls_total", f"{prefix}_duration_seconds_bucket", *CLIENT_METRICS, *COLLECTOR_METRICS}
    labels = {"service_name", "span_name", "span_kind", "status_code", "gen_ai_token_type", *PROMETHEUS_OWN}
    labels |= {dimension["name"].replace(".", "_") for dimension in connector["dimensions"]}

    dashboard = json.loads(OF_CALLS.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 10
    asked: set[str] = set()
    for query in queries:
        matchers = re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', query)
        grouped = [label for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(", ")]
        assert {label for label, _ in matchers} | set(grouped) <= labels, query
        names = re.findall(r"\b((?:traces|gen_ai_client|otelcol)_\w+)(?=\{)", query)
        for label, value in matchers:
            if label == "__name__":
                names += [name for name in CLIENT_METRICS | COLLECTOR_METRICS if re.fullmatch(value, name)]
        assert names, query
        asked.update(names)
    assert asked <= metrics
    for variable in dashboard["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
        assert metric in metrics
        assert label in labels


def test_span_metrics_have_model_and_provider_and_nobodys_identity() -> None:
    names = {dimension["name"] for dimension in load("gateway.yaml")["connectors"]["span_metrics"]["dimensions"]}
    assert {semconv.PROVIDER, semconv.REQUEST_MODEL, semconv.RESPONSE_MODEL, semconv.OPERATION} <= names
    assert names <= OUR_NAMES
    # Each value of each of these would be a time series.
    assert not names & {
        semconv.USER_ID,
        semconv.SESSION_ID,
        semconv.CONVERSATION_ID,
        semconv.REQUEST_ID,
        semconv.RESPONSE_ID,
    }


# --- the real programs -----------------------------------------------------------------------------------------------


def test_prometheus_accepts_its_configuration() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("NOT VALIDATED by the real program: no promtool on PATH")
    command = [promtool, "check", "config", str(DIRECTORY / "prometheus.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("names", TOGETHER, ids=" ".join)
def test_the_real_program_accepts_it(names: tuple[str, ...], tmp_path: Path) -> None:
    variable = "JAEGER_BIN" if "jaeger.yaml" in names else "OTELCOL_BIN"
    if variable not in os.environ:
        pytest.skip(f"NOT VALIDATED by the real program: {variable} does not name one")
    command = [os.environ[variable], "validate", *(f"--config={DIRECTORY / name}" for name in names)]
    # Reading them makes what is missing of TLS and tokens no fault: only a start does.
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_the_real_program_accepts_the_changes_that_the_document_shows(change: str, tmp_path: Path) -> None:
    if "OTELCOL_BIN" not in os.environ:
        pytest.skip("NOT VALIDATED by the real program: OTELCOL_BIN does not name one")
    (tmp_path / "mine.yaml").write_text(change, "utf-8")
    files = [DIRECTORY / "gateway.yaml", DIRECTORY / "account.yaml", tmp_path / "mine.yaml"]
    command = [os.environ["OTELCOL_BIN"], "validate", *(f"--config={file}" for file in files)]
    environment = {**os.environ, "VENDOR_AUTHORIZATION": "x"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
