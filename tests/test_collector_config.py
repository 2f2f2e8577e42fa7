"""The files in `collector-config/`: every component is defined, used and known, and Collector and Jaeger agree on ports."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DIRECTORY = Path(__file__).resolve().parents[1] / "collector-config"
CONFIGURATIONS = sorted(path for path in DIRECTORY.glob("*.yaml") if path.name != "compose.yaml")
CONFIGURATION_NAMES = [path.name for path in CONFIGURATIONS]

KNOWN = {
    "receivers": {"otlp"},
    "processors": {
        "attributes",
        "filter",
        "memory_limiter",
        "redaction",
        "resource",
        "tail_sampling",
        "transform",
    },
    "exporters": {"clickhouse", "debug", "file", "otlp_grpc", "otlp_http", "prometheus"},
    "connectors": {"forward", "span_metrics"},
    "extensions": {"file_storage", "health_check"},
}
"""The components of otelcol-contrib 0.159 that we may use, by their current names: `otlp` and `otlphttp` exporters, the `batch`
processor and a `jaeger` exporter are deprecated or gone, so a configuration that names one of them fails here."""


def load(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def component_type(name: str) -> str:
    """`otlp_grpc` of `otlp_grpc/jaeger`."""
    return name.partition("/")[0]


def test_there_is_a_configuration() -> None:
    assert "collector.yaml" in CONFIGURATION_NAMES


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=CONFIGURATION_NAMES)
def test_every_component_is_known(path: Path) -> None:
    configuration = load(path)
    assert set(configuration) <= {*KNOWN, "service"}
    for section, known in KNOWN.items():
        assert {component_type(name) for name in configuration.get(section, {})} <= known


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=CONFIGURATION_NAMES)
def test_every_component_that_a_pipeline_names_is_defined_and_every_defined_one_is_used(path: Path) -> None:
    configuration = load(path)
    defined = {section: set(configuration.get(section) or {}) for section in KNOWN}
    used: dict[str, set[str]] = {section: set() for section in KNOWN}
    used["extensions"].update(configuration["service"].get("extensions", ()))
    assert configuration["service"]["pipelines"]
    for pipeline in configuration["service"]["pipelines"].values():
        assert pipeline["receivers"]
        assert pipeline["exporters"]
        for section in ("receivers", "processors", "exporters"):
            for name in pipeline.get(section, ()):
                # A connector ends one pipeline and begins another.
                is_connector = section != "processors" and name in defined["connectors"]
                used["connectors" if is_connector else section].add(name)
    assert used == defined


def test_the_collector_sends_to_the_jaeger_of_the_compose_file() -> None:
    services = load(DIRECTORY / "compose.yaml")["services"]
    collector, jaeger = services["collector"], services["jaeger"]
    assert collector["environment"]["JAEGER_ENDPOINT"] == "jaeger:4317"
    assert "${env:JAEGER_ENDPOINT:-jaeger:4317}" in {
        exporter.get("endpoint") for exporter in load(DIRECTORY / "collector.yaml")["exporters"].values()
    }
    # Jaeger before 2.20 has no GenAI View.
    name, _, version = jaeger["image"].partition(":")
    assert name == "jaegertracing/jaeger"
    assert tuple(map(int, version.split("."))) >= (2, 20)


def test_the_compose_file_publishes_on_loopback_and_mounts_what_is_there() -> None:
    services = load(DIRECTORY / "compose.yaml")["services"]
    published = [port for service in services.values() for port in service["ports"]]
    assert {port.split(":")[0] for port in published} == {"127.0.0.1"}
    assert len({port.split(":")[1] for port in published}) == len(published)
    for service in services.values():
        for volume in service.get("volumes", ()):
            assert (DIRECTORY / volume.split(":")[0]).is_file()
    # What an application is told to send to is what the Collector listens on.
    receiver = load(DIRECTORY / "collector.yaml")["receivers"]["otlp"]["protocols"]
    listening = {protocol["endpoint"].rpartition(":")[2] for protocol in receiver.values()}
    assert listening == {port.rpartition(":")[2] for port in services["collector"]["ports"]} == {"4317", "4318"}


@pytest.mark.skipif("OTELCOL_BIN" not in os.environ, reason="OTELCOL_BIN does not name an otelcol-contrib")
@pytest.mark.parametrize("path", CONFIGURATIONS, ids=CONFIGURATION_NAMES)
def test_the_collector_accepts_it(path: Path) -> None:
    command = [os.environ["OTELCOL_BIN"], "validate", f"--config={path}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
