"""OTLP where the extra `grpc` is not installed: over HTTP where a receiver takes that, and the account in any case."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_llm.fleet.ship.urls import destination_at
from otel_llm.setup import environment, sdk
from otel_llm.store.jobs.replaying import BackendError, ReplayTarget
from tests.conftest import Rows, Run
from tests.integration.otlp_receiver import OtlpReceiver

ASK = """
import openai
openai.OpenAI().embeddings.create(model="text-embedding-3-small", input="tyres")
"""
ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_"


@pytest.mark.parametrize(
    ("given", "exporters", "endpoint"),
    [
        ({ENDPOINT: "http://h:4317"}, "otlp,duckdb", "http://h:4318/v1/traces"),
        ({ENDPOINT: "http://h:4317", PROTOCOL: "grpc"}, "otlp,duckdb", "http://h:4318/v1/traces"),
        ({ENDPOINT: "https://h", PROTOCOL: "grpc"}, "otlp,duckdb", "https://h/v1/traces"),
        ({ENDPOINT: "h:4317", PROTOCOL: "grpc"}, "otlp,duckdb", "https://h:4318/v1/traces"),
        ({ENDPOINT: "http://h:14317", PROTOCOL: "grpc"}, "duckdb", None),
        ({f"{TRACES}ENDPOINT": "http://h:4317", f"{TRACES}PROTOCOL": "grpc"}, "otlp,duckdb", "http://h:4318/v1/traces"),
        ({"OTEL_TRACES_EXPORTER": "otlp", PROTOCOL: "grpc"}, "otlp", "http://localhost:4318/v1/traces"),
        ({"OTEL_TRACES_EXPORTER": "otlp_proto_grpc,duckdb"}, "otlp,duckdb", "http://localhost:4318/v1/traces"),
    ],
)
def test_it_goes_over_http(
    given: dict[str, str],
    exporters: str,
    endpoint: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | given
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(sdk, "has_grpc", lambda: False)
    monkeypatch.setattr(environment, "_told", set())
    sdk.set_defaults()
    assert variables["OTEL_TRACES_EXPORTER"] == exporters
    if endpoint is not None:
        assert (variables[f"{TRACES}ENDPOINT"], variables[f"{TRACES}PROTOCOL"]) == (endpoint, "http/protobuf")
    (said,) = caplog.messages
    assert "pip install 'otel-llm[grpc]'" in said
    assert ("no traces are sent" if endpoint is None else endpoint.removesuffix("/v1/traces")) in said
    sdk.set_defaults()  # a second time changes nothing, as in a child of this process
    assert variables["OTEL_TRACES_EXPORTER"] == exporters and len(caplog.messages) == 1


@pytest.mark.parametrize("given", [{}, {ENDPOINT: "http://h:4318"}, {"OTEL_TRACES_EXPORTER": "otlp"}])
def test_nobody_needs_it_who_has_not_asked_for_it(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | given
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(sdk, "has_grpc", lambda: False)
    sdk.set_defaults()
    assert caplog.messages == []
    assert variables.get(PROTOCOL) == ("http/protobuf" if given else None)


def test_every_call_is_recorded(
    run_instrumented: Run, python_without: Callable[..., Path], environment: dict[str, str], rows: Rows
) -> None:
    """Really without it: an endpoint whose port says nothing of HTTP gets no spans, and the app and its account go on."""
    python = python_without("opentelemetry-exporter-otlp-proto-grpc", "grpcio")
    with OtlpReceiver() as receiver:
        run_instrumented(
            ASK, env=receiver.environment("grpc"), python=python, stderr=r"pip install 'otel-llm\[grpc\]': no traces"
        )
        assert len(rows()) == 1 and receiver.spans == []
        run_instrumented(ASK, env=receiver.environment("http/protobuf"), python=python)
        assert len(rows()) == 2 and len(receiver.spans) == 1


def test_whoever_sends_over_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "grpc" or ".proto.grpc" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("otel_llm.fleet.ship.otlp.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"over gRPC, which needs pip install 'otel-llm\[grpc\]'"):
        destination_at("grpc://collector:4317", environment={})
    destination_at("http://collector:4318", environment={}).close()
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(BackendError, match=r"needs pip install 'otel-llm\[grpc\]'"):
        ReplayTarget.of("http://h:4317", None, {}).exporter()
