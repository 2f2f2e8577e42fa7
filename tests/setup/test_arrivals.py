"""Which exporters are watched: those alone that can be made again from the environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_llm.setup import arrivals, otlp_batches
from otel_llm.store.store import Store
from otel_llm.store.usage_processor import UsageSpanProcessor

BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
INSECURE = "OTEL_EXPORTER_OTLP_INSECURE"


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (BASE, TRACES, "OTEL_EXPORTER_OTLP_PROTOCOL", INSECURE, "OTEL_EXPORTER_OTLP_TRACES_INSECURE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(arrivals._Sender, "start_once", staticmethod(lambda *_: None))


@pytest.mark.parametrize(
    ("make", "environment", "name"),
    [
        (Grpc, {}, "http://localhost:4317"),
        (Http, {}, "http://localhost:4318/v1/traces"),
        (Grpc, {BASE: "http://here:9"}, "http://here:9"),
        (Grpc, {BASE: "https://here:9"}, "https://here:9"),
        (Http, {BASE: "http://here:9"}, "http://here:9/v1/traces"),
        (Http, {TRACES: "http://here:9/otlp"}, "http://here:9/otlp"),
        (Http, {BASE: "http://here:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://here:9/v1/traces"),
        # Another exporter for the same variables would send elsewhere, or without TLS.
        (lambda: Grpc(endpoint="http://there:9"), {BASE: "http://here:9"}, None),
        (lambda: Http(endpoint="http://there:9/v1/traces"), {BASE: "http://here:9"}, None),
        (Grpc, {BASE: "here:9"}, "https://here:9"),
        (Grpc, {BASE: "here:9", INSECURE: "true"}, "http://here:9"),
        (Grpc, {TRACES: "here:9", INSECURE: "true", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"}, "https://here:9"),
        (Grpc, {BASE: "http://here:9", INSECURE: "false"}, "http://here:9"),
        (lambda: Grpc(endpoint="here:9", insecure=True), {BASE: "here:9"}, None),
    ],
)
def test_the_endpoint(
    make: Callable[[], Any],
    environment: dict[str, str],
    name: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(make()))
    processor = UsageSpanProcessor(Store(tmp_path / "usage.duckdb"))
    arrivals.watch(provider, processor, processor._store)
    assert processor.exports_to is None  # it is an app's own as long as nobody has bounded it
    otlp_batches.bound(provider)
    arrivals.watch(provider, processor, processor._store)
    assert processor.exports_to == name
    assert processor._store.awaits_exports == (name is not None)
    provider.shutdown()


def test_what_is_no_provider_is_watched_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "usage.duckdb")
    arrivals.watch(None, UsageSpanProcessor(store), store)
    assert caplog.records == []
