"""Where the store alone is asked for, the SDK is set up without its configurator: to the same end, with fewer imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DESCRIBE = """
import json, sys
import otel_llm
otel_llm.instrument()
from opentelemetry import trace
provider = trace.get_tracer_provider()
processors = provider._active_span_processor._span_processors
exporters = [type(p.span_exporter).__name__ for p in processors if hasattr(p, "span_exporter")]
print(json.dumps({
    "provider": type(provider).__name__,
    "processors": [type(processor).__name__ for processor in processors],
    "exporters": exporters,
    "sampler": provider.sampler.get_description(),
    "resource": {k: v for k, v in provider.resource.attributes.items() if k not in ("service.instance.id", "process.pid")},
    "limits": repr(provider._span_limits),
    "configurator": "opentelemetry.sdk._configuration" in sys.modules,
    "metrics": "opentelemetry.sdk.metrics" in sys.modules,
}))
"""


def described(store: Path, **settings: str) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment = {**kept, "OTEL_LLM_STORE": str(store), **settings}
    done = subprocess.run([sys.executable, "-c", DESCRIBE], env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "8", "OTEL_BSP_SCHEDULE_DELAY": "100"},
        {"OTEL_TRACES_EXPORTER": "duckdb", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"},
    ],
)
def test_it_is_what_the_configurator_would_have_made(store_path: Path, settings: dict[str, str]) -> None:
    alone = described(store_path, **settings)
    assert (alone.pop("configurator"), alone.pop("metrics")) == (False, False)
    # A variable that only the configurator knows, with its default.
    whole = described(store_path, OTEL_PYTHON_ID_GENERATOR="random", **settings)
    assert (whole.pop("configurator"), whole.pop("metrics")) == (True, True)
    assert alone == whole


@pytest.mark.parametrize(
    ("settings", "what", "expected"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "sampler", "AlwaysOffSampler"),
        ({"OTEL_TRACES_EXPORTER": "duckdb,console"}, "exporters", ["DuckDBSpanExporter", "ConsoleSpanExporter"]),
        ({"OTEL_METRICS_EXPORTER": "console"}, "metrics", True),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
            "exporters",
            ["OTLPSpanExporter", "DuckDBSpanExporter"],
        ),
    ],
)
def test_what_else_is_asked_for_is_set_up(
    store_path: Path, settings: dict[str, str], what: str, expected: object
) -> None:
    assert described(store_path, **settings)[what] == expected
