from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from otel_llm.settings import Capture, reload


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    yield
    monkeypatch.undo()
    reload()


def test_defaults(monkeypatch):
    for name in ("OTEL_LLM_STORE", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    found = reload()
    assert found.store is not None
    assert found.store.name == "usage.duckdb"
    assert (found.fsync, found.stream_usage, found.capture) == ("none", "auto", Capture.NO_CONTENT)
    assert not found.trust_baggage and found.thread_context
    assert found.retention is found.max_size is None


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("OTEL_LLM_FLUSH_INTERVAL", "250ms", "flush_interval", 0.25),
        ("OTEL_LLM_SEGMENT_AGE", "5min", "segment_age", 300.0),
        ("OTEL_LLM_SEGMENT_SIZE", "1.5MB", "segment_size", 1572864),
        ("OTEL_LLM_FSYNC", "Always", "fsync", "always"),
        ("OTEL_LLM_THREAD_CONTEXT", "off", "thread_context", False),
        ("OTEL_LLM_STORE", "none", "store", None),
        ("OTEL_LLM_RETENTION", "90d", "retention", 90 * 86400.0),
        ("OTEL_LLM_RETENTION", "4w", "retention", 28 * 86400.0),
        ("OTEL_LLM_REPLAY_MISSING", "off", "replay_missing", False),
        ("OTEL_LLM_SHIP_TO", "http://a:4318, clickhouse://b", "ship_to", ("http://a:4318", "clickhouse://b")),
        ("OTEL_LLM_SHIP_SPANS", "on", "ship_spans", True),
        ("OTEL_LLM_MAX_SIZE", "2GB", "max_size", 2 * 2**30),
        ("OTEL_LLM_JAEGER_URL", "http://localhost:16686/", "jaeger_url", "http://localhost:16686"),
        ("OTEL_LLM_PROPAGATE_TO", "a.example, b.example,", "propagate_to", ("a.example", "b.example")),
        ("OTEL_LLM_CONTENT_LIMIT", "500", "content_limit", 500),
        ("OTEL_LLM_CONTENT_LIMIT", "-1", "content_limit", 2**14),
        ("OTEL_LLM_REDACT_BUILTIN", "off", "redact_builtin", False),
        ("OTEL_LLM_METRICS", "Both", "metrics", "both"),
        ("OTEL_LLM_METRICS", "nonsense", "metrics", "current"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_only", "capture", Capture.SPAN_ONLY),
    ],
)
def test_values(name, text, field, value, monkeypatch):
    monkeypatch.setenv(name, text)
    assert getattr(reload(), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OTEL_LLM_FLUSH_INTERVAL", "soon"),
        ("OTEL_LLM_FLUSH_INTERVAL", "-1"),
        ("OTEL_LLM_SEGMENT_SIZE", "3 parsecs"),
        ("OTEL_LLM_FSYNC", "sometimes"),
        ("OTEL_LLM_TRUST_BAGGAGE", "perhaps"),
        # A number that was meant as days, or as gigabytes, must not empty the store.
        ("OTEL_LLM_RETENTION", "90"),
        ("OTEL_LLM_RETENTION", "90s"),
        ("OTEL_LLM_MAX_SIZE", "2"),
        ("OTEL_LLM_MAX_SIZE", "2kb"),
        ("OTEL_LLM_JAEGER_URL", "localhost:16686"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "yes please"),
    ],
)
def test_a_wrong_value_is_one_line_and_the_default(name, text, monkeypatch, caplog):
    expected = reload()
    monkeypatch.setenv(name, text)
    with caplog.at_level(logging.WARNING, "otel_llm"):
        assert reload() == expected
    (record,) = caplog.records
    assert name in record.getMessage()
    assert text in record.getMessage()
    assert "\n" not in record.getMessage()


def test_the_launcher_knows_every_variable():
    """`opentelemetry-instrument --llm_store …`"""
    from otel_llm import settings
    from otel_llm.setup import launch

    read = set(re.findall(r'"(OTEL_LLM_[A-Z_]+)"', Path(settings.__file__).read_text(encoding="utf-8")))
    assert {name for name in dir(launch) if name.startswith("OTEL_")} == read
